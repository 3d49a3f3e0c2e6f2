"""Weights that change with the step: exact at every step, resumable, epochs still permutations."""

from __future__ import annotations

import itertools
import json
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pelagos.data_pipelines.streaming.loader import StreamLoader
from pelagos.data_pipelines.streaming.mixtures.curriculum import weights_by_step
from pelagos.data_pipelines.streaming.mixtures.mixture import Mixture
from pelagos.data_pipelines.streaming.mixtures.mixture_entry import MixtureEntry
from pelagos.data_pipelines.streaming.mixtures.mixture_order import BLOCK_SIZE, MixtureOrder
from pelagos.data_pipelines.streaming.sampler import Sampler

BATCH = 12


@given(
    sizes=st.lists(st.integers(60, 250), min_size=2, max_size=4),
    starts=st.lists(st.integers(1, 600), min_size=1, max_size=3, unique=True),
    data=st.data(),
)
@settings(max_examples=10)
def test_shares_change_exactly_where_they_should(
    sizes: list[int], starts: list[int], data: st.DataObject
) -> None:
    row = st.lists(st.integers(0, 5), min_size=len(sizes), max_size=len(sizes)).filter(any)
    first = data.draw(row)
    later = [(start, data.draw(row)) for start in sorted(starts)]
    order = MixtureOrder(7, sizes, first, later=later)
    num_samples = max(starts) + 2 * BLOCK_SIZE  # whole blocks of the last segment
    datasets, items = order.draw(np.arange(num_samples))
    table = [(0, first), *later, (num_samples, first)]
    for (start, weights), (stop, _) in itertools.pairwise(table):
        drawn = np.bincount(datasets[start:stop], minlength=len(sizes))
        for count, weight in zip(drawn, weights, strict=True):
            exact = Fraction(weight * (stop - start), sum(weights))
            assert abs(int(count) - exact) <= Fraction(len(sizes), 2)
            assert weight or not count  # nothing of a dataset whose weight is 0
    for dataset, size in enumerate(sizes):
        seen = np.bincount(items[datasets == dataset], minlength=size)
        assert seen.max() - seen.min() <= 1  # whole epochs, and one that was begun
    cut = data.draw(st.integers(0, num_samples))
    fresh = MixtureOrder(7, sizes, first, later=later).draw(np.arange(cut, num_samples))
    np.testing.assert_array_equal(fresh[0], datasets[cut:])
    np.testing.assert_array_equal(fresh[1], items[cut:])


def test_weights_that_never_change_keep_the_order_of_old_checkpoints() -> None:
    usual = MixtureOrder(0, [1000, 100], [3.0, 1.0]).draw(np.arange(1000))
    same = MixtureOrder(0, [1000, 100], [3.0, 1.0], later=[(700, [3.0, 1.0])])
    found = same.draw(np.arange(1000))
    for part in (0, 1):  # up to the change, all is as without one
        np.testing.assert_array_equal(found[part][:512], usual[part][:512])


@pytest.fixture
def mixture(make_dataset: Any) -> Mixture:
    """Three datasets, one of another grid; the second goes out at step 4, the third comes in."""
    grids = ((12, 16), (12, 16), (6, 8))
    found = [make_dataset(seed=i, grid_shape=grid)[0] for i, grid in enumerate(grids)]
    weights = (1.0, {0: 1.0, 4: 0.0}, {0: 0.0, 4: 1.0, 8: 3.0, 16: 3.0})
    entries = [MixtureEntry(d, weight=w) for d, w in zip(found, weights, strict=True)]
    return Mixture(entries, ("density",), lambda n: tuple((i, i + 1) for i in range(n - 1)))


def rows(loader: StreamLoader) -> list[list[tuple[int, ...]]]:
    return [
        list(
            zip(
                b.dataset.tolist(),
                b.trajectory.tolist(),
                b.times[:, 0].tolist(),
                b.sample_seed.tolist(),
                strict=True,
            )
        )
        for b in loader
    ]


def stream(mixture: Mixture, start: int, stop: int, world_size: int = 1) -> list[Any]:
    """What each step has, of all ranks together."""
    loaders = [
        StreamLoader(
            mixture,
            Sampler(mixture, 5, BATCH),
            global_batch_size=BATCH,
            rank=rank,
            world_size=world_size,
            start_step=start,
            stop_step=stop,
        )
        for rank in range(world_size)
    ]
    return [
        [row for part in step for row in part] for step in zip(*map(rows, loaders), strict=True)
    ]


def test_steps_follow_the_schedule_under_any_world_size_and_resume(mixture: Mixture) -> None:
    whole = stream(mixture, 0, 16)
    datasets = [{row[0] for row in step} for step in whole]
    assert all(found <= {0, 1} for found in datasets[:4])
    assert all(found in ({0}, {2}) for found in datasets[4:])  # each step has one grid
    assert sum(found == {2} for found in datasets[4:8]) == 2  # a half from step 4
    assert sum(found == {2} for found in datasets[8:]) == 6  # three quarters from step 8
    for start, world_size in ((3, 2), (4, 3), (5, 4), (9, 1)):
        assert stream(mixture, start, 16, world_size) == whole[start:]


def test_the_state_is_small_and_another_schedule_is_refused(mixture: Mixture) -> None:
    sampler = Sampler(mixture, 5, BATCH)
    state = json.loads(json.dumps(sampler.state_dict()))
    assert len(json.dumps(state)) < 1000
    sampler.check_state(state)
    changed = [*mixture.entries[:2], MixtureEntry(mixture.entries[2].dataset, weight=1.0)]
    other = Mixture(changed, mixture.fields, lambda n: tuple((i, i + 1) for i in range(n - 1)))
    with pytest.raises(ValueError, match="weight was 0:0.0 4:1.0 8:3.0 16:3.0, now 1.0"):
        Sampler(other, 5, BATCH).check_state(state)
    long = {step: 1.0 + step for step in range(0, 10_000, 10)}
    many = [MixtureEntry(e.dataset, weight=long) for e in mixture.entries]
    huge = Mixture(many, mixture.fields, lambda n: ((0, 1),))
    assert len(json.dumps(Sampler(huge, 5, BATCH).state_dict())) < 1000
    with pytest.raises(ValueError, match="the sampler orders steps of 1 samples"):
        StreamLoader(mixture, Sampler(mixture, 5), global_batch_size=BATCH)


def test_what_is_no_schedule_is_refused(mixture: Mixture) -> None:
    for weight, message in (
        ({5: 1.0}, "must begin with step 0"),
        ({0: 1.0, 5: -1.0}, "must not be negative"),
        ({0: 0.0}, "one must be positive"),
        (0.0, "must be a positive number"),
        (float("inf"), "must be a positive number"),
        ({0: 1.0, 5: float("nan")}, "must be finite"),
    ):
        with pytest.raises(ValueError, match=message):
            Mixture([MixtureEntry(mixture.entries[0].dataset, weight=weight)], ("density",), len)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="every weight is 0 from step 10 on"):
        weights_by_step([{0: 1.0, 10: 0.0}, {0: 2.0, 5: 0.0}])
