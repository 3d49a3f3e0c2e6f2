"""The kinds of jobs: of each, one record of how to submit and run it.

A kind is a schema in `platform/config/`, its row in `platform/config/kinds.py`, a class here, and its
row below.
"""

from typing import Any

from pelagos.jobs.submission.kinds.base import Attempt as Attempt
from pelagos.jobs.submission.kinds.base import JobKind
from pelagos.jobs.submission.kinds.making import ConvertKind, GenerateKind
from pelagos.jobs.submission.kinds.measuring import EvaluateKind, ProbeKind, SweepKind
from pelagos.jobs.submission.kinds.training import FinetuneKind, TrainingKind
from pelagos.platform.config.kinds import Job

KINDS: dict[str, JobKind[Any]] = {
    "pretrain": TrainingKind(),
    "finetune": FinetuneKind(),
    "generate": GenerateKind(),
    "convert": ConvertKind(),
    "evaluate": EvaluateKind(),
    "sweep": SweepKind(),
    "probe": ProbeKind(),
}


def kind_of(job: Job) -> JobKind[Any]:
    """Return the record of a job's kind."""
    return KINDS[job.job]
