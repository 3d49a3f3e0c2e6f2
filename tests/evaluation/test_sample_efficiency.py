"""Gains of curves whose gains are known in closed form."""

from __future__ import annotations

import math

import pytest

from pelagos.evaluation.conclusions.sample_efficiency import (
    Errors,
    Gain,
    accuracy_gain,
    bootstrap,
    efficiency_gain,
    gain_rows,
    mean_curve,
)
from pelagos.evaluation.pages.sweep_page import VALIDATION_LOSS, gain_cells

SIZES = (1, 4, 16, 64, 256)


def power_law(scale: float, exponent: float, sizes: tuple[int, ...] = SIZES) -> dict[int, float]:
    """E = scale * s^-exponent, a straight line in log-log."""
    return {s: scale * s**-exponent for s in sizes}


def one_seed(curve: dict[int, float]) -> Errors:
    return {size: {0: error} for size, error in curve.items()}


@pytest.mark.parametrize("exponent", [0.25, 0.5, 1.0])
@pytest.mark.parametrize("ratio", [1.0, 1.3, 1.9])
def test_parallel_power_laws(exponent: float, ratio: float) -> None:
    """The same exponent: AG is the ratio of scales, EG its 1/exponent-th power, at every S."""
    baseline, model = power_law(ratio, exponent), power_law(1.0, exponent)
    for size in (64, 256):
        assert accuracy_gain(baseline, model, size) == pytest.approx(ratio, rel=1e-12)
        gain = efficiency_gain(baseline, model, size)
        expected = ratio ** (1 / exponent)
        if expected <= size:
            assert gain.kind == "exact"
            assert gain.value == pytest.approx(expected, rel=1e-9)
        else:
            assert gain == Gain(size, "above")


def test_different_exponents() -> None:
    """c_m s^-a_m = c_b S^-a_b gives s = (c_m / c_b)^(1/a_m) S^(a_b/a_m)."""
    baseline, model = power_law(1.0, 0.3), power_law(0.9, 0.6)
    for size in (4, 16, 64, 256):
        needed = 0.9 ** (1 / 0.6) * size ** (0.3 / 0.6)
        assert efficiency_gain(baseline, model, size).value == pytest.approx(
            size / needed, rel=1e-9
        )
        expected = size**0.3 / 0.9
        assert accuracy_gain(baseline, model, size) == pytest.approx(expected, rel=1e-9)


def test_interpolation_is_exact_on_a_line_whatever_its_sizes() -> None:
    model = power_law(0.5, 0.4, (2, 3, 50, 300))
    gain = efficiency_gain({100: 0.5 * 17.0**-0.4}, model, 100)
    assert gain.value == pytest.approx(100 / 17, rel=1e-9)


def test_nothing_is_extrapolated() -> None:
    baseline, model = power_law(1.0, 0.5), power_law(1.0, 0.5, (4, 16))
    assert efficiency_gain(baseline, model, 1) == Gain(1 / 4, "above")  # reached with fewer than 4
    assert efficiency_gain(baseline, model, 4) == Gain(1.0)
    assert efficiency_gain(baseline, model, 64) == Gain(64 / 16, "below")  # more than 16 needed
    assert [str(Gain(2.5, k)) for k in ("exact", "above", "below")] == ["2.5", "> 2.5", "< 2.5"]


def test_the_first_of_several_crossings_counts() -> None:
    model = {1: 1.0, 4: 0.25, 16: 0.8, 64: 0.2}
    assert efficiency_gain({64: 0.5}, model, 64).value == pytest.approx(64 / 2, rel=1e-12)


def test_a_diverged_beginning_counts_from_where_it_is_finite() -> None:
    assert efficiency_gain({16: 0.5}, {1: math.inf, 4: 0.5, 16: 0.1}, 16) == Gain(4.0)


def test_a_drop_from_a_diverged_model_or_to_no_error_is_a_bound() -> None:
    """It was reached between two sizes, nobody knows where: at the latest with the larger."""
    drop = {1: math.inf, 4: 0.4, 16: 0.1}
    assert efficiency_gain({16: 0.5}, drop, 16) == Gain(4.0, "above")
    assert efficiency_gain({16: math.inf}, drop, 16) == Gain(4.0, "above")
    assert efficiency_gain({16: 0.2}, drop, 16).kind == "exact"  # past the drop
    assert efficiency_gain({16: 0.5}, {1: 1.0, 4: 0.0}, 16) == Gain(4.0, "above")
    assert efficiency_gain({16: 0.0}, {1: 1.0, 4: 0.0}, 16) == Gain(4.0)
    never = {1: math.inf, 4: math.inf}
    assert efficiency_gain({16: 0.5}, never, 16) == Gain(4.0, "below")
    assert str(efficiency_gain({16: math.inf}, never, 16)) == "diverged"


