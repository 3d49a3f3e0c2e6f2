"""The order of samples: permutations, proportions, epochs, and independence of everything else."""

from __future__ import annotations

import json
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pelagos.data_pipelines.streaming.mixtures.mixture_order import BLOCK_SIZE, MixtureOrder
from pelagos.data_pipelines.streaming.permutation import KeyedPermutation, derive_key, keyed_hash

keys = st.integers(min_value=0, max_value=2**64 - 1)


@given(size=st.integers(1, 3000), key=keys)
@settings(max_examples=80)
def test_permutation_is_a_bijection(size: int, key: int) -> None:
    images = KeyedPermutation(size, key)(np.arange(size))
    np.testing.assert_array_equal(np.sort(images), np.arange(size))


@given(size=st.integers(2, 10**12), key=keys, data=st.data())
@settings(max_examples=50)
def test_permutation_of_a_huge_set_is_injective_and_stateless(
    size: int, key: int, data: st.DataObject
) -> None:
    indices = data.draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=50, unique=True))
    images = KeyedPermutation(size, key)(indices)
    assert len(set(images.tolist())) == len(indices)
    assert images.min() >= 0
    assert images.max() < size
    one_by_one = [int(KeyedPermutation(size, key)([i])[0]) for i in indices]
    assert one_by_one == images.tolist()


def test_permutation_looks_random() -> None:
    """Over many keys, every image of every index is equally likely (chi-squared), and neighbours
    do not stay neighbours."""
    size, num_keys = 200, 1200
    images = np.stack([KeyedPermutation(size, key)(np.arange(size)) for key in range(num_keys)])
    expected = num_keys / size
    for index in (0, 1, 100, 199):
        counts = np.bincount(images[:, index], minlength=size)
        chi_squared = ((counts - expected) ** 2 / expected).sum()
        # 199 degrees of freedom: mean 199, standard deviation sqrt(398) = 20; 5 deviations above.
        assert chi_squared < 199 + 5 * 20
    steps = np.diff(images, axis=1)
    # A random permutation puts i + 1 right after i with probability 1 / size.
    share = (steps == 1).mean()
    sigma = np.sqrt(1 / size / steps.size)
    assert abs(share - 1 / size) < 5 * sigma


def test_hash_and_key_depend_on_everything() -> None:
    values = keyed_hash(7, np.arange(10_000))
    assert len(set(values.tolist())) == 10_000
    assert values.min() >= 0
    assert not np.array_equal(values, keyed_hash(8, np.arange(10_000)))
    all_keys = {derive_key(a, b, c) for a in range(12) for b in range(12) for c in range(12)}
    assert len(all_keys) == 12**3
    # The mean of 63-bit uniform numbers, with its standard error 2^63 / sqrt(12 n).
    assert abs(values.mean() / 2**63 - 0.5) < 5 / np.sqrt(12 * 10_000)


@given(
    weights=st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=8),
    num_samples=st.integers(0, 10**9),
)
@settings(max_examples=200)
def test_proportions_are_exact_at_every_length(weights: list[float], num_samples: int) -> None:
    order = MixtureOrder(0, [10] * len(weights), weights)
    counts = order.counts_before(num_samples)
    later = order.counts_before(num_samples + 1)
    assert counts.sum() == num_samples
    assert sorted((later - counts).tolist()) == [0] * (len(weights) - 1) + [1]
    exact = [Fraction(w) * num_samples / sum(map(Fraction, weights)) for w in weights]
    # Each dataset is rounded once, by at most 1/2, and inherits the rounding of those before it.
    for count, share in zip(counts, exact, strict=True):
        assert abs(int(count) - share) <= Fraction(len(weights), 2)


