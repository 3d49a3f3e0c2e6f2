"""Which forecasts are better than others, as far as the held-out trajectories can show.

Two forecasts of the same trajectories are compared by their ratio of VRMSE, the mean over fields, in
each trajectory, and by the median of that ratio. Its interval is a percentile bootstrap over
trajectories (Efron, 1979): `NUM_RESAMPLES` draws with replacement, always the same, at
`CONFIDENCE`. One forecast is better than another only where the whole interval is below 1, and
*beats a baseline* only if in addition its own median VRMSE is below 1: at 1 it is no better than
the spatial mean of the truth. Each lead is judged by itself.

With n trajectories the most that can happen is that all agree, which chance alone does with
probability 2 * 2^-n. Below `LEAST_TRAJECTORIES` that exceeds 1 - `CONFIDENCE`, so nothing is said.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from pelagos.evaluation.forecasting.scores import (
    BASELINES,
    DatasetEvaluation,
    FloatArray,
    mean_of_known,
)

JUDGED_BY = "vrmse"
CONFIDENCE = 0.95
NUM_RESAMPLES = 2000
LEAST_TRAJECTORIES = math.ceil(1 + math.log2(1 / (1 - CONFIDENCE)))  # 6
BASELINE_TITLES = {"persistence": "persistence", "mean": "the dataset's mean"}
_SEED = 0

Outcome = Literal["better", "worse", "unclear", "too few"]


@dataclass(frozen=True)
class Comparison:
    """One forecast against another at one lead.

    `ratio` is the median over trajectories of its VRMSE over the other's, `low` and `high` the
    interval; below 1 is better. `num_trajectories` counts those in which some field varies.
    """

    ratio: float
    low: float
    high: float
    num_trajectories: int

    @property
    def outcome(self) -> Outcome:
        if self.num_trajectories < LEAST_TRAJECTORIES:
            return "too few"
        if self.high < 1:
            return "better"
        return "worse" if self.low > 1 else "unclear"

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "outcome": self.outcome}


@dataclass(frozen=True)
class LeadVerdict:
    """The judged forecast at one lead: its median VRMSE, and how it compares with each baseline."""

    lead_time: float
    vrmse: float
    against: Mapping[str, Comparison]

    def beats(self, baseline: str) -> bool:
        """Whether it is better than the baseline and than the truth's spatial mean."""
        return self.vrmse < 1 and self.against[baseline].outcome == "better"

    @property
    def beaten(self) -> tuple[str, ...]:
        return tuple(baseline for baseline in self.against if self.beats(baseline))

    @property
    def is_worse_than_constant(self) -> bool:
        """Whether the median trajectory is worse than the dataset's mean or its own.

        Significant or not.
        """
        return self.against["mean"].ratio > 1 or self.vrmse > 1

    @property
    def label(self) -> str:
        """The baselines it beats, in a word or two."""
        return combined_label([self])


