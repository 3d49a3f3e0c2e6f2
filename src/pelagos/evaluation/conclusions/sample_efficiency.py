"""How many training trajectories a model saves, and how much more accurate it is with as many.

The gains of Herde et al., "Poseidon: Efficient Foundation Models for PDEs" (arXiv:2405.19101,
section 4 and supplementary material). With E_S the error of a model trained on S trajectories,

    accuracy gain    AG_S = E_S(baseline) / E_S(model)
    efficiency gain  EG_S = S / s,  where E_s(model) = E_S(baseline)

E_s(model) is linear between measured points in log s and log E. Nothing is extrapolated: where the
model is at or below the baseline's error with the fewest trajectories already, or above it with
the most, the gain is a bound. So it is where the curve comes down from a model that diverged, or
reaches an error of zero: neither has a logarithm to draw a line through.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal, TypeVar

import numpy as np

Errors = Mapping[int, Mapping[int, float]]
"""Number of trajectories: seed: error."""

Value = TypeVar("Value")
CONFIDENCE = 0.95
NUM_RESAMPLES = 2000


@dataclass(frozen=True)
class Gain:
    """A gain, or a bound of it: `exact`, `above` (at least `value`) or `below` (less than it).

    `diverged` where there is none, because both models diverged; `value` is NaN then.
    """

    value: float
    kind: Literal["exact", "above", "below", "diverged"] = "exact"

    def __str__(self) -> str:
        if self.kind == "diverged":
            return "diverged"
        sign = {"exact": "", "above": "> ", "below": "< "}[self.kind]
        return f"{sign}{self.value:.3g}"


@dataclass(frozen=True)
class GainRow:
    """Both gains of one model at one number of trajectories, with their intervals over seeds.

    `accuracy_gain` is infinite where the baseline alone diverged, NaN where both did. An interval is
    (low, high); it is None with a single seed, where there is no spread to see.
    """

    model: str
    num_trajectories: int
    error: float
    baseline_error: float
    accuracy_gain: float
    accuracy_interval: tuple[float, float] | None
    efficiency_gain: Gain
    efficiency_interval: tuple[Gain, Gain] | None


def mean_curve(errors: Errors) -> dict[int, float]:
    """Return the mean error over seeds at each number of trajectories, in rising order.

    Raises:
        ValueError: an error is negative or no number, or there is none at all.
    """
    curve = {n: fmean(errors[n].values()) for n in sorted(errors) if errors[n]}
    wrong = [n for n, error in curve.items() if not error >= 0]
    if wrong or not curve:
        raise ValueError(f"every error must be given and must not be negative, got {curve}")
    return curve


def accuracy_gain(baseline: Mapping[int, float], model: Mapping[int, float], size: int) -> float:
    """Return AG_S at S = `size`; both curves must have been measured there.

    NaN where both diverged, infinite where the baseline alone did or the model alone has no error.
    """
    if model[size] == 0:
        return 1.0 if baseline[size] == 0 else math.inf
    return baseline[size] / model[size]


def efficiency_gain(baseline: Mapping[int, float], model: Mapping[int, float], size: int) -> Gain:
    """Return EG_S at S = `size`, where the baseline must have been measured.

    Where the model's curve crosses the error more than once, the first crossing counts.
    """
    target = baseline[size]
    sizes = sorted(model)
    if math.isinf(target) and all(math.isinf(error) for error in model.values()):
        return Gain(math.nan, "diverged")
    if model[sizes[0]] <= target and math.isfinite(model[sizes[0]]):
        is_exact = model[sizes[0]] == target
        return Gain(size / sizes[0], "exact" if is_exact else "above")
    for left, right in itertools.pairwise(sizes):
        if model[right] <= target and math.isfinite(model[right]):
            if model[right] == target:
                return Gain(size / right)
            if math.isinf(model[left]) or model[right] == 0:
                return Gain(size / right, "above")  # reached somewhere between the two
            return Gain(size / _crossing(left, model[left], right, model[right], target))
    return Gain(size / sizes[-1], "below")


def _crossing(left: int, left_error: float, right: int, right_error: float, target: float) -> float:
    """Return where the line through two points in log-log reaches `target`."""
    share = math.log(left_error / target) / math.log(left_error / right_error)
    return float(left * math.exp(share * math.log(right / left)))


def gain_rows(
    baseline: Errors, models: Mapping[str, Errors], num_resamples: int = NUM_RESAMPLES
) -> list[GainRow]:
    """Return the gains of each model at every number of trajectories that both have."""
    rows = []
    reference = mean_curve(baseline)
    for name, errors in models.items():
        curve = mean_curve(errors)
        for size in (n for n in reference if n in curve):
            rows.append(_row(name, size, baseline, errors, num_resamples))
    return rows


def _row(name: str, size: int, baseline: Errors, errors: Errors, num_resamples: int) -> GainRow:
    reference, curve = mean_curve(baseline), mean_curve(errors)
    accuracy = bootstrap(baseline, errors, lambda b, m: accuracy_gain(b, m, size), num_resamples)
    gains = _resamples(baseline, errors, lambda b, m: efficiency_gain(b, m, size), num_resamples)
    return GainRow(
        name,
        size,
        curve[size],
        reference[size],
        accuracy_gain(reference, curve, size),
        accuracy,
        efficiency_gain(reference, curve, size),
        _gain_interval(gains, size, curve) if gains else None,
    )


def _gain_interval(
    gains: Sequence[Gain], size: int, curve: Mapping[int, float], confidence: float = CONFIDENCE
) -> tuple[Gain, Gain]:
    """Return the percentile interval of resampled gains; a bound stays one.

    Between a bound and a value, or two bounds, nothing is interpolated: the outer one counts.
    Where both models diverged the gain is unknown, and each end takes its worst.
    """
    worst = Gain(size / max(curve), "below"), Gain(size / min(curve), "above")
    shares = (1 - confidence) / 2, (1 + confidence) / 2
    ends = []
    for share, unknown, outer in zip(shares, worst, (math.floor, math.ceil), strict=True):
        known = sorted((unknown if g.kind == "diverged" else g for g in gains), key=_order)
        position = share * (len(known) - 1)
        left, right = known[math.floor(position)], known[math.ceil(position)]
        if left.kind == right.kind == "exact":
            between = position - math.floor(position)
            ends.append(Gain(left.value + between * (right.value - left.value)))
        else:
            ends.append(known[outer(position)])
    return ends[0], ends[1]


def _order(gain: Gain) -> tuple[float, int]:
    """Sort by value; less than a value comes before the value itself, more than it after."""
    return gain.value, ("below", "exact", "above").index(gain.kind)


def bootstrap(
    baseline: Errors,
    model: Errors,
    statistic: Callable[[Mapping[int, float], Mapping[int, float]], float],
    num_resamples: int = NUM_RESAMPLES,
    confidence: float = CONFIDENCE,
) -> tuple[float, float] | None:
    """Return the percentile interval of a statistic of two mean curves, seeds drawn anew.

    A seed is drawn with its whole curve, as it was trained; the two models' seeds independently.
    None where neither has more than one seed. (Efron, 1979.) Where a resample is infinite, an end is
    the next resample outwards, not a value between two; one that is NaN, because both models
    diverged, may be anything, and counts as zero for the low end and as infinite for the high one.
    """
    values = _resamples(baseline, model, statistic, num_resamples)
    if values is None:
        return None
    shares = (1 - confidence) / 2, (1 + confidence) / 2
    if np.isfinite(values).all():
        low, high = np.quantile(values, shares)
    else:
        low = np.quantile(np.nan_to_num(values, nan=0.0, posinf=np.inf), shares[0], method="lower")
        high = np.quantile(
            np.nan_to_num(values, nan=np.inf, posinf=np.inf), shares[1], method="higher"
        )
    return float(low), float(high)


def _resamples(
    baseline: Errors,
    model: Errors,
    statistic: Callable[[Mapping[int, float], Mapping[int, float]], Value],
    num_resamples: int,
) -> list[Value] | None:
    """Return the statistic of each resample; None where neither has more than one seed."""
    if max(len(_seeds(baseline)), len(_seeds(model))) < 2:
        return None
    generator = np.random.default_rng(0)
    return [
        statistic(_resampled(baseline, generator), _resampled(model, generator))
        for _ in range(num_resamples)
    ]


def _seeds(errors: Errors) -> list[int]:
    return sorted({seed for by_seed in errors.values() for seed in by_seed})


def _resampled(errors: Errors, generator: np.random.Generator) -> dict[int, float]:
    """Return the mean curve over as many seeds, drawn with replacement."""
    seeds = _seeds(errors)
    drawn = [seeds[i] for i in generator.integers(len(seeds), size=len(seeds))]
    curve = {}
    for size, by_seed in errors.items():
        if by_seed:
            # a seed that failed at this size leaves the others to speak for it
            present = [by_seed[seed] for seed in drawn if seed in by_seed]
            curve[size] = fmean(present or by_seed.values())
    return curve
