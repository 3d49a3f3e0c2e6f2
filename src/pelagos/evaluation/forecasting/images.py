"""Score a classifier or a segmentation network on images it has not seen, and report on it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pelagos.evaluation.forecasting.batches import measure_here
from pelagos.evaluation.measures import image_metrics
from pelagos.evaluation.measures.image_metrics import FloatArray, IntArray

NUM_EXAMPLES = 6
# (numbers of images) -> the network's inputs [B, C, *grid], and the truth [B] or [B, *grid]
Read = Callable[[Sequence[int]], tuple[Tensor, Tensor]]
Logits = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class ImageExample:
    """An image kept for pictures: its first channel, the truth and the answer."""

    number: int
    image: FloatArray
    truth: IntArray
    predicted: IntArray


@dataclass(frozen=True)
class ImageEvaluation:
    """Every score of one dataset.

    `counts` is the confusion matrix, of images or of points. Of segmentations, `dice`,
    `mean_distance` and `hausdorff_95` are `[image, class]` for the classes from 1 on; of
    classifications they are empty.
    """

    name: str
    uri: str
    fingerprint: str
    images: tuple[int, ...]
    counts: IntArray
    dice: FloatArray
    mean_distance: FloatArray
    hausdorff_95: FloatArray
    examples: tuple[ImageExample, ...] = field(default_factory=tuple)

    @property
    def is_segmentation(self) -> bool:
        return self.dice.size > 0

    def class_rows(self) -> list[dict[str, Any]]:
        """Return, of each class, how much of it there is and how well it was found.

        Means over images, without those where neither truth nor answer has the class; a distance
        is infinite where one of the two lacks it.
        """
        found = image_metrics.recall(self.counts)
        rows = []
        for index, total in enumerate(self.counts.sum(axis=1)):
            row: dict[str, Any] = {"class": index, "share": float(total / self.counts.sum())}
            row["recall"] = float(found[index])
            if self.is_segmentation and index > 0:
                row["dice"] = _mean(self.dice[:, index - 1])
                row["mean_distance"] = _mean(self.mean_distance[:, index - 1])
                row["hausdorff_95"] = _mean(self.hausdorff_95[:, index - 1])
            rows.append(row)
        return rows

    def summary(self) -> dict[str, float]:
        """Return the scores over all classes, and the score of always naming the most frequent one."""
        values = {
            "accuracy": image_metrics.accuracy(self.counts),
            "majority_accuracy": image_metrics.majority_accuracy(self.counts),
            "mean_recall": _mean(image_metrics.recall(self.counts)),
        }
        if self.is_segmentation:
            values["mean_dice"] = _mean(self.dice.ravel())
            values["mean_surface_distance"] = _mean(self.mean_distance.ravel())
            values["hausdorff_95"] = _mean(self.hausdorff_95.ravel())
        return values

    @property
    def warning(self) -> str:
        """The warning to print first: the answers are no better than one class; else empty."""
        found, baseline = (
            measure(self.counts)
            for measure in (image_metrics.accuracy, image_metrics.majority_accuracy)
        )
        if found > baseline:
            return ""
        points = "points" if self.is_segmentation else "images"
        return (
            f"an accuracy of {found:.4g} is no better than always naming the most frequent class, "
            f"which is right for {baseline:.4g} of all {points}"
        )

    def notes(self) -> list[str]:
        """Sentences that say which scores are left out of means, and which make them infinite."""
        notes = []
        for index in np.flatnonzero(self.counts.sum(axis=1) == 0):
            given = (
                "although it is predicted" if self.counts[:, index].any() else "and never predicted"
            )
            notes.append(f"class {index} is absent from the truth, {given}, so it has no recall")
        for column in range(self.dice.shape[1] if self.is_segmentation else 0):
            absent = int(np.isnan(self.dice[:, column]).sum())
            if absent:
                notes.append(
                    f"class {column + 1} is absent from truth and prediction in {absent} of "
                    f"{len(self.images)} images, and its means leave these out"
                )
            missed = int(np.isinf(self.mean_distance[:, column]).sum())
            if missed:
                notes.append(
                    f"class {column + 1} is in only one of truth and prediction in {missed} of "
                    f"{len(self.images)} images, which makes its mean distances infinite"
                )
        return notes


def evaluate_images(
    logits: Logits,
    read: Read,
    images: Sequence[int],
    *,
    num_classes: int,
    spacing: Sequence[float],
    identity: Mapping[str, str],
    batch_size: int = 16,
    device: torch.device | str = "cpu",
) -> ImageEvaluation:
    """Score every image; `identity` holds the dataset's name, uri and fingerprint.

    `logits` gives `[B, K]` or `[B, K, *grid]`; `spacing` is the distance of points per axis.
    Memory is that of twice `batch_size` images: the next are read meanwhile.
    """
    measurement = ImageMeasurement(
        logits, read, images, num_classes, spacing, identity, batch_size, device
    )
    (evaluation,) = measure_here([measurement])
    found: ImageEvaluation = evaluation
    return found


@dataclass(frozen=True)
class ImagePart:
    """The result of one batch: `rows` are `[image][class][score]`, of segmentations."""

    counts: IntArray
    rows: list[list[list[float]]]
    examples: list[ImageExample]


@dataclass(frozen=True)
class ImageMeasurement:
    """The images of one dataset, batch by batch: arguments as `evaluate_images`."""

    logits: Logits
    read_images: Read
    images: Sequence[int]
    num_classes: int
    spacing: Sequence[float]
    identity: Mapping[str, str]
    batch_size: int = 16
    device: torch.device | str = "cpu"

    @property
    def num_batches(self) -> int:
        return -(-len(self.images) // self.batch_size)

    def read(self, batch: int) -> tuple[Tensor, Tensor]:
        """Return the network's inputs, and the truth."""
        return self.read_images(self._chosen(batch))

    @torch.no_grad()
    def measure(self, batch: int, read: tuple[Tensor, Tensor]) -> ImagePart:
        """Return the scores of a batch."""
        inputs, truth = read[0], read[1].numpy()
        predicted = self.logits(inputs.to(self.device)).argmax(dim=1).cpu().numpy()
        rows, examples = [], []
        for row, number in enumerate(self._chosen(batch)):
            if truth.ndim > 1:
                scores = _shape_scores(predicted[row], truth[row], self.num_classes, self.spacing)
                rows.append(scores)
            if batch * self.batch_size + row < NUM_EXAMPLES:
                image = inputs[row, 0].double().numpy()
                examples.append(ImageExample(number, image, truth[row], predicted[row]))
        counts = image_metrics.confusion(predicted, truth, self.num_classes)
        return ImagePart(counts, rows, examples)

    def combine(self, parts: Sequence[ImagePart]) -> ImageEvaluation:
        """Return the evaluation, of the parts of all batches in order."""
        counts = np.zeros((self.num_classes, self.num_classes), np.int64)
        for part in parts:
            counts += part.counts
        rows = [row for part in parts for row in part.rows]
        scores = np.array(rows, dtype=np.float64).reshape(len(rows), self.num_classes - 1, 3)
        return ImageEvaluation(
            name=self.identity["name"],
            uri=self.identity["uri"],
            fingerprint=self.identity["fingerprint"],
            images=tuple(int(n) for n in self.images),
            counts=counts,
            dice=scores[:, :, 0],
            mean_distance=scores[:, :, 1],
            hausdorff_95=scores[:, :, 2],
            examples=tuple(example for part in parts for example in part.examples),
        )

    def _chosen(self, batch: int) -> Sequence[int]:
        start = batch * self.batch_size
        return self.images[start : start + self.batch_size]


def _shape_scores(
    predicted: IntArray, truth: IntArray, num_classes: int, spacing: Sequence[float]
) -> list[list[float]]:
    scores = []
    for index in range(1, num_classes):
        one, other = predicted == index, truth == index
        distances = image_metrics.surface_distances(one, other, spacing)
        scores.append([image_metrics.dice(one, other), distances.mean, distances.hausdorff_95])
    return scores


def _mean(values: FloatArray) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else math.nan
