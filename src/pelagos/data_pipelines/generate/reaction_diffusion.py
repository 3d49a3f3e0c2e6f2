"""The FitzHugh-Nagumo reaction-diffusion system, as in PDEBench (Takamoto et al., arXiv 2210.07182).

    u_t = D_u Laplace(u) + u - u^3 - k - v,    v_t = D_v Laplace(v) + u - v

with no flux through the boundary. Space: finite volumes of second order. Time: the classical
fourth-order Runge-Kutta method (Klaasen and Troy, SIAM J. Appl. Math. 44, 1984, on the equations).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pelagos.data_pipelines.generate.runge_kutta import runge_kutta_step
from pelagos.data_pipelines.generate.stepping import march

ACTIVATOR_DIFFUSIVITY = 1e-3
INHIBITOR_DIFFUSIVITY = 5e-3
ACTIVATOR_LOSS = 5e-3
DEFAULT_CFL = 2.0  # of diffusion plus reaction; stability ends at 2.78 on the negative real axis


def solve_reaction_diffusion(
    fields: Tensor,
    times: Sequence[float],
    *,
    diffusivity: tuple[float, float] = (ACTIVATOR_DIFFUSIVITY, INHIBITOR_DIFFUSIVITY),
    loss: float = ACTIVATOR_LOSS,
    reacting: bool = True,
    extent: tuple[float, float] = (1.0, 1.0),
    cfl: float = DEFAULT_CFL,
    max_step: float | None = None,
) -> Tensor:
    """Frames [batch, time, 2, y, x] of activator and inhibitor at the cell centres.

    Args:
        fields: the state at `times[0]`, [batch, 2, y, x].
        times: increasing.
        diffusivity: D_u and D_v.
        loss: k.
        reacting: False leaves diffusion alone.
        extent: lengths of the domain (y, x).
        cfl: bound on step times the fastest rate of decay.
        max_step: bound on the step, for example to measure the order of the method.
    """
    height, width = fields.shape[-2:]
    per_y, per_x = height / extent[0], width / extent[1]
    spread = fields.new_tensor(diffusivity).view(1, 2, 1, 1)
    stiff = 4.0 * max(diffusivity) * (per_x**2 + per_y**2)

    def slope(state: Tensor) -> Tensor:
        laplace = closed_difference(state, -1) * per_x**2 + closed_difference(state, -2) * per_y**2
        total = laplace * spread
        if not reacting:
            return total
        u, v = state.unbind(1)
        return total + torch.stack((u - u * u * u - loss - v, u - v), dim=1)

    def prepare(
        state: Tensor, _trajectories: list[int], _clocks: list[float]
    ) -> tuple[Tensor, Tensor]:
        largest = (state[:, 0] * state[:, 0]).amax(dim=(-2, -1))
        rates = largest * 3.0 + (stiff + 2.0) if reacting else torch.full_like(largest, stiff)
        return slope(state), rates

    return march(
        fields,
        times,
        cfl=cfl,
        prepare=prepare,
        step=lambda state, first, dt, _, __: runge_kutta_step(state, first, dt, slope),
        frame=lambda state: state,
        max_step=max_step,
    )


def closed_difference(fields: Tensor, axis: int) -> Tensor:
    """Second difference along an axis with no flux through its ends."""
    cells = fields.shape[axis]
    flux = fields.narrow(axis, 1, cells - 1) - fields.narrow(axis, 0, cells - 1)
    closed = torch.zeros_like(fields.narrow(axis, 0, 1))
    faces = torch.cat((closed, flux, closed), dim=axis)
    return faces.narrow(axis, 1, cells) - faces.narrow(axis, 0, cells)
