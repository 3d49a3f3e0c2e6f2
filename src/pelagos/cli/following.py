"""The verbs that follow a run, started here or submitted: logs, stop, wait, watch, clone, diff."""

import json
import sys
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Column, Table
from rich.text import Text

from pelagos.cli.choices import ClusterName, RunName, SearchedDir, require_run
from pelagos.cli.common import (
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    NOTHING_SAVED,
    AsJson,
    console,
    error_console,
    exit_on_error,
    print_json,
)
from pelagos.platform.console import harmless
from pelagos.platform.records.states import State

if TYPE_CHECKING:
    from pelagos.jobs.run_access.any_run import AnyRun, Standing

EXIT_TIMED_OUT = 124
# Exit status of `wait` and `watch` by the state in which a run is over; of others, interrupted.
EXIT_STATUS = {
    State.FINISHED: 0,
    State.FAILED: EXIT_FAILED,
    State.LOST: EXIT_FAILED,
    State.CREATED: EXIT_FAILED,
}
_INSTEAD = "leave out @{1}"


def logs_command(
    run: RunName,
    runs_dir: SearchedDir = None,
    cluster: ClusterName = None,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Continue until the run has ended.")
    ] = False,
) -> None:
    """Print the output of a run; with -f until it ends, reconnecting as needed.

    Example: pelagos logs -f ns-pretrain
    """
    from pelagos.jobs.run_access.finding import find

    with exit_on_error():
        require_run(run, _INSTEAD)
        for text in find(run, runs_dir, cluster).output(follow):
            is_shown = sys.stdout.isatty()
            sys.stdout.write(harmless(text) if is_shown else _writable(text))
            sys.stdout.flush()


