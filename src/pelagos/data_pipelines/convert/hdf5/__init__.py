"""HDF5 and netCDF files as sources: opening, filters, and parts that were never written."""

from pelagos.data_pipelines.convert.hdf5.arrays import Hdf5Array, Hdf5File
from pelagos.data_pipelines.convert.hdf5.classic import ClassicFile, is_classic
from pelagos.data_pipelines.convert.hdf5.opening import open_hdf5

__all__ = ["ClassicFile", "Hdf5Array", "Hdf5File", "is_classic", "open_hdf5"]
