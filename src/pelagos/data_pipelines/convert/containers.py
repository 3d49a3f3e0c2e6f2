"""Files of known kinds that are not read, recognised by their first bytes, and the advice for each.

Signatures are those of the kinds' own specifications, as the data base of `file` (libmagic) has them.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from pelagos.infra.storage.remote import is_remote

_READ_SUFFIXES = (".npy", ".npz", ".h5", ".hdf5", ".nc", ".nc4", ".cdf", ".nii", ".nii.gz")
_LOOKED_AT_BYTES = 1024
_MOST_FILES = 20  # of a folder that are looked at


class _Kind(NamedTuple):
    """A signature at an offset, the kind of file it marks, and advice; `{file}` is the file's name.

    `is_misnamed`: files of this kind are read under another name.
    """

    offset: int
    signature: bytes
    name: str
    advice: str
    is_misnamed: bool = False


_NETCDF4 = "`nccopy -k nc4 {file} NEW.nc` writes it as netCDF-4"
_GRIB = "`xarray.open_dataset('{file}', engine='cfgrib').to_netcdf('NEW.nc')` writes it as netCDF"
_RASTER = (
    "Pelagos reads pictures from one folder per class; a raster of values is written as netCDF by "
    "`rioxarray.open_rasterio('{file}').to_netcdf('NEW.nc')`"
)
_PICTURE = "give the folder that holds one folder of pictures per class"
_VTK = "read it with `meshio` or `pyvista`, and save its arrays on a regular grid with `numpy.save`"
_TABLE = "write its columns as arrays `[trajectory, time, …]` with `numpy.save`"
_UNPACK = "unpack it ({how}), then convert the result"

_KINDS = (
    _Kind(0, b"CDF\x05", "netCDF of the classic model with 64-bit data (CDF-5)", _NETCDF4),
    _Kind(0, b"GRIB", "GRIB", _GRIB),
    _Kind(0, b"\x0e\x03\x13\x01", "HDF4", "`h4toh5 {file} NEW.h5` writes it as HDF5"),
    _Kind(
        0,
        b"MATLAB 5.0 MAT-file",
        "a MATLAB file of version 5 to 7",
        "save it again in MATLAB with `save('NEW.mat', '-v7.3')` and name that file NEW.h5, or in "
        "Python: `numpy.savez('NEW.npz', **scipy.io.loadmat('{file}'))`",
    ),
    _Kind(
        0,
        b"MATLAB 7.3 MAT-file",
        "a MATLAB file of version 7.3, which is HDF5",
        "rename it to end in .h5, and describe its arrays in a mapping; MATLAB's first index is "
        "HDF5's last",
        True,
    ),
    _Kind(0, b"\x89HDF\r\n\x1a\n", "HDF5", "rename it to end in .h5 (or .nc for netCDF)", True),
    _Kind(0, b"CDF\x01", "netCDF", "rename it to end in .nc", True),
    _Kind(0, b"CDF\x02", "netCDF", "rename it to end in .nc", True),
    _Kind(0, b"\x93NUMPY", "a NumPy array", "rename it to end in .npy", True),
    _Kind(
        0, b"\xcd\xf3\x00\x01", "NASA's CDF, which is not netCDF", "`cdf2nc` writes it as netCDF"
    ),
    _Kind(0, b"II*\x00", "a TIFF or GeoTIFF file", _RASTER),
    _Kind(0, b"MM\x00*", "a TIFF or GeoTIFF file", _RASTER),
    _Kind(0, b"II+\x00", "a BigTIFF file", _RASTER),
    _Kind(0, b"MM\x00+", "a BigTIFF file", _RASTER),
    _Kind(0, b"\x89PNG\r\n\x1a\n", "one picture (PNG)", _PICTURE),
    _Kind(0, b"\xff\xd8\xff", "one picture (JPEG)", _PICTURE),
    _Kind(128, b"DICM", "DICOM", "`dcm2niix` writes its series as NIfTI, which Pelagos reads"),
    _Kind(
        0, b"NRRD", "NRRD", "`SimpleITK.WriteImage(SimpleITK.ReadImage('{file}'), 'NEW.nii.gz')`"
    ),
    _Kind(0, b"SIMPLE  =", "FITS", "`numpy.save('NEW.npy', astropy.io.fits.getdata('{file}'))`"),
    _Kind(0, b"# vtk DataFile", "VTK", _VTK),
    _Kind(0, b"<VTKFile", "VTK", _VTK),
    _Kind(0, b'<?xml version="1.0"?>\n<VTKFile', "VTK", _VTK),
    _Kind(0, b"PAR1", "Parquet", _TABLE),
    _Kind(0, b"ARROW1", "Arrow", _TABLE),
    _Kind(0, b"SQLite format 3\x00", "an SQLite database", _TABLE),
    _Kind(0, b"\x1f\x8b", "compressed by gzip", _UNPACK.replace("{how}", "`gunzip -k {file}`")),
    _Kind(
        0, b"\x28\xb5\x2f\xfd", "compressed by zstd", _UNPACK.replace("{how}", "`unzstd {file}`")
    ),
    _Kind(0, b"\xfd7zXZ\x00", "compressed by xz", _UNPACK.replace("{how}", "`unxz -k {file}`")),
    _Kind(0, b"BZh", "compressed by bzip2", _UNPACK.replace("{how}", "`bunzip2 -k {file}`")),
    _Kind(257, b"ustar", "a tar archive", _UNPACK.replace("{how}", "`tar -xf {file}`")),
)
_ZIP = b"PK\x03\x04"


def unreadable_kind(file: str | Path, may_be_misnamed: bool = True) -> str:
    """A sentence on a local file's kind and advice, if its first bytes show it; else nothing.

    Args:
        may_be_misnamed: name kinds too that are read under another name, such as HDF5 called `.dat`;
            not where something tried to read the file already.
    """
    if is_remote(str(file)):
        return ""
    if str(file).lower().endswith(_READ_SUFFIXES):
        may_be_misnamed = False
    try:
        with Path(file).open("rb") as stream:
            start = stream.read(_LOOKED_AT_BYTES)
    except OSError:
        return ""
    for kind in _KINDS:
        if start[kind.offset :].startswith(kind.signature) and (
            may_be_misnamed or not kind.is_misnamed
        ):
            advice = kind.advice.replace("{file}", str(file))
            return f"{file} is {kind.name}, which Pelagos does not read directly: {advice}"
    if may_be_misnamed and start.startswith(_ZIP):
        if b"data.pkl" in start:
            advice = "save its tensors with `numpy.save('NEW.npy', tensor.numpy())`"
            return f"{file} is a PyTorch file, which Pelagos does not read: {advice}"
        return (
            f"{file} is a zip archive, which Pelagos does not read: unpack it, and convert the "
            "folder"
        )
    return ""


def unreadable_member(folder: Path) -> str:
    """The same for the first files of a folder that is not read."""
    names = sorted(p for p in folder.iterdir() if p.is_file() and not p.name.startswith("."))
    found = (unreadable_kind(file) for file in names[:_MOST_FILES])
    return next((sentence for sentence in found if sentence), "")
