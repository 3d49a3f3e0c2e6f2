"""Whether the files of one dataset say the same of themselves.

A dataset has one time step, one domain, one grid. Each file's statement of these is added here with
its place, and the first disagreement is an error that names both places and values.
Numbers agree up to rounding (`RELATIVE_TOLERANCE`), as files hold them in float32 and in float64.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from pelagos.data_pipelines.convert.source import SourceError

# Far above the rounding of float32 (6e-8), far below any difference that means something.
RELATIVE_TOLERANCE = 1e-5
# Of the means of uneven times, which vary from one run of a solver to the next.
UNEVEN_TOLERANCE = 1e-2
REMEDY = (
    "All parts of a dataset must agree. Convert those that agree into one dataset each; a mixture "
    "trains on several (docs/data.md)"
)
_SHOWN_NUMBERS = 4


@dataclass
class Agreement:
    """The properties of one dataset as several places state them.

    Attributes:
        notes: one sentence for each thing that may differ and does.
    """

    remedy: str = REMEDY
    notes: list[str] = field(default_factory=list)
    _first: dict[str, tuple[str, Any]] = field(default_factory=dict)

    def require(
        self, what: str, place: str, value: Any, tolerance: float = RELATIVE_TOLERANCE
    ) -> None:
        """Add the statement of a place: a text, a number, an array, or tuples and dicts of these.

        Args:
            what: the thing's name, as in `the time between frames`.
            tolerance: how far numbers may lie apart, as a part of the largest.

        Raises:
            SourceError: an earlier place says something else.
        """
        first_place, first = self._first.setdefault(what, (place, value))
        if not agrees(first, value, tolerance):
            raise SourceError(
                f"{place}: {what} is {shown(value, first)}, but {shown(first, value)} in "
                f"{first_place}. {self.remedy}"
            )

    def remark(self, what: str, place: str, value: Any, consequence: str) -> None:
        """The same of a thing that may differ: the first difference becomes a note."""
        first_place, first = self._first.setdefault(what, (place, value))
        is_said = any(note.startswith(f"{what} differs") for note in self.notes)
        if not is_said and not agrees(first, value):
            self.notes.append(
                f"{what} differs: {shown(first, value)} in {first_place}, {shown(value, first)} "
                f"in {place}; {consequence}"
            )


def agrees(first: Any, second: Any, tolerance: float = RELATIVE_TOLERANCE) -> bool:
    """Whether two values are the same up to rounding.

    >>> agrees(0.1, np.float32(0.1)), agrees((1.0, "x"), (1.0, "y"))
    (True, False)
    """
    if isinstance(first, Mapping) and isinstance(second, Mapping):
        keys = first.keys()
        return keys == second.keys() and all(agrees(first[k], second[k], tolerance) for k in keys)
    if isinstance(first, tuple | list) and isinstance(second, tuple | list):
        pairs = zip(first, second, strict=False)
        return len(first) == len(second) and all(agrees(a, b, tolerance) for a, b in pairs)
    if not (_is_numeric(first) and _is_numeric(second)):
        return type(first) is type(second) and bool(first == second)
    one, other = np.asarray(first, np.float64), np.asarray(second, np.float64)
    if one.shape != other.shape and one.ndim and other.ndim:
        return False
    size = max(np.abs(one).max(initial=0.0), np.abs(other).max(initial=0.0))
    return bool(np.allclose(one, other, rtol=0.0, atol=tolerance * size, equal_nan=True))


def _is_numeric(value: Any) -> bool:
    return isinstance(value, int | float | np.ndarray | np.generic) and (
        np.asarray(value).dtype.kind in "fiub"
    )


def shown(value: Any, other: Any = None) -> str:
    """A value in a message; of long arrays the ends, and where it departs from `other`.

    >>> shown(np.arange(5) * 0.5)
    '[0, …, 2] (5 numbers)'
    """
    if isinstance(value, np.ndarray) and value.ndim:
        if value.size <= _SHOWN_NUMBERS:
            return "[" + ", ".join(f"{v:.6g}" for v in value.ravel()) + "]"
        flat = value.ravel()
        place = ""
        if isinstance(other, np.ndarray) and other.shape == value.shape:
            index = int(np.argmax(np.abs(flat - other.ravel())))
            place = f", number {index} is {flat[index]:.6g}"
        return f"[{flat[0]:.6g}, …, {flat[-1]:.6g}] ({value.size} numbers{place})"
    if isinstance(value, float | np.floating):
        return f"{value:.6g}"
    if isinstance(value, tuple) and value and all(isinstance(v, float) for v in value):
        return "(" + ", ".join(f"{v:.6g}" for v in value) + ")"
    return str(value)


def common_length(
    lengths: Iterable[tuple[str, int]], num_frames: int | None
) -> tuple[int, tuple[str, ...]]:
    """Frames per trajectory of several places, and a note where a key cuts longer ones.

    Args:
        lengths: places and how many frames each has.
        num_frames: the value of `--num-frames`.

    Raises:
        SourceError: they differ, and `num_frames` is not given or more than the shortest.
    """
    found = list(lengths)
    short_place, shortest = min(found, key=lambda entry: entry[1])
    long_place, longest = max(found, key=lambda entry: entry[1])
    if shortest == longest:
        return shortest, ()
    if num_frames is None or num_frames > shortest:
        raise SourceError(
            f"{long_place} has {longest} frames and {short_place} has {shortest}, but all "
            f"trajectories of a dataset have one length. --num-frames {shortest} keeps the first "
            f"{shortest} frames of each; or convert trajectories of one length at a time"
        )
    return shortest, (
        f"trajectories have {shortest} to {longest} frames; the first {num_frames} of each are kept",
    )


def steps(times: npt.NDArray[np.float64]) -> npt.NDArray[np.float64] | float:
    """Times between frames: one number where they are the same, which rounding may hide.

    >>> steps(np.array([0.0, 0.1, 0.2]))
    0.1
    """
    differences = np.diff(times)
    if len(differences) == 0:
        return 1.0
    mean = float(differences.mean())
    # differences of float32 times carry the rounding of the times themselves
    slack = RELATIVE_TOLERANCE * max(float(np.abs(times).max()), abs(mean))
    return mean if np.abs(differences - mean).max() <= slack else differences


def require_equal_times(agreement: Agreement, place: str, times: npt.NDArray[np.float64]) -> None:
    """Compare the steps between times `[t]`; of uneven ones their means, as a mean is written.

    Raises:
        SourceError: an earlier place has other steps.
    """
    found = steps(times)
    is_even = isinstance(found, float)
    agreement.require("whether times are evenly spaced", place, is_even)
    if is_even:
        agreement.require("the time between frames", place, found)
        return
    mean = float((times[-1] - times[0]) / (len(times) - 1))
    agreement.require("the mean time between frames", place, mean, UNEVEN_TOLERANCE)
    agreement.remark(
        "the uneven spacing of times", place, found, "the dataset stores the mean of the first"
    )


# Names of one-dimensional arrays at the root of an HDF5 file that say where its values are.
TIMES = ("t", "time", "times")
COORDINATES = ("x", "y", "z", "lat", "lon", "latitude", "longitude", "level")


def require_equal_descriptions(
    agreement: Agreement, file: str, opened: Any, keys: list[str]
) -> None:
    """Compare the properties that HDF5 files without a scheme of their own may state.

    Coordinates at the root and units of the arrays `keys`; other numbers among the attributes
    become a note if they differ.

    Raises:
        SourceError: an earlier file says something else.
    """
    for name in (*TIMES, *COORDINATES):
        stored = opened.get(name)
        points: Any = None
        if name not in keys and len(getattr(stored, "shape", ())) == 1:
            points = np.asarray(stored, np.float64) if stored.dtype.kind in "fiu" else None
        if name in TIMES:
            step = None if points is None else steps(points)
            agreement.require(f"the step of the coordinate {name}", file, step)
        else:
            agreement.require(f"the coordinate {name}", file, points)
    for key in keys:
        units = opened[key].attrs.get("units", "none")
        units = units.decode() if isinstance(units, bytes) else str(units)
        agreement.require(f"the unit of {key}", file, units)
    for name, value in opened.attrs.items():
        if np.ndim(value) == 0 and np.asarray(value).dtype.kind in "fiu":
            agreement.remark(f"attribute {name}", file, float(value), "it is left out")
