"""Every kind of job file, by the word that stands in its `job` key."""

from pelagos.platform.config.convert import ConvertJob
from pelagos.platform.config.finetune import FinetuneJob
from pelagos.platform.config.measure import EvaluateJob, ProbeJob
from pelagos.platform.config.schema import GenerateJob, PretrainJob, TrainingJob
from pelagos.platform.config.sweep import SweepJob

Job = TrainingJob | GenerateJob | ConvertJob | EvaluateJob | SweepJob | ProbeJob
JOB_KINDS: dict[str, type[Job]] = {
    "pretrain": PretrainJob,
    "finetune": FinetuneJob,
    "generate": GenerateJob,
    "convert": ConvertJob,
    "evaluate": EvaluateJob,
    "sweep": SweepJob,
    "probe": ProbeJob,
}
