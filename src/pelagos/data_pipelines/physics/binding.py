"""An equation on one dataset: its grid, its coefficients, and the places of its fields."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pelagos.data_pipelines.physics.equation import Equation, Fields, Problem, Scores
from pelagos.data_pipelines.physics.grid import Grid, boundary_of
from pelagos.data_pipelines.physics.registry import EQUATIONS
from pelagos.data_pipelines.store.readable import ReadableDataset
from pelagos.data_pipelines.store.schema import DatasetSpec

Coefficient = float | npt.NDArray[np.float64]  # one for all trajectories, or [trajectory]


class NoPhysics(ValueError):
    """A dataset, or the channels of a model, do not allow residuals; the message says why."""


@dataclass(frozen=True)
class DatasetPhysics:
    """Residuals, constraints and conserved totals of frames `[batch, channel, y, x]`.

    Frames hold physical values of a model's channels; `trajectories` are their numbers in the
    dataset, which have coefficients of their own. Every result is a name to numbers [batch].
    """

    name: str
    equation: Equation
    grid: Grid
    channels: Mapping[str, int]
    constants: Mapping[str, float]
    coefficients: Mapping[str, Coefficient]

    @property
    def formula(self) -> str:
        return self.equation.formula

    @property
    def num_frames(self) -> int:
        """Consecutive frames that one residual takes."""
        return self.equation.num_frames

    def residuals(
        self, frames: Tensor, data: Tensor, interval: float, trajectories: Sequence[int]
    ) -> Scores:
        """The residual of the equation, as a share of a norm of the data.

        Args:
            frames: `num_frames` consecutive frames, [batch, frame, channel, y, x].
            data: those of the dataset at the same times.
            interval: time between two frames.
        """
        problem = self._problem(trajectories, frames)
        given = [self._fields(frame) for frame in data.unbind(1)]
        pairs = zip(frames.unbind(1), given, strict=True)
        found = [self._forecast_fields(frame, fields) for frame, fields in pairs]
        return self.equation.residuals(found, given, interval, problem)

    def constraints(self, frame: Tensor, data: Tensor, trajectories: Sequence[int]) -> Scores:
        """A frame's violation of the constraint at each time, as a share of a norm of the data."""
        given = self._fields(data)
        fields = self._forecast_fields(frame, given)
        return self.equation.constraints(fields, given, self._problem(trajectories, frame))

    def drifts(self, frame: Tensor, initial: Tensor, trajectories: Sequence[int]) -> Scores:
        """By how much conserved quantities differ from those of the initial frame of the data."""
        given, problem = self._fields(initial), self._problem(trajectories, frame)
        now = self.equation.totals(self._forecast_fields(frame, given), problem)
        then = self.equation.totals(given, problem)
        return {
            name: (total - then[name][0]).square().sum(-1).sqrt() / then[name][1]
            for name, (total, _) in now.items()
        }

    def _fields(self, frame: Tensor) -> dict[str, Tensor]:
        fields = {name: frame[:, index].double() for name, index in self.channels.items()}
        like = frame[:, 0].double()
        return fields | {k: torch.full_like(like, value) for k, value in self.constants.items()}

    def _forecast_fields(self, frame: Tensor, data: Fields) -> dict[str, Tensor]:
        """The fields of a forecast, those that are given taken from the data."""
        known = {*self.equation.given, *self.equation.optional_given}
        fields = self._fields(frame)
        return {name: data[name] if name in known else value for name, value in fields.items()}

    def _problem(self, trajectories: Sequence[int], like: Tensor) -> Problem:
        def values(coefficient: Coefficient) -> Tensor:
            if isinstance(coefficient, float):
                chosen = np.full(len(trajectories), coefficient)
            else:
                chosen = coefficient[list(trajectories)]
            return torch.from_numpy(chosen).to(like.device)[:, None, None]

        return Problem(self.grid, {name: values(c) for name, c in self.coefficients.items()})


