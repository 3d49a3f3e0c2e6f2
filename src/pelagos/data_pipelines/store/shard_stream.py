"""Encoding a shard as its frames come, in memory that does not grow with it.

Frames are encoded, checked for finite values and summed in one go, in threads, while the next ones
are read; the encoded bytes go to a file at once. The output is the same whatever the pieces in
which the frames came, byte for byte.
"""

from __future__ import annotations

import contextlib
import math
import os
import tempfile
import uuid
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
import numpy.typing as npt

from pelagos.data_pipelines.store.chunk_grid import frame_chunks
from pelagos.data_pipelines.store.field_statistics import (
    FrameMoments,
    TrajectorySums,
    frame_moments,
    pooled_sums,
)
from pelagos.data_pipelines.store.half_precision import from_bfloat16, to_bfloat16
from pelagos.data_pipelines.store.object_store import LocalStore, ObjectStore
from pelagos.data_pipelines.store.schema import LABEL_KIND, DatasetSpec
from pelagos.data_pipelines.store.shards import (
    Buffer,
    FrameCodec,
    checksum_bytes,
    extended_crc32c,
    shard_index,
)
from pelagos.infra.storage.files import sync_directory
from pelagos.infra.storage.local import TEMPORARY_MARK
from pelagos.infra.storage.remote import RemoteStore

Frames = npt.NDArray[np.floating]  # [frame, channel, y, x]

# Raw bytes per task of a thread: large enough that handing it over is negligible in comparison.
TASK_BYTES = 2 * 2**20
# Raw bytes that may wait, as given and in the stored type, for their turn.
MAX_WAITING_BYTES = 64 * 2**20
MAX_THREADS = 4
# Beyond these some whole numbers are rounded: 2 to the digits of the type, the hidden one counted.
LARGEST_WHOLE_NUMBER = {"float32": 2**24, "float16": 2**11, "bfloat16": 2**8}
# Where the files of local shards grow. They go when the dataset is finished, if a kill left them.
PARTIAL_FOLDER = ".pelagos"


class UnstorableError(ValueError):
    """The stored type cannot hold a value.

    Attributes:
        trajectory, frame, channel: where the first such value is.
    """

    def __init__(self, message: str, trajectory: int, frame: int, channel: int) -> None:
        super().__init__(message)
        self.trajectory, self.frame, self.channel = trajectory, frame, channel

    def __reduce__(self) -> tuple[type, tuple[str, int, int, int]]:
        return type(self), (str(self), self.trajectory, self.frame, self.channel)


class NonFiniteError(UnstorableError):
    """A value is NaN or infinite, or too large for the stored type."""


class InexactLabelError(UnstorableError):
    """The number of a class or an object is rounded to another one."""


class UnderflowError(UnstorableError):
    """Every value of a field is too small for the stored type and becomes 0."""


@dataclass(frozen=True)
class StreamedShard:
    """The facts about a shard once its bytes are written. The checksums are crc32c."""

    size: int
    crc32c: int
    index_crc32c: int
    sums: dict[str, list[TrajectorySums]]  # per field and trajectory


class _Encoded(NamedTuple):
    """A thread's result for a run of frames; `moments` per frame and channel."""

    payloads: list[tuple[Buffer, bytes]]  # compressed chunk, its checksum
    moments: list[list[FrameMoments]]


@cache
def encoding_threads() -> ThreadPoolExecutor:
    """The threads in which this process encodes, shared by all writers: one per core, at most four.

    Blosc's own threads would order blocks by which finished first; in a thread that is not the
    main one it uses none, so frames are encoded there and the bytes are a function of the data.
    """
    return ThreadPoolExecutor(min(MAX_THREADS, os.cpu_count() or 1), "encode")


# A fork has the executor but none of its threads.
os.register_at_fork(after_in_child=encoding_threads.cache_clear)


def stream_shard(
    spec: DatasetSpec, trajectories: range, blocks: Iterable[Frames], file: IO[bytes]
) -> StreamedShard:
    """Write a shard's bytes to `file` from its frames.

    Args:
        trajectories: those of the shard.
        blocks: together all frames, in the order of trajectory and time, `[frame, channel, y, x]`
            in pieces of any length. A block must not be changed afterwards.

    Raises:
        NonFiniteError, InexactLabelError, UnderflowError: naming the first value.
        ValueError: too few or too many frames, or of another shape.
    """
    stream = _Stream(spec, trajectories, file)
    for block in blocks:
        stream.add(block)
    return stream.finish()


