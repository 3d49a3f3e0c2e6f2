"""Arrays of an HDF5 or netCDF-4 file as values: unpacked, without gaps, missing values found."""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pelagos.data_pipelines.conventions import (
    Conventions,
    Decoded,
    decode_all,
    parse,
    require_present,
)
from pelagos.data_pipelines.conventions.selection import Box, absolute_index, box_of
from pelagos.data_pipelines.convert.hdf5.bounded_chunks import UnprovenChunks
from pelagos.data_pipelines.convert.hdf5.elsewhere import require_beside, require_numbers_beside
from pelagos.data_pipelines.convert.hdf5.filters import plugin_hint, require_filters
from pelagos.data_pipelines.convert.hdf5.first_look import require_answering
from pelagos.data_pipelines.convert.hdf5.gaps import Gaps, find_gaps
from pelagos.data_pipelines.convert.hdf5.opening import open_hdf5
from pelagos.data_pipelines.convert.source import SourceError
from pelagos.infra.memory_budget import require_affordable

# netCDF's default fill values, if a variable names none (netcdf.h). Bytes have
# none: each of their 256 values may be meant.
NETCDF_FILLS: dict[str, float | int] = {
    "i2": -32767,
    "i4": -2147483647,
    "i8": -9223372036854775806,
    "u2": 65535,
    "u4": 4294967295,
    "u8": 18446744073709551614,
    "f4": 9.969209968386869e36,
    "f8": 9.969209968386869e36,
}
MOST_NAMES = 1000  # a file may have a group for each of many samples


class Hdf5File:
    """An open file. Which parts of an array were written is looked up once for each array."""

    def __init__(self, file: str) -> None:
        self.name = file
        self.file = open_hdf5(file)
        self.known: dict[str, _Facts] = {}

    def array(self, key: str) -> Hdf5Array:
        """The array at `key`. Raises KeyError: there is none.

        It is opened anew each time: an open one keeps a cache of chunks, and there may be many.
        """
        is_new = key not in self.known
        if is_new:
            require_beside(self.file, key)
            require_answering(self.name, key)
        try:
            found = self.file[key]
        except KeyError:
            self._explain_link(key)
            raise
        if is_new:
            self._require_readable(found, f"{self.name}: {key}")
        facts = self.known.setdefault(key, _Facts())
        return Hdf5Array(found, f"{self.name}: {key}", facts)

    def _require_readable(self, found: Any, where: str) -> None:
        """Raise SourceError where its numbers are elsewhere, or a chunk is too large to be read."""
        require_numbers_beside(found, where)
        if chunks := getattr(found, "chunks", None):
            size = math.prod(chunks) * found.dtype.itemsize
            require_affordable(size, f"{where}: a chunk {chunks}", SourceError)

    def _explain_link(self, key: str) -> None:
        """Raise SourceError where there is a link at `key` that leads nowhere."""
        link: Any = self.file.get(key, getlink=True)
        target = getattr(link, "path", None)
        if target is not None:
            where = f"{link.filename}: {target}" if hasattr(link, "filename") else target
            raise SourceError(
                f"{self.name}: {key} is a link to {where}, which does not exist. Restore the file, "
                "or name the array itself"
            )

    def names(self) -> list[str]:
        """The first arrays of the file."""
        found: list[str] = []

        def note(name: str, node: Any) -> bool | None:
            if getattr(node, "shape", None) is not None:
                found.append(name)
            return True if len(found) >= MOST_NAMES else None

        self.file.visititems(note)
        return found

    def close(self) -> None:
        self.known.clear()
        self.file.close()


@dataclass
class _Facts:
    """The known properties of an array; None: not yet known."""

    conventions: Conventions | None = None
    gaps: Gaps | None = None
    unproven: UnprovenChunks | None = None


