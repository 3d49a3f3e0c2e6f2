"""VRMSE averaged over windows of a rollout, as The Well reports it (Ohana et al., arXiv:2412.00568)."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from pelagos.evaluation.forecasting.scores import DatasetEvaluation, WindowScore


def window_scores(
    evaluation: DatasetEvaluation, windows: Sequence[tuple[int, int]]
) -> list[WindowScore]:
    """Return the scores of the windows that have an evaluated lead in them."""
    steps = np.array(evaluation.lead_steps) / evaluation.rollout_step
    found = []
    for first, last in windows:
        inside = (steps >= first) & (steps <= last)
        if inside.any():
            vrmse = {
                method: _median(evaluation.defined_scores(method, "vrmse")[:, inside])
                for method in (*evaluation.forecast_methods, "persistence", "mean")
            }
            found.append(WindowScore(first, last, int(inside.sum()), vrmse))
    return found


def _median(scores: npt.NDArray[np.float64]) -> float:
    """Return the median over trajectories of `[trajectory, step, group]`, without NaN."""
    with np.errstate(invalid="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a trajectory in which nothing varies
        means = np.nanmean(scores, axis=(1, 2))
    means = means[~np.isnan(means)]
    if not means.size:
        return math.nan
    return float(np.quantile(means, 0.5, method="higher" if np.isinf(means).any() else "linear"))
