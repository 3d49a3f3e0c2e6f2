"""Random crops: right numbers, at places that the sample alone decides, reading little."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from pelagos.data_pipelines.streaming.crops import crop_region
from pelagos.data_pipelines.streaming.loader import StreamLoader, load_batch
from pelagos.data_pipelines.streaming.mixtures.mixture import Mixture
from pelagos.data_pipelines.streaming.mixtures.mixture_entry import MixtureEntry
from pelagos.data_pipelines.streaming.normalization import Normalization
from pelagos.data_pipelines.streaming.sampler import Sampler

FIELDS = ("density", "pressure")


def pairs(num_frames: int) -> tuple[tuple[int, ...], ...]:
    return tuple((i, i + 1) for i in range(num_frames - 1))


def mixture_of(dataset: Any, crop: tuple[int, ...] | None) -> Mixture:
    entries = [MixtureEntry(dataset, crop=crop)]
    return Mixture(entries, FIELDS, pairs, Normalization.identity(FIELDS))


@pytest.mark.parametrize("chunk", [None, (5, 6)])
def test_a_crop_is_that_part_of_the_sample(make_dataset: Any, chunk: tuple[int, int]) -> None:
    dataset, _ = make_dataset(chunk_shape=chunk)
    whole, cropped = mixture_of(dataset, None), mixture_of(dataset, (4, 7))
    assert cropped.sample_shape == (2, 2, 4, 7)
    samples = Sampler(cropped, 3).samples(0, 60)
    full = load_batch(whole, Sampler(whole, 3).samples(0, 60)).frames.numpy()
    found = load_batch(cropped, samples).frames.numpy()
    for row, sample in enumerate(samples):
        assert sample.region is not None
        (top, bottom), (left, right) = sample.region
        np.testing.assert_array_equal(found[row], full[row, ..., top:bottom, left:right])
    assert len({sample.region for sample in samples}) > 30


def test_places_depend_on_the_sample_alone_and_are_spread_evenly() -> None:
    starts = np.array(
        [[a for a, _ in crop_region(seed, (9, 8, 7), (5, 5, 5))] for seed in range(6000)]
    )
    for axis, places in enumerate((5, 4, 3)):
        counts = np.bincount(starts[:, axis], minlength=places)
        assert len(counts) == places
        # binomial: 5 standard deviations around 6000 / places
        assert np.abs(counts - 6000 / places).max() < 5 * np.sqrt(6000 / places)
    assert abs(np.corrcoef(starts[:, 0], starts[:, 1])[0, 1]) < 5 / np.sqrt(6000)
    assert len({crop_region(seed, (9, 8, 7), (5, 5, 5)) for seed in range(6000)}) == 5 * 4 * 3


def test_world_size_and_restarts_do_not_move_crops(make_dataset: Any) -> None:
    dataset, _ = make_dataset(chunk_shape=(4, 8))
    mixture = mixture_of(dataset, (4, 7))

    def stream(world_size: int, start: int, stop: int) -> list[bytes]:
        loaders = [
            StreamLoader(
                mixture,
                Sampler(mixture, 3),
                global_batch_size=6,
                rank=rank,
                world_size=world_size,
                start_step=start,
                stop_step=stop,
            )
            for rank in range(world_size)
        ]
        return [
            row.numpy().tobytes()
            for step in zip(*loaders, strict=True)
            for batch in step
            for row in batch.frames
        ]

    whole = stream(1, 0, 5)
    assert stream(2, 0, 5) == whole
    assert stream(1, 0, 2) + stream(3, 2, 5) == whole


def test_only_touched_chunks_are_read(make_dataset: Any) -> None:
    shape = {"grid_shape": (64, 64, 64), "domain_extent": (1.0, 1.0, 1.0), "num_trajectories": 2}
    dataset, _ = make_dataset(
        **shape,
        boundary_conditions={},
        splits={"train": (0, 2)},
        trajectories_per_shard=2,
        num_frames=2,
        chunk_shape=(16, 16, 16),
        compression="none",
    )
    dataset.store.coalesce_gap_bytes = 0
    dataset.shard_index(0)
    mixture = mixture_of(dataset, (16, 16, 16))
    samples = Sampler(mixture, 0).samples(0, 10)
    before = dataset.bytes_read
    load_batch(mixture, samples)
    chunk_bytes = 2 * 16**3 * 4 + 4
    touched = 0
    for sample in samples:
        assert sample.region is not None
        touched += 2 * int(np.prod([1 if start % 16 == 0 else 2 for start, _ in sample.region]))
    assert dataset.bytes_read - before == touched * chunk_bytes
    assert touched * chunk_bytes <= 10 * 2 * dataset.spec.frame_bytes / 8 * 1.01  # 8 of 64 at most


def test_a_crop_is_part_of_what_a_checkpoint_resumes(make_dataset: Any) -> None:
    dataset, _ = make_dataset()
    state = json.loads(json.dumps(Sampler(mixture_of(dataset, (4, 7)), 3).state_dict()))
    Sampler(mixture_of(dataset, (4, 7)), 3).check_state(state)
    with pytest.raises(ValueError, match=r"crop was \[4, 7\], now None"):
        Sampler(mixture_of(dataset, None), 3).check_state(state)
    for crop in ((4,), (13, 4), (0, 4)):
        with pytest.raises(ValueError, match="does not fit its grid"):
            mixture_of(dataset, crop)
