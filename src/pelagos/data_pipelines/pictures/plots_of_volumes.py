"""Pictures of three-dimensional data: the middle planes along each axis, at some times."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pelagos.data_pipelines.pictures.plot_parts import (
    colour_bar,
    colour_limits,
    label_row,
    shown_frames,
)
from pelagos.data_pipelines.store.readable import ReadableDataset, Region

_NORMALS = (0, 1, 2)  # z, y, x
_PLANES = ((1, 2), (0, 2), (0, 1))  # the two axes in the plane across each, the slower one first
_LEFT, _RIGHT, _TOP, _BOTTOM, _GAP, _TIME_GAP, _LONGEST = 1.35, 0.75, 0.65, 0.15, 0.06, 0.16, 1.35
_TIMES = 0.22  # inches more at the top, where there are several times


def middle_region(grid_shape: tuple[int, ...], normal: int) -> Region:
    """The plane in the middle along an axis, one point thick."""
    ranges = [(0, size) for size in grid_shape]
    ranges[normal] = (grid_shape[normal] // 2, grid_shape[normal] // 2 + 1)
    return tuple(ranges)


def slice_sheet(dataset: ReadableDataset, chosen: Sequence[int], times: Sequence[int]) -> Figure:
    """A row per trajectory and field, with one colour scale; for each time three planes.

    The slower of a plane's two axes points up. Only chunks that the planes touch are read.
    """
    spec = dataset.spec
    has_time = spec.num_frames > 1
    inch = _LONGEST / max(spec.domain_extent)
    sizes = [tuple(spec.domain_extent[a] * inch for a in others) for others in _PLANES]
    cell = max(up for up, _ in sizes)
    block = sum(across for _, across in sizes) + 2 * _GAP
    rows = len(chosen) * len(spec.fields)
    width = _LEFT + len(times) * (block + _TIME_GAP) - _TIME_GAP + _RIGHT
    top = _TOP + _TIMES * has_time
    height = top + rows * (cell + _GAP) - _GAP + _BOTTOM
    figure = Figure(figsize=(width, height))
    lefts = [_LEFT + column * (block + _TIME_GAP) for column in range(len(times))]
    for left, frame in zip(lefts, times, strict=True):
        if has_time:
            label = f"t = {frame * spec.frame_interval:.3g}"
            figure.text(
                (left + block / 2) / width, 1 - 0.5 / height, label, ha="center", fontsize=9
            )
    for number, trajectory in enumerate(chosen):
        planes = _planes(dataset, trajectory, times)
        for channel, field in enumerate(spec.fields):
            row = number * len(spec.fields) + channel
            shown = np.concatenate([plane[:, channel].ravel() for plane in planes])
            limits = colour_limits(shown, field.kind)
            bottom = height - top - row * (cell + _GAP) - cell
            axes = []
            for column, left in enumerate(lefts):
                for plane, (up, across), others in zip(planes, sizes, _PLANES, strict=True):
                    place = (left, bottom + (cell - up) / 2, across, up)
                    axes.append(_draw(figure, place, plane[column, channel], limits))
                    if row == 0:
                        name = "".join(spec.axis_names[a] for a in reversed(others))
                        middle = (left + across / 2) / width
                        above = 1 - (top - 0.09) / height
                        figure.text(middle, above, name, ha="center", fontsize=8)
                    left += across + _GAP
            label_row(axes[0], field.name, trajectory if channel == 0 else None)
            colour_bar(figure, axes[-1], axes[-1].images[0])
    return figure


def _draw(
    figure: Figure,
    place: tuple[float, float, float, float],
    values: npt.NDArray[np.float32],
    limits: tuple[str, float, float],
) -> Axes:
    """Draw one plane at `place`, (left, bottom, width, height) in inches."""
    width, height = figure.get_size_inches()
    left, bottom, across, up = place
    axis = figure.add_axes((left / width, bottom / height, across / width, up / height))
    colours, low, high = limits
    axis.imshow(values, origin="lower", cmap=colours, vmin=low, vmax=high, aspect="auto")
    axis.set_xticks([])
    axis.set_yticks([])
    return axis


def _planes(
    dataset: ReadableDataset, trajectory: int, times: Sequence[int]
) -> list[npt.NDArray[np.float32]]:
    """`[time, channel, slower, faster]` in the middle along z, y and x."""
    found = []
    for normal in _NORMALS:
        region = middle_region(dataset.grid_shape, normal)
        values = shown_frames(dataset, trajectory, times, region)
        found.append(values.squeeze(2 + normal))
    return found
