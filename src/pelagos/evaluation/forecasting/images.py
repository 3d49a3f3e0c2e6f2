"""Score a classifier or a segmentation network on images it has not seen, and report on it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pelagos.evaluation.measures import image_metrics
from pelagos.evaluation.measures.image_metrics import FloatArray, IntArray

NUM_EXAMPLES = 6
# (numbers of images) -> what goes into the network [B, C, *grid], and the truth [B] or [B, *grid]
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

    ``counts`` is the confusion matrix, of images or of points. Of segmentations, ``dice``,
    ``mean_distance`` and ``hausdorff_95`` are ``[image, class]`` for the classes from 1 on; of
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
        """Return the scores over all classes, and what naming the most frequent one would give."""
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
        """What must be said first: that the answers are no better than one class; else empty."""
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
            given = "although it is given" if self.counts[:, index].any() else "nor given"
            notes.append(f"class {index} is not in the truth, {given}: it has no recall")
        for column in range(self.dice.shape[1] if self.is_segmentation else 0):
            absent = int(np.isnan(self.dice[:, column]).sum())
            if absent:
                notes.append(
                    f"class {column + 1} is absent from truth and answer in {absent} of "
                    f"{len(self.images)} images, which are left out of its means"
                )
            missed = int(np.isinf(self.mean_distance[:, column]).sum())
            if missed:
                notes.append(
                    f"class {column + 1} is in only one of truth and answer in {missed} of "
                    f"{len(self.images)} images, which makes its mean distances infinite"
                )
        return notes


@torch.no_grad()
def evaluate_images(
    logits: Logits,
    read: Read,
    images: Sequence[int],
    *,
    num_classes: int,
    spacing: Sequence[float],
    identity: Mapping[str, str],
    batch_size: int = 16,
) -> ImageEvaluation:
    """Score every image; `identity` holds the dataset's name, uri and fingerprint.

    ``logits`` gives ``[B, K]`` or ``[B, K, *grid]``; ``spacing`` is the distance of points per axis.
    Memory is that of ``batch_size`` images.
    """
    counts = np.zeros((num_classes, num_classes), np.int64)
    rows: list[list[list[float]]] = []
    examples: list[ImageExample] = []
    for start in range(0, len(images), batch_size):
        chosen = images[start : start + batch_size]
        inputs, truth_tensor = read(chosen)
        predicted = logits(inputs).argmax(dim=1).cpu().numpy()
        truth = truth_tensor.cpu().numpy()
        counts += image_metrics.confusion(predicted, truth, num_classes)
        for row, number in enumerate(chosen):
            if truth.ndim > 1:
                rows.append(_shape_scores(predicted[row], truth[row], num_classes, spacing))
            if len(examples) < NUM_EXAMPLES:
                image = inputs[row, 0].double().cpu().numpy()
                examples.append(ImageExample(number, image, truth[row], predicted[row]))
    scores = np.array(rows, dtype=np.float64).reshape(len(rows), num_classes - 1, 3)
    return ImageEvaluation(
        name=identity["name"],
        uri=identity["uri"],
        fingerprint=identity["fingerprint"],
        images=tuple(int(n) for n in images),
        counts=counts,
        dice=scores[:, :, 0],
        mean_distance=scores[:, :, 1],
        hausdorff_95=scores[:, :, 2],
        examples=tuple(examples),
    )


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
