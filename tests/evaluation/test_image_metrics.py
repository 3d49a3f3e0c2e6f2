"""Scores of images against shapes whose scores are known by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given as given_by_hypothesis
from hypothesis import strategies as st
from rich.console import Console

from pelagos.evaluation import Provenance
from pelagos.evaluation.forecasting.images import ImageEvaluation, evaluate_images
from pelagos.evaluation.measures import image_metrics
from pelagos.evaluation.pages.image_page import write_image_report
from pelagos.jobs.measuring.images import show_images


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


def test_one_point_in_twenty_may_be_far_away() -> None:
    """Distances 0, 1, … 39 from each point of a line to another's only point, by numpy."""
    line, point = np.zeros((1, 40), bool), np.zeros((1, 40), bool)
    line[0], point[0, 0] = True, True
    found = image_metrics.surface_distances(line, point, (1.0, 1.0))
    assert found.hausdorff_95 == pytest.approx(float(np.percentile(np.arange(40), 95)))
    assert found.mean == pytest.approx(np.arange(40).sum() / 41)


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


@given_by_hypothesis(st.integers(0, 2**32 - 1), st.integers(2, 3))
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


def segmented(truth: npt.NDArray[np.int64], given: npt.NDArray[np.int64]) -> ImageEvaluation:
    """An evaluation of given segmentations ``[image, y, x]`` of three classes."""
    answers = torch.nn.functional.one_hot(torch.from_numpy(given), 3).movedim(-1, 1).float()

    def read(images: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        chosen = list(images)
        return answers[chosen], torch.from_numpy(truth[chosen])

    identity = {"name": "shapes", "uri": "memory://", "fingerprint": "f"}
    return evaluate_images(
        lambda x: x, read, range(len(truth)), num_classes=3, spacing=(1, 1), identity=identity
    )


def test_absent_classes_are_left_out_with_a_note_and_missed_ones_named(tmp_path: Path) -> None:
    truth = np.zeros((3, 8, 8), np.int64)
    truth[:2, 2:5, 2:5] = 1
    given = truth.copy()
    given[1] = 0  # missed
    evaluation = segmented(truth, given)
    assert evaluation.summary()["mean_dice"] == 0.5  # of class 1 in two images, of class 2 in none
    assert evaluation.notes() == [
        "class 2 is absent from the truth, and never predicted, so it has no recall",
        "class 1 is absent from truth and prediction in 1 of 3 images, and its means leave these out",
        "class 1 is in only one of truth and prediction in 1 of 3 images, which makes its mean "
        "distances infinite",
        "class 2 is absent from truth and prediction in 3 of 3 images, and its means leave these out",
    ]
    page = write_image_report([evaluation], Provenance("r", 1, "m"), tmp_path)[0].read_text()
    assert "diverged" not in page
    assert '<td class="n">infinite</td>' in page
    console = Console(record=True, width=120)
    show_images([evaluation], console)
    shown = console.export_text()
    assert "nan" not in shown
    assert "absent from truth and prediction in 3 of 3 images" in shown


def test_answers_no_better_than_one_class_are_warned_of(tmp_path: Path) -> None:
    truth = np.zeros((3, 8, 8), np.int64)
    truth[:2, 2:5, 2:5] = 1
    idle, good = segmented(truth, np.zeros_like(truth)), segmented(truth, truth)
    assert "no better than always naming the most frequent class" in idle.warning
    assert f"{1 - 18 / 192:.4g}" in idle.warning
    assert good.warning == ""
    page = write_image_report([idle, good], Provenance("r", 1, "m"), tmp_path)[0].read_text()
    assert page.count('class="warning"') == 1
