"""Pictures of an evaluation: panels, strips, an animation, error growth and spectra.

Every function returns a figure on a canvas of its own (no pyplot, no display, no global state).
Fields are physical, x to the right and y upwards. Truth and forecasts share one colour scale;
errors have a symmetric one. Of a volume `[z, y, x]` the plane in the middle of z is drawn, and the
picture says so; fields on a line are `line_plots`'.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import CenteredNorm, Normalize
from matplotlib.figure import Figure
from PIL import Image as PillowImage

from pelagos.evaluation.forecasting.scores import BASELINES, DatasetEvaluation, ExampleForecast
from pelagos.evaluation.measures.metrics import relative_l1, vrmse
from pelagos.infra.figures import lay_out, new_figure, write_png

Image = npt.NDArray[np.float32]

# Colour-blind safe (Okabe and Ito, 2008).
COLOURS = ("#000000", "#E69F00", "#56B4E9", "#009E73", "#0072B2", "#D55E00", "#CC79A7")

_STYLE = {  # method: (label, colour, line style)
    "truth": ("truth", "#222222", "-"),
    "autoregressive": ("model, autoregressive", "#c44e27", "-"),
    "direct": ("model, direct", "#2a6f97", "-"),
    "ensemble": ("model, ensemble", "#4c8c4a", "-"),
    "one_step": ("model, one step", "#8a5a9e", ":"),
    "persistence": ("persistence", "#7d7d7d", "--"),
    "mean": ("mean", "#b0a14f", "-."),
}
_METRIC_LABELS = {"relative_l1": "relative L1 error", "vrmse": "VRMSE"}
MAX_STRIP_COLUMNS = 6
_PANEL_INCHES = 1.75
_ERROR_COLOURS = "PuOr_r"
_SPECTRUM_RANGE = 1e-9  # fp32 data carries nothing below


def figure_png(figure: Figure, dpi: int = 130) -> bytes:
    """The figure as a PNG file."""
    buffer = io.BytesIO()
    write_png(figure, buffer, dpi=dpi)
    return buffer.getvalue()


def forecast_panels(
    evaluation: DatasetEvaluation, example: ExampleForecast, lead: int, method: str
) -> Figure:
    """One row per stored field: initial frame, truth, forecast, error, at lead index `lead`."""
    channels, dimensions = stored_channels(evaluation), evaluation.data.num_dimensions
    figure = new_figure(4 * _PANEL_INCHES + 1.5, len(channels) * (_PANEL_INCHES + 0.22) + 0.3)
    axes = figure.subplots(len(channels), 4, squeeze=False)
    time = evaluation.lead_times[lead]
    titles = ("initial frame", f"truth, t + {time:g}", f"{method}, t + {time:g}", "error")
    for row, channel in enumerate(channels):
        whole = (
            example.initial[channel],
            example.truth[lead, channel],
            example.forecasts[method][lead, channel],
        )
        initial, truth, forecast = (middle_plane(values, dimensions) for values in whole)
        field = evaluation.data.fields[channel]
        norm, colours = _scale(field, [initial, truth])
        for axis, image in zip(axes[row, :3], (initial, truth, forecast), strict=True):
            shown = _show(axis, image, norm, colours)
        unit = unit_label(evaluation, field)
        _colorbar(figure, shown, list(axes[row, :3]), unit, shrink=0.9, pad=0.015, aspect=14)
        error = forecast - truth
        shown = _show(axes[row, 3], error, _symmetric([error]), _ERROR_COLOURS)
        axes[row, 3].set_xlabel(error_label(whole[2], whole[1]), fontsize=7)
        _colorbar(figure, shown, axes[row, 3], unit, shrink=0.9, pad=0.04, aspect=14)
        axes[row, 0].set_ylabel(field, fontsize=9)
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(title, fontsize=9)
    if dimensions == 3:
        figure.suptitle(
            f"{plane_name(evaluation.data.grid_shape)}; relative errors are of the whole volume",
            fontsize=9,
        )
    return figure


def rollout_strip(
    evaluation: DatasetEvaluation, example: ExampleForecast, channel: int, method: str
) -> Figure:
    """One field through lead time: rows truth, forecast and error, a column per lead time."""
    leads = spread(len(evaluation.lead_steps), MAX_STRIP_COLUMNS)
    figure = new_figure(len(leads) * 1.5 + 1.3, 3 * 1.5 + 0.6)
    axes = figure.subplots(3, len(leads), squeeze=False)
    dimensions = evaluation.data.num_dimensions
    truth = middle_plane(example.truth[:, channel], dimensions)
    forecast = middle_plane(example.forecasts[method][:, channel], dimensions)
    norm, colours = _scale(evaluation.data.fields[channel], [truth[leads]])
    error_norm = _symmetric([forecast[leads] - truth[leads]])
    for column, lead in enumerate(leads):
        shown = _show(axes[0, column], truth[lead], norm, colours)
        _show(axes[1, column], forecast[lead], norm, colours)
        error = _show(axes[2, column], forecast[lead] - truth[lead], error_norm, _ERROR_COLOURS)
        axes[0, column].set_title(f"t + {evaluation.lead_times[lead]:g}", fontsize=9)
    for axis, label in zip(axes[:, 0], ("truth", method, "error"), strict=True):
        axis.set_ylabel(label, fontsize=9)
    unit = unit_label(evaluation, evaluation.data.fields[channel])
    _colorbar(figure, shown, list(axes[:2].ravel()), unit, shrink=0.8, pad=0.015, aspect=22)
    _colorbar(figure, error, list(axes[2]), unit, shrink=0.9, pad=0.015, aspect=11)
    figure.suptitle(_title(evaluation, channel), fontsize=10)
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
    dimensions = evaluation.data.num_dimensions
    truth = middle_plane(example.truth[:, channel], dimensions)
    forecast = middle_plane(example.forecasts[method][:, channel], dimensions)
    norm, colours = _scale(evaluation.data.fields[channel], [truth])
    figure = new_figure(3 * 2.3 + 1.6, 2.8)
    axes = figure.subplots(1, 3)
    images = [
        _show(axes[0], truth[0], norm, colours),
        _show(axes[1], forecast[0], norm, colours),
        _show(axes[2], forecast[0] - truth[0], _symmetric([forecast - truth]), _ERROR_COLOURS),
    ]
    for axis, title in zip(axes, ("truth", method, "error"), strict=True):
        axis.set_title(title, fontsize=10)
    unit = unit_label(evaluation, evaluation.data.fields[channel])
    _colorbar(figure, images[1], list(axes[:2]), unit, shrink=0.85, pad=0.015, aspect=14)
    _colorbar(figure, images[2], axes[2], unit, shrink=0.85, pad=0.04, aspect=14)
    heading = figure.suptitle(_title(evaluation, channel), fontsize=10)
    lay_out(figure)
    figure.set_layout_engine("none")  # laid out once: half of each frame's time
    palette, pictures = _palette(colours, _ERROR_COLOURS), []
    for lead, time in enumerate(evaluation.lead_times):
        error = forecast[lead] - truth[lead]
        for image, values in zip(images, (truth[lead], forecast[lead], error), strict=True):
            image.set_data(values)
        heading.set_text(f"{_title(evaluation, channel)}, t + {time:g}")
        pictures.append(_gif_frame(figure, palette))
    save_gif(path, pictures, frames_per_second)


def animate(
    target: BinaryIO,
    images: Mapping[str, Image],
    field: str,
    times: Sequence[float],
    *,
    reference: str,
    frames_per_second: int = 4,
) -> None:
    """Write an animated GIF of a field as several see it, with the errors of all but `reference`.

    `images[name]` is `[time, y, x]`, or `[time, z, y, x]`, of which the middle plane is shown;
    all share the colour scale of the reference.
    """
    sides = images[reference].shape[1:]
    if len(sides) == 3:
        field = f"{field}, {plane_name(sides)}"
    images = {name: middle_plane(values, len(sides)) for name, values in images.items()}
    truth = images[reference]
    norm, colours = _scale(field, [truth])
    errors = {name: values - truth for name, values in images.items() if name != reference}
    error_norm = _symmetric([np.stack(list(errors.values()))])
    figure = new_figure(2.2 * len(images) + 1.2, 5.0)
    axes = figure.subplots(2, len(images), squeeze=False)
    axes[1, 0].set_axis_off()
    shown, wrong = [], []
    for column, (name, values) in enumerate(images.items()):
        shown.append((_show(axes[0, column], values[0], norm, colours), values))
        axes[0, column].set_title(name, fontsize=9)
        if name != reference:
            drawn = _show(axes[1, column], errors[name][0], error_norm, _ERROR_COLOURS)
            wrong.append((drawn, errors[name]))
    axes[1, 1].set_ylabel("error", fontsize=9)
    _colorbar(figure, shown[0][0], list(axes[0]), shrink=0.85, pad=0.015, aspect=14)
    _colorbar(figure, wrong[0][0], list(axes[1, 1:]), shrink=0.85, pad=0.015, aspect=14)
    heading = figure.suptitle(field, fontsize=10)
    lay_out(figure)
    figure.set_layout_engine("none")
    palette, pictures = _palette(colours, _ERROR_COLOURS), []
    for index, time in enumerate(times):
        for drawn, values in (*shown, *wrong):
            drawn.set_data(values[index])
        heading.set_text(f"{field}, t + {time:g}")
        pictures.append(_gif_frame(figure, palette))
    save_gif(target, pictures, frames_per_second)


def save_gif(
    target: Path | BinaryIO, pictures: Sequence[PillowImage.Image], frames_per_second: int
) -> None:
    """Write frames of equal sizes as an animation without end."""
    pictures[0].save(
        target,
        format="GIF",
        save_all=True,
        append_images=pictures[1:],
        duration=round(1000 / frames_per_second),
        loop=0,
    )


def error_growth(evaluation: DatasetEvaluation, metric: str = "vrmse") -> Figure:
    """Error against lead time per field: median and quartiles over trajectories."""
    groups = evaluation.group_names
    figure = new_figure(2.6 * len(groups) + 2.2, 2.7)
    axes = figure.subplots(1, len(groups), squeeze=False)[0]
    times = np.array(evaluation.lead_times)
    for index, (axis, group) in enumerate(zip(axes, groups, strict=True)):
        for method in (*BASELINES, *evaluation.forecast_methods):
            label, colour, line = _STYLE[method]
            low, middle, high = (
                evaluation.quantile(method, metric, q)[:, index] for q in (0.25, 0.5, 0.75)
            )
            axis.fill_between(times, low, high, color=colour, alpha=0.16, linewidth=0)
            axis.plot(times, middle, line, color=colour, label=label, marker="o", markersize=2.5)
        plain(axis)
        axis.set_title(group, fontsize=10)
        axis.set_xlabel(lead_time_label(evaluation), fontsize=9)
        axis.set_ylim(bottom=0.0, top=_robust_top(evaluation, metric, index))
    axes[0].set_ylabel(_METRIC_LABELS.get(metric, metric), fontsize=9)
    legend(figure, axes[0])
    return figure


def error_growth_of_all(evaluation: DatasetEvaluation, metric: str = "vrmse") -> Figure:
    """A small picture of the error against lead time: mean over fields of medians over trajectories."""
    figure = new_figure(4.2, 2.5)
    axis, times = figure.subplots(), np.array(evaluation.lead_times)
    highest = {}
    for method in (*BASELINES, *evaluation.forecast_methods):
        label, colour, line = _STYLE[method]
        values = evaluation.mean_over_groups(method, metric)
        axis.plot(times, values, line, color=colour, label=label, marker="o", markersize=3)
        highest[method] = float(values[np.isfinite(values)].max(initial=0.0))
    plain(axis)
    # a model that diverges leaves the picture
    top = min(max(highest.values()), 2.0 * max(highest[b] for b in BASELINES))
    axis.set_ylim(0.0, 1.06 * top if top > 0 else None)
    axis.set_xlabel(lead_time_label(evaluation), fontsize=9)
    axis.set_ylabel(_METRIC_LABELS.get(metric, metric), fontsize=9)
    axis.legend(fontsize=7, frameon=False)
    return figure


def spectra(evaluation: DatasetEvaluation, lead: int) -> Figure:
    """Energy spectrum per field at one lead time, truth and forecasts, mean over trajectories."""
    groups = evaluation.group_names
    figure = new_figure(2.6 * len(groups) + 2.2, 2.7)
    axes = figure.subplots(1, len(groups), squeeze=False)[0]
    for index, (axis, group) in enumerate(zip(axes, groups, strict=True)):
        for method, (label, colour, line) in _STYLE.items():
            if method not in evaluation.spectra:
                continue
            values = evaluation.spectra[method][lead, index, 1:]
            axis.loglog(np.arange(1, len(values) + 1), values, line, color=colour, label=label)
        truth = evaluation.spectra["truth"][lead, index, 1:]
        positive = truth[truth > 0]
        if positive.size:
            axis.set_ylim(
                max(positive.min() / 10, positive.max() * _SPECTRUM_RANGE), positive.max() * 10
            )
        plain(axis)
        axis.set_title(group, fontsize=10)
        axis.set_xlabel("wave number k, per domain", fontsize=9)
    axes[0].set_ylabel(f"energy E(k) at t + {evaluation.lead_times[lead]:g}", fontsize=9)
    legend(figure, axes[0])
    return figure


def style(method: str) -> tuple[str, str, str]:
    """Return label, colour and line of a method, or of the truth."""
    return _STYLE[method]


def _show(axis: Axes, image: Image, norm: Normalize, colours: str) -> Any:
    axis.set_xticks([])
    axis.set_yticks([])
    return axis.imshow(image, norm=norm, cmap=colours, origin="lower", interpolation="nearest")


def _palette(colours: str, error_colours: str) -> PillowImage.Image:
    """256 colours for a GIF: 112 of each colour map and 32 greys, so that no field is banded."""
    parts = [colormaps[name](np.linspace(0, 1, 112))[:, :3] for name in (colours, error_colours)]
    greys = np.repeat(np.linspace(0, 1, 32)[:, None], 3, axis=1)
    palette = PillowImage.new("P", (1, 1))
    palette.putpalette((255 * np.concatenate([*parts, greys])).round().astype(np.uint8).tobytes())
    return palette


def _gif_frame(figure: Figure, palette: PillowImage.Image) -> PillowImage.Image:
    image = PillowImage.open(io.BytesIO(figure_png(figure, dpi=80))).convert("RGB")
    return image.quantize(palette=palette, dither=PillowImage.Dither.NONE)


def _colorbar(
    figure: Figure,
    image: Any,
    axes: Any,
    unit: str = "",
    *,
    shrink: float,
    pad: float,
    aspect: float,
) -> None:
    bar = figure.colorbar(image, ax=axes, shrink=shrink, pad=pad, aspect=aspect)
    bar.ax.tick_params(labelsize=7)
    bar.set_label(unit, fontsize=7)


def _scale(field: str, images: Sequence[Image]) -> tuple[Normalize, str]:
    """Symmetric and diverging for velocities, the truth's range otherwise."""
    if field.startswith("velocity"):
        return _symmetric(images), "RdBu_r"
    values = np.concatenate([image.ravel() for image in images])
    values = values[~np.isnan(values)]  # points without a value
    low, high = (values.min(), values.max()) if values.size else (0.0, 1.0)
    return Normalize(float(low), float(high)), "viridis"


