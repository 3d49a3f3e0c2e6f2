"""How a frame is cut into chunks in space, and which chunks a region of the grid touches."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pelagos.data_pipelines.store.readable import Region
from pelagos.data_pipelines.store.schema import DatasetSpec


@dataclass(frozen=True)
class TouchedChunk:
    """One chunk of a frame that a region needs.

    Attributes:
        number: of the chunk in its frame, in C order.
        source: the part of the chunk `[channel, y, x]` inside the region.
        target: its place in the region `[channel, y, x]`.
    """

    number: int
    source: tuple[slice, ...]
    target: tuple[slice, ...]


def touched_chunks(spec: DatasetSpec, region: Region | None = None) -> tuple[TouchedChunk, ...]:
    """The chunks of a frame that a region needs, None being all of it; in C order."""
    wanted = region or tuple((0, points) for points in spec.grid_shape)
    sizes = spec.frame_chunk_shape
    along = [
        range(start // size, -(-stop // size))
        for (start, stop), size in zip(wanted, sizes, strict=True)
    ]
    found = []
    for place in itertools.product(*along):
        number = int(np.ravel_multi_index(place, spec.chunk_counts))
        source, target = [slice(None)], [slice(None)]
        for at, size, (start, stop) in zip(place, sizes, wanted, strict=True):
            first, last = max(start, at * size), min(stop, (at + 1) * size)
            source.append(slice(first - at * size, last - at * size))
            target.append(slice(first - start, last - start))
        found.append(TouchedChunk(number, tuple(source), tuple(target)))
    return tuple(found)


def parts_by_number(spec: DatasetSpec, region: Region | None = None) -> dict[int, TouchedChunk]:
    """The same by number, in order."""
    return {part.number: part for part in touched_chunks(spec, region)}


def frame_chunks(spec: DatasetSpec, frames: npt.NDArray[Any]) -> Iterator[npt.NDArray[Any]]:
    """Every chunk of frames `[n, channel, y, x]`, in the order in which a shard has them.

    A chunk that reaches beyond the grid is zero there.
    """
    if spec.chunks_per_frame == 1 and spec.frame_chunk_shape == spec.grid_shape:
        yield from frames
        return
    touched = touched_chunks(spec)
    shape = (len(spec.fields), *spec.frame_chunk_shape)
    for frame in frames:
        for part in touched:
            chunk = np.zeros(shape, frames.dtype)
            chunk[part.source] = frame[part.target]
            yield chunk
