"""Counting the chunks of a Zarr array that are absent, which Zarr reads as its fill value."""

from __future__ import annotations

import itertools
import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from pelagos.data_pipelines.convert.source import SourceError
from pelagos.data_pipelines.store.object_store import ObjectStore, open_store
from pelagos.infra.storage.remote import storage_options

_ABSENT = np.uint64(2**64 - 1)  # of the specification of the codec sharding_indexed
_INDEX_THREADS = 8
_CHECKSUM_BYTES = 4


@dataclass(frozen=True)
class ChunkCount:
    """How many chunks an array should have, and how many are absent.

    `first_missing` is the address of an object: of the chunk, or of the shard that lacks one.
    """

    total: int
    missing: int
    first_missing: str = ""


@dataclass(frozen=True)
class _Shard:
    """An object of an array: one chunk, or a grid of chunks, some of which may lie past the end."""

    key: str
    inside: tuple[int, ...]  # chunks along each axis that hold a part of the array

    @property
    def num_chunks(self) -> int:
        return math.prod(self.inside)


def count_chunks(file: str, key: str, array: Any) -> ChunkCount:
    """Count the chunks of the Zarr array `key` of the hierarchy at `file`, inside of shards too.

    Costs one listing, and the reading of every shard's index.

    Raises:
        SourceError: the shards' indices cannot be read.
    """
    store = open_store(f"{file.rstrip('/')}/{key}", storage_options(file) or None)
    shards = _shards(array)
    sizes = store.sizes(expected=[shard.key for shard in shards])
    missing = {shard.key: shard.num_chunks for shard in shards if shard.key not in sizes}
    if getattr(array, "shards", None) is not None:
        present = [shard for shard in shards if shard.key in sizes]
        with ThreadPoolExecutor(_INDEX_THREADS) as pool:
            counts = pool.map(lambda s: _absent_inside(store, array, s, sizes[s.key]), present)
            missing |= {s.key: n for s, n in zip(present, counts, strict=True) if n}
    store.close()
    total = sum(shard.num_chunks for shard in shards)
    first = next((store.address(shard.key) for shard in shards if shard.key in missing), "")
    return ChunkCount(total, sum(missing.values()), first)


def _shards(array: Any) -> list[_Shard]:
    chunks = array.chunks
    outer = getattr(array, "shards", None) or chunks
    counts = [-(-size // width) for size, width in zip(array.shape, outer, strict=True)]
    found = []
    for place in itertools.product(*map(range, counts)):
        covered = [
            min(width, size - at * width)
            for at, size, width in zip(place, array.shape, outer, strict=True)
        ]
        inside = tuple(-(-points // width) for points, width in zip(covered, chunks, strict=True))
        found.append(_Shard(array.metadata.encode_chunk_key(place), inside))
    return found


def _absent_inside(store: ObjectStore, array: Any, shard: _Shard, size: int) -> int:
    """Chunks that a shard's index marks as absent, not counting those past the array."""
    codec = array.metadata.codecs[0].to_dict()["configuration"]
    names = [found["name"] for found in codec["index_codecs"]]
    endian = codec["index_codecs"][0].get("configuration", {}).get("endian")
    if names not in (["bytes", "crc32c"], ["bytes"]) or endian != "little":
        raise SourceError(
            f"{store.address(shard.key)}: Pelagos cannot count the chunks inside, because {names} "
            "encode the shard's index; it counts those encoded by bytes (little) and crc32c"
        )
    grid = [w // c for w, c in zip(array.shards, array.chunks, strict=True)]
    index_bytes = 16 * math.prod(grid)
    stored = index_bytes + (_CHECKSUM_BYTES if "crc32c" in names else 0)
    start = 0 if codec["index_location"] == "start" else size - stored
    if size < stored:
        raise SourceError(f"{store.address(shard.key)} is cut short: {size} bytes, no whole index")
    (content,) = store.read_ranges(shard.key, [(start, index_bytes)])
    entries = np.asarray(content).view("<u8").reshape(*grid, 2)
    inside = entries[tuple(slice(0, count) for count in shard.inside)]
    return int((inside[..., 0] == _ABSENT).sum())
