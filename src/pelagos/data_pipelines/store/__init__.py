"""The dataset format: Zarr v3 that any tool reads, written and read so that nothing is silent.

`docs/dataset-format.md` describes it byte by byte.
"""

from pelagos.data_pipelines.store.errors import DatasetError
from pelagos.data_pipelines.store.node_cache import CacheSettings
from pelagos.data_pipelines.store.reader import Dataset, open_dataset
from pelagos.data_pipelines.store.schema import DatasetSpec, Field
from pelagos.data_pipelines.store.writer import DatasetWriter, create_dataset, resume_dataset

__all__ = [
    "CacheSettings",
    "Dataset",
    "DatasetError",
    "DatasetSpec",
    "DatasetWriter",
    "Field",
    "create_dataset",
    "open_dataset",
    "resume_dataset",
]
