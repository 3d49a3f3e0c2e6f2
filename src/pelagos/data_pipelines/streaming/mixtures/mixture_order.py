"""The order of draws from several datasets: exact proportions, epochs that are permutations.

Samples come in blocks of `BLOCK_SIZE`. In every block each dataset has its exact share: its count
up to the end of a block is its weight's share of all samples, rounded. Inside a block a keyed
permutation decides which dataset goes where. The n-th sample of a dataset of size N, in the order
of samples, is draw `n mod N` of its epoch `n // N`, and every epoch is a keyed permutation of the
whole dataset: each of its windows comes exactly once before any comes again.

Version 1 of the order shuffled the draws inside a block too, across the ends of epochs, so that a
window could come several times before another came at all. It is kept for runs that began under it.

Weights may change at given indices. Counts and blocks then begin anew there, on top of the samples
drawn before, so that a change is exact to the sample, and epochs continue across it.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from pelagos.data_pipelines.streaming.permutation import IntArray, KeyedPermutation, derive_key

BLOCK_SIZE = 256
ORDER_VERSION = 2
ORDER_VERSIONS = (1, 2)
_MAX_KEPT_BLOCKS = 64

# Purposes of keys, so that no two uses of one seed share a stream; 3 and 4 are the sampler's.
_BLOCK_ORDER, _EPOCH_ORDER = 1, 2


@dataclass(frozen=True)
class _Segment:
    """Indices from `start` on, in which the weights do not change."""

    start: int
    before: IntArray  # how many of the indices before `start` each dataset has
    conditional: tuple[Fraction, ...]  # share of dataset d among the datasets d, d + 1, …


class MixtureOrder:
    """The order of draws from datasets of given sizes with given weights.

    Args:
        sizes: number of items (windows) of each dataset.
        weights: relative share of each dataset, positive; None is the sizes.
        run_length: how many consecutive samples come from one dataset.
        later: `(start, weights)` in order: other weights from run number `start` on; some,
            not all, may be 0.
        version: of the order, one of `ORDER_VERSIONS`.
    """

    def __init__(
        self,
        seed: int,
        sizes: Sequence[int],
        weights: Sequence[float] | None,
        run_length: int = 1,
        later: Sequence[tuple[int, Sequence[float]]] = (),
        version: int = ORDER_VERSION,
    ) -> None:
        if version not in ORDER_VERSIONS:
            raise ValueError(f"the order of samples has versions {ORDER_VERSIONS}, got {version}")
        self.seed = seed
        self.version = version
        self.sizes = tuple(sizes)
        self.run_length = run_length
        first = weights if weights is not None else sizes
        for row in (first, *(row for _, row in later)):
            is_bad = not row or min(row) < 0 or max(row) <= 0
            if is_bad or len(row) != len(self.sizes) or (not later and min(row) <= 0):
                raise ValueError(f"weights must be positive, one per dataset, got {row}")
        self._recent_blocks: dict[tuple[int, int], tuple[IntArray, IntArray]] = {}
        none = np.zeros(len(self.sizes), np.int64)
        self._segments = [_Segment(0, none, _conditional(first))]
        for start, row in later:
            before = self.counts_before(start)
            self._segments.append(_Segment(start, before, _conditional(row)))
        self._starts = np.array([segment.start for segment in self._segments], np.int64)

    def counts_before(self, num_samples: int) -> IntArray:
        """How many of the first `num_samples` samples come from each dataset.

        Dataset d takes its share of the rest left by the datasets before it, rounded half up. Each count
        is then a non-decreasing function of `num_samples`, and their sum is `num_samples`.
        """
        segment = [s for s in self._segments if s.start <= num_samples][-1]
        counts = []
        left = num_samples - segment.start
        for share in segment.conditional:
            taken = (2 * left * share.numerator + share.denominator) // (2 * share.denominator)
            counts.append(taken)
            left -= taken
        return segment.before + np.array(counts, dtype=np.int64)

    def draw(self, indices: IntArray) -> tuple[IntArray, IntArray]:
        """Dataset and item at each global sample index."""
        runs, positions = np.divmod(indices, self.run_length)
        datasets, draws = self.choose(runs)
        return datasets, self._items(datasets, draws * self.run_length + positions)

    def choose(self, indices: IntArray) -> tuple[IntArray, IntArray]:
        """Dataset at each index, and how many earlier indices have the same."""
        datasets = np.empty_like(indices)
        draws = np.empty_like(indices)
        segments = np.searchsorted(self._starts, indices, side="right") - 1
        blocks, positions = np.divmod(indices - self._starts[segments], BLOCK_SIZE)
        for segment, block in np.unique(np.stack([segments, blocks]), axis=1).T:
            chosen = (segments == segment) & (blocks == block)
            block_datasets, block_draws = self._block(int(segment), int(block))
            datasets[chosen] = block_datasets[positions[chosen]]
            draws[chosen] = block_draws[positions[chosen]]
        return datasets, draws

    def _block(self, segment: int, block: int) -> tuple[IntArray, IntArray]:
        """Dataset and its draw at each position of a block; the latest blocks are kept."""
        kept = self._recent_blocks.get((segment, block))
        if kept is not None:
            return kept
        start = int(self._starts[segment]) + block * BLOCK_SIZE
        is_last = segment + 1 == len(self._segments)
        size = BLOCK_SIZE if is_last else min(BLOCK_SIZE, int(self._starts[segment + 1]) - start)
        before = self.counts_before(start)
        ends = np.cumsum(self.counts_before(start + size) - before)
        key = (_BLOCK_ORDER, block, segment) if segment else (_BLOCK_ORDER, block)
        shuffle = KeyedPermutation(size, derive_key(self.seed, *key))
        ranks = shuffle(np.arange(size))
        datasets = np.searchsorted(ends, ranks, side="right")
        if self.version == 1:
            starts = np.concatenate(([0], ends[:-1]))
            draws = (before - starts)[datasets] + ranks
        else:
            draws = before[datasets] + _earlier_equals(datasets)
        if len(self._recent_blocks) >= _MAX_KEPT_BLOCKS:
            self._recent_blocks = {}
        self._recent_blocks[segment, block] = datasets, draws
        return datasets, draws

    def _items(self, datasets: IntArray, draws: IntArray) -> IntArray:
        items = np.empty_like(draws)
        epochs, positions = np.divmod(draws, np.array(self.sizes, dtype=np.int64)[datasets])
        for dataset, epoch in {(int(d), int(e)) for d, e in zip(datasets, epochs, strict=True)}:
            chosen = (datasets == dataset) & (epochs == epoch)
            items[chosen] = self._epoch(dataset, epoch)(positions[chosen])
        return items

    def _epoch(self, dataset: int, epoch: int) -> KeyedPermutation:
        return _epoch_permutation(self.sizes[dataset], self.seed, dataset, epoch)


def _earlier_equals(values: IntArray) -> IntArray:
    """How many earlier elements equal each element.

    >>> _earlier_equals(np.array([4, 7, 4, 4, 7])).tolist()
    [0, 0, 1, 2, 1]
    """
    order = np.argsort(values, kind="stable")
    sorted_values = values[order]
    is_first = np.concatenate(([True], sorted_values[1:] != sorted_values[:-1]))
    places = np.arange(len(values))
    counts = np.empty(len(values), np.int64)
    counts[order] = places - np.maximum.accumulate(np.where(is_first, places, 0))
    return counts


def _conditional(weights: Sequence[float]) -> tuple[Fraction, ...]:
    """The share of each dataset among itself and those after it; 0 where all of these are 0."""
    shares = [Fraction(weight) for weight in weights]
    rests = [sum(shares[d:]) for d in range(len(shares))]
    return tuple(
        share / rest if rest else Fraction(0) for share, rest in zip(shares, rests, strict=True)
    )


@functools.lru_cache(maxsize=256)
def _epoch_permutation(size: int, seed: int, dataset: int, epoch: int) -> KeyedPermutation:
    return KeyedPermutation(size, derive_key(seed, _EPOCH_ORDER, dataset, epoch))
