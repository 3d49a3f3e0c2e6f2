"""The files of a source, opened another way than for converting.

Each gives the numbers at plain indices, and the letters of its axes as they are then.
"""

from __future__ import annotations

import importlib
import io
import math
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import fsspec
import numpy as np

from pelagos.data_pipelines.convert.damaged import named_if_damaged
from pelagos.data_pipelines.convert.hdf5.first_look import require_answering
from pelagos.data_pipelines.convert.source import SourceError, StoredArray
from pelagos.data_pipelines.convert.verification.second_decoding import (
    DECODING_TOLERANCE,
    NC_FILL,
    Index,
    Numbers,
    SecondArray,
    decoded,
)
from pelagos.infra.json_text import parse_json
from pelagos.infra.storage.files import CappedReader
from pelagos.infra.storage.remote import is_remote, storage_options

_CHUNK_CACHE_BYTES = 16 * 2**20
_CLASSIC_NETCDF = b"CDF"
_UNREADABLE = ("REFERENCE_LIST", "DIMENSION_LIST")  # of types that say nothing of numbers


class SecondFile(Protocol):
    """An open file of arrays."""

    def array(self, array: StoredArray) -> SecondArray: ...

    def close(self) -> None: ...


def open_second(reader: str, file: str) -> SecondFile:
    """Raises SourceError where the file cannot be read."""
    try:
        with named_if_damaged(file):
            return SECOND_FILES[reader](file)
    except SourceError:
        raise
    except (OSError, ValueError, EOFError) as error:
        raise SourceError(f"cannot read {file} a second time: {error}") from error


# -- containers -----------------------------------------------------------------------------------


class _Hdf5:
    """By the library's low level: a hyperslab of the file's space into an array of our own."""

    def __init__(self, file: str) -> None:
        h5py = importlib.import_module("h5py")
        self.stream: Any = None
        if is_remote(file):
            self.stream = fsspec.open(file, "rb", **storage_options(file)).open()
        self.h5s: Any = h5py.h5s
        self.file: Any = h5py.File(self.stream or file, "r", rdcc_nbytes=_CHUNK_CACHE_BYTES)

    def array(self, array: StoredArray) -> SecondArray:
        stored = self.file[array.key]
        shape = tuple(map(int, stored.shape))

        def raw(index: Index) -> Numbers:
            ranges = [_range(i, size) for i, size in zip(index, shape, strict=True)]
            out = np.empty([len(r) for r in ranges], stored.dtype)
            if not ranges:
                return np.asarray(stored[()])
            space = stored.id.get_space()
            space.select_hyperslab(tuple(r.start for r in ranges), out.shape)
            stored.id.read(self.h5s.create_simple(out.shape), space, out)
            kept = [len(r) for r, i in zip(ranges, index, strict=True) if isinstance(i, slice)]
            return out.reshape(kept)

        attributes = {name: stored.attrs[name] for name in stored.attrs if name not in _UNREADABLE}
        return decoded(shape, array.axes, raw, attributes, self._fill(stored))

    def _fill(self, stored: Any) -> float | int | None:
        """The number that HDF5 or netCDF puts where nothing was written, if it can be determined."""
        kind = f"{stored.dtype.kind}{stored.dtype.itemsize}"
        state = stored.id.get_create_plist().fill_value_defined()
        if state == importlib.import_module("h5py").h5d.FILL_VALUE_USER_DEFINED:
            number: float | int = stored.fillvalue.item()
            return number if number and kind not in ("i1", "u1") else None
        is_netcdf = "_NCProperties" in self.file.attrs or "_Netcdf4Dimid" in stored.attrs
        return NC_FILL.get(kind) if is_netcdf else None

    def close(self) -> None:
        self.file.close()
        if self.stream is not None:
            self.stream.close()


def _range(index: int | slice, size: int) -> range:
    return range(index, index + 1) if isinstance(index, int) else range(*index.indices(size))


class _ClassicNetcdf:
    def __init__(self, file: str) -> None:
        scipy_io = importlib.import_module("scipy.io")
        self.stream = CappedReader(io.FileIO(file))
        self.file = scipy_io.netcdf_file(self.stream, "r", mmap=False, maskandscale=False)

    def array(self, array: StoredArray) -> SecondArray:
        stored = self.file.variables[array.key]
        attributes = dict(stored._attributes)  # scipy offers no other list
        shape = tuple(stored.shape)
        kind = f"{stored.data.dtype.kind}{stored.data.dtype.itemsize}"
        raw = stored.data.__getitem__
        return decoded(shape, array.axes, raw, attributes, NC_FILL.get(kind))

    def close(self) -> None:
        self.file.close()
        self.stream.close()


def _hdf5(file: str) -> SecondFile:
    if not is_remote(file):
        with Path(file).open("rb") as stream:
            if stream.read(3) == _CLASSIC_NETCDF:
                return _ClassicNetcdf(file)
        require_answering(file)
    return _Hdf5(file)


