"""Operations on whole datasets: append, copy, merge, split and describe."""

from pelagos.data_pipelines.management.appending import append
from pelagos.data_pipelines.management.copying import copy
from pelagos.data_pipelines.management.merging import merge
from pelagos.data_pipelines.management.revising import change_splits
from pelagos.data_pipelines.management.statistics_report import report

__all__ = ["append", "change_splits", "copy", "merge", "report"]
