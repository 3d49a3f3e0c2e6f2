"""Checks of a sweep's jobs and data before any trial starts."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pelagos.data_pipelines.store import DatasetError
from pelagos.data_pipelines.store.readable import ReadableDataset
from pelagos.evaluation.forecasting.view import scored_groups
from pelagos.jobs import finetune
from pelagos.jobs.sweeping.population import check_population
from pelagos.jobs.sweeping.trials import Trial, trials_of
from pelagos.jobs.training.checking import checked
from pelagos.jobs.training.mixtures import open_datasets
from pelagos.jobs.training.networks import build_objective
from pelagos.jobs.training.objective_options import option_of
from pelagos.jobs.weights.trained_network import usual_groups
from pelagos.platform.config.finetune import FinetuneJob
from pelagos.platform.config.kinds import as_kind
from pelagos.platform.config.load import ConfigError, Problem
from pelagos.platform.config.schema import TrainingJob
from pelagos.platform.config.sweep import POPULATION, SweepJob

Groups = frozenset[frozenset[frozenset[str]]]
"""Of each dataset the groups of fields that are scored, whatever they are called."""


def check_labels(sweep: SweepJob, labels: set[str]) -> None:
    """Check each label's job with the most trajectories, as far as that costs nothing.

    Jobs of labels that are not in `labels`, because all their trials are over, are only held
    against the others, where their data are still there.

    Raises:
        ConfigError: with every reason, under the label.
    """
    problems: list[Problem] = []
    jobs: dict[str, TrainingJob] = {}
    for trial in _examples(sweep):
        try:
            if trial.label in labels:
                _check(sweep, trial)
            else:
                open_datasets(trial.job)
            jobs[trial.label] = trial.job
        except (ConfigError, DatasetError, OSError) as error:
            if trial.label in labels:
                problems += _under(trial.label, error)
    if problems:
        raise ConfigError(f"sweep {sweep.name}", problems)
    check_measurement(sweep, jobs)


def check_measurement(sweep: SweepJob, jobs: Mapping[str, TrainingJob]) -> None:
    """Check that forecasts of these jobs' trials can be measured and compared.

    Raises:
        ConfigError: an objective that forecasts nothing, a lead beyond the end of a dataset, or
            gains of labels that are scored on other fields than the baseline.
    """
    if sweep.evaluate is None:
        return
    problems: list[Problem] = []
    scored: dict[str, Groups] = {}
    for label, job in jobs.items():
        objective = build_objective(job)
        if objective.call not in ("frame", "window"):
            message = (
                f"{job.objective.name} makes no forecasts to evaluate; set evaluate: null to "
                "compare validation losses"
            )
            problems.append(Problem(("jobs", label, "objective", "name"), message))
            continue
        datasets = open_datasets(job)
        problems += _lead_problems(sweep, job, datasets, objective.input_frames)
        scored[label] = _scored(job, datasets)
    problems += _gain_problems(sweep, scored)
    if problems:
        raise ConfigError(f"sweep {sweep.name}", list(dict.fromkeys(problems)))


def _examples(sweep: SweepJob) -> list[Trial]:
    """Return one trial of each label, with the most trajectories."""
    changes: dict[str, Any] = {
        "grid": {},
        "random": {},
        "trajectories": (max(sweep.trajectories),) if sweep.trajectories else (),
        "seeds": sweep.seeds[:1],
    }
    return trials_of(sweep.model_copy(update=changes))


def _under(label: str, error: Exception) -> Iterator[Problem]:
    """Yield an error's problems under the label."""
    if not isinstance(error, ConfigError):
        yield Problem(("jobs", label), str(error))
        return
    for problem in error.problems:
        yield Problem(("jobs", label, *problem.key), problem.message)


def _check(sweep: SweepJob, trial: Trial) -> None:
    if trial.job.starts_from is not None:
        finetune.prepare(as_kind(FinetuneJob, trial.job))
    else:
        checked(trial.job)
    if sweep.search.name == POPULATION:
        check_population(sweep, trial)


def _lead_problems(
    sweep: SweepJob, job: TrainingJob, datasets: Sequence[ReadableDataset], input_frames: int
) -> Iterator[Problem]:
    """Yield a problem for each dataset that ends before the lead of the sweep's errors."""
    lead = sweep.evaluate.lead_steps if sweep.evaluate else None
    if lead is None:
        return
    stride = option_of(job, "frame_stride", 1)
    for dataset in datasets:
        num_used = (dataset.num_frames - 1) // stride + 1
        longest = num_used - input_frames
        if lead > longest:
            yield Problem(
                ("evaluate", "lead_steps"),
                f"got {lead}, but {dataset.uri} has {num_used} used frames ({dataset.num_frames} "
                f"stored, frame_stride {stride}), and the first {input_frames} are given: the last "
                f"lead is {longest}",
            )


def _scored(job: TrainingJob, datasets: Sequence[ReadableDataset]) -> Groups:
    found = []
    for dataset in datasets:
        groups = option_of(job, "field_groups") or usual_groups(job.data.fields, dataset)
        found.append(frozenset(map(frozenset, scored_groups(groups, dataset.field_names).values())))
    return frozenset(found)


def _gain_problems(sweep: SweepJob, scored: Mapping[str, Groups]) -> Iterator[Problem]:
    """Yield a problem for each label whose errors are of other fields than the baseline's."""
    baseline = sweep.gain_baseline
    if not sweep.trajectories or baseline is None or baseline not in scored:
        return
    for label, groups in scored.items():
        if groups != scored[baseline]:
            yield Problem(
                ("jobs", label),
                f"is scored on {_told(groups)}, but the baseline {baseline} on "
                f"{_told(scored[baseline])}: a gain would compare errors of different fields. Use "
                "the same data.fields and objective.config.field_groups, or one sweep for each",
            )


def _told(groups: Groups) -> str:
    """Return groups in words: `{density} {velocity-x, velocity-y}`, datasets separated by `;`."""
    datasets = (
        " ".join(sorted(f"{{{', '.join(sorted(names))}}}" for names in of)) for of in groups
    )
    return "; ".join(sorted(datasets))
