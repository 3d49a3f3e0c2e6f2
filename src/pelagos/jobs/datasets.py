"""Opening the datasets of a job's mixture, described ones with what their entries say."""

import os
from pathlib import Path
from typing import Any

from pelagos.data_pipelines.foreign import DescribedField, Description, open_readable
from pelagos.data_pipelines.store import DatasetError
from pelagos.data_pipelines.store.readable import ReadableDataset
from pelagos.infra.object_store import storage_options
from pelagos.platform.config.description import DescriptionConfig
from pelagos.platform.config.load import ConfigError, parse_yaml, read_yaml_text, validate_section
from pelagos.platform.config.schema import MixtureEntryConfig, StorageConfig, TrainingJob


def options_for(uri: str, storage: StorageConfig) -> dict[str, Any]:
    """Return fsspec options of `uri` under the job's `storage` section."""
    return storage_options(uri, storage.endpoint_url, storage.region, storage.anonymous)


def open_entry(entry: MixtureEntryConfig, storage: StorageConfig) -> ReadableDataset:
    """Open a dataset of a mixture. Raises `DatasetError`."""
    given = entry.description
    description: Description | None = None
    if isinstance(given, str):
        description = load_description(given)
    elif given is not None:
        description = described(given)
    return open_readable(entry.uri, options_for(entry.uri, storage), description)


def open_recorded(uri: str, job: TrainingJob) -> ReadableDataset:
    """Open a dataset that a run was trained on, as its job describes it. Raises `DatasetError`."""
    for entry in job.data.mixture:
        if entry.uri == uri:
            return open_entry(entry, job.storage)
    return open_readable(uri, options_for(uri, job.storage))


def load_description(path: str | os.PathLike[str]) -> Description:
    """Return the description in a YAML file.

    Its statistics are kept beside it, in `NAME.statistics.json`, unless it names another file.

    Raises:
        DatasetError: with every problem of the file.
    """
    try:
        tree, lines = parse_yaml(read_yaml_text(path), str(path))
        config, problems = validate_section(DescriptionConfig, tree, lines, ())
        if config is None:
            raise ConfigError(str(path), problems)
    except ConfigError as error:
        raise DatasetError(str(error)) from error
    beside = str(Path(path).with_suffix(".statistics.json"))
    return described(config, beside)


def described(config: DescriptionConfig, statistics: str | None = None) -> Description:
    """Return what a section describes; `statistics` is where they go if it does not say."""
    values = {name: getattr(config, name) for name in DescriptionConfig.model_fields}
    values["fields"] = tuple(DescribedField(**f.model_dump()) for f in config.fields)
    values["statistics"] = config.statistics or statistics
    return Description(**values)
