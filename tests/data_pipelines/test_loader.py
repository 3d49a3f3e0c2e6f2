"""Mixture, normalisation and loader: right numbers, in the right order, whoever reads them."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pelagos.data_pipelines.store import DatasetError, Field, open_dataset
from pelagos.data_pipelines.streaming.batch import Batch
from pelagos.data_pipelines.streaming.loader import StreamLoader, load_batch
from pelagos.data_pipelines.streaming.mixtures.mixture import Mixture
from pelagos.data_pipelines.streaming.mixtures.mixture_entry import MixtureEntry
from pelagos.data_pipelines.streaming.normalization import Normalization
from pelagos.data_pipelines.streaming.sampler import Sampler

GLOBAL_BATCH = 12
FIELDS = ("density", "velocity-x", "pressure", "tracer")


def pairs(num_frames: int) -> tuple[tuple[int, ...], ...]:
    """Every ordered pair of frames, as the all2all objective asks for."""
    return tuple((i, j) for i in range(num_frames) for j in range(i, num_frames))


@pytest.fixture
def mixture(make_dataset: Any) -> Mixture:
    """Two datasets with other fields in another order, one field constant, one absent."""
    first, _ = make_dataset(seed=1)
    second, _ = make_dataset(
        seed=2,
        fields=(Field("tracer", "tracer"), Field("velocity-x", "velocity-x")),
        constant_fields={"density": 1.0},
        parameter_names=(),
        frame_interval=0.1,
    )
    entries = [
        MixtureEntry(first, weight=2.0, offset={"pressure": 0.5}),
        MixtureEntry(second, weight=1.0),
    ]
    return Mixture(entries, FIELDS, pairs)


def rows(batch: Batch) -> list[tuple[Any, ...]]:
    """A batch as comparable rows, frames as bytes."""
    return [
        (int(d), int(t), int(s), times.tolist(), frames.numpy().tobytes())
        for d, t, s, times, frames in zip(
            batch.dataset,
            batch.trajectory,
            batch.sample_seed,
            batch.times,
            batch.frames,
            strict=True,
        )
    ]


def stream(
    mixture: Mixture, start: int, stop: int, world_size: int = 1, num_threads: int = 2
) -> list[tuple[Any, ...]]:
    """Rows of all ranks' batches of steps `start .. stop - 1`, in global order."""
    loaders = [
        StreamLoader(
            mixture,
            Sampler(mixture, seed=5),
            global_batch_size=GLOBAL_BATCH,
            rank=rank,
            world_size=world_size,
            start_step=start,
            num_threads=num_threads,
            stop_step=stop,
        )
        for rank in range(world_size)
    ]
    steps = zip(*loaders, strict=True)
    found = [row for step in steps for batch in step for row in rows(batch)]
    for loader in loaders:
        loader.close()
    return found


def test_order_does_not_depend_on_world_size_threads_or_restarts(mixture: Mixture) -> None:
    whole = stream(mixture, 0, 6)
    assert len(whole) == 6 * GLOBAL_BATCH
    for world_size in (2, 3, 4, 6):
        assert stream(mixture, 0, 6, world_size) == whole
    for num_threads in (1, 7):
        assert stream(mixture, 0, 6, num_threads=num_threads) == whole
    assert stream(mixture, 0, 2, 3) + stream(mixture, 2, 5, 1) + stream(mixture, 5, 6, 4) == whole


