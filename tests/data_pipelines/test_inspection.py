"""`describe` says what a dataset is; `verify` finds all damage in one go."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pelagos.data_pipelines.management import inspection
from pelagos.data_pipelines.management.inspection import describe, verify
from pelagos.data_pipelines.store import DatasetError
from pelagos.data_pipelines.store.object_store import LocalStore


def test_describe_says_sizes_and_layout(make_dataset: Any) -> None:
    dataset, data = make_dataset()
    found = describe(dataset.uri)
    assert found.shape == (7, 5, 2, 12, 16)
    assert found.raw_bytes == data.nbytes
    shards = list((Path(dataset.uri) / "data/c").rglob("0"))
    assert found.stored_bytes == sum(p.stat().st_size for p in shards if p.is_file())
    assert found.compression_ratio == found.raw_bytes / found.stored_bytes
    assert (found.num_shards, found.shard_shape[0]) == (3, 3)
    assert found.inner_chunk_bytes == 2 * 12 * 16 * 4
    assert found.parameter_ranges == {"viscosity": (0.0, 6 / 8)}
    assert set(found.statistics) == {"all", "train", "validation", "test"}
    assert json.loads(json.dumps(found.to_json()))["spec"]["name"] == "small"


@pytest.mark.parametrize("compression", ["none", "lz4"])
def test_a_whole_dataset_verifies(make_dataset: Any, compression: str) -> None:
    dataset, _ = make_dataset(compression=compression)
    seen: list[tuple[int, int]] = []
    report = verify(dataset.uri, progress=lambda done, total: seen.append((done, total)))
    assert report.is_whole, report.damage
    assert seen == [(1, 3), (2, 3), (3, 3)]
    assert (report.num_shards, report.num_chunks) == (3, 35)
    assert report.num_bytes == describe(dataset.uri).stored_bytes


def test_all_damage_is_listed_with_its_place(make_dataset: Any) -> None:
    dataset, _ = make_dataset()
    root = Path(dataset.uri)
    first = root / "data/c/0/0/0/0/0"
    content = bytearray(first.read_bytes())
    index = dataset.shard_index(0)
    for row, frame in ((1, 3), (2, 0)):
        content[int(index[row, frame, 0]) + 5] ^= 4
    first.write_bytes(content)
    second = root / "data/c/1/0/0/0/0"
    second.write_bytes(second.read_bytes()[:-1])
    (root / "data/c/2/0/0/0/0").unlink()
    metadata = root / "data/zarr.json"
    metadata.write_text(metadata.read_text().replace('"NaN"', "0.0"))
    report = verify(dataset.uri)
    places = [(d.key, d.trajectory, d.frame) for d in report.damage]
    assert ("data/c/0/0/0/0/0", 1, 3) in places
    assert ("data/c/0/0/0/0/0", 2, 0) in places
    assert ("data/c/1/0/0/0/0", None, None) in places
    assert ("data/c/2/0/0/0/0", None, None) in places
    assert ("data/zarr.json", None, None) in places
    assert "trajectory 1, frame 3" in str(report.damage[0])
    assert not report.is_whole
    assert json.loads(json.dumps(report.to_json()))["is_whole"] is False


def test_wrong_statistics_and_parameters_are_found(
    make_dataset: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pelagos.data_pipelines.store import shard_stream

    def shifted(frames: np.ndarray, *others: Any) -> Any:
        return real(frames + np.float32(1e-3), *others)

    real = shard_stream.frame_moments
    monkeypatch.setattr(shard_stream, "frame_moments", shifted)  # a writer with a bug
    dataset, _ = make_dataset()
    monkeypatch.undo()
    report = verify(dataset.uri)
    assert any("density mean is" in d.problem for d in report.damage)
    healthy, _ = make_dataset()
    path = Path(healthy.uri) / "parameters/viscosity/c/0"
    path.write_bytes(path.read_bytes()[:-1] + b"\0")
    assert [d.key for d in verify(healthy.uri).damage] == ["parameters/viscosity/c/0"]


def test_what_only_other_readers_go_by_is_checked_too(make_dataset: Any) -> None:
    dataset, _ = make_dataset()
    root = Path(dataset.uri)
    time = root / "time/c/0"
    time.write_bytes(time.read_bytes()[:-1] + b"\0")
    (root / "x/c/0").unlink()
    other, _ = make_dataset(domain_extent=(2.0, 2.0))
    (root / "y/c/0").write_bytes((Path(other.uri) / "y/c/0").read_bytes())
    group = json.loads((root / "zarr.json").read_text())
    group["attributes"]["frame_interval"] = 0.5
    (root / "zarr.json").write_text(json.dumps(group))
    (root / "data/zarr.json").write_text("[]")
    first = root / "data/c/0/0/0/0/0"
    first.write_bytes(first.read_bytes()[:-1])  # does not hide the rest
    path = root / "parameters/viscosity/c/0"
    path.write_bytes(path.read_bytes()[8:])
    found = {d.key: d.problem for d in verify(dataset.uri).damage}
    keys = ["time/c/0", "x/c/0", "y/c/0", "zarr.json", "data/zarr.json", "parameters/viscosity/c/0"]
    assert set(found) == {*keys, "data/c/0/0/0/0/0"}
    assert "attributes frame_interval" in found["zarr.json"]


def test_shards_are_verified_at_once(make_dataset: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset, _ = make_dataset()
    meeting = threading.Barrier(2)
    original = LocalStore.read

    def read(self: LocalStore, key: str) -> bytes:
        if key in ("data/c/0/0/0/0/0", "data/c/1/0/0/0/0"):
            meeting.wait(30)  # breaks unless another thread reads the other one
        return original(self, key)

    monkeypatch.setattr(LocalStore, "read", read)
    monkeypatch.setattr(inspection, "_THREADS", 2)
    assert verify(dataset.uri).is_whole


def test_a_shard_that_is_being_appended_to_is_whole(make_dataset: Any) -> None:
    dataset, _ = make_dataset()
    last = Path(dataset.uri) / "data/c/2/0/0/0/0"
    last.write_bytes(last.read_bytes() + b"more")
    assert verify(dataset.uri).is_whole


def test_verify_needs_a_finished_dataset(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="no dataset at"):
        verify(str(tmp_path / "nothing.zarr"))