def dataset_physics(dataset: ReadableDataset, fields: Sequence[str]) -> DatasetPhysics:
    """Return the recorded equation of a dataset, on the channels of a model.

    Raises:
        NoPhysics: the dataset records no equation, or lacks something that it needs.
    """
    spec = dataset.spec
    name, equation = _equation(spec)
    if len(spec.grid_shape) != 2:
        raise NoPhysics(f"{spec.name} has {len(spec.grid_shape)} dimensions; residuals need two")
    height, width = spec.grid_shape
    tall, wide = spec.domain_extent
    conditions = spec.boundary_conditions
    boundary = (boundary_of(conditions, "y"), boundary_of(conditions, "x"))
    grid = Grid((height, width), (tall, wide), boundary)
    if grid.condition not in equation.boundaries:
        raise NoPhysics(
            f"{name} needs the boundaries {', '.join(equation.boundaries)}; {spec.name} has "
            f"{conditions or 'none recorded'}"
        )
    if spec.masks:
        raise NoPhysics(
            f"{', '.join(spec.masks)} of {spec.name} has points without a value, where derivatives "
            "are undefined"
        )
    channels, constants = _channels(spec, equation, fields)
    coefficients = _coefficients(dataset, name, equation)
    return DatasetPhysics(name, equation, grid, channels, constants, coefficients)


def _equation(spec: DatasetSpec) -> tuple[str, Equation]:
    if not spec.physics:
        raise NoPhysics(f"{spec.name} does not record which equation it solves")
    name = str(spec.physics["equation"])
    if name not in EQUATIONS:
        close = difflib.get_close_matches(name, EQUATIONS, n=1)
        hint = f'; did you mean "{close[0]}"?' if close else ""
        raise NoPhysics(
            f'{spec.name} records the equation "{name}"{hint}; known equations: '
            f"{', '.join(EQUATIONS)}"
        )
    return name, EQUATIONS[name]


def _channels(
    spec: DatasetSpec, equation: Equation, fields: Sequence[str]
) -> tuple[dict[str, int], dict[str, float]]:
    """The model's channels that the equation uses, and fields that are constant."""
    required = (*equation.state, *equation.given)
    optional = (*equation.optional_state, *equation.optional_given)
    renamed: Mapping[str, str] = spec.physics.get("fields", {})
    channels: dict[str, int] = {}
    constants: dict[str, float] = {}
    lacking: list[str] = []
    for name in (*required, *optional):
        stored = renamed.get(name, name)
        if stored in spec.field_names and stored in fields:
            channels[name] = list(fields).index(stored)
        elif stored in spec.constant_fields:
            constants[name] = float(spec.constant_fields[stored])
        elif name in required or stored in spec.field_names:
            lacking.append(stored)
    if lacking:
        raise NoPhysics(
            f"the equation of {spec.name} needs {', '.join(lacking)}, which the dataset does not "
            "store or the model does not take"
        )
    return channels, constants


def _coefficients(
    dataset: ReadableDataset, name: str, equation: Equation
) -> dict[str, Coefficient]:
    """Numbers of the record, and those that it names of the dataset's parameters."""
    spec = dataset.spec
    recorded: Mapping[str, Any] = spec.physics.get("coefficients", {})
    lacking = [key for key in equation.coefficients if key not in recorded]
    if lacking:
        raise NoPhysics(
            f"{name} needs the coefficients {', '.join(lacking)}; {spec.name} has "
            f"{', '.join(recorded) or 'none'}"
        )
    found: dict[str, Coefficient] = {}
    for key in (*equation.coefficients, *equation.defaults):
        value = recorded.get(key, equation.defaults.get(key))
        if isinstance(value, str):
            if value not in spec.parameter_names:
                raise NoPhysics(
                    f'{spec.name} names "{value}" as its parameter for "{key}"; it has '
                    f"{', '.join(spec.parameter_names) or 'none'}"
                )
            found[key] = np.asarray(dataset.parameters[value], dtype=np.float64)
        else:
            found[key] = float(value)
    return found
