"""Reading through a cache on the node: an `ObjectStore` in front of another.

The unit of fetching is the reader's division of an object, a trajectory's byte range: with a
window of 2 frames out of 21, each trajectory is visited about twenty times an epoch, so fetching
it once saves nineteen requests and half of the bytes. Once the budget is used up, data outside the
cache is read exactly as without one.
"""

from __future__ import annotations

import logging
from bisect import bisect_right
from collections.abc import Sequence
from typing import Any

import numpy as np

from pelagos.data_pipelines.store.node_cache import CacheSettings, NodeCache
from pelagos.data_pipelines.store.object_store import Bytes, ObjectStore, Range

# Below this share of the dataset, hits are too rare to be worth the writing.
LEAST_SHARE = 0.05
MAX_REQUEST_BYTES = 16 * 2**20  # a larger block is fetched in parts

logger = logging.getLogger(__name__)


def open_cached(
    store: ObjectStore, settings: CacheSettings, fingerprint: str, num_bytes: int, verify: bool
) -> ObjectStore:
    """The store read through a cache, or itself where the budget is too small to help.

    Args:
        fingerprint, num_bytes: of the dataset.
        verify: check the cache's own checksums at each read; unnecessary where the caller checks
            those of the data, and calls `CachedStore.discard` when they are wrong.

    Raises:
        DatasetError: the cache's directory cannot be used.
    """
    if settings.max_bytes < LEAST_SHARE * num_bytes:
        logger.warning(
            "not using the cache %s: its %d bytes are less than %.0f %% of %s (%d bytes)",
            *(settings.directory, settings.max_bytes, 100 * LEAST_SHARE, store.uri, num_bytes),
        )
        return store
    cache = NodeCache(settings, fingerprint, num_bytes, store.counters)
    return CachedStore(store, cache, verify)


class CachedStore:
    """An `ObjectStore` whose objects may be divided into blocks that are kept on the node."""

    def __init__(self, inner: ObjectStore, cache: NodeCache, verify: bool) -> None:
        self.inner = inner
        self.cache = cache
        self.uri = inner.uri
        self.coalesce_gap_bytes = inner.coalesce_gap_bytes
        self.counters = inner.counters
        self._verify = verify
        self._blocks: dict[str, tuple[list[int], list[int]]] = {}

    def divide(self, key: str, blocks: Sequence[Range]) -> None:
        """Say which blocks an object consists of; an object never divided is not cached."""
        ordered = sorted(blocks)
        self._blocks[key] = [b[0] for b in ordered], [b[1] for b in ordered]

    def discard(self, key: str, byte_range: Range) -> None:
        """Forget the block that holds a range whose bytes proved wrong."""
        block = self._block(key, byte_range)
        if block is not None:
            self.cache.drop(_name(key, block), block[1], "the data's checksum does not match")

    def read_ranges(
        self, key: str, ranges: Sequence[Range], scratch: Bytes | None = None
    ) -> list[Bytes]:
        if key not in self._blocks:
            return self.inner.read_ranges(key, ranges, scratch)
        if scratch is None:
            scratch = np.empty(sum(length for _, length in ranges), np.uint8)
        found = []
        for byte_range in ranges:
            buffer, scratch = scratch[: byte_range[1]], scratch[byte_range[1] :]
            found.append(self._read(key, byte_range, buffer))
        return found

    def address(self, key: str) -> str:
        return self.inner.address(key)

    def read(self, key: str) -> bytes:
        return self.inner.read(key)

    def write(self, key: str, content: bytes) -> None:
        self.inner.write(key, content)

    def create(self, key: str, content: bytes) -> bool:
        return self.inner.create(key, content)

    def sizes(self, prefix: str = "", expected: Sequence[str] = ()) -> dict[str, int]:
        return self.inner.sizes(prefix, expected)

    def delete(self, keys: Sequence[str]) -> None:
        self.inner.delete(keys)

    def close(self) -> None:
        self.cache.close()
        self.inner.close()

    def _read(self, key: str, byte_range: Range, buffer: Bytes) -> Bytes:
        block = self._block(key, byte_range)
        if block is None:
            return self.inner.read_ranges(key, [byte_range], buffer)[0]
        name = _name(key, block)
        within = (byte_range[0] - block[0], byte_range[1])
        if self._hit(name, block, within, buffer):
            return buffer
        if self.cache.is_filling:
            content = self.cache.fill(name, block[1], lambda: self._fetch(key, block))
            if content is not None:
                self.counters.add(cache_misses=1)
                return content[within[0] : sum(within)]
            if self._hit(name, block, within, buffer):  # another thread or process fetched it
                return buffer
        self.counters.add(cache_bypasses=1)
        return self.inner.read_ranges(key, [byte_range], buffer)[0]

    def _fetch(self, key: str, block: Range) -> Bytes:
        start, length = block
        if length <= MAX_REQUEST_BYTES:
            return self.inner.read_ranges(key, [block])[0]
        offsets = range(0, length, MAX_REQUEST_BYTES)
        parts = [(start + o, min(MAX_REQUEST_BYTES, length - o)) for o in offsets]
        return np.concatenate(self.inner.read_ranges(key, parts))

    def _hit(self, name: str, block: Range, within: Range, buffer: Bytes) -> bool:
        is_hit = self.cache.read(name, block[1], [within], [buffer], self._verify)
        if is_hit:
            self.counters.add(cache_hits=1)
        return is_hit

    def _block(self, key: str, byte_range: Range) -> Range | None:
        """The block that holds a range whole."""
        starts, lengths = self._blocks.get(key, ([], []))
        index = bisect_right(starts, byte_range[0]) - 1
        if index < 0 or sum(byte_range) > starts[index] + lengths[index]:
            return None
        return starts[index], lengths[index]


def row_blocks(index: Any, absent: int) -> list[Range]:
    """The byte range of each row of a shard, `[row, chunk, (offset, length)]`.

    Empty where the chunks of a row do not lie together: fetching rows would then fetch other rows'
    chunks with them.
    """
    blocks = []
    for row in np.asarray(index).reshape(len(index), -1, 2):
        there = row[row[:, 0] != absent].astype(np.int64)
        if len(there):
            start, stop = int(there[:, 0].min()), int(there.sum(axis=1).max())
            if stop - start > 1.25 * int(there[:, 1].sum()):
                return []
            blocks.append((start, stop - start))
    return blocks


def _name(key: str, block: Range) -> str:
    return f"{key.replace('/', '_')}@{block[0]}+{block[1]}"
