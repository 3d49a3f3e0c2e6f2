"""An equation applied to stored frames: residuals, constraints without time, and conserved totals.

Frames are far apart compared with a solver's steps, so a residual on them measures the differences
in time as well as the fields. It is therefore divided by the rate of change of the data, and read
next to the same number of the data itself: 0 is a flow that obeys the equation, 1 a defect as large as
all that happens in the data. The forecast that nothing changes has a residual of about 1.
"""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pelagos.data_pipelines.physics.grid import Grid, block_means

Fields = Mapping[str, Tensor]
"""Name to values [batch, y, x], physical units, double precision."""
Parts = dict[str, Tensor]
"""Name of a balance (`mass`, `momentum`, …) to [batch, component, y, x]."""
Scores = dict[str, Tensor]
"""Name of a number to [batch]."""


@dataclass(frozen=True)
class Problem:
    """An equation's grid and coefficients, each [batch, 1, 1]."""

    grid: Grid
    coefficients: Mapping[str, Tensor]


class Equation(abc.ABC):
    """An equation, which knows no dataset: subclasses define its inputs and its residual.

    Class attributes:
        formula: the equation, for people.
        state: fields that a forecast has to hold.
        given: fields that a dataset has to hold, which are never a forecast's own (a speed of
            sound, a source): they are taken from the data.
        optional_state, optional_given: the same, where a dataset has them.
        coefficients: numbers that a dataset has to record.
        defaults: numbers that it may record, and their values otherwise.
        boundaries: conditions under which the operators are right, the same on both axes.
        num_frames: consecutive frames that one residual takes.
    """

    formula: ClassVar[str]
    state: ClassVar[tuple[str, ...]]
    given: ClassVar[tuple[str, ...]] = ()
    optional_state: ClassVar[tuple[str, ...]] = ()
    optional_given: ClassVar[tuple[str, ...]] = ()
    coefficients: ClassVar[tuple[str, ...]] = ()
    defaults: ClassVar[Mapping[str, float]] = {}
    boundaries: ClassVar[tuple[str, ...]] = ("periodic",)
    num_frames: ClassVar[int] = 2

    @abc.abstractmethod
    def residuals(
        self, frames: Sequence[Fields], data: Sequence[Fields], interval: float, problem: Problem
    ) -> Scores:
        """Norms of the residual at `num_frames` consecutive frames, `interval` apart.

        Divided by a norm of the data at the same times.
        """

    def constraints(self, fields: Fields, data: Fields, problem: Problem) -> Scores:
        """The constraint at each time, 0 where it holds, as a share of a norm of the data."""
        return {}

    def totals(self, fields: Fields, problem: Problem) -> dict[str, tuple[Tensor, Tensor]]:
        """Conserved quantities [batch, component], and sizes [batch] to compare changes with."""
        return {}


class Evolution(Equation):
    """q_t = F(q): (q1 - q0)/dt - (F(q0) + F(q1))/2, of second order in the interval.

    Of conservation laws with shocks (`control_volumes`), where the rate of change at a point has no
    bound, the same in integral form: means over that many blocks per axis, each the balance of a
    volume and the flux through its border.
    """

    control_volumes: ClassVar[int | None] = None

    def variables(self, fields: Fields, problem: Problem) -> Parts:
        """q of the fields."""
        return {"residual": torch.stack([fields[name] for name in self.state], dim=1)}

    @abc.abstractmethod
    def slope(self, fields: Fields, problem: Problem) -> Parts:
        """F, of the same parts."""

    def residuals(
        self, frames: Sequence[Fields], data: Sequence[Fields], interval: float, problem: Problem
    ) -> Scores:
        before, after = (self.variables(fields, problem) for fields in frames)
        data_before, data_after = (self.variables(fields, problem) for fields in data)
        first, last = (self.slope(fields, problem) for fields in frames)
        scores = {}
        for part in before:
            rate = (after[part] - before[part]) / interval
            defect = rate - (first[part] + last[part]) * 0.5
            change = (data_after[part] - data_before[part]) / interval
            scores[part] = self._norm(defect) / self._norm(change)
        return scores

    def _norm(self, values: Tensor) -> Tensor:
        return norm(values if (n := self.control_volumes) is None else block_means(values, n))


class Steady(Equation):
    """An equation without time: its residual at every point, exact but for the grid."""

    num_frames = 1

    @abc.abstractmethod
    def defect(self, fields: Fields, problem: Problem) -> Tensor:
        """Left minus right side, [batch, y, x]."""

    @abc.abstractmethod
    def scale(self, data: Fields, problem: Problem) -> Tensor:
        """A term of the equation on the data, whose norm is the unit, [batch, y, x]."""

    def residuals(
        self, frames: Sequence[Fields], data: Sequence[Fields], interval: float, problem: Problem
    ) -> Scores:
        defect = self.defect(frames[-1], problem)
        return {"residual": norm(defect) / norm(self.scale(data[-1], problem))}


def norm(values: Tensor) -> Tensor:
    """Root mean square over all but the first axis, of a vector the sum of squares, [batch]."""
    squares = values.square().mean((-2, -1))
    return (squares.sum(1) if squares.ndim == 2 else squares).sqrt()


def mean(field: Tensor) -> Tensor:
    """Mean over space, [batch, y, x] to [batch]."""
    return field.mean((-2, -1))
