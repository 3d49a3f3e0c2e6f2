"""Where the points of an axis are, as an array of positions says: for files that must agree."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pelagos.data_pipelines.conventions import time_axis
from pelagos.data_pipelines.convert.readers import positions_of, stored_array
from pelagos.data_pipelines.convert.source import SourceError, StoredArray

# Steps of a coordinate, or of two files, that differ by no more than this count as equal.
STEP_RELATIVE_TOLERANCE = 1e-3
# Names of one unit; those of CF for latitude and longitude.
_UNITS = {
    **dict.fromkeys(
        ("degree_north", "degree_n", "degrees_n", "degreen", "degreesn"), "degrees_north"
    ),
    **dict.fromkeys(
        ("degree_east", "degree_e", "degrees_e", "degreee", "degreese"), "degrees_east"
    ),
    **dict.fromkeys(("meter", "meters", "metre", "metres"), "m"),
    **dict.fromkeys(("kilometer", "kilometers", "kilometre", "kilometres"), "km"),
    **dict.fromkeys(("degree", "deg"), "degrees"),
    **dict.fromkeys(("radian", "rad"), "radians"),
}
# Points that lie no farther apart than this part of a step are the same: half a step, from cell
# centres to nodes, is another place, and files in float32 hold large positions with some error.
PLACE_TOLERANCE = 0.02


@dataclass(frozen=True)
class Positions:
    """Positions along an axis.

    Attributes:
        points: float64, in `unit`.
        unit: as the array's attribute says; empty: it does not say.
        where: file and key of the array.
        moments: times in seconds from one moment for all files; None: unknown, or no times.
    """

    points: npt.NDArray[np.float64]
    unit: str
    where: str
    moments: npt.NDArray[np.float64] | None = None

    @property
    def falls(self) -> bool:
        return len(self.points) > 1 and bool(self.points[-1] < self.points[0])

    def step(self, advice: str) -> float:
        """From one point to the next, negative where they fall; of a single point 1.

        Raises:
            SourceError: it is not even; ends with `advice`.
        """
        if len(self.points) < 2:
            return 1.0
        steps = np.diff(self.points)
        mean = float(steps.mean())
        if not mean or np.abs(steps - mean).max() > STEP_RELATIVE_TOLERANCE * abs(mean):
            raise SourceError(
                f"{self.where} has steps from {steps.min():g} to {steps.max():g}, but models need "
                f"even steps. {advice}"
            )
        return mean

    def is_at(self, other: Positions) -> bool:
        """Whether the points are in the same places, in the same order and unit."""
        if self.points.shape != other.points.shape:
            return False
        if self.moments is not None and other.moments is not None:
            step = float(np.ptp(other.moments)) / max(len(other.moments) - 1, 1)
            late = np.abs(self.moments - other.moments).max(initial=0.0)
            return bool(late <= PLACE_TOLERANCE * step)
        if not same_unit(self.unit, other.unit):
            return False
        span = float(np.ptp(other.points)) / max(len(other.points) - 1, 1)
        rounding = 4 * float(np.finfo(np.float32).eps * np.abs(other.points).max(initial=0.0))
        apart = np.abs(self.points - other.points).max(initial=0.0)
        return bool(apart <= max(PLACE_TOLERANCE * span, rounding))

    def __str__(self) -> str:
        unit = f" {self.unit}" if self.unit else ""
        if len(self.points) < 2:
            return f"{self.points[0]:.9g}{unit}" if len(self.points) else "nothing"
        return (
            f"{self.points[0]:.9g} to {self.points[-1]:.9g}{unit} ({len(self.points)} points, "
            f"{np.diff(self.points).mean():.6g} apart)"
        )


def read_positions(array: StoredArray, size: int) -> Positions:
    """The positions that an array holds.

    Raises:
        SourceError: they are not as many as the axis has points, or no array of numbers.
    """
    points = np.asarray(positions_of(array), np.float64)
    if len(points) != size:
        raise SourceError(
            f"{array.address} has {len(points)} positions, but axis {array.axes} of the arrays has "
            f"{size}"
        )
    return Positions(points, unit_of(array), array.address)


def same_unit(one: str, other: str) -> bool:
    """Return whether two spellings mean the same unit."""
    return _UNITS.get(one.lower(), one) == _UNITS.get(other.lower(), other)


def unit_of(array: StoredArray) -> str:
    """The unit in an array's attribute; empty: none, or 1."""
    attributes: Mapping[str, Any] = getattr(stored_array(array), "attributes", {})
    unit = attributes.get("units", "")
    unit = unit.decode(errors="replace") if isinstance(unit, bytes) else unit
    return unit.strip() if isinstance(unit, str) and unit.strip() != "1" else ""


def own_positions(array: StoredArray) -> dict[str, Positions]:
    """By the letter of an axis of time or space the positions that an array's own file gives for it.

    The variables of its dimensions' names, where they are numbers.
    """
    stored = stored_array(array)
    keys: tuple[str | None, ...] = getattr(stored, "coordinates", ())
    found = {}
    for letter, key, size in zip(array.axes, keys, stored.shape, strict=False):
        if key is None or letter not in "tzyx":
            continue
        coordinate = StoredArray(array.reader, array.file, key, letter, 0)
        # names, moments, gaps: arrays that a mapping does not name need not be numbers
        with contextlib.suppress(SourceError):
            if stored_array(coordinate).shape == (size,):
                positions = read_positions(coordinate, size)
                moments = _moments(coordinate, positions) if letter == "t" else None
                found[letter] = dataclasses.replace(positions, moments=moments)
    return found


def _moments(array: StoredArray, positions: Positions) -> npt.NDArray[np.float64] | None:
    attributes: Mapping[str, Any] = getattr(stored_array(array), "attributes", {})
    with contextlib.suppress(
        ValueError
    ):  # a unit or calendar that is not known is compared as text
        return time_axis(positions.points, attributes, array.address).moments
    return None


def require_one_place(one: Positions, other: Positions, letter: str) -> None:
    """Raise SourceError where the points of an axis are elsewhere in one file than in another."""
    if one.where == other.where or one.is_at(other):
        return
    if letter == "t":
        raise SourceError(
            f"{one.where} has the frames at {one}, but {other.where} at {other}. The fields of a "
            "trajectory must have the same times. Write them at the same times. If this is "
            "intended, give a number as frame_interval in a mapping, which ignores the times"
        )
    raise SourceError(
        f"{one.where} has the points along {letter} at {one}, but {other.where} at {other}. A "
        "dataset has one domain, with its points in one order and unit. Convert the files into "
        "several datasets, with one pattern each. If they should lie in several places, give a "
        f"number for {letter} as domain_extent in a mapping, which ignores the positions"
    )
