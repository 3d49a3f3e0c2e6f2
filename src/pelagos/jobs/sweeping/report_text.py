"""The report of a sweep as text for a terminal."""

from pathlib import Path

from rich.text import Text

from pelagos.evaluation.pages.sweep_page import METHOD_TITLES, VALIDATION_LOSS, SweepReport
from pelagos.evaluation.pages.terminal_tables import Column, print_table
from pelagos.platform.console import console

_LISTED = 20


def show_report(report: SweepReport, path: Path) -> None:
    """Print the best trials, the gains, and the failures."""
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