@dataclass(frozen=True)
class Verdict:
    """The verdict of held-out trajectories on one model and one dataset.

    `method` is the model's way to the lead times that is judged: the best by mean rank.
    """

    method: str
    num_trajectories: int
    leads: tuple[LeadVerdict, ...]

    @property
    def is_possible(self) -> bool:
        """Whether at some lead enough trajectories exist to decide."""
        counts = (c.num_trajectories for lead in self.leads for c in lead.against.values())
        return max(counts) >= LEAST_TRAJECTORIES

    @property
    def sentence(self) -> str:
        """The baselines the model beats, and where; the text follows 'the model'."""
        if not self.is_possible:
            count = self.num_trajectories
            return (
                f"({self.method}) cannot be distinguished from persistence or the dataset's mean with "
                f"{count} {'trajectory' if count == 1 else 'trajectories'}: at least "
                f"{LEAST_TRAJECTORIES} are needed"
            )
        both = [lead for lead in self.leads if len(lead.beaten) == len(lead.against)]
        if len(both) == len(self.leads):
            return f"({self.method}) beats persistence and the dataset's mean {self._at(both)}"
        parts = [self._against(baseline) for baseline in BASELINES]
        return f"({self.method}) {' and '.join(parts)}"

    @property
    def warning(self) -> str:
        """The warning to print first: where a constant is as good as the model; empty if nowhere."""
        worse = [lead for lead in self.leads if lead.is_worse_than_constant]
        if not worse:
            return ""
        return (
            f"the model ({self.method}) is no better than a constant {self._at(worse)}: VRMSE is "
            "above 1, or the dataset's mean has a smaller error"
        )

    def _against(self, baseline: str) -> str:
        title = BASELINE_TITLES[baseline]
        won = [lead for lead in self.leads if lead.beats(baseline)]
        if won:
            return f"beats {title} {self._at(won)}"
        outcomes = {lead.against[baseline].outcome for lead in self.leads}
        if "better" in outcomes:
            return f"is better than {title} only where VRMSE is 1 or more, which does not count"
        if outcomes <= {"worse"}:
            return f"is worse than {title} at every lead time"
        return f"does not beat {title} at any lead time"

    def _at(self, leads: Sequence[LeadVerdict]) -> str:
        times = [f"{lead.lead_time:g}" for lead in leads]
        if len(leads) == len(self.leads):
            return f"at every lead time ({_span(times)})"
        numbers = [self.leads.index(lead) for lead in leads]
        is_run = len(leads) > 2 and numbers == list(range(numbers[0], numbers[-1] + 1))
        told = _span(times) if is_run else ", ".join(times)
        return f"at lead time {told} ({len(leads)} of {len(self.leads)})"

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values; numbers may be infinite or NaN."""
        return {
            "method": self.method,
            "sentence": self.sentence,
            "warning": self.warning,
            "confidence": CONFIDENCE,
            "num_resamples": NUM_RESAMPLES,
            "least_trajectories": LEAST_TRAJECTORIES,
            "leads": [
                {
                    "lead_time": lead.lead_time,
                    "vrmse": lead.vrmse,
                    "beats": list(lead.beaten),
                    "label": lead.label,
                    "against": {name: c.to_dict() for name, c in lead.against.items()},
                }
                for lead in self.leads
            ],
        }


def judge(evaluation: DatasetEvaluation, groups: Sequence[str] | None = None) -> Verdict:
    """Compare the model's best way of forecasting with every baseline at every lead.

    On all scored fields, or on `groups`.
    """
    groups = groups or evaluation.group_names
    method = best_method(evaluation, groups)
    own = trajectory_scores(evaluation, method, groups)
    against = {
        name: compare(own, trajectory_scores(evaluation, name, groups)) for name in BASELINES
    }
    columns = [evaluation.group_names.index(group) for group in groups]
    medians = mean_of_known(evaluation.quantile(method, JUDGED_BY)[:, columns])
    return Verdict(
        method=method,
        num_trajectories=len(evaluation.trajectories),
        leads=tuple(
            LeadVerdict(time, float(medians[i]), {name: c[i] for name, c in against.items()})
            for i, time in enumerate(evaluation.lead_times)
        ),
    )


def best_method(evaluation: DatasetEvaluation, groups: Sequence[str] | None = None) -> str:
    """Return the model's way to the lead times with the best mean rank over leads and fields."""
    methods = evaluation.forecast_methods
    columns = [evaluation.group_names.index(g) for g in groups or evaluation.group_names]
    medians = [evaluation.quantile(m, JUDGED_BY)[:, columns].ravel() for m in methods]
    return methods[int(np.argmin(mean_ranks(np.array(medians))))]


def mean_ranks(errors: FloatArray) -> FloatArray:
    """Return the mean rank of each row of `[contender, cell]`; 1 is the least error everywhere.

    Equal errors share their mean rank; a cell in which an error is NaN is left out. All are 1 if no
    cell is left.
    """
    cells = errors[:, ~np.isnan(errors).any(axis=0)]
    if not cells.size:
        return np.ones(len(errors))
    below = (cells[None] < cells[:, None]).sum(axis=1)
    equal = (cells[None] == cells[:, None]).sum(axis=1)
    return np.asarray((below + (equal + 1) / 2).mean(axis=1), dtype=np.float64)


def trajectory_scores(
    evaluation: DatasetEvaluation, method: str, groups: Sequence[str] | None = None
) -> FloatArray:
    """Return VRMSE, the mean over fields, `[trajectory, lead]`.

    Infinite where a forecast is not finite, NaN where no field varies.
    """
    columns = [evaluation.group_names.index(g) for g in groups or evaluation.group_names]
    return mean_of_known(evaluation.defined_scores(method, JUDGED_BY)[:, :, columns])


