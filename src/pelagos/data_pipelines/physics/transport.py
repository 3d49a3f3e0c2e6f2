"""Linear transport: heat and advection of one scalar."""

from __future__ import annotations

import torch
from torch import Tensor

from pelagos.data_pipelines.physics.equation import Evolution, Fields, Parts, Problem, mean


class Heat(Evolution):
    """Between periodic boundaries spectral, between closed ones of second order."""

    formula = "u_t = D Laplace(u)"
    state = ("temperature",)
    coefficients = ("diffusivity",)
    boundaries = ("periodic", "no flux")

    def slope(self, fields: Fields, problem: Problem) -> Parts:
        slope = problem.coefficients["diffusivity"] * problem.grid.laplacian(fields["temperature"])
        return {"residual": slope[:, None]}

    def totals(self, fields: Fields, problem: Problem) -> dict[str, tuple[Tensor, Tensor]]:
        return {"heat": scalar_total(fields["temperature"])}


class Advection(Evolution):
    """A constant velocity; spectral."""

    formula = "u_t + a u_x + b u_y = 0"
    state = ("concentration",)
    coefficients = ("velocity-x", "velocity-y")

    def slope(self, fields: Fields, problem: Problem) -> Parts:
        along_x, along_y = problem.grid.gradient(fields["concentration"])
        c = problem.coefficients
        return {"residual": -(c["velocity-x"] * along_x + c["velocity-y"] * along_y)[:, None]}

    def totals(self, fields: Fields, problem: Problem) -> dict[str, tuple[Tensor, Tensor]]:
        return {"mass": scalar_total(fields["concentration"])}


def scalar_total(field: Tensor) -> tuple[Tensor, Tensor]:
    """Mean of a field [batch, 1] and, to compare its changes with, the mean of its size."""
    return torch.stack((mean(field),), dim=1), mean(field.abs())