def test_frames_are_normalised_and_mapped_to_channels(mixture: Mixture) -> None:
    samples = Sampler(mixture, seed=0).samples(0, 40)
    batch = load_batch(mixture, samples)
    norm = mixture.normalization
    assert {s.dataset for s in samples} == {0, 1}
    for row, sample in enumerate(samples):
        entry = mixture.entries[sample.dataset]
        raw = entry.dataset.data[sample.trajectory][list(sample.window)].astype(np.float64)
        for channel, name in enumerate(FIELDS):
            shift, std = entry.offset.get(name, 0.0) + norm.mean[channel], norm.std[channel]
            found = batch.frames[row, :, channel].numpy()
            if name in entry.dataset.field_names:
                wanted = (raw[:, entry.dataset.field_names.index(name)] - shift) / std
            elif sample.dataset == 1 and name == "density":
                wanted = np.full(found.shape, (1.0 - shift) / std)
            else:
                wanted = np.zeros(found.shape)
                assert not batch.present[row, channel]
            # Three float32 roundings (shift, subtraction, division) of numbers below 10.
            np.testing.assert_allclose(found, wanted, rtol=0, atol=3 * 10 * 2.0**-23)
        interval = entry.dataset.spec.frame_interval
        np.testing.assert_allclose(batch.times[row], np.array(sample.window) * interval, rtol=1e-7)
    assert batch.present[batch.dataset == 0].all(0).tolist() == [True, False, True, False]
    assert batch.present[batch.dataset == 1].all(0).tolist() == [True, True, False, True]


def test_absent_channels_may_be_ones_that_count(mixture: Mixture) -> None:
    usual = (mixture.entries, FIELDS, pairs, mixture.normalization)
    filled = Mixture(*usual, absent_value=1.0)
    counted = Mixture(*usual, absent_value=1.0, absent_counts=True)
    samples = Sampler(mixture, seed=0).samples(0, 20)
    assert Sampler(counted, seed=0).samples(0, 20) == samples
    masked, ones, learnt = (load_batch(m, samples) for m in (mixture, filled, counted))
    absent = ~masked.present[:, None, :, None, None].expand_as(masked.frames)
    assert torch.equal(ones.frames, masked.frames.masked_fill(absent, 1.0))
    assert torch.equal(learnt.frames, ones.frames)
    assert torch.equal(ones.present, masked.present)
    assert learnt.present.all()
    assert not mixture.is_complete
    alone = [MixtureEntry(mixture.entries[0].dataset)]
    assert Mixture(alone, FIELDS[:1], pairs).is_complete


def test_pooled_normalisation_is_that_of_all_values(make_dataset: Any) -> None:
    (first, a), (second, b) = make_dataset(seed=1), make_dataset(seed=2, num_frames=3)
    found = Normalization.from_statistics([first, second], ["pressure"], [{"pressure": 1.5}, {}])
    values = np.concatenate(
        [a[:5, :, 1].ravel().astype(np.float64) - 1.5, b[:5, :, 1].ravel().astype(np.float64)]
    )
    # float64 sums of n ~ 1e4 terms: relative error far below n * 2^-53 = 1e-12.
    np.testing.assert_allclose(found.mean[0], values.mean(), rtol=1e-12)
    np.testing.assert_allclose(found.std[0], values.std(), rtol=1e-12)


