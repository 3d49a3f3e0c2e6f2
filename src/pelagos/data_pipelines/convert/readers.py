"""Opening the files of a source: each reader gives something with a shape that can be sliced.

Files stay open per thread, the few last ones. Packages of the extra `convert` are imported when a
file that needs them is opened.
"""

from __future__ import annotations

import math
import threading
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from pelagos.data_pipelines.convert.endless_files import reject_endless
from pelagos.data_pipelines.convert.extras import require
from pelagos.data_pipelines.convert.gzip_check import require_intact_gzip
from pelagos.data_pipelines.convert.hdf5 import ClassicFile, Hdf5File, is_classic
from pelagos.data_pipelines.convert.npz import NpzFile, mapped_npy
from pelagos.data_pipelines.convert.source import SourceError, StoredArray
from pelagos.data_pipelines.convert.stored_files import Sliceable, StoredFile
from pelagos.data_pipelines.store.errors import DatasetError
from pelagos.infra.json_text import parse_json
from pelagos.infra.storage.remote import storage_options
from pelagos.infra.suggestions import listed, nearest

OPEN_FILES_PER_THREAD = 4
NIFTI_SLACK_BYTES = 2**20  # padding behind the values


def _hdf5(file: str) -> StoredFile:
    return ClassicFile(file) if is_classic(file) else Hdf5File(file)


class _Npy:
    def __init__(self, file: str) -> None:
        self.values: Sliceable = mapped_npy(file)

    def array(self, key: str) -> Sliceable:
        return self.values

    def close(self) -> None:
        del self.values


class _Zarr:
    def __init__(self, file: str) -> None:
        import zarr

        self.file, self.checked = file, set[str]()
        self.node = zarr.open(file, mode="r", storage_options=storage_options(file) or None)

    def array(self, key: str) -> Sliceable:
        from pelagos.data_pipelines.foreign.consolidated import require_current

        node: Any = self.node
        found: Sliceable = node[key] if key else node
        if key not in self.checked:
            require_current(self.node, [key], self.file)
            self.checked.add(key)
        return found

    def close(self) -> None:
        pass


class _StrictZarr:
    """Zarr arrays of which every chunk must be there: one that was lost is not taken for zeros."""

    def __init__(self, file: str) -> None:
        import zarr

        from pelagos.data_pipelines.store.zarr_view import open_store

        self.file = file
        self.node = zarr.open(open_store(file, storage_options(file) or None), mode="r")
        self.known: dict[str, Sliceable] = {}

    def array(self, key: str) -> Sliceable:
        if key not in self.known:
            self.known[key] = self._looked_up(key)
        return self.known[key]

    def names(self) -> list[str]:
        return [name for name, node in getattr(self.node, "members", lambda: ())()]

    def _looked_up(self, key: str) -> Sliceable:
        from pelagos.data_pipelines.foreign.axes import dimension_names
        from pelagos.data_pipelines.foreign.consolidated import require_current
        from pelagos.data_pipelines.foreign.zarr_numbers import ZarrNumbers

        node: Any = self.node
        found = node[key] if key else node
        require_current(self.node, [key], self.file)
        if getattr(found, "dtype", None) is None or found.dtype.kind not in "fiub":
            return cast(Sliceable, found)  # rejected by its contents
        numbers = ZarrNumbers(found, f"{self.file}: {key}" if key else self.file)
        folder = key.rpartition("/")[0]
        beside = [f"{folder}/{name}" if folder else name for name in dimension_names(found) or ()]
        numbers.coordinates = tuple(
            name if key and name != key and name in node else None for name in beside
        )
        return numbers

    def close(self) -> None:
        self.known.clear()


def _foreign(file: str) -> StoredFile:
    # The module describes a format too, and formats look into files through this one.
    from pelagos.data_pipelines.convert.foreign_zarr import ForeignFile

    return ForeignFile(file)


class _Json:
    """Numbers of a JSON object, each as an array without axes."""

    def __init__(self, file: str) -> None:
        self.values = parse_json(Path(file).read_bytes())

    def array(self, key: str) -> Sliceable:
        return np.asarray(self.values[key], np.float64)

    def close(self) -> None:
        pass


def kolmogorov_forcing(num_points: int) -> npt.NDArray[np.float32]:
    """The forcing of FNS-KF, `0.1 sin(2 pi (x + y))` `[y, x]`, on points that include both ends.

    So the loader of its publishers builds it, as no file holds it.
    """
    x = np.linspace(0, 1, num_points)
    return (0.1 * np.sin(2 * np.pi * (x[:, None] + x[None]))).astype(np.float32)


class _Formula:
    """Fields that no file holds: `kolmogorov-forcing/128`."""

    def __init__(self, file: str) -> None:
        name, _, size = file.partition("/")
        assert name == "kolmogorov-forcing", file
        self.values = kolmogorov_forcing(int(size))

    def array(self, key: str) -> Sliceable:
        return self.values

    def close(self) -> None:
        pass


def _picture(file: str) -> StoredFile:
    from pelagos.data_pipelines.convert.pictures import Picture

    return Picture(file)


