"""Zarr arrays that someone else wrote, read as datasets.

Any version, chunking and codec that zarr knows. Slower than Pelagos' own format; `pelagos convert`
writes that once.
"""

from pelagos.data_pipelines.foreign.dataset import ForeignDataset, open_foreign
from pelagos.data_pipelines.foreign.description import DescribedField, Description
from pelagos.data_pipelines.foreign.opening import open_readable

__all__ = ["DescribedField", "Description", "ForeignDataset", "open_foreign", "open_readable"]