def _symmetric(images: Sequence[Image]) -> Normalize:
    """About zero, up to the largest finite magnitude."""
    values = np.concatenate([image.ravel() for image in images])
    finite = np.abs(values[np.isfinite(values)])
    return CenteredNorm(0.0, halfrange=float(finite.max(initial=0.0)) or 1.0)


def _robust_top(evaluation: DatasetEvaluation, metric: str, group: int) -> float | None:
    """An upper limit that shows the baselines and lets a diverged rollout leave the picture."""
    both = [evaluation.quantile(baseline, metric, 0.75)[:, group] for baseline in BASELINES]
    baseline = np.fmax(*both)
    models = [evaluation.quantile(m, metric, 0.75)[:, group] for m in evaluation.forecast_methods]
    finite = [value[np.isfinite(value)].max(initial=0.0) for value in (baseline, *models)]
    top = min(max(finite), 3.0 * finite[0]) if finite[0] > 0 else max(finite)
    return 1.06 * float(top) if top > 0 else None


def plain(axis: Axes) -> None:
    """Take the frame away, and draw a faint grid."""
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(labelsize=8)
    axis.grid(alpha=0.25, linewidth=0.5)


def legend(figure: Figure, axis: Axes) -> None:
    """Put the legend of an axis next to the whole figure."""
    handles, labels = axis.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", fontsize=8, frameon=False)