def test_normalisation_inverts_and_survives_json() -> None:
    norm = Normalization.constants(["a", "b"], {"a": 1.0, "b": -2.0}, {"a": 0.5, "b": 4.0})
    values = torch.randn(2, 3, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(norm.invert(norm.apply(values)), values)
    assert Normalization.from_dict(json.loads(json.dumps(norm.to_dict()))) == norm
    with pytest.raises(ValueError, match=r"\[…, 2, y, x\]"):
        norm.apply(values[:, :, :1])
    with pytest.raises(ValueError, match=r"std 0\.0 positive"):
        Normalization(("a",), (0.0,), (0.0,))


def test_epoch_of_one_dataset_is_every_window_once(make_dataset: Any) -> None:
    dataset, _ = make_dataset()
    mixture = Mixture([MixtureEntry(dataset)], ["density", "pressure"], pairs)
    assert mixture.num_samples == 5 * 15
    samples = Sampler(mixture, seed=3).samples(0, 256)  # a whole block
    counts: dict[tuple[int, tuple[int, ...]], int] = {}
    for sample in samples:
        key = (sample.trajectory, sample.window)
        counts[key] = counts.get(key, 0) + 1
    assert set(counts) == {(t, w) for t in range(5) for w in pairs(5)}
    assert set(counts.values()) == {256 // 75, 256 // 75 + 1}


@pytest.mark.parametrize("world_size", [1, 3, 5])
def test_ranks_together_see_every_window_once_an_epoch(make_dataset: Any, world_size: int) -> None:
    """75 windows, batches of 15: what all ranks get in 5 steps, resumed after 2, is one epoch."""
    dataset, _ = make_dataset()
    mixture = Mixture([MixtureEntry(dataset, crop=(8, 8))], ["density", "pressure"], pairs)
    seen: list[tuple[int, tuple[float, ...]]] = []
    for start, stop in ((0, 2), (2, 5)):
        for rank in range(world_size):
            loader = StreamLoader(
                mixture,
                Sampler(mixture, 4),
                global_batch_size=15,
                rank=rank,
                world_size=world_size,
                start_step=start,
                stop_step=stop,
            )
            with loader:
                for batch in loader:
                    rows = zip(batch.trajectory.tolist(), batch.times.tolist(), strict=True)
                    seen += [(t, tuple(times)) for t, times in rows]
    assert len(seen) == len(set(seen)) == 75


def test_an_order_of_another_version_is_refused_with_the_key_that_continues_it(
    mixture: Mixture,
) -> None:
    state = Sampler(mixture, seed=1).state_dict()
    old = {key: value for key, value in state.items() if key != "order"}  # before versions
    with pytest.raises(ValueError, match=r"version 1 .*data\.order_version=1"):
        Sampler(mixture, seed=1).check_state(old)
    Sampler(mixture, seed=1, version=1).check_state(old)
    with pytest.raises(ValueError, match=r"version 2 .*data\.order_version=2"):
        Sampler(mixture, seed=1, version=1).check_state(state)


def test_checkpoint_state_is_small_and_refuses_changed_data(
    mixture: Mixture, make_dataset: Any
) -> None:
    sampler = Sampler(mixture, seed=1)
    state = json.loads(json.dumps(sampler.state_dict()))
    assert len(json.dumps(state)) < 1000
    sampler.check_state(state)
    with pytest.raises(ValueError, match="seed 1, but this run has 2"):
        Sampler(mixture, seed=2).check_state(state)
    changed, _ = make_dataset(seed=9)
    entries = [MixtureEntry(changed, weight=2.0), mixture.entries[1]]
    other = Mixture(entries, FIELDS, pairs)
    with pytest.raises(ValueError, match=r"dataset 0 .*fingerprint was .*, now ") as caught:
        other.check_state(state["mixture"])
    assert "dataset 1" not in str(caught.value)
    heavier = [mixture.entries[0], MixtureEntry(mixture.entries[1].dataset, weight=3.0)]
    with pytest.raises(ValueError, match=r"dataset 1 .*weight was 1\.0, now 3\.0"):
        Mixture(heavier, FIELDS, pairs).check_state(state["mixture"])


@pytest.mark.parametrize("count", [8, 40, 200])
def test_the_state_of_many_datasets_is_small_and_as_strict(make_dataset: Any, count: int) -> None:
    dataset, _ = make_dataset()
    changed, _ = make_dataset(seed=9)

    def mix(*entries: MixtureEntry) -> Mixture:
        return Mixture(entries, dataset.field_names, pairs)

    weights = [1.0 + i / 8 for i in range(count)]
    entries = [MixtureEntry(dataset, weight=w, crop=(8, 8)) for w in weights]
    mixture = mix(*entries)
    state = json.loads(json.dumps(Sampler(mixture, seed=1).state_dict()))
    assert len(json.dumps(state)) < 1000
    mixture.check_state(state["mixture"])
    mixture.check_state(mixture._listed_state())  # as states were kept before
    told = "dataset 3 " if count < 48 else "a dataset or its weight differs"
    for other in (
        MixtureEntry(changed, weight=weights[3], crop=(8, 8)),
        MixtureEntry(dataset, weight=7.5, crop=(8, 8)),
        MixtureEntry(dataset, weight=weights[3]),
        MixtureEntry(dataset, weight=weights[3], crop=(8, 8), max_trajectories=2),
    ):
        with pytest.raises(ValueError, match=told):
            mix(*entries[:3], other, *entries[4:]).check_state(state["mixture"])
    with pytest.raises(ValueError, match="number of datasets was|differs"):
        mix(*entries[1:]).check_state(state["mixture"])


def test_every_misfit_is_listed_at_once(make_dataset: Any) -> None:
    small, _ = make_dataset(grid_shape=(8, 8))
    large, _ = make_dataset()
    entries = [MixtureEntry(small, weight=1.0), MixtureEntry(large, split="held-out")]
    with pytest.raises(ValueError, match="does not fit") as caught:
        Mixture(entries, ["tracer"], pairs)
    message = str(caught.value)
    for part in (
        "none of the model's channels ['tracer']",
        "no split 'held-out'",
        "1 of 2 datasets have a weight",
    ):
        assert part in message


def test_sizes_that_do_not_divide_are_refused(mixture: Mixture) -> None:
    with pytest.raises(ValueError, match=r"12 = 5 \* 2 \+ 2"):
        StreamLoader(mixture, Sampler(mixture, 0), global_batch_size=12, rank=0, world_size=5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"global_batch_size": 0}, "global_batch_size 0 must be a multiple of world_size 1"),
        ({"global_batch_size": 11, "world_size": 4}, r"of world_size 4: 11 = 4 \* 2 \+ 3"),
        ({"rank": 3, "world_size": 3}, "rank 3 must be in 0..2"),
        ({"rank": -1}, "rank -1 must be in 0..0"),
        ({"num_threads": 0}, "num_threads 0 must be at least 1; prefetch_steps 2 and start_step 0"),
        ({"prefetch_steps": -1}, "num_threads 4 must be at least 1; prefetch_steps -1"),
        ({"start_step": -1}, "start_step -1 must not be negative"),
    ],
)
def test_numbers_out_of_range_are_refused(
    mixture: Mixture, changes: dict[str, int], message: str
) -> None:
    values = {"global_batch_size": 12, **changes}
    with pytest.raises(ValueError, match=message):
        StreamLoader(mixture, Sampler(mixture, 0), **values)


