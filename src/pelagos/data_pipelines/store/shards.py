"""Shards: the bytes of many frames in one object, in time order, with an index at the end.

The layout is Zarr v3's `sharding_indexed` codec (https://zarr-specs.readthedocs.io): encoded
frames back to back, then the index: `(offset, length)` as two little-endian uint64 for each frame
in C order over `[trajectory, time]`, then the crc32c of the index as uint32. A frame that is not
there (only in a last shard that is not full) has offset and length 2^64 - 1. The specification
leaves the order of the frames open; here it is `[trajectory, time]`, so that any window of frames
is one contiguous range of bytes. Where a frame is cut into chunks, "frame" above means a chunk, in
C order over `[trajectory, time, y, x]`.

Each encoded frame ends in its own crc32c (uint32, little-endian, over the bytes before it).
"""

from __future__ import annotations

import math
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import google_crc32c
import numpy as np
import numpy.typing as npt
from numcodecs import Blosc

from pelagos.data_pipelines.store.chunk_grid import frame_chunks
from pelagos.data_pipelines.store.half_precision import to_bfloat16
from pelagos.data_pipelines.store.layout import BLOSC_LEVEL
from pelagos.data_pipelines.store.schema import DatasetSpec

CHECKSUM_BYTES = 4
INDEX_ENTRY_BYTES = 16
ABSENT = np.uint64(2**64 - 1)

Buffer = bytes | bytearray | memoryview
# [trajectory in shard, time * chunks per frame + chunk, (offset, length)]
ShardIndex = npt.NDArray[np.uint64]


@dataclass(frozen=True)
class EncodedShard:
    """A whole shard as bytes, and its checksums."""

    content: bytes
    crc32c: int
    index_crc32c: int


class FrameCodec:
    """Encodes and decodes one frame `[channel, y, x]`, or one chunk of it.

    Attributes:
        dtype: of what is stored, in which arrays are given and decoded.
        chunk_shape: `(channel, y, x)` of what is encoded at once.
    """

    def __init__(self, spec: DatasetSpec) -> None:
        self.dtype = spec.stored_dtype.newbyteorder("<")
        self.chunk_shape = (len(spec.fields), *spec.frame_chunk_shape)
        self.chunk_bytes = math.prod(self.chunk_shape) * self.dtype.itemsize
        self.blosc = (
            None
            if spec.compression == "none"
            else Blosc(spec.compression, BLOSC_LEVEL[spec.compression], Blosc.SHUFFLE, blocksize=0)
        )

    def encode(self, frame: npt.NDArray[Any]) -> bytes:
        contiguous = np.ascontiguousarray(frame, dtype=self.dtype)
        payload = contiguous.tobytes() if self.blosc is None else self.blosc.encode(contiguous)
        return bytes(payload) + checksum_bytes(payload)

    def decode(self, encoded: Buffer, out: npt.NDArray[Any]) -> None:
        """Check the checksum and decode into `out`, contiguous, of the stored type.

        Raises:
            ChecksumError: the bytes are not those that were written.
        """
        view = memoryview(encoded)
        payload = view[:-CHECKSUM_BYTES]
        check(payload, view[-CHECKSUM_BYTES:])
        if self.blosc is None:
            if len(payload) != self.chunk_bytes:
                raise ChecksumError(f"{len(payload)} bytes where {self.chunk_bytes} were expected")
            out.view(np.uint8).reshape(-1)[:] = np.frombuffer(payload, np.uint8)
        else:
            self.blosc.decode(payload, out=out)


class ChecksumError(ValueError):
    """Stored and computed crc32c differ, or a length is impossible."""


def crc32c(content: Buffer) -> int:
    # google_crc32c refuses memoryviews, and takes arrays: a view as an array costs no copy.
    return int(google_crc32c.value(np.frombuffer(content, np.uint8)))


def checksum_bytes(content: Buffer) -> bytes:
    return crc32c(content).to_bytes(CHECKSUM_BYTES, "little")


def check(content: Buffer, stored: Buffer) -> None:
    """Raises ChecksumError unless `stored` is the crc32c of `content`."""
    computed, expected = crc32c(content), int.from_bytes(stored, "little")
    if computed != expected:
        raise ChecksumError(f"crc32c is {computed:08x}, but {expected:08x} was stored")


def encode_shard(spec: DatasetSpec, data: npt.NDArray[Any]) -> EncodedShard:
    """The bytes of a shard.

    Args:
        data: `[n, time, channel, y, x]` with `n` at most `spec.shard_trajectories`, finite.

    The result is a function of the data alone. Blosc's own threads would order blocks by which
    finished first; in a thread that is not the main one it uses none, so frames are encoded there.
    """
    codec = FrameCodec(spec)
    num_present, num_frames = data.shape[:2]
    stored = to_bfloat16(data) if spec.dtype == "bfloat16" else data
    frames = stored.reshape(num_present * num_frames, *data.shape[2:])
    with ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1)) as pool:
        encoded = list(pool.map(codec.encode, frame_chunks(spec, frames)))
    lengths = np.array([len(e) for e in encoded], dtype=np.uint64)
    index = np.full(_index_shape(spec), ABSENT, dtype="<u8")
    filled = index[:num_present].reshape(-1, 2)
    filled[:, 0] = np.cumsum(lengths) - lengths
    filled[:, 1] = lengths
    index_bytes = index.tobytes()
    index_checksum = checksum_bytes(index_bytes)
    content = b"".join([*encoded, index_bytes, index_checksum])
    return EncodedShard(content, crc32c(content), int.from_bytes(index_checksum, "little"))


def extend_shard(
    spec: DatasetSpec, old: bytes, num_present: int, data: npt.NDArray[Any]
) -> EncodedShard:
    """A shard with more trajectories, behind the `num_present` that it has.

    The old shard, its index included, is the beginning of the new one: who knows the old size
    reads the old shard from it.
    """
    added = encode_shard(spec, data).content
    length = index_bytes_length(spec)
    index, _ = decode_index(spec, old[-length:])
    more, _ = decode_index(spec, added[-length:])
    index = index.copy()
    rows = slice(num_present, num_present + len(data))
    index[rows] = more[: len(data)]
    index[rows, :, 0] += np.uint64(len(old))
    index_bytes = index.astype("<u8").tobytes()
    index_checksum = checksum_bytes(index_bytes)
    content = b"".join([old, added[:-length], index_bytes, index_checksum])
    return EncodedShard(content, crc32c(content), int.from_bytes(index_checksum, "little"))


def index_bytes_length(spec: DatasetSpec) -> int:
    """Length of the index at the end of every shard, with its checksum."""
    return math.prod(_index_shape(spec)[:2]) * INDEX_ENTRY_BYTES + CHECKSUM_BYTES


def _index_shape(spec: DatasetSpec) -> tuple[int, int, int]:
    return spec.shard_trajectories, spec.num_frames * spec.chunks_per_frame, 2


def decode_index(spec: DatasetSpec, tail: Buffer) -> tuple[ShardIndex, int]:
    """The index and its checksum from the last `index_bytes_length` bytes of a shard.

    Raises:
        ChecksumError: the index is damaged.
    """
    if len(tail) != index_bytes_length(spec):
        raise ChecksumError(f"index of {len(tail)} bytes, expected {index_bytes_length(spec)}")
    view = memoryview(tail)
    check(view[:-CHECKSUM_BYTES], view[-CHECKSUM_BYTES:])
    index = np.frombuffer(view[:-CHECKSUM_BYTES], dtype="<u8")
    return index.reshape(_index_shape(spec)), int.from_bytes(view[-CHECKSUM_BYTES:], "little")
