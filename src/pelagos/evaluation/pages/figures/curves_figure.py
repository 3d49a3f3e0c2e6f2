"""The picture of learning curves: a panel for each value, a line for each run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from matplotlib.figure import Figure

from pelagos.infra.figures import new_figure, write_png

Curve = tuple[list[int], list[float]]
"""Steps and values."""
EXACT = "learning rate"  # without noise: a mean would only lag behind
LINEAR = (EXACT, "samples per second")
_DECADE = 10.0  # values within less than a decade are easier to read on a linear axis
_FEW = 5  # points that are marked as well as joined
_MANY = 100  # points of a curve that gets a rolling mean


@dataclass(frozen=True)
class Panel:
    """One value of several runs, or datasets, by name."""

    title: str
    curves: Mapping[str, Curve]


def write_curves(panels: Sequence[Panel], target: Path | BinaryIO) -> None:
    """Write the panels of `curves_figure` as PNG."""
    if isinstance(target, Path):
        target.parent.mkdir(parents=True, exist_ok=True)
    write_png(curves_figure(panels), target, dpi=110)


def curves_figure(panels: Sequence[Panel]) -> Figure:
    """Return the panels, two in a row; losses and norms over decades have a logarithmic axis."""
    rows = -(-len(panels) // 2)
    figure = new_figure(11, 3.2 * rows)
    axes = figure.subplots(rows, 2, squeeze=False)
    for axis, panel in zip(axes.flat, panels, strict=False):
        for name, (steps, values) in panel.curves.items():
            marker = "o" if len(steps) <= _FEW else ""
            (line,) = axis.plot(steps, values, marker=marker, linewidth=1.2, label=name)
            if (
                len(steps) >= _MANY and panel.title != EXACT
            ):  # the mean in full colour, each step behind it
                line.set(alpha=0.25, label=None)
                smooth = _rolling_mean(values)
                axis.plot(steps, smooth, color=line.get_color(), linewidth=1.6, label=name)
        shown = [value for _, values in panel.curves.values() for value in values]
        if panel.title not in LINEAR and 0 < _DECADE * min(shown) < max(shown):
            axis.set_yscale("log")
        axis.set_title(panel.title)
        axis.set_xlabel("step")
        axis.grid(alpha=0.3)
        if len(panel.curves) > 1 or panel.title.endswith("dataset"):
            axis.legend(fontsize="small")
    for axis in axes.flat[len(panels) :]:
        axis.set_axis_off()
    return figure


def _rolling_mean(values: Sequence[float]) -> list[float]:
    """Return the mean over the last fiftieth of the curve at each point."""
    window = max(1, len(values) // 50)
    sums = np.cumsum([0.0, *values])
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(0, ends - window)
    means: list[float] = ((sums[ends] - sums[starts]) / (ends - starts)).tolist()
    return means
