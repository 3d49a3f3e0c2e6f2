"""Numbers of classes and objects are stored exactly or rejected, wherever a type rounds them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import xarray as xr
import yaml
import zarr

from pelagos.data_pipelines.convert import ConvertOptions, SourceError
from pelagos.data_pipelines.foreign import open_readable
from pelagos.data_pipelines.management.appending import append
from pelagos.data_pipelines.management.merging import merge
from pelagos.data_pipelines.store import DatasetSpec, Field, create_dataset, open_dataset
from pelagos.jobs import convert

FIELDS = (Field("image", "image"), Field("cells", "label"))
# The first whole number that each type rounds, by its number of binary digits.
FIRST_LOST = {"float32": 2**24 + 1, "float16": 2**11 + 1, "bfloat16": 2**8 + 1}


def spec_of(dtype: str) -> DatasetSpec:
    return DatasetSpec(
        name="cells",
        equation="none",
        fields=FIELDS,
        num_trajectories=3,
        num_frames=2,
        grid_shape=(4, 5),
        frame_interval=1.0,
        domain_extent=(1.0, 1.0),
        boundary_conditions={},
        splits={"train": (0, 3)},
        dtype=dtype,
        trajectories_per_shard=2,
    )


def write(place: Path, dtype: str, label: int) -> Any:
    """A dataset whose last label is `label`; the image holds numbers that every type rounds."""
    spec = spec_of(dtype)
    data = np.full(spec.shape, 1.23456789)
    data[:, :, 1] = 2
    data[2, 1, 1, 3, 4] = label
    writer = create_dataset(str(place), spec)
    for shard in writer.missing_shards():
        rows = writer.shard_trajectories(shard)
        writer.write_shard(shard, data[rows.start : rows.stop])
    writer.finalize()
    return open_dataset(str(place))


@pytest.mark.parametrize("dtype", list(FIRST_LOST))
def test_a_label_that_the_type_rounds_is_named(tmp_path: Path, dtype: str) -> None:
    lost = FIRST_LOST[dtype]
    message = (
        rf"trajectory 2, frame 1, field 'cells', grid index \(3, 4\): label {lost} becomes "
        rf"{lost - 1} in {dtype}, which holds whole numbers up to {lost - 1} exactly"
    )
    with pytest.raises(ValueError, match=message):
        write(tmp_path / "a.zarr", dtype, lost)
    dataset = write(tmp_path / "b.zarr", dtype, lost - 1)
    assert dataset.window(2, 1, 1)[0, 1, 3, 4] == lost - 1


def test_merging_and_appending_do_not_round_labels(tmp_path: Path) -> None:
    half, full = (
        write(tmp_path / "a.zarr", "float16", 7),
        write(tmp_path / "b.zarr", "float32", 2049),
    )
    with pytest.raises(ValueError, match="label 2049 becomes 2048 in float16"):
        merge([half, full], tmp_path / "m.zarr")
    with pytest.raises(ValueError, match="label 2049 becomes 2048 in float16"):
        append(half, full)
    assert open_dataset(half.uri).num_trajectories == 3
    merge([full, half], tmp_path / "n.zarr")
    merged = open_dataset(tmp_path / "n.zarr")
    assert merged.window(2, 1, 1)[0, 1, 3, 4] == 2049


def test_a_field_that_becomes_zero_in_half_precision_is_rejected(tmp_path: Path) -> None:
    spec = spec_of("float16")
    data = np.zeros((2, *spec.shape[1:]))
    data[:, :, 0] = 1e-8
    writer = create_dataset(str(tmp_path / "a.zarr"), spec)
    with pytest.raises(ValueError, match=r"field 'image': every value becomes 0 in float16"):
        writer.write_shard(0, data)
    data[1, 1, 0, 0, 0] = 1.0  # tiny values beside others are rounding
    writer.write_shard(0, data)


def test_label_images_of_ome_zarr(tmp_path: Path) -> None:
    root = zarr.open_group(tmp_path / "a.ome.zarr", mode="w", zarr_format=2)
    axes = [{"name": "y", "type": "space"}, {"name": "x", "type": "space"}]
    described = [{"axes": axes, "datasets": [{"path": "0"}], "version": "0.4"}]
    root.attrs["multiscales"] = described
    root.create_array("0", data=np.ones((2, 3), np.uint16))
    root.create_group("labels").attrs["labels"] = ["nuclei"]
    nuclei = root.create_group("labels/nuclei")
    nuclei.attrs["multiscales"] = described
    nuclei.create_array("0", data=np.array([[1, 2, 3], [4, 5, 2**24 + 1]], np.int64))
    source, place = str(tmp_path / "a.ome.zarr"), str(tmp_path / "out.zarr")
    with pytest.raises(SourceError, match=r"labels/nuclei/0 holds the whole number 16777217"):
        convert.run(source, place)
    nuclei["0"][1, 2] = 301
    with pytest.raises(SourceError, match=r"labels/nuclei/0.* label 301 becomes 300"):
        convert.run(source, str(tmp_path / "b.zarr"), ConvertOptions(dtype="bfloat16"))
    convert.run(source, str(tmp_path / "c.zarr"))
    dataset = open_dataset(tmp_path / "c.zarr")
    assert dataset.spec.fields[1] == Field("nuclei", "label")
    assert dataset.window(0, 0, 1)[0, 1, 1, 2] == 301


@pytest.mark.parametrize(
    ("values", "dtype", "what"),
    [
        (np.array([1, 2**24 + 1], np.int64), "float32", "holds the whole number 16777217"),
        (
            np.array([1, 2**60 + 1], np.int64),
            "float32",
            "holds the whole number 1152921504606846977",
        ),
        (np.array([1, 2**32 - 1], np.uint32), "float32", "holds the whole number 4294967295"),
        (np.array([1, 2049.0]), "float16", "label 2049 becomes 2048"),
    ],
)
def test_mapped_integers_and_labels(
    tmp_path: Path, values: np.ndarray, dtype: Any, what: str
) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as f:
        f["ids"] = values
    mapping = {"fields": [{"key": "ids", "axes": ["x"], "names": ["label"]}]}
    (tmp_path / "m.yaml").write_text(yaml.safe_dump(mapping))
    options = ConvertOptions(mapping=str(tmp_path / "m.yaml"), dtype=dtype)
    with pytest.raises(SourceError, match=what):
        convert.run(str(tmp_path / "a.h5"), str(tmp_path / "out.zarr"), options)


@pytest.mark.parametrize("kind", ["hdf5", "classic", "zarr"])
@pytest.mark.parametrize("missing", ["reject", "mask"])
def test_ids_beside_a_fill_value_are_not_rounded(tmp_path: Path, kind: str, missing: str) -> None:
    """An array that names a fill value holds the numbers it held without one."""
    lost = FIRST_LOST["float32"]
    for number in (lost - 1, lost):
        ids = np.full((3, 2, 4, 5), 7, np.int32)
        ids[2, 1, 3, 4] = number
        if missing == "mask":
            ids[0, 0, 0, 0] = -1
        source = write_ids(tmp_path / f"{number}", kind, ids)
        options = ConvertOptions(missing=missing)  # type: ignore[arg-type]
        if number == lost:
            with pytest.raises(SourceError, match=f"whole number {lost}.*rounds to {lost - 1}"):
                convert.run(str(source), str(tmp_path / "lost.zarr"), options)
        else:
            convert.run(str(source), str(tmp_path / "kept.zarr"), options)
            stored = zarr.open_group(str(tmp_path / "kept.zarr"), mode="r")["data"]
            assert stored[2, 1, 0, 3, 4] == number


def write_ids(place: Path, kind: str, ids: Any) -> Path:
    dims = ("sample", "time", "y", "x")
    ids_there = xr.Dataset({"ids": (dims, ids)})
    encoding = {"ids": {"_FillValue": np.int32(-1)}}
    if kind == "zarr":
        ids_there.to_zarr(place.with_suffix(".zarr"), zarr_format=2, encoding=encoding)
        return place.with_suffix(".zarr")
    engine = {"hdf5": "h5netcdf", "classic": "scipy"}[kind]
    ids_there.to_netcdf(place.with_suffix(".nc"), engine=engine, encoding=encoding)  # type: ignore[call-overload]
    return place.with_suffix(".nc")


@pytest.mark.parametrize("kind", ["hdf5", "zarr"])
def test_times_beside_a_fill_value_are_not_rounded(tmp_path: Path, kind: str) -> None:
    """Seconds since 1970 in steps of 10: float32 rounds them to multiples of 128."""
    seconds = 1.7e9 + 10.0 * np.arange(3)
    attributes = {"units": "seconds since 1970-01-01"}
    there = xr.Dataset(
        {"u": (("sample", "time", "y", "x"), np.ones((3, 3, 4, 5), "f4"))},
        {"time": ("time", seconds, attributes)},
    )
    encoding = {"time": {"_FillValue": -9999.0}}
    place = tmp_path / kind
    if kind == "zarr":
        there.to_zarr(place, zarr_format=2, encoding=encoding)
    else:
        place = place.with_suffix(".nc")
        there.to_netcdf(place, engine="h5netcdf", encoding=encoding)
    convert.run(str(place), str(tmp_path / "out.zarr"), ConvertOptions())
    dataset = open_dataset(str(tmp_path / "out.zarr"))
    assert dataset.spec.frame_interval == 10


def test_ids_of_foreign_zarr_are_not_rounded_in_place(tmp_path: Path) -> None:
    """Read in training, and appended: either would take two ids for one."""
    lost = FIRST_LOST["float32"]
    own = tmp_path / "own.zarr"
    for number in (lost - 1, lost):
        ids = np.full((3, 2, 4, 5), 7, np.int32)
        ids[2, 1, 3, 4] = number
        foreign = open_readable(str(write_ids(tmp_path / f"{number}", "zarr", ids)))
        if number == lost - 1:
            assert foreign.read_frames(2, (1,))[0, 0, 3, 4] == number
            convert.run(str(tmp_path / f"{number}.zarr"), str(own), ConvertOptions())
            continue
        with pytest.raises(ValueError, match=f"'ids' holds the whole number {lost}"):
            foreign.read_frames(2, (1,))
        with pytest.raises(ValueError, match=f"'ids' holds the whole number {lost}"):
            append(open_dataset(str(own)), foreign)
