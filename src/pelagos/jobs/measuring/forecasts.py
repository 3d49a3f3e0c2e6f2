"""Measurements of a forecasting run by `pelagos evaluate`: scores and long rollouts per dataset."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from pelagos.data_pipelines.physics import DatasetPhysics, NoPhysics, dataset_physics
from pelagos.data_pipelines.store.readable import ReadableDataset
from pelagos.evaluation.forecasting.batches import Measurement
from pelagos.evaluation.forecasting.climatology import climatology
from pelagos.evaluation.forecasting.forecasts import ForecastMeasurement
from pelagos.evaluation.forecasting.stability import StabilityMeasurement
from pelagos.jobs.training.checks.fields import given_in
from pelagos.jobs.training.datasets import open_recorded
from pelagos.jobs.training.objective_options import option_of
from pelagos.jobs.weights.described_parts import recorded_datasets
from pelagos.jobs.weights.forecaster import Forecaster
from pelagos.platform.config.measure import EvaluateJob
from pelagos.platform.config.schema import TrainingJob

Known = dict[str, Any]
"""Fields of `EvaluationData` that take reading: `mean_frame` and `given`."""


def forecast_measurements(
    job: EvaluateJob,
    training: TrainingJob,
    initial_frame: int,
    for_report: bool,
    forecaster: Forecaster,
    device: torch.device,
    known: Sequence[Known] | None,
) -> list[Measurement]:
    """Return the scores of each dataset, then the long rollouts if any are asked for.

    Args:
        initial_frame: leads count from it, or from the last frame that the model needs.
        for_report: keep typical trajectories for its pictures, and check physics if the job asks.
        known: the result of `known_of` for the same measurements made before.

    Raises:
        ValueError: a dataset without masks that the model needs, or no such split or lead.
    """
    found: list[Measurement] = []
    records = recorded_datasets(forecaster.description)
    for number, record in enumerate(records):
        dataset = open_recorded(record["uri"], training)
        _check_masks(dataset, forecaster)
        data = forecaster.view(dataset, record["offset"], option_of(training, "field_groups"))
        if known is None:
            mean = climatology(data, _trained_on(dataset))
            data = replace(data, mean_frame=mean, given=given_in(dataset, data))
        else:
            data = replace(data, **known[number])
        stride, frames = option_of(training, "frame_stride", 1), forecaster.objective.input_frames
        history = (frames - 1) * stride
        initial = max(initial_frame, history)
        asks = for_report and job.physics
        physics, note = _physics(dataset, forecaster) if asks else (None, "not requested")
        found.append(
            ForecastMeasurement(
                forecaster.predict_on(data),
                data,
                dataset.split(job.split)[: job.max_trajectories],
                _lead_steps(job, training) or range(stride, dataset.num_frames - initial, stride),
                rollout_step=stride,
                start_frame=initial - history,
                input_frames=frames,
                batch_size=job.batch_size,
                ensemble_size=job.ensemble_size,
                physics=physics,
                physics_note=note,
                typical_examples=for_report,
                device=device,
            )
        )
    for record in records if job.stability_steps else ():
        dataset = open_recorded(record["uri"], training)
        data = forecaster.view(dataset, record["offset"], option_of(training, "field_groups"))
        found.append(
            StabilityMeasurement(
                forecaster.predict_on(data),
                data,
                dataset.split(job.split)[: job.max_trajectories],
                job.stability_steps,
                rollout_step=option_of(training, "frame_stride", 1),
                input_frames=forecaster.objective.input_frames,
                batch_size=job.batch_size,
                device=device,
            )
        )
    return found


def known_of(measurement: Measurement) -> Known:
    """Return the findings that a repeated measurement can reuse."""
    if not isinstance(measurement, ForecastMeasurement):
        return {}
    return {"mean_frame": measurement.data.mean_frame, "given": measurement.data.given}


def check_forecasts(forecaster: Forecaster, run: str) -> None:
    """Raise ValueError for a run whose objective forecasts nothing."""
    if forecaster.objective.call not in ("frame", "window"):
        name = forecaster.description["objective"]["name"]
        raise ValueError(
            f"run {run} was trained for {name}, which makes no forecasts, and evaluate measures "
            "forecasts. The run's validation losses are in its events.jsonl and in MLflow"
        )


def _lead_steps(job: EvaluateJob, training: TrainingJob) -> tuple[int, ...] | None:
    """Return the leads in stored frames, or None for every used frame of the dataset."""
    stride = option_of(training, "frame_stride", 1)
    if job.lead_steps is not None:
        return tuple(sorted({lead * stride for lead in job.lead_steps}))
    if (longest := option_of(training, "max_lead_steps")) is not None:
        return tuple(lead * stride for lead in range(1, longest + 1))
    return None


def _trained_on(dataset: ReadableDataset) -> range:
    """Return the trajectories of the training split, or all where the dataset has no splits."""
    try:
        return dataset.split("train")
    except ValueError:
        return dataset.split("all")


def _check_masks(dataset: ReadableDataset, forecaster: Forecaster) -> None:
    masks = dataset.spec.masks
    absent = [f for f in forecaster.fields if f in masks and masks[f] not in forecaster.fields]
    if absent:
        raise ValueError(
            f"{dataset.uri}: {', '.join(absent)} has points without a value, but the run was "
            f"trained without {', '.join(sorted({masks[f] for f in absent}))}, the mask of these "
            "points. Train with the mask in data.fields"
        )


def _physics(dataset: ReadableDataset, forecaster: Forecaster) -> tuple[DatasetPhysics | None, str]:
    """Return the dataset's equation on the model's channels, or None and the reason."""
    try:
        return dataset_physics(dataset, forecaster.fields), ""
    except NoPhysics as reason:
        return None, str(reason)
