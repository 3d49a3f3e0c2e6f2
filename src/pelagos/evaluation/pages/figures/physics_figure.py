"""The picture of physics scores: every quantity against lead time."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from pelagos.evaluation.forecasting.scores import DatasetEvaluation
from pelagos.evaluation.pages import plots
from pelagos.infra.figures import new_figure

_COLUMNS = 4


def physics_figure(evaluation: DatasetEvaluation) -> Figure:
    """One panel per quantity: the data's own, every forecast, persistence; median and quartiles."""
    physics = evaluation.physics
    assert physics is not None
    quantities = physics.quantities
    columns = min(len(quantities), _COLUMNS)
    rows = -(-len(quantities) // columns)
    figure = new_figure(2.9 * columns + 1.2, 2.6 * rows + 0.4)
    axes = figure.subplots(rows, columns, squeeze=False, sharex=True)
    times = np.array(evaluation.lead_times)
    for axis, quantity in zip(axes.flat, quantities, strict=False):
        for method in physics.methods:
            label, colour, line = plots.style(method)
            low, middle, high = (physics.quantile(method, quantity, q) for q in (0.25, 0.5, 0.75))
            shown = np.isfinite(middle) & (middle > 0)
            axis.plot(times[shown], middle[shown], line, color=colour, label=label)
            axis.fill_between(times, low, high, where=np.isfinite(high), color=colour, alpha=0.12)
        axis.set_title(quantity, fontsize=10)
        if any((physics.scores[m][quantity] > 0).any() for m in physics.methods):
            axis.set_yscale("log")
        plots.plain(axis)
    for axis in list(axes.flat)[len(quantities) :]:
        axis.set_visible(False)
    for axis in axes[-1]:
        axis.set_xlabel(plots.lead_time_label(evaluation), fontsize=9)
    plots.legend(figure, axes[0, 0])
    return figure
