"""What is said of a model is what held-out trajectories can tell, against both baselines."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from scipy import stats
from torch import Tensor

from pelagos.data_pipelines.streaming.channels import Channels
from pelagos.data_pipelines.streaming.normalization import Normalization
from pelagos.evaluation import (
    DatasetEvaluation,
    EvaluationData,
    Provenance,
    evaluate_dataset,
    write_report,
)
from pelagos.evaluation.conclusions.verdicts import (
    LEAST_TRAJECTORIES,
    Comparison,
    LeadVerdict,
    best_method,
    combined_label,
    compare,
    count_wins,
    judge,
    mean_ranks,
)
from pelagos.evaluation.pages.summary import Error, summary_rows

OFFSET, STD, GRID, KEPT = 280.0, 5.0, 12, 0.9
LEADS = (1, 2, 4)


@dataclass
class KelvinSpec:
    name: str = "warm"
    frame_interval: float = 1.0
    grid_shape: tuple[int, ...] = (GRID, GRID)
    constant_fields: dict[str, float] = field(default_factory=dict)


@dataclass
class Kelvin:
    """Temperature: 280 K and noise of 5 K, of which each frame keeps 90 % and draws the rest anew."""

    spec: KelvinSpec = field(default_factory=KelvinSpec)
    uri: str = "memory://warm"
    fingerprint: str = "cafe"
    num_frames: int = 6
    field_names: tuple[str, ...] = ("temperature",)

    def read_frames(self, trajectory: int, frames: Sequence[int]) -> npt.NDArray[np.float32]:
        draw = np.random.default_rng(trajectory)
        noise = [draw.normal(size=(GRID, GRID))]
        for _ in range(self.num_frames):
            new = math.sqrt(1 - KEPT**2) * draw.normal(size=(GRID, GRID))
            noise.append(KEPT * noise[-1] + new)
        return (OFFSET + STD * np.stack([noise[f] for f in frames])[:, None]).astype(np.float32)


def scored(
    predict: Callable[[Tensor, Tensor], Tensor], count: int = 24, field_mean: float = OFFSET
) -> DatasetEvaluation:
    """Forecasts of the temperature; `field_mean` is what the training split's statistics say."""
    statistics = {"temperature": {"mean": field_mean, "std": STD}}
    channels = Channels.of(Kelvin(), Normalization(("temperature",), (OFFSET,), (STD,)))
    data = EvaluationData.from_dataset(Kelvin(), channels, statistics=statistics)
    return evaluate_dataset(predict, data, range(count), LEADS, batch_size=count, num_examples=0)


def best_linear(frames: Tensor, lead_time: Tensor) -> Tensor:
    """The forecast of least squared error: what is kept of each frame."""
    return frames * KEPT ** lead_time[:, None, None, None]