def test_a_loader_takes_the_sampler_of_its_mixture(mixture: Mixture) -> None:
    other = Mixture(mixture.entries, FIELDS, pairs)
    with pytest.raises(ValueError, match="orders another mixture"):
        StreamLoader(mixture, Sampler(other, 0), global_batch_size=12)
    least = {"num_threads": 1, "prefetch_steps": 0, "start_step": 0}
    with StreamLoader(mixture, Sampler(mixture, 0), global_batch_size=2, **least) as loader:
        assert len(next(loader)) == 2


def test_costs_of_reading_are_summed_over_datasets_each_counted_once(make_dataset: Any) -> None:
    (first, _), (second, _) = make_dataset(seed=1), make_dataset(seed=2)
    entries = [MixtureEntry(d, weight=1.0) for d in (first, second, first)]
    mixture = Mixture(entries, ["density"], pairs)
    start = first.bytes_read + second.bytes_read
    with StreamLoader(mixture, Sampler(mixture, 0), global_batch_size=6, stop_step=3) as loader:
        assert loader.read_counts == {}
        assert len(list(loader)) == 3
        assert loader.bytes_read == first.bytes_read + second.bytes_read - start > 0
        first.counters.add(requests=5, retry_seconds=0.5)
        second.counters.add(requests=3, cache_hits=2)
        assert loader.read_counts == {"requests": 8, "retry_seconds": 0.5, "cache_hits": 2}
    with StreamLoader(mixture, Sampler(mixture, 0), global_batch_size=6, num_threads=1) as later:
        assert later.bytes_read == 0


