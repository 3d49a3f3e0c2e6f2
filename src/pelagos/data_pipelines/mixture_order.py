"""The order of draws from several datasets: exact proportions, epochs that are permutations.

Samples come in blocks of `BLOCK_SIZE`. In every block each dataset has its exact share: its count
up to the end of a block is its weight's share of all samples, rounded. Inside a block the datasets
are shuffled by a keyed permutation. The n-th draw from a dataset of size N is draw `n mod N` of
its epoch `n // N`, and every epoch is a keyed permutation of the whole dataset: each of its windows
comes exactly once before any comes again.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from fractions import Fraction

import numpy as np

from pelagos.data_pipelines.permutation import IntArray, KeyedPermutation, derive_key

BLOCK_SIZE = 256
_MAX_KEPT_BLOCKS = 64

# Purposes of keys, so that no two uses of one seed share a stream; 3 and 4 are the sampler's.
_BLOCK_ORDER, _EPOCH_ORDER = 1, 2


class MixtureOrder:
    """The order of draws from datasets of given sizes with given weights.

    Args:
        sizes: number of items (windows) of each dataset.
        weights: relative share of each dataset, positive; None is the sizes.
        run_length: how many consecutive samples come from one dataset.
    """

    def __init__(
        self,
        seed: int,
        sizes: Sequence[int],
        weights: Sequence[float] | None,
        run_length: int = 1,
    ) -> None:
        self.seed = seed
        self.sizes = tuple(sizes)
        self.run_length = run_length
        shares = [Fraction(w) for w in (weights if weights is not None else sizes)]
        if not shares or min(shares) <= 0 or len(shares) != len(self.sizes):
            raise ValueError(f"weights must be positive, one per dataset, got {weights}")
        # conditional[d]: the share of dataset d among the datasets d, d + 1, …
        self._recent_blocks: dict[int, tuple[IntArray, IntArray]] = {}
        self._conditional = [share / sum(shares[d:]) for d, share in enumerate(shares)]

    def counts_before(self, num_samples: int) -> IntArray:
        """How many of the first `num_samples` samples come from each dataset.

        Dataset d takes its share of what the datasets before it left, rounded half up. Each count
        is then a non-decreasing function of `num_samples`, and their sum is `num_samples`.
        """
        counts = []
        left = num_samples
        for share in self._conditional:
            taken = (2 * left * share.numerator + share.denominator) // (2 * share.denominator)
            counts.append(taken)
            left -= taken
        return np.array(counts, dtype=np.int64)

    def draw(self, indices: IntArray) -> tuple[IntArray, IntArray]:
        """Dataset and item at each global sample index."""
        runs, positions = np.divmod(indices, self.run_length)
        datasets, draws = self.choose(runs)
        return datasets, self._items(datasets, draws * self.run_length + positions)

    def choose(self, indices: IntArray) -> tuple[IntArray, IntArray]:
        """Dataset at each index, and how many earlier indices have the same."""
        datasets = np.empty_like(indices)
        draws = np.empty_like(indices)
        blocks, positions = np.divmod(indices, BLOCK_SIZE)
        for block in np.unique(blocks):
            chosen = blocks == block
            block_datasets, block_draws = self._block(int(block))
            datasets[chosen] = block_datasets[positions[chosen]]
            draws[chosen] = block_draws[positions[chosen]]
        return datasets, draws

    def _block(self, block: int) -> tuple[IntArray, IntArray]:
        """Dataset and its draw at each position of a block; the latest blocks are kept."""
        kept = self._recent_blocks.get(block)
        if kept is not None:
            return kept
        before = self.counts_before(block * BLOCK_SIZE)
        ends = np.cumsum(self.counts_before((block + 1) * BLOCK_SIZE) - before)
        shuffle = KeyedPermutation(BLOCK_SIZE, derive_key(self.seed, _BLOCK_ORDER, block))
        ranks = shuffle(np.arange(BLOCK_SIZE))
        datasets = np.searchsorted(ends, ranks, side="right")
        starts = np.concatenate(([0], ends[:-1]))
        draws = (before - starts)[datasets] + ranks
        if len(self._recent_blocks) >= _MAX_KEPT_BLOCKS:
            self._recent_blocks = {}
        self._recent_blocks[block] = datasets, draws
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


@functools.lru_cache(maxsize=256)
def _epoch_permutation(size: int, seed: int, dataset: int, epoch: int) -> KeyedPermutation:
    return KeyedPermutation(size, derive_key(seed, _EPOCH_ORDER, dataset, epoch))
