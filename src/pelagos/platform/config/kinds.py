"""Every kind of job file, by the word that stands in its `job` key."""

from pelagos.platform.config.finetune import FinetuneJob
from pelagos.platform.config.probe import ProbeJob
from pelagos.platform.config.schema import (
    EvaluateJob,
    GenerateJob,
    PretrainJob,
    TrainingJob,
)
from pelagos.platform.config.sweep import SweepJob

Job = TrainingJob | GenerateJob | EvaluateJob | SweepJob | ProbeJob
JOB_KINDS: dict[str, type[Job]] = {
    "pretrain": PretrainJob,
    "finetune": FinetuneJob,
    "generate": GenerateJob,
    "evaluate": EvaluateJob,
    "sweep": SweepJob,
    "probe": ProbeJob,
}
