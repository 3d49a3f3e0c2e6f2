"""Starting a training and continuing a run, of whatever kind the job is."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from rich.console import Console

from pelagos.jobs import finetune, pretrain
from pelagos.jobs.pretrain import JobCheck, PretrainResult
from pelagos.jobs.training.branching import branch, finish_last
from pelagos.jobs.training.run_plugins import import_plugins_of
from pelagos.platform.config.finetune import FinetuneJob
from pelagos.platform.config.load import ConfigError, Problem
from pelagos.platform.config.schema import TrainingJob
from pelagos.platform.launch import Watcher
from pelagos.platform.records.runs import RunDirectory

RUNS: dict[str, Callable[..., PretrainResult]] = {
    "pretrain": pretrain.run,
    "finetune": finetune.run,
}


def start(
    job: TrainingJob,
    console: Console | None = None,
    watcher: Watcher | None = None,
    until_step: int | None = None,
    identity: str | None = None,
) -> PretrainResult:
    """Train a new run to its end, or until a step, as the `run` of its kind does."""
    return RUNS[job.job](job, console, watcher, until_step, identity)


def resume(
    runs_dir: str,
    name: str,
    console: Console | None = None,
    overrides: Sequence[str] = (),
    watcher: Watcher | None = None,
    until_step: int | None = None,
    from_step: str | None = None,
    request: str = "",
    require: JobCheck | None = None,
) -> PretrainResult:
    """Continue a run as `pretrain.resume` does.

    A fine-tuning killed before its first weights were written gets them first.

    With `from_step` (`last`, `best`, a step) it continues from that checkpoint as a branch, in which
    `overrides` may change optimizer and schedule too (`branching.branch`, also for `request`). A branch
    that was cut off half way is completed first. `require` receives the job as continued.
    """
    directory = RunDirectory.open(runs_dir, name)
    import_plugins_of(directory)
    try:
        if from_step is not None:
            branch(directory, from_step, overrides, request)
        finish_last(directory, overrides)
        is_finetune = isinstance(directory.job(), FinetuneJob)
        make_ready = finetune.make_ready_again if is_finetune else pretrain.ready_already
        return pretrain.resume(
            runs_dir, name, console, overrides, watcher, make_ready, until_step, require
        )
    except ConfigError as error:
        raise ConfigError(error.source, [_if_moved(p) for p in error.problems]) from error


def _if_moved(problem: Problem) -> Problem:
    """Return the problem, of a dataset that does not open with how to name its new place."""
    if problem.key[:2] != ("data", "mixture") or problem.key[-1:] != ("uri",):
        return problem
    key = ".".join(map(str, problem.key))
    return replace(problem, message=f"{problem.message}. If it moved: {key}=NEW_PLACE")
