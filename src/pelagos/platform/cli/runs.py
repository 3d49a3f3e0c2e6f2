"""`pelagos list` and `pelagos status`: what runs there are and how they fare."""

import time
from typing import Annotated, Any

import typer
from rich.table import Table

from pelagos.platform.cli.common import console, exit_on_error, print_json
from pelagos.platform.meters import goodput, step_time_percentiles
from pelagos.platform.runs import RunDirectory, list_runs

COLOURS = {"finished": "green", "running": "cyan", "failed": "red", "interrupted": "red"}
RunsDir = Annotated[str, typer.Option("--runs-dir", help="Directory that holds the runs.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]


def list_command(runs_dir: RunsDir = "runs", as_json: AsJson = False) -> None:
    """List the runs: state, progress, last loss, age.

    Example: pelagos list --runs-dir quickstart/runs
    """
    with exit_on_error():
        summaries = [summarize(run) for run in list_runs(runs_dir)]
    if as_json:
        print_json(summaries)
        return
    if not summaries:
        console.print(f"no runs in {runs_dir}; start one with `pelagos pretrain JOB.yaml`")
        return
    table = Table("run", "state", "step", "loss", "samples/s", "last sign")
    for s in summaries:
        table.add_row(
            s["run"],
            coloured(s["state"]),
            f"{s['step']}/{s['total_steps']}",
            _number(s["metrics"].get("loss"), "{:.4f}"),
            _number(s["metrics"].get("samples_per_second"), "{:.1f}"),
            ago(s.get("updated")),
        )
    console.print(table)


def status_command(
    run: Annotated[str, typer.Argument(help="Name of the run.", show_default=False)],
    runs_dir: RunsDir = "runs",
    as_json: AsJson = False,
) -> None:
    """Show one run: state, cause, progress, restarts, checkpoints, goodput, where it is tracked.

    Example: pelagos status quickstart --json
    """
    with exit_on_error():
        details = describe(RunDirectory.open(runs_dir, run))
    if as_json:
        print_json(details)
        return
    table = Table(show_header=False, box=None)
    for key, value in details.items():
        if key != "metrics":
            table.add_row(key.replace("_", " "), coloured(str(value)))
    for key, value in details["metrics"].items():
        table.add_row(key.replace("_", " "), _number(value, "{:.6g}"))
    console.print(table)


def summarize(run: RunDirectory) -> dict[str, Any]:
    """Return a run's state, progress and last values."""
    return {"run": run.name, "total_steps": run.job().schedule.total_steps, **run.status()}


def describe(run: RunDirectory) -> dict[str, Any]:
    """Return everything `status` shows."""
    summary = summarize(run)
    events, metrics = run.events(), run.metrics()
    checkpoints = [e for e in events if e["kind"] == "checkpoint"]
    share = goodput(events, metrics)
    details: dict[str, Any] = {
        "run": run.name,
        "state": summary["state"],
        "step": f"{summary['step']} of {summary['total_steps']}",
        "cause": summary.get("cause") or "-",
        "launches": sum(e["kind"] == "launched" for e in events),
        "resumes": sum(e["kind"] == "resumed" for e in events),
        "last_checkpoint": f"step {checkpoints[-1]['step']}" if checkpoints else "none",
        "checkpoints": run.checkpoint_uri,
        "goodput": f"{share:.1%}" if share is not None else "-",
        "directory": str(run.path),
        "tracking": run.job().tracking.uri,
    }
    details["metrics"] = {
        **{k: v for k, v in summary["metrics"].items() if k not in ("time", "step")},
        **step_time_percentiles(metrics),
    }
    return details


def coloured(state: str) -> str:
    """Return the state with its colour."""
    return f"[{COLOURS[state]}]{state}[/]" if state in COLOURS else state


def ago(moment: float | None) -> str:
    """Return how long ago a time was, in the largest fitting unit."""
    if moment is None:
        return "-"
    seconds = max(0.0, time.time() - moment)
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit} ago"
    return f"{seconds:.0f} s ago"


def _number(value: Any, form: str) -> str:
    return form.format(value) if isinstance(value, int | float) else "-"
