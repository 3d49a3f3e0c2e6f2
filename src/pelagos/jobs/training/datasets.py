"""Opening the datasets of a job's mixture, described ones with their entries' descriptions."""

import os

from pelagos.data_pipelines.foreign import DescribedField, Description, open_readable
from pelagos.data_pipelines.store import CacheSettings, DatasetError
from pelagos.data_pipelines.store.readable import ReadableDataset
from pelagos.platform.config.description import DescriptionConfig
from pelagos.platform.config.load import ConfigError, read_description
from pelagos.platform.config.schema import MixtureEntryConfig, StorageConfig, TrainingJob
from pelagos.platform.storage_choice import options_for as options_for


def open_entry(
    entry: MixtureEntryConfig, storage: StorageConfig, cache: CacheSettings | None = None
) -> ReadableDataset:
    """Open a dataset of a mixture, through a node's cache if given. Raises `DatasetError`."""
    given = entry.description
    description: Description | None = None
    if isinstance(given, str):
        description = load_description(given)
    elif given is not None:
        description = described(given)
    return open_readable(entry.uri, options_for(entry.uri, storage), description, cache)


def open_recorded(uri: str, job: TrainingJob) -> ReadableDataset:
    """Open a dataset that a run was trained on, as its job describes it. Raises `DatasetError`."""
    for entry in job.data.mixture:
        if entry.uri == uri:
            return open_entry(entry, job.storage)
    return open_readable(uri, options_for(uri, job.storage))


def load_description(path: str | os.PathLike[str]) -> Description:
    """Return the description in a YAML file. Raises `DatasetError` with every problem of it."""
    try:
        return described(read_description(path))
    except ConfigError as error:
        raise DatasetError(str(error)) from error


def described(config: DescriptionConfig) -> Description:
    """Return the description in a section."""
    values = {name: getattr(config, name) for name in DescriptionConfig.model_fields}
    values["fields"] = tuple(DescribedField(**f.model_dump()) for f in config.fields)
    return Description(**values)