class _Zarr:
    def __init__(self, file: str) -> None:
        import zarr

        self.node: Any = zarr.open(file, mode="r", storage_options=storage_options(file) or None)

    def array(self, array: StoredArray) -> SecondArray:
        stored = self.node[array.key] if array.key else self.node
        shape = tuple(map(int, stored.shape))
        attributes = dict(stored.attrs)
        raw = stored.get_basic_selection
        return decoded(shape, array.axes, raw, attributes, self._fill(stored, attributes))

    def _fill(self, stored: Any, attributes: dict[str, Any]) -> float | int | None:
        """The `fill_value` of version 2, where a writer chose it; that of version 3 is a number."""
        number = stored.fill_value
        if stored.metadata.zarr_format != 2 or number is None or stored.dtype.kind not in "fiu":
            return None
        is_packed = "_ARRAY_DIMENSIONS" in attributes and (
            "scale_factor" in attributes or "add_offset" in attributes
        )
        return number.item() if (number or is_packed) and number == number else None

    def close(self) -> None:
        pass


class _Whole:
    """A file that is one array, or small ones, in memory."""

    def __init__(self, values: Numbers | Mapping[str, Numbers], letters: str | None = None,
                 tolerance: float = 0.0) -> None:  # fmt: skip
        self.values, self.letters, self.tolerance = values, letters, tolerance

    def array(self, array: StoredArray) -> SecondArray:
        values = self.values[array.key] if isinstance(self.values, Mapping) else self.values
        letters = array.axes if self.letters is None else self.letters[: values.ndim]
        return SecondArray(values.shape, letters, values.__getitem__, self.tolerance)

    def close(self) -> None:
        pass


class _Npz:
    """Members are unpacked whole, one at a time."""

    def __init__(self, file: str) -> None:
        self.stream = CappedReader(io.FileIO(file))
        self.archive = zipfile.ZipFile(self.stream)
        self.key, self.values = "", np.empty(0)

    def array(self, array: StoredArray) -> SecondArray:
        if array.key != self.key:
            content = io.BytesIO(self.archive.read(f"{array.key}.npy"))
            self.key, self.values = array.key, np.lib.format.read_array(content)
        return SecondArray(self.values.shape, array.axes, self.values.__getitem__)

    def close(self) -> None:
        self.archive.close()
        self.stream.close()


def _npy(file: str) -> SecondFile:
    return _Whole(np.load(file, mmap_mode="r", allow_pickle=False))


def _json(file: str) -> SecondFile:
    found = parse_json(Path(file).read_text(encoding="utf-8"))
    return _Whole(
        {key: np.array(float(v)) for key, v in found.items() if isinstance(v, int | float)}
    )


def _formula(file: str) -> SecondFile:
    """`kolmogorov-forcing/128`: 0.1 sin(2 pi (x + y)), the ends of both axes included."""
    count = int(file.rpartition("/")[2])
    rows = [
        [0.1 * math.sin(2 * math.pi * (i + j) / (count - 1)) for j in range(count)]
        for i in range(count)
    ]
    return _Whole(np.array(rows), tolerance=DECODING_TOLERANCE)


# -- pictures and volumes -------------------------------------------------------------------------

# The transformations of EXIF's eight orientations, on [y, x, …].
_TURNS: dict[int, Callable[[Numbers], Numbers]] = {
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a, 1),
}


def _picture(file: str) -> SecondFile:
    from PIL import Image

    path, _, query = file.rpartition("?")
    wishes = dict(part.split("=") for part in query.split("&"))
    side, is_raw = int(wishes["side"]), wishes["mode"] == "raw"
    with CappedReader(io.FileIO(path)) as stream, Image.open(stream) as picture:
        # Pillow turns TIFF while it reads it
        orientation = 1 if picture.format == "TIFF" else picture.getexif().get(0x0112, 1)
        values = np.asarray(picture if is_raw else picture.convert(wishes["mode"]))
    values = np.ascontiguousarray(_TURNS.get(orientation, np.asarray)(values))
    if side:
        given = Image.fromarray(values.astype(np.float32) if is_raw else values)
        values = np.asarray(given.resize((side, side), Image.Resampling.BILINEAR))
    return _Whole(values if values.ndim == 3 else values[..., None], "yxc")


def _nifti(file: str) -> SecondFile:
    """Turned by nibabel, as a whole."""
    nibabel = importlib.import_module("nibabel")
    image = nibabel.load(file)
    if image.header["sform_code"] or image.header["qform_code"]:
        image = nibabel.as_closest_canonical(image)
    values = image.get_fdata(caching="unchanged")
    return _Whole(values, "xyzc", DECODING_TOLERANCE)


SECOND_FILES: dict[str, Callable[[str], SecondFile]] = {
    "hdf5": _hdf5,
    "npy": _npy,
    "npz": _Npz,
    "zarr": _Zarr,
    "strict-zarr": _Zarr,
    "foreign": _Zarr,
    "json": _json,
    "formula": _formula,
    "picture": _picture,
    "nifti": _nifti,
}
