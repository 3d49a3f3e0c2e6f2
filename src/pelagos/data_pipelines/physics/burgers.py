"""Burgers' equation of a velocity on a periodic domain."""

from __future__ import annotations

import torch

from pelagos.data_pipelines.physics.equation import Evolution, Fields, Parts, Problem


class Burgers(Evolution):
    """Viscous; spectral derivatives, products without aliases by the 2/3 rule."""

    formula = "u_t + (u . grad) u = nu Laplace(u)"
    state = ("velocity-x", "velocity-y")
    coefficients = ("viscosity",)

    def slope(self, fields: Fields, problem: Problem) -> Parts:
        grid, viscosity = problem.grid, problem.coefficients["viscosity"]
        u, v = fields["velocity-x"], fields["velocity-y"]
        kept = grid.resolved(u)
        slopes = []
        for component in (u, v):
            along_x, along_y = grid.gradient(component)
            carried = grid.field(grid.transform(u * along_x + v * along_y) * kept)
            slopes.append(viscosity * grid.laplacian(component) - carried)
        return {"residual": torch.stack(slopes, dim=1)}