def untrained(frames: Tensor, lead_time: Tensor) -> Tensor:
    """A network before its first step: hardly anything, whatever goes in."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return 0.1 * torch.nn.Conv2d(1, 1, 3, padding=1)(frames)


def test_a_good_model_beats_both_baselines() -> None:
    verdict = judge(scored(best_linear))
    assert verdict.sentence.endswith(
        "beats persistence and the dataset's mean at every lead time (1 to 4)"
    )
    assert verdict.warning == ""
    for lead in verdict.leads:
        assert lead.label == "both"
        # of a first order process: sqrt(1 - k^2t), against sqrt(2 - 2 k^t) of persistence and 1
        kept = KEPT**lead.lead_time
        expected = math.sqrt(1 - kept**2)
        assert lead.vrmse == pytest.approx(expected, rel=0.05)
        ratio = expected / math.sqrt(2 - 2 * kept)
        assert lead.against["persistence"].ratio == pytest.approx(ratio, rel=0.05)
        assert lead.against["mean"].ratio == pytest.approx(expected, rel=0.05)


def test_an_untrained_network_gets_no_favourable_verdict_for_an_offset() -> None:
    evaluation = scored(untrained)
    verdict = judge(evaluation)
    for row in summary_rows(evaluation, verdict):
        assert row.errors["direct"].relative_l1 < 0.02  # of 280 K: this looks like success
        assert row.errors["direct"].vrmse == pytest.approx(1.0, abs=0.02)
        assert row.verdict.beaten == ()
    assert "beats" not in verdict.sentence
    assert "is no better than a constant" in verdict.warning


def test_persistence_itself_is_not_better_than_persistence() -> None:
    verdict = judge(scored(lambda x, t: x))
    assert all(lead.against["persistence"].ratio == 1.0 for lead in verdict.leads)
    assert not any(lead.beats("persistence") for lead in verdict.leads)
    # kept^t > 1/2: the frame held still is still nearer than the mean at these leads
    assert "does not beat persistence at any lead time" in verdict.sentence
    assert "beats the dataset's mean at every lead time" in verdict.sentence


def test_less_error_than_persistence_counts_only_below_a_vrmse_of_one() -> None:
    """Of forecasts that both have lost the truth, the quieter is nearer; it forecasts nothing."""

    def noise(frames: Tensor, lead_time: Tensor) -> Tensor:
        quiet = torch.linspace(-0.4, 0.4, GRID)
        return (quiet[:, None] * torch.ones(GRID)).expand_as(frames)

    def lost(frames: Tensor, lead_time: Tensor) -> Tensor:
        return 3.0 * frames.flip(-1)

    evaluation = scored(noise)
    evaluation.scores["persistence"] = scored(lost).scores["direct"]
    verdict = judge(evaluation)
    for lead in verdict.leads:
        assert lead.against["persistence"].outcome == "better"
        assert lead.vrmse > 1
        assert lead.label == "neither"
    assert "is better than persistence only where VRMSE is 1 or more" in verdict.sentence
    assert "no better than a constant at every lead time (1 to 4)" in verdict.warning


def test_the_mean_is_a_baseline_of_its_own() -> None:
    """A model may know the climate and beat a wrong mean, which is no merit above a VRMSE of 1."""
    verdict = judge(scored(lambda x, t: torch.zeros_like(x), field_mean=OFFSET + 20.0))
    assert all(lead.against["mean"].outcome == "better" for lead in verdict.leads)
    assert all(lead.against["mean"].ratio < 0.3 for lead in verdict.leads)
    assert not any(lead.beats("mean") for lead in verdict.leads)


@pytest.mark.parametrize("count", [1, 3, LEAST_TRAJECTORIES - 1])
def test_few_trajectories_tell_nothing(count: int) -> None:
    verdict = judge(scored(best_linear, count))
    assert all(lead.label == "too few" for lead in verdict.leads)
    noun = "trajectory" if count == 1 else "trajectories"
    assert (
        f"cannot be distinguished from persistence or the dataset's mean with {count} {noun}"
        in (verdict.sentence)
    )
    assert 2.0 * 0.5 ** (LEAST_TRAJECTORIES - 1) > 0.05  # all alike by chance, often enough
    assert 2.0 * 0.5**LEAST_TRAJECTORIES <= 0.05
    assert judge(scored(best_linear, LEAST_TRAJECTORIES)).leads[0].label == "both"


def test_the_interval_is_the_bootstraps_of_paired_trajectories() -> None:
    draw = np.random.default_rng(5)
    difficulty = np.exp(draw.normal(size=(41, 1)))  # shared by both forecasts of a trajectory
    own = difficulty * np.exp(0.2 * draw.normal(size=(41, 2)) - [0.1, 0.0])
    other = difficulty * np.exp(0.2 * draw.normal(size=(41, 2)))
    found = compare(own, other)
    for column, comparison in enumerate(found):
        ratios = own[:, column] / other[:, column]
        assert comparison.ratio == np.median(ratios)
        reference = stats.bootstrap(
            (own[:, column], other[:, column]),
            lambda x, y, axis: np.median(x / y, axis=axis),
            paired=True,
            vectorized=True,
            n_resamples=20_000,
            method="percentile",
            random_state=1,
        ).confidence_interval
        # ends are order statistics of the sample; 2000 draws may choose the next one
        ordered = np.sort(ratios)
        for ours, theirs in ((comparison.low, reference.low), (comparison.high, reference.high)):
            rank, expected = np.searchsorted(ordered, (ours, theirs))
            assert abs(rank - expected) <= 1
        # the median of a resample is at most the k-th value where at least 21 of 41 draws are
        chance = stats.binom.sf(20, 41, np.arange(1, 42) / 41)
        low = ordered[np.argmax(chance >= 0.025)]
        assert abs(np.searchsorted(ordered, comparison.low) - np.searchsorted(ordered, low)) <= 1
    unpaired = stats.bootstrap(
        (own[:, 0], other[:, 0]),
        lambda x, y, axis: np.median(x, axis=axis) / np.median(y, axis=axis),
        n_resamples=2000,
        vectorized=True,
        method="percentile",
        random_state=1,
    ).confidence_interval
    assert found[0].high - found[0].low < 0.5 * (unpaired.high - unpaired.low)
    assert compare(own, other) == found  # seeded


def test_diverged_and_perfect_forecasts_have_a_place() -> None:
    fine = np.full((8, 1), 0.5)
    (against_diverged,) = compare(fine, np.full((8, 1), np.inf))
    assert (against_diverged.ratio, against_diverged.outcome) == (0.0, "better")
    (diverged,) = compare(np.full((8, 1), np.inf), fine)
    assert (diverged.ratio, diverged.outcome) == (np.inf, "worse")
    for same in (np.inf, 0.0):
        (both,) = compare(np.full((8, 1), same), np.full((8, 1), same))
        assert (both.ratio, both.low, both.high, both.outcome) == (1.0, 1.0, 1.0, "unclear")
    one_diverged = np.concatenate([np.full((3, 1), np.inf), np.full((21, 1), 0.4)])
    (some,) = compare(one_diverged, np.full((24, 1), 0.5))
    assert some.outcome == "better"
    undefined = np.concatenate([np.full((4, 1), np.nan), fine])
    (without,) = compare(undefined, undefined * 2)
    assert (without.num_trajectories, without.ratio) == (8, 0.5)
    (nothing,) = compare(np.full((8, 1), np.nan), fine)
    assert nothing.outcome == "too few"


def test_mean_ranks_are_those_of_scipy_and_leave_unknown_cells_out() -> None:
    errors = np.array([[0.1, 0.4, 0.2, np.inf], [0.3, 0.4, 0.1, 0.2], [0.2, 0.5, 0.3, np.inf]])
    expected = stats.rankdata(errors, axis=0).mean(axis=1)
    np.testing.assert_allclose(mean_ranks(errors), expected)
    unknown = np.concatenate([errors, np.array([[np.nan], [0.0], [1.0]])], axis=1)
    np.testing.assert_allclose(mean_ranks(unknown), expected)
    np.testing.assert_array_equal(mean_ranks(np.full((2, 3), np.nan)), [1.0, 1.0])


def test_wins_are_of_trajectories_that_can_be_judged() -> None:
    nan, inf = math.nan, math.inf
    scores = np.array([[0.1, 0.5, nan, inf, 0.2, nan], [0.3, 0.2, nan, inf, 0.2, nan]])
    one, other = (count_wins(scores, row) for row in (0, 1))
    # won alone, lost, both diverged, equal; two left out
    assert (one.num_won, one.num_judged, one.num_left_out) == (2, 4, 2)
    assert (other.num_won, other.num_judged) == (2, 4)
    assert str(one) == "2 of 4 (2 left out)"
    assert one.share == 0.5
    nothing = count_wins(np.full((2, 3), nan), 0)
    assert (nothing.num_judged, nothing.num_left_out) == (0, 3)
    assert math.isnan(nothing.share)


def test_the_judged_method_is_the_best_over_all_leads() -> None:
    def late(frames: Tensor, lead_time: Tensor) -> Tensor:
        """Steps of one are what they should be, longer ones are not."""
        far = lead_time[:, None, None, None] > 1.5
        return torch.where(far, 2.0 * frames, best_linear(frames, lead_time))

    assert best_method(scored(late)) == "autoregressive"

    def early(frames: Tensor, lead_time: Tensor) -> Tensor:
        near = lead_time[:, None, None, None] < 1.5
        return torch.where(near, 2.0 * frames, best_linear(frames, lead_time))

    evaluation = scored(early)
    assert best_method(evaluation) == "direct"
    told = judge(evaluation)
    assert told.sentence == (
        "(direct) beats persistence at lead time 2, 4 (2 of 3) and beats the dataset's mean at lead "
        "time 2, 4 (2 of 3)"
    )
    assert "no better than a constant at lead time 1 (1 of 3)" in told.warning


def test_the_report_warns_at_its_top_and_shows_both_errors(tmp_path: Path) -> None:
    page, _ = write_report([scored(untrained)], Provenance("run", 1, "m"), tmp_path)
    html = page.read_text()
    warning = html.index('class="warning"')
    assert warning < html.index("<table>")
    assert "is no better than a constant" in html[warning : warning + 300]
    assert "paired bootstrap, 2000 resamples" in html
    good, _ = write_report([scored(best_linear)], Provenance("run", 1, "m"), tmp_path / "good")
    assert 'class="warning"' not in good.read_text()


def test_an_error_is_printed_as_both_shares() -> None:
    assert str(Error(0.0243, 1.0049)) == "2.43% / 1.00"
    assert str(Error(0.25, math.nan)) == "25.00% / -"
    assert str(Error(math.inf, math.inf)) == "diverged"
    assert str(Error(math.nan, math.nan)) == "-"


@pytest.mark.parametrize(
    ("outcomes", "label"),
    [
        (["better better"] * 2, "both"),
        (["better better", "better unclear"], "persistence only"),
        (["better better", "unclear better"], "mean only"),
        (["better worse", "worse better"], "neither"),
        (["better better", "unclear unclear"], "unclear"),
        (["worse unclear"], "neither"),
        (["unclear worse"], "neither"),
        (["unclear unclear"], "unclear"),
        (["worse worse", "too_few too_few"], "neither"),
        (["worse worse", "better better"], "neither"),
        (["better better", "too_few too_few"], "too few"),
    ],
)
def test_a_trial_beats_what_it_beats_on_every_dataset(outcomes: list[str], label: str) -> None:
    ends = {"better": (0.8, 0.9), "worse": (1.1, 1.2), "unclear": (0.9, 1.1), "too_few": (0.8, 0.9)}
    leads = []
    for pair in outcomes:
        against = {
            name: Comparison(1.0, *ends[outcome], 3 if outcome == "too_few" else 20)
            for name, outcome in zip(("persistence", "mean"), pair.split(), strict=True)
        }
        leads.append(LeadVerdict(1.0, 0.5, against))
    assert combined_label(leads) == label
    if len(leads) == 1:
        assert leads[0].label == label


def test_worse_than_one_baseline_and_undecided_against_the_other_is_neither() -> None:
    """Two ways of saying the same: the label of the row, and the sentence below the table."""

    def slower(frames: Tensor, lead_time: Tensor) -> Tensor:
        return 1.02 * frames

    evaluation = scored(slower)
    # the mean as it would be if it were as far from the truth, to either side of it
    noise = np.exp(0.3 * np.random.default_rng(1).choice([-1, 1], (24, 3, 1)))
    own = evaluation.scores["direct"]["vrmse"]
    evaluation.scores["mean"]["vrmse"] = own * noise
    verdict = judge(evaluation)
    lead = verdict.leads[0]
    assert lead.vrmse < 1
    assert {name: c.outcome for name, c in lead.against.items()} == {
        "persistence": "worse",
        "mean": "unclear",
    }
    assert lead.label == "neither"
    assert "beats" not in verdict.sentence
