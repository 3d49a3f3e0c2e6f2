"""The order of samples, number by number, by a second writing of its definition in Python's integers
and fractions. A run goes on under a later Pelagos only if none of these numbers ever changes."""

from __future__ import annotations

import functools
import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from pelagos.data_pipelines.streaming.crops import crop_region
from pelagos.data_pipelines.streaming.mixtures.curriculum import (
    in_state,
    largest_weight,
    weight_at,
    weight_problem,
    weights_by_step,
)
from pelagos.data_pipelines.streaming.mixtures.mixture import Mixture
from pelagos.data_pipelines.streaming.mixtures.mixture_entry import MixtureEntry
from pelagos.data_pipelines.streaming.mixtures.mixture_order import BLOCK_SIZE, MixtureOrder
from pelagos.data_pipelines.streaming.permutation import (
    KeyedPermutation,
    derive_key,
    keyed_hash,
    mix,
)
from pelagos.data_pipelines.streaming.sampler import Sampler

GOLDEN = 0x9E3779B97F4A7C15
WORD = 2**64


def splitmix(value: int) -> int:
    """The finaliser of SplitMix64."""
    value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 % WORD
    value = (value ^ value >> 27) * 0x94D049BB133111EB % WORD
    return value ^ value >> 31


@functools.cache
def key_of(*parts: int) -> int:
    key = 0
    for part in parts:
        key = splitmix((((key * 3 + part) ^ key) + GOLDEN) % WORD)
    return key


def permuted(size: int, key: int, index: int) -> int:
    """A balanced Feistel network of 8 rounds on at least 2 x 4 bits, walked until it is inside."""
    if size == 1:
        return 0
    half = max(math.ceil((size - 1).bit_length() / 2), 4)
    while True:
        left, right = divmod(index, 2**half)
        for number in range(8):
            round_key = key_of(key, number)
            left, right = right, left ^ splitmix((right + round_key) % WORD) % 2**half
        index = left * 2**half + right
        if index < size:
            return index


def test_numbers_are_mixed_as_splitmix64_publishes() -> None:
    """The first five of seed 1234567, which implementations of it are compared by."""
    published = [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]
    states = [(1234567 + (n + 1) * GOLDEN) % WORD for n in range(5)]
    assert mix(np.array(states, np.uint64)).tolist() == published
    assert [splitmix(state) for state in states] == published


@pytest.mark.parametrize("parts", [(0,), (7, 3), (2**63 + 5, 1, 9), (1, 2, 3, 4)])
def test_keys_and_hashes_are_their_definition(parts: tuple[int, ...]) -> None:
    key = key_of(*parts)
    assert derive_key(*parts) == key
    values = [0, 1, 2, 255, 10**12]
    expected = [splitmix(splitmix((value * GOLDEN + key) % WORD)) >> 1 for value in values]
    assert keyed_hash(key, np.array(values)).tolist() == expected


@pytest.mark.parametrize("size", [1, 2, 15, 16, 17, 255, 256, 257, 300, 5000])
def test_permutations_are_their_definition(size: int) -> None:
    key = key_of(11, size)
    permutation = KeyedPermutation(size, key)
    asked = [*range(min(size, 40)), size - 1]
    assert permutation(asked).tolist() == [permuted(size, key, index) for index in asked]
    for outside in (-1, size):
        with pytest.raises(ValueError, match=rf"indices must be in 0\.\.{size - 1}"):
            permutation([0, outside])
    with pytest.raises(ValueError, match="at least one element, got size 0"):
        KeyedPermutation(0, 1)