def test_damage_reaches_the_consumer_with_its_place(make_dataset: Any) -> None:
    dataset, _ = make_dataset()
    shard = Path(dataset.uri) / "data/c/0/0/0/0/0"
    content = bytearray(shard.read_bytes())
    content[10] ^= 1  # trajectory 0, frame 0
    shard.write_bytes(content)
    mixture = Mixture([MixtureEntry(open_dataset(dataset.uri))], ["pressure"], pairs)
    loader = StreamLoader(mixture, Sampler(mixture, 0), global_batch_size=75, stop_step=5)
    with pytest.raises(DatasetError, match=r"trajectory 0, frame 0 .*frames \[0,"):
        for _ in loader:
            pass
    with pytest.raises(DatasetError):  # it does not go on past the damage
        next(loader)


def test_prefetch_is_bounded_and_close_ends_the_threads(mixture: Mixture) -> None:
    before = threading.active_count()
    loader = StreamLoader(
        mixture, Sampler(mixture, 0), global_batch_size=6, num_threads=3, prefetch_steps=2
    )
    first = next(loader)
    assert len(loader._pending) == 2
    assert first.frames.shape == (6, 2, 4, 12, 16)
    assert loader.bytes_read > 0
    assert loader.data_wait_seconds > 0
    half = first.slice(2, 5).to("cpu")
    assert len(half) == 3
    assert torch.equal(half.frames, first.frames[2:5])
    loader.close()
    assert threading.active_count() == before
    with pytest.raises(RuntimeError, match="closed"):
        next(loader)


def test_a_batch_that_is_kept_is_never_written_to(mixture: Mixture) -> None:
    sampler = Sampler(mixture, seed=2)
    with StreamLoader(mixture, sampler, global_batch_size=4, stop_step=12) as loader:
        kept = [batch.slice(1, 3) for batch in loader]  # slices keep the memory of the whole
    for step, batch in enumerate(kept):
        first = 4 * step
        wanted = load_batch(mixture, sampler.samples(first + 1, first + 3))
        assert torch.equal(batch.frames, wanted.frames)


def test_memory_of_batches_that_are_gone_is_used_again(mixture: Mixture) -> None:
    with StreamLoader(mixture, Sampler(mixture, 0), global_batch_size=4) as loader:
        addresses = {next(loader).frames.data_ptr() for _ in range(12)}
    assert len(addresses) <= loader.prefetch_steps + 2  # read ahead, delivered, being replaced


def test_a_dataset_with_the_models_own_channels_is_read_like_any_other(make_dataset: Any) -> None:
    """The short cut for fields in the model's order gives the same bits as the general way."""
    dataset, _ = make_dataset()
    norm = Normalization.constants(
        ["pressure", "density"],
        {"pressure": 0.3, "density": 1.7},
        {"pressure": 3.0, "density": 0.7},
    )
    entry = MixtureEntry(dataset, offset={"density": 0.1})
    swapped = Mixture([entry], ["pressure", "density"], pairs, norm)
    direct = Normalization(("density", "pressure"), norm.mean[::-1], norm.std[::-1])
    same = Mixture([entry], ["density", "pressure"], pairs, direct)
    a = load_batch(swapped, Sampler(swapped, 0).samples(0, 20))
    b = load_batch(same, Sampler(same, 0).samples(0, 20))
    assert torch.equal(a.frames.flip(2), b.frames)
    assert a.present.all()
    assert b.present.all()


def test_a_field_that_is_left_as_it_is_keeps_its_values() -> None:
    values = torch.tensor([[3.0, 7.0], [5.0, 2.0]])  # [sample, channel]
    kept = Normalization(("u", "label"), (1.0, 4.0), (2.0, 8.0)).unscaled("label")
    assert kept.apply(values, axis=1).tolist() == [[1.0, 7.0], [2.0, 2.0]]
    assert kept.invert(kept.apply(values, axis=1), axis=1).tolist() == values.tolist()
