"""Datasets of several grids train together: each step has one shape, on every rank."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from pelagos.data_pipelines.streaming.loader import StreamLoader
from pelagos.data_pipelines.streaming.mixtures.mixture import Mixture
from pelagos.data_pipelines.streaming.mixtures.mixture_entry import MixtureEntry
from pelagos.data_pipelines.streaming.normalization import Normalization
from pelagos.data_pipelines.streaming.sampler import Sampler

MakeDataset = Callable[..., Any]
BATCH = 6


@pytest.fixture
def mixture(make_dataset: MakeDataset) -> Mixture:
    """Two datasets on 12 x 16 points, one on 24 x 8; single frames: 25, 25 and 25 windows."""
    grids = [(12, 16), (24, 8), (12, 16)]
    datasets = [make_dataset(seed, grid_shape=grid)[0] for seed, grid in enumerate(grids)]
    entries = [MixtureEntry(dataset) for dataset in datasets]
    return Mixture(entries, ("density", "pressure"), lambda n: tuple((t,) for t in range(n)))


def test_every_rank_of_a_step_has_one_shape_and_the_batch_is_that_of_one_rank(
    mixture: Mixture,
) -> None:
    def batches(rank: int, world_size: int) -> list[Any]:
        sampler = Sampler(mixture, 3, BATCH)
        options = {"global_batch_size": BATCH, "stop_step": 20}
        with StreamLoader(mixture, sampler, rank=rank, world_size=world_size, **options) as loader:
            return [
                (b.frames.shape[-2:], b.dataset.tolist(), b.frames.sum().item()) for b in loader
            ]

    alone = batches(0, 1)
    assert {tuple(shape) for shape, _, _ in alone} == {(12, 16), (24, 8)}
    for shape, datasets, _ in alone:
        assert {mixture.grid_shapes[d] for d in datasets} == {tuple(shape)}
    parts = [batches(rank, 3) for rank in range(3)]
    for step, (shape, datasets, _) in enumerate(alone):
        assert [part[step][0] for part in parts] == [shape] * 3
        assert [d for part in parts for d in part[step][1]] == datasets


def test_a_thread_reads_windows_of_any_size_into_one_piece_of_memory(
    make_dataset: MakeDataset,
) -> None:
    """The first is the largest: a new piece for each would be written to for the first time."""
    made = [make_dataset(n, grid_shape=grid) for n, grid in enumerate([(12, 16), (6, 8), (12, 16)])]
    identity = Normalization.identity(["pressure", "density"])  # in another order than is stored
    entries = [MixtureEntry(dataset) for dataset, _ in made]
    mixture = Mixture(entries, identity.fields, lambda n: tuple((t,) for t in range(n)), identity)
    places = set()
    for number in (0, 1, 2, 1, 0):
        out = np.empty(mixture.shape_on(mixture.grid_shapes[number]), np.float32)
        mixture.read(number, 3, (2,), out)
        np.testing.assert_array_equal(out[0], made[number][1][3, 2, ::-1])
        places.add(mixture._scratch.buffer.ctypes.data)
    assert len(places) == 1


def test_shapes_and_datasets_keep_their_shares_and_every_window_comes_once(
    mixture: Mixture,
) -> None:
    # 256 steps are a whole block; the first dataset's share of samples is a third
    samples = Sampler(mixture, 0, BATCH).samples(0, 256 * BATCH)
    counts = Counter(s.dataset for s in samples)
    for dataset in range(3):
        assert counts[dataset] == pytest.approx(256 * BATCH / 3, abs=BATCH)
    # inside a shape, draws are epochs: counts of windows differ by one at most
    for dataset in range(3):
        windows = Counter((s.trajectory, s.window) for s in samples if s.dataset == dataset)
        assert len(windows) == 25
        assert max(windows.values()) - min(windows.values()) <= 1 + BATCH


def test_the_order_is_a_function_of_the_index_alone(mixture: Mixture) -> None:
    sampler = Sampler(mixture, 1, BATCH)
    whole = sampler.samples(0, 60)
    again = [s for start in range(0, 60, 7) for s in sampler.samples(start, min(60, start + 7))]
    assert whole == again
    assert whole != Sampler(mixture, 2, BATCH).samples(0, 60)


def test_runs_within_a_step_come_from_one_dataset(mixture: Mixture) -> None:
    sampler = Sampler(mixture, 1, BATCH, run_length=3)
    samples = sampler.samples(0, 40 * BATCH)
    runs = [samples[i : i + 3] for i in range(0, len(samples), 3)]
    assert all(len({s.dataset for s in run}) == 1 for run in runs)
    changes = [a[0].dataset != b[0].dataset for a, b in pairwise(runs)]
    assert any(changes[::2]), "two shard groups of a step may have different datasets"
    state = sampler.state_dict()
    sampler.check_state(state)
    with pytest.raises(ValueError, match="runs of 3 samples"):
        Sampler(mixture, 1, BATCH).check_state(state)
    with pytest.raises(ValueError, match="run_length 4 must divide the 6"):
        Sampler(mixture, 1, BATCH, run_length=4)


def test_repeats_count_windows_several_times(make_dataset: MakeDataset) -> None:
    small, large = make_dataset(0)[0], make_dataset(1, splits={"train": (0, 7)})[0]
    entries = [MixtureEntry(small, repeat=3), MixtureEntry(large)]
    mixture = Mixture(entries, ("density",), lambda n: tuple((t,) for t in range(n)))
    assert mixture.num_windows == (25, 35)
    counts = Counter(s.dataset for s in Sampler(mixture, 0).samples(0, 110))
    # one epoch of the repeated mixture: 3 x 25 + 35; the last block is not whole
    assert counts[0] == pytest.approx(75, abs=12)
    whole = Counter(s.dataset for s in Sampler(mixture, 0).samples(0, 256 * 110))
    assert whole == {0: 256 * 75, 1: 256 * 35}
    with pytest.raises(ValueError, match="weights and repeats"):
        Mixture([MixtureEntry(small, weight=1.0, repeat=2)], ("density",), lambda n: ((0,),))


def test_a_loader_of_other_steps_than_the_sampler_is_refused(mixture: Mixture) -> None:
    with pytest.raises(ValueError, match="orders steps of 6 samples, but the loader has 4"):
        StreamLoader(mixture, Sampler(mixture, 0, BATCH), global_batch_size=4)


def test_values_are_normalised_the_same_on_every_grid(mixture: Mixture) -> None:
    out = np.empty(mixture.shape_on((24, 8)), np.float32)
    mixture.read(1, 0, (2,), out)
    raw = mixture.entries[1].dataset.window(0, 2, 1)
    mean = np.array(mixture.normalization.mean, np.float32).reshape(2, 1, 1)
    std = np.array(mixture.normalization.std, np.float32).reshape(2, 1, 1)
    np.testing.assert_allclose(out, (raw - mean) / std, rtol=1e-5, atol=1e-6)
