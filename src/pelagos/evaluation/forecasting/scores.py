"""Results of an evaluation: every score of one dataset, and the forecasts kept for pictures."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from pelagos.evaluation.forecasting.given_fields import GivenField, warnings_of_given
from pelagos.evaluation.forecasting.physics import PhysicsScores
from pelagos.evaluation.forecasting.view import EvaluationData

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]

MODEL_METHODS = ("autoregressive", "direct", "ensemble", "one_step")
BASELINES = ("persistence", "mean")
METHODS = (*MODEL_METHODS, *BASELINES, "previous_frame")


@dataclass
class ExampleForecast:
    """One trajectory kept for pictures, physical units, `[L, C, *grid]` at the lead steps.

    NaN where the data has no value. `rank`: what it is an example of (`typical_trajectories`).
    """

    trajectory: int
    initial: npt.NDArray[np.float32]
    truth: npt.NDArray[np.float32]
    forecasts: dict[str, npt.NDArray[np.float32]]
    rank: str = ""


@dataclass(frozen=True)
class WindowScore:
    """VRMSE over the steps `first` to `last` of a rollout, of which `num_steps` were evaluated.

    `vrmse` by method: mean over steps and fields, median over trajectories; infinite where the
    median trajectory diverges, NaN where no field varies in any trajectory.
    """

    first: int
    last: int
    num_steps: int
    vrmse: dict[str, float]

    @property
    def name(self) -> str:
        """The window in words that fit a metric's name: `6-12`."""
        return f"{self.first}-{self.last}"


@dataclass
class DatasetEvaluation:
    """Every score of one dataset.

    `scores[method][metric]` is `[trajectory, lead, group]`; `spectra[method]` the mean
    energy spectrum `[lead, group, k]` of truth and forecasts. Methods: `autoregressive`,
    `direct`, `ensemble` and `one_step` of the model; `persistence` (the initial frame),
    `mean` (of the training split, `climatology`) and `previous_frame` (the frame
    `rollout_step` before the target, next to `one_step`). Models that take several frames have no
    lead time to choose, and make no `direct` forecasts. `undefined[metric]`, of the same shape,
    marks scores that the truth leaves without a value (`metrics.is_undefined`).
    `weights`: the model's own, or `ema` for averaged ones.
    `physics` is None where the data's equation is not known; `physics_note` then says why.
    `windows`: VRMSE over windows of the rollout that were asked for (`window_scores`).
    `given`: fields that are in no error, and their changes in the evaluated trajectories.
    """

    data: EvaluationData
    trajectories: tuple[int, ...]
    start_frame: int
    lead_steps: tuple[int, ...]
    rollout_step: int
    scores: dict[str, dict[str, FloatArray]]
    spectra: dict[str, FloatArray]
    examples: list[ExampleForecast] = field(default_factory=list)
    physics: PhysicsScores | None = None
    physics_note: str = ""
    windows: list[WindowScore] = field(default_factory=list)
    undefined: dict[str, BoolArray] = field(default_factory=dict)
    weights: str = "model"
    given: tuple[GivenField, ...] = ()
    initial_frame: int = 0
    """The frame that leads count from: the last of the input frames."""

    @property
    def group_names(self) -> tuple[str, ...]:
        return tuple(self.data.groups)

    @property
    def methods(self) -> tuple[str, ...]:
        """The methods that were scored, in the order of `METHODS`."""
        return tuple(method for method in METHODS if method in self.scores)

    @property
    def forecast_methods(self) -> tuple[str, ...]:
        """The model's ways to the lead times: of `direct`, `autoregressive`, `ensemble`."""
        return tuple(m for m in ("direct", "autoregressive", "ensemble") if m in self.scores)

    @property
    def lead_times(self) -> tuple[float, ...]:
        """Physical lead time of each lead step."""
        return tuple(step * self.data.frame_interval for step in self.lead_steps)

    def defined_scores(self, method: str, metric: str) -> FloatArray:
        """Scores `[trajectory, lead, group]`.

        Infinite where a forecast is not finite, NaN where the truth leaves the metric without a
        value.
        """
        scores = self.scores[method][metric]
        scores = np.where(np.isfinite(scores), scores, np.inf)
        if metric in self.undefined:
            scores = np.where(self.undefined[metric], np.nan, scores)
        return scores

    def quantile(self, method: str, metric: str, q: float = 0.5) -> FloatArray:
        """A quantile over trajectories, `[lead, group]`; the median by default.

        Scores that are not finite count as infinitely bad; undefined ones are left out, and NaN
        appears where a field has no other.
        """
        scores = self.defined_scores(method, metric)
        # many times slower where nothing is left out
        quantile = np.nanquantile if np.isnan(scores).any() else np.quantile
        with np.errstate(invalid="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # a field that is left out everywhere
            between = quantile(scores, q, axis=0)
            # Interpolating towards infinity gives NaN; there the score above counts.
            above = quantile(scores, q, axis=0, method="higher")
        return np.asarray(np.where(np.isnan(between), above, between))

    def mean_over_groups(self, method: str, metric: str, q: float = 0.5) -> FloatArray:
        """Mean over field groups of the quantile over trajectories, `[lead]`.

        Without fields that have none, NaN where no field has one.
        """
        return mean_of_known(self.quantile(method, metric, q))

    def notes(self) -> list[str]:
        """Sentences on fields and points left out of errors.

        Masked points, truths that vanish, given fields.
        """
        reasons = {"vrmse": "VRMSE", "relative_l1": "relative errors"}
        found = [
            f"{group}: all errors leave out points without a value"
            for group, channels in self.data.groups.items()
            if set(channels) & set(self.data.masks)
        ]
        found += [field.sentence for field in self.given if field.is_as_trained]
        for metric, name in reasons.items():
            marks = self.undefined.get(metric)
            for index, group in enumerate(self.group_names if marks is not None else ()):
                assert marks is not None
                if count := int(marks[:, :, index].sum()):
                    why = "does not vary over space" if metric == "vrmse" else "is zero"
                    found.append(
                        f"{group}: {name} leaves out {count} of {marks[:, :, index].size} frames, "
                        f"in which the truth {why} (to a millionth of its size)"
                    )
        return found

    def warnings(self) -> list[str]:
        """Sentences that must be read before the errors: changing fields that no error covers."""
        return warnings_of_given(self.given)


def typical_trajectories(evaluation: DatasetEvaluation) -> dict[str, int]:
    """Return the trajectories with the median, the largest and the smallest error, by these words.

    The error is the autoregressive forecast's VRMSE at the longest lead, the mean over fields; of two
    equal ones the first counts, and no trajectory twice. Without an error there is none to choose:
    then the first trajectory is the example.
    """
    errors = mean_of_known(evaluation.defined_scores("autoregressive", "vrmse")[:, -1])
    order = [int(i) for i in np.argsort(errors, kind="stable") if not np.isnan(errors[i])]
    if not order:
        return {"first": evaluation.trajectories[0]}
    ranked = {"median": order[(len(order) - 1) // 2], "worst": order[-1], "best": order[0]}
    chosen: dict[str, int] = {}
    for rank, index in ranked.items():
        if evaluation.trajectories[index] not in chosen.values():
            chosen[rank] = evaluation.trajectories[index]
    return chosen


def mean_of_known(values: FloatArray) -> FloatArray:
    """Mean over the last axis without NaN; NaN where there is nothing else."""
    known = ~np.isnan(values)
    total = np.where(known, values, 0.0).sum(axis=-1)
    count = known.sum(axis=-1)
    return np.asarray(np.where(count > 0, total / np.maximum(count, 1), np.nan))
