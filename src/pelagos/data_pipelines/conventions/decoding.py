"""Applying an array's conventions to its stored numbers.

Sources: CF conventions 1.11, sections 2.5.1 (missing data), 8.1 (packed data); NetCDF Users' Guide,
appendix A (attribute conventions: `_Unsigned`, `valid_range` and the meaning of its type).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from pelagos.data_pipelines.store.errors import DatasetError

Mask = npt.NDArray[np.bool_]
MISSING_ADVICE = "`pelagos convert --missing mask` (or fill) makes a dataset of such data"


class MissingValueError(DatasetError):
    """Data holds values that its conventions say are missing; names array, index and how many."""


@dataclass(frozen=True)
class Missing:
    """A stored number that means "no value", and the attribute that declares it."""

    number: float | int
    attribute: str
    is_single: bool = False  # of type float32: float64 data is compared after rounding to it


@dataclass(frozen=True)
class Decoded:
    """Values, and where they are missing.

    Attributes:
        values: unpacked numbers are float32, others keep their type; NaN where missing, for which
            whole numbers become float64.
        missing: of the same shape, or None where nothing is missing.
        reason: the first attribute that says so, with its number; empty where nothing is missing.
        is_whole: whether the values are stored whole numbers, which must not be rounded.
    """

    values: npt.NDArray[Any]
    missing: Mask | None = None
    reason: str = ""
    is_whole: bool = False


@dataclass(frozen=True)
class Conventions:
    """The meaning of an array's numbers, from its attributes. Made by `parse`.

    Args:
        scale, offset: a value is `stored * scale + offset`.
        missing: stored numbers that mean "no value".
        valid_min, valid_max: numbers outside are missing; None: no limit.
        valid_of: whether these limits are of the `stored` numbers or of the `unpacked` values.
        view: the type that stored whole numbers really have (`_Unsigned`); None: their own.
        units: of the values; None: not said.
        notes: assumptions, a sentence each.
    """

    scale: float = 1.0
    offset: float = 0.0
    missing: tuple[Missing, ...] = ()
    valid_min: float | int | None = None
    valid_max: float | int | None = None
    valid_of: Literal["stored", "unpacked"] = "stored"
    view: np.dtype[Any] | None = None
    units: str | None = None
    notes: tuple[str, ...] = ()

    @property
    def is_packed(self) -> bool:
        return (self.scale, self.offset) != (1.0, 0.0)

    @property
    def is_identity(self) -> bool:
        """Whether stored numbers are the values, and none means "no value" (except NaN)."""
        has_limits = self.valid_min is not None or self.valid_max is not None
        return not (self.is_packed or self.missing or has_limits or self.view)

    def decode(self, stored: npt.NDArray[Any]) -> Decoded:
        """The values of stored numbers. NaN among them stays, and does not count as missing here.

        Unpacking is done in float64 and rounded once, to float32. Unpacked numbers are not rounded:
        they may be ids, or a time in seconds since long ago.
        """
        is_whole = stored.dtype.kind in "iu" and not self.is_packed
        if self.is_identity:
            return Decoded(stored, is_whole=is_whole)
        if self.view is not None:
            stored = stored.view(self.view.newbyteorder(stored.dtype.byteorder))
        mask, reason = self._missing_of(stored)
        with np.errstate(over="ignore", invalid="ignore"):  # infinite is rejected by name later
            values: npt.NDArray[Any] = stored
            if self.is_packed:
                values = stored.astype(np.float64) * self.scale + self.offset
            if self.valid_of == "unpacked":
                outside, limit = self._outside(values)
                if outside is not None:
                    mask = outside if mask is None else mask | outside
                    reason = reason or limit
            if self.is_packed:
                values = values.astype(np.float32)
        if mask is None:
            return Decoded(values, is_whole=is_whole)
        if values.dtype.kind != "f":
            values = values.astype(np.float64)
        values = np.where(mask, values.dtype.type(np.nan), values)
        return Decoded(values, mask, reason, is_whole)

    def _missing_of(self, stored: npt.NDArray[Any]) -> tuple[Mask | None, str]:
        mask, reason = None, ""
        for entry in self.missing:
            found = _equal(stored, entry)
            if found.any():
                mask = found if mask is None else mask | found
                reason = reason or f"{entry.attribute} = {entry.number:g}"
        if self.valid_of == "stored":
            outside, limit = self._outside(stored)
            if outside is not None:
                mask = outside if mask is None else mask | outside
                reason = reason or limit
        return mask, reason

    def _outside(self, values: npt.NDArray[Any]) -> tuple[Mask | None, str]:
        found, words = None, []
        if self.valid_min is not None:
            found = values < self.valid_min
            words.append(f"valid minimum {self.valid_min:g}")
        if self.valid_max is not None:
            above = values > self.valid_max
            found = above if found is None else found | above
            words.append(f"valid maximum {self.valid_max:g}")
        if found is None or not found.any():
            return None, ""
        return found, " and ".join(words)


def _equal(stored: npt.NDArray[Any], entry: Missing) -> Mask:
    """Where stored numbers are a missing value, compared in the type of the stored numbers."""
    if stored.dtype.kind == "f":
        with np.errstate(over="ignore"):
            if entry.is_single and stored.dtype.itemsize > 4:
                return np.asarray(stored.astype(np.float32) == np.float32(entry.number))
            return np.asarray(stored == stored.dtype.type(entry.number))
    return np.asarray(stored == entry.number)


def decode_all(conventions: Conventions, stored: npt.NDArray[Any], where: str) -> npt.NDArray[Any]:
    """The values of a whole small array (a coordinate, a parameter), in float64.

    Raises:
        MissingValueError: one is missing.
    """
    decoded = conventions.decode(np.asarray(stored))
    require_present(
        decoded,
        where,
        advice="Coordinates and parameters need every value: write it, or leave the array out",
    )
    return _in_double(conventions, stored) if conventions.is_packed else decoded.values


def _in_double(conventions: Conventions, stored: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    numbers = np.asarray(stored)
    if conventions.view is not None:
        numbers = numbers.view(conventions.view)
    return numbers.astype(np.float64) * conventions.scale + conventions.offset


def require_present(
    decoded: Decoded,
    where: str,
    absolute: Callable[[Sequence[int]], Sequence[int]] = tuple,
    advice: str = MISSING_ADVICE,
) -> None:
    """Raise MissingValueError where something is missing.

    Args:
        where: file and array, for the message.
        absolute: turns an index into `decoded.values` into one of the whole array.
        advice: the remedy.
    """
    if decoded.missing is None:
        return
    count = int(decoded.missing.sum())
    first = np.argwhere(decoded.missing)[0].tolist()
    index = ", ".join(map(str, absolute(first)))
    raise MissingValueError(
        f"{where} holds no value at index ({index}): {decoded.reason}, which its attributes declare "
        f"missing. This is true of {count} of the {decoded.missing.size} numbers read with it. "
        f"{advice}"
    )