class _Stream:
    def __init__(self, spec: DatasetSpec, trajectories: range, file: IO[bytes]) -> None:
        self.spec, self.trajectories, self.file = spec, trajectories, file
        self.codec = FrameCodec(spec)
        self.waiting: deque[tuple[int, int, Frames, Future[_Encoded]]] = deque()
        self.waiting_bytes = 0
        self.num_given = 0
        self.last: Frames | None = None
        self.lengths: list[int] = []
        self.crc = 0
        self.moments: list[FrameMoments] = self._no_moments()
        self.sums: dict[str, list[TrajectorySums]] = {name: [] for name in spec.field_names}
        self.labels = [i for i, field in enumerate(spec.fields) if field.kind == LABEL_KIND]
        # Per channel the largest magnitude given, and whether anything but 0 was stored.
        self.magnitudes = np.zeros(len(spec.fields))
        self.is_stored = np.zeros(len(spec.fields), bool)

    @property
    def num_frames(self) -> int:
        return len(self.trajectories) * self.spec.num_frames

    def add(self, block: Frames) -> None:
        """Hand frames to the threads, and write out finished ones."""
        if block.shape[1:] != self.spec.frame_shape:
            raise ValueError(
                f"frames have shape {block.shape[1:]}, required is {self.spec.frame_shape} = "
                f"(channel, {', '.join(self.spec.axis_names)})"
            )
        with np.errstate(over="ignore"):  # an overflow becomes infinite, and is refused
            stored = _rounded(self.spec, np.ascontiguousarray(block, dtype=self.spec.value_dtype))
        self._require_exact_labels(block, stored)
        if self.spec.dtype == "float16":  # the one type whose smallest number matters: 6e-8
            space = tuple(range(2, block.ndim))
            largest = np.abs(block).max(axis=(0, *space)).astype(np.float64)
            self.magnitudes = np.fmax(self.magnitudes, largest)
            self.is_stored |= stored.any(axis=(0, *space))
        step = max(1, TASK_BYTES // self.spec.frame_bytes)
        for start in range(0, len(stored), step):
            frames = stored[start : start + step]
            given = block[start : start + step]
            future = encoding_threads().submit(
                _encode, self.spec, self.codec, frames, self.last, self.num_given
            )
            self.waiting.append((self.num_given, frames.nbytes, given, future))
            self.waiting_bytes += frames.nbytes
            self.num_given += len(frames)
            self.last = frames[-1]
            while self.waiting_bytes > MAX_WAITING_BYTES or (
                self.waiting and self.waiting[0][-1].done()
            ):
                self._write_first()

    def finish(self) -> StreamedShard:
        """Write the rest, and the index."""
        if self.num_given != self.num_frames:
            raise ValueError(
                f"{self.num_given} frames were given for trajectories {self.trajectories.start}.."
                f"{self.trajectories.stop - 1}, required are {len(self.trajectories)} x "
                f"{self.spec.num_frames} = {self.num_frames}"
            )
        while self.waiting:
            self._write_first()
        self._require_no_underflow()
        index = shard_index(self.spec, self.lengths)
        checksum = checksum_bytes(index)
        self._write(index + checksum)
        size = sum(self.lengths) + len(index) + len(checksum)
        return StreamedShard(size, self.crc, int.from_bytes(checksum, "little"), self.sums)

    def _write_first(self) -> None:
        first, num_bytes, given, future = self.waiting.popleft()
        self.waiting_bytes -= num_bytes
        encoded = future.result()
        for i, moments in enumerate(encoded.moments):
            self._pool(first + i, given[i], moments)
        for payload, checksum in encoded.payloads:
            self._write(payload)
            self._write(checksum)
            self.lengths.append(len(payload) + len(checksum))

    def _pool(self, number: int, given: Frames, moments: list[FrameMoments]) -> None:
        """Add a frame's moments to its trajectory's, and close the trajectory at its last frame."""
        row, frame = divmod(number, self.spec.num_frames)
        for channel, (plain, _) in enumerate(moments):
            if not all(math.isfinite(part.sum) for part in plain):
                raise self._non_finite(self.trajectories[row], frame, channel, given[channel])
        for collected, (plain, deltas) in zip(self.moments, moments, strict=True):
            collected[0].extend(plain)
            collected[1].extend(deltas)
        if frame == self.spec.num_frames - 1:
            for name, collected in zip(self.spec.field_names, self.moments, strict=True):
                self.sums[name].append(pooled_sums(*collected))
            self.moments = self._no_moments()

    def _require_exact_labels(self, given: Frames, stored: Frames) -> None:
        """Raises InexactLabelError where a label is rounded."""
        for channel in self.labels:
            mine, theirs = given[:, channel], stored[:, channel]
            is_wrong = (mine != theirs) & np.isfinite(mine)
            if not is_wrong.any():
                continue
            at, *point = map(int, np.argwhere(is_wrong)[0])
            row, frame = divmod(self.num_given + at, self.spec.num_frames)
            trajectory = self.trajectories[row]
            raise InexactLabelError(
                f"trajectory {trajectory}, frame {frame}, field "
                f"{self.spec.field_names[channel]!r}, grid index {tuple(point)}: label "
                f"{mine[(at, *point)]:.10g} becomes {theirs[(at, *point)]:.10g} in "
                f"{self.spec.dtype}, which holds whole numbers up to "
                f"{LARGEST_WHOLE_NUMBER[self.spec.dtype]} exactly: store as float32 "
                f"(--dtype float32), or renumber the labels",
                trajectory,
                frame,
                channel,
            )

    def _require_no_underflow(self) -> None:
        """Raises UnderflowError where a field that is not 0 was stored as 0 throughout."""
        for channel in np.flatnonzero((self.magnitudes > 0) & ~self.is_stored).tolist():
            trajectory = self.trajectories[0]
            raise UnderflowError(
                f"trajectories {trajectory} to {self.trajectories[-1]}, field "
                f"{self.spec.field_names[channel]!r}: every value becomes 0 in float16, the largest "
                f"is {self.magnitudes[channel]:.3g}: use float32 or bfloat16, or another unit",
                trajectory,
                0,
                channel,
            )

    def _non_finite(
        self, trajectory: int, frame: int, channel: int, given: npt.NDArray[np.floating]
    ) -> NonFiniteError:
        with np.errstate(over="ignore"):
            stored = _rounded(self.spec, given.astype(self.spec.value_dtype))
        point = tuple(map(int, np.argwhere(~np.isfinite(stored))[0]))
        return NonFiniteError(
            f"trajectory {trajectory}, frame {frame}, field "
            f"{self.spec.field_names[channel]!r}, grid index {point}: {stored[point]} is not "
            f"finite as {self.spec.dtype} (value given: {given[point]})",
            trajectory,
            frame,
            channel,
        )

    def _write(self, content: Buffer) -> None:
        self.crc = extended_crc32c(self.crc, content)
        self.file.write(content)

    def _no_moments(self) -> list[FrameMoments]:
        return [([], []) for _ in self.spec.fields]


def _rounded(spec: DatasetSpec, values: Frames) -> Frames:
    """Values as the stored type rounds them."""
    if spec.dtype != "bfloat16":
        return values
    return np.where(np.isnan(values), values, from_bfloat16(to_bfloat16(values)))


def _encode(
    spec: DatasetSpec, codec: FrameCodec, frames: Frames, previous: Frames | None, first: int
) -> _Encoded:
    """Encode and sum frames of which the first has number `first` in the shard."""
    num_frames, masks = spec.num_frames, spec.mask_channels
    moments: list[list[FrameMoments]] = []
    # infinite minus infinite: refused later, by name
    with np.errstate(invalid="ignore"):
        begun = first % num_frames
        rest = min(num_frames - begun, len(frames)) if begun else 0
        if rest:  # of a trajectory that began before
            moments += frame_moments(frames[:rest], previous, num_frames, masks)
        if rest < len(frames):
            moments += frame_moments(frames[rest:], None, num_frames, masks)
    stored = to_bfloat16(frames) if spec.dtype == "bfloat16" else frames
    return _Encoded([codec.encode(chunk) for chunk in frame_chunks(spec, stored)], moments)


@contextlib.contextmanager
def object_file(store: ObjectStore, key: str) -> Iterator[IO[bytes]]:
    """A file to write to, whose content becomes the object `key` when the context ends well.

    On a local disk the file lies in the same dataset and is renamed into its place. For an object
    store it lies in the temporary folder and is uploaded, in parts if it is large.
    """
    if isinstance(store, LocalStore):
        path = store.path(key)
        partial = store.path(f"{PARTIAL_FOLDER}/{TEMPORARY_MARK}{uuid.uuid4().hex}")
        partial.parent.mkdir(parents=True, exist_ok=True)
        try:
            with partial.open("xb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            path.parent.mkdir(parents=True, exist_ok=True)
            partial.replace(path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
        sync_directory(path.parent)
        return
    assert isinstance(store, RemoteStore)
    with tempfile.NamedTemporaryFile(prefix="pelagos-shard-") as spooled:
        yield spooled.file
        spooled.file.flush()
        store.upload(key, Path(spooled.name))
