"""Reaction and diffusion: Allen-Cahn, FitzHugh-Nagumo."""

from __future__ import annotations

import torch

from pelagos.data_pipelines.physics.equation import Evolution, Fields, Parts, Problem


class AllenCahn(Evolution):
    """Spectral Laplacian between periodic boundaries, of second order between closed ones."""

    formula = "u_t = D Laplace(u) - R u (u^2 - 1)"
    state = ("phase",)
    coefficients = ("diffusivity", "reaction_rate")
    boundaries = ("periodic", "no flux")

    def slope(self, fields: Fields, problem: Problem) -> Parts:
        phase, c = fields["phase"], problem.coefficients
        reaction = c["reaction_rate"] * phase * (1.0 - phase * phase)
        spread = c["diffusivity"] * problem.grid.laplacian(phase)
        return {"residual": (spread + reaction)[:, None]}


class FitzHughNagumo(Evolution):
    """The reaction-diffusion system of PDEBench (Takamoto et al., arXiv 2210.07182)."""

    formula = "u_t = D_u Laplace(u) + u - u^3 - k - v, v_t = D_v Laplace(v) + u - v"
    state = ("activator", "inhibitor")
    coefficients = ("activator_diffusivity", "inhibitor_diffusivity", "activator_loss")
    boundaries = ("periodic", "no flux")

    def slope(self, fields: Fields, problem: Problem) -> Parts:
        u, v, c = fields["activator"], fields["inhibitor"], problem.coefficients
        of_u = c["activator_diffusivity"] * problem.grid.laplacian(u)
        of_v = c["inhibitor_diffusivity"] * problem.grid.laplacian(v)
        return {
            "activator": torch.stack((of_u + u - u**3 - c["activator_loss"] - v,), dim=1),
            "inhibitor": torch.stack((of_v + u - v,), dim=1),
        }

    def variables(self, fields: Fields, problem: Problem) -> Parts:
        return {name: fields[name][:, None] for name in self.state}
