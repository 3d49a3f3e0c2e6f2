"""Reading a dataset: planner, fetcher, decoder.

The planner turns frames of a trajectory into byte ranges of one object, from the shard's index
(read once, then kept), and joins neighbours into one range. The store fetches the ranges. The
decoder checks every checksum and decodes into the caller's buffer. Any number of threads may read
from one `Dataset` at once.
"""

from __future__ import annotations

import itertools
import logging
import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr

from pelagos.data_pipelines.store.cache import CachedStore, open_cached, row_blocks
from pelagos.data_pipelines.store.chunk_grid import parts_by_number
from pelagos.data_pipelines.store.errors import DatasetError, ObjectMissingError
from pelagos.data_pipelines.store.field_statistics import default_split
from pelagos.data_pipelines.store.half_precision import as_read
from pelagos.data_pipelines.store.layout import decoded_attributes
from pelagos.data_pipelines.store.manifest import (
    Manifest,
    ShardRecord,
    check_shard_sizes,
    load_manifest,
)
from pelagos.data_pipelines.store.node_cache import CacheSettings
from pelagos.data_pipelines.store.object_store import ObjectStore, Range, open_store
from pelagos.data_pipelines.store.readable import FloatArray, Region, SpecReader
from pelagos.data_pipelines.store.shards import (
    ABSENT,
    CHECKSUM_BYTES,
    ChecksumError,
    FrameCodec,
    ShardIndex,
    check,
    crc32c,
    decode_index,
    index_bytes_length,
)
from pelagos.data_pipelines.store.zarr_view import open_group
from pelagos.infra.storage.remote import is_remote

MAX_REQUEST_BYTES = 16 * 2**20

logger = logging.getLogger(__name__)


def open_dataset(
    uri: str | os.PathLike[str],
    storage_options: dict[str, Any] | None = None,
    cache: CacheSettings | None = None,
) -> Dataset:
    """Open a finished dataset: one read of its manifest, one listing of its shards.

    Args:
        uri: a path, or `s3://bucket/path/name.zarr`.
        storage_options: for object stores; see `pelagos.infra.storage.remote.RemoteStore`.
        cache: where this node keeps data fetched from an object store; paths are not cached.

    Raises:
        DatasetError: it is missing, unfinished, damaged or out of reach; the message says how
            to fix it.
    """
    return Dataset(os.fspath(uri), storage_options, cache)


@dataclass(frozen=True)
class PlannedRange:
    """One byte range to fetch, and its contents.

    `chunks` are `(position in out, entry in the trajectory's index, offset, length)`.
    """

    byte_range: Range
    chunks: tuple[tuple[int, int, int, int], ...]


