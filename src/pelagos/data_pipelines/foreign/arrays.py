"""Finding the data in a Zarr hierarchy: one array with a channel axis, or one array per field."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr

from pelagos.data_pipelines.conventions import MissingValueError
from pelagos.data_pipelines.conventions.decoding import MISSING_ADVICE
from pelagos.data_pipelines.conventions.selection import absolute_index, box_of
from pelagos.data_pipelines.foreign.axes import SPATIAL, axis_roles, dimension_names, role_of
from pelagos.data_pipelines.foreign.description import Description
from pelagos.data_pipelines.foreign.zarr_numbers import ZarrNumbers
from pelagos.data_pipelines.store.errors import DatasetError
from pelagos.data_pipelines.store.readable import Region
from pelagos.infra.suggestions import listed, nearest

DATA_ARRAY = "data"
_LEAST_AXES = 3  # trajectory, time, x


@dataclass(frozen=True)
class SourceArray:
    """An array, the meaning of its axes, and its numbers as values."""

    path: str
    roles: tuple[str, ...]
    numbers: ZarrNumbers

    @property
    def array(self) -> zarr.Array[Any]:
        return self.numbers.array

    def size_of(self, role: str) -> int:
        """Length of an axis; an axis that there is not is one long."""
        return int(self.array.shape[self.roles.index(role)]) if role in self.roles else 1

    @property
    def spatial_axes(self) -> tuple[str, ...]:
        """`("y", "x")`, slowest first in Pelagos' order."""
        return tuple(role for role in SPATIAL if role in self.roles)

    def read(
        self, trajectory: int, frames: Sequence[int], region: Region | None
    ) -> npt.NDArray[np.float32]:
        """`[frame, channel, y, x]`, one channel if the array has no such axis.

        Raises:
            DatasetError: a chunk or a value is missing.
        """
        distinct, positions = np.unique(np.asarray(frames), return_inverse=True)
        is_run = distinct[-1] - distinct[0] + 1 == len(distinct)
        wanted: dict[str, Any] = {
            "trajectory": slice(trajectory, trajectory + 1),
            "time": slice(int(distinct[0]), int(distinct[-1]) + 1) if is_run else distinct,
            "channel": slice(None),
        }
        for at, axis in enumerate(self.spatial_axes):
            wanted[axis] = slice(None) if region is None else slice(*region[at])
        selection = tuple(wanted[role] for role in self.roles)
        values = self.values(selection)
        order = ("trajectory", "time", "channel", *self.spatial_axes)
        present = [role for role in order if role in self.roles]
        values = values.transpose([self.roles.index(role) for role in present])
        lacking = [at for at, role in enumerate(order) if role not in self.roles]
        found: npt.NDArray[np.float32] = np.expand_dims(values, tuple(lacking))[0][positions]
        return found

    def values(self, selection: Any) -> npt.NDArray[np.float32]:
        """The values of a selection along the array's own axes, decoded by its conventions.

        Raises:
            DatasetError: a chunk or a value is missing, or float32 rounds a whole number.
        """
        stored = self.numbers[selection]
        with np.errstate(over="ignore"):  # becomes infinite, and is rejected
            values = stored.astype(np.float32, copy=False)
        if stored.dtype.kind in "iu" and stored.dtype.itemsize > 2:  # smaller ones always fit
            lost = stored[values != stored]  # compared as float64
            if lost.size:
                raise DatasetError(
                    f"array {self.path!r} holds the whole number {lost[0]}, which float32 rounds: "
                    "above 2^24 = 16777216 ids would merge. Renumber ids from 0 on. If they are "
                    "measurements, write them as float64, which may be rounded"
                )
        if not np.isfinite(values).all():
            raise self._not_finite(selection, stored, values)
        return values

    def _not_finite(
        self, selection: Any, stored: npt.NDArray[Any], values: npt.NDArray[np.float32]
    ) -> DatasetError:
        """The problem with the first value that is not finite, and the remedy."""
        is_missing = np.isnan(values)
        wrong = is_missing if is_missing.any() else ~np.isfinite(values)
        first = np.argwhere(wrong)[0].tolist()
        absolute = absolute_index(selection, box_of(selection, self.numbers.shape))
        index = ", ".join(map(str, absolute(first)))
        count = f"This is true of {int(wrong.sum())} of the {wrong.size} numbers read with it"
        if is_missing.any():
            return MissingValueError(
                f"array {self.path!r} holds NaN, which is no value, at index ({index}). {count}. "
                f"{MISSING_ADVICE}"
            )
        number = stored[tuple(first)]
        why = "is infinite" if np.isinf(number) else "is too large for float32"
        return DatasetError(
            f"array {self.path!r} holds {number} at index ({index}), which {why}. {count}"
        )


