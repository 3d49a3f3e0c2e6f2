"""A trained run, loaded once for all that is measured of it."""

from dataclasses import dataclass

from pelagos.jobs.training.run_plugins import import_plugins_of
from pelagos.jobs.weights.forecaster import Forecaster
from pelagos.platform.config.measure import EvaluateJob
from pelagos.platform.config.schema import TrainingJob
from pelagos.platform.records.runs import RunDirectory


@dataclass(frozen=True)
class TrainedRun:
    """A run as it was trained."""

    directory: RunDirectory
    training: TrainingJob
    forecaster: Forecaster
    step: int


def load_run(job: EvaluateJob) -> TrainedRun:
    """Return the run that a job evaluates.

    Raises:
        ValueError: no such run or checkpoint, or a plugin of it that is not imported.
    """
    directory = RunDirectory.open(job.runs_dir, job.run)
    import_plugins_of(directory)
    forecaster, step = Forecaster.from_run(directory, job.checkpoint, job.weights)
    return TrainedRun(directory, directory.job(), forecaster, step)
