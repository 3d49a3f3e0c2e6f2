"""Statistics of every field, from one pass over the data, whatever the order of writing.

Each trajectory is summed by itself in float64 (count, sum, squared deviations from its own mean,
minimum, maximum; the same for the difference of consecutive frames). Trajectories are then pooled
with `math.fsum`, which rounds once whatever the order, so the result does not depend on how
trajectories were grouped into shards or on which shard came first.

Pooling (Chan, Golub and LeVeque 1979): for groups i with count n_i, mean m_i and squared
deviations S_i,  mean = sum n_i m_i / n,  S = sum (S_i + n_i (m_i - mean)^2),  variance = S / n.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

# One trajectory of one field: {"count", "sum", "deviation", "min", "max"} of the values, and the
# same with the prefix "delta_" of the differences between consecutive frames.
TrajectorySums = dict[str, float]

_PARTS = ("", "delta_")


def trajectory_sums(values: npt.NDArray[np.floating]) -> TrajectorySums:
    """Sums of one trajectory of one field, `[time, y, x]`."""
    wide = values.astype(np.float64)
    sums: TrajectorySums = {}
    for part, array in zip(_PARTS, (wide, wide[1:] - wide[:-1]), strict=True):
        count = array.size
        total = float(array.sum())
        sums[part + "count"] = float(count)
        sums[part + "sum"] = total
        centred = array - (total / count if count else 0.0)
        sums[part + "deviation"] = float(np.square(centred, out=centred).sum())
        sums[part + "min"] = float(array.min()) if count else 0.0
        sums[part + "max"] = float(array.max()) if count else 0.0
    return sums


def shard_sums(
    data: npt.NDArray[np.floating], field_names: Sequence[str]
) -> dict[str, list[TrajectorySums]]:
    """Sums per field and trajectory of `[trajectory, time, channel, y, x]`."""
    return {
        name: [trajectory_sums(trajectory[:, channel]) for trajectory in data]
        for channel, name in enumerate(field_names)
    }


def pool(trajectories: Iterable[TrajectorySums]) -> dict[str, float]:
    """Mean, standard deviation, root mean square and extremes over trajectories.

    Returns:
        `count, mean, std, rms, min, max`, and the same as `delta_…` for the difference between
        consecutive frames (left out when there is only one frame). `std` is the population's
        (divided by the count).
    """
    rows = list(trajectories)
    pooled: dict[str, float] = {}
    for part in _PARTS:
        counts = [row[part + "count"] for row in rows]
        count = math.fsum(counts)
        if count == 0:
            continue
        mean = math.fsum(row[part + "sum"] for row in rows) / count
        spread = math.fsum(
            term
            for row, n in zip(rows, counts, strict=True)
            for term in (row[part + "deviation"], n * (row[part + "sum"] / n - mean) ** 2)
        )
        variance = spread / count
        pooled[part + "count"] = count
        pooled[part + "mean"] = mean
        pooled[part + "std"] = math.sqrt(variance)
        pooled[part + "rms"] = math.sqrt(variance + mean * mean)
        pooled[part + "min"] = min(row[part + "min"] for row in rows)
        pooled[part + "max"] = max(row[part + "max"] for row in rows)
    return pooled


def dataset_statistics(
    sums: dict[str, list[TrajectorySums]], splits: dict[str, tuple[int, int]]
) -> dict[str, dict[str, dict[str, float]]]:
    """`{"all": {field: {...}}, split: {field: {...}}, …}` from the sums of every trajectory."""
    ranges: dict[str, tuple[int, int | None]] = {"all": (0, None), **splits}
    return {
        name: {field: pool(rows[start:stop]) for field, rows in sums.items()}
        for name, (start, stop) in ranges.items()
    }


def default_split(statistics: dict[str, Any]) -> str:
    """The split whose statistics describe a dataset: `train`, so that nothing leaks from the
    others, or all of it where there is no such split."""
    return "train" if "train" in statistics else "all"
