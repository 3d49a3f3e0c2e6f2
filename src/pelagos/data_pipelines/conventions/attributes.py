"""Reading the attributes of CF and NUG, whichever container holds them."""

from __future__ import annotations

import base64
import math
import struct
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from pelagos.data_pipelines.conventions.decoding import Conventions, Missing
from pelagos.data_pipelines.store.errors import DatasetError

# Attributes of other traditions that resemble CF's. They mean different things to different
# writers, so they are named and not applied.
_RESEMBLING = {
    *("scale", "scalefactor", "scaling_factor", "slope", "intercept", "offset", "addoffset"),
    *(
        "fillvalue",
        "fill_value",
        "missingvalue",
        "nodata",
        "nodata_value",
        "no_data",
        "no_data_value",
    ),
}


def parse(
    attributes: Mapping[str, Any],
    dtype: np.dtype[Any],
    where: str,
    fills: Mapping[str, float | int] | None = None,
) -> Conventions:
    """The conventions of one array.

    Args:
        attributes: as h5py, scipy or zarr give them.
        dtype: of the stored numbers.
        where: file and array, for messages.
        fills: the container's own numbers for unwritten values, by their source
            (`{".zarray's fill_value": -9999}`).

    Raises:
        DatasetError: an attribute has a form that cannot be honoured; it is named.
    """
    view = _view(attributes, dtype, where)
    scale = _factor(attributes, "scale_factor", 1.0, where)
    offset = _factor(attributes, "add_offset", 0.0, where)
    if scale == 0:
        raise DatasetError(f"{where} has scale_factor = 0, which makes all values the same")
    seen_as = dtype if view is None else view
    missing = [
        entry
        for key in ("_FillValue", "missing_value")
        if key in attributes
        for entry in _missing(attributes[key], key, dtype, where)
    ]
    missing += [Missing(number, key) for key, number in (fills or {}).items()]
    low, high, unpacked = _limits(attributes, dtype, scale, offset, where)
    distinct: dict[float | int, Missing] = {}
    for entry in missing:
        number = _reinterpreted(entry.number, seen_as, dtype)
        if not math.isnan(number):  # NaN shows by itself
            distinct.setdefault(number, Missing(number, entry.attribute, entry.is_single))
    if not unpacked:
        low = None if low is None else _reinterpreted(low, seen_as, dtype)
        high = None if high is None else _reinterpreted(high, seen_as, dtype)
    notes = (
        [] if not unpacked else [f"the valid range of {where} is taken to be in unpacked values"]
    )
    notes += [
        f"{where} has {entry.attribute} = {entry.number:g}, which its type {seen_as} cannot hold, "
        "so it marks no value as missing"
        for entry in distinct.values()
        if not _fits(entry.number, seen_as)
    ]
    resembling = sorted(key for key in attributes if str(key).lower() in _RESEMBLING)
    if resembling:
        notes.append(
            f"{where} has the attributes {', '.join(resembling)}, which CF does not define, so they "
            "are not applied"
        )
    return Conventions(
        scale,
        offset,
        tuple(distinct.values()),
        low,
        high,
        "unpacked" if unpacked else "stored",
        view,
        _text(attributes.get("units")),
        tuple(notes),
    )


def _fits(number: float | int, dtype: np.dtype[Any]) -> bool:
    """Whether a whole-number type can hold a number."""
    if dtype.kind not in "iu":
        return True
    bounds = np.iinfo(dtype)
    return math.isfinite(number) and number == int(number) and bounds.min <= number <= bounds.max


def _view(attributes: Mapping[str, Any], dtype: np.dtype[Any], where: str) -> np.dtype[Any] | None:
    """The type that `_Unsigned` gives whole numbers, if it is another than theirs."""
    if "_Unsigned" not in attributes:
        return None
    given = attributes["_Unsigned"]
    word = (_text(given) or "").strip().lower()
    if word not in ("true", "false"):
        raise DatasetError(f"{where} has _Unsigned = {given!r}; expected 'true' or 'false'")
    wanted = "u" if word == "true" else "i"
    if dtype.kind not in "iu":
        raise DatasetError(f"{where} has _Unsigned = {word!r} but holds {dtype}, not whole numbers")
    return None if dtype.kind == wanted else np.dtype(f"{wanted}{dtype.itemsize}")


