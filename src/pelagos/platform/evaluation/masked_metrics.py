"""Errors over the points that have a value: fields with a mask, such as the ocean's without land.

What a masked field holds at its masked points has no meaning. Errors of points are computed from the
others alone, as if these were all. Spectral ones need a whole grid: there the forecast is set to
the truth where it is masked, so that no error comes from there.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from pelagos.platform.evaluation.metrics import METRICS, is_undefined, outermost_points

_SPECTRAL = ("frmse_", "spectral_rmse_")


def error(
    metric: str, forecast: Tensor, truth: Tensor, num_dimensions: int, valid: Tensor | None
) -> Tensor:
    """Return a metric of ``METRICS``, ``[...]``, of ``[..., channel, *grid]``; NaN without any point.

    ``valid`` is bool, of the same shape: where the truth has a value. None: everywhere. Of a vector
    only the points count at which all of its components have one.
    """
    if valid is None:
        return METRICS[metric](forecast, truth, num_dimensions)
    if metric.startswith(_SPECTRAL):
        return METRICS[metric](forecast.where(valid, truth), truth, num_dimensions)
    # the outermost points that are left have a root mean square error like any others
    of_points = METRICS["rmse" if metric == "boundary_rmse" else metric]
    shape = truth.shape[: -num_dimensions - 1]
    samples = forecast.reshape(-1, *truth.shape[len(shape) :])
    found = [
        of_points(samples[i][:, counted], points, 1) if points.numel() else _nothing(truth)
        for i, (points, counted) in enumerate(_points(metric, truth, num_dimensions, valid))
    ]
    return torch.stack(found).reshape(shape)


def undefined(
    metric: str, truth: Tensor, num_dimensions: int, scale: float, valid: Tensor | None
) -> Tensor:
    """Return where a metric has no value because of the truth or its mask, ``[...]`` bool."""
    if valid is None or metric.startswith(_SPECTRAL):
        return is_undefined(metric, truth, num_dimensions, scale)
    found = [
        is_undefined(metric, points, 1, scale)
        if points.numel()
        else torch.ones((), dtype=torch.bool, device=truth.device)
        for points, _ in _points(metric, truth, num_dimensions, valid)
    ]
    return torch.stack(found).reshape(truth.shape[: -num_dimensions - 1])


def _points(
    metric: str, truth: Tensor, num_dimensions: int, valid: Tensor
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield of each sample its values ``[channel, point]`` that count, and where they are."""
    shape = truth.shape[-num_dimensions - 1 :]
    for values, has_value in zip(truth.reshape(-1, *shape), valid.reshape(-1, *shape), strict=True):
        counted = has_value.all(0)
        if metric == "boundary_rmse":
            counted = counted & outermost_points(counted.shape, counted.device)
        yield values[:, counted], counted


def _nothing(truth: Tensor) -> Tensor:
    return torch.full((), torch.nan, dtype=torch.float64, device=truth.device)
