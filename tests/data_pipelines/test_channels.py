"""Fields become channels by one rule, in training and in evaluation; numpy says what it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pelagos.data_pipelines.store import DatasetSpec, Field, create_dataset, open_dataset
from pelagos.data_pipelines.streaming.channels import Channels
from pelagos.data_pipelines.streaming.mixtures.mixture import Mixture
from pelagos.data_pipelines.streaming.mixtures.mixture_entry import MixtureEntry
from pelagos.data_pipelines.streaming.normalization import Normalization
from pelagos.evaluation import EvaluationData

FIELDS = ("density", "velocity-x", "pressure", "tracer")
MEAN, STD = (1.0, 0.3, 7.1, 2.0), (0.1, 3.0, 0.7, 5.0)
FRAMES, SIDE = 3, 4


@pytest.fixture
def values() -> np.ndarray[Any, Any]:
    """`[trajectory, frame, stored field, y, x]`."""
    draw = np.random.default_rng(7)
    return draw.normal(3.0, 2.0, (2, FRAMES, 2, SIDE, SIDE)).astype(np.float32)


@pytest.fixture
def uri(tmp_path: Path, values: np.ndarray[Any, Any]) -> str:
    """A dataset that stores pressure and velocity, knows its density, and has no tracer."""
    spec = DatasetSpec(
        name="flow",
        equation="none",
        fields=(Field("pressure", "pressure"), Field("velocity-x", "velocity-x")),
        num_trajectories=2,
        num_frames=FRAMES,
        grid_shape=(SIDE, SIDE),
        frame_interval=1.0,
        constant_fields={"density": 1.2},
        domain_extent=(1.0, 1.0),
        boundary_conditions={"x": "periodic", "y": "periodic"},
        splits={"train": (0, 2)},
    )
    writer = create_dataset(str(tmp_path / "flow.zarr"), spec)
    for shard in writer.missing_shards():
        writer.write_shard(shard, values[list(writer.shard_trajectories(shard))])
    writer.finalize()
    return str(tmp_path / "flow.zarr")


def expected(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """(value - offset - mean) / std of every channel, `[frame, channel, y, x]`, in float64."""
    pressure, velocity = values[:, 0].astype(np.float64), values[:, 1].astype(np.float64)
    density = np.full_like(pressure, 1.2)
    stacked = np.stack([density, velocity, pressure - 2.5, np.zeros_like(density)], axis=1)
    columns = (1, 4, 1, 1)
    found = (stacked - np.reshape(MEAN, columns)) / np.reshape(STD, columns)
    found[:, 3] = 0.25  # what an absent channel holds
    return found


def test_training_and_evaluation_see_the_same_numbers(
    uri: str, values: np.ndarray[Any, Any]
) -> None:
    dataset = open_dataset(uri)
    normalization = Normalization(FIELDS, MEAN, STD)
    offset = {"pressure": 2.5}
    mixture = Mixture(
        [MixtureEntry(dataset, "train", offset=offset)],
        FIELDS,
        lambda frames: ((0, 1, 2),),
        normalization,
        absent_value=0.25,
    )
    trained = np.empty((FRAMES, 4, SIDE, SIDE), np.float32)
    mixture.read(0, 1, (0, 1, 2), trained)
    np.testing.assert_allclose(trained, expected(values[1]), rtol=1e-5, atol=1e-6)
    channels = Channels.of(dataset, normalization, offset=offset, absent_value=0.25)
    data = EvaluationData.from_dataset(dataset, channels)
    evaluated = data.read(1, range(FRAMES))
    assert torch.equal(evaluated, torch.from_numpy(trained))
    assert data.present == (True, True, True, False)
    physical = data.to_physical(evaluated).numpy()
    np.testing.assert_allclose(physical[:, 2], values[1][:, 0], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(physical[:, 1], values[1][:, 1], rtol=1e-5, atol=1e-5)
    assert channels.absent == ("tracer",)
    assert mixture.present(0).tolist() == [True, True, True, False]


def test_a_mask_that_a_dataset_lacks_is_one_everywhere(uri: str) -> None:
    dataset = open_dataset(uri)
    normalization = Normalization(("pressure", "mask"), (0.0, 0.0), (1.0, 1.0))
    channels = Channels.of(dataset, normalization, masks={"mask"})
    assert channels.present == (True, True)
    read = channels.normalized(dataset.read_frames(0, (0, 1)))
    assert (read[:, 1] == 1).all()


def test_an_absent_channel_is_zero_after_normalisation(uri: str) -> None:
    dataset = open_dataset(uri)
    normalization = Normalization(("tracer", "pressure"), (5.0, 0.0), (2.0, 1.0))
    read = Channels.of(dataset, normalization).normalized(dataset.read_frames(0, (0, 1)))
    assert (read[:, 0] == 0).all()


def test_channels_as_stored_are_normalised_in_place(uri: str, values: Any) -> None:
    dataset = open_dataset(uri)
    stored = Normalization(("pressure", "velocity-x"), (1.0, 2.0), (3.0, 4.0))
    assert Channels.of(dataset, stored).are_as_stored
    swapped = Normalization(("velocity-x", "pressure"), (2.0, 1.0), (4.0, 3.0))
    other = Channels.of(dataset, swapped)
    assert not other.are_as_stored
    raw = values[0].copy()
    there = other.normalized(raw).flip(1)
    Channels.of(dataset, stored).write(raw, raw)
    np.testing.assert_array_equal(raw, there.numpy())
