"""Score a model on trajectories it has not seen, next to forecasts that need no model.

These are persistence, the initial frame held still, and the mean of the dataset's training split.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pelagos.evaluation.forecasting import rollout
from pelagos.evaluation.forecasting.given_fields import GivenField
from pelagos.evaluation.forecasting.physics import Physics, PhysicsMeasure
from pelagos.evaluation.forecasting.rollout import Predict
from pelagos.evaluation.forecasting.scores import (
    BoolArray,
    DatasetEvaluation,
    ExampleForecast,
    FloatArray,
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
    """Forecast every trajectory from ``start_frame`` and score the forecasts at the lead steps.

    ``predict(frames [B, C, *grid] normalised, lead_time [B] physical)`` gives the normalised frame
    that much later. With ``input_frames`` F > 1 it is given ``[B, F, C, *grid]``, the frames from
    ``start_frame`` on, ``rollout_step`` apart, and leads count from the last of them. Errors are
    those of physical values. Memory is bounded by ``batch_size`` trajectories of the frames from
    the first input to the longest lead, and the ``num_examples`` kept for pictures. With
    ``ensemble_size`` > 1, models of one frame also forecast by so many ways to each lead. With
    ``physics``, forecasts are also held against the data's equation, which takes forecasts at the
    steps before the leads; ``physics_note`` says why there is none.

    Raises ValueError for lead steps beyond the trajectory's end or not on the rollout's steps.
    """
    leads = tuple(sorted(set(lead_steps)))
    rollout.check_rollout_step(leads, rollout_step)
    if not trajectories or batch_size < 1:
        raise ValueError(
            f"evaluation of {data.name} needs trajectories and a positive batch size, got "
            f"{len(trajectories)} trajectories and batch_size={batch_size}"
        )
    history = (input_frames - 1) * rollout_step
    last = start_frame + history + leads[-1]
    if start_frame < 0 or last >= data.num_frames:
        before = f" + {input_frames - 1} earlier frames({history})" if history else ""
        raise ValueError(
            f"start_frame({start_frame}){before} + longest lead({leads[-1]}) = {last} "
            f"must be below the {data.num_frames} frames of {data.name}"
        )
    total = _Totals(given=data.given)
    measure = None if physics is None else PhysicsMeasure(physics, leads, rollout_step)
    made = leads if measure is None else measure.leads_needed()
    scored = [made.index(lead) for lead in leads]
    with torch.no_grad():
        for start in range(0, len(trajectories), batch_size):
            chosen = trajectories[start : start + batch_size]
            frames = range(start_frame, last + 1)
            read = torch.stack([data.read(index, frames) for index in chosen])
            truth = data.filled(read).to(device)
            _look_at_given(total, data, truth)
            forecasts = _forecasts(
                predict, data, truth, made, rollout_step, input_frames, ensemble_size
            )
            if measure is not None:
                judged = {k: v for k, v in forecasts.items() if k not in _WITHOUT_PHYSICS}
                measure.add(data, truth, judged, made, history, chosen)
            forecasts = {method: values[:, scored] for method, values in forecasts.items()}
            targets = [history + lead for lead in leads]
            _score(total, data, truth[:, targets], forecasts)
            for row in range(max(0, min(len(chosen), num_examples - start))):
                total.examples.append(
                    _example(data, chosen[row], truth[row, history:], leads, forecasts, row)
                )
    count = len(trajectories)
    return DatasetEvaluation(
        data=data,
        trajectories=tuple(int(index) for index in trajectories),
        start_frame=start_frame,
        initial_frame=start_frame + history,
        lead_steps=leads,
        rollout_step=rollout_step,
        scores={
            method: {metric: np.concatenate(parts) for metric, parts in by_metric.items()}
            for method, by_metric in total.scores.items()
        },
        spectra={method: value / count for method, value in total.spectra.items()},
        examples=total.examples,
        undefined={metric: np.concatenate(parts) for metric, parts in total.undefined.items()},
        physics=None if measure is None else measure.finish(),
        physics_note=physics_note,
        given=total.given,
    )


@dataclass
class _Totals:
    """What accumulates over batches."""

    given: tuple[GivenField, ...] = ()
    scores: dict[str, dict[str, list[FloatArray]]] = field(default_factory=dict)
    undefined: dict[str, list[BoolArray]] = field(default_factory=dict)
    spectra: dict[str, FloatArray] = field(default_factory=dict)
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
    """Normalised forecasts ``[B, L, C, *grid]`` of every method, in the order of METHODS."""
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


def _look_at_given(total: _Totals, data: EvaluationData, truth: Tensor) -> None:
    """Note what trajectories, normalised ``[B, T, C, *grid]``, do with fields that are in no error."""
    if total.given:
        physical = data.to_physical(truth)
        total.given = tuple(g.seen(physical[:, :, data.fields.index(g.name)]) for g in total.given)


def _score(
    total: _Totals,
    data: EvaluationData,
    target: Tensor,
    forecasts: Mapping[str, Tensor],
) -> None:
    """Add errors and spectra of a batch, all ``[B, L, C, *grid]``."""
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
        total.undefined.setdefault(metric, []).append(torch.stack(marks, dim=-1).cpu().numpy())
    for method, values in physical.items():
        parts = [values[:, :, channels] for channels in groups]
        if method not in _WITHOUT_SPECTRA:
            # A vector's spectrum is the sum of its components'.
            spectra = [energy_spectrum(part, dimensions).sum(2).sum(0) for part in parts]
            summed = torch.stack(spectra, dim=1).cpu().numpy()
            total.spectra[method] = total.spectra.get(method, np.zeros_like(summed)) + summed
        if method == "truth":
            continue
        by_metric = total.scores.setdefault(method, {})
        for metric in METRICS:
            scores = [
                masked_scores.score(metric, part, true, points, dimensions)
                for part, true, points in zip(parts, truth, there, strict=True)
            ]
            by_metric.setdefault(metric, []).append(torch.stack(scores, dim=-1).cpu().numpy())


def _example(
    data: EvaluationData,
    trajectory: int,
    truth: Tensor,
    leads: Sequence[int],
    forecasts: Mapping[str, Tensor],
    row: int,
) -> ExampleForecast:
    def physical(values: Tensor, like: Tensor) -> npt.NDArray[np.float32]:
        """NaN where ``like`` has no value."""
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
