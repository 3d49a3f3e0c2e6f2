"""Score a model on trajectories it has not seen, beside the forecast that nothing changes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pelagos.platform.evaluation import rollout
from pelagos.platform.evaluation.metrics import METRICS, energy_spectrum
from pelagos.platform.evaluation.physics import Physics, PhysicsMeasure, PhysicsScores
from pelagos.platform.evaluation.rollout import Predict
from pelagos.platform.evaluation.rollout_windows import WindowScore
from pelagos.platform.evaluation.view import EvaluationData

FloatArray = npt.NDArray[np.float64]

MODEL_METHODS = ("autoregressive", "direct", "ensemble", "one_step")
METHODS = (*MODEL_METHODS, "persistence", "previous_frame")


@dataclass
class ExampleForecast:
    """One trajectory kept for pictures, physical units, ``[L, C, *grid]`` at the lead steps."""

    trajectory: int
    initial: npt.NDArray[np.float32]
    truth: npt.NDArray[np.float32]
    forecasts: dict[str, npt.NDArray[np.float32]]


@dataclass
class DatasetEvaluation:
    """Every score of one dataset.

    ``scores[method][metric]`` is ``[trajectory, lead, group]``; ``spectra[method]`` the mean
    energy spectrum ``[lead, group, k]`` of truth and forecasts. Methods: ``autoregressive``,
    ``direct``, ``ensemble`` and ``one_step`` of the model; ``persistence`` (the initial frame) and
    ``previous_frame`` (the frame ``rollout_step`` before the target, beside ``one_step``). Models
    that take several frames have no lead time to choose, and make no ``direct`` forecasts.
    ``physics`` is None where the data's equation is not known; ``physics_note`` then says why.
    ``windows``: VRMSE over windows of the rollout that were asked for (``window_scores``).
    """

    data: EvaluationData
    trajectories: tuple[int, ...]
    start_frame: int
    lead_steps: tuple[int, ...]
    rollout_step: int
    scores: dict[str, dict[str, FloatArray]]
    spectra: dict[str, FloatArray]
    examples: list[ExampleForecast] = field(default_factory=list)
    physics: PhysicsScores | None = None
    physics_note: str = ""
    windows: list[WindowScore] = field(default_factory=list)

    @property
    def group_names(self) -> tuple[str, ...]:
        return tuple(self.data.groups)

    @property
    def methods(self) -> tuple[str, ...]:
        """The methods that were scored, in the order of ``METHODS``."""
        return tuple(method for method in METHODS if method in self.scores)

    @property
    def forecast_methods(self) -> tuple[str, ...]:
        """The model's ways to the lead times: of ``direct``, ``autoregressive``, ``ensemble``."""
        return tuple(m for m in ("direct", "autoregressive", "ensemble") if m in self.scores)

    @property
    def lead_times(self) -> tuple[float, ...]:
        """Physical lead time of each lead step."""
        return tuple(step * self.data.frame_interval for step in self.lead_steps)

    def quantile(self, method: str, metric: str, q: float = 0.5) -> FloatArray:
        """A quantile over trajectories, ``[lead, group]``; the median by default.

        Scores that are not finite count as infinitely bad.
        """
        scores = self.scores[method][metric]
        scores = np.where(np.isfinite(scores), scores, np.inf)
        with np.errstate(invalid="ignore"):
            between = np.quantile(scores, q, axis=0)
        # Interpolating towards infinity gives NaN; there the score above counts.
        above = np.quantile(scores, q, axis=0, method="higher")
        return np.asarray(np.where(np.isnan(between), above, between))

    def mean_over_groups(self, method: str, metric: str, q: float = 0.5) -> FloatArray:
        """Mean over field groups of the quantile over trajectories, ``[lead]``."""
        return np.asarray(self.quantile(method, metric, q).mean(axis=-1))


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
    total = _Totals()
    measure = None if physics is None else PhysicsMeasure(physics, leads, rollout_step)
    made = leads if measure is None else measure.leads_needed()
    scored = [made.index(lead) for lead in leads]
    with torch.no_grad():
        for start in range(0, len(trajectories), batch_size):
            chosen = trajectories[start : start + batch_size]
            frames = range(start_frame, last + 1)
            truth = torch.stack([data.read(index, frames) for index in chosen]).to(device)
            forecasts = _forecasts(
                predict, data, truth, made, rollout_step, input_frames, ensemble_size
            )
            if measure is not None:
                judged = {k: v for k, v in forecasts.items() if k != "previous_frame"}
                measure.add(data, truth, judged, made, history, chosen)
            forecasts = {method: values[:, scored] for method, values in forecasts.items()}
            _score(total, data, truth[:, [history + lead for lead in leads]], forecasts)
            for row in range(max(0, min(len(chosen), num_examples - start))):
                total.examples.append(
                    _example(data, chosen[row], truth[row, history:], leads, forecasts, row)
                )
    count = len(trajectories)
    return DatasetEvaluation(
        data=data,
        trajectories=tuple(int(index) for index in trajectories),
        start_frame=start_frame,
        lead_steps=leads,
        rollout_step=rollout_step,
        scores={
            method: {metric: np.concatenate(parts) for metric, parts in by_metric.items()}
            for method, by_metric in total.scores.items()
        },
        spectra={method: value / count for method, value in total.spectra.items()},
        examples=total.examples,
        physics=None if measure is None else measure.finish(),
        physics_note=physics_note,
    )


@dataclass
class _Totals:
    """What accumulates over batches."""

    scores: dict[str, dict[str, list[FloatArray]]] = field(default_factory=dict)
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
        "previous_frame": truth[:, [start + step - rollout_step for step in leads]],
    }


def _score(
    total: _Totals, data: EvaluationData, target: Tensor, forecasts: Mapping[str, Tensor]
) -> None:
    physical = {"truth": data.to_physical(target)}
    physical.update({method: data.to_physical(value) for method, value in forecasts.items()})
    groups, dimensions = [list(c) for c in data.groups.values()], data.num_dimensions
    truth = [physical["truth"][:, :, channels] for channels in groups]
    for method, values in physical.items():
        parts = [values[:, :, channels] for channels in groups]
        if method not in ("one_step", "previous_frame"):
            # A vector's spectrum is the sum of its components'.
            spectra = [energy_spectrum(part, dimensions).sum(2).sum(0) for part in parts]
            summed = torch.stack(spectra, dim=1).cpu().numpy()
            total.spectra[method] = total.spectra.get(method, np.zeros_like(summed)) + summed
        if method == "truth":
            continue
        by_metric = total.scores.setdefault(method, {})
        for metric, function in METRICS.items():
            scores = [function(p, true, dimensions) for p, true in zip(parts, truth, strict=True)]
            by_metric.setdefault(metric, []).append(torch.stack(scores, dim=-1).cpu().numpy())


def _example(
    data: EvaluationData,
    trajectory: int,
    truth: Tensor,
    leads: Sequence[int],
    forecasts: Mapping[str, Tensor],
    row: int,
) -> ExampleForecast:
    def physical(values: Tensor) -> npt.NDArray[np.float32]:
        return np.asarray(data.to_physical(values).float().cpu().numpy())

    return ExampleForecast(
        trajectory=int(trajectory),
        initial=physical(truth[0]),
        truth=physical(truth[list(leads)]),
        forecasts={
            method: physical(forecasts[method][row])
            for method in ("autoregressive", "direct", "ensemble", "persistence")
            if method in forecasts
        },
    )
