"""What is said of a model at which lead times, word by word."""

from __future__ import annotations

import math

import numpy as np
import pytest

from pelagos.evaluation.conclusions.verdicts import (
    LEAST_TRAJECTORIES,
    Comparison,
    LeadVerdict,
    Outcome,
    Verdict,
    combined_label,
    compare,
    count_wins,
    interval,
    mean_ranks,
    warnings_of,
)

INTERVALS = {
    "better": (0.5, 0.7),
    "worse": (1.5, 1.7),
    "unclear": (0.9, 1.1),
    "too few": (0.5, 0.7),
}


def comparison(outcome: Outcome, ratio: float | None = None) -> Comparison:
    low, high = INTERVALS[outcome]
    count = 5 if outcome == "too few" else 6
    made = Comparison((low + high) / 2 if ratio is None else ratio, low, high, count)
    assert made.outcome == outcome
    return made


def lead(time: float, persistence: Outcome, mean: Outcome, vrmse: float = 0.5) -> LeadVerdict:
    return LeadVerdict(
        time, vrmse, {"persistence": comparison(persistence), "mean": comparison(mean)}
    )


def sentence(*persistence: Outcome) -> str:
    """Of a model that is never told from the mean, at lead times 1, 2, …"""
    leads = tuple(lead(n + 1.0, outcome, "unclear") for n, outcome in enumerate(persistence))
    return Verdict("direct", 8, leads).sentence


def test_an_interval_must_be_on_one_side_of_one() -> None:
    assert LEAST_TRAJECTORIES == 6 == math.ceil(math.log2(2 / 0.05))  # 2 * 2^-n below 0.05
    assert Comparison(1.0, 0.5, 1.0, 6).outcome == "unclear"
    assert Comparison(1.0, 1.0, 1.5, 6).outcome == "unclear"
    assert Comparison(1.3, 1.1, 1.5, 6).outcome == "worse"
    assert Comparison(1.3, 0.9, 1.5, 6).outcome == "unclear"
    assert Comparison(0.7, 0.6, 0.9, 6).to_dict() == {
        **{"ratio": 0.7, "low": 0.6, "high": 0.9, "num_trajectories": 6},
        "outcome": "better",
    }


@pytest.mark.parametrize(
    ("outcomes", "where"),
    [
        (("better", "worse", "worse", "worse"), "1 (1 of 4)"),
        (("better", "better", "worse", "worse"), "1, 2 (2 of 4)"),
        (("worse", "better", "worse", "better"), "2, 4 (2 of 4)"),
        (("better", "better", "better", "worse"), "1 to 3 (3 of 4)"),
        (("worse", "better", "better", "better"), "2 to 4 (3 of 4)"),
        (("better", "worse", "better", "better"), "1, 3, 4 (3 of 4)"),
    ],
)
def test_lead_times_in_a_row_are_told_as_a_span(outcomes: tuple[Outcome, ...], where: str) -> None:
    expected = f"(direct) beats persistence at lead time {where}"
    assert (
        sentence(*outcomes) == f"{expected} and does not beat the dataset's mean at any lead time"
    )


def test_every_lead_time_and_none() -> None:
    mean = "does not beat the dataset's mean at any lead time"
    told = "(direct) beats persistence at every lead time"
    assert sentence("better", "better") == f"{told} (1 to 2) and {mean}"
    assert sentence("better") == f"{told} (1) and {mean}"
    worse = "is worse than persistence at every lead time"
    assert sentence("worse", "worse") == f"(direct) {worse} and {mean}"
    assert sentence("worse", "unclear").startswith("(direct) does not beat persistence at any lead")
    both = Verdict("direct", 8, (lead(0.5, "better", "better"), lead(2.0, "better", "better")))
    at = "at every lead time (0.5 to 2)"
    assert both.sentence == f"(direct) beats persistence and the dataset's mean {at}"
    useless = Verdict("direct", 8, (lead(1.0, "better", "better", vrmse=1.0),))
    not_counted = "only where VRMSE is 1 or more, which does not count"
    assert f"is better than persistence {not_counted}" in useless.sentence
    for count, word in ((1, "1 trajectory"), (5, "5 trajectories")):
        few = Verdict("direct", count, (lead(1.0, "too few", "too few"),))
        assert not few.is_possible
        assert f"with {word}: at least 6 are needed" in few.sentence