@given(
    sizes=st.lists(st.integers(1, 300), min_size=1, max_size=4),
    seed=st.integers(0, 2**32),
    data=st.data(),
)
@settings(max_examples=40)
def test_every_item_comes_once_per_epoch(sizes: list[int], seed: int, data: st.DataObject) -> None:
    weights = data.draw(
        st.none() | st.lists(st.floats(0.1, 5), min_size=len(sizes), max_size=len(sizes))
    )
    order = MixtureOrder(seed, sizes, weights)
    num_samples = 5 * BLOCK_SIZE
    datasets, items = order.draw(np.arange(num_samples))
    np.testing.assert_array_equal(
        np.bincount(datasets, minlength=len(sizes)), order.counts_before(num_samples)
    )
    for dataset, size in enumerate(sizes):
        drawn = np.bincount(items[datasets == dataset], minlength=size)
        # Whole blocks hold the first n draws of a dataset: floor(n / size) whole epochs, and each
        # item at most once more.
        assert set(drawn.tolist()) <= {drawn.sum() // size, -(-drawn.sum() // size)}


def test_epochs_and_seeds_differ() -> None:
    order = MixtureOrder(0, [BLOCK_SIZE], None)
    _, items = order.draw(np.arange(2 * BLOCK_SIZE))
    _, other = MixtureOrder(1, [BLOCK_SIZE], None).draw(np.arange(2 * BLOCK_SIZE))
    first, second = items[:BLOCK_SIZE], items[BLOCK_SIZE:]
    np.testing.assert_array_equal(np.sort(first), np.arange(BLOCK_SIZE))
    np.testing.assert_array_equal(np.sort(second), np.arange(BLOCK_SIZE))
    assert not np.array_equal(items, other)
    # By number of draw, before blocks are shuffled, which alone would make the epochs differ.
    draws = order._items(np.zeros(2 * BLOCK_SIZE, np.int64), np.arange(2 * BLOCK_SIZE))
    assert not np.array_equal(draws[:BLOCK_SIZE], draws[BLOCK_SIZE:])


@given(start=st.integers(0, 10**7), length=st.integers(1, 700), cut=st.integers(0, 700))
@settings(max_examples=20)
def test_order_is_pure(start: int, length: int, cut: int) -> None:
    """Any cut of any range gives the same samples as the whole range at once."""
    cut = min(cut, length)
    indices = np.arange(start, start + length)
    whole = MixtureOrder(3, [100, 33, 7], [1.0, 0.5, 0.01]).draw(indices)
    fresh = MixtureOrder(3, [100, 33, 7], [1.0, 0.5, 0.01])
    second, first = fresh.draw(indices[cut:]), fresh.draw(indices[:cut])  # in the other order
    for part in (0, 1):
        np.testing.assert_array_equal(np.concatenate((first[part], second[part])), whole[part])


@pytest.mark.parametrize("version", [1, 2])
def test_order_is_the_one_that_checkpoints_were_made_with(version: int) -> None:
    """A change of these numbers breaks the resuming of every run: add a version, say so."""
    order = MixtureOrder(0, [1000, 100], [3.0, 1.0], version=version)
    datasets, items = order.draw(np.arange(8))
    assert json.dumps([datasets.tolist(), items.tolist()]) == FIRST_EIGHT[version]


FIRST_EIGHT = {
    1: "[[1, 0, 0, 0, 1, 1, 1, 0], [27, 600, 86, 123, 42, 93, 86, 212]]",
    2: "[[1, 0, 0, 0, 1, 1, 1, 0], [99, 453, 921, 57, 70, 93, 96, 891]]",
}


@given(
    sizes=st.lists(st.integers(1, 400), min_size=1, max_size=4),
    run_length=st.sampled_from([1, 1, 3, 16]),
    seed=st.integers(0, 2**32),
    data=st.data(),
)
@settings(max_examples=60)
def test_every_epoch_of_every_dataset_is_a_permutation_in_the_order_of_samples(
    sizes: list[int], run_length: int, seed: int, data: st.DataObject
) -> None:
    """By plain counting: cut each dataset's samples, as they come, into pieces of its size."""
    some = st.lists(st.floats(0.1, 5), min_size=len(sizes), max_size=len(sizes))
    weights = data.draw(st.none() | some)
    later = [
        (change, data.draw(some)) for change in data.draw(st.sampled_from([[], [70], [70, 90]]))
    ]
    order = MixtureOrder(seed, sizes, weights, run_length, later)
    num_samples = 6 * BLOCK_SIZE
    cut = data.draw(st.integers(1, num_samples - 1))  # a resume
    parts = [order.draw(np.arange(0, cut)), order.draw(np.arange(cut, num_samples))]
    datasets, items = (np.concatenate([part[i] for part in parts]) for i in (0, 1))
    for dataset, size in enumerate(sizes):
        own = items[datasets == dataset]
        for start in range(0, len(own), size):
            epoch = own[start : start + size].tolist()
            assert len(set(epoch)) == len(epoch)
            assert len(epoch) < size or sorted(epoch) == list(range(size))


@pytest.mark.parametrize("weights", [[1.0, 0.0], [1.0], [1.0, -1.0]])
def test_bad_weights_are_refused(weights: list[float]) -> None:
    with pytest.raises(ValueError, match="weights must be positive"):
        MixtureOrder(0, [3, 3], weights)


@given(
    sizes=st.lists(st.integers(1, 60), min_size=1, max_size=4),
    run_length=st.sampled_from([2, 4, 16]),
    seed=st.integers(0, 2**32),
)
@settings(max_examples=8)
def test_runs_come_from_one_dataset_in_the_same_proportions_and_epochs(
    sizes: list[int], run_length: int, seed: int
) -> None:
    order = MixtureOrder(seed, sizes, [1.0] * len(sizes), run_length)
    num_runs = 2 * BLOCK_SIZE
    datasets, items = order.draw(np.arange(num_runs * run_length))
    per_run = datasets.reshape(num_runs, run_length)
    assert (per_run == per_run[:, :1]).all()
    counts = np.bincount(per_run[:, 0], minlength=len(sizes))
    assert counts.max() - counts.min() <= len(sizes)
    for dataset, size in enumerate(sizes):
        own = items[datasets == dataset]
        # the draws of a dataset, in the order of its draw numbers, are whole epochs
        runs = np.flatnonzero(per_run[:, 0] == dataset)
        _, turns = order.choose(runs)
        drawn = own.reshape(-1, run_length)[np.argsort(turns)].ravel()
        for epoch in range(len(drawn) // size):
            one = drawn[epoch * size : (epoch + 1) * size]
            np.testing.assert_array_equal(np.sort(one), np.arange(size))
