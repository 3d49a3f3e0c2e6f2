"""Codecs that give no more bytes than a chunk has.

A compressed chunk of somebody else may unpack to any size: a megabyte of gzip to a gigabyte. The size it
claims is compared with the chunk's size before anything is allocated; where nothing is claimed, it is
unpacked up to that size.
"""

from __future__ import annotations

import bz2
import lzma
import math
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import zarr

from pelagos.infra.memory_budget import require_affordable

# Beyond the numbers themselves: checksums, and the bytes that filters prepend.
SLACK_BYTES = 256 * 2**10
# Filters of Zarr v2 may have stored a chunk in a wider type.
FILTER_GROWTH = 8
_ZSTD_MAGIC = 0xFD2FB528
_ZSTD_BLOCK_BYTES = 128 * 2**10
_GZIP, _ZLIB = 31, 15  # how zlib calls their headers


class ChunkTooLargeError(ValueError):
    """A chunk that unpacks to more than its array says."""


def bound_codecs(array: zarr.Array[Any], where: str) -> None:
    """Have an open array's codecs stop at the size of its chunks.

    Raises:
        ValueError: a chunk is larger than the memory that one may take.
    """
    itemsize = int(array.dtype.itemsize)
    chunk_bytes = math.prod(array.chunks) * itemsize
    require_affordable(chunk_bytes, f"{where}: a chunk {array.chunks}")
    pipeline: Any = array._async_array.codec_pipeline
    codec = pipeline.array_bytes_codec
    for inner in pipeline.bytes_bytes_codecs:
        _bound(inner, max(chunk_bytes, _shard_bytes(array)) + SLACK_BYTES)
    for inner in getattr(codec, "codecs", ()):  # of a shard
        _bound(inner, chunk_bytes + SLACK_BYTES)
    if hasattr(codec, "compressor"):  # Zarr v2
        filters = tuple(codec.filters or ())
        limit = chunk_bytes * (FILTER_GROWTH if filters else 1) + SLACK_BYTES
        if codec.compressor is not None:
            object.__setattr__(codec, "compressor", _Bounded(codec.compressor, limit))
        if filters:
            object.__setattr__(codec, "filters", tuple(_Bounded(f, limit) for f in filters))


def _shard_bytes(array: zarr.Array[Any]) -> int:
    shards = getattr(array, "shards", None)
    return math.prod(shards) * int(array.dtype.itemsize) if shards else 0


def _bound(codec: Any, limit: int) -> None:
    """Bound a codec of Zarr v3, which keeps that of numcodecs as a cached property."""
    for name in ("_gzip_codec", "_zstd_codec", "_blosc_codec"):
        if hasattr(codec, name):
            codec.__dict__[name] = _Bounded(getattr(codec, name), limit)


class _Bounded:
    """A codec of numcodecs that decodes to at most `limit` bytes."""

    def __init__(self, codec: Any, limit: int) -> None:
        self.codec: Any = codec.codec if isinstance(codec, _Bounded) else codec
        self.limit = limit

    def decode(self, buffer: Any, out: Any = None) -> Any:
        kind = str(getattr(self.codec, "codec_id", ""))
        if kind in UNPACKERS:
            content = UNPACKERS[kind](_bytes_of(buffer), self.limit)
            if out is None:
                return content
            target = np.asarray(out).reshape(-1).view(np.uint8)
            target[: len(content)] = np.frombuffer(content, np.uint8)
            return out
        claim = CLAIMS.get(kind)
        if claim is not None:
            _require(claim(_bytes_of(buffer)), self.limit)
        decoded: Any = self.codec.decode(buffer, out)
        return decoded

    def __getattr__(self, name: str) -> Any:
        return getattr(self.codec, name)


def _bytes_of(buffer: Any) -> memoryview:
    flat: Any = np.ascontiguousarray(np.asarray(buffer)).reshape(-1).view(np.uint8)
    return memoryview(flat).cast("B")


def _require(size: int, limit: int) -> None:
    if size > limit:
        raise ChunkTooLargeError(
            f"a compressed chunk holds at least {size:,} bytes, but a chunk of the array has at "
            f"most {limit:,}: it is damaged, or made to exhaust memory"
        )


def _inflate(window: int) -> Callable[[memoryview, int], bytes]:
    def unpack(data: memoryview, limit: int) -> bytes:
        parts, total, rest = [], 0, bytes(data)
        while rest:
            stream = zlib.decompressobj(window)
            while not stream.eof:
                piece = stream.decompress(rest, limit - total + 1)
                total += len(piece)
                _require(total, limit)
                parts.append(piece)
                if not piece and not stream.unconsumed_tail and not stream.eof:
                    raise zlib.error("the compressed chunk is cut short")
                rest = stream.unconsumed_tail
            rest = stream.unused_data if window == _GZIP else b""  # gzip may have several members
            if not rest.strip(b"\0"):
                break
        return b"".join(parts)

    return unpack


def _streamed(make: Callable[[], Any]) -> Callable[[memoryview, int], bytes]:
    def unpack(data: memoryview, limit: int) -> bytes:
        stream = make()
        content: bytes = stream.decompress(bytes(data), limit + 1)
        _require(len(content), limit)
        if not stream.eof:
            raise ValueError("the compressed chunk is cut short")
        return content

    return unpack


def _number(data: memoryview, at: int, width: int) -> int:
    return int.from_bytes(data[at : at + width], "little")


def zstd_claim(data: memoryview) -> int:
    """Bytes that Zstandard frames unpack to, as they say; of frames that do not say it, at most.

    RFC 8878, sections 3.1.1 and 3.1.2.
    """
    total, at = 0, 0
    while at + 5 <= len(data):
        magic = _number(data, at, 4)
        if magic & 0xFFFFFFF0 == 0x184D2A50:  # a frame to be skipped
            at += 8 + _number(data, at + 4, 4)
            continue
        if magic != _ZSTD_MAGIC:
            break
        flags = data[at + 4]
        is_single = bool(flags & 0x20)
        width = {0: 1 if is_single else 0, 1: 2, 2: 4, 3: 8}[flags >> 6]
        start = at + 5 + (not is_single) + (0, 1, 2, 4)[flags & 3]
        said = _number(data, start, width) + (256 if width == 2 else 0) if width else None
        at, largest = _after_blocks(data, start + width)
        at += 4 if flags & 0x04 else 0  # a checksum
        total += largest if said is None else said
    return total


def _after_blocks(data: memoryview, at: int) -> tuple[int, int]:
    """Where the blocks of a frame end, and their largest unpacked size."""
    largest = 0
    while at + 3 <= len(data):
        header = _number(data, at, 3)
        kind, size = header >> 1 & 3, header >> 3
        largest += _ZSTD_BLOCK_BYTES if kind == 2 else size
        at += 3 + (1 if kind == 1 else size)
        if header & 1:
            break
    return at, largest


UNPACKERS: dict[str, Callable[[memoryview, int], bytes]] = {
    "gzip": _inflate(_GZIP),
    "zlib": _inflate(_ZLIB),
    "bz2": _streamed(bz2.BZ2Decompressor),
    "lzma": _streamed(lzma.LZMADecompressor),
}
CLAIMS: dict[str, Callable[[memoryview], int]] = {
    "zstd": zstd_claim,
    "blosc": lambda data: _number(data, 4, 4),
    "lz4": lambda data: _number(data, 0, 4),
}
