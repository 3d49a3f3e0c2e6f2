"""Compressed chunks of HDF5 that unpack to more than a chunk has, before the library unpacks them.

The library's filters allocate whatever a chunk unpacks to, or claims: a megabyte of deflate takes a
gigabyte, and gives the numbers that were asked for. Each chunk that could take more than the budget is
tried once, when it is first read.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

from pelagos.data_pipelines.conventions.selection import Box
from pelagos.data_pipelines.convert.source import SourceError
from pelagos.data_pipelines.foreign.bounded_codecs import (
    CLAIMS,
    SLACK_BYTES,
    UNPACKERS,
    ChunkTooLargeError,
)
from pelagos.infra.memory_budget import memory_budget

FLETCHER32, CHECKSUM_BYTES = 3, 4  # behind the chunk
_BLOSC_HEADER_BYTES = 16


class _Filter(NamedTuple):
    """How a filter's bytes are bounded.

    `ratio`: the most bytes that one byte unpacks to; None: no limit on the claim.
    `unpack`: to at most the given number of bytes; None: only the claim is read.
    `claim`: the unpacked size that the bytes state.
    """

    ratio: int | None
    unpack: Callable[[memoryview, int], bytes] | None = None
    claim: Callable[[memoryview], int] | None = None


def _blosc_claim(data: memoryview) -> int:
    """Zero for bytes that no Blosc of version 1 wrote: where their size does not agree."""
    if len(data) < _BLOSC_HEADER_BYTES or int.from_bytes(data[12:16], "little") != len(data):
        return 0
    return CLAIMS["blosc"](data)


def _big_endian_claim(data: memoryview) -> int:
    return int.from_bytes(data[:8], "big")


# By registered number, as in `filters.NAMES`.
_FILTERS = {
    1: _Filter(1032, UNPACKERS["zlib"]),  # RFC 1951: 258 bytes for two bits
    307: _Filter(None, UNPACKERS["bz2"]),
    32001: _Filter(None, claim=_blosc_claim),
    32004: _Filter(None, claim=_big_endian_claim),
    32015: _Filter(None, claim=CLAIMS["zstd"]),
}


class UnprovenChunks:
    """The chunks of an array that could unpack to more than the budget, until each is tried.

    Args:
        dataset: of h5py. Its index of chunks is read once, none of its data.
        where: file and key, for messages.
    """

    def __init__(self, dataset: Any, where: str) -> None:
        self.where = where
        self.masks: dict[tuple[int, ...], int] = {}
        self.shape = tuple(map(int, dataset.chunks or ()))
        self.num_bytes = math.prod(self.shape) * int(dataset.dtype.itemsize)
        plist = dataset.id.get_create_plist()
        filters = [int(plist.get_filter(i)[0]) for i in range(plist.get_nfilters())]
        self.filters = list(enumerate(filters))[::-1]  # as they are undone
        ratios = [_FILTERS[number].ratio for number in filters if number in _FILTERS]
        if not self.shape or not ratios:
            return
        ratio = math.inf if None in ratios else math.prod(filter(None, ratios))
        budget = memory_budget()

        def note(chunk: Any) -> None:
            if chunk.size * ratio > budget:
                self.masks[tuple(map(int, chunk.chunk_offset))] = int(chunk.filter_mask)

        dataset.id.chunk_iter(note)

    def try_in(self, dataset: Any, box: Box) -> None:
        """Try those of a part that were not tried yet.

        Raises:
            SourceError: one unpacks to more than a chunk has.
        """
        if not self.masks:
            return
        grid = [
            range(low - low % width, high, width)
            for (low, high), width in zip(box, self.shape, strict=True)
        ]
        for offset in itertools.product(*grid):
            if offset in self.masks:
                self._try(dataset, offset)
                del self.masks[offset]

    def _try(self, dataset: Any, offset: tuple[int, ...]) -> None:
        data = memoryview(dataset.id.read_direct_chunk(offset)[1])
        if len(data) == self.num_bytes and self._is_at_the_edge(dataset, offset):
            return  # which a writer may leave as it is
        limit = self.num_bytes + SLACK_BYTES
        try:
            self._unpack(data, self.masks[offset], limit)
        except ChunkTooLargeError as error:
            raise SourceError(f"{self.where}: chunk at index {offset}: {error}") from error

    def _unpack(self, data: memoryview, mask: int, limit: int) -> None:
        """Raise ChunkTooLargeError; other errors are left to the library."""
        for place, number in self.filters:
            known = _FILTERS.get(number)
            if mask >> place & 1:
                continue  # the chunk did not go through this one
            if number == FLETCHER32:
                data = data[:-CHECKSUM_BYTES]
            elif known is not None and known.unpack is not None:
                try:
                    data = memoryview(known.unpack(data, limit))
                except ChunkTooLargeError:
                    raise
                except Exception:
                    return
            elif known is not None and known.claim is not None and known.claim(data) > limit:
                raise ChunkTooLargeError(
                    f"it claims to unpack to {known.claim(data):,} bytes, but a chunk of the array "
                    f"has {self.num_bytes:,}: it is damaged, or made to exhaust memory"
                )
            else:
                return

    def _is_at_the_edge(self, dataset: Any, offset: tuple[int, ...]) -> bool:
        ends = zip(offset, self.shape, dataset.shape, strict=True)
        return any(at + width > size for at, width, size in ends)
