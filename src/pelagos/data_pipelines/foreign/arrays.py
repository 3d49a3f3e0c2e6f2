"""Finding the data in a Zarr hierarchy: one array with a channel axis, or one array per field."""

from __future__ import annotations

import base64
import copy
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr
from zarr.core.array import AsyncArray

from pelagos.data_pipelines.foreign.axes import SPATIAL, axis_roles
from pelagos.data_pipelines.foreign.description import Description
from pelagos.data_pipelines.store.errors import DatasetError
from pelagos.data_pipelines.store.readable import Region

DATA_ARRAY = "data"
_LEAST_AXES = 3  # trajectory, time, x


@dataclass(frozen=True)
class SourceArray:
    """An array, what its axes mean, and how its numbers become values.

    `views` are the array itself with a fill value that shows: a number that was never stored is
    NaN, or, for whole numbers, differs between two views.
    """

    path: str
    roles: tuple[str, ...]
    views: tuple[zarr.Array[Any], ...]
    scale: float
    offset: float
    missing: tuple[float, ...]  # stored numbers that stand for "no value"

    @property
    def array(self) -> zarr.Array[Any]:
        return self.views[0]

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
        """What a selection along the array's own axes holds, scaled.

        Raises:
            DatasetError: a chunk or a value is missing.
        """
        stored = [np.asarray(view.oindex[selection]) for view in self.views]
        first = stored[0]
        if any(not np.array_equal(first, other) for other in stored[1:]):
            raise DatasetError(f"array {self.path!r}: a chunk inside a shard is missing")
        for number in self.missing:
            if (first == number).any():
                raise DatasetError(
                    f"array {self.path!r} holds {number:g}, which its attributes say is no value"
                )
        with np.errstate(over="ignore"):  # becomes infinite, and is refused
            values = first.astype(np.float32)
        if not np.isfinite(values).all():
            raise DatasetError(
                f"array {self.path!r}: a value is NaN, infinite or too large for float32, or a "
                f"chunk inside a shard is missing"
            )
        if (self.scale, self.offset) != (1.0, 0.0):
            values = values * np.float32(self.scale) + np.float32(self.offset)
        return values


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
            raise DatasetError(f"{uri} has no array {path!r}; it has {sorted(arrays)}")
        return (_source(found, path, True, description, uri),)
    names = per_field or [n for n, a in arrays.items() if a.ndim >= _LEAST_AXES]
    lacking = [name for name in names if name not in arrays]
    if lacking or not names:
        raise DatasetError(
            f"{uri} has no array {', '.join(map(repr, lacking)) or 'of three axes or more'}; it has "
            f"{ {name: array.shape for name, array in arrays.items()} }. Say which hold the data in "
            f"description.array, or description.fields with their `array`"
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
            f"{uri}: arrays of several shapes, {extents} (trajectory, time, space): choose those of "
            f"one shape in description.fields"
        )
    return found_arrays


def _source(
    array: zarr.Array[Any], path: str, has_channels: bool, description: Description, uri: str
) -> SourceArray:
    where = f"{uri}, array {path!r}" if path else uri
    if array.dtype.kind not in "fiub":
        raise DatasetError(f"{where} holds {array.dtype}: required are real numbers")
    roles = axis_roles(array, has_channels, description.dimensions, where)
    views = views_that_show_gaps(array)
    attributes = array.attrs
    missing = [
        number
        for key in ("_FillValue", "missing_value")
        for number in _numbers(attributes.get(key), f"{where} has the attribute {key}")
    ]
    return SourceArray(
        path,
        roles,
        views,
        _factor(attributes, "scale_factor", 1.0, where),
        _factor(attributes, "add_offset", 0.0, where),
        tuple({number for number in missing if not np.isnan(number)}),
    )


def views_that_show_gaps(array: zarr.Array[Any]) -> tuple[zarr.Array[Any], ...]:
    """The array with NaN where nothing was stored; of whole numbers, two views that differ there."""
    if array.dtype.kind == "f":
        return (_with_fill(array, np.nan),)
    if getattr(array, "shards", None) is not None:
        return (_with_fill(array, 0), _with_fill(array, 1))
    return (array,)


def _with_fill(array: zarr.Array[Any], value: float) -> zarr.Array[Any]:
    """The same array, with another value where nothing was stored."""
    metadata = copy.copy(array.metadata)
    object.__setattr__(metadata, "fill_value", array.dtype.type(value))
    return zarr.Array(AsyncArray(metadata, array.store_path))


def _factor(attributes: Any, key: str, usual: float, where: str) -> float:
    given = attributes.get(key, usual)
    if isinstance(given, bool) or not isinstance(given, int | float):
        raise DatasetError(f"{where} has the attribute {key} = {given!r}: required is a number")
    return float(given)


def _numbers(value: Any, what: str) -> list[float]:
    """Fill values of the attributes, one or (`missing_value` of CF) a list of them; xarray writes
    floats of Zarr v3 as base64 of 8 bytes."""
    if value is None:
        return []
    if isinstance(value, list):
        return [number for entry in value for number in _numbers(entry, what)]
    if isinstance(value, str):
        try:
            return [float(struct.unpack("<d", base64.standard_b64decode(value))[0])]
        except (ValueError, struct.error):
            return []
    if not isinstance(value, int | float):
        raise DatasetError(f"{what} = {value!r}: required is a number, or a list of them")
    return [float(value)]
