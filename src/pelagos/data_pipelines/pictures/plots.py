"""Pictures of datasets, drawn without a display."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from pelagos.data_pipelines.pictures.plot_parts import (
    DPI,
    colour_bar,
    colour_limits,
    label_row,
    shown_frames,
    spread,
)
from pelagos.data_pipelines.pictures.plots_of_lines import line_sheet
from pelagos.data_pipelines.pictures.plots_of_volumes import slice_sheet
from pelagos.data_pipelines.store.readable import ReadableDataset
from pelagos.infra.figures import write_png

_CELL_INCHES, _LEFT, _RIGHT, _TOP, _BOTTOM, _GAP = 1.25, 1.35, 0.75, 0.75, 0.15, 0.06


def contact_sheet(
    dataset: ReadableDataset,
    path: str | Path | IO[bytes],
    trajectories: Sequence[int] | None = None,
    frames: Sequence[int] | None = None,
) -> None:
    """Draw trajectories of a dataset as a PNG: rows are fields, columns times.

    Each row has one colour scale: diverging and symmetric about zero for signed fields
    (velocities), sequential for the others (density, pressure, tracer). y points up. Points that a
    mask leaves out stay white. In one
    dimension a row is a space-time diagram and the profiles at some times; in three, the middle
    planes along each axis at some times.

    Args:
        dataset: an open dataset, `[trajectory, time, channel, y, x]`.
        path: file name, or a binary file to write to.
        trajectories: which; None: up to three, spread over the dataset.
        frames: which; None: up to six (in three dimensions three), from the first to the last.
    """
    spec = dataset.spec
    chosen = list(spread(spec.num_trajectories, 3) if trajectories is None else trajectories)
    most_times = 3 if len(spec.grid_shape) == 3 else 6
    times = list(spread(spec.num_frames, most_times) if frames is None else frames)
    draw = {1: line_sheet, 2: _image_sheet, 3: slice_sheet}[len(spec.grid_shape)]
    figure = draw(dataset, chosen, times)
    grid = " x ".join(map(str, spec.grid_shape))
    what = {1: " points", 2: "", 3: ", middle planes"}[len(spec.grid_shape)]
    title = f"{spec.name}   {spec.num_trajectories} trajectories, {grid}{what}"
    figure.text(0.5, 1 - 0.22 / figure.get_figheight(), title, ha="center", fontsize=11)
    write_png(figure, path, dpi=DPI, facecolor="white")


def _image_sheet(dataset: ReadableDataset, chosen: Sequence[int], times: Sequence[int]) -> Figure:
    spec = dataset.spec
    rows = len(chosen) * len(spec.fields)
    figure, axes = _grid(rows, len(times), spec.domain_extent[0] / spec.domain_extent[1])
    for block, trajectory in enumerate(chosen):
        data = shown_frames(dataset, trajectory, times)
        for channel, field in enumerate(spec.fields):
            row = axes[block * len(spec.fields) + channel]
            image = _draw_row(row, data[:, channel], field.kind, spec.domain_extent)
            label_row(row[0], field.name, trajectory if channel == 0 else None)
            colour_bar(figure, row[-1], image)
    for axis, frame in zip(axes[0], times, strict=True):
        axis.set_title(f"t = {frame * spec.frame_interval:.3g}", fontsize=9)
    return figure


def _grid(rows: int, columns: int, aspect: float) -> tuple[Figure, npt.NDArray[np.object_]]:
    """A figure of square-ish cells with room for labels on the left and colour bars on the right."""
    height_of_cell = _CELL_INCHES * aspect
    width = _LEFT + columns * _CELL_INCHES + _RIGHT
    height = _TOP + rows * height_of_cell + _BOTTOM
    figure = Figure(figsize=(width, height))
    axes = figure.subplots(
        rows,
        columns,
        squeeze=False,
        gridspec_kw={
            "left": _LEFT / width,
            "right": 1 - _RIGHT / width,
            "top": 1 - _TOP / height,
            "bottom": _BOTTOM / height,
            "wspace": _GAP,
            "hspace": _GAP,
        },
    )
    return figure, axes


def _draw_row(
    axes: npt.NDArray[np.object_],
    images: npt.NDArray[np.float32],
    kind: str,
    extent: tuple[float, ...],
) -> AxesImage:
    """Draw `[column, y, x]` with one colour scale; a few extreme cells do not set it."""
    colours, low, high = colour_limits(images, kind)
    box = (0.0, extent[1], 0.0, extent[0])
    for axis, image in zip(axes, images, strict=True):
        drawn: AxesImage = axis.imshow(
            image, origin="lower", extent=box, cmap=colours, vmin=low, vmax=high, aspect="equal"
        )
        axis.set_xticks([])
        axis.set_yticks([])
    return drawn
