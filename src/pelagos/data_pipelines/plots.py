"""Pictures of datasets, drawn without a display."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from pelagos.data_pipelines.store.readable import ReadableDataset

DIVERGING, SEQUENTIAL = "RdBu_r", "viridis"
SIGNED_KINDS = ("velocity", "vorticity", "momentum")
DPI = 110
_CELL_INCHES, _LEFT, _RIGHT, _TOP, _BOTTOM, _GAP = 1.25, 1.35, 0.75, 0.75, 0.15, 0.06


def contact_sheet(
    dataset: ReadableDataset,
    path: str | Path | IO[bytes],
    trajectories: Sequence[int] | None = None,
    frames: Sequence[int] | None = None,
) -> None:
    """Draw trajectories of a two-dimensional dataset as a PNG: rows are fields, columns times.

    Each row has one colour scale: diverging and symmetric about zero for signed fields
    (velocities), sequential for the others (density, pressure, tracer). y points up.

    Args:
        dataset: an open dataset, `[trajectory, time, channel, y, x]`.
        path: file name, or a binary file to write to.
        trajectories: which; None: up to three, spread over the dataset.
        frames: which; None: up to six, from the first to the last.

    Raises:
        ValueError: the dataset is not two-dimensional.
    """
    spec = dataset.spec
    if len(spec.grid_shape) != 2:
        raise ValueError(
            f"Got a dataset with axes {spec.axis_names}; a contact sheet needs two dimensions."
        )
    chosen = list(_spread(spec.num_trajectories, 3) if trajectories is None else trajectories)
    times = list(_spread(spec.num_frames, 6) if frames is None else frames)
    rows = len(chosen) * len(spec.fields)
    figure, axes = _grid(rows, len(times), spec.domain_extent[0] / spec.domain_extent[1])
    for block, trajectory in enumerate(chosen):
        data = dataset.read_frames(trajectory, times).astype(np.float32)
        for channel, field in enumerate(spec.fields):
            row = axes[block * len(spec.fields) + channel]
            image = _draw_row(row, data[:, channel], field.kind, spec.domain_extent)
            _label_row(row[0], field.name, trajectory if channel == 0 else None)
            _colour_bar(figure, row[-1], image)
    for axis, frame in zip(axes[0], times, strict=True):
        axis.set_title(f"t = {frame * spec.frame_interval:.3g}", fontsize=9)
    height, width = spec.grid_shape
    title = f"{spec.name}   {spec.num_trajectories} trajectories, {height} x {width}"
    figure.text(0.5, 1 - 0.22 / figure.get_figheight(), title, ha="center", fontsize=11)
    figure.savefig(path, dpi=DPI, format="png", facecolor="white")


def _spread(total: int, count: int) -> list[int]:
    """Up to `count` distinct numbers from 0 to `total` - 1, ends included."""
    return sorted({round(i) for i in np.linspace(0, total - 1, min(count, total))})


def colour_limits(images: npt.NDArray[np.float32], kind: str) -> tuple[str, float, float]:
    """The colour map of a field and its ends; a few extreme cells do not set them."""
    signed = _is_signed(kind)
    low, high = (float(v) for v in np.percentile(images, (0.2, 99.8)))
    if signed:
        high = max(abs(low), abs(high))
        low = -high
    if high - low <= 1e-6 * max(abs(high), abs(low), 1e-12):  # a constant field
        low, high = low - 0.5, high + 0.5
    return DIVERGING if signed else SEQUENTIAL, low, high


def _is_signed(kind: str) -> bool:
    return kind.startswith(SIGNED_KINDS)


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


def _label_row(axis: Axes, field: str, trajectory: int | None) -> None:
    axis.set_ylabel(field, fontsize=9, rotation=0, ha="right", va="center", labelpad=6)
    if trajectory is not None:
        axis.text(
            -0.06,
            0.98,
            f"trajectory {trajectory}",
            transform=axis.transAxes,
            ha="right",
            va="top",
            fontsize=8,
            fontweight="bold",
        )


def _colour_bar(figure: Figure, axis: Axes, image: AxesImage) -> None:
    box = axis.get_position()
    inch = 1.0 / figure.get_figwidth()
    place = (box.x1 + 0.07 * inch, box.y0 + 0.06 * box.height, 0.09 * inch, 0.88 * box.height)
    bar = figure.colorbar(image, cax=figure.add_axes(place))
    bar.ax.tick_params(labelsize=7, length=2, pad=1)
    bar.ax.locator_params(nbins=4)
