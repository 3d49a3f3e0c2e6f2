"""Job files: the typed schema, reading YAML with overrides, and errors that name file, line and key."""

from pelagos.platform.config.convert import ConvertJob
from pelagos.platform.config.finetune import FinetuneJob
from pelagos.platform.config.kinds import Job
from pelagos.platform.config.load import ConfigError, load_job, resolve_yaml
from pelagos.platform.config.measure import EvaluateJob
from pelagos.platform.config.schema import GenerateJob, PretrainJob, TrainingJob
from pelagos.platform.config.sweep import SweepJob

__all__ = [
    "ConfigError",
    "ConvertJob",
    "EvaluateJob",
    "FinetuneJob",
    "GenerateJob",
    "Job",
    "PretrainJob",
    "SweepJob",
    "TrainingJob",
    "load_job",
    "resolve_yaml",
]
