"""The job file of `pelagos convert`: data in a published format becomes a dataset."""

from typing import Any, Literal

from pydantic import Field

from pelagos.platform.config.schema import (
    PLUGINS,
    PathText,
    Plugins,
    ResourcesConfig,
    RunName,
    Section,
    StorageConfig,
)


class ConvertJob(Section):
    """Convert data in a published format: `pelagos convert JOB.yaml`."""

    job: Literal["convert"] = "convert"
    name: RunName = Field(description="Name of the job.")
    source: PathText = Field(description="File or folder in a known format (`convert --list`).")
    uri: PathText = Field(description="Where the dataset goes: a directory or s3:// prefix.")
    options: dict[str, Any] = Field(
        {},
        description="Information that the source lacks, e.g. {format: arrays, mapping: FILE, "
        "splits: {train: 0.8, test: 0.2}, missing: mask} (docs/converting.md).",
    )
    verify: bool = Field(False, description="Read all back and compare it with the source.")
    overwrite: bool = Field(False, description="Replace an existing dataset.")
    resources: ResourcesConfig = ResourcesConfig()
    storage: StorageConfig = StorageConfig()
    plugins: Plugins = PLUGINS
