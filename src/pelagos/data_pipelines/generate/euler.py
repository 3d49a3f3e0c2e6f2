"""Compressible Euler equations in two dimensions, ideal gas, finite volumes.

    rho_t + div(rho u) = 0,  (rho u)_t + div(rho u u) + grad p = 0,  E_t + div((E + p) u) = 0,
    E = p/(gamma - 1) + rho |u|^2 / 2

and, in a gravitational potential phi, -rho grad phi and -rho u . grad phi on the right.

Space: MUSCL on the primitive variables with the monotonised-central limiter (van Leer, J. Comput.
Phys. 32, 1979), so that face values stay between neighbouring cell values, and HLLC fluxes.
Time: the two-stage strong-stability-preserving Runge-Kutta method (Shu and Osher, J. Comput. Phys.
77, 1988); each stage is an average of forward Euler steps. A trajectory in which a step would leave
a density or pressure that is not positive takes that step again with piecewise constant states,
whose forward Euler step keeps both positive for Courant numbers up to 1/2.
Gravity: a source per cell. Where the residual of the discrete equations at a given hydrostatic state
is subtracted from every slope, that state is kept to the last bit: a scheme for the deviation from it
(Berberich, Chandrashekar and Klingenberg, Comput. Fluids 219, 2021).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pelagos.data_pipelines.generate.muscl import (
    NUM_GHOSTS,
    Boundary,
    limited_half_slope,
    pad,
    signal_rate,
)
from pelagos.data_pipelines.generate.riemann import hllc_flux
from pelagos.data_pipelines.generate.stepping import march

DEFAULT_CFL = 0.45  # of the sum over both axes; positivity is shown for at most 0.5
GAMMA = 1.4


@dataclass(frozen=True)
class Gravity:
    """A steady potential, and the hydrostatic state that the discrete equations shall keep."""

    potential: Tensor  # [batch, y, x]
    rest: Tensor  # [batch, 4, y, x], primitive


def solve_euler(
    primitive: Tensor,
    times: Sequence[float],
    *,
    gamma: float = GAMMA,
    boundary_x: Boundary = "periodic",
    boundary_y: Boundary = "periodic",
    extent: tuple[float, float] = (1.0, 1.0),
    cfl: float = DEFAULT_CFL,
    max_step: float | None = None,
    compiled: bool = False,
    gravity: Gravity | None = None,
) -> Tensor:
    """Frames [batch, time, 4, y, x] of cell values: density, velocity-x, velocity-y, pressure.

    Args:
        primitive: initial cell values [batch, 4, y, x], density and pressure positive.
        times: increasing; `times[0]` is the time of `primitive`.
        gamma: ratio of specific heats, above 1.
        boundary_x, boundary_y: "periodic" or "outflow" (zero gradient) on both ends of the axis.
        extent: lengths of the domain (y, x).
        cfl: Courant number of max((|u| + c)/dx + (|v| + c)/dy).
        max_step: bound on the step, for example to measure the order of the method.
        compiled: fuse each step with `torch.compile`, three to five times as fast on a CPU. Needs
            a C++ compiler, and up to a minute before the first step of a grid size that this
            machine has not compiled yet. Results differ from uncompiled ones by rounding; they
            do not depend on the batch either, since trajectories are stepped one by one.
        gravity: a potential and a state at rest in it; with periodic boundaries, not compiled.

    Returns:
        Frames; a trajectory that stops being finite or positive is NaN from there on.

    Raises:
        ValueError: a wrong shape, boundary or gamma, or initial values that are not positive.
    """
    _check(primitive, gamma, boundary_x, boundary_y)
    height, width = primitive.shape[-2:]
    per_length = (height / extent[0], width / extent[1])
    scheme = _Scheme(gamma, (boundary_y, boundary_x), per_length, compiled)
    if gravity is not None:
        if compiled or (boundary_x, boundary_y) != ("periodic", "periodic"):
            raise ValueError("gravity is implemented for periodic boundaries, not compiled.")
        scheme = scheme.with_gravity(gravity)
    return march(
        to_conserved(primitive, gamma),
        times,
        cfl=cfl,
        prepare=scheme.prepare,
        step=scheme.step,
        frame=lambda state: to_primitive(state, gamma),
        max_step=max_step,
    )


def euler_slope(
    primitive: Tensor,
    gamma: float | Tensor,
    boundary: Boundary,
    cells_per_length: tuple[float, float],
) -> Tensor:
    """-div F [batch, 4, y, x], the rates of the conserved fields, as `solve_euler` computes them.

    Args:
        primitive: cell values [batch, 4, y, x], density and pressure positive.
        gamma: ratio of specific heats, one number or [batch, 1, 1].
        boundary: of both axes.
        cells_per_length: (y, x).
    """
    scheme = _Scheme(gamma, (boundary, boundary), cells_per_length)
    return scheme._slope(primitive, second_order=True)


def to_conserved(primitive: Tensor, gamma: float | Tensor = GAMMA) -> Tensor:
    """Density, momentum-x, momentum-y, energy from primitive fields [batch, 4, ...]."""
    rho, u, v, p = primitive.unbind(1)
    energy = p * (1.0 / (gamma - 1.0)) + rho * (u * u + v * v) * 0.5
    return torch.stack((rho, rho * u, rho * v, energy), dim=1)


def to_primitive(conserved: Tensor, gamma: float | Tensor = GAMMA) -> Tensor:
    """Density, velocity-x, velocity-y, pressure from conserved fields [batch, 4, ...]."""
    rho, mu, mv, energy = conserved.unbind(1)
    u, v = mu / rho, mv / rho
    p = (energy - (mu * u + mv * v) * 0.5) * (gamma - 1.0)
    return torch.stack((rho, u, v, p), dim=1)


@dataclass(frozen=True)
class _Source:
    """Gravity on the grid, first axis the trajectories."""

    acceleration: Tensor  # [n, 2 (x, y), y, x]
    residuals: tuple[Tensor, Tensor]  # [n, 4, y, x] at first and at second order

    def rows(self, trajectories: list[int]) -> _Source:
        first, second = self.residuals
        return _Source(self.acceleration[trajectories], (first[trajectories], second[trajectories]))

    def forces(self, primitive: Tensor) -> Tensor:
        """rho g and rho u . g without a source of mass, [n, 4, y, x]."""
        rho, u, v, _ = primitive.unbind(1)
        along_x, along_y = (rho.unsqueeze(1) * self.acceleration).unbind(1)
        work = u * along_x + v * along_y
        return torch.stack((torch.zeros_like(rho), along_x, along_y, work), dim=1)


@dataclass(frozen=True)
class _Scheme:
    gamma: float | Tensor
    boundaries: tuple[Boundary, Boundary]  # y, x
    cells_per_length: tuple[float, float]  # y, x
    compiled: bool = False
    source: _Source | None = None

    def with_gravity(self, gravity: Gravity) -> _Scheme:
        """This scheme with the central gradient of a periodic potential, balanced at rest."""
        per_y, per_x = self.cells_per_length
        potential = gravity.potential
        along_x = (potential.roll(1, -1) - potential.roll(-1, -1)) * (0.5 * per_x)
        along_y = (potential.roll(1, -2) - potential.roll(-1, -2)) * (0.5 * per_y)
        acceleration = torch.stack((along_x, along_y), dim=1)
        rest = to_primitive(to_conserved(gravity.rest, self.gamma), self.gamma)
        nothing = torch.zeros_like(rest)
        plain = replace(self, source=_Source(acceleration, (nothing, nothing)))
        residuals = (plain._slope(rest, False), plain._slope(rest, True))
        return replace(self, source=_Source(acceleration, residuals))

    def rows(self, trajectories: list[int]) -> _Scheme:
        """The scheme of some trajectories."""
        if self.source is None:
            return self
        return replace(self, source=self.source.rows(trajectories))

    def prepare(
        self, state: Tensor, _trajectories: list[int], _clocks: list[float]
    ) -> tuple[Tensor, Tensor]:
        """Primitive fields, and rates max((|u| + c)/dx + (|v| + c)/dy) [n]."""
        primitive = to_primitive(state, self.gamma)
        rho, u, v, p = primitive.unbind(1)
        sound = (p * self.gamma / rho).sqrt()
        return primitive, signal_rate(u, v, sound, self.cells_per_length)

    def step(
        self,
        state: Tensor,
        primitive: Tensor,
        dt: Tensor,
        trajectories: list[int],
        _clocks: list[float],
    ) -> Tensor:
        """One step; trajectories it leaves non-positive are stepped again at first order."""
        if self.compiled:
            fused, rows = _fused_step(), range(len(dt))
            parts = [(state[i : i + 1], primitive[i : i + 1], dt[i : i + 1]) for i in rows]
            after = torch.cat([fused(self, *part) for part in parts])
        else:
            after = self.rows(trajectories)._runge_kutta(state, primitive, dt, second_order=True)
        lost = (~_positive(after)).nonzero().flatten().tolist()
        if lost:
            after[lost] = self.rows([trajectories[row] for row in lost])._runge_kutta(
                state[lost], primitive[lost], dt[lost], second_order=False
            )
        return after

    def _runge_kutta(
        self, state: Tensor, primitive: Tensor, dt: Tensor, *, second_order: bool
    ) -> Tensor:
        h = dt.view(-1, 1, 1, 1)
        middle = state + self._slope(primitive, second_order) * h
        slope = self._slope(to_primitive(middle, self.gamma), second_order)
        return (state + (middle + slope * h)) * 0.5

    def _slope(self, primitive: Tensor, second_order: bool) -> Tensor:
        """-div F [n, 4, y, x] of primitive fields [n, 4, y, x]."""
        rho, u, v, p = primitive.unbind(1)
        boundary_y, boundary_x = self.boundaries
        along_x = self._difference(torch.stack((rho, u, v, p)), -1, boundary_x, second_order)
        along_y = self._difference(torch.stack((rho, v, u, p)), -2, boundary_y, second_order)
        per_y, per_x = self.cells_per_length
        mass_x, mu_x, mv_x, energy_x = along_x * per_x
        mass_y, mv_y, mu_y, energy_y = along_y * per_y
        total = (mass_x + mass_y, mu_x + mu_y, mv_x + mv_y, energy_x + energy_y)
        slope = -torch.stack(total, dim=1)
        if self.source is None:
            return slope
        forced = slope + self.source.forces(primitive)
        return forced - self.source.residuals[int(second_order)]

    def _difference(
        self, fields: Tensor, axis: int, boundary: Boundary, second_order: bool
    ) -> Tensor:
        """Flux out minus flux in along `axis` for fields [4, n, y, x], normal velocity second."""
        cells = fields.shape[axis]
        padded = pad(fields, axis, boundary)
        inner = padded.narrow(axis, 1, cells + 2)
        if second_order:
            half = limited_half_slope(padded, axis)
            upper, lower = inner + half, inner - half
        else:
            upper = lower = inner
        left = upper.narrow(axis, 0, cells + 1)
        right = lower.narrow(axis, 1, cells + 1)
        flux = hllc_flux(left, right, self.gamma)
        return flux.narrow(axis, 1, cells) - flux.narrow(axis, 0, cells)


@functools.cache
def _fused_step() -> Callable[[_Scheme, Tensor, Tensor, Tensor], Tensor]:
    """The second-order step of one trajectory, compiled once per grid size and type."""

    def step(scheme: _Scheme, state: Tensor, primitive: Tensor, dt: Tensor) -> Tensor:
        return scheme._runge_kutta(state, primitive, dt, second_order=True)

    fused: Callable[[_Scheme, Tensor, Tensor, Tensor], Tensor] = torch.compile(step, dynamic=False)
    return fused


def _positive(state: Tensor) -> Tensor:
    """[n] bool: density and internal energy positive (and not NaN) in every cell."""
    rho, mu, mv, energy = state.unbind(1)
    internal = energy - (mu * mu + mv * mv) / rho * 0.5
    return (torch.minimum(rho, internal) > 0.0).flatten(1).all(dim=1)


def _check(primitive: Tensor, gamma: float, boundary_x: str, boundary_y: str) -> None:
    if primitive.ndim != 4 or primitive.shape[1] != 4:
        raise ValueError(
            f"Got a state of shape {tuple(primitive.shape)}; [batch, 4 (density, velocity-x, "
            "velocity-y, pressure), y, x] is required."
        )
    if min(primitive.shape[-2:]) < NUM_GHOSTS:
        raise ValueError(f"Got a grid of {tuple(primitive.shape[-2:])}; at least 2 x 2 is needed.")
    if not gamma > 1.0:
        raise ValueError(f"Got gamma={gamma}; a ratio of specific heats above 1 is required.")
    for name, boundary in (("boundary_x", boundary_x), ("boundary_y", boundary_y)):
        if boundary not in ("periodic", "outflow"):
            raise ValueError(f'Got {name}="{boundary}"; "periodic" or "outflow" is required.')
    wrong = ~(primitive[:, [0, 3]] > 0.0).flatten(1).all(dim=1)
    if bool(wrong.any()):
        rows = wrong.nonzero().flatten().tolist()
        raise ValueError(
            f"Got initial densities or pressures that are not positive in trajectories {rows} of "
            "the batch; both must be positive in every cell."
        )
