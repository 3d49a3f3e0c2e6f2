"""Datasets on a local disk: what is written is what is read, by every reader of Zarr."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray
import zarr

from pelagos.data_pipelines.store import (
    Dataset,
    DatasetError,
    DatasetSpec,
    Field,
    create_dataset,
    open_dataset,
    resume_dataset,
)


def write_all(writer: Any, data: np.ndarray) -> None:
    for shard in writer.missing_shards():
        rows = writer.shard_trajectories(shard)
        values = np.arange(rows.start, rows.stop) / 8
        writer.write_shard(shard, data[rows.start : rows.stop], {"viscosity": values})
    writer.finalize()


@pytest.mark.parametrize("compression", ["none", "lz4", "zstd"])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_every_reader_gives_the_same_bits(make_dataset: Any, compression: str, dtype: str) -> None:
    dataset, data = make_dataset(compression=compression, dtype=dtype)
    for trajectory in range(7):
        np.testing.assert_array_equal(dataset.window(trajectory, 0, 5), data[trajectory])
        np.testing.assert_array_equal(dataset.window(trajectory, 2, 2), data[trajectory, 2:4])
    plain = zarr.open_group(dataset.uri, mode="r")
    np.testing.assert_array_equal(plain["data"][:], data)
    np.testing.assert_array_equal(plain["data"][6, 1:3, 1], data[6, 1:3, 1])
    np.testing.assert_array_equal(dataset.data[3], data[3])
    labelled = xarray.open_zarr(dataset.uri)
    np.testing.assert_array_equal(labelled["data"].values, data)
    assert labelled["data"].dims == ("trajectory", "time", "channel", "y", "x")
    np.testing.assert_allclose(labelled["x"].values, (np.arange(16) + 0.5) * 2 / 16, rtol=1e-15)
    np.testing.assert_allclose(labelled["time"].values, np.arange(5) * 0.05, rtol=1e-15)
    parameters = xarray.open_zarr(dataset.uri, group="parameters")
    np.testing.assert_array_equal(parameters["viscosity"].values, np.arange(7) / 8)
    assert json.loads(labelled.attrs["fields"])[1] == {
        "name": "pressure",
        "kind": "pressure",
        "unit": "Pa",
    }


@pytest.mark.parametrize(("grid", "extent"), [((9,), (1.0,)), ((3, 4, 5), (1.0, 1.0, 1.0))])
def test_one_and_three_dimensions(
    make_dataset: Any, grid: tuple[int, ...], extent: tuple[float, ...]
) -> None:
    dataset, data = make_dataset(
        grid_shape=grid, domain_extent=extent, boundary_conditions={"x": "periodic"}
    )
    np.testing.assert_array_equal(dataset.window(5, 1, 3), data[5, 1:4])
    np.testing.assert_array_equal(zarr.open_group(dataset.uri, mode="r")["data"][:], data)


def test_frames_in_any_order_into_a_given_buffer(make_dataset: Any) -> None:
    dataset, data = make_dataset()
    out = np.empty((4, 2, 12, 16), np.float32)
    assert dataset.read_frames(4, [4, 0, 0, 3], out) is out
    np.testing.assert_array_equal(out, data[4, [4, 0, 0, 3]])
    with pytest.raises(ValueError, match="C-contiguous float32"):
        dataset.read_frames(4, [0], out)
    for trajectory, frames in ((7, [0]), (-1, [0]), (0, [5]), (0, [-1]), (0, [])):
        with pytest.raises(IndexError):
            dataset.read_frames(trajectory, frames)


def test_a_window_is_one_range_and_distant_frames_are_two(make_dataset: Any) -> None:
    dataset, _ = make_dataset(grid_shape=(128, 128), num_trajectories=2, compression="none",
                              splits={}, trajectories_per_shard=2)  # fmt: skip
    frame_bytes = 2 * 128 * 128 * 4 + 4
    (window,) = dataset.plan(0, 1, [1, 2, 3])
    assert window.byte_range == ((5 + 1) * frame_bytes, 3 * frame_bytes)
    near, far = dataset.plan(0, 0, [4, 0])  # three frames between: more than the local gap
    assert near.byte_range == (0, frame_bytes)
    assert far.byte_range == (4 * frame_bytes, frame_bytes)


def test_many_threads_read_one_dataset(make_dataset: Any) -> None:
    dataset, data = make_dataset()
    jobs = [(t, f) for t in range(7) for f in range(4)] * 5
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda job: dataset.window(job[0], job[1], 2), jobs))
    for (trajectory, frame), frames in zip(jobs, found, strict=True):
        np.testing.assert_array_equal(frames, data[trajectory, frame : frame + 2])


def test_statistics_are_those_of_numpy_and_independent_of_shards(make_dataset: Any) -> None:
    dataset, data = make_dataset()
    wide = data[:5].astype(np.float64)  # the split "train"
    for channel, name in enumerate(("density", "pressure")):
        found = dataset.statistics[name]
        values, deltas = wide[:, :, channel], np.diff(wide[:, :, channel], axis=1)
        for prefix, array in (("", values), ("delta_", deltas)):
            # n ~ 5e3 float64 terms summed pairwise: relative error below log2(n) * 2^-53 ~ 2e-15
            # of the sum of magnitudes, which here is below 1e3 times the smallest result.
            np.testing.assert_allclose(found[prefix + "mean"], array.mean(), rtol=1e-11)
            np.testing.assert_allclose(found[prefix + "std"], array.std(), rtol=1e-12)
            np.testing.assert_allclose(
                found[prefix + "rms"], np.sqrt(np.square(array).mean()), rtol=1e-12
            )
            assert found[prefix + "min"] == array.min()
            assert found[prefix + "max"] == array.max()
            assert found[prefix + "count"] == array.size
    for per_shard in (1, 2, 7):
        other, _ = make_dataset(trajectories_per_shard=per_shard)
        assert other.manifest.statistics == dataset.manifest.statistics  # to the last bit


def test_fingerprint_is_of_the_content(make_dataset: Any) -> None:
    first, _ = make_dataset(seed=1, compression="none")
    same, _ = make_dataset(seed=1, compression="none")
    other, _ = make_dataset(seed=2, compression="none")
    assert first.fingerprint == same.fingerprint
    assert first.fingerprint != other.fingerprint


def test_spec_survives_json_and_lists_every_mistake(make_dataset: Any) -> None:
    dataset, _ = make_dataset(generator={"solver": {"order": 3}}, constant_fields={"tracer": 0.0})
    text = json.dumps(dataset.spec.to_json())
    assert DatasetSpec.from_json(json.loads(text)) == dataset.spec
    assert "given_fields" not in json.loads(text)  # as in datasets from before there were any
    name, *others = dataset.spec.field_names
    marked = dataclasses.replace(dataset.spec, given_fields=(name,))
    assert DatasetSpec.from_json(json.loads(json.dumps(marked.to_json()))) == marked
    assert marked.differences(dataset.spec) == []
    for wrong in ((name, *others), ("stranger",)):
        with pytest.raises(ValueError, match="given_fields must be some of the stored"):
            dataclasses.replace(dataset.spec, given_fields=wrong)
    with pytest.raises(ValueError, match="dataset spec 'bad'") as caught:
        DatasetSpec(
            name="bad", equation="", fields=(Field("a", "a"), Field("a", "a")),
            num_trajectories=4, num_frames=0, grid_shape=(4, 4), frame_interval=0.0,
            domain_extent=(0.0,), boundary_conditions={"w": "wall"},
            splits={"train": (0, 3), "test": (2, 9), "all": (0, 1)},
            constant_fields={"a": 1.0}, parameter_names=("nu", "nu"),
        )  # fmt: skip
    assert len(str(caught.value).splitlines()) >= 12
    assert "domain_extent must be positive" in str(caught.value)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e39])
def test_values_that_are_not_finite_are_refused_with_their_place(
    tmp_path: Path, make_dataset: Any, bad: float
) -> None:
    dataset, data = make_dataset()
    writer = create_dataset(str(tmp_path / "new.zarr"), dataset.spec)
    wide = data[3:6].astype(np.float64)
    wide[1, 2, 1, 5, 7] = bad  # 1e39 is finite, but not as float32
    with pytest.raises(ValueError, match=r"trajectory 4, frame 2, field 'pressure'.*\(5, 7\)"):
        writer.write_shard(1, wide, {"viscosity": np.zeros(3)})
    assert writer.missing_shards() == [0, 1, 2]
    with pytest.raises(ValueError, match=r"expected \(3, 5, 2, 12, 16\)"):
        writer.write_shard(1, data[:2], {"viscosity": np.zeros(2)})
    with pytest.raises(ValueError, match="got the parameters"):
        writer.write_shard(1, data[3:6], {})


def test_an_unfinished_dataset_refuses_to_open_and_can_be_finished(
    tmp_path: Path, make_dataset: Any
) -> None:
    dataset, data = make_dataset()
    uri = tmp_path / "new.zarr"
    writer = create_dataset(uri, dataset.spec)
    writer.write_shard(1, data[3:6], {"viscosity": np.arange(3, 6) / 8})
    with pytest.raises(DatasetError, match="1 of 3 shards are written"):
        open_dataset(uri)
    with pytest.raises(DatasetError, match=r"2 of 3 shards are not written \(0, 2\)"):
        writer.finalize()
    with pytest.raises(FileExistsError, match="unfinished dataset"):
        create_dataset(uri, dataset.spec)
    with pytest.raises(ValueError, match=r"name: 'renamed' here, 'small' there"):
        resume_dataset(uri, DatasetSpec.from_json({**dataset.spec.to_json(), "name": "renamed"}))
    resumed = pickle.loads(pickle.dumps(resume_dataset(uri, dataset.spec)))
    assert resumed.missing_shards() == [0, 2]
    write_all(resumed, data)
    assert open_dataset(uri).fingerprint == dataset.fingerprint


def test_what_exists_is_kept_until_its_replacement_is_complete(
    tmp_path: Path, make_dataset: Any
) -> None:
    old, old_data = make_dataset(seed=1)
    new_data = np.random.default_rng(5).normal(size=old.spec.shape).astype(np.float32)
    with pytest.raises(FileExistsError, match="finished dataset"):
        create_dataset(old.uri, old.spec)
    create_dataset(old.uri, old.spec, overwrite=True).write_shard(
        0, new_data[:3], {"viscosity": np.arange(3) / 8}
    )
    np.testing.assert_array_equal(open_dataset(old.uri).window(0, 0, 5), old_data[0])
    write_all(resume_dataset(old.uri, old.spec), new_data)
    np.testing.assert_array_equal(open_dataset(old.uri).data[:], new_data)
    assert [p.name for p in Path(old.uri).parent.iterdir()] == [Path(old.uri).name]
    foreign = tmp_path / "photos"
    foreign.mkdir()
    (foreign / "manifest.json").write_text("{}")
    with pytest.raises(FileExistsError, match="something other than a Pelagos dataset"):
        create_dataset(str(foreign), old.spec, overwrite=True)
    assert (foreign / "manifest.json").exists()


def test_a_replacement_interrupted_between_renames_is_completed(make_dataset: Any) -> None:
    old, _ = make_dataset(seed=1)
    new_data = np.random.default_rng(5).normal(size=old.spec.shape).astype(np.float32)
    place = Path(old.uri)
    writer = create_dataset(old.uri, old.spec, overwrite=True)
    write_all(writer, new_data)
    # As if the power had failed after the first rename.
    place.rename(writer.root_uri)
    place.with_name(place.name + ".pelagos-old").mkdir()
    with pytest.raises(DatasetError, match=r"replacement of .* was interrupted"):
        open_dataset(old.uri)
    resume_dataset(old.uri, old.spec).finalize()
    np.testing.assert_array_equal(open_dataset(old.uri).data[:], new_data)
    assert [p.name for p in place.parent.iterdir()] == [place.name]


def test_concurrent_writers_of_shards_and_of_one_shard(tmp_path: Path, make_dataset: Any) -> None:
    dataset, data = make_dataset()
    writer = create_dataset(str(tmp_path / "new.zarr"), dataset.spec)

    def write(shard: int) -> None:
        rows = writer.shard_trajectories(shard)
        values = np.arange(rows.start, rows.stop) / 8
        writer.write_shard(shard, data[rows.start : rows.stop], {"viscosity": values})

    with ThreadPoolExecutor(9) as pool:
        list(pool.map(write, [2, 0, 1] * 3))  # each shard by three writers at once
    writer.finalize()
    assert open_dataset(writer.uri).fingerprint == dataset.fingerprint


WRITER_SCRIPT = """
import sys, numpy as np
from pelagos.data_pipelines.store import DatasetSpec, resume_dataset
import json
spec = DatasetSpec.from_json(json.loads(sys.argv[2]))
writer = resume_dataset(sys.argv[1], spec)
data = np.random.default_rng(0).normal(size=(3, *spec.shape[1:])).astype("float32")
print("ready", flush=True)
while True:
    writer.write_shard(0, data, {})
