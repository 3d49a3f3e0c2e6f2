"""The classical fourth-order Runge-Kutta step, plain and with an integrating factor.

Both start from a slope that the caller has already computed, as `stepping.march` hands it over, and
let the step size differ between trajectories.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pelagos.data_pipelines.generate import spectral


def runge_kutta_step(
    state: Tensor, first: Tensor, dt: Tensor, slope: Callable[[Tensor], Tensor]
) -> Tensor:
    """One step of state' = slope(state), `first` = slope(state); `dt` [n] per trajectory."""
    h = dt.view(-1, *([1] * (state.ndim - 1)))
    second = slope(state + first * (0.5 * h))
    third = slope(state + second * (0.5 * h))
    fourth = slope(state + third * h)
    return state + (first + fourth) * (h / 6.0) + (second + third) * (h / 3.0)


def lawson_step(
    state: Tensor,
    first: Tensor,
    dt: Tensor,
    damping: list[Tensor],
    slope: Callable[[Tensor, list[float]], Tensor],
    clocks: list[float],
) -> Tensor:
    """One integrating-factor step (Lawson, SIAM J. Numer. Anal. 4, 1967) of spectra as pairs.

    Args:
        state: [n, channel, ky, kx, 2]; `first`, of the same shape, is slope(state, clocks).
        dt: step sizes [n].
        damping: rates >= 0 of the linear operator, [channel, ky, kx] for each of the n.
        slope: everything but the linear operator, of spectra and their n times.
        clocks: the n times of `state`.
    """
    # One exponential per trajectory: vectorised exp may round by position in the array.
    rows = zip(damping, dt, strict=True)
    half = spectral.as_pairs(torch.stack([torch.exp(rates * (-0.5 * h)) for rates, h in rows]))
    h = dt.view(-1, 1, 1, 1, 1)
    middle = [time + 0.5 * size for time, size in zip(clocks, dt.tolist(), strict=True)]
    end = [time + size for time, size in zip(clocks, dt.tolist(), strict=True)]
    carried = half * state
    second = slope(half * (state + first * (0.5 * h)), middle)
    third = slope(carried + second * (0.5 * h), middle)
    fourth = slope(half * (carried + third * h), end)
    inner = half * (first * (h / 6.0)) + (second + third) * (h / 3.0)
    return half * (carried + inner) + fourth * (h / 6.0)
