"""Whole numbers that a floating-point type rounds: labels and ids are refused, others are noted."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pelagos.data_pipelines.convert.source import Source, SourceError, StoredArray
from pelagos.data_pipelines.store.half_precision import from_bfloat16, to_bfloat16
from pelagos.data_pipelines.store.shard_stream import LARGEST_WHOLE_NUMBER


@dataclass(frozen=True)
class Rounding:
    """A stored whole number that the dataset's type rounds.

    Attributes:
        field: its name in the dataset.
        address: file and key of the array.
        value: the number in the source.
        stored: the number it becomes.
        dtype: the dataset's type.
    """

    field: str
    address: str
    value: float
    stored: float
    dtype: str

    @property
    def note(self) -> str:
        """A sentence for a person."""
        return (
            f"{self.field}: {self.address} holds whole numbers that {self.dtype} rounds, first "
            f"{self.value:.0f}, which becomes {self.stored:.0f}. {self.dtype} holds whole numbers "
            f"up to {LARGEST_WHOLE_NUMBER[self.dtype]} exactly, float32 up to "
            f"{LARGEST_WHOLE_NUMBER['float32']} (--dtype float32)"
        )


def roundings_of(
    source: Source, array: StoredArray, frames: npt.NDArray[np.float32], dtype: str
) -> Iterator[Rounding]:
    """The first number of each of an array's fields that a type rounds.

    Args:
        frames: `[trajectory, time, channel, y, x]`, which hold the array's whole numbers exactly.
        dtype: of the dataset. None are rounded by float32, which `require_exact` sees to.
    """
    if dtype == "float32":
        return
    for channel in range(array.channel, array.channel + array.num_channels):
        values = frames[:, :, channel]
        with np.errstate(over="ignore"):  # becomes infinite, and is refused by name when written
            stored = (
                from_bfloat16(to_bfloat16(values))
                if dtype == "bfloat16"
                else values.astype(dtype).astype(np.float32)
            )
        is_rounded = (stored != values) & np.isfinite(values) & np.isfinite(stored)
        if is_rounded.any():
            first = int(np.argmax(is_rounded))
            yield Rounding(
                source.fields[channel].name,
                array.address,
                float(values.reshape(-1)[first]),
                float(stored.reshape(-1)[first]),
                dtype,
            )


def first_of_each_field(found: Iterable[Rounding]) -> tuple[Rounding, ...]:
    """The first of each field, in the order of `found`."""
    kept: dict[str, Rounding] = {}
    for rounding in found:
        kept.setdefault(rounding.field, rounding)
    return tuple(kept.values())


def require_exact(
    array: StoredArray, values: npt.NDArray[np.generic], is_whole: bool | None = None
) -> None:
    """Refuse whole numbers that float32 rounds, and labels that are no whole numbers.

    Floating-point values may be rounded, as the conversion says; integers are often ids, of which
    two would become one.

    Args:
        is_whole: whether they are stored as whole numbers: with NaN among them they are float64.

    Raises:
        SourceError: naming the first number.
    """
    is_integer = values.dtype.kind in "iu" if is_whole is None else is_whole
    if not array.is_label and not (is_integer and values.dtype.itemsize > 2):
        return
    if array.is_label and not is_integer:
        has_no_fraction = np.isnan(values) | (np.isfinite(values) & (values == np.rint(values)))
        if not has_no_fraction.all():
            raise SourceError(
                f"{array.address} holds {values[~has_no_fraction][0]!s}, but labels are whole "
                "numbers. Interpolation may have mixed them (resample labels by the nearest "
                "neighbour)"
            )
    rounded = values.astype(np.float32).astype(np.float64)
    # both sides exactly: as float64, or where that rounds too (beyond 2^53), as Python's integers
    is_same = rounded == values.astype(np.float64)
    if is_integer and values.dtype.itemsize == 8:
        is_same &= np.abs(rounded) < 2.0**53
    is_same |= values != values  # NaN is missing, which others look for
    if not is_same.all():
        number = values[~is_same][0]
        raise SourceError(
            f"{array.address} holds the whole number {number!s}, which float32 rounds to "
            f"{np.float32(number):.0f}: above 2^24 = 16777216 ids would merge. Renumber ids from 0 "
            "on. If they are measurements, write them as float64, which may be rounded"
        )
