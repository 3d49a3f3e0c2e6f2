"""Normalisation against numpy's mean and standard deviation of all values together."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pelagos.data_pipelines.streaming.normalization import Normalization

NORMALIZATION = Normalization(("a", "b"), (2.0, -1.0), (4.0, 0.5))


def test_values_are_shifted_and_scaled_and_come_back() -> None:
    values = np.random.default_rng(0).normal(size=(3, 2, 4, 5))
    expected = (values - np.array([2.0, -1.0]).reshape(2, 1, 1)) / np.array([4.0, 0.5]).reshape(
        2, 1, 1
    )
    given = torch.from_numpy(values)
    found = NORMALIZATION.apply(given)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-15)
    torch.testing.assert_close(NORMALIZATION.invert(found), given, rtol=1e-14, atol=1e-14)
    # channels elsewhere, counted from either end: lines, volumes, single frames
    for axis in (0, 1, 2, 3):
        moved = given.movedim(1, axis)
        for place in (axis, axis - 4):
            np.testing.assert_array_equal(NORMALIZATION.apply(moved, place).movedim(axis, 1), found)
            there = NORMALIZATION.invert(found.movedim(1, axis), place)
            torch.testing.assert_close(there, moved, rtol=1e-14, atol=1e-14)
    assert NORMALIZATION.apply(given.float()).dtype == torch.float32


@pytest.mark.parametrize(
    ("shape", "axis"), [((3, 4, 5), -3), ((2, 2, 4, 4), 4), ((2,), -3), ((2, 2), -3)]
)
def test_values_of_another_shape_are_refused(shape: tuple[int, ...], axis: int) -> None:
    with pytest.raises(ValueError, match="values have shape"):
        NORMALIZATION.apply(torch.zeros(shape), axis)


@pytest.mark.parametrize(
    ("mean", "std", "message"),
    [
        ((1.0,), (1.0, 1.0), "2 fields, 1 means and 2 standard"),
        ((1.0, 1.0), (1.0,), "2 fields, 2 means and 1 standard"),
        ((1.0, math.nan), (1.0, 1.0), "'b': mean nan must be finite"),
        ((math.inf, 1.0), (1.0, 1.0), "'a': mean inf must be finite"),
        ((1.0, 1.0), (1.0, math.inf), "'b': .* std inf positive"),
        ((1.0, 1.0), (0.0, 1.0), "'a': .* std 0.0 positive"),
        ((1.0, 1.0), (1.0, -1.0), "'b': .* std -1.0 positive"),
    ],
)
def test_numbers_that_cannot_scale_are_refused(mean: Any, std: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Normalization(("a", "b"), mean, std)


def test_given_numbers_and_none() -> None:
    mean, std = {"a": 1.0, "b": 2.0, "other": 0.0}, {"b": 4.0, "a": 3.0}
    assert Normalization.constants(["b", "a"], mean, std) == Normalization(
        ("b", "a"), (2.0, 1.0), (4.0, 3.0)
    )
    for fields in (["a", "c"], ["other"]):
        with pytest.raises(ValueError, match=rf"no normalisation constants for \['{fields[-1]}'\]"):
            Normalization.constants(fields, mean, std)
    with pytest.raises(ValueError, match=r"no normalisation constants for \['b'\]"):
        Normalization.constants(["b"], {}, std)
    assert Normalization.identity(["a", "b"]) == Normalization(("a", "b"), (0.0, 0.0), (1.0, 1.0))
    assert Normalization.from_dict(NORMALIZATION.to_dict()) == NORMALIZATION


def test_one_field_may_be_left_as_it_is() -> None:
    three = Normalization(("a", "b", "c"), (1.0, 2.0, 3.0), (4.0, 5.0, 6.0))
    assert three.unscaled("b") == Normalization(("a", "b", "c"), (1.0, 0.0, 3.0), (4.0, 1.0, 6.0))
    assert three.unscaled("a").mean == (0.0, 2.0, 3.0)
    assert three.unscaled("c").std == (4.0, 5.0, 1.0)


def test_statistics_of_several_datasets_are_those_of_all_their_values(make_dataset: Any) -> None:
    """Two of other sizes and offsets, of which one keeps a field as one number."""
    first, one = make_dataset(seed=1)
    second, two = make_dataset(
        seed=2,
        num_trajectories=4,
        splits={"train": (0, 3), "test": (3, 4)},
        fields=first.spec.fields[:1],
        constant_fields={"pressure": 7.0},
    )
    offsets: list[dict[str, float]] = [{}, {"density": 1.5, "pressure": 1.0}]
    found = Normalization.from_statistics([first, second], ["density", "pressure"], offsets)
    ours, theirs = one[:5].astype(np.float64), two[:3].astype(np.float64)
    density = np.concatenate([ours[:, :, 0].ravel(), theirs.ravel() - 1.5])
    pressure = np.concatenate([ours[:, :, 1].ravel(), np.full(theirs.size, 7.0 - 1.0)])
    for n, values in enumerate((density, pressure)):
        assert found.mean[n] == pytest.approx(values.mean(), rel=1e-12)
        assert found.std[n] == pytest.approx(values.std(), rel=1e-12)
    alone = Normalization.from_statistics([second], ["pressure"])
    assert (alone.mean, alone.std) == ((7.0,), (1.0,))  # constant everywhere
    for wrong in (offsets[:1], [*offsets, {}]):  # a row for each dataset
        with pytest.raises(ValueError, match=r"argument 2 is (shorter|longer)"):
            Normalization.from_statistics([first, second], ["density"], wrong)
    with pytest.raises(ValueError, match="has field 'heat'; the datasets have density, pressure"):
        Normalization.from_statistics([first, second], ["heat"])


def test_a_mask_is_never_scaled(make_dataset: Any, tmp_path: Path) -> None:
    dataset, _ = make_dataset(masks={"density": "pressure"})
    found = Normalization.from_statistics([dataset], ["pressure", "density"])
    assert (found.mean[0], found.std[0]) == (0.0, 1.0)
    assert (found.mean[1], found.std[1]) != (0.0, 1.0)
