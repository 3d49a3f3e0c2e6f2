"""Steady problems on a square with given boundary values: nothing is left to time."""

from __future__ import annotations

import torch
from torch import Tensor

from pelagos.data_pipelines.generate.elliptic import apply_elliptic
from pelagos.data_pipelines.physics.equation import Fields, Problem, Steady
from pelagos.data_pipelines.physics.grid import PERIODIC, Grid


class Poisson(Steady):
    """By sine transforms at cell centres, as a share of the source."""

    formula = "-Laplace(u) = f, u = 0 on the boundary"
    state = ("solution",)
    given = ("source",)
    boundaries = ("dirichlet",)

    def defect(self, fields: Fields, problem: Problem) -> Tensor:
        (height, width), (tall, wide) = problem.grid.shape, problem.grid.extent
        # Continued as an odd function, the solution is periodic on a square of twice the length.
        u = fields["solution"]
        upper = torch.cat((u, -u.flip(-2)), dim=-2)
        doubled = Grid((2 * height, 2 * width), (2.0 * tall, 2.0 * wide), (PERIODIC, PERIODIC))
        laplacian = doubled.laplacian(torch.cat((upper, -upper.flip(-1)), dim=-1))
        return -laplacian[:, :height, :width] - fields["source"]

    def scale(self, data: Fields, problem: Problem) -> Tensor:
        return data["source"]


class Helmholtz(Steady):
    """Finite volumes of second order, as a share of the term omega^2 a u of the data."""

    formula = "-Laplace(u) - omega^2 a u = 0, u = b on the boundary"
    state = ("solution",)
    given = ("coefficient", "boundary-value")
    coefficients = ("omega",)
    boundaries = ("dirichlet",)

    def defect(self, fields: Fields, problem: Problem) -> Tensor:
        reaction = fields["coefficient"] * -(problem.coefficients["omega"] ** 2)
        boundary = fields["boundary-value"].mean((-2, -1))
        ones = torch.ones_like(reaction)
        return apply_elliptic(ones, reaction, fields["solution"], boundary, problem.grid.extent)

    def scale(self, data: Fields, problem: Problem) -> Tensor:
        return data["coefficient"] * data["solution"] * problem.coefficients["omega"] ** 2


class Darcy(Steady):
    """Finite volumes of second order with harmonic means on faces, as a share of the source."""

    formula = "-div(a grad u) = f, u = 0 on the boundary, f one number"
    state = ("solution",)
    given = ("permeability",)
    coefficients = ("source",)
    boundaries = ("dirichlet",)

    def defect(self, fields: Fields, problem: Problem) -> Tensor:
        permeability = fields["permeability"]
        zero = torch.zeros_like(permeability)
        left = apply_elliptic(
            permeability, zero, fields["solution"], zero[:, 0, 0], problem.grid.extent
        )
        return left - problem.coefficients["source"]

    def scale(self, data: Fields, problem: Problem) -> Tensor:
        return torch.ones_like(data["permeability"]) * problem.coefficients["source"]