class Hdf5Array:
    """One array. `dtype` is that of the values, None for anything but an array of numbers.

    Args:
        dataset: as h5py gives it.
        where: file and key, for messages.
        facts: known facts about it, to be extended.
    """

    def __init__(self, dataset: Any, where: str, facts: _Facts) -> None:
        self.dataset, self.where = dataset, where
        stored: Any = getattr(dataset, "dtype", None)
        shape = getattr(dataset, "shape", None)  # None: a group, or an array of no space at all
        is_array = stored is not None and shape is not None and stored.kind in "fiub"
        self.shape: tuple[int, ...] = tuple(shape or ())
        self.dtype: Any = stored if shape is not None else None
        self.conventions = facts.conventions or Conventions()
        self.facts = facts
        if is_array:
            if facts.conventions is None:
                require_filters(dataset, where)
                self.conventions = parse(dataset.attrs, stored, where, _fills(dataset))
                facts.conventions = self.conventions
            if self.conventions.is_packed:
                self.dtype = np.dtype(np.float32)

    @property
    def attributes(self) -> dict[str, Any]:
        """Attributes that are text or numbers."""
        found = {}
        for name in self.dataset.attrs:
            with contextlib.suppress(OSError, TypeError):  # types that h5py does not know
                found[name] = self.dataset.attrs[name]
        return found

    @property
    def coordinates(self) -> tuple[str | None, ...]:
        """Of each axis the array in the file that holds its positions; None: there is none."""
        found = []
        for dim in self.dataset.dims:
            scale = dim[0] if len(dim) else None
            found.append(
                None if scale is None or is_bare_dimension(scale) else str(scale.name).lstrip("/")
            )
        return tuple(found)

    @property
    def gaps(self) -> Gaps:
        """The parts that were never written."""
        if self.facts.gaps is None:
            self.facts.gaps = find_gaps(self.dataset)
        return self.facts.gaps

    @property
    def is_plain(self) -> bool:
        """Whether stored numbers are the values, so that they can be read in place."""
        return self.conventions.is_identity

    def __getitem__(self, selection: Any) -> npt.NDArray[Any]:
        """Values. Raises SourceError: a part was never written, is missing, damaged or too large."""
        box, stored = self._stored(selection)
        decoded = self.conventions.decode(stored)
        require_present(decoded, self.where, absolute_index(selection, box))
        return decoded.values

    def decoded(self, selection: Any) -> Decoded:
        """Values, and where they are missing. Raises SourceError: a part was never written."""
        return self.conventions.decode(self._stored(selection)[1])

    def read_direct(self, out: npt.NDArray[Any], selection: Any, place: Any) -> None:
        """Read stored numbers that are the values into `out[place]`."""
        assert self.is_plain, self.where
        self._require_written(selection)
        try:
            self.dataset.read_direct(out, selection, place)
        except OSError as error:
            raise OSError(f"{error}{plugin_hint(self.dataset)}") from error

    def whole(self) -> npt.NDArray[Any]:
        """All values of a small array, packed ones in float64."""
        require_affordable(8 * math.prod(self.shape), self.where, SourceError)
        _, stored = self._stored(...)
        return decode_all(self.conventions, stored, self.where)

    def _stored(self, selection: Any) -> tuple[Box, npt.NDArray[Any]]:
        box = self._require_written(selection)
        try:
            return box, np.asarray(self.dataset[selection])
        except OSError as error:
            raise OSError(f"{error}{plugin_hint(self.dataset)}") from error

    def _require_written(self, selection: Any) -> Box:
        box = box_of(selection, self.shape)
        hit = self.gaps.first_in(box) if self.gaps else None
        if hit is not None:
            index, reason = hit
            raise SourceError(
                f"{self.where} holds nothing at index ({', '.join(map(str, index))}): it {reason}. "
                "HDF5 would read zeros there, but Pelagos fills nothing in. Write the data, or "
                "convert only the written part (--splits train=N takes the first N trajectories, "
                "--num-frames the first frames)"
            )
        if self.facts.unproven is None:
            self.facts.unproven = UnprovenChunks(self.dataset, self.where)
        self.facts.unproven.try_in(self.dataset, box)
        return box


def _fills(dataset: Any) -> dict[str, float | int]:
    """Numbers that the container itself puts where nothing was written.

    A fill value of zero, HDF5's own, is a number like any other: nothing distinguishes it from one.
    """
    import h5py

    if {"_FillValue", "missing_value"} & set(dataset.attrs):
        return {}
    kind = f"{dataset.dtype.kind}{dataset.dtype.itemsize}"
    plist = dataset.id.get_create_plist()
    if plist.fill_value_defined() == h5py.h5d.FILL_VALUE_USER_DEFINED:
        number = dataset.fillvalue.item()
        if number and kind not in ("i1", "u1"):
            return {"its HDF5 fill value": number}
        return {}
    if kind in NETCDF_FILLS and _is_netcdf(dataset):
        return {"the fill value of netCDF": NETCDF_FILLS[kind]}
    return {}


def is_bare_dimension(node: Any) -> bool:
    """netCDF-4 keeps a dimension without a variable as an array without numbers."""
    name = node.attrs.get("NAME", "")
    name = name.decode(errors="replace") if isinstance(name, bytes) else str(name)
    return name.startswith("This is a netCDF dimension but not a netCDF variable")


def _is_netcdf(dataset: Any) -> bool:
    names = ("_NCProperties",)
    return any(name in dataset.file.attrs for name in names) or "_Netcdf4Dimid" in dataset.attrs
