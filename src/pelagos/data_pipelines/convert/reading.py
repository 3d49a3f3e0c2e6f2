"""Frames of a source, a bounded piece at a time, whatever the size of its files."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from pelagos.data_pipelines.conventions import MissingValueError
from pelagos.data_pipelines.convert.damaged import named_if_damaged
from pelagos.data_pipelines.convert.readers import stored_array
from pelagos.data_pipelines.convert.rounding import Rounding, require_exact, roundings_of
from pelagos.data_pipelines.convert.source import Part, Source, SourceError, StoredArray
from pelagos.data_pipelines.convert.stored_files import Sliceable
from pelagos.data_pipelines.store.schema import AXIS_NAMES
from pelagos.infra.memory_budget import require_affordable

# Frames are read in pieces of about this many bytes of float32, or one frame where that is more.
BLOCK_BYTES = 8 * 2**20

Frames = npt.NDArray[np.floating]  # [frame, channel, y, x]


@dataclass(frozen=True)
class Block:
    """A piece of a source: consecutive trajectories whole, or some frames of one.

    Attributes:
        trajectory: the first one.
        frames: `[frame, channel, y, x]`, in the order of trajectory and time.
        first_frame: of the first trajectory.
        largest_read_bytes: of the reads that filled it.
        roundings: of each field the first stored whole number that the type asked for rounds.
        magnitudes: by channel of float64 its largest magnitude in the source, if only 0 is left of it
            as float32; else infinity.
    """

    trajectory: int
    first_frame: int
    frames: Frames
    largest_read_bytes: int
    roundings: tuple[Rounding, ...] = ()
    magnitudes: Mapping[int, float] = field(default_factory=dict)


def blocks(
    source: Source, trajectories: range, block_bytes: int = BLOCK_BYTES, *, dtype: str = "float32"
) -> Iterator[Block]:
    """The frames of consecutive trajectories, in order.

    Args:
        dtype: the type they will be stored in, for `roundings`; frames are float32 whatever it is.

    Raises:
        SourceError: naming the file and key that cannot be read.
    """
    frame_shape = (len(source.fields), *source.grid_shape)
    frame_bytes = 4 * math.prod(frame_shape)
    require_affordable(frame_bytes, f"{source.address(0, 0)}: a frame {frame_shape}", SourceError)
    num_frames = max(1, min(source.num_frames, block_bytes // frame_bytes))
    num_rows = max(1, block_bytes // (frame_bytes * source.num_frames))
    for first in range(trajectories.start, trajectories.stop, num_rows):
        together = range(first, min(first + num_rows, trajectories.stop))
        pieces = list(_pieces(source, together))
        # arrays that begin late leave zeros before them
        is_late = any(array.start_frame for part, _ in pieces for array in part.arrays)
        for start in range(0, source.num_frames, num_frames):
            frames = range(start, min(start + num_frames, source.num_frames))
            shape = (len(together), len(frames), *frame_shape)
            out = np.zeros(shape, np.float32) if is_late else np.empty(shape, np.float32)
            largest = row = 0
            roundings: list[Rounding] = []
            magnitudes: dict[int, float] = {}
            for part, rows in pieces:
                share = out[row : row + len(rows)]
                for array in part.arrays:
                    with named_if_damaged(array.address):
                        num_bytes, is_whole = _fill(
                            source, part, array, rows, frames, share, magnitudes
                        )
                    largest = max(largest, num_bytes)
                    if is_whole and not array.is_label:
                        roundings += roundings_of(source, array, share, dtype)
                row += len(rows)
            if source.settlement is not None:
                source.settlement.apply(out)
            yield Block(
                first, start, out.reshape(-1, *frame_shape), largest, tuple(roundings), magnitudes
            )


def _pieces(source: Source, trajectories: range) -> Iterator[tuple[Part, range]]:
    """The parts that hold consecutive trajectories, and which of each."""
    trajectory = trajectories.start
    while trajectory < trajectories.stop:
        part, row = source.locate(trajectory)
        rows = range(row, min(part.count, row + trajectories.stop - trajectory))
        yield part, rows
        trajectory += len(rows)


def _fill(
    source: Source,
    part: Part,
    array: StoredArray,
    rows: range,
    frames: range,
    out: npt.NDArray[np.float32],
    magnitudes: dict[int, float],
) -> tuple[int, bool]:
    """Read one array's share of `out [trajectory, time, channel, y, x]`.

    Adds to the `magnitudes` of a block. Returns the bytes read, and whether the numbers are stored as
    whole numbers.
    """
    skipped = max(0, min(array.start_frame - frames.start, len(frames)))
    if skipped == len(frames):
        return 0, False
    stored = stored_array(array)
    wanted = (
        range(part.first + rows.start, part.first + rows.stop),
        range(part.first_frame + frames.start + skipped, part.first_frame + frames.stop),
    )
    selection = _selection(source, array, stored, *wanted)
    last = array.channel + array.num_channels
    order = "ntc" + "".join(AXIS_NAMES[len(source.grid_shape)])
    try:
        is_as_stored = not (array.is_label or array.flipped) and getattr(stored, "is_plain", False)
        if is_as_stored and array.axes == order and stored.dtype == out.dtype:
            cast(Any, stored).read_direct(out, selection, np.s_[:, :, array.channel : last])
            return out[:, :, array.channel : last].nbytes, False
        if source.missing == "reject" or not hasattr(stored, "decoded"):
            values = np.asarray(stored[selection])
            is_whole = values.dtype.kind in "iu"
        else:
            decoded = stored.decoded(selection)
            values, is_whole = decoded.values, decoded.is_whole  # NaN where missing
    except SourceError:
        raise
    except MissingValueError as error:
        raise SourceError(str(error)) from error
    except (OSError, EOFError, ValueError, RuntimeError) as error:
        raise SourceError(
            f"{array.address}: cannot read trajectories {rows.start} to {rows.stop - 1}, frames "
            f"{frames.start} to {frames.stop - 1}: {error}"
        ) from error
    letters = array.axes.replace("1", "")
    with np.errstate(over="ignore"):  # becomes infinite, and is refused by name when written
        ordered = _ordered(values, letters, order, array)
        out[:, skipped:, array.channel : last] = ordered
    if values.dtype.kind == "f" and values.dtype.itemsize > out.itemsize:
        for at, channel in enumerate(range(array.channel, last)):
            is_left = out[:, skipped:, channel].any()
            largest = math.inf if is_left else float(np.abs(ordered[:, :, at]).max(initial=0.0))
            magnitudes[channel] = max(largest, magnitudes.get(channel, 0.0))
    require_exact(array, values, is_whole)
    return int(values.nbytes), is_whole


def _selection(
    source: Source, array: StoredArray, stored: Sliceable, rows: range, frames: range
) -> tuple[int | slice, ...]:
    """The selection along each axis of the stored array.

    Raises:
        SourceError: the array has another shape than the format said.
    """
    sizes = dict(zip(AXIS_NAMES[len(source.grid_shape)], source.grid_shape, strict=True))
    if len(stored.shape) != len(array.axes):
        raise SourceError(
            f"{array.address} has shape {stored.shape}, expected the axes {array.axes}"
        )
    single = array.axes.count("c") == 1
    selection: list[int | slice] = []
    for letter, size in zip(array.axes, stored.shape, strict=True):
        choices: dict[str, int | slice] = {
            "n": slice(rows.start, rows.stop),
            "t": slice(frames.start, frames.stop),
            "c": slice(array.first_index, array.first_index + array.num_channels),
            "1": 0,
        }
        chosen = choices.get(letter, slice(None))
        if letter == "c" and not single:
            chosen = slice(None)
        needed = sizes.get(letter, chosen.stop if isinstance(chosen, slice) else 1)
        fits = size == needed if letter in sizes or letter == "1" else size >= (needed or 0)
        if not fits:
            raise SourceError(
                f"{array.address} has shape {stored.shape} along {array.axes}; axis {letter!r} has "
                f"{size}, expected {needed}"
            )
        selection.append(chosen)
    return tuple(selection)


def _ordered(
    values: npt.NDArray[np.generic], letters: str, order: str, array: StoredArray
) -> npt.NDArray[np.generic]:
    """`values` with axes in the order of `order`; axes that it lacks have length one."""
    positions = [i for letter in order for i, found in enumerate(letters) if found == letter]
    moved = values[tuple(slice(None, None, -1 if x in array.flipped else 1) for x in letters)]
    moved = moved.transpose(positions)
    shape: list[int] = []
    for letter in order:
        sizes = [values.shape[i] for i, found in enumerate(letters) if found == letter]
        shape.append(math.prod(sizes))  # of none: 1
    if len(moved.shape) != len(shape):
        moved = moved.reshape(shape)
    assert moved.shape[2] == array.num_channels, (array, moved.shape)
    return moved
