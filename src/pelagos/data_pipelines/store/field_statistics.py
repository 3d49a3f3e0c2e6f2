"""Statistics of every field, from one pass over the data, whatever the order of writing.

Each trajectory is summed by itself in float64 (count, sum, squared deviations from its own mean,
minimum, maximum; the same for the difference of consecutive frames). Trajectories are then pooled
with `math.fsum`, which rounds once whatever the order, so the result does not depend on how
trajectories were grouped into shards or on which shard came first.

Pooling (Chan, Golub and LeVeque 1979): for groups i with count n_i, mean m_i and squared
deviations S_i,  mean = sum n_i m_i / n,  S = sum (S_i + n_i (m_i - mean)^2),  variance = S / n.
"""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from pelagos.data_pipelines.store.schema import DatasetSpec

# One trajectory of one field: {"count", "sum", "deviation", "min", "max"} of the values, and the
# same with the prefix "delta_" of the differences between consecutive frames.
TrajectorySums = dict[str, float]

_PARTS = ("", "delta_")
_BLOCK_VALUES = 2**15  # 256 KiB as float64


@dataclass(frozen=True)
class Moments:
    """Count, sum, squared deviations from the own mean, and extremes of some values."""

    count: float
    sum: float
    deviation: float
    min: float
    max: float


# Of one field of one frame: moments of the values' blocks, and of the change since the last frame.
FrameMoments = tuple[list[Moments], list[Moments]]


def merge(groups: Sequence[Moments]) -> Moments:
    """The moments of all groups together, rounded once whatever their order."""
    count = math.fsum(g.count for g in groups)
    total = math.fsum(g.sum for g in groups)
    mean = total / count
    deviation = math.fsum(
        term for g in groups for term in (g.deviation, g.count * (g.sum / g.count - mean) ** 2)
    )
    return Moments(count, total, deviation, min(g.min for g in groups), max(g.max for g in groups))


def trajectory_sums(
    values: npt.NDArray[np.floating], mask: npt.NDArray[np.floating] | None = None
) -> TrajectorySums:
    """Sums of one trajectory of one field, `[time, y, x]`; `mask` is 0 where it has no value."""
    if mask is None:
        frames = frame_moments(values[:, None], None, len(values))
    else:
        frames = frame_moments(np.stack([values, mask], 1), None, len(values), {0: 1})
    plain = [part for (ours, _), *_ in frames for part in ours]
    deltas = [part for (_, change), *_ in frames for part in change]
    return pooled_sums(plain, deltas)


def frame_moments(
    frames: npt.NDArray[np.floating],
    previous: npt.NDArray[np.floating] | None,
    num_frames: int,
    masks: Mapping[int, int] = MappingProxyType({}),
) -> list[list[FrameMoments]]:
    """Moments of each field of consecutive frames, and of its change since the frame before.

    Values are widened to float64 once, in blocks that stay in the processor's cache. The sum of a
    block is finite exactly if all its values are: float32 values cannot overflow float64.

    Args:
        frames: `[frame, channel, y, x]`, possibly of several trajectories.
        previous: the frame before the first, `[channel, y, x]`; None if that begins a trajectory.
        num_frames: frames per trajectory; the next trajectory begins after them.
            With `previous`, the caller sees to it that none begins in here.
        masks: the channel of the mask of each masked channel: points where it is 0 are left out, of
            changes those where it is 0 in either frame.

    Returns:
        Per frame and channel the moments of its blocks.
    """
    found: list[list[FrameMoments]] = [[([], []) for _ in frame] for frame in frames]
    flat = frames.reshape(*frames.shape[:2], -1)
    before = None if previous is None else previous.reshape(frames.shape[1], -1)
    size = flat.shape[2]
    wide, last, scratch = np.empty((3, min(size, _BLOCK_VALUES)), np.float64)
    whole = [channel for channel in range(flat.shape[1]) if channel not in masks]
    for channel, mask in masks.items():
        _add_masked(flat, before, num_frames, (channel, mask), found)
    for channel, start in itertools.product(whole, range(0, size, _BLOCK_VALUES)):
        part = slice(start, min(start + _BLOCK_VALUES, size))
        length = part.stop - part.start
        new, old, changed = wide[:length], last[:length], scratch[:length]
        if before is not None:
            old[:] = before[channel, part]
        for frame in range(len(flat)):
            block = flat[frame, channel, part]
            new[:] = block
            plain, deltas = found[frame][channel]
            # the extremes of the narrow values are those of the wide ones, in half the time
            extremes = float(block.min()), float(block.max())
            plain.append(_block_moments(new, changed, *extremes))
            if frame % num_frames if before is None else True:
                np.subtract(new, old, out=changed)
                low, high = float(changed.min()), float(changed.max())
                deltas.append(_block_moments(changed, changed, low, high))
            new, old = old, new
    return found


