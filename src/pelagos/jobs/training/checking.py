"""Refusing a training early: every reason why its job cannot run, before anything is started."""

import functools
from collections.abc import Callable, Iterator
from itertools import chain

import torch
from torch import nn

from pelagos.data_pipelines.streaming.mixtures.mixture import Mixture
from pelagos.data_pipelines.streaming.sampler import SampleIndex
from pelagos.jobs.training.blueprint import Blueprint, left_trainable
from pelagos.jobs.training.checks.fields import field_problems
from pelagos.jobs.training.checks.labels import drawn_label_problems, label_problems
from pelagos.jobs.training.mixtures import unique_names
from pelagos.jobs.training.networks import any_network
from pelagos.jobs.training.objective_options import option_problems
from pelagos.models.objectives import OBJECTIVES
from pelagos.platform.callbacks import create_callback
from pelagos.platform.config.load import ConfigError, Problem
from pelagos.platform.config.schema import TrainingJob
from pelagos.platform.optimization.optimizer import freeze, group_settings
from pelagos.platform.optimization.optimizer_kinds import find_optimizer
from pelagos.platform.optimization.schedules import SCHEDULES
from pelagos.platform.strategies import check_parameters, check_strategy
from pelagos.platform.strategy_choice import strategy_options


def checked(job: TrainingJob) -> Blueprint:
    """Return the blueprint of a job, whose every part could be built as far as that costs nothing.

    Raises:
        ConfigError: with every reason why the job cannot run.
    """
    blueprint = Blueprint(job)
    problems = [*_unknown_parts(job), *_objective_problems(blueprint)]
    problems += _model_problems(blueprint, has_problems=bool(problems))
    try:
        _ = blueprint.datasets
    except ConfigError as error:
        problems += error.problems
    if not problems:
        try:
            problems += _data_problems(blueprint)
        except ValueError as error:
            problems.append(Problem(("data",), str(error)))
    if problems:
        raise ConfigError(f"job {job.name}", problems)
    return blueprint


def _objective_problems(blueprint: Blueprint) -> list[Problem]:
    job = blueprint.job
    problems = option_problems(job)
    try:
        _ = blueprint.bare_objective
    except (ValueError, TypeError) as error:
        if not problems:
            is_known = job.objective.name in OBJECTIVES
            key = ("objective", "config" if is_known and job.objective.config else "name")
            problems.append(Problem(key, str(error)))
    return problems


def _model_problems(blueprint: Blueprint, *, has_problems: bool) -> Iterator[Problem]:
    """Yield the problems of the network, the optimizer's patterns and the strategy's options."""
    job = blueprint.job
    try:
        if has_problems:  # whatever the objective is, the network may have problems of its own
            with torch.device("meta"):
                model: nn.Module = any_network(job)
        else:
            model = blueprint.model
    except (ValueError, TypeError) as error:
        yield Problem(("model",), str(error))
    else:
        yield from _training_problems(job, model)


def _data_problems(blueprint: Blueprint) -> list[Problem]:
    """Return the problems of the data, or of the network on their grid."""
    job, mixture, held_out = blueprint.job, blueprint.mixture, blueprint.held_out
    drawn = blueprint.validation_samples
    labels = [label_problems(blueprint.bare_objective, part) for part in (mixture, held_out)]
    found = dict.fromkeys(chain(*labels))
    found = found or dict.fromkeys(_validation_labels(blueprint))
    problems = [Problem(("data", "mixture"), problem) for problem in found]
    problems += field_problems(job, blueprint.objective, mixture, held_out, drawn)
    problems += _stop_problems(job, mixture)
    _ = blueprint.flops_per_sample
    return problems


def _stop_problems(job: TrainingJob, mixture: Mixture) -> Iterator[Problem]:
    """Yield the problem of a dataset whose loss ends the training, where there is none of the name."""
    rule = job.schedule.stop_when
    names = unique_names([entry.dataset.spec.name for entry in mixture.entries])
    if rule is not None and rule.dataset is not None and rule.dataset not in names:
        known = ", ".join(names)
        message = f"got {rule.dataset!r}, but the mixture's datasets are named: {known}"
        yield Problem(("schedule", "stop_when", "dataset"), message)


def _validation_labels(blueprint: Blueprint) -> Iterator[str]:
    """Yield the problems of the maps of classes that validation will draw."""
    distinct: dict[object, SampleIndex] = {
        (s.dataset, s.trajectory, s.window, str(s.region)): s for s in blueprint.validation_samples
    }
    split = blueprint.job.validation.split
    yield from drawn_label_problems(
        blueprint.bare_objective, blueprint.held_out, distinct.values(), split
    )


def _unknown_parts(job: TrainingJob) -> Iterator[Problem]:
    """Yield the problems of the names of optimizer, schedule and callbacks."""
    checks: list[tuple[tuple[str | int, ...], Callable[[], object]]] = [
        (("optimizer", "name"), lambda: find_optimizer(job.optimizer)),
        (("schedule", "name"), lambda: SCHEDULES[job.schedule.name]),
    ]
    for index, entry in enumerate(job.callbacks):
        checks.append((("callbacks", index), functools.partial(create_callback, entry)))
    for key, check in checks:
        try:
            check()
        except ValueError as error:
            yield Problem(key, str(error))


def _training_problems(job: TrainingJob, model: nn.Module) -> Iterator[Problem]:
    """Yield the problems of the optimizer's patterns and the strategy's options."""
    try:
        with left_trainable(model):
            freeze(model, job.optimizer.frozen)
            group_settings(model, job.optimizer)
    except ValueError as error:
        yield Problem(("optimizer",), str(error))
    try:
        options = strategy_options(job)
        check_strategy(job.parallel.strategy, options, job.resources.num_workers)
        check_parameters(job.parallel.strategy, model)
    except ValueError as error:
        yield Problem(("parallel",), str(error))
