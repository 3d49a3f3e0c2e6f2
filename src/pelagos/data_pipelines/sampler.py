"""Which sample stands at which place of training: a pure function, with nothing to remember.

The sample at (step, slot) of the global batch is a function of the seed, the mixture and
`step * global_batch_size + slot` alone. World size, threads and restarts cannot change it, and
resuming costs nothing.

Samples come in blocks of `BLOCK_SIZE`. In every block each dataset has its exact share: its count
up to the end of a block is its weight's share of all samples, rounded. Inside a block the datasets
are shuffled by a keyed permutation. The n-th draw from a dataset of size N is draw `n mod N` of
its epoch `n // N`, and every epoch is a keyed permutation of the whole dataset: each of its windows
comes exactly once before any comes again.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from pelagos.data_pipelines.mixture import Mixture
from pelagos.data_pipelines.permutation import (
    IntArray,
    KeyedPermutation,
    derive_key,
    keyed_hash,
)

BLOCK_SIZE = 256
_MAX_KEPT_BLOCKS = 64

# Purposes of keys, so that no two uses of one seed share a stream.
_BLOCK_ORDER, _EPOCH_ORDER, _SAMPLE_SEED = 1, 2, 3


@dataclass(frozen=True)
class SampleIndex:
    """One sample: frames `window` of a trajectory of the mixture's dataset number `dataset`.

    `sample_seed` is a non-negative 63-bit number for whatever is drawn per sample.
    """

    dataset: int
    trajectory: int
    window: tuple[int, ...]
    sample_seed: int


class MixtureOrder:
    """The order of draws from datasets of given sizes with given weights.

    Args:
        sizes: number of items (windows) of each dataset.
        weights: relative share of each dataset, positive; None is the sizes.
    """

    def __init__(self, seed: int, sizes: Sequence[int], weights: Sequence[float] | None) -> None:
        self.seed = seed
        self.sizes = tuple(sizes)
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
        datasets = np.empty_like(indices)
        items = np.empty_like(indices)
        blocks, positions = np.divmod(indices, BLOCK_SIZE)
        for block in np.unique(blocks):
            chosen = blocks == block
            block_datasets, block_items = self._block(int(block))
            datasets[chosen] = block_datasets[positions[chosen]]
            items[chosen] = block_items[positions[chosen]]
        return datasets, items

    def _block(self, block: int) -> tuple[IntArray, IntArray]:
        """Dataset and item at each position of a block; the latest blocks are kept."""
        kept = self._recent_blocks.get(block)
        if kept is not None:
            return kept
        before = self.counts_before(block * BLOCK_SIZE)
        ends = np.cumsum(self.counts_before((block + 1) * BLOCK_SIZE) - before)
        shuffle = KeyedPermutation(BLOCK_SIZE, derive_key(self.seed, _BLOCK_ORDER, block))
        ranks = shuffle(np.arange(BLOCK_SIZE))
        datasets = np.searchsorted(ends, ranks, side="right")
        starts = np.concatenate(([0], ends[:-1]))
        items = self._items(datasets, (before - starts)[datasets] + ranks)
        if len(self._recent_blocks) >= _MAX_KEPT_BLOCKS:
            self._recent_blocks = {}
        self._recent_blocks[block] = datasets, items
        return datasets, items

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


class Sampler:
    """The order of samples of one mixture under one seed."""

    def __init__(self, mixture: Mixture, seed: int) -> None:
        self.mixture = mixture
        self.seed = seed
        self.order = MixtureOrder(seed, mixture.num_windows, mixture.weights)
        self._sample_key = derive_key(seed, _SAMPLE_SEED)

    def samples(self, start: int, stop: int) -> list[SampleIndex]:
        """The samples at global indices `start .. stop - 1` (`step * global_batch_size + slot`)."""
        indices = np.arange(start, stop, dtype=np.int64)
        datasets, items = self.order.draw(indices)
        seeds = keyed_hash(self._sample_key, indices)
        return [
            SampleIndex(int(d), *self.mixture.window_of(int(d), int(item)), int(seed))
            for d, item, seed in zip(datasets, items, seeds, strict=True)
        ]

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps, as JSON: about 100 bytes and 70 per dataset."""
        return {"seed": self.seed, "mixture": self.mixture.state_dict()}

    def check_state(self, state: dict[str, Any]) -> None:
        """Raises ValueError if this sampler would not go on with the order of `state`."""
        self.mixture.check_state(state["mixture"])
        if state["seed"] != self.seed:
            raise ValueError(
                f"the checkpoint was made with data seed {state['seed']}, this run has {self.seed}:"
                f" the order of samples would change. Use seed {state['seed']}"
            )
