"""The parts of a report that an evaluation does not measure: training, data, costs, and where from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from pelagos.evaluation.pages.figures.curves_figure import Panel

Facts = Mapping[str, str]
"""What is stated in a table of two columns, by its name."""


@dataclass(frozen=True)
class Story:
    """How a model was trained, on which data, and what that and its evaluation cost.

    Attributes:
        training: steps, samples, optimizer, losses.
        curves: panels of its learning curves; none where no step was recorded.
        data: each evaluated dataset's identity, by the dataset's name in the report.
        cost: times, rates, memory, all measured.
    """

    training: Facts = field(default_factory=dict)
    curves: Sequence[Panel] = ()
    data: Mapping[str, Facts] = field(default_factory=dict)
    cost: Facts = field(default_factory=dict)
