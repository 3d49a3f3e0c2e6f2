"""Score a model on trajectories it has not seen, next to forecasts that need no model.

These are persistence, the initial frame held still, and the mean of the dataset's training split.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pelagos.evaluation.forecasting import rollout
from pelagos.evaluation.forecasting.batches import measure_here
from pelagos.evaluation.forecasting.given_fields import GivenField
from pelagos.evaluation.forecasting.physics import Physics, PhysicsMeasure
from pelagos.evaluation.forecasting.rollout import Predict
from pelagos.evaluation.forecasting.scores import (
    BoolArray,
    DatasetEvaluation,
    ExampleForecast,
    FloatArray,
    typical_trajectories,
)
from pelagos.evaluation.forecasting.view import EvaluationData
from pelagos.evaluation.measures import masked_scores
from pelagos.evaluation.measures.metrics import METRICS, energy_spectrum

_WITHOUT_PHYSICS = ("mean", "previous_frame")
_WITHOUT_SPECTRA = ("mean", "one_step", "previous_frame")


def evaluate_dataset(
    predict: Predict,
    data: EvaluationData,
    trajectories: Sequence[int],
    lead_steps: Sequence[int],
    *,
    rollout_step: int = 1,
    start_frame: int = 0,
    input_frames: int = 1,
    batch_size: int = 8,
    num_examples: int = 1,
    ensemble_size: int = 0,
    physics: Physics | None = None,
    physics_note: str = "",
    device: torch.device | str = "cpu",
) -> DatasetEvaluation:
    """Forecast every trajectory from `start_frame` and score the forecasts at the lead steps.

    `predict(frames [B, C, *grid] normalised, lead_time [B] physical)` gives the normalised frame
    that much later. With `input_frames` F > 1 it is given `[B, F, C, *grid]`, the frames from
    `start_frame` on, `rollout_step` apart, and leads count from the last of them. Errors are
    those of physical values. Memory is bounded by twice `batch_size` trajectories of the frames
    from the first input to the longest lead (the next batch is read meanwhile), and the
    `num_examples` kept for pictures. With `ensemble_size` > 1, models of one frame also forecast
    by that many ways to each lead. With `physics`, forecasts are also held against the data's
    equation, which takes forecasts at the steps before the leads; `physics_note` says why there
    is none.

    Raises ValueError for lead steps beyond the trajectory's end or not on the rollout's steps.
    """
    measurement = ForecastMeasurement(
        predict,
        data,
        trajectories,
        lead_steps,
        rollout_step=rollout_step,
        start_frame=start_frame,
        input_frames=input_frames,
        batch_size=batch_size,
        num_examples=num_examples,
        ensemble_size=ensemble_size,
        physics=physics,
        physics_note=physics_note,
        device=device,
    )
    (evaluation,) = measure_here([measurement])
    found: DatasetEvaluation = evaluation
    return found


class ForecastMeasurement:
    """The forecasts of one dataset, batch by batch: arguments and errors as `evaluate_dataset`."""

    def __init__(
        self,
        predict: Predict,
        data: EvaluationData,
        trajectories: Sequence[int],
        lead_steps: Sequence[int],
        *,
        rollout_step: int = 1,
        start_frame: int = 0,
        input_frames: int = 1,
        batch_size: int = 8,
        num_examples: int = 1,
        ensemble_size: int = 0,
        physics: Physics | None = None,
        physics_note: str = "",
        typical_examples: bool = False,
        device: torch.device | str = "cpu",
    ) -> None:
        """`typical_examples`: keep the median, worst and best trajectory, not `num_examples`."""
        self.predict, self.data, self.trajectories = predict, data, trajectories
        self.leads = tuple(sorted(set(lead_steps)))
        self.rollout_step, self.input_frames = rollout_step, input_frames
        self.start_frame, self.batch_size = start_frame, batch_size
        self.num_examples, self.ensemble_size = num_examples, ensemble_size
        self.physics, self.physics_note, self.device = physics, physics_note, device
        self.typical_examples = typical_examples
        self._check()

    def _check(self) -> None:
        data, trajectories, leads = self.data, self.trajectories, self.leads
        rollout.check_rollout_step(leads, self.rollout_step)
        if not trajectories or self.batch_size < 1:
            raise ValueError(
                f"evaluation of {data.name} needs trajectories and a positive batch size, got "
                f"{len(trajectories)} trajectories and batch_size={self.batch_size}"
            )
        history, start = self.history, self.start_frame
        last = start + history + leads[-1]
        if start < 0 or last >= data.num_frames:
            before = f" + {self.input_frames - 1} earlier frames({history})" if history else ""
            raise ValueError(
                f"start_frame({start}){before} + longest lead({leads[-1]}) = {last} "
                f"must be below the {data.num_frames} frames of {data.name}"
            )

    @property
    def history(self) -> int:
        """Frames from the first input to the last, from which leads count."""
        return (self.input_frames - 1) * self.rollout_step

    @property
    def num_batches(self) -> int:
        return -(-len(self.trajectories) // self.batch_size)

    def read(self, batch: int) -> Tensor:
        """Return normalised frames `[B, T, C, *grid]`, 0 where they have no value."""
        last = self.start_frame + self.history + self.leads[-1]
        frames = range(self.start_frame, last + 1)
        chosen = self._chosen(batch)
        return self.data.filled(torch.stack([self.data.read(index, frames) for index in chosen]))

    @torch.no_grad()
    def measure(self, batch: int, read: Tensor) -> ForecastPart:
        """Return the scores of a batch."""
        data, chosen, leads = self.data, self._chosen(batch), self.leads
        truth = read.to(self.device)
        part = ForecastPart(given=_look_at_given(data, truth))
        measure = self._physics_measure()
        made = leads if measure is None else measure.leads_needed()
        forecasts = _forecasts(
            self.predict,
            data,
            truth,
            made,
            self.rollout_step,
            self.input_frames,
            self.ensemble_size,
        )
        if measure is not None:
            judged = {k: v for k, v in forecasts.items() if k not in _WITHOUT_PHYSICS}
            measure.add(data, truth, judged, made, self.history, chosen)
            part.physics = measure.parts
        scored = [made.index(lead) for lead in leads]
        forecasts = {method: values[:, scored] for method, values in forecasts.items()}
        targets = [self.history + lead for lead in leads]
        _score(part, data, truth[:, targets], forecasts)
        start = batch * self.batch_size
        num_examples = 0 if self.typical_examples else self.num_examples
        for row in range(max(0, min(len(chosen), num_examples - start))):
            part.examples.append(
                _example(data, chosen[row], truth[row, self.history :], leads, forecasts, row)
            )
        return part

    def examples_of(self, ranked: Mapping[str, int]) -> list[ExampleForecast]:
        """Return the forecasts of trajectories, by what they are an example of, made once more.

        Which ones are typical is known at the end alone, when their forecasts are gone.
        """
        again = ForecastMeasurement(
            self.predict,
            self.data,
            list(ranked.values()),
            self.leads,
            rollout_step=self.rollout_step,
            start_frame=self.start_frame,
            input_frames=self.input_frames,
            batch_size=self.batch_size,
            num_examples=len(ranked),
            ensemble_size=self.ensemble_size,
            device=self.device,
        )
        parts = [again.measure(batch, again.read(batch)) for batch in range(again.num_batches)]
        examples = [example for part in parts for example in part.examples]
        return [replace(e, rank=rank) for rank, e in zip(ranked, examples, strict=True)]

    def combine(self, parts: Sequence[ForecastPart]) -> DatasetEvaluation:
        """Return the evaluation, of the parts of all batches in order."""
        given = self.data.given
        spectra: dict[str, FloatArray] = {}
        measure = self._physics_measure()
        for part in parts:
            given = tuple(g.and_of(seen) for g, seen in zip(given, part.given, strict=True))
            for method, summed in part.spectra.items():
                spectra[method] = spectra.get(method, np.zeros_like(summed)) + summed
            if measure is not None:
                measure.take(part.physics)
        found = DatasetEvaluation(
            data=self.data,
            trajectories=tuple(int(index) for index in self.trajectories),
            start_frame=self.start_frame,
            initial_frame=self.start_frame + self.history,
            lead_steps=self.leads,
            rollout_step=self.rollout_step,
            scores={
                method: {
                    metric: np.concatenate([part.scores[method][metric] for part in parts])
                    for metric in by_metric
                }
                for method, by_metric in parts[0].scores.items()
            },
            spectra={method: value / len(self.trajectories) for method, value in spectra.items()},
            examples=[example for part in parts for example in part.examples],
            undefined={
                metric: np.concatenate([part.undefined[metric] for part in parts])
                for metric in parts[0].undefined
            },
            physics=None if measure is None else measure.finish(),
            physics_note=self.physics_note,
            given=given,
        )
        if self.typical_examples:
            found.examples = self.examples_of(typical_trajectories(found))
        return found

    def _chosen(self, batch: int) -> Sequence[int]:
        start = batch * self.batch_size
        return self.trajectories[start : start + self.batch_size]

    def _physics_measure(self) -> PhysicsMeasure | None:
        if self.physics is None:
            return None
        return PhysicsMeasure(self.physics, self.leads, self.rollout_step)


@dataclass
class ForecastPart:
    """The result of one batch; arrays as in `DatasetEvaluation`, spectra summed over the batch."""

    given: tuple[GivenField, ...] = ()
    scores: dict[str, dict[str, FloatArray]] = field(default_factory=dict)
    undefined: dict[str, BoolArray] = field(default_factory=dict)
    spectra: dict[str, FloatArray] = field(default_factory=dict)
    physics: dict[str, dict[str, list[FloatArray]]] = field(default_factory=dict)
    examples: list[ExampleForecast] = field(default_factory=list)


def _forecasts(
    predict: Predict,
    data: EvaluationData,
    truth: Tensor,
    leads: Sequence[int],
    rollout_step: int,
    input_frames: int,
    ensemble_size: int,
) -> dict[str, Tensor]:
    """Normalised forecasts `[B, L, C, *grid]` of every method, in the order of METHODS."""
    present, interval = data.channel_mask.to(truth.device), data.frame_interval
    start = (input_frames - 1) * rollout_step
    initial = rollout.state_at(truth, start, rollout_step, input_frames)
    forecasts = {
        "autoregressive": rollout.autoregressive(
            predict, initial, leads, interval, present, rollout_step=rollout_step
        )
    }
    if input_frames == 1:
        forecasts["direct"] = rollout.direct(predict, initial, leads, interval, present)
    if input_frames == 1 and ensemble_size > 1:
        forecasts["ensemble"] = rollout.ensemble(
            predict,
            initial,
            leads,
            interval,
            present,
            num_members=ensemble_size,
            rollout_step=rollout_step,
        )
    return forecasts | {
        "one_step": rollout.one_step(
            predict,
            truth,
            leads,
            interval,
            present,
            rollout_step=rollout_step,
            input_frames=input_frames,
        ),
        "persistence": rollout.persistence(truth[:, start], leads),
        "mean": rollout.mean_field(data.mean_frame, truth[:, start], leads),
        "previous_frame": truth[:, [start + step - rollout_step for step in leads]],
    }


def _look_at_given(data: EvaluationData, truth: Tensor) -> tuple[GivenField, ...]:
    """Note the changes, in trajectories normalised `[B, T, C, *grid]`, of fields in no error."""
    if not data.given:
        return ()
    physical = data.to_physical(truth)
    return tuple(g.seen(physical[:, :, data.fields.index(g.name)]) for g in data.given)


def _score(
    part: ForecastPart,
    data: EvaluationData,
    target: Tensor,
    forecasts: Mapping[str, Tensor],
) -> None:
    """Fill in errors and spectra of a batch, all `[B, L, C, *grid]`."""
    valid = data.valid(target)
    frames = {"truth": target, **forecasts}
    if valid is not None:  # so that spectra compare the same points
        frames = {method: values.where(valid, 0.0) for method, values in frames.items()}
    physical = {method: data.to_physical(values) for method, values in frames.items()}
    groups, dimensions = [list(c) for c in data.groups.values()], data.num_dimensions
    truth = [physical["truth"][:, :, channels] for channels in groups]
    there = [
        None if valid is None or not set(c) & set(data.masks) else valid[:, :, c].all(2)
        for c in groups
    ]
    sizes = [math.hypot(*(data.size[c] for c in g)) / math.sqrt(len(g)) for g in groups]
    for metric in METRICS:
        marks = [
            masked_scores.undefined(metric, true, points, dimensions, size)
            for true, points, size in zip(truth, there, sizes, strict=True)
        ]
        part.undefined[metric] = torch.stack([m.cpu() for m in marks], dim=-1).numpy()
    for method, values in physical.items():
        fields = [values[:, :, channels] for channels in groups]
        if method not in _WITHOUT_SPECTRA:
            # A vector's spectrum is the sum of its components'.
            spectra = [energy_spectrum(f, dimensions).sum(2).sum(0) for f in fields]
            part.spectra[method] = torch.stack(spectra, dim=1).cpu().numpy()
        if method == "truth":
            continue
        by_metric = part.scores[method] = {}
        for metric in METRICS:
            scores = [
                masked_scores.score(metric, forecast, true, points, dimensions)
                for forecast, true, points in zip(fields, truth, there, strict=True)
            ]
            by_metric[metric] = torch.stack(scores, dim=-1).cpu().numpy()


def _example(
    data: EvaluationData,
    trajectory: int,
    truth: Tensor,
    leads: Sequence[int],
    forecasts: Mapping[str, Tensor],
    row: int,
) -> ExampleForecast:
    def physical(values: Tensor, like: Tensor) -> npt.NDArray[np.float32]:
        """NaN where `like` has no value."""
        shown, valid = data.to_physical(values).float(), data.valid(like)
        return np.asarray((shown if valid is None else shown.where(valid, torch.nan)).cpu().numpy())

    targets = truth[list(leads)]
    return ExampleForecast(
        trajectory=int(trajectory),
        initial=physical(truth[0], truth[0]),
        truth=physical(targets, targets),
        forecasts={
            method: physical(forecasts[method][row], targets)
            for method in ("autoregressive", "direct", "ensemble", "persistence")
            if method in forecasts
        },
    )
