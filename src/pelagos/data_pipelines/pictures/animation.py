"""Trajectories as moving pictures: one GIF, fields side by side, drawn without a display."""

from __future__ import annotations

from pathlib import Path
from typing import IO

import matplotlib
import numpy as np
import numpy.typing as npt
from PIL import Image

from pelagos.data_pipelines.pictures.plot_parts import colour_limits, shown_frames
from pelagos.data_pipelines.pictures.plots_of_volumes import middle_region
from pelagos.data_pipelines.store.readable import ReadableDataset

LEAST_PIXELS, MOST_PIXELS = 192, 512  # of the longer side of one field
_GAP_PIXELS = 4


def animate(
    dataset: ReadableDataset,
    path: str | Path | IO[bytes],
    trajectory: int = 0,
    frames_per_second: float = 8.0,
) -> None:
    """Draw a trajectory as a GIF: a picture per frame, a panel per field.

    Each field keeps one colour scale over all frames, as in a contact sheet; y points up. The
    last frame stays for a second. In three dimensions it shows the middle plane across z.

    Raises:
        ValueError: the dataset has one dimension, or one frame only.
    """
    spec = dataset.spec
    if len(spec.grid_shape) == 1 or spec.num_frames < 2:
        raise ValueError(
            "an animation needs two or three dimensions and at least two frames; got "
            f"{spec.num_frames} frames with axes {spec.axis_names}. A sheet (without --animation) "
            "shows everything"
        )
    is_volume = len(spec.grid_shape) == 3
    region = middle_region(spec.grid_shape, 0) if is_volume else None
    values = shown_frames(dataset, trajectory, range(spec.num_frames), region)
    values = values.reshape(*values.shape[:2], *spec.grid_shape[-2:])
    panels = [
        _coloured(values[:, channel], field.kind) for channel, field in enumerate(spec.fields)
    ]
    gap = np.full((spec.num_frames, panels[0].shape[1], _GAP_PIXELS, 3), 255, np.uint8)
    parts = [part for panel in panels for part in (panel, gap)][:-1]
    pictures = [Image.fromarray(frame) for frame in np.concatenate(parts, axis=2)]
    step = round(1000 / frames_per_second)
    pictures[0].save(
        path,
        format="GIF",
        save_all=True,
        append_images=pictures[1:],
        duration=[step] * (len(pictures) - 1) + [1000],
        loop=0,
    )


def _coloured(frames: npt.NDArray[np.float32], kind: str) -> npt.NDArray[np.uint8]:
    """`[frame, y, x]` as pictures `[frame, row, column, rgb]` of a size that can be seen."""
    colours, low, high = colour_limits(frames, kind)
    unit = np.clip((frames - low) / (high - low), 0, 1)
    palette = matplotlib.colormaps[colours].with_extremes(bad="white")  # of masked points
    coloured = np.asarray(palette(unit))[..., :3]
    pictures: npt.NDArray[np.uint8] = (coloured * 255).round().astype(np.uint8)[:, ::-1]
    longest = max(frames.shape[1:])
    enlarged = max(1, -(-LEAST_PIXELS // longest))
    thinned = max(1, -(-longest // MOST_PIXELS))
    return pictures.repeat(enlarged, 1).repeat(enlarged, 2)[:, ::thinned, ::thinned]
