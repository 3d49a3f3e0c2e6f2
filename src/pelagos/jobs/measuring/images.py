"""`pelagos evaluate` of classifiers and segmentation networks: scores on images they have not seen."""

import functools
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch import Tensor

from pelagos.data_pipelines.store.readable import ReadableDataset
from pelagos.data_pipelines.store.schema import LABEL_PARAMETER
from pelagos.evaluation.forecasting.batches import Measurement
from pelagos.evaluation.forecasting.images import ImageEvaluation, ImageMeasurement
from pelagos.jobs.measuring.spreading import measure_all
from pelagos.jobs.measuring.trained import TrainedRun
from pelagos.jobs.measuring.workers import workers_of
from pelagos.jobs.training.datasets import open_recorded
from pelagos.jobs.training.mixtures import unique_names
from pelagos.jobs.weights.described_parts import recorded_datasets
from pelagos.jobs.weights.forecaster import Forecaster
from pelagos.models.objectives import Classification, Segmentation
from pelagos.platform.config.measure import EvaluateJob
from pelagos.platform.config.schema import TrainingJob


def measure_images(job: EvaluateJob, trained: TrainedRun) -> list[ImageEvaluation]:
    """Return the scores on the split of each of the run's datasets.

    Raises:
        ValueError: no such split, or a dataset without labels.
    """
    workers = workers_of(job.resources, trained.training.resources)
    make = functools.partial(image_measurements, job, trained.training)
    found: list[ImageEvaluation] = measure_all(make, lambda _: None, trained.forecaster, workers)
    # records are by name: datasets of one name get the numbers that training gives them
    names = unique_names([evaluation.name for evaluation in found])
    return [replace(e, name=name) for e, name in zip(found, names, strict=True)]


def image_measurements(
    job: EvaluateJob,
    training: TrainingJob,
    forecaster: Forecaster,
    device: torch.device,
    known: Sequence[None] | None,
) -> list[Measurement]:
    """Return the scores of each dataset that the run was trained on."""
    return [
        _measurement(
            job, forecaster, open_recorded(record["uri"], training), record["offset"], device
        )
        for record in recorded_datasets(forecaster.description)
    ]


def _measurement(
    job: EvaluateJob,
    forecaster: Forecaster,
    dataset: ReadableDataset,
    offset: dict[str, float],
    device: torch.device,
) -> ImageMeasurement:
    objective = forecaster.objective
    assert isinstance(objective, Classification | Segmentation)
    data = forecaster.view(dataset, offset, {f: (f,) for f in forecaster.fields})

    def read(images: Sequence[int]) -> tuple[Tensor, Tensor]:
        frames = torch.cat([data.read(image, [0]) for image in images])
        if isinstance(objective, Segmentation):
            return objective.split(frames)
        return frames, torch.tensor([int(labels[image]) for image in images])

    labels = _labels(dataset) if isinstance(objective, Classification) else []
    images = dataset.split(job.split)[: job.max_trajectories]
    if not images:
        raise ValueError(f"split {job.split!r} of {dataset.uri} holds no images to evaluate")
    extents = zip(dataset.spec.domain_extent, dataset.grid_shape, strict=True)
    return ImageMeasurement(
        forecaster.logits,
        read,
        images,
        num_classes=objective.num_classes,
        spacing=[extent / points for extent, points in extents],
        identity={
            "name": dataset.spec.name,
            "uri": dataset.uri,
            "fingerprint": dataset.fingerprint,
        },
        batch_size=job.batch_size,
        device=device,
    )


def _labels(dataset: ReadableDataset) -> Any:
    if LABEL_PARAMETER not in dataset.parameters:
        raise ValueError(
            f"dataset {dataset.uri} has no parameter {LABEL_PARAMETER!r}, the class of each image"
        )
    return dataset.parameters[LABEL_PARAMETER]


def show_images(evaluations: Sequence[ImageEvaluation], console: Console) -> None:
    """Print the scores, and of segmentations those of each class."""
    for evaluation in evaluations:
        if evaluation.warning:
            console.print(
                Text("warning:", style="red"),
                f"{evaluation.name}: {evaluation.warning}",
                soft_wrap=True,
            )
    for evaluation in evaluations:
        table = Table("score", "", title=f"{evaluation.name}: {len(evaluation.images)} images")
        for name, value in evaluation.summary().items():
            table.add_row(name.replace("_", " "), _number(value))
        if evaluation.is_segmentation:
            for row in evaluation.class_rows()[1:]:
                table.add_row(f"Dice of class {row['class']}", _number(row["dice"]))
        console.print(table)
        for note in evaluation.notes():
            console.print(f"  {note}", soft_wrap=True)


def _number(value: float) -> str:
    if math.isnan(value):
        return "-"
    return "infinite" if math.isinf(value) else f"{value:.4g}"
