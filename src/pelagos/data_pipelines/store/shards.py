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
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import google_crc32c
import numpy as np
import numpy.typing as npt
from numcodecs import Blosc

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
        dtype: of the stored numbers, and of arrays given and decoded.
        chunk_shape: `(channel, y, x)` of the block encoded at once.
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

    def encode(self, frame: npt.NDArray[Any]) -> tuple[Buffer, bytes]:
        """The frame's bytes and their checksum, which follows them; separate, to save a copy."""
        contiguous = np.ascontiguousarray(frame, dtype=self.dtype)
        payload: Buffer = (
            contiguous.reshape(-1).view(np.uint8).data
            if self.blosc is None
            else self.blosc.encode(contiguous)
        )
        return payload, checksum_bytes(payload)

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
                raise ChecksumError(f"got {len(payload)} bytes, expected {self.chunk_bytes}")
            out.view(np.uint8).reshape(-1)[:] = np.frombuffer(payload, np.uint8)
        else:
            claimed = int.from_bytes(payload[4:8], "little")  # in Blosc's header
            if claimed != self.chunk_bytes:
                raise ChecksumError(f"got {claimed} bytes, expected {self.chunk_bytes}")
            self.blosc.decode(payload, out=out)


class ChecksumError(ValueError):
    """Stored and computed crc32c differ, or a length is impossible."""


def crc32c(content: Buffer) -> int:
    """Return the CRC-32C (Castagnoli) of some bytes."""
    # google_crc32c refuses memoryviews, and takes arrays: a view as an array costs no copy.
    return int(google_crc32c.value(np.frombuffer(content, np.uint8)))


def extended_crc32c(checksum: int, content: Buffer) -> int:
    """The checksum `checksum` extended by `content`."""
    return int(google_crc32c.extend(checksum, np.frombuffer(content, np.uint8)))


def checksum_bytes(content: Buffer) -> bytes:
    """Return the CRC-32C as it is stored: four bytes, little-endian."""
    return crc32c(content).to_bytes(CHECKSUM_BYTES, "little")


def check(content: Buffer, stored: Buffer) -> None:
    """Raises ChecksumError unless `stored` is the crc32c of `content`."""
    computed, expected = crc32c(content), int.from_bytes(stored, "little")
    if computed != expected:
        raise ChecksumError(f"crc32c is {computed:08x}, but {expected:08x} was stored")


def shard_index(spec: DatasetSpec, lengths: Sequence[int]) -> bytes:
    """The index, without its checksum, of a shard whose first chunks have these encoded lengths."""
    index = np.full(_index_shape(spec), ABSENT, dtype="<u8").reshape(-1, 2)
    sizes = np.array(lengths, dtype=np.uint64)
    index[: len(sizes), 0] = np.cumsum(sizes) - sizes
    index[: len(sizes), 1] = sizes
    return index.tobytes()


def extend_shard(
    spec: DatasetSpec, old: bytes, num_present: int, added: bytes, num_added: int
) -> EncodedShard:
    """A shard with more trajectories, behind the `num_present` that it has.

    `added` are the bytes of a shard of the new ones alone.

    The old shard, its index included, is the beginning of the new one: who knows the old size
    reads the old shard from it.
    """
    length = index_bytes_length(spec)
    index, _ = decode_index(spec, old[-length:])
    more, _ = decode_index(spec, added[-length:])
    index = index.copy()
    rows = slice(num_present, num_present + num_added)
    index[rows] = more[:num_added]
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
