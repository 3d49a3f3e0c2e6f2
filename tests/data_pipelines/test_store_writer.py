"""What a writer refuses, whose dataset it is, and what it says is still to be written."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pelagos.data_pipelines.store import (
    DatasetError,
    DatasetSpec,
    Field,
    create_dataset,
    open_dataset,
    resume_dataset,
)
from pelagos.data_pipelines.store.shard_stream import InexactLabelError, UnderflowError


def spec_of(**changes: Any) -> DatasetSpec:
    values: dict[str, Any] = {
        "name": "writer",
        "equation": "none",
        "fields": (Field("u", "velocity-x", "m/s"),),
        "num_trajectories": 5,
        "num_frames": 2,
        "grid_shape": (3, 4),
        "frame_interval": 0.5,
        "domain_extent": (1.0, 2.0),
        "boundary_conditions": {"x": "periodic", "y": "periodic"},
        "splits": {"train": (0, 5)},
        "trajectories_per_shard": 2,
        "parameter_names": ("viscosity", "seed"),
    }
    return DatasetSpec(**{**values, **changes})


def block(writer: Any, shard: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    rows = writer.shard_trajectories(shard)
    data = np.full((len(rows), *writer.spec.shape[1:]), float(shard), np.float32)
    names = writer.spec.parameter_names
    return data, {name: np.arange(rows.start, rows.stop) + 0.5 for name in names}


def test_shards_are_written_in_any_order_and_those_missing_are_listed(tmp_path: Path) -> None:
    uri = str(tmp_path / "d.zarr")
    writer = create_dataset(uri, spec_of())
    assert (writer.num_shards, writer.missing_shards()) == (3, [0, 1, 2])
    assert [writer.shard_trajectories(n) for n in range(3)] == [range(2), range(2, 4), range(4, 5)]
    writer.write_shard(1, *block(writer, 1))
    again = pickle.loads(pickle.dumps(writer))
    again.write_shard(2, *block(writer, 2))
    assert writer.missing_shards() == [0]
    with pytest.raises(
        DatasetError, match=r"cannot finish .*: 1 of 3 shards are not written \(0\)"
    ):
        writer.finalize()
    resumed = resume_dataset(uri, spec_of())
    resumed.write_shard(0, *block(writer, 0))
    resumed.finalize()
    dataset = open_dataset(uri)
    assert {k: v.tolist() for k, v in dataset.parameters.items()} == {
        name: [0.5, 1.5, 2.5, 3.5, 4.5] for name in ("viscosity", "seed")
    }
    assert dataset.read_frames(4, [1]).tolist() == np.full((1, 1, 3, 4), 2.0).tolist()
    sidecar = json.loads((tmp_path / "d.zarr/.pelagos/shards/1.json").read_text())
    assert (sidecar["shard"], sidecar["trajectories"]) == (1, [2, 4])


def test_of_many_missing_shards_ten_are_named(tmp_path: Path) -> None:
    for count in (10, 11):
        changes = {"num_trajectories": count, "splits": {"train": (0, count)}}
        writer = create_dataset(
            str(tmp_path / f"{count}.zarr"), spec_of(trajectories_per_shard=1, **changes)
        )
        shown = ", ".join(map(str, range(10))) + (", …" if count > 10 else "")
        with pytest.raises(DatasetError, match=rf"{count} of {count} shards .* \({shown}\)"):
            writer.finalize()


@pytest.mark.parametrize("shape", [(2, 1, 3, 4), (1, 2, 1, 3, 4), (2, 2, 1, 4, 3), (3, 2, 1, 3, 4)])
def test_data_of_another_shape_is_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    writer = create_dataset(str(tmp_path / "d.zarr"), spec_of())
    _, parameters = block(writer, 1)
    with pytest.raises(ValueError, match="data for trajectories 2..3 has shape ") as caught:
        writer.write_shard(1, np.zeros(shape, np.float32), parameters)
    told = f"shape {shape}, expected (2, 2, 1, 3, 4) = (trajectory, time, channel, y, x)"
    assert told in str(caught.value)
    assert writer.missing_shards() == [0, 1, 2]


@pytest.mark.parametrize(
    ("parameters", "told"),
    [
        (None, r"got the parameters \[\], but the spec has \['seed', 'viscosity'\]"),
        ({"seed": [1.0, 2.0]}, r"got the parameters \['seed'\]"),
        ({"viscosity": [1.0, 2.0], "seed": [1.0]}, "'seed' must be 2 finite numbers"),
        ({"viscosity": [1.0, 2.0], "seed": [[1.0, 2.0]]}, "'seed' must be 2 finite numbers"),
        ({"viscosity": [1.0, np.nan], "seed": [1.0, 2.0]}, "'viscosity' must be 2 finite"),
        ({"viscosity": [1.0, np.inf], "seed": [1.0, 2.0]}, "'viscosity' must be 2 finite"),
        (
            {"viscosity": [1, 2], "seed": [1, 2], "more": [1, 2]},
            r"got the parameters \['more', 'seed', ",
        ),
    ],
)
def test_parameters_are_a_number_for_each_trajectory(
    tmp_path: Path, parameters: Any, told: str
) -> None:
    writer = create_dataset(str(tmp_path / "d.zarr"), spec_of())
    given = parameters and {name: np.array(values) for name, values in parameters.items()}
    with pytest.raises(ValueError, match=told):
        writer.write_shard(0, block(writer, 0)[0], given)
    assert writer.missing_shards() == [0, 1, 2]


@pytest.mark.parametrize("place", ["disk", "objects"])
@pytest.mark.parametrize("happened", ["deleted", "overwritten", "finished"])
def test_a_writer_stops_where_the_dataset_is_no_longer_its_own(
    tmp_path: Path, place: str, happened: str
) -> None:
    uri = str(tmp_path / "d.zarr") if place == "disk" else f"memory://{tmp_path.name}/d.zarr"
    writer = create_dataset(uri, spec_of())
    if happened == "deleted":
        writer.abandon()
    elif happened == "overwritten":
        create_dataset(uri, spec_of(), overwrite=True)
    else:
        for shard in range(3):
            writer.write_shard(shard, *block(writer, shard))
        writer.finalize()
    for act in (lambda: writer.write_shard(0, *block(writer, 0)), writer.finalize):
        with pytest.raises(
            DatasetError,
            match="another process finished, overwrote or deleted dataset .*so this one stops",
        ):
            act()
    writer.abandon()  # takes nothing of another's
    if happened == "overwritten":
        assert resume_dataset(uri, spec_of()).missing_shards() == [0, 1, 2]
    elif happened == "finished":
        assert open_dataset(uri).num_trajectories == 5


@pytest.mark.parametrize("place", ["disk", "objects"])
def test_an_attempt_without_a_shard_is_abandoned_whole(tmp_path: Path, place: str) -> None:
    uri = str(tmp_path / "d.zarr") if place == "disk" else f"memory://{tmp_path.name}/e.zarr"
    create_dataset(uri, spec_of()).abandon()
    writer = create_dataset(uri, spec_of(num_frames=3))
    writer.write_shard(0, *block(writer, 0))
    writer.abandon()
    assert resume_dataset(uri, spec_of(num_frames=3)).missing_shards() == [1, 2]
    with pytest.raises(
        ValueError, match="begun with another spec:\n  name: 'other' here"
    ) as caught:
        resume_dataset(uri, spec_of(num_frames=4, name="other"))
    assert str(caught.value).count("\n") == 3  # each difference in its line


def test_a_shard_is_the_one_that_its_record_describes(tmp_path: Path) -> None:
    root = tmp_path / "d.zarr"
    writer = create_dataset(str(root), spec_of())
    for shard in range(3):
        writer.write_shard(shard, *block(writer, shard))
    first = root / "data/c/0/0/0/0/0"
    whole = first.read_bytes()
    first.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(DatasetError, match=r"is damaged \(crc32c .*: write shard 0 again"):
        writer.finalize()
    first.write_bytes(whole)
    record = root / ".pelagos/shards/0.json"
    told = json.loads(record.read_text())
    told["record"]["index_crc32c"] ^= 1
    record.write_text(json.dumps(told))
    with pytest.raises(DatasetError, match=r"does not match its description .*0\.json: write sh"):
        writer.finalize()
    writer.write_shard(0, *block(writer, 0))
    writer.finalize()
    assert open_dataset(str(root)).num_trajectories == 5


def test_a_field_that_a_half_cannot_hold_is_named_with_its_trajectories(tmp_path: Path) -> None:
    """The least float16 is 2^-24 = 6.0e-8; half of it and less becomes 0."""
    spec = spec_of(dtype="float16", parameter_names=(), trajectories_per_shard=3)
    writer = create_dataset(str(tmp_path / "d.zarr"), spec)
    data = np.zeros((2, 2, 1, 3, 4), np.float32)
    data[1, 1, 0, 2, 3] = 2e-8
    told = r"trajectories 3 to 4, field 'u': every value becomes 0 in float16, and the largest is 2e-08"
    with pytest.raises(UnderflowError, match=told) as caught:
        writer.write_shard(1, data)
    assert (caught.value.trajectory, caught.value.frame, caught.value.channel) == (3, 0, 0)
    data[0, 0, 0, 0, 0] = -1e-7  # one that is held is enough
    writer.write_shard(1, data)
    writer.write_shard(0, np.zeros((3, 2, 1, 3, 4), np.float32))  # so are zeros


def test_a_label_that_is_rounded_is_named_with_its_place(tmp_path: Path) -> None:
    """Float16 holds whole numbers to 2048: 2049 lies between two of its numbers."""
    fields = (Field("u", "velocity-x", "m/s"), Field("organ", "label"))
    spec = spec_of(dtype="float16", parameter_names=(), fields=fields, trajectories_per_shard=3)
    writer = create_dataset(str(tmp_path / "d.zarr"), spec)
    data = np.ones((2, 2, 2, 3, 4), np.float32)
    data[1, 0, 1, 2, 3] = 2049.0
    told = (
        r"trajectory 4, frame 0, field 'organ', grid index \(2, 3\): label 2049 becomes 2048 in "
        r"float16, which holds whole numbers up to 2048 exactly"
    )
    with pytest.raises(InexactLabelError, match=told) as caught:
        writer.write_shard(1, data)
    assert (caught.value.trajectory, caught.value.frame, caught.value.channel) == (4, 0, 1)
    data[1, 0, 1, 2, 3] = 2050.0
    data[0, 0, 0] = 2049.0  # no label: is rounded
    writer.write_shard(1, data)
