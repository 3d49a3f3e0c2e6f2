"""Incompressible flow between periodic boundaries: momentum, divergence, a passive tracer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from pelagos.data_pipelines.physics.equation import (
    Equation,
    Evolution,
    Fields,
    Parts,
    Problem,
    Scores,
    mean,
    norm,
)
from pelagos.data_pipelines.physics.grid import Grid


class DivergenceFree(Equation):
    """Of a flow whose forces or viscosity are not known: only that its velocity has no divergence.

    The divergence is measured as a share of the velocity's gradients in the data.
    """

    formula = "div u = 0"
    state = ("velocity-x", "velocity-y")

    def residuals(
        self, frames: Sequence[Fields], data: Sequence[Fields], interval: float, problem: Problem
    ) -> Scores:
        return {}

    def constraints(self, fields: Fields, data: Fields, problem: Problem) -> Scores:
        return divergence_share(fields, data, problem.grid)


class NavierStokes(Evolution):
    """Velocity form; the pressure goes by projecting on fields without divergence.

    D is nu Laplace plus, as in the data of Poseidon (arXiv 2405.19101), Tadmor's spectral viscosity
    eps (2 pi)^2 (|k|^2 - cutoff) on wave numbers |k|^2 > cutoff, k in periods per length. Spectral,
    products without aliases by the 2/3 rule. A tracer diffuses as the velocity does.
    """

    formula = "u_t + div(u u) + grad p = D u + f, div u = 0; of a tracer c_t + div(u c) = D c"
    state = ("velocity-x", "velocity-y")
    optional_state = ("tracer",)
    optional_given = ("forcing", "force-x", "force-y")  # `forcing` is along x
    defaults: ClassVar = {
        "viscosity": 0.0,
        "spectral_viscosity": 0.0,
        "spectral_viscosity_cutoff": 0.0,
    }

    def variables(self, fields: Fields, problem: Problem) -> Parts:
        grid = problem.grid
        parts = {"momentum": _solenoidal_part(grid, fields["velocity-x"], fields["velocity-y"])}
        if "tracer" in fields:
            parts["tracer"] = fields["tracer"][:, None]
        return parts

    def slope(self, fields: Fields, problem: Problem) -> Parts:
        grid = problem.grid
        u, v = fields["velocity-x"], fields["velocity-y"]
        by_y, by_x = grid.slopes(u)
        kept, damping = grid.resolved(u), _damping(problem, u)

        def divergence(along_x: Tensor, along_y: Tensor) -> Tensor:
            return (grid.transform(along_x) * by_x + grid.transform(along_y) * by_y) * kept

        force_x = fields.get("force-x", torch.zeros_like(u)) + fields.get("forcing", 0.0)
        force_y = fields.get("force-y", torch.zeros_like(u))
        spectra = torch.stack(
            (
                grid.transform(force_x) - divergence(u * u, u * v) - damping * grid.transform(u),
                grid.transform(force_y) - divergence(u * v, v * v) - damping * grid.transform(v),
            ),
            dim=1,
        )
        parts = {"momentum": _each(grid, grid.solenoidal(spectra))}
        if "tracer" in fields:
            c = fields["tracer"]
            rate = grid.field(-divergence(u * c, v * c) - damping * grid.transform(c))
            parts["tracer"] = rate[:, None]
        return parts

    def constraints(self, fields: Fields, data: Fields, problem: Problem) -> Scores:
        return divergence_share(fields, data, problem.grid)

    def totals(self, fields: Fields, problem: Problem) -> dict[str, tuple[Tensor, Tensor]]:
        found = {}
        if not set(self.optional_given) & set(fields):
            u, v = fields["velocity-x"], fields["velocity-y"]
            speed = mean((u * u + v * v).sqrt())
            found["momentum"] = (torch.stack((mean(u), mean(v)), dim=1), speed)
        if "tracer" in fields:
            c = fields["tracer"]
            found["tracer"] = (mean(c)[:, None], mean(c.abs()))
        return found


class Vorticity(Evolution):
    """Vorticity form: the velocity is that of the vorticity, with a mean of zero."""

    formula = "w_t + u . grad w = nu Laplace(w) + g, u = (-psi_y, psi_x), Laplace(psi) = w"
    state = ("vorticity",)
    optional_given = ("vorticity-forcing",)
    coefficients = ("viscosity",)

    def slope(self, fields: Fields, problem: Problem) -> Parts:
        grid, vorticity = problem.grid, fields["vorticity"]
        ky, kx = grid.wave_numbers(vorticity)
        by_y, by_x = grid.slopes(vorticity)
        square = kx * kx + ky * ky
        spectrum = grid.transform(vorticity)
        stream = torch.where(square > 0.0, -spectrum / square.clamp_min(1e-300), 0.0)
        u, v = grid.field(-by_y * stream), grid.field(by_x * stream)
        flux = grid.transform(u * vorticity) * by_x + grid.transform(v * vorticity) * by_y
        spread = -problem.coefficients["viscosity"] * square * spectrum
        rate = grid.field(spread - flux * grid.resolved(vorticity))
        return {"residual": (rate + fields.get("vorticity-forcing", 0.0))[:, None]}

    def constraints(self, fields: Fields, data: Fields, problem: Problem) -> Scores:
        """The vorticity of a periodic flow has no mean."""
        share = mean(fields["vorticity"]).abs() / norm(data["vorticity"])
        return {"mean": share}


def divergence_share(fields: Fields, data: Fields, grid: Grid) -> Scores:
    """rms div u over the rms of all first derivatives of the data's velocity."""
    divergence = grid.divergence(fields["velocity-x"], fields["velocity-y"])
    gradients = (*grid.gradient(data["velocity-x"]), *grid.gradient(data["velocity-y"]))
    return {"divergence": norm(divergence) / norm(torch.stack(gradients, dim=1))}


def _solenoidal_part(grid: Grid, u: Tensor, v: Tensor) -> Tensor:
    spectra = torch.stack((grid.transform(u), grid.transform(v)), dim=1)
    return _each(grid, grid.solenoidal(spectra))


def _each(grid: Grid, spectra: Tensor) -> Tensor:
    return torch.stack([grid.field(one) for one in spectra.unbind(1)], dim=1)


def _damping(problem: Problem, like: Tensor) -> Tensor:
    """Rates of D per mode, [batch, y, x/2 + 1]."""
    ky, kx = problem.grid.wave_numbers(like)
    square, c = kx * kx + ky * ky, problem.coefficients
    turns = (2.0 * torch.pi) ** 2
    high = (square - turns * c["spectral_viscosity_cutoff"]).clamp_min(0.0)
    return c["viscosity"] * square + c["spectral_viscosity"] * high
