"""Whole datasets: appended to, copied, split, merged; the old one holds until the new one is there."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray
import zarr

from pelagos.data_pipelines.management.appending import append
from pelagos.data_pipelines.management.copying import copy
from pelagos.data_pipelines.management.inspection import verify
from pelagos.data_pipelines.management.merging import merge
from pelagos.data_pipelines.management.revising import change_splits
from pelagos.data_pipelines.store import Dataset, DatasetError, Field, open_dataset
from pelagos.data_pipelines.store.object_store import LocalStore


def whole(dataset: Dataset) -> np.ndarray:
    return np.stack([dataset.window(i, 0, 5) for i in range(dataset.num_trajectories)])


@pytest.mark.parametrize(
    ("per_shard", "chunk", "dtype"),
    [(3, None, "float32"), (7, None, "float16"), (4, (5, 8), "bfloat16")],
)
def test_appended_trajectories_follow_and_the_rest_is_not_rewritten(
    make_dataset: Any, per_shard: int, chunk: tuple[int, int] | None, dtype: str
) -> None:
    layout = {"trajectories_per_shard": per_shard, "chunk_shape": chunk, "dtype": dtype}
    dataset, _ = make_dataset(seed=1, **layout)
    source, _ = make_dataset(seed=2, **layout)
    data = np.concatenate([whole(dataset), whole(source)])
    root = Path(dataset.uri)
    full = [root / f"data/c/{i}/0/0/0/0" for i in range(7 // per_shard)]
    before = {path: (path.stat().st_ino, path.read_bytes()) for path in full}
    manifest = append(dataset, source, extend_split="test")
    longer = open_dataset(dataset.uri)
    assert longer.fingerprint == manifest.fingerprint
    np.testing.assert_array_equal(whole(longer), data)
    np.testing.assert_array_equal(
        longer.parameters["viscosity"], [*range(7), *range(7)] / np.float64(8)
    )
    assert longer.split("test") == range(6, 14)
    assert {path: (path.stat().st_ino, path.read_bytes()) for path in full} == before
    assert verify(dataset.uri).is_whole
    # what was open before is the dataset as it was, the last shard and the parameters too
    again = pickle.loads(pickle.dumps(dataset))
    assert again.num_trajectories == 14
    np.testing.assert_array_equal(dataset.window(6, 0, 5), data[6])
    assert dataset.parameters["viscosity"].shape == (7,)
    # the statistics are those of the same data written at once
    at_once = longer.manifest.statistics["all"]["pressure"]
    values = data[:, :, 1].astype(np.float64)
    assert at_once["mean"] == pytest.approx(values.mean(), rel=1e-13)
    assert at_once["delta_std"] == pytest.approx(np.diff(values, axis=1).std(), rel=1e-12)
    plain = zarr.open_group(dataset.uri, mode="r")["data"]
    if dtype != "bfloat16":
        np.testing.assert_array_equal(plain[:], data)
    assert xarray.open_zarr(dataset.uri, group="parameters")["viscosity"].shape == (14,)
    # and again, from what the first append left
    append(longer, source)
    thrice = open_dataset(dataset.uri)
    np.testing.assert_array_equal(whole(thrice), np.concatenate([data, data[7:]]))
    assert thrice.spec.splits == longer.spec.splits
    assert verify(dataset.uri).is_whole


def test_an_append_killed_anywhere_leaves_the_old_dataset(
    make_dataset: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset, data = make_dataset(seed=1)
    source, more = make_dataset(seed=2)
    fingerprint = dataset.fingerprint
    original = LocalStore.write
    limit = num_writes = 0

    def write(self: LocalStore, key: str, content: bytes) -> None:
        nonlocal num_writes
        if num_writes == limit:
            raise KeyboardInterrupt
        num_writes += 1
        original(self, key, content)

    monkeypatch.setattr(LocalStore, "write", write)
    while limit < 100:
        limit, num_writes = limit + 1, 0
        try:
            append(open_dataset(dataset.uri), source)
        except KeyboardInterrupt:
            old = open_dataset(dataset.uri)
            if old.num_trajectories == 7:  # before the manifest
                assert old.fingerprint == fingerprint
                np.testing.assert_array_equal(whole(old), data)
                assert old.parameters["viscosity"].shape == (7,)
                continue
        break
    assert limit > 10
    np.testing.assert_array_equal(whole(open_dataset(dataset.uri)), np.concatenate([data, more]))
    assert verify(dataset.uri).is_whole


def test_merged_datasets_join_their_splits(make_dataset: Any, tmp_path: Path) -> None:
    first, a = make_dataset(seed=1)
    second, b = make_dataset(seed=2, splits={"train": (1, 3), "test": (3, 7)}, dtype="float16")
    target = tmp_path / "merged.zarr"
    merge([first, second], target)
    merged = open_dataset(target)
    wanted = [*a[0:5], *b[1:3], a[5], a[6], *b[3:7], b[0]]
    np.testing.assert_array_equal(whole(merged), np.array(wanted, np.float32))
    assert merged.spec.splits == {"train": (0, 7), "validation": (7, 8), "test": (8, 13)}
    rows = [*range(5), 1, 2, 5, 6, 3, 4, 5, 6, 0]
    np.testing.assert_array_equal(merged.parameters["viscosity"] * 8, rows)
    assert verify(str(target)).is_whole
    with pytest.raises(FileExistsError, match="already holds a finished dataset"):
        merge([first], target)
    third, _ = make_dataset(seed=3, frame_interval=0.1)
    with pytest.raises(ValueError, match="frame_interval is 0.1, expected 0.05"):
        merge([first, third], tmp_path / "other.zarr")


def test_what_does_not_fit_is_not_appended(make_dataset: Any) -> None:
    dataset, _ = make_dataset()
    content = {p: p.read_bytes() for p in Path(dataset.uri).rglob("*") if p.is_file()}
    other, _ = make_dataset(
        num_frames=4, fields=(Field("density", "density"), Field("tracer", "tracer"))
    )
    with pytest.raises(ValueError, match=r"num_frames is 4, expected 5.*\n.*fields"):
        append(dataset, other)
    same, _ = make_dataset(seed=3)
    with pytest.raises(ValueError, match="Only a split that ends with the last trajectory"):
        append(dataset, same, extend_split="train")
    assert {p: p.read_bytes() for p in Path(dataset.uri).rglob("*") if p.is_file()} == content


def test_splits_change_without_the_data(make_dataset: Any) -> None:
    dataset, data = make_dataset()
    shards = {p: p.stat().st_mtime_ns for p in (Path(dataset.uri) / "data/c").rglob("0")}
    change_splits(dataset, {"train": (2, 7), "test": (0, 2)})
    changed = open_dataset(dataset.uri)
    assert changed.split("train") == range(2, 7)
    assert changed.fingerprint != dataset.fingerprint
    mean = changed.statistics["density"]["mean"]
    assert mean == pytest.approx(data[2:, :, 0].astype(np.float64).mean(), rel=1e-13)
    assert {p: p.stat().st_mtime_ns for p in (Path(dataset.uri) / "data/c").rglob("0")} == shards
    assert verify(dataset.uri).is_whole
    shutil.rmtree(Path(dataset.uri) / ".pelagos/shards")  # the sums can be found again
    change_splits(changed, dataset.spec.splits)
    assert open_dataset(dataset.uri).fingerprint == dataset.fingerprint
    with pytest.raises(ValueError, match="share trajectory 1"):
        change_splits(changed, {"train": (0, 2), "test": (1, 3)})


def test_merging_holds_a_trajectory_and_no_shard(make_dataset: Any, tmp_path: Path) -> None:
    shape: dict[str, Any] = {
        "num_trajectories": 8, "num_frames": 16, "grid_shape": (64, 64), "splits": {"train": (0, 8)},
        "trajectories_per_shard": 16,
    }  # fmt: skip
    sources = [make_dataset(seed, **shape)[0] for seed in (0, 1)]
    shard_bytes = 16 * 16 * sources[0].spec.frame_bytes
    tracemalloc.start()
    try:
        merge(sources, tmp_path / "merged.zarr")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    merged = open_dataset(tmp_path / "merged.zarr")
    assert merged.spec.num_shards == 1  # of 16 trajectories
    # what waits to be encoded, at most a shard here; with a stacked shard it took 2.1 of them
    assert peak < 1.5 * shard_bytes


def test_a_copy_into_the_original_is_refused(
    make_dataset: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset, _ = make_dataset()
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.chdir(dataset.uri)
    for target in (f"{dataset.uri}/inner", f"file://{dataset.uri}/data/x.zarr", "inner", ".."):
        with pytest.raises(ValueError, match="one lies inside the other"):
            copy(dataset, target)
    assert sorted(tmp_path.rglob("*")) == before
    copy(dataset, f"{dataset.uri}-beside")  # a longer name is no folder inside


def test_a_copy_goes_on_where_it_stopped(make_dataset: Any, tmp_path: Path) -> None:
    dataset, data = make_dataset(trajectories_per_shard=2)
    target = str(tmp_path / "copy.zarr")
    assert copy(dataset, target) == 4
    copied = open_dataset(target)
    assert copied.fingerprint == dataset.fingerprint
    np.testing.assert_array_equal(whole(copied), data)
    assert verify(target).is_whole
    assert copy(dataset, target) == 0  # it is there
    assert not (Path(target) / ".pelagos/copy.json").exists()
    # as a killed copy leaves it: no manifest, one shard missing, one cut short
    (Path(target) / "manifest.json").unlink()
    (Path(target) / ".pelagos/copy.json").write_text(
        json.dumps({"fingerprint": dataset.fingerprint})
    )
    (Path(target) / "data/c/1/0/0/0/0").unlink()
    (Path(target) / "data/c/2/0/0/0/0").write_bytes(b"cut")
    assert copy(dataset, target) == 2
    assert verify(target).is_whole
    other, _ = make_dataset(seed=5)
    with pytest.raises(FileExistsError, match="another dataset"):
        copy(other, target)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="other than an unfinished copy"):
        copy(dataset, str(tmp_path / "mine"))


def test_damage_is_not_copied(make_dataset: Any, tmp_path: Path) -> None:
    dataset, _ = make_dataset()
    shard = Path(dataset.uri) / "data/c/1/0/0/0/0"
    content = bytearray(shard.read_bytes())
    content[5] ^= 1
    shard.write_bytes(content)
    with pytest.raises(DatasetError, match=r"data/c/1/0/0/0/0 is damaged"):
        copy(dataset, str(tmp_path / "copy.zarr"))
    with pytest.raises(DatasetError):
        open_dataset(str(tmp_path / "copy.zarr"))


def refuses_a_second(opened: Dataset, source: Dataset, options: Any = None) -> None:
    """Try to revise while an append is under way, and with what was opened before it."""
    messages = []

    def meanwhile(*_: int) -> None:
        for revise in (lambda d: append(d, source), lambda d: change_splits(d, {"train": (0, 7)})):
            with pytest.raises(DatasetError) as caught:
                revise(open_dataset(opened.uri, options))
            messages.append(str(caught.value))

    manifest = append(opened, source, progress=meanwhile)
    assert messages
    assert all(f"process {os.getpid()}) since 20" in message for message in messages)
    with pytest.raises(DatasetError, match="was revised since it was opened"):
        append(opened, source)
    again = open_dataset(opened.uri, options)
    assert again.fingerprint == manifest.fingerprint
    np.testing.assert_array_equal(whole(again), np.concatenate([whole(opened), whole(source)]))
    assert change_splits(again, {"train": (0, 7)}).spec.splits == {"train": (0, 7)}  # it is free


def test_of_two_revisions_at_once_one_is_refused(make_dataset: Any) -> None:
    dataset, _ = make_dataset(seed=1)
    source, _ = make_dataset(seed=2)
    refuses_a_second(dataset, source)


@pytest.mark.s3
def test_of_two_revisions_of_an_object_store_one_is_refused(
    make_dataset: Any, s3_server: Any
) -> None:
    dataset, _ = make_dataset(seed=1)
    uri, options = s3_server.new_uri("/copy.zarr"), s3_server.storage_options
    copy(dataset, uri, options)
    refuses_a_second(open_dataset(uri, options), dataset, options)


@pytest.mark.s3
def test_to_an_object_store_and_back(make_dataset: Any, s3_server: Any, tmp_path: Path) -> None:
    dataset, data = make_dataset()
    uri, options = s3_server.new_uri("/copy.zarr"), s3_server.storage_options
    assert copy(dataset, uri, options) == 3
    remote = open_dataset(uri, options)
    assert remote.fingerprint == dataset.fingerprint
    append(remote, dataset, extend_split="test")
    longer = open_dataset(uri, options)
    np.testing.assert_array_equal(whole(longer), np.concatenate([data, data]))
    np.testing.assert_array_equal(remote.window(6, 0, 5), data[6])  # open since before
    assert copy(longer, str(tmp_path / "back.zarr")) == 5
    assert verify(str(tmp_path / "back.zarr")).is_whole
