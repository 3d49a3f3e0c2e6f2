"""Numbers of each trajectory, and positions: every one finite, no two ids made one."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from pelagos.data_pipelines.store.errors import DatasetError
from pelagos.data_pipelines.store.schema import LABEL_KIND


def parameter_vector(
    stored: npt.NDArray[Any], name: str, where: str
) -> tuple[npt.NDArray[np.float64], str]:
    """The numbers of a parameter, and a note on float64's roundings; empty where it rounds nothing.

    Args:
        stored: `[trajectory]`, as its conventions say.
        name: of the parameter; `label` numbers classes.
        where: file and key, for messages.

    Raises:
        DatasetError: a number is not finite, or a class's number is rounded.
    """
    values = np.asarray(stored).reshape(-1)
    numbers = values.astype(np.float64)
    require_finite_parameter(numbers, name, where)
    at = _first_rounded(values)
    if at is None:
        return numbers, ""
    what = f"{where} holds the whole number {values[at]}, which float64 rounds to {numbers[at]:.0f}"
    if name == LABEL_KIND:
        raise DatasetError(
            f"{what}, at index ({at}): above 2^53 = 9007199254740992 classes would merge. Renumber "
            f"them from 0 on"
        )
    return numbers, f"parameter {name!r}: {what}"


def require_finite_parameter(numbers: npt.NDArray[np.float64], name: str, where: str) -> None:
    """Raise DatasetError for NaN and infinity, naming the first and their number."""
    is_wrong = ~np.isfinite(numbers)
    if not is_wrong.any():
        return
    at = int(np.argmax(is_wrong))
    raise DatasetError(
        f"{where} holds {numbers[at]} at index ({at}), but parameter {name!r} needs a finite number "
        f"for each trajectory. This is true of {int(is_wrong.sum())} of {len(numbers)}. Write them, "
        "or leave the parameter out in a mapping (`pelagos convert SRC --draft-mapping`)"
    )


def require_finite_positions(points: npt.NDArray[Any], where: str) -> None:
    """Raise DatasetError for a position or time that is NaN or infinite, naming the first."""
    is_wrong = ~np.isfinite(points)
    if is_wrong.any():
        at = int(np.argmax(is_wrong))
        raise DatasetError(
            f"{where} holds {points[at]} at index ({at}), which is not a position. This is true of "
            f"{int(is_wrong.sum())} of {len(points)}. Write them, or give a number instead of the "
            "array in a mapping or description"
        )


def _first_rounded(values: npt.NDArray[Any]) -> int | None:
    """Where the first whole number is that float64 cannot hold."""
    if values.dtype.kind not in "iu" or values.dtype.itemsize < 8:
        return None
    exact = (int(number) == int(float(number)) for number in values)  # Python's, of any size
    return next((at for at, is_exact in enumerate(exact) if not is_exact), None)
