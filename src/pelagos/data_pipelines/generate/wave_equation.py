"""The second-order wave equation in two dimensions, variable speed, finite volumes.

    u_tt = c^2 Laplace(u)    or, in divergence form,    u_tt = div(c^2 grad u)

Space: cells with differences of second order on their faces; in divergence form c^2 on a face is the
harmonic mean of its two cells, which keeps the flux right across a jump of the speed. Time: u and
v = u_t by the classical fourth-order Runge-Kutta method.

Boundary: periodic, or absorbing to first order, v + c du/dn = 0 (Engquist and Majda, Math. Comp. 31,
1977): a wave that arrives head on leaves; at an angle a from the normal, (1 - cos a)/(1 + cos a) of
its amplitude comes back. The condition enters as the flux through the outermost faces, so that the
energy, the sum of v^2/c^2 + |grad u|^2 (v^2 + c^2 |grad u|^2 in divergence form) over two, is
conserved between periodic boundaries and can only leave through absorbing ones.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from pelagos.data_pipelines.generate.runge_kutta import runge_kutta_step
from pelagos.data_pipelines.generate.stepping import march

DEFAULT_CFL = 1.0  # of c times the largest frequency of the grid; stability ends at 2.83

WaveBoundary = Literal["periodic", "absorbing"]


def solve_wave(
    displacement: Tensor,
    speed: Tensor,
    times: Sequence[float],
    *,
    velocity: Tensor | None = None,
    boundary: WaveBoundary = "absorbing",
    divergence_form: bool = False,
    cfl: float = DEFAULT_CFL,
    max_step: float | None = None,
) -> Tensor:
    """Frames [batch, time, 2, y, x] of u and v = u_t on the unit square.

    Args:
        displacement: u at `times[0]` at the cell centres, [batch, y, x].
        speed: c > 0 at the cell centres, [batch, y, x]; squares per unit of time.
        times: increasing.
        velocity: v at `times[0]`, [batch, y, x]; None: at rest.
        boundary: on all four sides.
        divergence_form: whether c^2 is inside the divergence.
        cfl: bound on step times frequency, 2 c sqrt(N_x^2 + N_y^2).
        max_step: bound on the step, for example to measure the order of the method.

    Raises:
        ValueError: a shape that does not fit, a speed that is not positive, an unknown boundary.
    """
    if displacement.ndim != 3 or displacement.shape != speed.shape:
        raise ValueError(
            f"Got displacement of shape {tuple(displacement.shape)} and speed of shape "
            f"{tuple(speed.shape)}; both must be [batch, y, x]."
        )
    if not bool((speed > 0.0).all()):
        raise ValueError("Got a speed that is not positive; it must be so in every cell.")
    if boundary not in ("periodic", "absorbing"):
        raise ValueError(f'Got boundary="{boundary}"; "periodic" or "absorbing" is required.')
    still = torch.zeros_like(displacement) if velocity is None else velocity
    scheme = _Scheme(speed, boundary, divergence_form)
    return march(
        torch.stack((displacement, still), dim=1),
        times,
        cfl=cfl,
        prepare=scheme.prepare,
        step=scheme.step,
        frame=lambda state: state,
        max_step=max_step,
    )


@dataclass(frozen=True)
class _Scheme:
    speed: Tensor  # [batch, y, x]
    boundary: WaveBoundary
    divergence_form: bool

    def prepare(
        self, state: Tensor, trajectories: list[int], _clocks: list[float]
    ) -> tuple[Tensor, Tensor]:
        """First slope of the step, and the largest frequencies of the grid [n]."""
        height, width = state.shape[-2:]
        speed = self.speed[trajectories]
        fastest = speed.amax(dim=(-2, -1)) * (2.0 * math.hypot(height, width))
        return self.slope(state, speed), fastest

    def step(
        self,
        state: Tensor,
        first: Tensor,
        dt: Tensor,
        trajectories: list[int],
        _clocks: list[float],
    ) -> Tensor:
        speed = self.speed[trajectories]
        return runge_kutta_step(state, first, dt, lambda at: self.slope(at, speed))

    def slope(self, state: Tensor, speed: Tensor) -> Tensor:
        """(v, c^2 Laplace u) or (v, div(c^2 grad u)) of states [n, 2, y, x]."""
        u, v = state.unbind(1)
        stiffness = speed * speed if self.divergence_form else torch.ones_like(speed)
        total = self.difference(u, v, speed, stiffness, -1)
        total = total + self.difference(u, v, speed, stiffness, -2)
        force = total if self.divergence_form else total * (speed * speed)
        return torch.stack((v, force), dim=1)

    def difference(
        self, u: Tensor, v: Tensor, speed: Tensor, stiffness: Tensor, axis: int
    ) -> Tensor:
        """Flux in minus flux out along `axis`, over the cell width, [n, y, x]."""
        cells = u.shape[axis]
        if self.boundary == "periodic":
            after = stiffness.roll(-1, axis)
            mean = 2.0 * stiffness * after / (stiffness + after)
            flux = mean * (u.roll(-1, axis) - u) * float(cells)
            return (flux - flux.roll(1, axis)) * float(cells)
        here = stiffness.narrow(axis, 0, cells - 1)
        after = stiffness.narrow(axis, 1, cells - 1)
        mean = 2.0 * here * after / (here + after)
        flux = mean * (u.narrow(axis, 1, cells - 1) - u.narrow(axis, 0, cells - 1)) * float(cells)
        leaving = stiffness * v / speed  # -c^2 du/dn or -du/dn, where v + c du/dn = 0
        low, high = leaving.narrow(axis, 0, 1), -leaving.narrow(axis, cells - 1, 1)
        faces = torch.cat((low, flux, high), dim=axis)
        return (faces.narrow(axis, 1, cells) - faces.narrow(axis, 0, cells)) * float(cells)
