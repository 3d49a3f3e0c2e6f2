"""Evaluation: forecasts against truth and baselines, their errors, pictures and a report."""

from pelagos.evaluation.forecasting.forecasts import evaluate_dataset
from pelagos.evaluation.forecasting.scores import DatasetEvaluation
from pelagos.evaluation.forecasting.view import EvaluationData
from pelagos.evaluation.pages.forecast_page import Provenance, write_report

__all__ = [
    "DatasetEvaluation",
    "EvaluationData",
    "Provenance",
    "evaluate_dataset",
    "write_report",
]
