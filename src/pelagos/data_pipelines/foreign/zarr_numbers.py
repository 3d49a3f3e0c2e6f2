"""Numbers of a Zarr array as values: its conventions, and chunks that were never written."""

from __future__ import annotations

import copy
import dataclasses
import math
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr
from zarr.core.array import AsyncArray
from zarr.core.metadata import ArrayV2Metadata

from pelagos.data_pipelines.conventions import (
    Conventions,
    Decoded,
    decode_all,
    parse,
    require_present,
)
from pelagos.data_pipelines.conventions.selection import absolute_index, box_of
from pelagos.data_pipelines.foreign.bounded_codecs import bound_codecs
from pelagos.data_pipelines.store.errors import DatasetError


class ZarrNumbers:
    """One array. A number that was never stored is an error, and so is a missing value.

    Args:
        array: as zarr opens it, on a store whose chunks must exist.
        where: names the array in messages.

    Attributes:
        dtype: of the values, where none is missing.
        coordinates: of each axis the accompanying array that holds its positions, where it was opened
            with its group; None: there is none.
        views: the array with a fill value that shows: a number that was never stored is NaN, or,
            for whole numbers, differs between two views.
    """

    def __init__(self, array: zarr.Array[Any], where: str) -> None:
        self.array, self.where = array, where
        self.shape: tuple[int, ...] = tuple(array.shape)
        self.coordinates: tuple[str | None, ...] = ()
        self.attributes: dict[str, Any] = array.attrs.asdict()
        self.conventions = conventions_of(array, where)
        self.dtype = np.dtype(np.float32 if self.conventions.is_packed else array.dtype)
        self.has_shards = getattr(array, "shards", None) is not None
        self.views = views_that_show_gaps(array)
        try:
            for view in self.views:
                bound_codecs(view, where)
        except ValueError as error:
            raise DatasetError(str(error)) from error

    def __getitem__(self, selection: Any) -> npt.NDArray[Any]:
        """Values. Raises DatasetError: a chunk or a value is missing."""
        decoded = self.decoded(selection)
        absolute = absolute_index(selection, box_of(selection, self.shape))
        require_present(decoded, self.where, absolute)
        return decoded.values

    def whole(self) -> npt.NDArray[Any]:
        """All values of a small array, packed ones in float64."""
        return decode_all(self.conventions, self._stored(...), self.where)

    def decoded(self, selection: Any) -> Decoded:
        """Values, and where they are missing. Raises DatasetError: a chunk is missing."""
        return self.conventions.decode(self._stored(selection))

    def _stored(self, selection: Any) -> npt.NDArray[Any]:
        try:
            return self._read(selection)
        except (ValueError, OSError):
            raise
        except Exception as error:  # each codec has its own
            raise DatasetError(
                f"{self.where}: a chunk is damaged ({type(error).__name__}: {error})"
            ) from error

    def _read(self, selection: Any) -> npt.NDArray[Any]:
        first, *others = [np.asarray(view.oindex[selection]) for view in self.views]
        if self.has_shards and self.array.dtype.kind == "f" and np.isnan(first).any():
            # NaN may be stored, or replace an absent chunk: then another fill value appears there
            other = _with_fill(self.array, 0)
            bound_codecs(other, self.where)
            others = [np.asarray(other.oindex[selection])]
        if any(not _are_equal(first, other) for other in others):
            raise DatasetError(f"{self.where}: a chunk inside a shard is missing")
        return first


def _are_equal(one: npt.NDArray[Any], other: npt.NDArray[Any]) -> bool:
    return np.array_equal(one, other, equal_nan=one.dtype.kind == "f")


def conventions_of(array: zarr.Array[Any], where: str) -> Conventions:
    """The conventions of a Zarr array.

    Raises:
        DatasetError: an attribute cannot be honoured.
    """
    found = parse(array.attrs.asdict(), np.dtype(array.dtype), where, _fills(array))
    note = _note_of_fill(array, where)
    return dataclasses.replace(found, notes=(*found.notes, note)) if note else found


def _note_of_fill(array: zarr.Array[Any], where: str) -> str:
    """That the fill value of a Zarr v3 array counts as a number, where that may surprise."""
    metadata = array.metadata
    if isinstance(metadata, ArrayV2Metadata) or "_FillValue" in array.attrs:
        return ""
    fill: Any = metadata.fill_value
    if array.dtype.kind not in "fiu" or not fill or math.isnan(fill):
        return ""
    return f"the fill value {fill:g} of {where} counts as a number, as in xarray"


def _fills(array: zarr.Array[Any]) -> dict[str, float | int]:
    """Zarr v2 keeps the missing value of xarray and of netCDF-C as the fill value of `.zarray`.

    Zero is the fill value of arrays whose writer chose none, so that it counts only for packed
    numbers of xarray, whose writer chose it. That of Zarr v3 is a number, as xarray reads it.
    """
    metadata = array.metadata
    if not isinstance(metadata, ArrayV2Metadata) or array.dtype.kind not in "fiu":
        return {}
    fill: Any = metadata.fill_value
    attributes = array.attrs
    if fill is None or "_FillValue" in attributes or "missing_value" in attributes:
        return {}
    number = fill.item() if isinstance(fill, np.generic) else fill
    is_packed = "_ARRAY_DIMENSIONS" in attributes and (
        "scale_factor" in attributes or "add_offset" in attributes
    )
    if math.isnan(number) or (number == 0 and not is_packed):
        return {}
    return {"the fill_value of its .zarray": number}


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
