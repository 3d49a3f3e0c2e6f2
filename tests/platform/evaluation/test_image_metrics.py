"""Scores of images against shapes whose scores are known by hand."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pelagos.platform.evaluation import image_metrics


def square(corner: int, side: int = 4, grid: int = 16) -> npt.NDArray[np.bool_]:
    shape = np.zeros((grid, grid), bool)
    shape[corner : corner + side, 2 : 2 + side] = True
    return shape


def test_the_confusion_matrix_counts_true_rows_and_given_columns() -> None:
    truth, given_classes = np.array([0, 0, 1, 2, 2, 2]), np.array([0, 1, 1, 2, 2, 0])
    counts = image_metrics.confusion(given_classes, truth, 4)
    assert counts.tolist() == [[1, 1, 0, 0], [0, 1, 0, 0], [1, 0, 2, 0], [0, 0, 0, 0]]
    assert image_metrics.accuracy(counts) == pytest.approx(4 / 6)
    assert image_metrics.majority_accuracy(counts) == pytest.approx(3 / 6)
    found = image_metrics.recall(counts)
    assert found[:3].tolist() == pytest.approx([1 / 2, 1, 2 / 3])
    assert math.isnan(found[3])


@pytest.mark.parametrize(("shift", "expected"), [(0, 1.0), (1, 0.75), (2, 0.5), (4, 0.0)])
def test_dice_of_shifted_squares_is_their_overlap(shift: int, expected: float) -> None:
    assert image_metrics.dice(square(2), square(2 + shift)) == pytest.approx(expected)


def test_distances_of_shifted_lines_are_the_shift_in_the_units_of_the_spacing() -> None:
    one, other = np.zeros((12, 12), bool), np.zeros((12, 12), bool)
    one[3], other[6] = True, True
    found = image_metrics.surface_distances(one, other, (0.5, 7.0))
    assert found.mean == pytest.approx(1.5)
    assert found.hausdorff_95 == pytest.approx(1.5)
    # along the other axis a point is 7 away from the next
    found = image_metrics.surface_distances(one.T, other.T, (0.5, 7.0))
    assert found.mean == pytest.approx(21.0)


def test_only_surfaces_count() -> None:
    hollow = square(2, side=8)
    hollow[5:7, 5:7] = False
    # the hole's border is a surface too, though the outlines are the same
    assert image_metrics.surface_distances(hollow, square(2, side=8), (1, 1)).mean > 0
    same = image_metrics.surface_distances(square(2), square(2), (1, 1))
    assert (same.mean, same.hausdorff_95) == (0.0, 0.0)


def test_what_is_not_there_has_no_score_and_what_is_missed_the_worst() -> None:
    nothing = np.zeros((16, 16), bool)
    assert math.isnan(image_metrics.dice(nothing, nothing))
    assert math.isnan(image_metrics.surface_distances(nothing, nothing, (1, 1)).mean)
    assert image_metrics.dice(nothing, square(1)) == 0.0
    assert image_metrics.surface_distances(square(1), nothing, (1, 1)).hausdorff_95 == math.inf


@given(st.integers(0, 2**32 - 1), st.integers(2, 3))
def test_scores_do_not_depend_on_which_is_called_the_truth(seed: int, axes: int) -> None:
    generator = np.random.default_rng(seed)
    one, other = generator.random((2, *(6,) * axes)) < 0.4
    spacing = generator.uniform(0.5, 2.0, axes)
    assert image_metrics.dice(one, other) == pytest.approx(
        image_metrics.dice(other, one), nan_ok=True
    )
    there = image_metrics.surface_distances(one, other, spacing)
    back = image_metrics.surface_distances(other, one, spacing)
    assert there.mean == pytest.approx(back.mean, nan_ok=True)
    assert there.hausdorff_95 == pytest.approx(back.hausdorff_95, nan_ok=True)
