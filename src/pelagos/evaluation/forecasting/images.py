"""Score a classifier or a segmentation network on images it has not seen, and report on it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from pelagos.evaluation.measures import image_metrics
from pelagos.evaluation.measures.image_metrics import FloatArray, IntArray
from pelagos.evaluation.pages import plots
from pelagos.evaluation.pages.forecast_page import (
    NUMBERS_NAME,
    REPORT_NAME,
    Picture,
    Provenance,
    page_environment,
    strict,
)
from pelagos.infra.storage.files import replace_durably

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


def numbers(evaluations: Sequence[ImageEvaluation], provenance: Provenance) -> dict[str, Any]:
    """Every number as plain JSON values; one that is not finite is None."""
    plain: dict[str, Any] = strict(
        {
            "provenance": asdict(provenance),
            "datasets": [
                {
                    "name": e.name,
                    "uri": e.uri,
                    "fingerprint": e.fingerprint,
                    "images": list(e.images),
                    "notes": e.notes(),
                    "summary": e.summary(),
                    "classes": e.class_rows(),
                    "confusion": e.counts.tolist(),
                    "per_image": {
                        "dice": e.dice.tolist(),
                        "mean_distance": e.mean_distance.tolist(),
                        "hausdorff_95": e.hausdorff_95.tolist(),
                    },
                }
                for e in evaluations
            ],
        }
    )
    return plain


def write_image_report(
    evaluations: Sequence[ImageEvaluation], provenance: Provenance, directory: Path
) -> Path:
    """Write report.html, which needs no other file, and metrics.json; return the former's path."""
    directory.mkdir(parents=True, exist_ok=True)
    text = json.dumps(numbers(evaluations, provenance), indent=1, allow_nan=False)
    replace_durably(directory / NUMBERS_NAME, text.encode() + b"\n")
    page = (
        page_environment()
        .get_template("images.html.j2")
        .render(
            provenance=provenance,
            config=json.dumps(strict(dict(provenance.config)), indent=2, default=str),
            sections=[
                {"evaluation": e, "figures": [(p.caption, p.data_uri) for p in _figures(e)]}
                for e in evaluations
            ],
        )
    )
    replace_durably(directory / REPORT_NAME, page.encode())
    return directory / REPORT_NAME


def _figures(evaluation: ImageEvaluation) -> list[Picture]:
    drawn = plots.figure_png(confusion_figure(evaluation))
    pictures = [Picture("Confusion matrix, each row's share.", "confusion.png", drawn)]
    if evaluation.examples:
        caption = "The first images: what went in, and what came out beside the truth."
        shown = plots.figure_png(examples_figure(evaluation))
        pictures.append(Picture(caption, "examples.png", shown))
    return pictures


def confusion_figure(evaluation: ImageEvaluation) -> Figure:
    """Rows: true classes, columns: given ones; colour and number: share of the row."""
    counts = evaluation.counts
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    size = 1.6 + 0.45 * len(counts)
    figure = plots.new_figure(size + 0.8, size)
    axis = figure.subplots()
    axis.imshow(shares, cmap="Blues", vmin=0.0, vmax=1.0)
    for row, column in np.ndindex(*shares.shape):
        colour = "white" if shares[row, column] > 0.5 else "black"
        text = f"{shares[row, column]:.2f}".lstrip("0") if counts[row, column] else ""
        axis.text(column, row, text, ha="center", va="center", color=colour, fontsize=7)
    axis.set(xlabel="given", ylabel="true", xticks=range(len(counts)), yticks=range(len(counts)))
    return figure


def examples_figure(evaluation: ImageEvaluation) -> Figure:
    """Images, a column each, first row at the top; of segmentations truth and answer below.

    Volumes: the middle slice.
    """
    examples, num_rows = evaluation.examples, 3 if evaluation.is_segmentation else 1
    figure = plots.new_figure(1.5 * len(examples) + 0.4, 1.6 * num_rows + 0.3)
    axes = figure.subplots(num_rows, len(examples), squeeze=False)
    top = len(evaluation.counts) - 1
    for column, example in enumerate(examples):
        axes[0, column].imshow(_slice(example.image), cmap="gray")
        if evaluation.is_segmentation:
            axes[0, column].set_title(f"image {example.number}", fontsize=8)
            for row, values in ((1, example.truth), (2, example.predicted)):
                shown = _slice(values)
                axes[row, column].imshow(shown, cmap="tab10", vmin=0, vmax=max(9, top))
        else:
            title = f"true {int(example.truth)}, given {int(example.predicted)}"
            axes[0, column].set_title(title, fontsize=8)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
    for row, label in enumerate(("image", "truth", "answer")[:num_rows]):
        axes[row, 0].set_ylabel(label, fontsize=8)
    return figure


def _slice(values: Any) -> Any:
    return values if values.ndim == 2 else values[len(values) // 2]
