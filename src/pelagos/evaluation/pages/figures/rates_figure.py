"""The picture of a sweep over learning rates: the loss against the rate, and the curves behind it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from pelagos.evaluation.pages.figures.curves_figure import Curve
from pelagos.evaluation.pages.plots import COLOURS, plain
from pelagos.infra.figures import new_figure

_COLOURS = "viridis"


@dataclass(frozen=True)
class RateTrial:
    """One training of a sweep over rates.

    Attributes:
        series: what it shares with trials that differ in rate and seed alone.
        loss: its last validation loss; None or not finite where it has none.
        curve: its validation losses over steps.
    """

    series: str
    rate: float
    loss: float | None
    curve: Curve


def rates_figure(trials: Sequence[RateTrial]) -> Figure:
    """Return the loss against the logarithm of the rate, and every curve, coloured by the rate.

    A line joins the means over seeds of each series; trials that diverged are crosses at the top.
    """
    figure = new_figure(11.0, 4.2)
    left, right = figure.subplots(1, 2)
    _losses(left, trials)
    rates = sorted({trial.rate for trial in trials})
    norm, colours = LogNorm(rates[0], rates[-1]), colormaps[_COLOURS]
    for trial in trials:
        steps, losses = trial.curve
        marker = "o" if len(steps) == 1 else ""
        right.plot(steps, losses, color=colours(norm(trial.rate)), marker=marker, linewidth=1.3)
    for axis in (left, right):
        plain(axis)
        axis.set_yscale("log")
    right.set(xlabel="step", ylabel="validation loss")
    figure.colorbar(ScalarMappable(norm, _COLOURS), ax=right, label="learning rate")
    return figure


def _losses(axis: Axes, trials: Sequence[RateTrial]) -> None:
    known = [t.loss for t in trials if t.loss is not None and math.isfinite(t.loss)]
    top = 1.3 * max(known, default=1.0)
    for number, (series, losses) in enumerate(_by_series(trials).items()):
        colour = COLOURS[number % len(COLOURS)]
        means = {rate: float(np.mean(values)) for rate, values in losses.items() if values}
        axis.plot(list(means), list(means.values()), color=colour, label=series, linewidth=1.4)
        dots = [(rate, value) for rate, values in losses.items() for value in values]
        axis.plot([r for r, _ in dots], [v for _, v in dots], "o", color=colour, markersize=4)
        lost = [t.rate for t in trials if t.series == series and not _is_known(t.loss)]
        axis.plot(lost, [top] * len(lost), "x", color=colour)
    axis.set_xscale("log")
    axis.set(xlabel="learning rate", ylabel="last validation loss")
    axis.legend(fontsize=8, frameon=False)


def _by_series(trials: Sequence[RateTrial]) -> Mapping[str, dict[float, list[float]]]:
    """Return the known losses of each rate in order, by series."""
    found: dict[str, dict[float, list[float]]] = {}
    for trial in sorted(trials, key=lambda t: t.rate):
        values = found.setdefault(trial.series, {}).setdefault(trial.rate, [])
        if trial.loss is not None and math.isfinite(trial.loss):
            values.append(trial.loss)
    return found


def _is_known(loss: float | None) -> bool:
    return loss is not None and math.isfinite(loss)
