"""The compressible Euler equations of an ideal gas, and shallow water: balances of volumes.

The slopes are those of our finite-volume solvers, with their limiters, so that the residual of our
data is due to the interval of its frames alone. Shocks move by many cells in an interval, so that a
residual at a point would be as large as the flow; balances are taken over 8 x 8 control volumes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pelagos.data_pipelines.generate.euler import euler_slope, to_conserved
from pelagos.data_pipelines.generate.muscl import Boundary
from pelagos.data_pipelines.generate.shallow_water import shallow_water_slope, to_momenta
from pelagos.data_pipelines.physics.equation import Evolution, Fields, Parts, Problem, mean
from pelagos.data_pipelines.physics.grid import Grid

NUM_CONTROL_VOLUMES = 8  # per axis


class Euler(Evolution):
    """Mass, momentum and energy; with a potential, in its gravity."""

    formula = (
        "rho_t + div(rho u) = 0, (rho u)_t + div(rho u u) + grad p = 0, E_t + div((E + p) u) = 0; "
        "of a potential phi -rho grad phi and -rho u . grad phi on the right"
    )
    state = ("density", "velocity-x", "velocity-y", "pressure")
    optional_given = ("potential",)
    coefficients = ("gamma",)
    boundaries = ("periodic", "outflow")
    control_volumes = NUM_CONTROL_VOLUMES

    def variables(self, fields: Fields, problem: Problem) -> Parts:
        return _balances(to_conserved(_primitive(self, fields), problem.coefficients["gamma"]))

    def slope(self, fields: Fields, problem: Problem) -> Parts:
        slope = euler_slope(
            _primitive(self, fields),
            problem.coefficients["gamma"],
            boundary_condition(problem.grid),
            problem.grid.cells_per_length,
        )
        return _balances(slope + _gravity(fields, problem.grid) if "potential" in fields else slope)

    def totals(self, fields: Fields, problem: Problem) -> dict[str, tuple[Tensor, Tensor]]:
        if not problem.grid.is_periodic:
            return {}
        q = to_conserved(_primitive(self, fields), problem.coefficients["gamma"])
        mass, energy = mean(q[:, 0]), mean(q[:, 3])
        if "potential" in fields:  # which takes and gives momentum and energy
            return {"mass": (mass[:, None], mass)}
        # A gas at rest has no momentum to compare with; sqrt(mass * energy) is one of its size.
        return {
            "mass": (mass[:, None], mass),
            "momentum": (torch.stack((mean(q[:, 1]), mean(q[:, 2])), 1), (mass * energy).sqrt()),
            "energy": (energy[:, None], energy),
        }


class ShallowWater(Evolution):
    """Mass and momentum of water over a flat bottom."""

    formula = "h_t + div(h u) = 0, (h u)_t + div(h u u) + g grad(h^2)/2 = 0"
    state = ("height", "velocity-x", "velocity-y")
    coefficients = ("gravity",)
    boundaries = ("periodic", "outflow")
    control_volumes = NUM_CONTROL_VOLUMES

    def variables(self, fields: Fields, problem: Problem) -> Parts:
        return _balances(to_momenta(_primitive(self, fields)))

    def slope(self, fields: Fields, problem: Problem) -> Parts:
        return _balances(
            shallow_water_slope(
                _primitive(self, fields),
                problem.coefficients["gravity"],
                boundary_condition(problem.grid),
                problem.grid.cells_per_length,
            )
        )

    def totals(self, fields: Fields, problem: Problem) -> dict[str, tuple[Tensor, Tensor]]:
        if not problem.grid.is_periodic:
            return {}
        h, mu, mv = to_momenta(_primitive(self, fields)).unbind(1)
        wave = (problem.coefficients["gravity"].reshape(-1) * mean(h)).sqrt()
        momentum = torch.stack((mean(mu), mean(mv)), 1)
        return {"mass": (mean(h)[:, None], mean(h)), "momentum": (momentum, mean(h) * wave)}


def _primitive(equation: Evolution, fields: Fields) -> Tensor:
    return torch.stack([fields[name] for name in equation.state], dim=1)


def boundary_condition(grid: Grid) -> Boundary:
    """The condition of all sides, in the words of the solvers."""
    return "periodic" if grid.is_periodic else "outflow"


def _gravity(fields: Fields, grid: Grid) -> Tensor:
    """-rho grad phi and -rho u . grad phi without a source of mass, central differences."""
    per_y, per_x = grid.cells_per_length
    rho, potential = fields["density"], fields["potential"]
    along_x = rho * (potential.roll(1, -1) - potential.roll(-1, -1)) * (0.5 * per_x)
    along_y = rho * (potential.roll(1, -2) - potential.roll(-1, -2)) * (0.5 * per_y)
    work = fields["velocity-x"] * along_x + fields["velocity-y"] * along_y
    return torch.stack((torch.zeros_like(rho), along_x, along_y, work), dim=1)


def _balances(conserved: Tensor) -> Parts:
    parts = {"mass": conserved[:, :1], "momentum": conserved[:, 1:3]}
    return parts | ({"energy": conserved[:, 3:]} if conserved.shape[1] == 4 else {})