def test_a_constant_as_good_as_the_model_is_warned_of() -> None:
    """By VRMSE above 1 or by the mean's ratio above 1: one of them is enough."""

    def warning(vrmse: float, ratio: float) -> str:
        against = {"persistence": comparison("better"), "mean": comparison("unclear", ratio)}
        fine = lead(1.0, "better", "better")
        return Verdict("direct", 8, (fine, LeadVerdict(2.0, vrmse, against))).warning

    assert warning(1.0, 1.0) == ""
    for vrmse, ratio in ((1.01, 0.5), (0.5, 1.01), (1.01, 1.01)):
        assert warning(vrmse, ratio).startswith(
            "the model (direct) is no better than a constant at lead time 2 (1 of 2): VRMSE is above 1"
        )
    verdicts = [
        ("good", Verdict("direct", 8, (lead(1.0, "better", "better"),))),
        ("bad", Verdict("direct", 8, (lead(1.0, "worse", "worse", vrmse=2.0),))),
    ]
    (only,) = warnings_of(verdicts)
    assert only.startswith("bad: the model (direct)")


@pytest.mark.parametrize(
    ("leads", "label"),
    [
        ([("better", "better", 0.5), ("better", "better", 0.5)], "both"),
        ([("better", "better", 0.5), ("better", "unclear", 0.5)], "persistence only"),
        ([("unclear", "better", 0.5)], "mean only"),
        ([("better", "better", 0.5), ("worse", "worse", 0.5)], "neither"),
        ([("too few", "too few", 0.5)], "too few"),
        ([("worse", "too few", 0.5)], "neither"),
        ([("unclear", "unclear", 0.5)], "unclear"),
        ([("unclear", "unclear", 0.5), ("unclear", "unclear", 1.0)], "neither"),
    ],
)
def test_one_word_for_several_datasets(
    leads: list[tuple[Outcome, Outcome, float]], label: str
) -> None:
    assert combined_label([lead(1.0, *row) for row in leads]) == label


def test_ranks_are_scipys() -> None:
    from scipy.stats import rankdata

    errors = np.random.default_rng(0).integers(0, 4, (5, 30)).astype(float)
    np.testing.assert_allclose(mean_ranks(errors), rankdata(errors, axis=0).mean(axis=1))
    holed = errors.copy()
    holed[2, 7] = np.nan  # this cell is left out, for all
    kept = np.delete(errors, 7, axis=1)
    np.testing.assert_allclose(mean_ranks(holed), rankdata(kept, axis=0).mean(axis=1))
    assert mean_ranks(np.full((3, 2), np.nan)).tolist() == [1.0, 1.0, 1.0]


def test_intervals_are_quantiles_of_numpy() -> None:
    values = np.random.default_rng(1).normal(size=501)
    np.testing.assert_allclose(interval(values), np.quantile(values, [0.025, 0.975]))
    # beside an infinite value there is no number between: the outer one
    rising = np.append(np.arange(1.0, 100.0), np.inf)
    assert interval(rising) == (3.0, 98.0)  # of places 0 to 99: below 2.475 and above 96.525
    assert interval(np.full(9, np.inf)) == (np.inf, np.inf)


def test_pairs_that_say_nothing_are_left_out_or_equal() -> None:
    own = np.array([[1.0], [0.0], [np.inf], [np.nan], [2.0], [1.0]])
    other = np.array([[2.0], [0.0], [np.inf], [1.0], [1.0], [np.inf]])
    (found,) = compare(own, other)
    assert (found.num_trajectories, found.ratio) == (5, 1.0)  # of 0.5, 1, 1, 2, 0
    (nothing,) = compare(np.full((3, 1), np.nan), np.ones((3, 1)))
    assert nothing.num_trajectories == 0
    assert math.isnan(nothing.ratio)
    (same,) = compare(np.full((7, 1), 0.5), np.ones((7, 1)))
    assert (same.ratio, same.low, same.high, same.outcome) == (0.5, 0.5, 0.5, "better")


def test_wins_are_counted_of_those_that_can_be_judged() -> None:
    scores = np.array([[1.0, 2.0, np.inf, np.nan, 3.0], [2.0, 2.0, np.inf, 1.0, 1.0]])
    wins = count_wins(scores, 0)
    assert (wins.num_won, wins.num_judged, wins.num_left_out) == (2, 4, 1)
    assert (str(wins), wins.share) == ("2 of 4 (1 left out)", 0.5)
    none = count_wins(np.full((2, 3), np.nan), 1)
    assert (str(none), math.isnan(none.share)) == ("0 of 0 (3 left out)", True)
    assert str(count_wins(scores[:, :1], 1)) == "0 of 1"
