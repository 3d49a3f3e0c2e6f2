"""How stored numbers become values: the CF and NUG conventions, the same for every container.

`parse` reads an array's attributes, and `Conventions.decode` applies them. Readers of HDF5, netCDF
and Zarr, for conversion and for training in place, all go through here.
"""

from pelagos.data_pipelines.conventions.attributes import parse
from pelagos.data_pipelines.conventions.decoding import (
    Conventions,
    Decoded,
    MissingValueError,
    decode_all,
    require_present,
)
from pelagos.data_pipelines.conventions.times import TimeAxis, time_axis

__all__ = [
    "Conventions",
    "Decoded",
    "MissingValueError",
    "TimeAxis",
    "decode_all",
    "parse",
    "require_present",
    "time_axis",
]
