"""Ghost cells and limited slopes of the finite-volume solvers, along one axis of a grid."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Boundary = Literal["periodic", "outflow"]  # outflow: zero gradient
NUM_GHOSTS = 2


def limited_half_slope(padded: Tensor, axis: int) -> Tensor:
    """Half the monotonised-central slope of all cells but the outermost.

    min(|a + b|/4, |a|, |b|) with the sign of a where the differences a, b agree in sign, else 0
    (van Leer, J. Comput. Phys. 32, 1979).
    """
    count = padded.shape[axis] - 1
    steps = padded.narrow(axis, 1, count) - padded.narrow(axis, 0, count)
    a, b = steps.narrow(axis, 0, count - 1), steps.narrow(axis, 1, count - 1)
    low, high = torch.minimum(a, b), torch.maximum(a, b)
    central = (a + b) * 0.25
    # Both positive: min(central, low). Both negative: max(central, high). Otherwise 0.
    return torch.minimum(central, low.clamp_min(0.0)).maximum(high.clamp_max(0.0))


def signal_rate(
    u: Tensor, v: Tensor, speed: Tensor, cells_per_length: tuple[float, float]
) -> Tensor:
    """max((|u| + c)/dx + (|v| + c)/dy) over the grid, [n], of fields [n, y, x]: the Courant limit."""
    per_y, per_x = cells_per_length
    rate = (u.abs() + speed) * per_x + (v.abs() + speed) * per_y
    return rate.amax(dim=(-2, -1))


def pad(fields: Tensor, axis: int, boundary: Boundary) -> Tensor:
    """`fields` with `NUM_GHOSTS` cells more at both ends of `axis`."""
    cells = fields.shape[axis]
    if boundary == "periodic":
        before = fields.narrow(axis, cells - NUM_GHOSTS, NUM_GHOSTS)
        after = fields.narrow(axis, 0, NUM_GHOSTS)
    else:
        repeat = [1] * fields.ndim
        repeat[axis] = NUM_GHOSTS
        before = fields.narrow(axis, 0, 1).repeat(repeat)
        after = fields.narrow(axis, cells - 1, 1).repeat(repeat)
    return torch.cat((before, fields, after), dim=axis)
