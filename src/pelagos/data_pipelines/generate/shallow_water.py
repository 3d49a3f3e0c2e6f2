"""The shallow-water equations in two dimensions over a flat bottom, finite volumes.

    h_t + div(h u) = 0,  (h u)_t + div(h u u) + g grad(h^2)/2 = 0

Space: MUSCL on height and velocity with the monotonised-central limiter and HLLC fluxes (Toro,
Shock-Capturing Methods for Free-Surface Shallow Flows, 2001, ch. 10). Time: the two-stage
strong-stability-preserving Runge-Kutta method. The bottom is covered by water everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pelagos.data_pipelines.generate.muscl import Boundary, limited_half_slope, pad, signal_rate
from pelagos.data_pipelines.generate.stepping import march

DEFAULT_CFL = 0.45


def solve_shallow_water(
    primitive: Tensor,
    times: Sequence[float],
    *,
    gravity: float = 1.0,
    boundary: Boundary = "outflow",
    extent: tuple[float, float] = (1.0, 1.0),
    cfl: float = DEFAULT_CFL,
    max_step: float | None = None,
) -> Tensor:
    """Frames [batch, time, 3, y, x] of cell values: height, velocity-x, velocity-y.

    Args:
        primitive: the state at `times[0]`, [batch, 3, y, x], height positive.
        times: increasing.
        gravity: g.
        boundary: "periodic" or "outflow" (open: zero gradient) on all four sides.
        extent: lengths of the domain (y, x).
        cfl: Courant number of max((|u| + sqrt(g h))/dx + (|v| + sqrt(g h))/dy).
        max_step: bound on the step, for example to measure the order of the method.

    Raises:
        ValueError: a wrong shape, or a height that is not positive.
    """
    if primitive.ndim != 4 or primitive.shape[1] != 3:
        raise ValueError(
            f"Got a state of shape {tuple(primitive.shape)}; [batch, 3 (height, velocity-x, "
            "velocity-y), y, x] is required."
        )
    if not bool((primitive[:, 0] > 0.0).all()):
        raise ValueError("Got a height that is not positive; it must be so in every cell.")
    height, width = primitive.shape[-2:]
    scheme = _Scheme(gravity, boundary, (height / extent[0], width / extent[1]))
    return march(
        to_momenta(primitive),
        times,
        cfl=cfl,
        prepare=scheme.prepare,
        step=scheme.step,
        frame=to_velocities,
        max_step=max_step,
    )


def shallow_water_slope(
    primitive: Tensor,
    gravity: float | Tensor,
    boundary: Boundary,
    cells_per_length: tuple[float, float],
) -> Tensor:
    """-div F [batch, 3, y, x], the rates of height and momenta, as `solve_shallow_water` has them.

    Args:
        primitive: cell values [batch, 3, y, x], height positive.
        gravity: g, one number or [batch, 1, 1].
        boundary: of both axes.
        cells_per_length: (y, x).
    """
    return _Scheme(gravity, boundary, cells_per_length).slope(primitive)


def to_momenta(primitive: Tensor) -> Tensor:
    """Height and momenta from height and velocities [batch, 3, ...]."""
    h, u, v = primitive.unbind(1)
    return torch.stack((h, h * u, h * v), dim=1)


def to_velocities(conserved: Tensor) -> Tensor:
    """Height and velocities from height and momenta [batch, 3, ...]."""
    h, mu, mv = conserved.unbind(1)
    return torch.stack((h, mu / h, mv / h), dim=1)


@dataclass(frozen=True)
class _Scheme:
    gravity: float | Tensor
    boundary: Boundary
    cells_per_length: tuple[float, float]  # y, x

    def prepare(
        self, state: Tensor, _trajectories: list[int], _clocks: list[float]
    ) -> tuple[Tensor, Tensor]:
        """Primitive fields, and rates max((|u| + c)/dx + (|v| + c)/dy) [n]."""
        primitive = to_velocities(state)
        h, u, v = primitive.unbind(1)
        wave = (h * self.gravity).sqrt()
        return primitive, signal_rate(u, v, wave, self.cells_per_length)

    def step(
        self,
        state: Tensor,
        primitive: Tensor,
        dt: Tensor,
        _trajectories: list[int],
        _clocks: list[float],
    ) -> Tensor:
        h = dt.view(-1, 1, 1, 1)
        middle = state + self.slope(primitive) * h
        return (state + (middle + self.slope(to_velocities(middle)) * h)) * 0.5

    def slope(self, primitive: Tensor) -> Tensor:
        """-div F [n, 3, y, x] of primitive fields [n, 3, y, x]."""
        h, u, v = primitive.unbind(1)
        per_y, per_x = self.cells_per_length
        mass_x, mu_x, mv_x = self.difference(torch.stack((h, u, v)), -1) * per_x
        mass_y, mv_y, mu_y = self.difference(torch.stack((h, v, u)), -2) * per_y
        return -torch.stack((mass_x + mass_y, mu_x + mu_y, mv_x + mv_y), dim=1)

    def difference(self, fields: Tensor, axis: int) -> Tensor:
        """Flux out minus flux in along `axis` of fields [3, n, y, x], normal velocity second."""
        cells = fields.shape[axis]
        padded = pad(fields, axis, self.boundary)
        inner, half = padded.narrow(axis, 1, cells + 2), limited_half_slope(padded, axis)
        left = (inner + half).narrow(axis, 0, cells + 1)
        right = (inner - half).narrow(axis, 1, cells + 1)
        flux = hllc_flux(left, right, self.gravity)
        return flux.narrow(axis, 1, cells) - flux.narrow(axis, 0, cells)


def hllc_flux(left: Tensor, right: Tensor, gravity: float | Tensor) -> Tensor:
    """Flux of height, normal and transverse momentum [3, ...] between states [3, ...].

    HLL for the first two, with the outermost of the speeds of both states and their mean; the
    transverse momentum is carried by the flux of height from the side that it comes from.
    """
    (h_l, u_l, t_l), (h_r, u_r, t_r) = left, right
    wave_l, wave_r = (h_l * gravity).sqrt(), (h_r * gravity).sqrt()
    # Speed and wave speed in the middle of two rarefactions (Toro, eq. 10.18).
    u_m = (u_l + u_r) * 0.5 + (wave_l - wave_r)
    wave_m = (wave_l + wave_r) * 0.5 + (u_l - u_r) * 0.25
    low = torch.minimum(u_l - wave_l, u_m - wave_m).clamp_max(0.0)
    high = torch.maximum(u_r + wave_r, u_m + wave_m).clamp_min(0.0)
    mass_l, mass_r = h_l * u_l, h_r * u_r
    force_l = mass_l * u_l + h_l * h_l * (gravity * 0.5)
    force_r = mass_r * u_r + h_r * h_r * (gravity * 0.5)
    width = high - low
    mass = (mass_l * high - mass_r * low + (h_r - h_l) * (low * high)) / width
    force = (force_l * high - force_r * low + (mass_r - mass_l) * (low * high)) / width
    return torch.stack((mass, force, mass * torch.where(mass > 0.0, t_l, t_r)))