def _add_masked(
    flat: npt.NDArray[np.floating],
    before: npt.NDArray[np.floating] | None,
    num_frames: int,
    channels: tuple[int, int],
    found: list[list[FrameMoments]],
) -> None:
    """Add the moments of a masked channel of `flat [frame, channel, point]` where it has values.

    A value that is not finite counts wherever it is, so that it is found.
    """
    channel, mask = channels
    last = None if before is None else before[[channel, mask]].astype(np.float64)
    for frame, rows in enumerate(flat[:, [channel, mask]].astype(np.float64)):
        values, has_value = rows[0], (rows[1] != 0) | ~np.isfinite(rows[0])
        plain, deltas = found[frame][channel]
        plain += _some_moments(values[has_value])
        if last is not None and (before is not None or frame % num_frames):
            changed = values - last[0]
            deltas += _some_moments(changed[has_value & (last[1] != 0)])
        last = rows


def _some_moments(values: npt.NDArray[np.float64]) -> list[Moments]:
    """Moments of any number of values: none of none."""
    if not values.size:
        return []
    low, high = float(values.min()), float(values.max())
    return [_block_moments(values, np.empty_like(values), low, high)]


def pooled_sums(plain: Sequence[Moments], deltas: Sequence[Moments]) -> TrajectorySums:
    """One trajectory of one field from the moments of its frames, in any order."""
    sums: TrajectorySums = {}
    for part, groups in zip(_PARTS, (plain, deltas), strict=True):
        merged = merge(groups) if groups else Moments(0.0, 0.0, 0.0, 0.0, 0.0)
        sums.update({part + key: value for key, value in asdict(merged).items()})
    return sums


def _block_moments(
    wide: npt.NDArray[np.float64], scratch: npt.NDArray[np.float64], low: float, high: float
) -> Moments:
    """Moments of float64 values; `scratch` is overwritten, and may be the values themselves."""
    total = float(wide.sum())
    np.subtract(wide, total / wide.size, out=scratch)
    np.square(scratch, out=scratch)
    return Moments(float(wide.size), total, float(scratch.sum()), low, high)


def shard_sums(
    data: npt.NDArray[np.floating],
    field_names: Sequence[str],
    masks: Mapping[int, int] = MappingProxyType({}),
) -> dict[str, list[TrajectorySums]]:
    """Sums per field and trajectory of `[trajectory, time, channel, y, x]`.

    `masks` is `DatasetSpec.mask_channels`: points without a value are left out.
    """
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:

        def of(channel: int) -> list[TrajectorySums]:
            if channel not in masks:
                return list(pool.map(trajectory_sums, data[:, :, channel]))
            return list(pool.map(trajectory_sums, data[:, :, channel], data[:, :, masks[channel]]))

        return {name: of(channel) for channel, name in enumerate(field_names)}


_POOLED = ("count", "mean", "std", "min", "max")


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
        groups = [Moments(*(row[part + f.name] for f in fields(Moments))) for row in rows]
        groups = [group for group in groups if group.count > 0]
        if not groups:
            continue
        merged = merge(groups)
        mean, variance = merged.sum / merged.count, merged.deviation / merged.count
        pooled[part + "count"] = merged.count
        pooled[part + "mean"] = mean
        pooled[part + "std"] = math.sqrt(variance)
        pooled[part + "rms"] = math.sqrt(variance + mean * mean)
        pooled[part + "min"] = merged.min
        pooled[part + "max"] = merged.max
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


def require_statistics(
    statistics: Mapping[str, Mapping[str, Mapping[str, float]]], spec: DatasetSpec
) -> None:
    """Raise ValueError unless given statistics have the entries of `dataset_statistics`."""
    ranges = {"all": (0, spec.num_trajectories), **spec.splits}
    if statistics.keys() != ranges.keys():
        told = ", ".join(statistics) or "nothing"
        raise ValueError(f"statistics: got the splits {told}, expected {', '.join(ranges)}")
    known = {part + key for part in _PARTS for key in (*_POOLED, "rms")}
    for split, rows in statistics.items():
        if rows.keys() != set(spec.field_names):
            raise ValueError(f"statistics.{split}: the fields differ from the dataset's")
        start, stop = ranges[split]
        for name, row in rows.items():
            may_be_empty = start >= stop or name in spec.masks
            if (row or not may_be_empty) and (row.keys() - known or not set(_POOLED) <= row.keys()):
                raise ValueError(
                    f"statistics.{split}.{name}: has {', '.join(row) or 'nothing'}, expected "
                    f"{', '.join(_POOLED)}"
                )


def default_split(statistics: dict[str, Any]) -> str:
    """The split whose statistics describe a dataset.

    `train`, so that nothing leaks from the others, or all of it where there is no such split.
    """
    return "train" if "train" in statistics else "all"