class Order:
    """`MixtureOrder` sample by sample: counts by fractions, blocks of 256 dealt by a permutation."""

    def __init__(
        self,
        seed: int,
        sizes: list[int],
        weights: list[float],
        later: list[tuple[int, list[float]]],
        version: int = 2,
    ) -> None:
        self.version = version
        self.seed, self.sizes, self.rows = seed, sizes, [(0, weights), *later]

    def counts(self, num_samples: int) -> list[int]:
        total = [0] * len(self.sizes)
        for number, (start, weights) in enumerate(self.rows):
            is_last = number + 1 == len(self.rows)
            stop = num_samples if is_last else min(num_samples, self.rows[number + 1][0])
            left = max(0, stop - start)
            for d, weight in enumerate(weights):
                rest = sum(map(Fraction, weights[d:]))
                share = Fraction(weight) / rest if rest else Fraction(0)
                taken = math.floor(share * left + Fraction(1, 2))  # half up
                total[d] += taken
                left -= taken
        return total

    def draw(self, stop: int) -> list[tuple[int, int]]:
        """Dataset and item of the first samples."""
        drawn = [0] * len(self.sizes)
        found = []
        for number, (start, _) in enumerate(self.rows):
            end = stop if number + 1 == len(self.rows) else self.rows[number + 1][0]
            for block in range(max(0, -(-(end - start) // BLOCK_SIZE))):
                first = start + block * BLOCK_SIZE
                is_last = number + 1 == len(self.rows)
                size = BLOCK_SIZE if is_last else min(BLOCK_SIZE, end - first)
                before, after = self.counts(first), self.counts(first + size)
                deck = [
                    d
                    for d, (a, b) in enumerate(zip(before, after, strict=True))
                    for _ in "x" * (b - a)
                ]
                purpose = (1, block, number) if number else (1, block)
                key = key_of(self.seed, *purpose)
                for place in range(size):
                    rank = permuted(size, key, place)
                    dataset = deck[rank]
                    draw = drawn[dataset]
                    if self.version == 1:  # the draws of a block in the order of its deck
                        draw = before[dataset] + rank - deck.index(dataset)
                    epoch, position = divmod(draw, self.sizes[dataset])
                    epoch_key = key_of(self.seed, 2, dataset, epoch)
                    found.append((dataset, permuted(self.sizes[dataset], epoch_key, position)))
                    drawn[dataset] += 1
        return found[:stop]


@pytest.mark.parametrize(
    ("weights", "later"),
    [
        ([1.0, 2.0, 0.5], []),
        ([1.0, 2.0, 0.5], [(100, [0.0, 1.0, 3.0]), (370, [1.0, 0.0, 0.0])]),
        ([0.25, 0.25, 1.0], [(256, [1.0, 1.0, 0.0])]),
    ],
)
@pytest.mark.parametrize("version", [1, 2])
def test_the_order_of_draws_is_its_definition(
    weights: list[float], later: list[tuple[int, list[float]]], version: int
) -> None:
    sizes, stop = [5, 120, 17], 520
    order = MixtureOrder(9, sizes, weights, later=later, version=version)
    definition = Order(9, sizes, weights, later, version)
    for count in (0, 1, 99, 100, 101, 256, 369, 500, 10**6):
        assert order.counts_before(count).tolist() == definition.counts(count)
    datasets, items = order.draw(np.arange(stop))
    expected = definition.draw(stop)
    assert list(zip(datasets.tolist(), items.tolist(), strict=True)) == expected
    backwards = [order.draw(np.array([at])) for at in range(stop - 1, -1, -97)]
    assert [(int(d[0]), int(i[0])) for d, i in backwards] == expected[::-97]


@pytest.mark.parametrize("weights", [[1.0], [1.0, -1.0, 1.0], [0.0, 0.0, 0.0], [1.0, 0.0, 1.0]])
def test_weights_that_are_none_are_refused(weights: list[float]) -> None:
    with pytest.raises(ValueError, match="weights must be positive, one per dataset"):
        MixtureOrder(0, [2, 3, 4], weights)
    if weights != [1.0, 0.0, 1.0]:  # some may be 0 where weights change
        with pytest.raises(ValueError, match="weights must be positive, one per dataset"):
            MixtureOrder(0, [2, 3, 4], [1.0, 1.0, 1.0], later=[(10, weights)])


@pytest.mark.parametrize(
    "grids", [[(12, 16)], [(12, 16), (24, 8), (12, 16)], [(12, 16), (24, 8), (8, 8), (8, 8)]]
)
def test_the_samplers_order_is_its_definition(
    grids: list[tuple[int, int]], make_dataset: Any
) -> None:
    """Steps are dealt to shapes, and the samples of a shape's steps to its datasets."""
    datasets = [make_dataset(n, grid_shape=grid)[0] for n, grid in enumerate(grids)]
    weights = [1.0 + n for n in range(len(datasets))]
    entries = [MixtureEntry(d, weight=w) for d, w in zip(datasets, weights, strict=True)]
    mixture = Mixture(entries, ("density", "pressure"), lambda n: tuple((t,) for t in range(n)))
    seed, batch, steps = 5, 4, 30
    shapes = list(dict.fromkeys(grids))
    members = [[d for d, grid in enumerate(grids) if grid == shape] for shape in shapes]
    shares = [sum(weights[d] for d in own) for own in members]
    of_steps = Order(key_of(seed, 4), [1] * len(shapes), shares, []).draw(steps)
    drawn = []
    for number, own in enumerate(members):
        key = seed if len(shapes) == 1 else key_of(seed, 4, 1 + number)
        sizes, parts = ([values[d] for d in own] for values in (mixture.num_windows, weights))
        drawn.append(iter(Order(key, sizes, parts, []).draw(steps * batch)))
    expected = []
    for shape, _ in of_steps:
        for _ in range(batch):
            among, item = next(drawn[shape])
            expected.append((members[shape][among], item))
    sampler = Sampler(mixture, seed, batch)
    found = zip(*sampler.draw(np.arange(steps * batch)), strict=True)
    assert [(int(d), int(item)) for d, item in found] == expected
    samples = sampler.samples(10, 30)
    for sample, index in zip(samples, range(10, 30), strict=True):
        dataset, item = expected[index]
        assert (
            sample.sample_seed == splitmix(splitmix((index * GOLDEN + key_of(seed, 3)) % WORD)) >> 1
        )
        assert (sample.dataset, (sample.trajectory, sample.window)) == (
            dataset,
            mixture.window_of(dataset, item),
        )


@pytest.mark.parametrize("grids", [[(8, 8), (8, 8)], [(8, 8), (8, 8), (12, 16)]])
def test_weights_change_at_their_step_whatever_the_runs(
    grids: list[tuple[int, int]], make_dataset: Any
) -> None:
    """Half of the samples of the first two until step 6, none of the first from there on."""
    datasets = [make_dataset(n, grid_shape=grid)[0] for n, grid in enumerate(grids)]
    weights = [{0: 1.0, 6: 0.0}, {0: 1.0, 6: 2.0}, {0: 2.0}][: len(grids)]
    entries = [MixtureEntry(d, weight=w) for d, w in zip(datasets, weights, strict=True)]
    mixture = Mixture(entries, ("density", "pressure"), lambda n: tuple((t,) for t in range(n)))
    batch, steps = 8, 40
    for run_length in (1, 2, 4):
        found = Sampler(mixture, 5, batch, run_length).draw(np.arange(steps * batch))[0]
        of_steps = found.reshape(steps, batch)
        before, after = (part[part < 2].tolist() for part in (of_steps[:6], of_steps[6:]))
        assert before.count(0) == before.count(1) >= 2 * batch / 2
        assert set(after) == {1}
        runs = found.reshape(-1, run_length)
        assert (runs == runs[:, :1]).all()


def test_a_sampler_goes_on_only_with_its_own_order(make_dataset: Any) -> None:
    mixture = Mixture([MixtureEntry(make_dataset()[0])], ("density",), lambda n: ((0,),))
    for run_length, batch in ((2, 5), (4, 6), (3, 1)):
        with pytest.raises(ValueError, match=f"run_length {run_length} must divide the {batch}"):
            Sampler(mixture, 3, batch, run_length)
    sampler = Sampler(mixture, 3, 6, 2)
    state = sampler.state_dict()
    assert (state["seed"], state["order"], state["run_length"]) == (3, 2, 2)
    assert "run_length" not in Sampler(mixture, 3, 6).state_dict()
    sampler.check_state(state)
    Sampler(mixture, 3, 6).check_state(Sampler(mixture, 3, 6).state_dict())
    for change, message in (
        ({"seed": 4}, "data seed 4, but this run has 3"),
        ({"order": 1}, "version 1 of the order of samples, but this run has 2"),
        ({"run_length": 3}, "runs of 3 samples from one dataset, but this run has 2"),
    ):
        with pytest.raises(ValueError, match=message):
            sampler.check_state({**state, **change})
    old = {key: value for key, value in state.items() if key not in ("order", "run_length")}
    with pytest.raises(ValueError, match="version 1 of the order"):  # before it had a number
        sampler.check_state(old)
    with pytest.raises(ValueError, match="runs of 1 samples"):
        sampler.check_state({**old, "order": 2})


def test_few_blocks_are_kept() -> None:
    """However long a run is: 64 of 256 samples, and at most as many epochs as the cache has."""
    order = MixtureOrder(0, [1000, 2000], None)
    for block in range(200):
        order.draw(np.array([block * BLOCK_SIZE]))
        assert len(order._recent_blocks) <= 64
    kept = order._block(0, 198)
    order._block(0, 199)
    assert order._block(0, 198)[0] is kept[0]


def test_crops_are_their_definition() -> None:
    """Drawn by the sample's seed, the word "crop" and the axis, from all places that fit."""
    word = int.from_bytes(b"crop", "big")
    for seed in range(50):
        starts = [key_of(seed, word, axis) % places for axis, places in enumerate((5, 1, 12))]
        expected = tuple((s, s + size) for s, size in zip(starts, (4, 8, 5), strict=True))
        assert crop_region(seed, (8, 8, 16), (4, 8, 5)) == expected
    for crop in ((4,), (4, 4, 4)):
        with pytest.raises(ValueError, match="zip"):
            crop_region(0, (8, 8), crop)


# -- weights that change with the step ------------------------------------------------------------


@pytest.mark.parametrize(
    ("weight", "problem"),
    [
        (1e-9, None),
        (0.5, None),
        (0.0, "weight must be a positive number, got 0.0"),
        (-1.0, "weight must be a positive number"),
        (math.inf, "weight must be a positive number"),
        (math.nan, "weight must be a positive number"),
        ({0: 0.25}, None),
        ({0: 0.0, 5: 1e-9}, None),
        ({0: 1.0, 5: math.inf}, "weights must be finite"),
        ({}, "weights by step must begin with step 0"),
        ({1: 1.0}, "weights by step must begin with step 0, got the steps [1]"),
        ({-1: 1.0, 0: 1.0}, "weights by step must begin with step 0"),
        ({0: 1.0, 5: -0.1}, "weights must not be negative, and at least one must be positive"),
        ({0: 0.0, 5: 0.0}, "weights must not be negative, and at least one must be positive"),
    ],
)
def test_what_is_wrong_with_a_weight(weight: float | dict[int, float], problem: str | None) -> None:
    found = weight_problem(weight)
    assert (found is None) == (problem is None)
    assert problem is None or (found is not None and found.startswith(problem))


def test_a_weight_holds_until_the_next_begins() -> None:
    weight = {0: 1.0, 10: 0.25, 30: 0.5}
    assert [weight_at(weight, step) for step in (0, 9, 10, 29, 30, 99)] == [
        1,
        1,
        0.25,
        0.25,
        0.5,
        0.5,
    ]
    assert (weight_at(3.0, 5), largest_weight(3.0), largest_weight(weight)) == (3.0, 3.0, 1.0)
    assert weights_by_step([weight, 2.0]) == [(0, [1.0, 2.0]), (10, [0.25, 2.0]), (30, [0.5, 2.0])]
    with pytest.raises(ValueError, match="every weight is 0 from step 10 on"):
        weights_by_step([{0: 1.0, 10: 0.0}, {0: 1.0, 5: 0.0}])


def test_a_checkpoint_keeps_a_weight_in_sixty_letters() -> None:
    assert (in_state(None), in_state(0.5)) == (None, 0.5)
    assert in_state({10: 0.5, 0: 1.0}) == "0:1.0 10:0.5"
    longest = {0: 1.0, **{10**6 + n: 0.5 for n in range(4)}}  # 5 + 4 x 12 = 53 letters
    as_long = {**longest, 10**6: 0.25, 10**6 + 1: 0.25, 10**6 + 2: 0.125, 10**6 + 3: 0.125}
    as_long[0] = 0.5
    for weight in (longest, as_long):
        text = " ".join(f"{step}:{weight[step]}" for step in sorted(weight))
        spare = 60 - len(text)
        assert spare >= 0
        widened = {**weight, 0: float("0." + "5" * (1 + spare))}  # 60 letters to the last
        exact = " ".join(f"{step}:{widened[step]}" for step in sorted(widened))
        assert len(exact) == 60
        assert in_state(widened) == exact
    long = {n: 1.0 + n for n in range(40)}
    text, other = in_state(long), in_state({**long, 39: 7.0})
    assert isinstance(text, str)
    assert (len(text), text[:12]) == (60, "0:1.0 1:2.0 ")
    assert text != other  # by the digest at its end