def test_an_error_of_exactly_zero_has_gains() -> None:
    assert accuracy_gain({1: 0.5}, {1: 0.0}, 1) == math.inf
    assert accuracy_gain({1: 0.0}, {1: 0.5}, 1) == 0.0
    assert accuracy_gain({1: 0.0}, {1: 0.0}, 1) == 1.0
    some: Errors = {1: {0: 0.5, 1: 0.25}, 4: {0: 0.0, 1: 0.0}}
    rows = [*gain_rows(some, {"m": some}, 50)]
    assert [row.accuracy_gain for row in rows] == [1.0, 1.0]
    assert rows[1].efficiency_gain == Gain(1.0)


def test_intervals_with_diverged_seeds_have_ends() -> None:
    finite: Errors = {4: {0: 0.5, 1: 0.4, 2: 0.6}}
    one: Errors = {4: {0: 0.5, 1: math.inf, 2: 0.6}}
    both: Errors = {4: {0: math.inf, 1: math.inf}}
    (row,) = gain_rows(finite, {"m": one})
    assert row.accuracy_gain == 0.0
    low, high = row.accuracy_interval or (math.nan, math.nan)
    assert low == 0.0  # seed 1 is in more than half of the resamples
    assert 0.4 / 0.6 < high < math.inf
    (row,) = gain_rows(one, {"m": finite})
    assert row.accuracy_interval is not None
    assert row.accuracy_interval[0] < row.accuracy_interval[1] == math.inf
    assert row.efficiency_gain == Gain(1.0, "above")
    for baseline, model in ((finite, one), (one, finite), (one, one), (both, both), (both, one)):
        (row,) = gain_rows(baseline, {"m": model})
        for method in ("direct", VALIDATION_LOSS):
            cells = gain_cells(row, (math.nan, math.inf), method)
            assert not any("nan" in cell for cell in cells), cells
    (row,) = gain_rows(both, {"m": both})
    assert gain_cells(row, (math.inf, math.inf), "direct")[-2:] == [
        "diverged (0 to inf)",
        "diverged (< 1 to > 1)",
    ]


def test_an_end_of_an_interval_that_is_met_is_no_bound() -> None:
    """Every resample reaches the baseline's error with exactly the most trajectories."""
    baseline: Errors = {64: {0: 0.25, 1: 0.25}}
    model: Errors = {4: {0: 0.5, 1: 0.5}, 16: {0: 0.25, 1: 0.25}}
    (row,) = gain_rows({16: {0: 0.3, 1: 0.3}, **baseline}, {"m": {**model, 64: model[16]}})[1:]
    assert row.efficiency_interval == (Gain(4.0), Gain(4.0))
    (row,) = gain_rows({16: baseline[64]}, {"m": model})
    assert row.efficiency_interval == (Gain(1.0), Gain(1.0))  # S / s_max itself
    worse: Errors = {16: {0: 0.24, 1: 0.25}}
    (row,) = gain_rows(worse, {"m": model})
    low, high = row.efficiency_interval or (Gain(0), Gain(0))
    assert (low, high) == (Gain(1.0, "below"), Gain(1.0))


def test_rows_are_of_means_over_seeds() -> None:
    baseline = {4: {0: 0.8, 1: 1.2}, 16: {0: 0.5, 1: 0.5}, 64: {0: 0.25}}
    model = {4: {0: 0.5, 1: 0.5}, 16: {0: 0.25, 1: 0.25}}
    rows = {row.num_trajectories: row for row in gain_rows(baseline, {"m": model}, 200)}
    assert sorted(rows) == [4, 16]  # 64 was measured for the baseline alone
    assert rows[4].baseline_error == pytest.approx(1.0)
    assert rows[4].accuracy_gain == pytest.approx(2.0)
    assert rows[16].efficiency_gain == Gain(4.0)
    low, high = rows[4].accuracy_interval or (0.0, 0.0)
    assert (low, high) == pytest.approx((0.8 / 0.5, 1.2 / 0.5))


def test_the_bootstrap_covers_the_spread_of_seeds() -> None:
    """Of the mean of n values with variance v, 95 % lie within 1.96 sqrt(v / n), nearly."""
    values = [1.0 + 0.1 * math.sin(12.9898 * i) for i in range(40)]
    mean = sum(values) / 40
    half = 1.96 * math.sqrt(sum((v - mean) ** 2 for v in values) / 40 / 40)
    interval = bootstrap({1: dict(enumerate(values))}, {1: {0: 1.0}}, lambda b, m: b[1] / m[1])
    assert interval == pytest.approx((mean - half, mean + half), abs=0.2 * half)


def test_a_single_seed_has_no_interval() -> None:
    errors = one_seed(power_law(1.0, 0.5))
    (row, *_) = gain_rows(errors, {"itself": errors})
    assert row.accuracy_interval is None
    assert row.efficiency_interval is None
    assert (row.accuracy_gain, row.efficiency_gain) == (1.0, Gain(1.0))


def test_errors_without_a_logarithm_are_refused() -> None:
    for error in (-0.1, math.nan):
        with pytest.raises(ValueError, match="not be negative"):
            mean_curve({1: {0: error}})
    with pytest.raises(ValueError, match="given"):
        mean_curve({})