def stored_channels(evaluation: DatasetEvaluation) -> list[int]:
    """Return the channels that are scored, in order."""
    return sorted({channel for group in evaluation.data.groups.values() for channel in group})


def error_label(forecast: Image, truth: Image) -> str:
    """Return relative L1 error and VRMSE of all points with a value in words.

    "-" where the truth vanishes.
    """
    there = ~np.isnan(truth)
    fields = torch.from_numpy(np.stack([forecast[there], truth[there]])[:, None])
    share, deviation = (float(metric(fields[0], fields[1], 1)) for metric in (relative_l1, vrmse))
    first = "-" if math.isnan(share) else f"{100 * share:.3g} %"
    second = "-" if math.isnan(deviation) else f"{deviation:.3g}"
    return f"relative L1 {first}, VRMSE {second}"


def middle_plane(values: Image, num_dimensions: int) -> Image:
    """Return `[..., y, x]`: of three dimensions `[..., z, y, x]` the plane in the middle of z."""
    return values if num_dimensions < 3 else values[..., values.shape[-3] // 2, :, :]


def plane_name(grid_shape: Sequence[int]) -> str:
    """Return which plane of a volume `middle_plane` is."""
    return f"plane z = {grid_shape[0] // 2} of 0 to {grid_shape[0] - 1}"


def lead_time_label(evaluation: DatasetEvaluation) -> str:
    """Return the name of the axis of lead times, with the unit that the data states."""
    unit = evaluation.data.time_unit
    return f"lead time ({unit})" if unit else "lead time"


def unit_label(evaluation: DatasetEvaluation, field: str) -> str:
    """Return the unit of a field as an axis shows it; empty where the dataset does not store it."""
    unit = evaluation.data.units.get(field, "")
    return "dimensionless" if unit == "1" else unit


def _title(evaluation: DatasetEvaluation, channel: int) -> str:
    field = evaluation.data.fields[channel]
    is_volume = evaluation.data.num_dimensions == 3
    return f"{field}, {plane_name(evaluation.data.grid_shape)}" if is_volume else field


def spread(count: int, most: int) -> list[int]:
    """Up to `most` indices of `count`, first and last among them."""
    return sorted({int(i) for i in np.linspace(0, count - 1, min(count, most)).round()})
