"""Scores of fields that have no value at some points: those of the other points alone.

A property of each point (an error, a size, a variance) is taken over the points of the
target frame at which every channel of the scored field has a value. A property of the whole
grid (Fourier modes) has no meaning then, and is NaN.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pelagos.evaluation.measures.metrics import METRICS, is_undefined

_OF_WHOLE_GRIDS = ("frmse_", "spectral_rmse_")
_OF_THE_BOUNDARY = "boundary_rmse"


def score(
    metric: str, forecast: Tensor, truth: Tensor, valid: Tensor | None, num_dimensions: int
) -> Tensor:
    """A metric of `METRICS`, `[...]`, of `[..., channel, *grid]` in physical units.

    `valid [..., *grid]` bool marks the points with values, None all. NaN where there is none.
    """
    if valid is None:
        return METRICS[metric](forecast, truth, num_dimensions)
    function = METRICS["rmse" if metric == _OF_THE_BOUNDARY else metric]
    forecast, truth = forecast.flatten(-num_dimensions), truth.flatten(-num_dimensions)
    nothing = torch.tensor(torch.nan, dtype=torch.float64, device=truth.device)
    found, counted = [], _counted(metric, valid, num_dimensions)
    for place in _places(valid.shape[:-num_dimensions]):
        chosen = counted[place]
        is_known = bool(chosen.any())
        points = (forecast[place][:, chosen], truth[place][:, chosen])
        found.append(function(*points, 1) if is_known else nothing)
    return torch.stack(found).reshape(valid.shape[:-num_dimensions])


def undefined(
    metric: str, truth: Tensor, valid: Tensor | None, num_dimensions: int, scale: float
) -> Tensor:
    """Where a score has no value because of the truth or its mask, `[...]` bool.

    The rule is `metrics.is_undefined`.
    """
    if valid is None:
        return is_undefined(metric, truth, num_dimensions, scale)
    truth = truth.flatten(-num_dimensions)
    found, counted = [], _counted(metric, valid, num_dimensions)
    for place in _places(valid.shape[:-num_dimensions]):
        chosen = counted[place]
        is_known = bool(chosen.any())
        marks = is_undefined(metric, truth[place][:, chosen], 1, scale) if is_known else None
        found.append(torch.ones((), dtype=torch.bool) if marks is None else marks.cpu())
    return torch.stack(found).reshape(valid.shape[:-num_dimensions])


def _counted(metric: str, valid: Tensor, num_dimensions: int) -> Tensor:
    """`[..., points]` bool: the points with values that a metric uses."""
    counted = valid.clone()
    if metric.startswith(_OF_WHOLE_GRIDS):
        counted[...] = False
    if metric == _OF_THE_BOUNDARY:
        inner: tuple[Any, ...] = (..., *(slice(1, -1),) * num_dimensions)
        counted[inner] = False
    return counted.flatten(-num_dimensions)


def _places(shape: torch.Size) -> list[tuple[int, ...]]:
    return [tuple(int(i) for i in place) for place in torch.ones(shape).nonzero()]
