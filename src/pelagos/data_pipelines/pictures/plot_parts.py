"""Shared parts of pictures in one, two and three dimensions: colours, bars, which frames."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from pelagos.data_pipelines.store.readable import ReadableDataset, Region

DIVERGING, SEQUENTIAL = "RdBu_r", "viridis"
SIGNED_KINDS = ("velocity", "vorticity", "momentum")
DPI = 110


def shown_frames(
    dataset: ReadableDataset, trajectory: int, times: Sequence[int], region: Region | None = None
) -> npt.NDArray[np.float32]:
    """Frames `[time, channel, y, x]` of a trajectory, NaN where a mask says there is no value."""
    frames = dataset.read_frames(trajectory, times, region=region).astype(np.float32)
    for channel, mask in dataset.spec.mask_channels.items():
        frames[:, channel][frames[:, mask] == 0] = np.nan
    return frames


def spread(total: int, count: int) -> list[int]:
    """Up to `count` distinct numbers from 0 to `total` - 1, ends included."""
    return sorted({round(i) for i in np.linspace(0, total - 1, min(count, total))})


def colour_limits(images: npt.NDArray[np.float32], kind: str) -> tuple[str, float, float]:
    """The colour map of a field and its ends; a few extreme cells do not set them."""
    signed = _is_signed(kind)
    shown = images[np.isfinite(images)]
    low, high = (float(v) for v in np.percentile(shown, (0.2, 99.8))) if shown.size else (0.0, 0.0)
    if signed:
        high = max(abs(low), abs(high))
        low = -high
    if high - low <= 1e-6 * max(abs(high), abs(low), 1e-12):  # a constant field
        low, high = low - 0.5, high + 0.5
    return DIVERGING if signed else SEQUENTIAL, low, high


def _is_signed(kind: str) -> bool:
    return kind.startswith(SIGNED_KINDS)


def colour_bar(figure: Figure, axis: Axes, image: AxesImage) -> None:
    """Draw a slim colour bar to the right of an axis."""
    box = axis.get_position()
    inch = 1.0 / figure.get_figwidth()
    place = (box.x1 + 0.07 * inch, box.y0 + 0.06 * box.height, 0.09 * inch, 0.88 * box.height)
    bar = figure.colorbar(image, cax=figure.add_axes(place))
    bar.ax.tick_params(labelsize=7, length=2, pad=1)
    bar.ax.locator_params(nbins=4)


def label_row(axis: Axes, field: str, trajectory: int | None) -> None:
    """Write the name of the field, and the trajectory if one is given, left of a row."""
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
