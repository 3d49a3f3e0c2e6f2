"""Files of kinds that are not read are named by their first bytes, with what to do."""

from __future__ import annotations

import gzip
import io
import sqlite3
import tarfile
from pathlib import Path

import h5py
import numpy as np
import pytest
import scipy.io
import torch
import xarray as xr
from PIL import Image
from typer.testing import CliRunner

from pelagos.cli.main import app
from pelagos.data_pipelines.convert import ConvertOptions, SourceError, open_source

VALUES = np.ones((3, 2, 4, 5), np.float32)


def classic(**options: str) -> bytes:
    found = xr.Dataset({"u": (("sample", "time", "y", "x"), VALUES)})
    buffer = io.BytesIO()
    found.to_netcdf(buffer, engine="scipy", **options)  # type: ignore[call-overload]
    return buffer.getvalue()


def matlab(folder: Path) -> bytes:
    scipy.io.savemat(folder / "made.mat", {"u": VALUES})
    return (folder / "made.mat").read_bytes()


def picture(kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((4, 5), np.uint8)).save(buffer, kind)
    return buffer.getvalue()


def hdf5(folder: Path, userblock: bytes = b"") -> bytes:
    with h5py.File(folder / "made", "w", userblock_size=512 if userblock else 0) as file:
        file["u"] = VALUES
    content = (folder / "made").read_bytes()
    return userblock + content[len(userblock) :]


def sqlite(folder: Path) -> bytes:
    with sqlite3.connect(folder / "made.db") as connection:
        connection.execute("create table u (x real)")
    connection.close()
    return (folder / "made.db").read_bytes()


def pytorch(folder: Path) -> bytes:
    torch.save(torch.ones(3), folder / "made.pt")
    return (folder / "made.pt").read_bytes()


def tar(folder: Path) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.add(__file__, "a.py")
    return buffer.getvalue()


# Contents by a writer of that kind where there is one here, else the head that its specification says.
CASES = {
    "cdf5.nc": (lambda f: b"CDF\x05" + classic()[4:], r"CDF-5.*nccopy -k nc4"),
    "cdf5.dat": (lambda f: b"CDF\x05" + classic()[4:], r"CDF-5.*nccopy -k nc4"),
    "a.grib2": (lambda f: b"GRIB\0\0\0\2" + bytes(100), "GRIB.*cfgrib"),
    "named.nc": (lambda f: b"GRIB\0\0\0\2" + bytes(100), "GRIB.*cfgrib"),
    "a.hdf": (lambda f: b"\x0e\x03\x13\x01" + bytes(100), "HDF4.*h4toh5"),
    "a.mat": (matlab, "MATLAB file of version 5.*scipy.io.loadmat"),
    "b.mat": (
        lambda f: hdf5(f, b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(512)),
        r"version 7\.3, which is HDF5.*end in \.h5",
    ),
    "a.tif": (lambda f: picture("TIFF"), "TIFF.*rioxarray"),
    "a.png": (lambda f: picture("PNG"), "PNG.*per class"),
    "a.jpg": (lambda f: picture("JPEG"), "JPEG.*per class"),
    "a.dcm": (lambda f: bytes(128) + b"DICM" + bytes(50), "DICOM.*dcm2niix"),
    "a.nrrd": (lambda f: b"NRRD0004\n", "NRRD.*SimpleITK"),
    "a.fits": (lambda f: b"SIMPLE  =                    T", "FITS.*astropy"),
    "a.parquet": (lambda f: b"PAR1" + bytes(100), "Parquet.*numpy.save"),
    "a.db": (sqlite, "SQLite"),
    "a.pt": (pytorch, "PyTorch.*numpy"),
    "a.nc.gz": (lambda f: gzip.compress(classic()), "gzip.*gunzip"),
    "a.bin": (tar, "tar archive.*unpack"),
    "hdf5.dat": (hdf5, r"HDF5.*rename it to end in \.h5"),
    "numpy.dat": (lambda f: np.lib.format.magic(1, 0) + bytes(100), r"NumPy.*end in \.npy"),
    "netcdf.dat": (lambda f: classic(), r"netCDF.*end in \.nc"),
}


@pytest.mark.parametrize("name", list(CASES))
def test_what_it_is_and_what_to_do(tmp_path: Path, name: str) -> None:
    make, message = CASES[name]
    folder = tmp_path / "source"
    folder.mkdir()
    (folder / name).write_bytes(make(tmp_path))
    for place in (folder / name, folder):
        with pytest.raises(SourceError, match=rf"{name} is .*{message}"):
            open_source(str(place), ConvertOptions())
    drafted = CliRunner().invoke(app, ["convert", str(folder / name), "--draft-mapping"])
    told = " ".join(drafted.output.split())
    assert drafted.exit_code == 2
    assert f"{name} is" in told, told


def test_a_mapping_gives_the_same_advice(tmp_path: Path) -> None:
    (tmp_path / "m.yaml").write_text("fields: [{key: u, axes: [n, t, y, x], names: [u]}]")
    options = ConvertOptions(mapping=str(tmp_path / "m.yaml"))
    for name in ("cdf5.nc", "a.grib2", "named.nc", "a.mat"):
        make, message = CASES[name]
        (tmp_path / name).write_bytes(make(tmp_path))
        with pytest.raises(SourceError, match=message):
            open_source(str(tmp_path / name), options)


@pytest.mark.parametrize("name", ["a.nc", "a.h5"])
def test_a_damaged_file_is_not_called_by_another_name(tmp_path: Path, name: str) -> None:
    """The right name and a known beginning: it is cut short, with a mapping and without."""
    content = classic() if name == "a.nc" else hdf5(tmp_path)
    (tmp_path / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(SourceError, match=rf"cannot read .*{name} as .*(cut short|truncated)"):
        open_source(str(tmp_path / name), ConvertOptions())


def test_a_file_that_is_read_but_has_unknown_dimensions_needs_a_mapping(tmp_path: Path) -> None:
    xr.Dataset({"u": (("a", "b", "c"), VALUES[0])}).to_netcdf(tmp_path / "a.nc", engine="scipy")
    with pytest.raises(SourceError, match="resembles none of the formats.*--draft-mapping"):
        open_source(str(tmp_path / "a.nc"), ConvertOptions())
