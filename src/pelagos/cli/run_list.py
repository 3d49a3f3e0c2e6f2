"""The table of `pelagos list`: as many columns as fit the terminal, and names always whole."""

from collections.abc import Callable, Sequence

from rich.cells import cell_len
from rich.table import Table
from rich.text import Text

from pelagos.cli.common import console
from pelagos.cli.words import ago, coloured
from pelagos.platform.records.description import RunSummary

Cell = Callable[[RunSummary], str]


def _number(found: RunSummary, key: str, form: str) -> str:
    value = found.metrics.get(key)
    return form.format(value) if isinstance(value, int | float) else "-"


COLUMNS: dict[str, Cell] = {
    "run": lambda s: s.run,
    "cluster": lambda s: s.cluster or "-",
    "state": lambda s: s.state,
    "step": lambda s: f"{s.step}/{s.total_steps}" if s.total_steps else "-",
    "loss": lambda s: _number(s, "loss", "{:.4f}"),
    "samples/s": lambda s: _number(s, "samples_per_second", "{:.1f}"),
    "last sign": lambda s: ago(s.updated),
}
LEAST_FIRST = ("samples/s", "loss", "cluster", "last sign", "step")
"""Columns that a narrow terminal does without, the least needed first."""
_BETWEEN = 3  # characters between two columns
_EDGES = 4


def show_runs(found: Sequence[RunSummary], *, wide: bool) -> None:
    """Print a table of runs; `wide` shows every column, however wide that is."""
    rows = [{name: cell(summary) for name, cell in COLUMNS.items()} for summary in found]
    widths = {name: max(cell_len(t) for t in (name, *(r[name] for r in rows))) for name in COLUMNS}
    shown = list(COLUMNS)
    left_out: list[str] = []
    for name in () if wide else LEAST_FIRST:
        if _width(shown, widths) > console.width:
            shown.remove(name)
            left_out.append(name)
    table = Table(*shown, width=_width(shown, widths))
    for column in table.columns:
        column.no_wrap = True
    for row in rows:
        table.add_row(*(coloured(row[n]) if n == "state" else Text(row[n]) for n in shown))
    console.print(table, width=_width(shown, widths), crop=False, soft_wrap=False)
    if left_out:
        console.print(f"not shown: {', '.join(reversed(left_out))} (--wide)")


def _width(names: Sequence[str], widths: dict[str, int]) -> int:
    return sum(widths[name] for name in names) + _BETWEEN * (len(names) - 1) + _EDGES
