"""The opening table of an evaluation: errors of every way to forecast, lead by lead."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from pelagos.evaluation.conclusions.verdicts import LeadVerdict, Verdict
from pelagos.evaluation.forecasting.scores import BASELINES, DatasetEvaluation

WAYS = ("direct", "autoregressive", "ensemble")


class Error(NamedTuple):
    """One error as two shares: relative L1 and VRMSE.

    A field's offset makes relative L1 small and leaves VRMSE alone. Infinite where the forecast
    diverged, NaN where there is none.
    """

    relative_l1: float
    vrmse: float

    def __str__(self) -> str:
        if math.isinf(self.relative_l1):
            return "diverged"
        first, second = (
            "-" if math.isnan(value) else text
            for value, text in (
                (self.relative_l1, f"{self.relative_l1:.2%}"),
                (self.vrmse, f"{self.vrmse:.2f}"),
            )
        )
        return f"{first} / {second}" if (first, second) != ("-", "-") else "-"


@dataclass(frozen=True)
class SummaryRow:
    """One line: errors at one lead, the median over trajectories and the mean over fields.

    `errors` has the model's ways to the lead time and the baselines.
    """

    dataset: str
    lead_step: int
    lead_time: float
    errors: Mapping[str, Error]
    verdict: LeadVerdict

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values: relative L1 errors by method's name, VRMSE under `vrmse`."""
        return {
            "dataset": self.dataset,
            "lead_step": self.lead_step,
            "lead_time": self.lead_time,
            "direct": math.nan,  # of models that forecast step by step alone
            **{method: error.relative_l1 for method, error in self.errors.items()},
            "vrmse": {method: error.vrmse for method, error in self.errors.items()},
            **{f"beats_{baseline}": self.verdict.beats(baseline) for baseline in BASELINES},
        }


def shown_methods(evaluation: DatasetEvaluation) -> tuple[str, ...]:
    """Return the columns of the table: the model's ways to the lead times, then the baselines."""
    return (*(way for way in WAYS if way in evaluation.scores), *BASELINES)


def summary_rows(evaluation: DatasetEvaluation, verdict: Verdict) -> list[SummaryRow]:
    """Return the lines of one dataset, by lead."""
    columns = {
        method: [evaluation.mean_over_groups(method, metric) for metric in Error._fields]
        for method in shown_methods(evaluation)
    }
    return [
        SummaryRow(
            dataset=evaluation.data.name,
            lead_step=step,
            lead_time=evaluation.lead_times[i],
            errors={m: Error(float(l1[i]), float(v[i])) for m, (l1, v) in columns.items()},
            verdict=verdict.leads[i],
        )
        for i, step in enumerate(evaluation.lead_steps)
    ]
