"""Semilinear equations on the unit torus, pseudo-spectral: Allen-Cahn and Burgers.

    u_t = D Laplace(u) + N(u)

Space: Fourier with the 2/3 rule, which removes all aliases of a product of two and most of those of
three. Time: the Laplacian exactly, by an integrating factor, and N by the classical fourth-order
Runge-Kutta method (`runge_kutta.lawson_step`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from pelagos.data_pipelines.generate import spectral
from pelagos.data_pipelines.generate.runge_kutta import lawson_step
from pelagos.data_pipelines.generate.spectral import Modes
from pelagos.data_pipelines.generate.stepping import march

ALLEN_CAHN_CFL = 0.25  # of the rate of growth; the error of a step is (cfl)^5 / 120
BURGERS_CFL = 0.8  # stability ends at 1.35, as for Navier-Stokes


class Nonlinearity(Protocol):
    """N(u) and how fast it changes things."""

    def __call__(self, pairs: Tensor, modes: Modes) -> tuple[Tensor, Tensor]:
        """(N [n, channel, ky, kx, 2], not dealiased; rates [n]) of spectra."""
        ...


@dataclass(frozen=True)
class AllenCahn:
    """N(u) = rate u (1 - u^2)."""

    rate: float

    def __call__(self, pairs: Tensor, modes: Modes) -> tuple[Tensor, Tensor]:
        u = spectral.inverse(pairs, modes.shape)
        square = u * u
        slope = u * (1.0 - square) * self.rate
        fastest = (square * 3.0 - 1.0).abs().amax(dim=(-3, -2, -1)).clamp_min(1.0)
        return spectral.forward(slope), fastest * self.rate


@dataclass(frozen=True)
class Burgers:
    """N(u) = -(u . grad) u for a velocity (u, v)."""

    def __call__(self, pairs: Tensor, modes: Modes) -> tuple[Tensor, Tensor]:
        # d/dx is multiplication by 2 pi i k = -(2 pi k) (-i).
        turned = spectral.times_minus_i(pairs) * (-2.0 * math.pi)
        along_x = turned * spectral.as_pairs(modes.x)
        along_y = turned * spectral.as_pairs(modes.y)
        fields = spectral.inverse(torch.cat((pairs, along_x, along_y), dim=1), modes.shape)
        velocity, by_x, by_y = fields[:, :2], fields[:, 2:4], fields[:, 4:]
        u, v = velocity[:, :1], velocity[:, 1:]
        height, width = modes.shape
        rates = (u.abs() * float(width) + v.abs() * float(height)).amax(dim=(-3, -2, -1))
        return spectral.forward(-(u * by_x + v * by_y)), rates


def solve_semilinear(
    fields: Tensor,
    times: Sequence[float],
    nonlinearity: Nonlinearity,
    *,
    diffusivity: float,
    cfl: float,
    max_step: float | None = None,
) -> Tensor:
    """Frames [batch, time, channel, y, x] of fields [batch, channel, y, x] at the nodes j/N.

    Args:
        fields: the state at `times[0]`, real, even numbers of points; it is cut to the modes of
            the 2/3 rule.
        times: increasing.
        nonlinearity: N.
        diffusivity: D >= 0, domain squares per unit of time.
        cfl: bound on step times rate of N.
        max_step: bound on the step, for example to measure the order of the method.
    """
    modes = Modes.of((fields.shape[-2], fields.shape[-1]), fields.dtype, fields.device)
    damping = (diffusivity * (2.0 * math.pi) ** 2 * modes.square).unsqueeze(0)
    kept = spectral.as_pairs(modes.kept)

    def evaluate(pairs: Tensor) -> tuple[Tensor, Tensor]:
        slope, rates = nonlinearity(pairs, modes)
        return slope * kept, rates

    def step(
        state: Tensor, first: Tensor, dt: Tensor, _trajectories: list[int], clocks: list[float]
    ) -> Tensor:
        rates = [damping] * len(clocks)
        return lawson_step(state, first, dt, rates, lambda at, _: evaluate(at)[0], clocks)

    return march(
        spectral.forward(fields) * kept,
        times,
        cfl=cfl,
        prepare=lambda state, _trajectories, _clocks: evaluate(state),
        step=step,
        frame=lambda state: spectral.inverse(state, modes.shape) + 0.0,
        max_step=max_step,
    )
