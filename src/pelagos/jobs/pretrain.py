"""`pelagos pretrain`, and the steps of every training: check, build, train, register."""

import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.text import Text

from pelagos.data_pipelines.streaming.mixtures.mixture import Mixture
from pelagos.infra.signals import Interrupted
from pelagos.jobs.plot_runs import draw_run
from pelagos.jobs.training.blueprint import Blueprint, build_parts
from pelagos.jobs.training.checking import checked
from pelagos.jobs.training.checkpoint_place import check_free, claim
from pelagos.jobs.training.checks.network import check_network
from pelagos.jobs.training.mixtures import unique_names
from pelagos.jobs.training.phases import phases
from pelagos.jobs.training.run_plugins import import_plugins_of
from pelagos.jobs.weights.forecaster import Forecaster
from pelagos.jobs.weights.register import register_model
from pelagos.platform.checkpoint import CheckpointStore, newest_state
from pelagos.platform.checkpoint.trainer_state import streams_of
from pelagos.platform.config.schema import TrainingJob
from pelagos.platform.console import HarmlessConsole
from pelagos.platform.kept_output import kept_output
from pelagos.platform.launch import Watcher, check_gpus, join_as_rank, launch
from pelagos.platform.mlflow_records.store import RecordedRun, check_tracking, recorded_run
from pelagos.platform.mlflow_records.tracker import Tracker
from pelagos.platform.progress import TrainingProgress
from pelagos.platform.records.runs import Outcome, RunDirectory, RunError
from pelagos.platform.records.states import State
from pelagos.platform.storage_choice import options_for
from pelagos.platform.strategies.processes import launched_by_torchrun
from pelagos.platform.trainer import BuildParts

logger = logging.getLogger(__name__)

MakeReady = Callable[[RunDirectory], None]
JobCheck = Callable[[TrainingJob], None]
_SHOWN = 16  # characters of a fingerprint


def ready_already(_: RunDirectory) -> None:
    """The preparation of a run that needs nothing but its directory."""


@dataclass(frozen=True)
class PretrainResult:
    """How the run ended, and the values of its last step and last validation."""

    run_name: str
    outcome: Outcome
    metrics: dict[str, float]
    registered_version: str | None = None


def run(
    job: TrainingJob,
    console: Console | None = None,
    watcher: Watcher | None = None,
    until_step: int | None = None,
    identity: str | None = None,
) -> PretrainResult:
    """Train a new run to its end; `watcher` is called several times a second meanwhile.

    With `until_step` it stops, with a checkpoint, after that many steps. `identity` is the
    run's (`RunDirectory.create`).

    Raises:
        ConfigError: the job cannot run as written; nothing was made.
        RunError: the run's name is taken.
    """
    return start(
        checked(job),
        console or HarmlessConsole(),
        watcher,
        until_step=until_step,
        identity=identity,
    )


def start(
    blueprint: Blueprint,
    console: Console,
    watcher: Watcher | None = None,
    make_ready: MakeReady = ready_already,
    until_step: int | None = None,
    identity: str | None = None,
) -> PretrainResult:
    """Train a checked job as a new run; `make_ready` writes whatever else it needs.

    With `until_step` it stops, with a checkpoint, after that many steps.

    Raises:
        ConfigError: the place of its checkpoints cannot be used; nothing was made.
        RunError: the run's name is taken.
    """
    job = blueprint.job
    if _other_rank():
        return _join(job)
    check_free(job, identity)
    check_gpus(job.resources)
    check_tracking(job)
    directory = RunDirectory.create(job, identity)
    try:
        claim(job, directory)
        make_ready(directory)
        return _train(blueprint, directory, console, watcher, until_step)
    except KeyboardInterrupt as error:
        if directory.status()["state"] == State.CREATED:
            directory.set_status(State.STOPPED, cause=f"{error} before it was launched")
        raise


def show_phases(blueprint: Blueprint, directory: RunDirectory, *consoles: Console) -> None:
    """Print a line for each phase that comes before the first step."""
    for name, line in phases(blueprint, directory.path):
        for console in consoles:
            console.print(Text(f"{name:8}", style="bold"), line, highlight=False, soft_wrap=True)


