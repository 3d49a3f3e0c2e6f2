"""The picture of a long rollout: energies and spectra against time."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.figure import Figure

from pelagos.evaluation.forecasting.stability import FloatArray, Stability, quartiles
from pelagos.evaluation.pages import plots
from pelagos.infra.figures import new_figure


def stability_figure(stability: Stability) -> Figure:
    """Energy and spectral distance through time per field: model and, where it reaches, data."""
    groups = stability.groups
    drawn = new_figure(2.6 * len(groups) + 2.2, 5.0)
    axes = drawn.subplots(2, len(groups), squeeze=False, sharex=True)
    pairs = (
        ("mean square", stability.energy, stability.true_energy),
        ("spectral distance", stability.spectral_distance, stability.true_distance),
    )
    interval = stability.times[0]
    for row, (title, model, truth) in enumerate(pairs):
        for column, group in enumerate(groups):
            axis = axes[row, column]
            times = np.arange(truth.shape[1]) * interval
            _band(axis, times, truth[:, :, column], "truth")
            _band(axis, np.array(stability.times), model[:, :, column], "autoregressive")
            if row == 0:
                axis.set_title(group, fontsize=10)
                top = float(np.nanmax(truth[:, :, column]))
                axis.set_ylim(0.0, 3.0 * top if top > 0 else None)
            else:
                axis.set_xlabel("time", fontsize=9)
        axes[row, 0].set_ylabel(title, fontsize=9)
    plots.legend(drawn, axes[0, 0])
    return drawn


def _band(axis: Any, times: FloatArray, values: FloatArray, method: str) -> None:
    label, colour, line = plots.style(method)
    low, middle, high = np.array(quartiles(values[:, :, None]))[:, :, 0]
    shown = np.isfinite(middle)
    axis.fill_between(times, low, high, where=np.isfinite(high), color=colour, alpha=0.16, lw=0)
    axis.plot(times[shown], middle[shown], line, color=colour, label=label)
    plots.plain(axis)
