"""`pelagos list`, `status` and `resume`: list runs and their progress, continue one."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text

from pelagos.cli.choices import (
    ClusterName,
    RunName,
    SearchedDir,
    Workers,
    require_run,
    with_choices,
)
from pelagos.cli.common import (
    AsJson,
    console,
    error_console,
    exit_on_error,
    print_json,
)
from pelagos.cli.run_list import show_runs
from pelagos.cli.run_status import show_run
from pelagos.platform.records.description import RunSummary, summary_of
from pelagos.platform.records.runs import list_runs

DEFAULT_RUNS_DIR = "runs"


def list_command(
    runs_dir: SearchedDir = None,
    cluster: ClusterName = None,
    wide: Annotated[
        bool, typer.Option("--wide", help="Show every column, however wide that is.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """List the runs here and on every cluster: state, progress, last loss, age.

    A narrow terminal shows fewer columns; names are always whole.

    Example: pelagos list --cluster lab
    """
    from pelagos.jobs.run_access.finding import is_runs_dir_of
    from pelagos.jobs.submission.listed_runs import listed_runs

    with exit_on_error():
        summaries: list[RunSummary] = []
        problems: list[str] = []
        if cluster is None:
            for directory in list_runs(runs_dir or DEFAULT_RUNS_DIR):
                try:
                    summaries.append(summary_of(directory))
                except (ValueError, OSError) as error:
                    problems.append(f"run {directory.name}: {error}")
        if runs_dir is None:
            found, unread = listed_runs(cluster)
            submitted = {
                row.run for row in found if is_runs_dir_of(str(row.storage), DEFAULT_RUNS_DIR)
            }
            summaries = [row for row in summaries if row.run not in submitted] + found
            problems += unread
    for problem in problems:
        error_console.print(Text("not shown:", style="yellow"), problem, soft_wrap=True)
    if as_json:
        print_json([plain(summary) for summary in summaries])
        return
    if not summaries:
        console.print(
            f"no runs in {runs_dir or DEFAULT_RUNS_DIR}; start one with `pelagos pretrain JOB.yaml`"
        )
        return
    show_runs(summaries, wide=wide)


def status_command(
    run: RunName,
    runs_dir: SearchedDir = None,
    cluster: ClusterName = None,
    as_json: AsJson = False,
) -> None:
    """Show one run: state, cause, progress, restarts, checkpoints, goodput, where it is tracked.

    Example: pelagos status quickstart --json
    """
    from pelagos.jobs.run_access.finding import find

    with exit_on_error():
        require_run(run, "`pelagos status {0}`, or `pelagos checkpoint inspect {0}@{1}`")
        found = find(run, runs_dir, cluster).describe()
    if as_json:
        print_json(plain(found))
        return
    show_run(found)


def resume_command(
    run: RunName,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(help="Overrides: dotted.key=value", show_default=False),
    ] = None,
    runs_dir: SearchedDir = None,
    workers: Workers = None,
    cluster: Annotated[
        str | None,
        typer.Option(
            "--cluster", help="Submitted runs: continue on this cluster; default: the same."
        ),
    ] = None,
    from_step: Annotated[
        str | None,
        typer.Option(
            "--from",
            help="Branch off from this checkpoint (last, best, a step): optimizer.* and schedule.* "
            "may change from there on.",
        ),
    ] = None,
    take_over: Annotated[
        bool,
        typer.Option(
            "--take-over", help="Continue a run that somebody else submitted, with your own code."
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Continue a run from its newest checkpoint, as if it had never stopped.

    The strategy, the number of workers and the cluster may change.

    With --from it continues from that checkpoint as a branch: after a divergence with a lower
    learning rate, or to train longer (`--from last schedule.total_steps=20000`).

    A run of this directory continues here, in the foreground. A submitted run is submitted again. A
    submitted sweep writes its report again, which includes trials that were resumed since.

    Example: pelagos resume quickstart parallel.strategy=fsdp --workers 4
    """
    from pelagos.cli.job_files import report_training
    from pelagos.jobs.run_access.finding import find
    from pelagos.jobs.run_access.submitted_run import SubmittedAnyRun
    from pelagos.jobs.submission import start_again
    from pelagos.jobs.submission.planning import Options

    given = with_choices(overrides, workers=workers)
    with exit_on_error():
        require_run(run, "`pelagos resume {0} --from {1}` branches off there")
        # a wrong name shows before torch is imported; --cluster says where it goes, not where it is
        found = find(run, runs_dir)
        if not isinstance(found, SubmittedAnyRun):
            if cluster is not None:
                raise ValueError(
                    f"{found.address} was started here, so it continues here; `pelagos clone {run} "
                    f"NEW --cluster {cluster}` submits its job as a new run"
                )
            from pelagos.jobs import resume
            from pelagos.platform.config.locating import errors_of

            shown = error_console if as_json else console
            with errors_of(str(Path(found.runs_dir) / found.name / "job.yaml"), given):
                result = resume.resume(
                    found.runs_dir, found.name, shown, given, from_step=from_step
                )
            report_training(result, found.runs_dir, as_json)
            return
        state = start_again.resume(found.found, cluster, given, Options(), from_step, take_over)
    if as_json:
        print_json({"run": found.name, "state": state.state, "cluster": state.cluster})
    else:
        console.print(f"{found.name} is {state.state} on {state.cluster}; attempt {state.attempt}")


def plain(found: RunSummary) -> dict[str, Any]:
    """Return the description of a run as values of JSON: a number that is not finite is null."""
    values: dict[str, Any] = json.loads(found.model_dump_json())
    return values