class Dataset(SpecReader):
    """A finished dataset, open for reading. Made by `open_dataset`.

    It can be pickled (it opens again at the other end), but not carried through `fork`, which
    breaks the threads of every asynchronous client: the child gets an error that says so.

    Attributes:
        uri, spec: its place and its description.
        manifest: shards, checksums and all statistics.
        fingerprint: SHA-256 that changes whenever a byte of the data does.
        bytes_read: bytes read through this object so far, from a cache or past it.
        counters: requests to the object store, and hits of the cache.
    """

    def __init__(
        self,
        uri: str,
        storage_options: dict[str, Any] | None = None,
        cache: CacheSettings | None = None,
    ) -> None:
        self.storage_options = storage_options
        self.cache = cache
        self.store: ObjectStore = open_store(uri, storage_options)
        self.manifest: Manifest = load_manifest(self.store)
        check_shard_sizes(self.store, self.manifest)
        super().__init__(uri, self.manifest.spec)
        self.fingerprint: str = self.manifest.fingerprint
        self.counters = self.store.counters
        if cache is not None and is_remote(uri):
            size = sum(shard.size for shard in self.manifest.shards)
            # Every chunk has a checksum of its own, which the decoder checks.
            self.store = open_cached(self.store, cache, self.fingerprint, size, verify=False)
        self._codec = FrameCodec(self.spec)
        self._all_parts = parts_by_number(self.spec)
        self._chunks_per_frame = self.spec.chunks_per_frame
        self._is_direct = (  # a chunk is a whole frame of numbers as they are read
            self.spec.frame_chunk_shape == self.spec.grid_shape
            and self.spec.stored_dtype == self.spec.value_dtype
        )
        self._indices: dict[int, ShardIndex] = {}
        self._lock = threading.Lock()
        self._scratch = threading.local()

    @property
    def statistics(self) -> dict[str, dict[str, float]]:
        """Statistics of the split `train`, or of the whole dataset if it has no such split.

        `{field: {mean, std, rms, min, max, delta_mean, delta_std, …}}`; `manifest.statistics` has
        every split.
        """
        return self.manifest.statistics[default_split(self.manifest.statistics)]

    @property
    def attrs(self) -> dict[str, Any]:
        """The attributes of the Zarr group; objects and lists in place of their JSON text."""
        return decoded_attributes(self.data_group.attrs)

    @cached_property
    def data_group(self) -> zarr.Group:
        """The Zarr group, through zarr itself; a missing chunk is an error, not fill values."""
        return open_group(self.uri, self.storage_options)

    @cached_property
    def data(self) -> zarr.Array[Any]:
        """`[trajectory, time, channel, y, x]` through zarr itself.

        Convenient, and slower than `read_frames`.
        """
        array = self.data_group["data"]
        assert isinstance(array, zarr.Array)
        return array

    @cached_property
    def parameters(self) -> dict[str, npt.NDArray[np.float64]]:
        """Per-trajectory parameters, float64 `[trajectory]` each."""
        self._refuse_fork()
        return {name: self._read_parameter(name) for name in self.spec.parameter_names}

    def window(self, trajectory: int, start: int, length: int) -> FloatArray:
        """Frames `start .. start + length - 1` of a trajectory, `[length, channel, y, x]`."""
        return self.read_frames(trajectory, range(start, start + length))

    def read_frames(
        self,
        trajectory: int,
        frames: Sequence[int],
        out: FloatArray | None = None,
        region: Region | None = None,
    ) -> FloatArray:
        """Some frames of one trajectory, in any order and not necessarily adjacent.

        Args:
            out: a C-contiguous buffer `[len(frames), channel, y, x]` of `spec.value_dtype` to
                decode into; made if None.
            region: the part of the grid to read, `((y0, y1), (x0, x1))`; None reads all of it.
                Only the chunks that it touches are fetched.

        Returns:
            `[len(frames), channel, y, x]`.

        Raises:
            DatasetError: bytes are missing or damaged; dataset, shard, trajectory and frame are
                named. Nothing is ever filled in.
            IndexError: there is no such trajectory, frame or region.
        """
        self._refuse_fork()
        self._check_bounds(trajectory, frames, region)
        out = self._checked_out(len(frames), out, region)
        shard, row = divmod(trajectory, self.spec.shard_trajectories)
        parts = self._all_parts if region is None else parts_by_number(self.spec, region)
        plan = self.plan(shard, row, frames, tuple(parts))
        key = self.manifest.shards[shard].key
        ranges = [planned.byte_range for planned in plan]
        scratch = self._thread_scratch(sum(length for _, length in ranges))
        shown = ", ".join(map(str, frames))
        place = f"{key}, trajectory {trajectory}, frames {shown}"
        fetched = self._fetch(key, ranges, scratch, place)
        chunk = None if self._is_direct and region is None else self._thread_chunk()
        for planned, content in zip(plan, fetched, strict=True):
            start = planned.byte_range[0]
            for position, entry, offset, length in planned.chunks:
                encoded = content[offset - start : offset - start + length]
                target = out[position] if chunk is None else chunk
                try:
                    self._codec.decode(encoded.data, target)
                except (ChecksumError, RuntimeError) as error:
                    frame = entry // self._chunks_per_frame
                    self._decode_again(key, trajectory, frame, (offset, length), target, error)
                if chunk is not None:
                    part = parts[entry % self._chunks_per_frame]
                    out[position][part.target] = as_read(self.spec, chunk[part.source])
        return out

    def plan(
        self, shard: int, row: int, frames: Sequence[int], parts: Sequence[int] = (0,)
    ) -> list[PlannedRange]:
        """The byte ranges that hold `frames` of the trajectory at `row` of a shard.

        With `parts`, those of these chunks (by number) only.
        """
        entries = self.shard_index(shard)[row]
        chunks = []
        for (position, frame), part in itertools.product(enumerate(frames), parts):
            entry = frame * self._chunks_per_frame + part
            if entries[entry, 0] == ABSENT:
                raise DatasetError(
                    f"dataset {self.uri}, shard {self.manifest.shards[shard].key}: frame {frame} "
                    f"of trajectory {shard * self.spec.shard_trajectories + row} was never written"
                )
            chunks.append((position, entry, int(entries[entry, 0]), int(entries[entry, 1])))
        chunks.sort(key=lambda chunk: chunk[2])
        return _coalesce(chunks, self.store.coalesce_gap_bytes)

    def shard_index(self, shard: int) -> ShardIndex:
        """Where each frame (or chunk of one) of a shard is.

        `[trajectory, time, (offset, length)]`; kept.
        """
        known = self._indices.get(shard)
        if known is not None:
            return known
        record = self.manifest.shards[shard]
        try:
            try:
                index = self._read_index(record)
            except ChecksumError as error:  # the damage may be on the way, not at rest
                self.counters.add(damaged_reads=1)
                length = index_bytes_length(self.spec)
                self._tell_damage(record.key, (record.size - length, length), "its index", error)
                index = self._read_index(record)
        except ChecksumError as error:
            raise DatasetError(
                f"dataset {self.uri}: the index of shard {record.key} is damaged ({error}). "
                f"Restore the shard from a copy, or write the dataset again"
            ) from error
        if isinstance(self.store, CachedStore):
            self.store.divide(record.key, row_blocks(index, int(ABSENT)))
        self._indices[shard] = index
        return index

    def _read_index(self, record: ShardRecord) -> ShardIndex:
        length = index_bytes_length(self.spec)
        (tail,) = self._fetch(record.key, [(record.size - length, length)])
        index, checksum = decode_index(self.spec, tail.data)
        if checksum != record.index_crc32c:
            raise ChecksumError("it differs from the index that the manifest describes")
        return index

    def close(self) -> None:
        """Close files. Reading opens them again."""
        self.store.close()

    def __reduce__(self) -> tuple[Any, ...]:
        return open_dataset, (self.uri, self.storage_options, self.cache)

    def __repr__(self) -> str:
        return f"Dataset({self.uri!r}, shape={self.spec.shape}, fields={self.field_names})"

    def _thread_scratch(self, num_bytes: int) -> npt.NDArray[np.uint8]:
        """Memory for encoded bytes, kept per thread."""
        buffer: npt.NDArray[np.uint8] | None = getattr(self._scratch, "buffer", None)
        if buffer is None or len(buffer) < num_bytes:
            buffer = self._scratch.buffer = np.empty(num_bytes, np.uint8)
        return buffer[:num_bytes]

    def _thread_chunk(self) -> npt.NDArray[Any]:
        """Memory for one decoded chunk, kept per thread."""
        buffer: npt.NDArray[Any] | None = getattr(self._scratch, "chunk", None)
        if buffer is None:
            buffer = self._scratch.chunk = np.empty(self._codec.chunk_shape, self._codec.dtype)
        return buffer

    def _fetch(
        self,
        key: str,
        ranges: list[Range],
        scratch: npt.NDArray[np.uint8] | None = None,
        place: str = "",
    ) -> list[npt.NDArray[np.uint8]]:
        """Byte ranges of an object; `place` names their contents in messages."""
        extent = f"bytes {min(ranges)[0]}..{sum(max(ranges)) - 1}"
        try:
            fetched = self.store.read_ranges(key, ranges, scratch)
        except ObjectMissingError as error:
            raise DatasetError(
                f"dataset {self.uri}: shard {place or key} ({extent}) existed when the dataset was "
                f"opened and is gone now ({error})"
            ) from error
        except DatasetError as error:
            raise DatasetError(
                f"dataset {self.uri}, shard {place or key} ({extent}): {error}"
            ) from error
        with self._lock:
            self.bytes_read += sum(length for _, length in ranges)
        return fetched

    def _decode_again(
        self,
        key: str,
        trajectory: int,
        frame: int,
        byte_range: Range,
        out: FloatArray,
        first_error: Exception,
    ) -> None:
        """Fetch a frame once more (the damage may be on the way, not at rest), then give up."""
        self.counters.add(damaged_reads=1)
        what = f"trajectory {trajectory}, frame {frame}"
        self._tell_damage(key, byte_range, what, first_error)
        if isinstance(self.store, CachedStore):
            self.store.discard(key, byte_range)
        (content,) = self._fetch(key, [byte_range])
        try:
            self._codec.decode(content.data, out)
        except (ChecksumError, RuntimeError) as error:
            raise DatasetError(
                f"dataset {self.uri}, shard {key}, trajectory {trajectory}, frame {frame} (bytes "
                f"{byte_range[0]}..{sum(byte_range) - 1}) is damaged, read twice: {first_error}. "
                f"Restore the shard from a copy, or write the dataset again"
            ) from error

    def _tell_damage(self, key: str, byte_range: Range, what: str, error: Exception) -> None:
        logger.warning(
            "%s, bytes %d..%d (%s): %s. Read once more (%d damaged reads so far)",
            self.store.address(key),
            byte_range[0],
            sum(byte_range) - 1,
            what,
            error,
            self.counters.damaged_reads,
        )

    def _read_parameter(self, name: str) -> npt.NDArray[np.float64]:
        key = f"parameters/{name}/c/0"
        content = self.store.read(key)
        # A longer one is being appended to; its first numbers are those that the manifest describes.
        payload = content[:-CHECKSUM_BYTES][: self.num_trajectories * 8]
        try:
            check(content[:-CHECKSUM_BYTES], content[-CHECKSUM_BYTES:])
            if crc32c(payload) != self.manifest.parameters_crc32c[name]:
                raise ChecksumError("it differs from the manifest's description")
        except ChecksumError as error:
            raise DatasetError(f"dataset {self.uri}: {key} is damaged ({error})") from error
        return np.frombuffer(payload, dtype="<f8")


def _coalesce(chunks: list[tuple[int, int, int, int]], gap_bytes: int) -> list[PlannedRange]:
    """Join chunks, sorted by offset, whose gap is small into ranges of bounded length."""
    plan: list[PlannedRange] = []
    group: list[tuple[int, int, int, int]] = []
    start = stop = 0
    for chunk in chunks:
        _, _, offset, length = chunk
        end = max(stop, offset + length)
        if group and (offset - stop > gap_bytes or end - start > MAX_REQUEST_BYTES):
            plan.append(PlannedRange((start, stop - start), tuple(group)))
            group = []
        if not group:
            start, end = offset, offset + length
        group.append(chunk)
        stop = end
    plan.append(PlannedRange((start, stop - start), tuple(group)))
    return plan