def stop_command(
    run: RunName,
    runs_dir: SearchedDir = None,
    cluster: ClusterName = None,
    now: Annotated[
        bool,
        typer.Option("--now", help="End it at once; steps after its last checkpoint are lost."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Ask a run to save a checkpoint and stop.

    Example: pelagos stop ns-pretrain
    """
    from pelagos.jobs.run_access.finding import find

    with exit_on_error():
        require_run(run, _INSTEAD)
        found = find(run, runs_dir, cluster)
        done = found.stop(now)
    if as_json:
        print_json({"run": found.name, "state": done.state, "stop": done.asked})
        return
    note = f": {done.note}" if done.note else ""
    if not done.asked or done.state.has_ended:
        console.print(f"{found.name} is {done.state}{note}", soft_wrap=True)
    else:
        does = "ends" if now else "saves and stops"
        said = found.address if runs_dir or cluster else run
        console.print(f"{found.name} {does}; see `pelagos wait {said}`{note}", soft_wrap=True)


def wait_command(
    run: RunName,
    runs_dir: SearchedDir = None,
    cluster: ClusterName = None,
    timeout: Annotated[
        float | None, typer.Option("--timeout", min=0, help="Seconds; then exit status 124.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Wait until a run has ended: exit status 0 finished, 1 failed or lost, 130 stopped.

    Example: pelagos wait ns-pretrain --timeout 3600
    """
    from pelagos.jobs.run_access.any_run import wait
    from pelagos.jobs.run_access.finding import find

    with exit_on_error():
        require_run(run, _INSTEAD)
        found = find(run, runs_dir, cluster)
        try:
            standing = wait(found, timeout)
        except TimeoutError as error:
            console.print(str(error), soft_wrap=True)
            raise typer.Exit(EXIT_TIMED_OUT) from None
    _report_end(found, standing, as_json)


def watch_command(
    run: RunName,
    runs_dir: SearchedDir = None,
    cluster: ClusterName = None,
    every: Annotated[
        float | None,
        typer.Option(
            "--every",
            min=0.1,
            help="Seconds between two looks; default: 1, of a run in a bucket 5.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Show a run's progress until it ends; the exit status is that of `wait`.

    In a terminal the view is renewed; elsewhere there is a line for each change.

    Example: pelagos watch ns-pretrain
    """
    from pelagos.cli.watching import watch
    from pelagos.jobs.run_access.finding import find

    with exit_on_error():
        require_run(run, _INSTEAD)
        found = find(run, runs_dir, cluster)
        standing = watch(found, every or found.poll_seconds)
    _report_end(found, standing, as_json=False)


def clone_command(
    run: RunName,
    name: Annotated[str, typer.Argument(help="Name of the new run.", show_default=False)],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Overrides: dotted.key=value", show_default=False)
    ] = None,
    runs_dir: SearchedDir = None,
    cluster: Annotated[
        str | None,
        typer.Option(
            "--cluster",
            help="Cluster of the new run; default: that of the run, or here if it was started here.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Start a new run with the job of another one and your changes.

    The job of a run that was started here is trained here, next to it, or submitted with --cluster.

    Example: pelagos clone ns-pretrain ns-pretrain-2 optimizer.lr=5e-4
    """
    from pelagos.jobs.run_access.finding import find
    from pelagos.jobs.run_access.local_run import LocalRun
    from pelagos.jobs.run_access.submitted_run import SubmittedAnyRun

    given = list(overrides or ())
    with exit_on_error(NOTHING_SAVED):
        require_run(run, _INSTEAD)
        found = find(run, runs_dir)
        if isinstance(found, LocalRun) and cluster is None:
            _train_clone(found, name, given, as_json)
            return
        from pelagos.jobs import submit as job_module
        from pelagos.jobs.submission import following

        options = job_module.Options()
        if isinstance(found, SubmittedAnyRun):
            planned = following.clone(found.found, name, cluster, given, options)
        else:
            assert isinstance(found, LocalRun)
            assert cluster is not None
            with found.job_to_submit(cluster, given) as file:
                planned = job_module.plan([file], cluster, [f"name={name}", *given], options)
        names = job_module.submit(planned, say=_quiet if as_json else _say)
    if as_json:
        print_json({"runs": names, "cluster": planned.cluster.name})


def _train_clone(found: "AnyRun", name: str, overrides: list[str], as_json: bool) -> None:
    from pelagos.cli.job_files import report_training, say_begun
    from pelagos.jobs.run_access.local_run import LocalRun
    from pelagos.platform.config.locating import errors_of

    assert isinstance(found, LocalRun)
    where = str(found.run.path / "job.yaml")
    with errors_of(where, overrides):
        job = found.cloned(name, overrides)
        say_begun(where, job.name, quiet=as_json)
        from pelagos.jobs import resume
        from pelagos.jobs.training.run_plugins import import_plugins_of

        import_plugins_of(found.run)
        result = resume.start(job, error_console if as_json else console)
    report_training(result, job.runs_dir, as_json)


def diff_command(
    first: RunName, second: RunName, runs_dir: SearchedDir = None, as_json: AsJson = False
) -> None:
    """Show the job keys in which two runs differ.

    Example: pelagos diff ns-pretrain ns-pretrain-2
    """
    from pelagos.jobs.run_access.any_run import diff
    from pelagos.jobs.run_access.finding import find

    with exit_on_error():
        for run in (first, second):
            require_run(run, _INSTEAD)
        found = diff(find(first, runs_dir), find(second, runs_dir))
    if as_json:
        print_json({key: list(values) for key, values in found.items()})
        return
    table = Table(*(Column(Text(title)) for title in ("key", first, second)))
    for key, values in found.items():
        table.add_row(*(Text(cell) for cell in (key, *(json.dumps(value) for value in values))))
    console.print(table)


def _report_end(found: "AnyRun", standing: "Standing", as_json: bool) -> None:
    """Say how a run is over, and leave with the status that says the same."""
    why = standing.cause or standing.reason
    if as_json:
        print_json(
            {
                "run": found.name,
                "state": standing.state,
                "cause": standing.cause,
                "reason": standing.reason,
            }
        )
    else:
        console.print(f"{found.name}: {standing.state} {why}".rstrip(), soft_wrap=True)
    if status := EXIT_STATUS.get(standing.state, EXIT_INTERRUPTED):
        raise typer.Exit(status)


def _writable(text: str) -> str:
    """The text without halves of characters, which no file can hold."""
    return text.encode(errors="replace").decode()


def _say(text: str) -> None:
    console.print(text, soft_wrap=True)


def _quiet(_: str) -> None:
    pass