@dataclass(frozen=True)
class Wins:
    """Trajectories won, of those that have a VRMSE; `num_left_out` have none."""

    num_won: int
    num_judged: int
    num_left_out: int

    @property
    def share(self) -> float:
        """NaN where no trajectory can be judged."""
        return self.num_won / self.num_judged if self.num_judged else math.nan

    def __str__(self) -> str:
        left_out = f" ({self.num_left_out} left out)" if self.num_left_out else ""
        return f"{self.num_won} of {self.num_judged}{left_out}"


def count_wins(scores: FloatArray, contender: int) -> Wins:
    """Count the trajectories on which one row of `[contender, trajectory]` is the least.

    Trajectories in which a score is NaN are left out: the truth leaves nothing to judge. None wins
    where all diverged, and equal contenders both win.
    """
    known = ~np.isnan(scores).any(axis=0)
    own = scores[contender]
    won = known & np.isfinite(own) & (own <= scores.min(axis=0))
    return Wins(int(won.sum()), int(known.sum()), int((~known).sum()))


def compare(own: FloatArray, other: FloatArray) -> list[Comparison]:
    """Compare paired scores `[trajectory, lead]`, lead by lead."""
    with np.errstate(invalid="ignore", divide="ignore"):
        ratios = own / other
    # both perfect, or both diverged: neither is better
    ratios = np.where((own == other) & ~np.isnan(own), 1.0, ratios)
    return [_comparison(column[~np.isnan(column)]) for column in ratios.T]


def _comparison(ratios: FloatArray) -> Comparison:
    count = len(ratios)
    if not count:
        return Comparison(math.nan, math.nan, math.nan, 0)
    with np.errstate(invalid="ignore"):
        medians = np.median(ratios[_draws(count)], axis=1)
    low, high = interval(medians)
    return Comparison(float(np.median(ratios)), low, high, count)


def interval(values: FloatArray) -> tuple[float, float]:
    """Return the percentile interval of resampled values; next to infinite ones the outer value."""
    tail = (1 - CONFIDENCE) / 2
    if np.isfinite(values).all():
        low, high = np.quantile(values, (tail, 1 - tail))
    else:
        low = np.quantile(values, tail, method="lower")
        high = np.quantile(values, 1 - tail, method="higher")
    return float(low), float(high)


@cache
def _draws(count: int) -> npt.NDArray[np.int64]:
    """Return which trajectories each resample holds, `[NUM_RESAMPLES, count]`, always the same."""
    return np.random.default_rng(_SEED).integers(count, size=(NUM_RESAMPLES, count))


def combined_label(leads: Sequence[LeadVerdict]) -> str:
    """Return the baselines that one model beats on every one of several datasets.

    `neither` where it is decided that it does not: worse than a baseline, or no better than the
    truth's spatial mean, on some dataset; `unclear` where trajectories cannot decide.
    """
    outcomes = {comparison.outcome for lead in leads for comparison in lead.against.values()}
    beaten = [baseline for baseline in BASELINES if all(lead.beats(baseline) for lead in leads)]
    if len(beaten) == len(BASELINES):
        return "both"
    if beaten:
        return f"{beaten[0]} only"
    if "worse" in outcomes:
        return "neither"
    if "too few" in outcomes:
        return "too few"
    return "neither" if any(lead.vrmse >= 1 for lead in leads) else "unclear"


def rule() -> str:
    """The rule in words, for reports."""
    return (
        "A forecast beats a baseline at a lead if its median VRMSE is below 1 and the "
        f"{CONFIDENCE:.0%} interval of the median over trajectories of VRMSE (mean over fields) "
        f"over the baseline's lies below 1 (paired bootstrap, {NUM_RESAMPLES} resamples of the "
        "trajectories)."
    )


def warnings_of(verdicts: Iterable[tuple[str, Verdict]]) -> list[str]:
    """Return the warnings of named datasets, those without left out."""
    return [f"{name}: {verdict.warning}" for name, verdict in verdicts if verdict.warning]


def _span(times: Sequence[str]) -> str:
    return times[0] if len(times) == 1 else f"{times[0]} to {times[-1]}"
