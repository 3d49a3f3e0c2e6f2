"""Pictures of an evaluation on a line: the panels, strips and animations of `plots` as profiles.

Fields are physical, over grid points. Truth and forecasts share one axis; errors have their own.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image as PillowImage

from pelagos.evaluation.forecasting.scores import DatasetEvaluation, ExampleForecast
from pelagos.evaluation.pages import plots
from pelagos.evaluation.pages.plots import COLOURS, Image
from pelagos.infra.figures import lay_out, new_figure

_INITIAL = ("initial frame", "#7d7d7d", "--")
_HEADROOM = 0.06


def forecast_panels(
    evaluation: DatasetEvaluation, example: ExampleForecast, lead: int, method: str
) -> Figure:
    """One row per stored field: initial frame, truth and forecast, then the error, at one lead."""
    channels = plots.stored_channels(evaluation)
    figure = new_figure(8.2, 1.9 * len(channels) + 0.5)
    axes = figure.subplots(len(channels), 2, squeeze=False, sharex=True)
    for row, channel in enumerate(channels):
        truth = example.truth[lead, channel]
        forecast = example.forecasts[method][lead, channel]
        _draw(axes[row, 0], example.initial[channel], _INITIAL)
        _draw(axes[row, 0], truth, plots.style("truth"))
        _draw(axes[row, 0], forecast, plots.style(method))
        _draw(axes[row, 1], forecast - truth, plots.style(method))
        axes[row, 0].set_ylim(*_limits([example.initial[channel], truth]))
        axes[row, 1].set_title(plots.error_label(forecast, truth), fontsize=8)
        axes[row, 0].set_ylabel(_named(evaluation, channel), fontsize=9)
        axes[row, 1].set_ylabel("error", fontsize=9)
    _name_points(axes[-1])
    axes[0, 0].set_title(f"t + {evaluation.lead_times[lead]:g}", fontsize=9)
    plots.legend(figure, axes[0, 0])
    return figure


def rollout_strip(
    evaluation: DatasetEvaluation, example: ExampleForecast, channel: int, method: str
) -> Figure:
    """One field through lead time: truth and forecast above, the error below, a column per lead."""
    leads = plots.spread(len(evaluation.lead_steps), plots.MAX_STRIP_COLUMNS)
    figure = new_figure(len(leads) * 1.7 + 2.4, 3.4)
    axes = figure.subplots(2, len(leads), squeeze=False, sharex=True, sharey="row")
    truth, forecast = example.truth[:, channel], example.forecasts[method][:, channel]
    for column, lead in enumerate(leads):
        _draw(axes[0, column], truth[lead], plots.style("truth"))
        _draw(axes[0, column], forecast[lead], plots.style(method))
        _draw(axes[1, column], forecast[lead] - truth[lead], plots.style(method))
        axes[0, column].set_title(f"t + {evaluation.lead_times[lead]:g}", fontsize=9)
    axes[0, 0].set_ylim(*_limits([truth[leads]]))
    axes[0, 0].set_ylabel(_named(evaluation, channel), fontsize=9)
    axes[1, 0].set_ylabel("error", fontsize=9)
    _name_points(axes[-1])
    plots.legend(figure, axes[0, 0])
    return figure


def rollout_animation(
    path: Path,
    evaluation: DatasetEvaluation,
    example: ExampleForecast,
    channel: int,
    method: str,
    *,
    frames_per_second: int = 4,
) -> None:
    """Write an animated GIF of one field: truth, forecast and error through the lead times."""
    images = {
        "truth": example.truth[:, channel],
        plots.style(method)[0]: example.forecasts[method][:, channel],
    }
    field, times = evaluation.data.fields[channel], evaluation.lead_times
    with path.open("wb") as target:
        animate(
            target, images, field, times, reference="truth", frames_per_second=frames_per_second
        )


def animate(
    target: BinaryIO,
    images: Mapping[str, Image],
    field: str,
    times: Sequence[float],
    *,
    reference: str,
    frames_per_second: int = 4,
) -> None:
    """Write an animated GIF of profiles `[time, x]` by name, and of their errors below them."""
    truth = images[reference]
    errors = {name: values - truth for name, values in images.items() if name != reference}
    figure = new_figure(6.4, 4.4)
    above, below = figure.subplots(2, 1, sharex=True)
    styles = dict(_styles(images, reference))
    moving = [(_draw(above, v[0], styles[name]), v) for name, v in images.items()]
    moving += [(_draw(below, v[0], styles[name]), v) for name, v in errors.items()]
    above.set_ylim(*_limits([truth]))
    below.set_ylim(*_limits(list(errors.values())))
    above.set_ylabel(field, fontsize=9)
    below.set_ylabel("error", fontsize=9)
    _name_points([below])
    plots.legend(figure, above)
    heading = figure.suptitle(field, fontsize=10)
    lay_out(figure)
    figure.set_layout_engine("none")
    pictures = []
    for index, time in enumerate(times):
        for line, values in moving:
            line.set_ydata(values[index])
        heading.set_text(f"{field}, t + {time:g}")
        png = io.BytesIO(plots.figure_png(figure, dpi=80))
        pictures.append(PillowImage.open(png).convert("RGB").quantize())
    plots.save_gif(target, pictures, frames_per_second)


def _styles(
    images: Mapping[str, Image], reference: str
) -> Iterator[tuple[str, tuple[str, str, str]]]:
    others = [name for name in images if name != reference]
    yield reference, (reference, plots.style("truth")[1], "-")
    for number, name in enumerate(others):
        yield name, (name, COLOURS[(number + 1) % len(COLOURS)], "-")


def _draw(axis: Axes, values: Image, style: tuple[str, str, str]) -> Any:
    label, colour, dashes = style
    (line,) = axis.plot(values, dashes, color=colour, label=label, linewidth=1.2)
    plots.plain(axis)
    return line


def _limits(values: Sequence[Image]) -> tuple[float, float]:
    """A range that holds all finite values, so that a diverged forecast leaves the picture."""
    together = np.concatenate([v.ravel() for v in values])
    finite = together[np.isfinite(together)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    margin = _HEADROOM * (high - low) or 1.0
    return low - margin, high + margin


def _named(evaluation: DatasetEvaluation, channel: int) -> str:
    """Return the name of a field with its unit below it."""
    field = evaluation.data.fields[channel]
    return "\n".join(part for part in (field, plots.unit_label(evaluation, field)) if part)


def _name_points(axes: Sequence[Axes]) -> None:
    for axis in axes:
        axis.set_xlabel("x, grid point", fontsize=9)
