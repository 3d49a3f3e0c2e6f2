"""Single numbers and statistics of a source, without the code that converts it.

A number is looked up at the index that the description of its array says, one axis at a time; a
statistic is the sum over all numbers of a field, however the axes lie. Both are held against what is
stored. The places are drawn from a seed and the trajectory's number alone.
"""

from __future__ import annotations

import itertools
import math
from collections import OrderedDict, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pelagos.data_pipelines.convert.source import Part, Source, SourceError, StoredArray
from pelagos.data_pipelines.convert.verification.second_decoding import Index, SecondArray
from pelagos.data_pipelines.convert.verification.second_files import SecondFile, open_second
from pelagos.data_pipelines.store import DatasetSpec
from pelagos.data_pipelines.store.schema import AXIS_NAMES

POINTS_PER_TRAJECTORY = 16  # at least, and at least one of each field
SLAB_BYTES = 16 * 2**20  # read at a time for statistics
OPEN_FILES = 4
_SEED = 20240229
# Relative rounding of the stored types, and the smallest number of float16.
_ROUNDING = {"float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}
_SMALLEST = {"float32": 1e-44, "float16": 6e-8, "bfloat16": 1e-38}

Frame = npt.NDArray[np.floating]  # [channel, y, x]


@dataclass
class Moments:
    """Sums of the numbers of one field; those that are missing are counted alone."""

    missing: float = 0.0
    count: float = 0.0
    total: float = 0.0
    squares: float = 0.0
    low: float = math.inf
    high: float = -math.inf

    def add(self, values: npt.NDArray[Any], weight: float = 1.0) -> None:
        """Add numbers, each of which counts `weight` times."""
        wide = np.asarray(values, np.float64)
        is_missing = np.isnan(wide)
        if is_missing.any():
            self.missing += weight * float(is_missing.sum())
            wide = wide[~is_missing]
        if not wide.size:
            return
        self.count += weight * wide.size
        self.total += weight * float(wide.sum())
        self.squares += weight * float(np.square(wide).sum())
        self.low = min(self.low, float(wide.min()))
        self.high = max(self.high, float(wide.max()))

    @property
    def row(self) -> dict[str, float]:
        if not self.count:
            return dict.fromkeys(("mean", "std", "min", "max"), math.nan)
        mean = self.total / self.count
        variance = max(0.0, self.squares / self.count - mean * mean)
        return {"mean": mean, "std": math.sqrt(variance), "min": self.low, "max": self.high}


@dataclass(frozen=True)
class _Point:
    channel: int
    place: tuple[int, ...]
    value: float
    slack: float
    address: str


class SecondReading:
    """The trajectories of one shard, read a second time and held against the stored frames.

    Hand every stored frame to `compare`, then ask for `statistics`.

    Raises:
        SourceError: the source cannot be read.
    """

    def __init__(self, source: Source, spec: DatasetSpec, trajectories: range) -> None:
        self.source, self.spec, self.trajectories = source, spec, trajectories
        self._files: OrderedDict[tuple[str, str], SecondFile] = OrderedDict()
        self._stored = [Moments() for _ in source.fields]
        self._source = [Moments() for _ in source.fields]
        self._slack = [0.0] * len(source.fields)  # how far decoding may move a number, relative
        self._points: dict[tuple[int, int], list[_Point]] = defaultdict(list)
        self._fills = {} if source.settlement is None else source.settlement.fills
        self._masks = {} if source.settlement is None else source.settlement.masks
        # part by part, so that a file is opened once for both
        for part, rows, first in _parts_of(source, trajectories):
            for row in rows:
                self._draw(part, row, first + row)
            for array in part.arrays:
                self._add(array, part, rows)
        self._settle()

    def compare(self, trajectory: int, frame: int, stored: Frame) -> Iterator[str]:
        """Sentences about the drawn numbers of a stored frame that are not the source's."""
        for moments, values in zip(self._stored, stored, strict=True):
            moments.add(values)
        rounding, smallest = _ROUNDING[self.spec.dtype], _SMALLEST[self.spec.dtype]
        for point in self._points.get((trajectory, frame), []):
            found = float(stored[(point.channel, *point.place)])
            allowed = rounding * abs(point.value) + smallest + point.slack
            if not abs(found - point.value) <= allowed:
                yield (
                    f"{point.address}: trajectory {trajectory}, frame {frame}, field "
                    f"{self.source.fields[point.channel].name!r}, grid index {point.place}: "
                    f"{point.value:.9g} in the source, read a second way, {found:.9g} stored"
                )

    def statistics(self) -> Iterator[str]:
        """Sentences about fields whose statistics are not the source's.

        Valid once every frame was given to `compare`.
        """
        where = f"trajectories {self.trajectories.start} to {self.trajectories.stop - 1}"
        for channel, (mine, theirs) in enumerate(zip(self._source, self._stored, strict=True)):
            largest = max(abs(mine.low), abs(mine.high))
            allowed = 4 * _ROUNDING[self.spec.dtype] * largest + _SMALLEST[self.spec.dtype]
            allowed += self._slack[channel] * max(1.0, largest)
            apart = [
                f"{key} {value:.9g} in the source, read a second way, {theirs.row[key]:.9g} stored"
                for key, value in mine.row.items()
                if abs(value - theirs.row[key]) > allowed
            ]  # where either has no number, their counts differ
            if mine.count != theirs.count:
                apart.append(f"{mine.count:.0f} numbers in the source, {theirs.count:.0f} stored")
            if apart:
                name = self.source.fields[channel].name
                yield f"{where}, field {name!r}: {'; '.join(apart)}"

    def close(self) -> None:
        while self._files:
            self._files.popitem()[1].close()

    def _settle(self) -> None:
        """The treatment of missing values: a number in their place, and masks of 0 and 1."""
        for mask, channels in self._masks.items():
            masked = self._source[channels[0]]
            for number, count in ((0.0, masked.missing), (1.0, masked.count)):
                if count:
                    self._source[mask].add(np.full(1, number), count)
        for channel, number in self._fills.items():
            if count := self._source[channel].missing:
                self._source[channel].add(np.full(1, number), count)

    # -- numbers ----------------------------------------------------------------------------------

    def _draw(self, part: Part, row: int, trajectory: int) -> None:
        """Look up the numbers that a trajectory's frames will be held against."""
        generator = np.random.default_rng((_SEED, trajectory))
        channels = len(self.source.fields)
        count = max(POINTS_PER_TRAJECTORY, channels)
        frames = generator.integers(self.source.num_frames, size=count)
        places = generator.integers(self.source.grid_shape, size=(count, len(self.spec.grid_shape)))
        for number in range(count):
            channel, frame = number % channels, int(frames[number])
            place = tuple(map(int, places[number]))
            seen = self._masks.get(channel, (channel,))[0]  # of a mask: the first that it masks
            value, slack, address = self._number(part, row, frame, seen, place)
            if channel in self._masks:
                value, slack = float(not math.isnan(value)), 0.0
            elif math.isnan(value):
                value = self._fills.get(channel, value)
            self._points[trajectory, frame].append(_Point(channel, place, value, slack, address))

    def _number(
        self, part: Part, row: int, frame: int, channel: int, place: tuple[int, ...]
    ) -> tuple[float, float, str]:
        """One number of a field, how far decoding may move it, and its array."""
        for array in part.arrays:
            if array.channel <= channel < array.channel + array.num_channels:
                second = self._array(array)
                value = 0.0
                if frame >= array.start_frame:
                    index = self._index(array, second, part, row, frame, channel, place)
                    value = float(second.read(index))
                return value, second.tolerance * max(1.0, abs(value)), array.address
        raise SourceError(f"no array of {self.source.name} holds field {channel}")

    def _index(
        self,
        array: StoredArray,
        second: SecondArray,
        part: Part,
        row: int,
        frame: int,
        channel: int,
        place: tuple[int, ...],
    ) -> Index:
        """Where one number of a field is in its array."""
        position = dict(zip(AXIS_NAMES[len(place)], place, strict=True))
        position |= {"n": part.first + row, "t": part.first_frame + frame, "1": 0}
        along_c = [size for a, size in zip(second.letters, second.shape, strict=True) if a == "c"]
        offset = array.first_index + channel - array.channel
        components = iter(np.unravel_index(offset, along_c) if along_c else ())
        return tuple(
            int(next(components)) if letter == "c" else position[letter]
            for letter in second.letters
        )

    # -- statistics -------------------------------------------------------------------------------

    def _add(self, array: StoredArray, part: Part, rows: range) -> None:
        """Add the numbers of some trajectories that one array holds."""
        second = self._array(array)
        channels = range(array.channel, array.channel + array.num_channels)
        for channel in channels:
            self._slack[channel] = max(self._slack[channel], second.tolerance)
        sizes = dict(
            zip(AXIS_NAMES[len(self.source.grid_shape)], self.source.grid_shape, strict=True)
        )
        num_frames = self.source.num_frames - array.start_frame
        repeats = math.prod(size for axis, size in sizes.items() if axis not in second.letters)
        repeats *= 1 if "n" in second.letters else len(rows)
        repeats *= 1 if "t" in second.letters else num_frames
        first_frame = part.first_frame + array.start_frame
        frames = range(first_frame, first_frame + num_frames)
        stored_rows = range(part.first + rows.start, part.first + rows.stop)
        for values in self._slabs(second, stored_rows, frames):
            for offset, channel in enumerate(channels, array.first_index):
                self._source[channel].add(_component(values, second.letters, offset), repeats)
        if array.start_frame:  # 0 before it
            zeros = math.prod(sizes.values()) * len(rows) * array.start_frame
            for channel in channels:
                self._source[channel].add(np.zeros(1), zeros)

    def _slabs(self, second: SecondArray, rows: range, frames: range) -> Iterator[npt.NDArray[Any]]:
        """The numbers of some trajectories and frames, in pieces of bounded size."""
        others = math.prod(
            size for a, size in zip(second.letters, second.shape, strict=True) if a not in "nt"
        )
        frame_step = max(1, min(len(frames), SLAB_BYTES // (8 * others)))
        row_step = max(1, SLAB_BYTES // (8 * others * len(frames)))
        row_pieces = _pieces(rows, row_step) if "n" in second.letters else [slice(0, 1)]
        frame_pieces = _pieces(frames, frame_step) if "t" in second.letters else [slice(0, 1)]
        for row_piece, frame_piece in itertools.product(row_pieces, frame_pieces):
            chosen = {"n": row_piece, "t": frame_piece}
            yield second.read(tuple(chosen.get(letter, slice(None)) for letter in second.letters))

    # -- files ------------------------------------------------------------------------------------

    def _array(self, array: StoredArray) -> SecondArray:
        address = (array.reader, array.file)
        if address not in self._files:
            self._files[address] = open_second(*address)
            if len(self._files) > OPEN_FILES:
                self._files.popitem(last=False)[1].close()
        self._files.move_to_end(address)
        try:
            found = self._files[address].array(array)
        except KeyError as error:
            raise SourceError(f"{array.file} has no array {array.key!r}") from error
        if len(found.shape) != len(found.letters):
            raise SourceError(
                f"{array.address} has shape {found.shape}, expected the axes {found.letters}"
            )
        return found


def _parts_of(source: Source, trajectories: range) -> Iterator[tuple[Part, range, int]]:
    """The parts that hold some trajectories, which rows of each, and the trajectory of row 0."""
    first = 0
    for part in itertools.chain.from_iterable(source.splits.values()):
        low = max(trajectories.start - first, 0)
        high = min(trajectories.stop - first, part.count)
        if low < high:
            yield part, range(low, high), first
        first += part.count
        if first >= trajectories.stop:
            return


def _pieces(whole: range, step: int) -> list[slice]:
    return [
        slice(start, min(start + step, whole.stop))
        for start in range(whole.start, whole.stop, step)
    ]


def _component(values: npt.NDArray[Any], letters: str, component: int) -> npt.NDArray[Any]:
    """One channel of an array, which may have zero, one or two channel axes."""
    sizes = [size for letter, size in zip(letters, values.shape, strict=True) if letter == "c"]
    if not sizes:
        return values
    components = iter(np.unravel_index(component, sizes))
    return np.asarray(
        values[tuple(int(next(components)) if a == "c" else slice(None) for a in letters)]
    )
