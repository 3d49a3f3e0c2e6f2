"""Reading job files for the verbs, and the closing words of a training."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import typer
from rich.text import Text

from pelagos import plugins
from pelagos.cli.choices import run_and_checkpoint
from pelagos.cli.common import EXIT_FAILED, EXIT_INTERRUPTED, console, print_json
from pelagos.infra.yaml_text import yaml_text
from pelagos.jobs.run_access.any_run import AnyRun
from pelagos.jobs.run_access.finding import find
from pelagos.platform.config import (
    ConvertJob,
    EvaluateJob,
    FinetuneJob,
    GenerateJob,
    PretrainJob,
    SweepJob,
    load_job,
)
from pelagos.platform.config.kinds import as_kind
from pelagos.platform.config.load import parse_job
from pelagos.platform.records.states import State

AnyJob = TypeVar("AnyJob", PretrainJob, FinetuneJob, GenerateJob, ConvertJob, EvaluateJob, SweepJob)


def load_as(kind: type[AnyJob], path: str, overrides: Sequence[str] | None) -> AnyJob:
    """Return the job of a file, which must be of `kind`. Raises `ValueError`."""
    job = plugins.with_named(load_job(path, overrides or ()))
    plugins.load_for(job)  # the user's own file
    if not isinstance(job, kind):
        raise ValueError(
            f"{path} is a {job.job} job, but this verb takes {kind.model_fields['job'].default} "
            f"jobs: run `pelagos {job.job} {path}`"
        )
    return job


def say_begun(path: str, name: str, *, quiet: bool) -> None:
    """Print at once that a job was read, before what takes seconds."""
    if not quiet:
        console.print(
            f"{name}: {path} is read; opening data and building the model", soft_wrap=True
        )


def is_job_file(argument: str) -> bool:
    """Whether an argument names a file of a job, and not data or a run."""
    return argument.endswith((".yaml", ".yml")) and Path(argument).exists()


def evaluate_job(
    run: str, overrides: Sequence[str] | None, cluster: str | None = None
) -> tuple[EvaluateJob, AnyRun]:
    """Return the evaluation of a run, RUN@WHICH, or of an `evaluate` job file; and the run, found.

    Raises:
        ValueError: no such run, or several; or the job is not valid.
    """
    if is_job_file(run):
        job = load_as(EvaluateJob, run, overrides)
        address = job.run
    else:
        address, which = run_and_checkpoint(run)
        other = [text for text in overrides or () if text.partition("=")[0] == "checkpoint"]
        if address != run and other:
            raise ValueError(f"{run} and {other[-1]} both name a checkpoint: keep the first")
        name = address.rpartition("/")[2]
        text = yaml_text({"job": "evaluate", "run": name, "checkpoint": which})
        found_job = parse_job(text, "command line", overrides or ())
        plugins.load_for(found_job)
        job = as_kind(EvaluateJob, found_job)
    given = job.runs_dir if "runs_dir" in job.model_fields_set else None
    found = find(address, given, cluster, default=job.runs_dir)
    found.directory()  # brings it here, or says that there is none
    return job.model_copy(update={"runs_dir": found.runs_dir}), found


def report_training(result: Any, runs_dir: str, as_json: bool) -> None:
    """Print how a training ended and set the exit status: 0, 1 failed, 130 stopped."""
    outcome = result.outcome
    if as_json:
        print_json(
            {
                "run_name": result.run_name,
                "outcome": asdict(outcome),
                "metrics": result.metrics,
                "registered_version": result.registered_version,
            }
        )
    elif outcome.kind == State.FINISHED:
        validation = result.metrics.get("validation_loss")
        shown = f", validation loss {validation:.4f}" if validation is not None else ""
        console.print(
            Text("finished", style="green"), f"{result.run_name} at step {outcome.step}{shown}"
        )
        if outcome.cause:  # schedule.stop_when
            console.print(f"  {outcome.cause}", soft_wrap=True, markup=False)
            console.print(
                f"  continue all the same: pelagos resume {result.run_name} --runs-dir {runs_dir} "
                "schedule.stop_when=null",
                soft_wrap=True,
            )
        console.print(
            f"  evaluate it: pelagos evaluate {result.run_name} --runs-dir {runs_dir}",
            soft_wrap=True,
        )
    elif outcome.kind == State.STOPPED:
        end = f", saved at step {outcome.step}" if outcome.is_saved else f": {outcome.cause}"
        console.print(Text("stopped", style="yellow"), f"{result.run_name}{end}", soft_wrap=True)
        console.print(
            f"  continue: pelagos resume {result.run_name} --runs-dir {runs_dir}", soft_wrap=True
        )
    else:
        console.print(Text("failed", style="red"), f"{result.run_name} after step {outcome.step}:")
        console.print(f"  {outcome.cause}", soft_wrap=True)
        console.print(
            f"  once it is fixed: pelagos resume {result.run_name} --runs-dir {runs_dir}",
            soft_wrap=True,
        )
    status = {
        State.FINISHED: 0,
        State.STOPPED: EXIT_INTERRUPTED,
        State.FAILED: EXIT_FAILED,
    }[outcome.kind]
    if status:
        raise typer.Exit(status)
