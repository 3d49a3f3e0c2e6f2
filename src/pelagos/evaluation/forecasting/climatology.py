"""The mean of a dataset at every grid point, as far as its trajectories show that it has a pattern.

The local average of the training data is the least that a model must know: temperature
falls towards the poles, flow slows near a wall. Without a model it is the baseline `mean`.

The mean over n trajectories is the pattern and, with 1 / n of the variance between trajectories, chance.
Where there is no pattern, as in periodic boxes with random initial states, chance alone would make
the baseline worse than the mean over all points. So the pattern is multiplied by 1 - chance /
spread, the shrinkage of James and Stein (1961): from 0 without a pattern to 1 with a clear one.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from pelagos.evaluation.forecasting.view import EvaluationData

MOST_TRAJECTORIES = 32
MOST_FRAMES = 4


def climatology(data: EvaluationData, trajectories: Sequence[int]) -> Tensor:
    """Return the mean of each channel at every grid point, normalised, `[C, *grid]`.

    `trajectories` are those of the training split, of which up to `MOST_TRAJECTORIES` are read,
    `MOST_FRAMES` frames each, both spread evenly. The mean over all points stays that of
    `data.mean_frame`. Fewer than two trajectories show no pattern, at points without a value
    neither. Memory is that of one trajectory.
    """
    flat = data.mean_frame.double()
    chosen = [trajectories[i] for i in _spread(len(trajectories), MOST_TRAJECTORIES)]
    frames = _spread(data.num_frames, MOST_FRAMES)
    total = torch.zeros(len(data.fields), *data.grid_shape, dtype=torch.float64)
    squares = torch.zeros_like(total)
    counts = torch.zeros_like(total)
    for trajectory in chosen:
        values = data.read(trajectory, frames)
        valid = data.valid(values)
        there = torch.ones_like(values, dtype=torch.bool) if valid is None else valid
        seen = there.sum(0)
        pattern = values.double().where(there, 0.0).sum(0) / seen.clamp_min(1)
        is_seen = seen > 0
        pattern = (pattern - _over_space(pattern, is_seen)).where(is_seen, 0.0)
        total += pattern
        squares += pattern.square()
        counts += is_seen
    if len(chosen) < 2:
        return flat.expand_as(total).float()
    often = counts > 1  # elsewhere the share of chance is unknown
    mean = (total / counts.clamp_min(1)).where(often, 0.0)
    variance = squares / counts.clamp_min(1) - mean.square()
    chance = _over_space(variance / (counts - 1).clamp_min(1), often)
    spread = _over_space(mean.square(), often)
    share = (1 - chance / spread.where(spread > 0, 1.0)).clamp(0.0, 1.0)
    return (flat + share * mean).float()


def _over_space(values: Tensor, counted: Tensor) -> Tensor:
    """The mean over the points of `[C, *grid]` that are `counted`, `[C, 1, ...]`."""
    axes = tuple(range(1, values.ndim))
    total = values.where(counted, 0.0).sum(axes, keepdim=True)
    return total / counted.sum(axes, keepdim=True).clamp_min(1)


def _spread(count: int, most: int) -> list[int]:
    """Up to `most` of `count` indices, first and last among them."""
    if count == 0:
        return []
    return sorted({int(i) for i in np.linspace(0, count - 1, min(count, most)).round()})
