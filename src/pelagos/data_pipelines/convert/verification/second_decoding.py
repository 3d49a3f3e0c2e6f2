"""Stored numbers decoded a second time: CF and NUG conventions without the code of `conventions`.

Facts: CF conventions 1.11, sections 2.5.1 and 8.1; NetCDF Users' Guide, appendix A; the default fill
values of netCDF-C's `netcdf.h`.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Index = tuple[int | slice, ...]
Numbers = npt.NDArray[Any]

# Of values that two ways of decoding round each for themselves.
DECODING_TOLERANCE = 1e-6
NC_FILL: dict[str, float | int] = {
    **{"i2": -(2**15) + 1, "i4": -(2**31) + 1, "i8": -(2**63) + 2},
    **{"u2": 2**16 - 1, "u4": 2**32 - 1, "u8": 2**64 - 2},
    **{"f4": 9.969209968386869e36, "f8": 9.969209968386869e36},
}


@dataclass(frozen=True)
class SecondArray:
    """One array.

    Attributes:
        letters: of its axes, as in `StoredArray.axes`, in the order of `read`.
        read: the numbers at an index for each axis, decoded; NaN where a value is missing.
        tolerance: how far two decodings may lie apart, as a part of the largest number involved.
    """

    shape: tuple[int, ...]
    letters: str
    read: Callable[[Index], Numbers]
    tolerance: float = 0.0


def decoded(
    shape: tuple[int, ...],
    letters: str,
    raw: Callable[[Index], Any],
    attributes: Mapping[str, Any],
    container_fill: float | int | None = None,
) -> SecondArray:
    """An array whose attributes define the meaning of its numbers.

    Args:
        raw: the stored numbers at an index.
        container_fill: the container's own number for no value; the attributes'
            own take precedence.
    """
    scale, offset = (_one(attributes, key) for key in ("scale_factor", "add_offset"))
    missing = [m for key in ("_FillValue", "missing_value") for m in _many(attributes.get(key))]
    if not missing and container_fill is not None:
        missing = [container_fill]
    limits = list(_many(attributes.get("valid_range"))) or [
        next(iter(_many(attributes.get(key))), None) for key in ("valid_min", "valid_max")
    ]
    is_packed = scale is not None or offset is not None

    def read(index: Index) -> Numbers:
        stored = np.asarray(raw(index))
        is_missing = np.zeros(stored.shape, bool)
        for number in missing:
            is_missing |= _same(stored, number, "_Unsigned" in attributes)
        values = _resigned(stored, attributes)
        wide = values
        if is_packed:
            wide = values.astype(np.float64) * (1.0 if scale is None else scale) + (offset or 0.0)
        if limits != [None, None]:
            is_float = any(isinstance(limit, float | np.floating) for limit in limits)
            of_unpacked = is_packed and values.dtype.kind in "iu" and is_float
            low, high = limits
            if not of_unpacked:
                low, high = (None if x is None else _as_stored(x, stored, values) for x in limits)
            tested = wide if of_unpacked else values
            is_missing |= (tested < low) if low is not None else False
            is_missing |= (tested > high) if high is not None else False
        return np.where(is_missing, np.nan, wide) if is_missing.any() else np.asarray(wide)

    slack = DECODING_TOLERANCE * (1.0 + abs(offset or 0.0)) if is_packed else 0.0
    return SecondArray(shape, letters, read, slack)


def _resigned(stored: Numbers, attributes: Mapping[str, Any]) -> Numbers:
    """Whole numbers with the sign that `_Unsigned` gives them."""
    given = attributes.get("_Unsigned", "")
    word = (given.decode() if isinstance(given, bytes) else str(given)).strip().lower()
    wanted = {"true": "u", "false": "i"}.get(word, stored.dtype.kind)
    if wanted == stored.dtype.kind or stored.dtype.kind not in "iu":
        return stored
    return stored.astype(f"{wanted}{stored.dtype.itemsize}")  # wraps around


def _as_stored(number: Any, stored: Numbers, values: Numbers) -> Any:
    """A limit as a number of the values' type.

    0.1 of float32 is no more than a limit of 0.1, and -1 of one byte is 255 where they are
    unsigned.
    """
    if values.dtype.kind == "f":
        with np.errstate(over="ignore"):
            return values.dtype.type(number)
    if stored.dtype.kind == values.dtype.kind or isinstance(number, float | np.floating):
        return number
    return np.asarray(int(number)).astype(stored.dtype).astype(values.dtype)[()]


def _same(stored: Numbers, number: Any, may_wrap: bool) -> Numbers:
    """Where stored numbers are one of the attributes, in the narrower type of the two.

    Only where `_Unsigned` says that the type is another one (`may_wrap`) is 65535 of two bytes -1.
    """
    if stored.dtype.kind == "f":
        narrow = np.float32 if getattr(number, "dtype", None) == np.float32 else stored.dtype.type
        with np.errstate(over="ignore"):
            return np.asarray(stored.astype(narrow) == narrow(number))
    if stored.dtype.kind == "b" or float(number) != int(number):
        return np.zeros(stored.shape, bool)
    size = 8 * stored.dtype.itemsize
    bounds = np.iinfo(stored.dtype)
    low, high = (-(2 ** (size - 1)), 2**size - 1) if may_wrap else (bounds.min, bounds.max)
    if not low <= int(number) <= high:  # 1e20 is no number of two bytes
        return np.zeros(stored.shape, bool)
    wrapped = int(number) % 2**size
    unsigned = stored.astype(f"u{stored.dtype.itemsize}")
    return np.asarray(unsigned == np.array(wrapped, unsigned.dtype))


def _many(value: Any) -> list[Any]:
    """The numbers of an attribute, but for NaN, which shows by itself."""
    if value is None:
        return []
    if isinstance(value, bytes):
        value = value.decode()
    if isinstance(value, str):
        value = [_number_of(value)]
    found = [x for x in np.ravel(np.asarray(value)) if isinstance(x, np.number | np.bool_)]
    return [x for x in found if not (isinstance(x, np.floating) and np.isnan(x))]


def _number_of(value: str) -> float | int:
    """Of text, as it is or as base64 of 8 bytes (xarray in Zarr v3)."""
    try:
        return float(value)
    except ValueError:
        return float(np.frombuffer(base64.b64decode(value), "<f8")[0])


def _one(attributes: Mapping[str, Any], key: str) -> float | None:
    found = _many(attributes.get(key))
    return float(found[0]) if found else None
