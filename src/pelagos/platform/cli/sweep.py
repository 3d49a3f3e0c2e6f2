"""The verb `sweep`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from pelagos.platform.cli.common import console, exit_on_error, finish, print_json
from pelagos.platform.terminal_tables import Column, print_table

if TYPE_CHECKING:
    from pelagos.platform.evaluation.sweep_report import SweepReport

_LISTED = 20


def sweep_command(
    job_file: Annotated[str, typer.Argument(help="A sweep job (YAML).", show_default=False)],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Overrides: dotted.key=value", show_default=False)
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List the trials and which are over, then stop.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False,
) -> None:
    """Train many variants of jobs and compare them; run it again and it goes on.

    Example: pelagos sweep configs/quickstart/sweep.yaml seeds=[0] --dry-run
    """
    from pelagos.jobs import sweep as job_module
    from pelagos.jobs.sweep_checks import check_labels
    from pelagos.jobs.sweep_trials import FINAL_STATES, trials_of
    from pelagos.jobs.trial_inputs import check_inputs
    from pelagos.platform.cli.jobs import load_as
    from pelagos.platform.config import SweepJob

    with exit_on_error():
        job = load_as(SweepJob, job_file, overrides)
        if dry_run:
            trials = trials_of(job)
            check_labels(job, set(job.jobs))
            check_inputs(job, trials)
            report = job_module.report_of(job, trials)
            by_name = {row.name: row for row in report.rows}
            rows = [(t.name, by_name[t.name].state) for t in trials]
            num_done = sum(state in FINAL_STATES for _, state in rows)
            _show_plan(rows, num_done, as_json)
            return
        result = job_module.run(job, None if as_json else console)
    if as_json:
        print_json({**result.report.to_dict(), "report": str(result.path)})
    else:
        show_report(result.report, result.path)
    finish(result.ok)


def _show_plan(rows: list[tuple[str, str]], num_done: int, as_json: bool) -> None:
    if as_json:
        trials = [{"name": name, "state": state} for name, state in rows]
        print_json({"num_trials": len(rows), "num_done": num_done, "trials": trials})
        return
    for name, state in rows:
        console.print(f"  {state:13} {name}", soft_wrap=True)
    console.print(f"{len(rows)} trials, {num_done} done, {len(rows) - num_done} to run")


def show_report(report: "SweepReport", path: Path) -> None:
    """Print the best trials, the gains, and what failed."""
    from pelagos.platform.evaluation.sweep_report import METHOD_TITLES, VALIDATION_LOSS

    methods = [m for m in report.methods if m in ("direct", "autoregressive")]
    measured = ["beats"] if any(row.beats for row in report.rows) else []
    for warning in report.warnings:
        console.print(Text("warning:", style="red"), warning, soft_wrap=True)
    title = f"{report.name}: relative L1 / VRMSE" if measured else report.name
    rows = report.rows[:_LISTED]
    print_table(
        console,
        title,
        Column("run", [f"{rank} {row.name}" for rank, row in enumerate(rows, 1)], is_text=True),
        [
            Column("state", [row.state for row in rows], is_text=True),
            Column("validation loss", [_loss(row.validation_loss) for row in rows]),
            *(
                Column(m, [str(row.both_errors(m)) if m in row.errors else "" for row in rows])
                for m in methods
            ),
            *(Column(name, [row.beats for row in rows], is_text=True) for name in measured),
        ],
    )
    for line in report.baseline_lines():
        console.print(f"  {line}", soft_wrap=True)
    if report.weights_line():
        console.print(f"  {report.weights_line()}", soft_wrap=True)
    if len(report.rows) > _LISTED:
        console.print(f"  and {len(report.rows) - _LISTED} more")
    for gains in report.gains():
        title = f"gains, {METHOD_TITLES.get(gains.method, gains.method)}, against {gains.baseline}"
        title += "" if gains.method == VALIDATION_LOSS else ": errors as relative L1 / VRMSE"
        headings = ("model", "trajectories", "error", "baseline's", "AG", "EG")
        model, *columns = (
            Column(heading, cells, is_text=heading == "model")
            for heading, cells in zip(headings, zip(*gains.cells(), strict=True), strict=True)
        )
        print_table(console, title, model, columns)
    for row in report.failures:
        console.print(Text(row.state, style="red"), f"{row.name}", soft_wrap=True)
        console.print(f"  {row.cause}", soft_wrap=True)
    console.print(f"report: {path}", soft_wrap=True)


def _loss(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"
