"""Evaluation: forecasts against truth and baselines, their errors, pictures and a report."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pelagos.evaluation.forecasting.forecasts import evaluate_dataset as evaluate_dataset
    from pelagos.evaluation.forecasting.scores import DatasetEvaluation as DatasetEvaluation
    from pelagos.evaluation.forecasting.view import EvaluationData as EvaluationData
    from pelagos.evaluation.pages.forecast_page import Provenance as Provenance
    from pelagos.evaluation.pages.forecast_page import write_report as write_report

# Nothing is imported before it is asked for: drawing learning curves needs no torch.
_PROMISED = {
    "DatasetEvaluation": "pelagos.evaluation.forecasting.scores",
    "EvaluationData": "pelagos.evaluation.forecasting.view",
    "evaluate_dataset": "pelagos.evaluation.forecasting.forecasts",
    **dict.fromkeys(("Provenance", "write_report"), "pelagos.evaluation.pages.forecast_page"),
}


def __getattr__(name: str) -> Any:
    if name not in _PROMISED:
        raise AttributeError(f"module 'pelagos.evaluation' has no attribute {name!r}")
    return getattr(import_module(_PROMISED[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_PROMISED])