"""


@pytest.mark.parametrize("delay_seconds", [0.0, 0.03, 0.1])
def test_a_killed_writer_leaves_no_half_shard(
    tmp_path: Path, make_dataset: Any, delay_seconds: float
) -> None:
    dataset, _ = make_dataset(grid_shape=(128, 128), num_frames=9, parameter_names=(),
                              num_trajectories=3, splits={}, compression="none")  # fmt: skip
    uri, spec = str(tmp_path / "killed.zarr"), dataset.spec
    create_dataset(uri, spec)
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER_SCRIPT, uri, json.dumps(spec.to_json())],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        time.sleep(delay_seconds)  # somewhere inside the writing of the shard
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait(20)
    shard = Path(uri) / "data/c/0/0/0/0/0"
    whole = 3 * 9 * (spec.frame_bytes + 4) + 3 * 9 * 16 + 4
    assert not shard.exists() or shard.stat().st_size == whole
    data = np.random.default_rng(1).normal(size=spec.shape).astype(np.float32)
    writer = resume_dataset(uri, spec)
    writer.write_shard(0, data, {})
    writer.finalize()
    np.testing.assert_array_equal(open_dataset(uri).data[:], data)
    assert not list(Path(uri).rglob("*partial*"))


def test_a_pickled_dataset_opens_again(make_dataset: Any) -> None:
    dataset, data = make_dataset()
    again = pickle.loads(pickle.dumps(dataset))
    np.testing.assert_array_equal(again.window(2, 0, 5), data[2])
    dataset.close()
    np.testing.assert_array_equal(dataset.window(2, 0, 5), data[2])


def _read_in_child(dataset: Dataset, answers: Any) -> None:
    try:
        dataset.window(0, 0, 1)
    except DatasetError as error:
        answers.put(str(error))


def test_fork_is_refused(make_dataset: Any) -> None:
    dataset, _ = make_dataset()
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    child = context.Process(target=_read_in_child, args=(dataset, answers))
    child.start()
    assert "forked child" in answers.get(timeout=20)
    child.join(10)