def resume(
    runs_dir: str,
    name: str,
    console: Console | None = None,
    overrides: Sequence[str] = (),
    watcher: Watcher | None = None,
    make_ready: MakeReady = ready_already,
    until_step: int | None = None,
    require: JobCheck | None = None,
) -> PretrainResult:
    """Continue a run from its newest complete checkpoint.

    A finished run only sends its records to MLflow, if that had failed or the store is another; one
    that `schedule.stop_when` ended continues where `overrides` change that.

    `overrides` (`parallel.strategy=fsdp`, `resources.num_workers=4`) change how the steps to come
    are computed, and stay with the run. `require` raises if the job as continued, which is read
    once, must not run.

    Raises:
        RunError: there is no such run, another process drives it, or an override changes what the
            run is.
    """
    directory = RunDirectory.open(runs_dir, name)
    import_plugins_of(directory)
    job = directory.revised_job(overrides) if overrides else directory.job()
    directory.require_believed(job, overrides)
    if require is not None:
        require(job)
    status = directory.status()
    outcome = Outcome(State.FINISHED, status["step"], str(status.get("cause") or ""))
    is_finished = status.get("state") == State.FINISHED and not _may_go_on(job, directory)
    is_sent = status.get("is_tracked") and recorded_run(job, directory) is not None
    if is_finished and (is_sent or job.tracking.uri is None):
        version = status.get("registered_version")
        return PretrainResult(name, outcome, _last_values(directory), version)
    blueprint = checked(job)
    if is_finished:
        # the store was away at the end, is another, or the driver was killed just before
        check_tracking(job)
        directory.replace_job(job)
        tracker = Tracker(job, directory, _dataset_records(blueprint.mixture))
        version = _close_records(blueprint, directory, tracker, outcome)
        return PretrainResult(name, outcome, _last_values(directory), version)
    if _other_rank():
        return _join(job)
    check_gpus(job.resources)
    check_tracking(job)
    if overrides:
        _check_continues(blueprint, directory)
        directory.replace_job(job)
    claim(job, directory)
    make_ready(directory)
    return _train(blueprint, directory, console or HarmlessConsole(), watcher, until_step)


def _may_go_on(job: TrainingJob, directory: RunDirectory) -> bool:
    """Whether `stop_when` ended a run before its last step, and the job as continued says otherwise."""
    is_early = directory.status()["step"] < job.schedule.total_steps
    return is_early and job.schedule.stop_when != directory.job().schedule.stop_when


def _check_continues(blueprint: Blueprint, directory: RunDirectory) -> None:
    """Reject changes after which the newest whole checkpoint could not be continued.

    These are other data, another order of samples, another network. The run keeps none.

    Raises:
        RunError: with the reason; nothing was changed.
        CheckpointError: there are checkpoints, and each is damaged.
    """
    job = blueprint.job
    uri = directory.checkpoint_uri
    store = CheckpointStore(uri, options_for(uri, job.storage))
    found = newest_state(store)
    if found is None:
        return
    step, state = found
    try:
        _check_same_data(blueprint.mixture, state)
        blueprint.streams.check_state(streams_of(state, f"{store.uri} step {step}"))
        check_network(job, state)
    except ValueError as error:
        raise RunError(f"run {directory.name!r} is unchanged: {error}") from error


def _check_same_data(mixture: Mixture, state: dict[str, Any]) -> None:
    """Raise ValueError if a dataset is another than the one that a checkpoint's `state` describes.

    The order of many datasets is kept as digests, which show that something changed, but not what.
    """
    described = (state.get("forecaster") or {}).get("datasets", [])
    if len(described) != len(mixture.entries):
        return  # the check of the order says so
    now = [entry.dataset for entry in mixture.entries]
    changes = [
        f"data.mixture.{i}.uri: {new.uri} has fingerprint {new.fingerprint[:_SHOWN]}, but the run "
        f"was trained so far on {str(old.get('fingerprint'))[:_SHOWN]} ({old.get('uri')})"
        for i, (old, new) in enumerate(zip(described, now, strict=True))
        if old.get("fingerprint") != new.fingerprint
    ]
    if changes:
        raise ValueError(
            f"the data changed since the checkpoint was written: {'; '.join(changes)}. Give an "
            "address that holds the same data, or start a new run"
        )


