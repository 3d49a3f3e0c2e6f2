"""Evaluation: forecasts against truth and baselines, their errors, pictures and a report."""

from pelagos.platform.evaluation.evaluate import (
    DatasetEvaluation,
    evaluate_dataset,
)
from pelagos.platform.evaluation.report import Provenance, write_report
from pelagos.platform.evaluation.view import EvaluationData

__all__ = [
    "DatasetEvaluation",
    "EvaluationData",
    "Provenance",
    "evaluate_dataset",
    "write_report",
]