class _Nifti:
    """A volume `[x, y, z]` (or with time and channel axes after them), scaled as its header says."""

    def __init__(self, file: str) -> None:
        nibabel = require("nibabel", f"reading {file}")
        try:
            self.image = nibabel.load(file)
        except nibabel.filebasedimages.ImageFileError as error:
            raise SourceError(f"cannot read {file} as NIfTI: {error}") from error
        proxy = self.image.dataobj
        claimed = math.prod(proxy.shape) * np.dtype(proxy.dtype).itemsize + int(proxy.offset)
        if file.lower().endswith(".gz"):
            require_intact_gzip(file, claimed + NIFTI_SLACK_BYTES)
        elif claimed > Path(file).stat().st_size:
            raise SourceError(
                f"{file} has {Path(file).stat().st_size:,} bytes, but its header states "
                f"{claimed:,}: it is cut short or damaged"
            )

    def array(self, key: str) -> Sliceable:
        found: Sliceable = self.image.dataobj
        return found

    def close(self) -> None:
        self.image.uncache()


Reader = Callable[[str], StoredFile]
READERS: dict[str, Reader] = {
    "hdf5": _hdf5,
    "npy": _Npy,
    "npz": NpzFile,
    "zarr": _Zarr,
    "strict-zarr": _StrictZarr,
    "foreign": _foreign,
    "json": _Json,
    "formula": _Formula,
    "picture": _picture,
    "nifti": _Nifti,
}

_open_files = threading.local()


def stored_array(array: StoredArray) -> Sliceable:
    """The array itself, from a file that may be open already.

    Raises:
        SourceError: the file or the key is absent, or holds no numbers.
    """
    kept: OrderedDict[tuple[str, str], StoredFile] | None = getattr(_open_files, "kept", None)
    if kept is None:
        kept = _open_files.kept = OrderedDict()
    address = (array.reader, array.file)
    if address in kept:
        kept.move_to_end(address)
    else:
        kept[address] = _opened(array)
        if len(kept) > OPEN_FILES_PER_THREAD:
            kept.popitem(last=False)[1].close()
    try:
        found = kept[address].array(array.key)
    except KeyError as error:
        raise SourceError(_no_such_array(array, kept[address])) from error
    except DatasetError as error:  # attributes that cannot be honoured
        raise SourceError(str(error)) from error
    if getattr(found, "dtype", None) is None or found.dtype.kind not in "fiub":
        kind = getattr(found, "dtype", type(found).__name__)
        raise SourceError(f"{array.address} holds {kind}, expected real numbers")
    return found


def _no_such_array(array: StoredArray, file: StoredFile) -> str:
    names = list(getattr(file, "names", list)())
    there = f"; it has {listed(names)}" if names else ""
    return f"{array.file} has no array {array.key!r}{nearest(array.key, names)}{there}"


def array_names(array: StoredArray) -> list[str]:
    """Names of the arrays in an array's file; empty where its reader does not list them."""
    stored_array(array)  # opens the file
    file = _open_files.kept[(array.reader, array.file)]
    return list(getattr(file, "names", list)())


def whole_array(array: StoredArray) -> npt.NDArray[Any]:
    """All values of a small array: a coordinate or a parameter, packed ones in float64.

    Raises:
        SourceError: it cannot be read, or a value is missing.
    """
    found = stored_array(array)
    try:
        return np.asarray(found.whole() if hasattr(found, "whole") else found[...])
    except DatasetError as error:
        raise SourceError(str(error)) from error


def parameter_of(array: StoredArray, name: str, notes: list[str]) -> npt.NDArray[np.float64]:
    """The numbers of a parameter, one per trajectory; adds a note on roundings.

    Raises:
        SourceError: it cannot be read, a number is absent or not finite, or a class is rounded.
    """
    from pelagos.data_pipelines.foreign.parameters import parameter_vector

    try:
        numbers, note = parameter_vector(whole_array(array), name, array.address)
    except DatasetError as error:
        raise SourceError(str(error)) from error
    notes += [note] if note else []
    return numbers


def positions_of(array: StoredArray) -> npt.NDArray[Any]:
    """The positions or times of a coordinate.

    Raises:
        SourceError: it cannot be read, or a position is absent or not finite.
    """
    from pelagos.data_pipelines.foreign.parameters import require_finite_positions

    points = whole_array(array).reshape(-1)
    try:
        require_finite_positions(points, array.address)
    except DatasetError as error:
        raise SourceError(str(error)) from error
    return points


def close_files() -> None:
    """Close the files that this thread keeps open."""
    kept = getattr(_open_files, "kept", {})
    while kept:
        kept.popitem()[1].close()


def _opened(array: StoredArray) -> StoredFile:
    if not Path(array.file).is_dir():
        reject_endless(array.file)
    try:
        return READERS[array.reader](array.file)
    except SourceError:
        raise
    except FileNotFoundError as error:
        raise SourceError(f"{array.file} does not exist") from error
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise SourceError(f"cannot read {array.file}: {error}") from error
