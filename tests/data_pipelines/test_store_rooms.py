"""What lies around a dataset's shards: its coordinates, its place, its bounds, its view for Zarr."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import xarray
import zarr
from tests.data_pipelines import small_spec

from pelagos.data_pipelines.store import (
    DatasetError,
    DatasetSpec,
    Field,
    create_dataset,
    open_dataset,
)
from pelagos.data_pipelines.store.coordinates import (
    coordinate_contents,
    coordinate_documents,
    is_coordinate,
)
from pelagos.data_pipelines.store.object_store import open_store as open_objects
from pelagos.data_pipelines.store.readable import SpecReader
from pelagos.data_pipelines.store.staging import (
    finish,
    interrupted_replacement,
    prepare,
    unfinished_root,
)
from pelagos.data_pipelines.store.zarr_view import open_group, open_store
from pelagos.infra.storage.local import TEMPORARY_MARK


def spec_of(**changes: Any) -> DatasetSpec:
    fields = (Field("u", "velocity-x", "m/s"), Field("Ψ", "streamfunction", "m2/s"))
    return small_spec.spec_of(**{"name": "rooms", "fields": fields, **changes})


def written(path: Path, **changes: Any) -> tuple[str, np.ndarray]:
    writer = create_dataset(str(path), spec_of(**changes))
    data = np.random.default_rng(0).normal(size=writer.spec.shape).astype(np.float32)
    for shard in writer.missing_shards():
        writer.write_shard(shard, data[list(writer.shard_trajectories(shard))])
    writer.finalize()
    return str(path), data


# -- coordinates ---------------------------------------------------------------------------------------


def test_xarray_selects_by_the_coordinates(tmp_path: Path) -> None:
    uri, data = written(tmp_path / "d.zarr", generator={"time_unit": "ms"})
    found = xarray.open_zarr(uri, decode_times=False)
    assert found["channel"].values.tolist() == ["u", "Ψ"]
    assert found["trajectory"].values.tolist() == [0, 1, 2, 3, 4]
    assert found["time"].values.tolist() == [0.0, 0.5, 1.0]
    np.testing.assert_array_equal(found["data"].sel(channel="Ψ", trajectory=3), data[3, :, 1])
    for name, told in {
        "time": {"standard_name": "time", "units": "ms", "axis": "T"},
        "x": {"axis": "X", "units": "1"},
        "y": {"axis": "Y"},
        "channel": {"long_name": "field"},
        "trajectory": {"long_name": "number of the trajectory", "units": "1"},
    }.items():
        assert told.items() <= found[name].attrs.items(), name
    points = {name: found[name].values for name in ("x", "y")}
    np.testing.assert_allclose(np.diff(points["x"]), 2.0 / 10, rtol=1e-12)
    np.testing.assert_allclose(np.diff(points["y"]), 1.0 / 7, rtol=1e-12)


def test_metadata_of_coordinates_now_and_before() -> None:
    walls = {"x": "wall", "y": "wall", "z": "wall"}
    spec = spec_of(grid_shape=(4, 7, 10), domain_extent=(1.0, 1.0, 1.0), boundary_conditions=walls)
    now, before = coordinate_documents(spec), coordinate_documents(spec, earlier=True)
    assert list(now) == ["time", "z", "y", "x", "channel", "trajectory"]
    assert list(before) == ["time", "z", "y", "x"]
    assert now["time"]["attributes"]["units"] == "1"
    assert before["time"]["attributes"] == {"long_name": "time", "units": "1"}
    assert now["z"]["attributes"]["positive"] == "up"
    assert "positive" not in before["z"]["attributes"]
    assert before["z"]["attributes"]["axis"] == "Z"
    assert "positive" not in now["y"]["attributes"]
    assert [now[n]["shape"] for n in now] == [[3], [4], [7], [10], [2], [5]]
    assert [now[n]["data_type"] for n in ("z", "channel", "trajectory")] == [
        *("float64", "string", "int64")
    ]
    assert [now[n]["fill_value"] for n in ("channel", "trajectory")] == ["", 0]
    for name, document in now.items():
        assert [codec["name"] for codec in document["codecs"]] == [
            "vlen-utf8" if name == "channel" else "bytes",
            "crc32c",
        ]
        assert document["dimension_names"] == [name]


def test_positions_may_be_rounded_otherwise_and_names_may_not() -> None:
    spec = spec_of()
    contents = coordinate_contents(spec)
    assert all(is_coordinate(spec, name, content) for name, content in contents.items())
    x = np.frombuffer(contents["x"], "<f8")
    for factor, expected in ((1 + 1e-14, True), (1 + 1e-10, False)):
        assert is_coordinate(spec, "x", (x * factor).tobytes()) == expected
    assert not is_coordinate(spec, "x", contents["x"][:-8])
    assert not is_coordinate(spec, "time", contents["time"] + bytes(8))
    assert not is_coordinate(spec, "channel", contents["channel"] + b"\0")
    assert not is_coordinate(spec, "channel", contents["channel"].replace(b"u", b"v"))
    more = coordinate_contents(spec_of(num_trajectories=8, splits={"train": (0, 8)}))["trajectory"]
    assert is_coordinate(spec, "trajectory", more)  # it is being appended to
    assert not is_coordinate(spec, "trajectory", contents["trajectory"][:-8])
    assert not is_coordinate(spec, "trajectory", more[8:])


# -- bounds --------------------------------------------------------------------------------------------


@pytest.fixture
def reader() -> SpecReader:
    return SpecReader("here.zarr", spec_of())


def test_splits_are_ranges_and_all_is_every_trajectory(reader: SpecReader) -> None:
    assert (reader.split("train"), reader.split("test")) == (range(4), range(4, 5))
    assert reader.split("all") == range(5)
    told = r"dataset here\.zarr has no split 'dev'; it has \['train', 'test', 'all'\]"
    with pytest.raises(DatasetError, match=told):
        reader.split("dev")


@pytest.mark.parametrize("trajectory", [-1, 5])
def test_trajectories_outside_are_refused(reader: SpecReader, trajectory: int) -> None:
    for inside in (0, 4):
        reader._check_bounds(inside, [0])
    with pytest.raises(IndexError, match=f"trajectory {trajectory} is outside 0..4 of here.zarr"):
        reader._check_bounds(trajectory, [0])


@pytest.mark.parametrize("frames", [[], [-1], [3], [0, 3], [2, -1]])
def test_frames_outside_are_refused(reader: SpecReader, frames: list[int]) -> None:
    reader._check_bounds(0, [0, 2, 1])
    told = rf"frames \[{str(frames)[1:-1]}\] must be one or more of 0\.\.2 of here\.zarr"
    with pytest.raises(IndexError, match=told):
        reader._check_bounds(0, frames)


@pytest.mark.parametrize(
    "region",
    [
        ((0, 7),),
        ((0, 7), (0, 10), (0, 1)),
        ((-1, 7), (0, 10)),
        ((0, 8), (0, 10)),
        ((0, 7), (0, 11)),
        ((3, 3), (0, 10)),
        ((0, 7), (5, 4)),
    ],
)
def test_regions_outside_are_refused(reader: SpecReader, region: Any) -> None:
    for inside in (((0, 7), (0, 10)), ((6, 7), (9, 10))):
        reader._check_bounds(0, [0], inside)
    with pytest.raises(
        IndexError, match=r"must be one non-empty range per axis of the grid \(7, 10\)"
    ):
        reader._check_bounds(0, [0], region)


def test_memory_to_read_into_fits_or_is_made(reader: SpecReader) -> None:
    assert reader._checked_out(2, None, None).shape == (2, 2, 7, 10)
    made = reader._checked_out(1, None, ((2, 5), (3, 9)))
    assert (made.shape, made.dtype) == ((1, 2, 3, 6), np.float32)
    assert reader._checked_out(1, made, ((2, 5), (3, 9))) is made
    wide = np.empty((1, 2, 3, 12), np.float32)
    for wrong in (made[:, :1], made.astype(np.float64), wide[..., ::2]):
        told = r"out must be C-contiguous float32 \(1, 2, 3, 6\), got "
        with pytest.raises(ValueError, match=told) as caught:
            reader._checked_out(1, wrong, ((2, 5), (3, 9)))
        assert str(caught.value).endswith("not contiguous") == (wrong.shape == made.shape) * (
            wrong.dtype == made.dtype
        )


# -- places --------------------------------------------------------------------------------------------


def test_a_new_dataset_lies_beside_the_one_that_it_replaces(tmp_path: Path) -> None:
    uri, _ = written(tmp_path / "d.zarr")
    with pytest.raises(
        FileExistsError, match="already holds a finished dataset: choose another uri, or"
    ):
        prepare(uri, False, None)
    beside = tmp_path / "d.zarr.pelagos-new"
    (beside / "rest").mkdir(parents=True)  # of a replacement that was killed
    assert prepare(uri, True, None) == str(beside)
    assert not beside.exists()
    assert open_dataset(uri).num_trajectories == 5
    create_dataset(uri, spec_of(), overwrite=True)
    assert unfinished_root(uri, None) == str(beside)


def test_what_is_no_dataset_of_ours_is_never_made_room_of(tmp_path: Path) -> None:
    nothing, empty = tmp_path / "nothing", tmp_path / "empty"
    empty.mkdir()
    for place in (nothing, empty):
        for overwrite in (False, True):
            assert prepare(str(place), overwrite, None) == str(place)
    file, folder, group, other = (tmp_path / name for name in ("file", "folder", "group", "other"))
    file.write_text("")
    (folder / "of").mkdir(parents=True)
    zarr.open_group(group, mode="w")
    other.mkdir()
    (other / "manifest.json").write_text('{"format": "another"}')
    for place in (file, folder, group, other):
        for overwrite in (False, True):
            with pytest.raises(FileExistsError, match=f"{place} holds something other than a Pel"):
                prepare(str(place), overwrite, None)
        with pytest.raises(
            ValueError, match=rf"{place} holds no unfinished dataset \(found: foreign\)"
        ):
            unfinished_root(str(place), None)
        assert place.exists()


@pytest.mark.parametrize("place", ["disk", "objects"])
def test_an_unfinished_dataset_is_continued_or_overwritten(tmp_path: Path, place: str) -> None:
    uri = str(tmp_path / "d.zarr") if place == "disk" else f"memory://{tmp_path.name}/d.zarr"
    create_dataset(uri, spec_of())
    assert unfinished_root(uri, None) == uri
    with pytest.raises(
        FileExistsError, match="already holds an unfinished dataset: continue it with"
    ):
        prepare(uri, False, None)
    assert prepare(uri, True, None) == uri
    assert not open_objects(uri).sizes()
    with pytest.raises(ValueError, match=r"holds no unfinished dataset \(found: nothing\)"):
        unfinished_root(uri, None)


def test_finishing_removes_halves_of_files_and_puts_the_new_in_its_place(tmp_path: Path) -> None:
    uri, _ = written(tmp_path / "d.zarr")
    half = tmp_path / "d.zarr" / "data" / f"0{TEMPORARY_MARK}1"
    half.write_bytes(b"half")
    finish(uri, uri)
    assert not half.exists()
    new, old = (tmp_path / f"d.zarr.pelagos-{name}" for name in ("new", "old"))
    written(new, num_trajectories=4, splits={"train": (0, 4)})
    half = new / half.name
    half.write_bytes(b"half")
    old.mkdir()
    assert "was interrupted: the new dataset is complete at" in str(
        interrupted_replacement(open_objects(uri))
    )
    finish(uri, str(new))
    assert open_dataset(uri).num_trajectories == 4
    assert sorted(path.name for path in tmp_path.iterdir()) == ["d.zarr"]
    assert not list((tmp_path / "d.zarr").rglob(half.name))
    written(new)
    finish(f"file://{uri}", str(new))  # the same place, otherwise named
    assert open_dataset(uri).num_trajectories == 5
    finish(
        "memory://d.zarr", "memory://d.zarr"
    )  # an object store has no halves and no names to change
    for there in (new, old):  # one of the two alone is no replacement
        there.mkdir()
        assert interrupted_replacement(open_objects(uri)) is None
        there.rmdir()
    assert interrupted_replacement(open_objects("memory://d.zarr")) is None


# -- Zarr's view ---------------------------------------------------------------------------------------


def test_a_chunk_that_is_asked_for_is_there_and_counted(
    tmp_path: Path,
) -> None:
    uri, data = written(tmp_path / "d.zarr")
    store = open_store(uri)
    array = zarr.open_group(store, mode="r")["data"]
    assert isinstance(array, zarr.Array)
    before = store.bytes_read
    np.testing.assert_array_equal(array[4], data[4])
    size = (tmp_path / "d.zarr/data/c/2/0/0/0/0").stat().st_size
    assert 0 < store.bytes_read - before <= size
    (tmp_path / "d.zarr/data/c/2/0/0/0/0").unlink()
    with pytest.raises(DatasetError, match=r"shard data/c/2/0/0/0/0 of .* is missing"):
        array[4]
    (tmp_path / "d.zarr/trajectory/c/0").unlink()
    with pytest.raises(DatasetError, match=r"chunk trajectory/c/0 of .* is missing"):
        open_group(uri)["trajectory"][:]  # type: ignore[index]


@pytest.mark.parametrize("kind", ["pipe", "link"])
def test_no_pipe_is_read_and_no_link_out_of_a_dataset_followed(tmp_path: Path, kind: str) -> None:
    uri, data = written(tmp_path / "d.zarr")
    shard = tmp_path / "d.zarr/data/c/2/0/0/0/0"
    shard.rename(tmp_path / "elsewhere")
    if kind == "pipe":
        os.mkfifo(shard)
        told = f"{shard} is not a regular file"
    else:
        shard.symlink_to(tmp_path / "elsewhere")
        opened = zarr.open_group(open_store(uri), mode="r")["data"]
        np.testing.assert_array_equal(opened[4], data[4])  # type: ignore[index]
        told = "elsewhere|outside"
    with pytest.raises(DatasetError, match=told):
        open_group(uri)["data"][4]  # type: ignore[index]


def test_an_address_leads_to_its_files_or_objects(tmp_path: Path) -> None:
    _, data = written(tmp_path / "d.zarr")
    address = f"memory://{tmp_path.name}/seen.zarr"
    objects = fsspec.filesystem("memory")
    objects.put(f"{tmp_path}/d.zarr", f"/{tmp_path.name}/seen.zarr", recursive=True)
    for uri, folder in (
        (str(tmp_path / "d.zarr"), tmp_path / "d.zarr"),
        (f"file://{tmp_path}/d.zarr", tmp_path / "d.zarr"),
        (address, None),
    ):
        store = open_store(uri)
        assert store.folder == folder
        opened = zarr.open_group(store, mode="r")["data"]
        np.testing.assert_array_equal(opened[4], data[4])  # type: ignore[index]
