"""Where the points of a grid are that is not along axes.

Latitude and longitude `[y, x]`, or names in addition to those of the axes (CF 1.11, section 5: auxiliary
coordinates).

They say nothing that a dataset keeps, but files of other places are no files of one domain.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pelagos.data_pipelines.convert.mapping.positions import unit_of
from pelagos.data_pipelines.convert.readers import stored_array, whole_array
from pelagos.data_pipelines.convert.source import SourceError, StoredArray

# Standard names of CF and the names that models give; others may differ between trajectories, such as
# a mask or the height of the ground.
_STANDARD_NAMES = (
    *("latitude", "longitude", "grid_latitude", "grid_longitude"),
    *("projection_x_coordinate", "projection_y_coordinate"),
)
_NAMES = (
    "lat",
    "lon",
    "latitude",
    "longitude",
    "xlat",
    "xlong",
    "nav_lat",
    "nav_lon",
    "tlat",
    "tlon",
)
# Of the largest position: files in float32 and in float64 agree to 6e-8.
RELATIVE_TOLERANCE = 1e-5


@dataclass(frozen=True)
class Place:
    """An auxiliary coordinate, in short.

    Attributes:
        where: file and key.
        shape: of the array.
        unit: as its attribute says.
        numbers: first, last, least and largest position, their mean and standard deviation.
    """

    where: str
    shape: tuple[int, ...]
    unit: str
    numbers: npt.NDArray[np.float64]

    def is_at(self, other: Place) -> bool:
        """Whether both say the same of the same grid."""
        if (self.shape, self.unit) != (other.shape, other.unit):
            return False
        scale = max(np.abs(self.numbers).max(), np.abs(other.numbers).max())
        return bool(np.abs(self.numbers - other.numbers).max() <= RELATIVE_TOLERANCE * scale)

    def __str__(self) -> str:
        first, last, least, largest, *_ = self.numbers
        unit = f" {self.unit}" if self.unit else ""
        return f"{first:.6g} to {last:.6g}{unit} (least {least:.6g}, largest {largest:.6g})"


def own_places(array: StoredArray) -> dict[str, Place]:
    """By name the auxiliary coordinates that an array's attribute `coordinates` lists.

    Only those that are positions in space and vary along its axes of space alone.
    """
    stored = stored_array(array)
    attributes: dict[str, Any] = dict(getattr(stored, "attributes", {}))
    listed = attributes.get("coordinates", "")
    listed = listed.decode(errors="replace") if isinstance(listed, bytes) else listed
    space = [s for letter, s in zip(array.axes, stored.shape, strict=True) if letter in "zyx"]
    shapes = {tuple(space), tuple(space[-2:]), *((size,) for size in space)}
    folder = array.key.rpartition("/")[0]
    found: dict[str, Place] = {}
    for name in listed.split() if isinstance(listed, str) else ():
        key = f"{folder}/{name}" if folder else name
        # a name that leads nowhere is no place, and says so where the array is asked for
        with contextlib.suppress(SourceError):
            found |= dict(_place(StoredArray(array.reader, array.file, key, "", 0), name, shapes))
    return found


def _place(
    array: StoredArray, name: str, shapes: set[tuple[int, ...]]
) -> Iterator[tuple[str, Place]]:
    stored = stored_array(array)
    standard = dict(getattr(stored, "attributes", {})).get("standard_name", "")
    standard = standard.decode(errors="replace") if isinstance(standard, bytes) else standard
    is_place = standard in _STANDARD_NAMES or name.lower() in _NAMES
    if not is_place or tuple(stored.shape) not in shapes or stored.dtype.kind not in "fiu":
        return
    points = np.asarray(whole_array(array), np.float64).reshape(-1)
    if points.size and np.isfinite(points).all():
        numbers = (points[0], points[-1], points.min(), points.max(), points.mean(), points.std())
        yield name, Place(array.address, tuple(stored.shape), unit_of(array), np.array(numbers))


def require_one_region(one: Place, other: Place, name: str) -> None:
    """Raise SourceError where two files say different things of where their grid is."""
    if not one.is_at(other):
        raise SourceError(
            f"{one.where} gives {name} as {one}, but {other.where} as {other}. A dataset has one "
            "domain. Convert the files into several datasets, with one pattern each. If they "
            "should lie in several places, give numbers for all axes as domain_extent in a "
            "mapping, which ignores the positions"
        )
