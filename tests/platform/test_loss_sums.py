"""Errors summed by dataset, against sums that numpy makes of the same numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from pelagos.models.objectives import create_objective
from pelagos.platform.loss_sums import dataset_losses, sums_by_dataset

NAMES = ("a", "b", "c", "d")


@pytest.fixture
def numbers() -> tuple[Any, Any, Any]:
    """Five samples of datasets 0, 2 and 3, with three groups; dataset 3 has one group alone."""
    draw = np.random.default_rng(0)
    errors, magnitudes = draw.uniform(0.1, 2.0, (2, 5, 3)).astype(np.float32)
    errors[4, 1:], magnitudes[4, 1:] = 0.0, 0.0
    return np.array([2, 0, 2, 2, 3]), errors, magnitudes


def test_samples_are_summed_by_dataset(numbers: tuple[Any, Any, Any]) -> None:
    dataset, errors, magnitudes = numbers
    given = torch.from_numpy(errors).requires_grad_()
    found = sums_by_dataset(torch.from_numpy(dataset), given, torch.from_numpy(magnitudes), 4)
    assert (found.shape, found.dtype, found.requires_grad) == ((2, 4, 3), torch.double, False)
    for part, rows in enumerate((errors, magnitudes)):
        for number in range(4):
            expected = rows[dataset == number].astype(np.float64).sum(axis=0)
            np.testing.assert_allclose(found[part, number].numpy(), expected, rtol=1e-15)


def test_a_dataset_has_the_loss_of_its_samples_and_groups(numbers: tuple[Any, Any, Any]) -> None:
    dataset, errors, magnitudes = (torch.from_numpy(array) for array in numbers)
    objective = create_objective("all2all", ("density", "pressure", "tracer"))
    found = dataset_losses(objective, sums_by_dataset(dataset, errors, magnitudes, 4), NAMES)
    assert list(found) == ["loss/a", "loss/c", "loss/d"]  # b had no sample
    for number, name in ((0, "a"), (2, "c")):
        rows = numbers[0] == number
        ratios = numbers[1][rows].sum(axis=0) / numbers[2][rows].sum(axis=0)
        assert found[f"loss/{name}"] == pytest.approx(ratios.mean(), rel=1e-6)
    assert found["loss/d"] == pytest.approx(numbers[1][4, 0] / numbers[2][4, 0], rel=1e-6)
    sums = sums_by_dataset(dataset, errors, magnitudes, 4)
    assert list(dataset_losses(objective, sums, NAMES, "validation")) == [
        f"validation/{name}" for name in ("a", "c", "d")
    ]
