"""Pictures of one-dimensional data: a space-time diagram, and profiles at some times."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pelagos.data_pipelines.pictures.plot_parts import (
    colour_bar,
    colour_limits,
    shown_frames,
    spread,
)
from pelagos.data_pipelines.store.readable import ReadableDataset
from pelagos.data_pipelines.store.schema import DatasetSpec

MOST_TIMES = 512  # of a space-time diagram
_LEFT, _DIAGRAM, _BAR, _PROFILES, _LEGEND = 1.75, 3.1, 1.15, 3.4, 1.15  # inches
_ROW, _GAP, _TOP, _BOTTOM = 1.5, 0.22, 0.75, 0.5


def line_sheet(dataset: ReadableDataset, chosen: Sequence[int], times: Sequence[int]) -> Figure:
    """A row per trajectory and field: x to the right and t upwards, and profiles at `times`.

    A dataset with one frame has no diagram.
    """
    spec = dataset.spec
    rows = len(chosen) * len(spec.fields)
    has_time = spec.num_frames > 1
    left = _LEFT + (_DIAGRAM + _BAR if has_time else 0.0)
    width = left + _PROFILES + _LEGEND
    height = _TOP + rows * (_ROW + _GAP) - _GAP + _BOTTOM
    figure = Figure(figsize=(width, height))
    drawn_times = spread(spec.num_frames, MOST_TIMES)
    for block, trajectory in enumerate(chosen):
        data = shown_frames(dataset, trajectory, drawn_times)
        profiles = shown_frames(dataset, trajectory, times)
        for channel, field in enumerate(spec.fields):
            row = block * len(spec.fields) + channel
            bottom = (height - _TOP - row * (_ROW + _GAP) - _ROW) / height
            is_last = row == rows - 1
            name = f"{field.name}\n({field.unit})" if field.unit not in ("", "1") else field.name
            if channel == 0:
                top = bottom + _ROW / height
                label = f"trajectory {trajectory}"
                figure.text(0.1 / width, top, label, va="top", fontsize=8, fontweight="bold")
            middle = bottom + _ROW / height / 2
            figure.text(0.1 / width, middle, name, va="center", fontsize=9)
            if has_time:
                box = (_LEFT / width, bottom, _DIAGRAM / width, _ROW / height)
                axis = figure.add_axes(box)
                _diagram(figure, axis, data[:, channel], field.kind, spec, drawn_times)
                _finish(axis, "t", is_last, "space and time" if row == 0 else "")
            box = (left / width, bottom, _PROFILES / width, _ROW / height)
            axis = figure.add_axes(box)
            _profiles(axis, profiles[:, channel], spec, times, row == 0)
            _finish(axis, "", is_last, "profiles" if row == 0 else "")
    return figure


def _diagram(
    figure: Figure,
    axis: Axes,
    values: npt.NDArray[np.float32],
    kind: str,
    spec: DatasetSpec,
    times: Sequence[int],
) -> None:
    """Draw `[time, x]`."""
    colours, low, high = colour_limits(values, kind)
    box = (0.0, spec.domain_extent[0], 0.0, times[-1] * spec.frame_interval)
    image = axis.imshow(
        values, origin="lower", extent=box, cmap=colours, vmin=low, vmax=high, aspect="auto"
    )
    colour_bar(figure, axis, image)


def _profiles(
    axis: Axes,
    values: npt.NDArray[np.float32],
    spec: DatasetSpec,
    times: Sequence[int],
    has_legend: bool,
) -> None:
    """Draw a line per time of `[time, x]`, the later the lighter."""
    points = spec.coordinates()["x"]
    shades = matplotlib.colormaps["viridis"](np.linspace(0, 0.88, len(times)))
    for line, shade, frame in zip(values, shades, times, strict=True):
        label = f"t = {frame * spec.frame_interval:.3g}"
        axis.plot(points, line, color=shade, linewidth=1, label=label)
    axis.set_xlim(0, spec.domain_extent[0])
    axis.grid(alpha=0.3, linewidth=0.5)
    if has_legend and spec.num_frames > 1:
        axis.legend(
            loc="upper left", bbox_to_anchor=(1.01, 1.04), fontsize=7, frameon=False, handlelength=1
        )


def _finish(axis: Axes, label: str, is_last: bool, title: str) -> None:
    """Labels and numbers of an axis; those along x appear below the last row alone."""
    axis.tick_params(labelsize=7, length=2, pad=2, labelbottom=is_last)
    axis.locator_params(axis="y", nbins=4)
    axis.locator_params(axis="x", nbins=5)
    axis.set_ylabel(label, fontsize=8, labelpad=2)
    axis.set_title(title, fontsize=9)
    if is_last:
        axis.set_xlabel("x", fontsize=8, labelpad=2)