def _train(
    blueprint: Blueprint,
    directory: RunDirectory,
    console: Console,
    watcher: Watcher | None,
    until_step: int | None,
) -> PretrainResult:
    job = blueprint.job
    tracker = Tracker(job, directory, _dataset_records(blueprint.mixture))
    options = options_for(directory.checkpoint_uri, job.storage)
    total_steps = job.schedule.total_steps
    with kept_output(directory) as log:
        show_phases(blueprint, directory, console, log)
        with TrainingProgress(directory, total_steps, console, log) as progress:

            def watch() -> None:
                progress.poll()
                tracker.sync()
                if watcher is not None:
                    watcher()

            outcome = launch(job, directory, _builder(blueprint), options, watch, until_step)
        why = f": {outcome.cause}" if outcome.cause else ""
        log.print(f"{outcome.kind} after step {outcome.step}{why}", soft_wrap=True)
    try:
        draw_run(directory)
        version = _close_records(blueprint, directory, tracker, outcome)
    except Interrupted as error:
        note = (
            f"the run has ended ({outcome.kind}); `pelagos resume {job.name}` sends MLflow the rest"
        )
        raise Interrupted(error.number, note) from error
    return PretrainResult(job.name, outcome, _last_values(directory), version)


def _builder(blueprint: Blueprint) -> BuildParts:
    """Return the builder of the parts: in a worker for itself, in this process from existing ones."""
    if blueprint.job.resources.launcher == "ray":
        return build_parts
    return lambda job: blueprint.parts()


def _close_records(
    blueprint: Blueprint,
    directory: RunDirectory,
    tracker: Tracker,
    outcome: Outcome,
) -> str | None:
    """Send MLflow its missing records, register the model of a finished run; return its version."""
    version = None
    is_sent = tracker.sync(force=True)
    if outcome.kind == State.FINISHED and tracker.recorded is not None:
        version = _register(blueprint, directory, tracker.recorded)
    tracker.finish(outcome.kind)
    if is_sent:
        directory.set_status(outcome.kind, is_tracked=True, registered_version=version)
    return version


def _register(blueprint: Blueprint, directory: RunDirectory, recorded: RecordedRun) -> str | None:
    try:
        forecaster, _ = Forecaster.from_run(directory)
        return register_model(blueprint.job, recorded, forecaster, blueprint.mixture.grid_shape)
    except Exception as error:  # a registry that is away does not undo a finished training
        logger.warning("could not register the model in MLflow: %s", error)
        return None


def _dataset_records(mixture: Mixture) -> list[dict[str, Any]]:
    names = unique_names([e.dataset.spec.name for e in mixture.entries])
    return [
        {
            "name": name,
            "uri": entry.dataset.uri,
            "fingerprint": entry.dataset.fingerprint,
            "statistics": entry.dataset.statistics,
        }
        for name, entry in zip(names, mixture.entries, strict=True)
    ]


def _last_values(directory: RunDirectory) -> dict[str, float]:
    values = {k: v for r in directory.last_metrics(1) for k, v in r.items()}
    for event in directory.events():
        if event["kind"] == "validation":
            values["validation_loss"] = event["validation_loss"]
    return values


def _other_rank() -> bool:
    """Return whether torchrun started this process as a rank other than 0."""
    return launched_by_torchrun() and os.environ.get("RANK", "0") != "0"


def _join(job: TrainingJob) -> PretrainResult:
    directory = RunDirectory(os.path.join(job.runs_dir, job.name))
    options = options_for(job.checkpoint.uri or "", job.storage)
    join_as_rank(job, directory, build_parts, options)
    return PretrainResult(job.name, Outcome(State.FINISHED, job.schedule.total_steps), {})