def _reinterpreted(
    number: float | int, seen_as: np.dtype[Any], stored: np.dtype[Any]
) -> float | int:
    """A number of the stored type as `_Unsigned` has it: -1 of one byte is 255."""
    if seen_as.kind == stored.kind:
        return number
    span: int = 2 ** (8 * stored.itemsize)
    if seen_as.kind == "u" and number < 0:
        return number + span
    if seen_as.kind == "i" and number >= span // 2:
        return number - span
    return number


def _factor(attributes: Mapping[str, Any], key: str, usual: float, where: str) -> float:
    if key not in attributes:
        return usual
    given = attributes[key]
    value = given
    if isinstance(given, np.ndarray) and given.size == 1:  # netCDF's attributes are vectors
        value = given.reshape(-1)[0]
    if isinstance(value, bool | np.bool_) or not isinstance(value, int | float | np.number):
        raise DatasetError(f"{where} has the attribute {key} = {given!r}; expected a number")
    if not math.isfinite(float(value)):
        raise DatasetError(f"{where} has the attribute {key} = {given!r}; expected a finite number")
    return float(value)


def _missing(value: Any, key: str, dtype: np.dtype[Any], where: str) -> Iterable[Missing]:
    is_single = getattr(value, "dtype", None) == np.float32
    for number in _numbers(value, f"{where} has the attribute {key}"):
        yield Missing(number, key, is_single)


def _limits(
    attributes: Mapping[str, Any], dtype: np.dtype[Any], scale: float, offset: float, where: str
) -> tuple[float | int | None, float | int | None, bool]:
    """`valid_min`, `valid_max` and whether they are of unpacked values.

    By the NUG they are of stored numbers, unless these are packed and the limits have the wider
    type of the unpacked values.
    """
    found: dict[str, float | int] = {}
    is_wide = False
    for key, size in (("valid_range", 2), ("valid_min", 1), ("valid_max", 1)):
        if key not in attributes:
            continue
        numbers = _numbers(attributes[key], f"{where} has the attribute {key}")
        if len(numbers) != size:
            raise DatasetError(
                f"{where} has the attribute {key} = {attributes[key]!r}; expected "
                f"{'two numbers' if size == 2 else 'a number'}"
            )
        names = ("valid_min", "valid_max") if size == 2 else (key,)
        for name, number in zip(names, numbers, strict=True):
            found.setdefault(name, number)
        is_wide = is_wide or any(isinstance(number, float) for number in numbers)
    is_packed = (scale, offset) != (1.0, 0.0)
    unpacked = bool(found) and is_packed and dtype.kind in "iu" and is_wide
    return found.get("valid_min"), found.get("valid_max"), unpacked


def _numbers(value: Any, what: str) -> list[float | int]:
    """Numbers of an attribute, one or several, whichever way a container writes them."""
    if isinstance(value, np.ndarray):
        value = value.reshape(-1).tolist()
    if isinstance(value, list | tuple):
        return [number for entry in value for number in _numbers(entry, what)]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, bytes):
        value = value.decode(errors="replace")
    if isinstance(value, str):
        return [_number_of_text(value, what)]
    if isinstance(value, bool):
        return [int(value)]
    if not isinstance(value, int | float):
        raise DatasetError(f"{what} = {value!r}; expected a number, or a list of numbers")
    return [value]


def _number_of_text(value: str, what: str) -> float | int:
    """`"NaN"`, `"-9999"`, or 8 bytes in base64, as xarray writes floats to Zarr v3."""
    try:
        return float(value)
    except ValueError:
        pass
    try:
        return float(struct.unpack("<d", base64.b64decode(value, validate=True))[0])
    except (ValueError, struct.error) as error:
        raise DatasetError(
            f"{what} = {value!r}; expected a number, or a list of numbers"
        ) from error


def _text(value: Any) -> str | None:
    if isinstance(value, np.ndarray) and value.size == 1:
        value = value.reshape(-1)[0]
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    return str(value) if isinstance(value, str) else None
