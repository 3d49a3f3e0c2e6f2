"""Job files: the typed schema, reading YAML with overrides, and errors that name file, line and key."""

from pelagos.platform.config.load import ConfigError, load_job, resolve_yaml
from pelagos.platform.config.schema import EvaluateJob, GenerateJob, Job, PretrainJob

__all__ = [
    "ConfigError",
    "EvaluateJob",
    "GenerateJob",
    "Job",
    "PretrainJob",
    "load_job",
    "resolve_yaml",
]
