"""What a draft of a job follows from: the data that it is pointed at, and the machine."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from pelagos.data_pipelines.foreign import open_readable
from pelagos.data_pipelines.store import DatasetError
from pelagos.data_pipelines.store.readable import ReadableDataset
from pelagos.data_pipelines.store.schema import LABEL_KIND, LABEL_PARAMETER
from pelagos.infra.storage.remote import storage_options


@dataclass(frozen=True)
class SeenData:
    """A dataset as a draft needs it.

    Attributes:
        grid: points per axis, `(y, x)` or as many axes as there are.
        labels: names of fields that hold classes.
        num_classes: classes of the images, where each trajectory has one; 0: none.
        num_label_classes: classes of the first field in `labels`; 0: none, or not known.
        num_train: trajectories of the split `train`.
        final_time: time of the last frame, in the dataset's unit.
    """

    uri: str
    fields: tuple[str, ...]
    labels: tuple[str, ...]
    grid: tuple[int, ...]
    num_frames: int
    final_time: float
    num_train: int
    splits: tuple[str, ...]
    num_classes: int
    num_label_classes: int

    @property
    def summary(self) -> str:
        """A line for people: fields, grid, frames, trajectories."""
        grid = " x ".join(map(str, self.grid))
        frames = f"{self.num_frames} frames to time {self.final_time:g}"
        kind = frames if self.num_frames > 1 else "pictures"
        return f"{', '.join(self.fields)} on {grid} points, {kind}, {self.num_train} to train on"


@dataclass(frozen=True)
class SeenMachine:
    """Cores and GPUs that a training here may use."""

    cores: int
    gpus: int


def look_at(uri: str) -> SeenData:
    """Return what a dataset holds; only its description is read.

    Raises:
        DatasetError: it does not open.
    """
    dataset = open_readable(uri, storage_options(uri) or None)
    try:
        return _seen(dataset)
    finally:
        dataset.close()


def look_at_machine() -> SeenMachine:
    """Return what this machine has."""
    return SeenMachine(len(os.sched_getaffinity(0)), torch.cuda.device_count())


def require_alike(data: Sequence[SeenData]) -> None:
    """Raise DatasetError for datasets that no one job takes: other dimensions, pictures and frames."""
    first = data[0]
    for other in data[1:]:
        if len(other.grid) != len(first.grid):
            raise DatasetError(
                f"{first.uri} has {len(first.grid)} dimensions, {other.uri} {len(other.grid)}: one job "
                f"trains on one number of them; write a job for each"
            )
        if (other.num_frames > 1) != (first.num_frames > 1):
            raise DatasetError(
                f"one of {first.uri} and {other.uri} changes in time and the other does not: write a "
                f"job for each"
            )


def _seen(dataset: ReadableDataset) -> SeenData:
    spec = dataset.spec
    classes = dataset.parameters.get(LABEL_PARAMETER)
    labels = tuple(field.name for field in spec.fields if field.kind == LABEL_KIND)
    highest = dataset.statistics.get(labels[0], {}).get("max") if labels else None
    return SeenData(
        uri=dataset.uri,
        fields=dataset.field_names,
        labels=labels,
        grid=dataset.grid_shape,
        num_frames=dataset.num_frames,
        final_time=(dataset.num_frames - 1) * spec.frame_interval,
        num_train=len(dataset.split("train")) if "train" in spec.splits else 0,
        splits=tuple(spec.splits),
        num_classes=0 if classes is None or not len(classes) else int(classes.max()) + 1,
        num_label_classes=0 if highest is None else int(highest) + 1,
    )
