"""What is refused before any trial of a sweep starts, because of what its jobs and data are."""

from typing import Any

from pelagos.data_pipelines.mixture import Mixture
from pelagos.jobs import finetune
from pelagos.jobs.parts import build_objective, check_parts
from pelagos.jobs.population import check_population
from pelagos.jobs.sweep_trials import Trial, trials_of
from pelagos.platform.config.finetune import FinetuneJob
from pelagos.platform.config.load import ConfigError, Problem
from pelagos.platform.config.schema import TrainingJob
from pelagos.platform.config.sweep import POPULATION, SweepJob


def check_labels(sweep: SweepJob, labels: set[str]) -> None:
    """Check each label's job with the most trajectories, as far as that costs nothing.

    Raises:
        ConfigError: with every reason, under the label.
    """
    changes: dict[str, Any] = {
        "jobs": {label: entry for label, entry in sweep.jobs.items() if label in labels},
        "grid": {},
        "random": {},
        "trajectories": (max(sweep.trajectories),) if sweep.trajectories else (),
        "seeds": sweep.seeds[:1],
    }
    problems = []
    for trial in trials_of(sweep.model_copy(update=changes)):
        try:
            _check(sweep, trial)
        except ConfigError as error:
            problems += [_of_the_sweep(trial.label, problem) for problem in error.problems]
    if problems:
        raise ConfigError(f"sweep {sweep.name}", list(dict.fromkeys(problems)))


def _of_the_sweep(label: str, problem: Problem) -> Problem:
    """Return a problem under the sweep's key: that of the label, unless it names `evaluate`."""
    if problem.key[:1] == ("evaluate",):
        return problem
    return Problem(("jobs", label, *problem.key), problem.message)


def _check(sweep: SweepJob, trial: Trial) -> None:
    if isinstance(trial.job, FinetuneJob):
        mixture = finetune.prepare(trial.job).mixture
    else:
        mixture = check_parts(trial.job)
    if sweep.search.name == POPULATION:
        check_population(sweep, trial)
    if sweep.evaluate is None:
        return
    objective = build_objective(trial.job)
    if objective.call not in ("frame", "window"):
        message = (
            f"{trial.job.objective.name} forecasts nothing that could be evaluated: set evaluate: "
            "null to compare validation losses"
        )
        raise ConfigError(f"sweep {sweep.name}", [Problem(("objective", "name"), message)])
    _check_lead(sweep, trial.job, mixture, objective.input_frames)


def _check_lead(sweep: SweepJob, job: TrainingJob, mixture: Mixture, input_frames: int) -> None:
    """Refuse a lead beyond the end of one of the datasets that trials are measured on."""
    lead = sweep.evaluate.lead_steps if sweep.evaluate else None
    if lead is None:
        return
    for entry in mixture.entries:
        num_used = (entry.dataset.num_frames - 1) // job.objective.frame_stride + 1
        longest = num_used - input_frames
        if lead > longest:
            message = (
                f"got {lead}, but {entry.dataset.uri} has {num_used} used frames "
                f"({entry.dataset.num_frames} stored, frame_stride {job.objective.frame_stride}), of "
                f"which {input_frames} are given: the last lead is {longest}"
            )
            raise ConfigError(f"sweep {sweep.name}", [Problem(("evaluate", "lead_steps"), message)])
