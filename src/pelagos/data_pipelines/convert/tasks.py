"""The units of work of a conversion: writing one shard, comparing one shard with its source."""

from __future__ import annotations

import dataclasses
import itertools
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from pelagos.data_pipelines.convert.damaged import named_if_damaged
from pelagos.data_pipelines.convert.missing import advice_on_non_finite
from pelagos.data_pipelines.convert.readers import close_files
from pelagos.data_pipelines.convert.reading import Frames, blocks
from pelagos.data_pipelines.convert.rounding import Rounding, first_of_each_field
from pelagos.data_pipelines.convert.source import Source, SourceError
from pelagos.data_pipelines.convert.verification import SecondReading
from pelagos.data_pipelines.store import DatasetSpec, DatasetWriter, open_dataset
from pelagos.data_pipelines.store.half_precision import from_bfloat16, to_bfloat16
from pelagos.data_pipelines.store.shard_stream import NonFiniteError, UnstorableError

MAX_LISTED_DIFFERENCES = 5


@dataclass(frozen=True)
class ShardReport:
    """The report on one shard.

    Attributes:
        num_bytes: of the shard's frames in the stored type.
        largest_read_bytes: of the reads from the source.
        differences: where stored values are not the source's, when they were compared.
        roundings: of each field the first stored whole number that the dataset's type rounds.
    """

    shard: int
    num_trajectories: int
    num_bytes: int
    largest_read_bytes: int
    seconds: float
    differences: tuple[str, ...] = ()
    roundings: tuple[Rounding, ...] = ()


def convert_shard(writer: DatasetWriter, source: Source, shard: int) -> ShardReport:
    """Read the trajectories of one shard and write them, in bounded memory.

    Raises:
        SourceError: the source cannot be read, or holds a value that cannot be stored (not finite, a
            label that is rounded): file, key,
            trajectory, frame and grid index are named. Nothing is written.
    """
    started = time.perf_counter()
    trajectories = writer.shard_trajectories(shard)
    largest = 0
    roundings: tuple[Rounding, ...] = ()
    magnitudes: dict[int, float] = {}

    def frames() -> Iterator[Frames]:
        nonlocal largest, roundings
        for block in blocks(source, trajectories, dtype=writer.spec.dtype):
            largest = max(largest, block.largest_read_bytes)
            roundings = first_of_each_field((*roundings, *block.roundings))
            for channel, magnitude in block.magnitudes.items():
                magnitudes[channel] = max(magnitude, magnitudes.get(channel, 0.0))
            yield block.frames
        _require_no_underflow(source, trajectories, magnitudes)

    try:
        writer.write_shard_frames(shard, frames(), _parameters(source, trajectories))
    except UnstorableError as error:
        place = source.address(error.trajectory, error.channel)
        advice = advice_on_non_finite(source, error) if isinstance(error, NonFiniteError) else ""
        raise SourceError(f"{place}: {error}{advice}") from error
    finally:
        close_files()
    report = _report(writer.spec, shard, largest, started)
    return dataclasses.replace(report, roundings=roundings)


def _require_no_underflow(
    source: Source, trajectories: range, magnitudes: dict[int, float]
) -> None:
    """Raise SourceError for a field of which float32 leaves nothing but 0."""
    for channel, magnitude in magnitudes.items():
        if 0 < magnitude < math.inf:
            raise SourceError(
                f"{source.address(trajectories[0], channel)}: field "
                f"{source.fields[channel].name!r}: every value of trajectories {trajectories[0]} to "
                f"{trajectories[-1]} becomes 0 in float32, and the largest is {magnitude:.3g}. "
                "Write them in another unit"
            )


def compare_shard(
    uri: str, options: dict[str, Any] | None, source: Source, shard: int
) -> ShardReport:
    """Read one shard of a finished dataset back and compare it with the source, in two ways.

    Numbers at random places and the statistics of every field are held against a second reading of
    the source that shares nothing with the conversion (`verification`). Then every bit is compared
    with the conversion's input, cast to the stored type as it was for writing.

    Raises:
        SourceError: the source cannot be read.
    """
    started = time.perf_counter()
    dataset = open_dataset(uri, options)
    spec = dataset.spec
    trajectories = spec.trajectories_of_shard(shard)
    largest = 0
    drawn: list[str] = []
    differences: list[str] = []
    second = SecondReading(source, spec, trajectories)
    try:
        for block in blocks(source, trajectories):
            largest = max(largest, block.largest_read_bytes)
            expected = _as_stored(spec, block.frames)
            stored = _stored(dataset, block.trajectory, block.first_frame, len(expected))
            for i, frame in enumerate(stored):
                row, time_index = divmod(block.first_frame + i, spec.num_frames)
                place = (block.trajectory + row, time_index)
                with named_if_damaged(source.address(place[0], 0)):
                    drawn += second.compare(*place, frame)
                if frame.tobytes() != expected[i].tobytes():
                    differences.append(_difference(source, *place, frame, expected[i]))
        for name, values in _parameters(source, trajectories).items():
            if (dataset.parameters[name][trajectories.start : trajectories.stop] != values).any():
                differences.append(f"parameter {name!r} differs from the source")
        with named_if_damaged(source.address(trajectories.start, 0)):
            drawn += second.statistics()
    finally:
        second.close()
        dataset.close()
        close_files()
    return _report(spec, shard, largest, started, (*differences, *drawn))


def _as_stored(spec: DatasetSpec, frames: Frames) -> Frames:
    """The source's values rounded as the dataset's type rounds them."""
    if spec.dtype == "bfloat16":
        return from_bfloat16(to_bfloat16(frames))
    return frames.astype(spec.dtype, copy=False)


def _stored(dataset: Any, trajectory: int, first_frame: int, count: int) -> Iterator[Frames]:
    """Stored frames from a place on, over as many trajectories as it takes."""
    while count:
        length = min(count, dataset.num_frames - first_frame)
        yield from dataset.window(trajectory, first_frame, length)
        count -= length
        trajectory, first_frame = trajectory + 1, 0


def _difference(
    source: Source, trajectory: int, frame: int, stored: Frames, expected: Frames
) -> str:
    bits = f"u{stored.itemsize}"  # so that 0 and -0 differ
    channel, *point = map(int, np.argwhere(stored.view(bits) != expected.view(bits))[0])
    index = (channel, *point)
    return (
        f"{source.address(trajectory, channel)}: trajectory {trajectory}, frame {frame}, field "
        f"{source.fields[channel].name!r}, grid index {tuple(point)}: {expected[index]} in the "
        f"source, {stored[index]} stored"
    )


def _parameters(source: Source, trajectories: range) -> dict[str, Any]:
    located = [source.locate(trajectory) for trajectory in trajectories]
    return {
        name: np.array([part.parameter(name, row) for part, row in located])
        for name in source.parameter_names
    }


def _report(
    spec: DatasetSpec, shard: int, largest: int, started: float, differences: tuple[str, ...] = ()
) -> ShardReport:
    count = len(spec.trajectories_of_shard(shard))
    num_bytes = count * spec.num_frames * spec.frame_bytes
    seconds = time.perf_counter() - started
    return ShardReport(shard, count, num_bytes, largest, seconds, differences)


def listed(differences: list[str]) -> str:
    """The first differences, a line each, and the number of further ones."""
    shown = list(itertools.islice(differences, MAX_LISTED_DIFFERENCES))
    more = len(differences) - len(shown)
    return "\n  ".join([*shown, *([f"and {more} more"] if more else [])])
