"""The wave equation, constant or variable speed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from pelagos.data_pipelines.physics.equation import Equation, Fields, Problem, Scores, norm

MARGIN = 1  # cells next to a boundary where the flux of the absorbing condition enters


class Wave(Equation):
    """(u2 - 2 u1 + u0)/dt^2 - (F0 + 10 F1 + F2)/12, F = (c/L)^2 Laplace(u).

    Numerov's rule, of fourth order in the interval; differences of second order in space.

    `speed` is the field c, or the coefficient `speed` where it is the same everywhere; `length` is
    L, the size of a unit of length in the unit of c. Next to absorbing boundaries the outermost
    cells are left out, as the condition there needs u_t.
    """

    formula = "u_tt = (c/L)^2 Laplace(u)"
    state = ("displacement",)
    optional_given = ("speed",)
    defaults: ClassVar = {"speed": 1.0, "domain_metres": 1.0}
    boundaries = ("periodic", "absorbing")
    num_frames = 3

    def residuals(
        self, frames: Sequence[Fields], data: Sequence[Fields], interval: float, problem: Problem
    ) -> Scores:
        forces = [self._force(fields, problem) for fields in frames]
        smoothed = (forces[0] + 10.0 * forces[1] + forces[2]) / 12.0
        defect = _second_difference(frames, interval) - smoothed
        change = _second_difference(data, interval)
        if not problem.grid.is_periodic:
            inner = slice(MARGIN, -MARGIN)
            defect, change = defect[:, inner, inner], change[:, inner, inner]
        return {"residual": norm(defect) / norm(change)}

    def _force(self, fields: Fields, problem: Problem) -> Tensor:
        speed = fields.get("speed", problem.coefficients["speed"])
        speed = speed / problem.coefficients["domain_metres"]
        u = fields["displacement"]
        per_y, per_x = problem.grid.cells_per_length
        # Wraps around; next to absorbing boundaries those cells are left out.
        across = u.roll(1, -1) - 2.0 * u + u.roll(-1, -1)
        up = u.roll(1, -2) - 2.0 * u + u.roll(-1, -2)
        return speed * speed * (across * per_x**2 + up * per_y**2)


def _second_difference(frames: Sequence[Fields], interval: float) -> Tensor:
    before, now, after = (torch.as_tensor(fields["displacement"]) for fields in frames)
    return (after - 2.0 * now + before) / interval**2
