"""Scores of classified and segmented images, as pure functions of arrays.

Segmentations are whole numbers `[y, x]` or `[z, y, x]`; 0 is background.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.ndimage import binary_erosion, distance_transform_edt

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]
_PERCENTILE = 95.0


def confusion(predicted: IntArray, truth: IntArray, num_classes: int) -> IntArray:
    """How often a true class (row) was given each class (column), `[num_classes, num_classes]`."""
    pairs = truth.ravel() * num_classes + predicted.ravel()
    counts = np.bincount(pairs, minlength=num_classes**2)
    return counts.reshape(num_classes, num_classes).astype(np.int64)


def accuracy(counts: IntArray) -> float:
    """Share of the diagonal of a confusion matrix."""
    return float(np.trace(counts) / counts.sum())


def majority_accuracy(counts: IntArray) -> float:
    """The score of always naming the most frequent true class: the baseline of `accuracy`."""
    return float(counts.sum(axis=1).max() / counts.sum())


def recall(counts: IntArray) -> FloatArray:
    """Share of each true class that was found, `[num_classes]`; NaN where there is none of it."""
    totals = counts.sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.diag(counts) / totals, dtype=np.float64)


def dice(predicted: BoolArray, truth: BoolArray) -> float:
    """2 |A and B| / (|A| + |B|); NaN where both are empty."""
    total = int(predicted.sum()) + int(truth.sum())
    return 2.0 * int((predicted & truth).sum()) / total if total else float("nan")


@dataclass(frozen=True)
class SurfaceDistances:
    """Distances between the surfaces of two shapes, in the units of the spacing.

    `mean`: average over the points of both surfaces of the distance to the other one (average
    symmetric surface distance); `hausdorff_95`: the larger of the 95th percentiles of both
    directions, as the Medical Segmentation Decathlon's tools take it.
    """

    mean: float
    hausdorff_95: float


def surface_distances(
    predicted: BoolArray, truth: BoolArray, spacing: Sequence[float]
) -> SurfaceDistances:
    """Compare two shapes by their surfaces: the points that an erosion by one takes away.

    NaN where both are empty, infinity where one is. Points of a shape on the border of the grid
    belong to its surface.
    """
    if not predicted.any() and not truth.any():
        return SurfaceDistances(float("nan"), float("nan"))
    if not predicted.any() or not truth.any():
        return SurfaceDistances(float("inf"), float("inf"))
    one, other = _surface(predicted), _surface(truth)
    to_other = distance_transform_edt(~other, sampling=spacing)[one]
    to_one = distance_transform_edt(~one, sampling=spacing)[other]
    total = to_other.sum() + to_one.sum()
    hausdorff = max(np.percentile(to_other, _PERCENTILE), np.percentile(to_one, _PERCENTILE))
    return SurfaceDistances(float(total / (len(to_other) + len(to_one))), float(hausdorff))


def _surface(shape: BoolArray) -> BoolArray:
    return np.asarray(shape & ~binary_erosion(shape), dtype=np.bool_)