def find_arrays(
    root: zarr.Group | zarr.Array[Any], description: Description, uri: str
) -> tuple[SourceArray, ...]:
    """The arrays of a dataset: one with all fields, or one per field, in order.

    Raises:
        DatasetError: they cannot be found, or do not fit together.
    """
    if isinstance(root, zarr.Array):
        return (_source(root, "", True, description, uri),)
    arrays = {path: array for path, array in root.arrays() if isinstance(array, zarr.Array)}
    per_field = [f.array or f.name for f in description.fields]
    path = description.array or (DATA_ARRAY if DATA_ARRAY in arrays else None)
    if path is not None and description.array is None and any(f.array for f in description.fields):
        path = None
    if path is not None:
        found = root.get(path)
        if not isinstance(found, zarr.Array):
            raise DatasetError(
                f"{uri} has no array {path!r}{nearest(path, arrays)}; it has {sorted(arrays)}"
            )
        return (_source(found, path, True, description, uri),)
    names = per_field or _fields_among(arrays, description)
    lacking = [name for name in names if name not in arrays]
    if not names and (groups := sorted(name for name, _ in root.groups())):
        raise DatasetError(
            f"{uri} has no arrays of three axes or more itself, only groups: name one of "
            f"{listed(f'{uri}/{name}' for name in groups)}"
        )
    if lacking or not names:
        raise DatasetError(
            f"{uri} has no array "
            f"{', '.join(map(repr, lacking)) or 'of three axes or more'}"
            f"{nearest(lacking[0], arrays) if lacking else ''}; "
            f"it has { {name: array.shape for name, array in arrays.items()} }. Name those with the "
            "data in description.array, or in description.fields with their `array`"
        )
    found_arrays = tuple(_source(arrays[n], n, False, description, uri) for n in sorted(names))
    if per_field:
        found_arrays = tuple(_source(arrays[n], n, False, description, uri) for n in per_field)
    extents = {
        a.path: [a.size_of(r) for r in ("trajectory", "time", *a.spatial_axes)]
        for a in found_arrays
    }
    if len({str(extent) for extent in extents.values()}) > 1:
        raise DatasetError(
            f"{uri}: the arrays have several shapes, {extents} (trajectory, time, space); choose "
            "those of one shape in description.fields"
        )
    return found_arrays


def _fields_among(arrays: Mapping[str, zarr.Array[Any]], description: Description) -> list[str]:
    """Names of the arrays that hold frames.

    Where the dimensions' names show it, arrays along neither time nor trajectories (a
    topography, the corners of cells) are not fields, as in netCDF.
    """
    names = [n for n, a in arrays.items() if a.ndim >= _LEAST_AXES]
    if description.dimensions is not None:
        return names
    static = [n for n in names if not _may_hold_frames(arrays[n])]
    return [n for n in names if n not in static] or names


def _may_hold_frames(array: zarr.Array[Any]) -> bool:
    """Whether an array's axes are known and there is one of time or trajectories, or have no names."""
    names = dimension_names(array)
    if names is None:
        return True
    roles = [role_of(name) for name in names]
    return all(roles) and bool({"trajectory", "time"} & set(roles))


def _source(
    array: zarr.Array[Any], path: str, has_channels: bool, description: Description, uri: str
) -> SourceArray:
    where = f"{uri}, array {path!r}" if path else uri
    if array.dtype.kind not in "fiub":
        raise DatasetError(f"{where} holds {array.dtype}, expected real numbers")
    roles = axis_roles(array, has_channels, description.dimensions, where)
    return SourceArray(path, roles, ZarrNumbers(array, where))
