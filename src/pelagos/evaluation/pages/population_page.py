"""The history of a population: the settings of its members over steps, and who took over from whom."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from pelagos.evaluation.pages.plots import COLOURS

LOG_RATIO = 10.0  # values that span more than this are drawn on a logarithmic axis


class Member(Protocol):
    """The report's view of a trial."""

    @property
    def name(self) -> str:
        """Of its run."""

    @property
    def steps(self) -> int:
        """Steps that it has done."""

    @property
    def overrides(self) -> dict[str, Any]:
        """Its settings when it began."""

    @property
    def take_overs(self) -> list[dict[str, Any]]:
        """Step, source and changed settings of each."""


def taking_over(rows: Sequence[Member]) -> list[Member]:
    """Return the members of a population: all trials, if any took over another."""
    return list(rows) if any(row.take_overs for row in rows) else []


def take_over_rows(rows: Sequence[Member]) -> list[dict[str, Any]]:
    """Return a row per changed setting, by step; one without changes has an empty key."""
    table = []
    for row in rows:
        for told in row.take_overs:
            for key, (before, after) in (told["settings"] or {"": ("", "")}).items():
                table.append(
                    {
                        "step": told["step"],
                        "run": row.name,
                        "source": told["source"],
                        "key": key,
                        "before": _shown(before),
                        "after": _shown(after),
                    }
                )
    return sorted(table, key=lambda cells: (cells["step"], cells["run"]))


def schedule(row: Member, key: str) -> list[tuple[int, Any]]:
    """Return (step, value) of a setting: where the run began, each change, where it is."""
    value = row.overrides.get(key)
    points = [(0, value)]
    for told in row.take_overs:
        if key in told["settings"]:
            value = told["settings"][key][1]
            points.append((told["step"], value))
    return [*points, (max(row.steps, points[-1][0]), value)]


def schedule_figure(rows: Sequence[Member]) -> Figure:
    """A panel per setting that changed: its value over steps, a line per member; `rows`: best first."""
    keys = sorted({key for row in rows for told in row.take_overs for key in told["settings"]})
    figure = Figure(figsize=(7.0, 2.6 * max(len(keys), 1)), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(max(len(keys), 1), 1, squeeze=False, sharex=True)[:, 0]
    for axis, key in zip(panels, keys, strict=False):
        _panel(axis, rows, key)
    panels[-1].set_xlabel("step")
    return figure


def _panel(axis: Axes, rows: Sequence[Member], key: str) -> None:
    lines = [schedule(row, key) for row in rows]
    values = [value for line in lines for _, value in line]
    labels: list[str] = []
    if not all(isinstance(value, int | float) for value in values):
        labels = sorted({_shown(value) for value in values})
        lines = [[(step, labels.index(_shown(value))) for step, value in line] for line in lines]
    # the best is drawn last, over the others
    for rank in reversed(range(len(lines))):
        steps, heights = zip(*lines[rank], strict=True)
        colour = "black" if rank == 0 else COLOURS[rank % len(COLOURS)]
        axis.step(steps, heights, where="post", color=colour, linewidth=1.8 if rank == 0 else 1.1)
        taken = [told["step"] for told in rows[rank].take_overs]
        held = [next(v for s, v in reversed(lines[rank]) if s <= step) for step in taken]
        axis.plot(taken, held, "o", color=colour, markersize=3.5)
    if labels:
        axis.set_yticks(range(len(labels)), labels)
    elif min(values) > 0 and max(values) / min(values) > LOG_RATIO:
        axis.set_yscale("log")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.set_title(key, fontsize=10)
    axis.grid(alpha=0.25, linewidth=0.5)
    axis.spines[["top", "right"]].set_visible(False)


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
