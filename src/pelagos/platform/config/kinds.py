"""Every kind of job file, by the value of its `job` key."""

from typing import TypeVar

from pelagos.platform.config.convert import ConvertJob
from pelagos.platform.config.finetune import FinetuneJob
from pelagos.platform.config.measure import EvaluateJob, ProbeJob
from pelagos.platform.config.schema import GenerateJob, PretrainJob, TrainingJob
from pelagos.platform.config.sweep import SweepJob

Job = TrainingJob | GenerateJob | ConvertJob | EvaluateJob | SweepJob | ProbeJob
AnyJob = TypeVar("AnyJob", bound=Job)
JOB_KINDS: dict[str, type[Job]] = {
    "pretrain": PretrainJob,
    "finetune": FinetuneJob,
    "generate": GenerateJob,
    "convert": ConvertJob,
    "evaluate": EvaluateJob,
    "sweep": SweepJob,
    "probe": ProbeJob,
}


def as_kind(kind: type[AnyJob], job: Job, otherwise: Exception | None = None) -> AnyJob:
    """Return a job as one of a kind, which it is, or else raise `otherwise`."""
    if not isinstance(job, kind):
        raise otherwise or AssertionError(f"{job.job} is not a {kind.__name__}")
    return job
