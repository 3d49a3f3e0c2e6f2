"""Zarr arrays of other writers: every way to store one gives the same dataset, or an error."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import xarray
import zarr
from typer.testing import CliRunner

from pelagos.cli.main import app
from pelagos.data_pipelines.foreign import (
    DescribedField,
    Description,
    ForeignDataset,
    open_foreign,
    open_readable,
)
from pelagos.data_pipelines.store import Dataset, DatasetError, open_dataset
from pelagos.data_pipelines.streaming.loader import StreamLoader
from pelagos.data_pipelines.streaming.mixtures.mixture import Mixture
from pelagos.data_pipelines.streaming.mixtures.mixture_entry import MixtureEntry
from pelagos.data_pipelines.streaming.sampler import Sampler

SHAPE = (7, 5, 2, 6, 8)
NAMES = ("trajectory", "time", "channel", "y", "x")
Values = npt.NDArray[np.float32]


@pytest.fixture
def values() -> Values:
    return np.random.default_rng(0).normal(3, 2, SHAPE).astype(np.float32)


def whole(dataset: ForeignDataset) -> Values:
    return np.stack([dataset.read_frames(i, range(SHAPE[1])) for i in range(SHAPE[0])])


def write_plain(path: Path, values: Values, **options: Any) -> None:
    array = zarr.create_array(path, shape=values.shape, dtype=values.dtype, **options)
    array[...] = values


def write_v3(path: Path, values: Values) -> None:
    write_plain(path, values, chunks=(2, 3, 1, 4, 5))


def write_v3_sharded(path: Path, values: Values) -> None:
    write_plain(path, values, chunks=(1, 1, 2, 3, 4), shards=(2, 5, 2, 6, 8))


def write_v2(path: Path, values: Values) -> None:
    write_plain(path, values, chunks=(3, 5, 2, 6, 8), zarr_format=2)


def write_v2_slashes(path: Path, values: Values) -> None:
    keys = {"name": "v2", "separator": "/"}
    write_plain(path, values, chunks=(1, 1, 2, 6, 8), zarr_format=2, chunk_key_encoding=keys)


def write_big_endian_uncompressed(path: Path, values: Values) -> None:
    write_plain(path, values.astype(">f8"), chunks=(4, 2, 2, 6, 8), compressors=None)


def write_group(path: Path, values: Values) -> None:
    group = zarr.open_group(path, mode="w")
    array = group.create_array(
        "data", shape=values.shape, dtype="f4", chunks=(1, 5, 2, 6, 8), dimension_names=NAMES
    )
    array[...] = values


def write_transposed(path: Path, values: Values) -> None:
    group = zarr.open_group(path, mode="w")
    moved = values.transpose(1, 4, 3, 0, 2)
    names = ("t", "longitude", "latitude", "simulation", "variable")
    array = group.create_array(
        "data", shape=moved.shape, dtype="f4", chunks=(1, 8, 6, 1, 1), dimension_names=names
    )
    array[...] = moved


def xarray_dataset(values: Values) -> xarray.Dataset:
    axes = ("trajectory", "time", "y", "x")
    return xarray.Dataset(
        {"u": (axes, values[:, :, 0]), "w": (axes, values[:, :, 1])},
        coords={
            "time": np.arange(5) * 0.25,
            "x": np.arange(8) * 0.5,
            "y": np.arange(6) * 0.5,
            "label": ("trajectory", np.arange(7)),
        },
    )


def write_xarray_v3(path: Path, values: Values) -> None:
    xarray_dataset(values).to_zarr(path, zarr_format=3, consolidated=True)


def write_xarray_v2(path: Path, values: Values) -> None:
    encoding = {name: {"chunks": (2, 2, 6, 4)} for name in ("u", "w")}
    xarray_dataset(values).to_zarr(path, zarr_format=2, consolidated=True, encoding=encoding)


WRITERS = [
    write_v3,
    write_v3_sharded,
    write_v2,
    write_v2_slashes,
    write_big_endian_uncompressed,
    write_group,
    write_transposed,
    write_xarray_v3,
    write_xarray_v2,
]


@pytest.mark.parametrize("write", WRITERS, ids=lambda w: w.__name__)
def test_every_layout_gives_the_same_frames(
    tmp_path: Path, values: Values, write: Callable[[Path, Values], None]
) -> None:
    write(tmp_path / "a.zarr", values)
    dataset = open_readable(tmp_path / "a.zarr")
    assert isinstance(dataset, ForeignDataset)
    assert dataset.spec.shape == SHAPE
    np.testing.assert_array_equal(whole(dataset), values)
    np.testing.assert_array_equal(dataset.read_frames(6, [4, 0, 4]), values[6, [4, 0, 4]])
    found = dataset.read_frames(2, [3, 1], region=((1, 5), (2, 3)))
    np.testing.assert_array_equal(found, values[2, [3, 1], :, 1:5, 2:3])
    assert dataset.bytes_read > 0
    again = pickle.loads(pickle.dumps(dataset))
    assert again.fingerprint == dataset.fingerprint
    for field, row in dataset.statistics.items():
        train = values[:5, :, dataset.field_names.index(field)].astype(np.float64)
        assert row["mean"] == pytest.approx(train.mean(), rel=1e-12)
        assert row["std"] == pytest.approx(train.std(), rel=1e-12)


@pytest.mark.parametrize("write", WRITERS, ids=lambda w: w.__name__)
def test_the_command_of_the_hint_converts_every_layout(
    tmp_path: Path, values: Values, write: Callable[[Path, Values], None]
) -> None:
    source, target = tmp_path / "a.zarr", tmp_path / "new.zarr"
    write(source, values)
    result = CliRunner().invoke(app, ["convert", str(source), str(target), "--verify"])
    assert result.exit_code == 0, result.output
    found, foreign = open_dataset(target), open_readable(source)
    np.testing.assert_array_equal(found.window(6, 0, 5), values[6])
    for key in ("fields", "splits", "frame_interval", "domain_extent", "grid_location"):
        assert getattr(found.spec, key) == getattr(foreign.spec, key), key
    for name, numbers in foreign.parameters.items():
        np.testing.assert_array_equal(found.parameters[name], numbers)


@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize("where", ["f4", "i2", "shard"])
def test_a_lost_chunk_is_not_converted_to_zeros(
    tmp_path: Path, values: Values, where: str, mapped: bool
) -> None:
    source = tmp_path / "a.zarr"
    numbers = values if where == "f4" else (values * 100).round().astype("i2")
    layout = {"chunks": (1, 1, 2, 6, 8), "shards": (7, 5, 2, 6, 8)} if where == "shard" else {}
    array = zarr.create_array(
        source, shape=SHAPE, dtype=numbers.dtype, **(layout or {"chunks": (1, 5, 2, 6, 8)})
    )
    array[...] = numbers
    if where == "shard":
        array[...] = 0  # chunks of zeros are left out
        array[0] = numbers[0]
    else:
        (source / "c/3/0/0/0/0").unlink()
    mapping = tmp_path / "mapping.yaml"
    mapping.write_text("fields: [{axes: [n, t, c, y, x], names: [a, b]}]")
    arguments = ["convert", str(source), str(tmp_path / "new.zarr")]
    result = CliRunner().invoke(app, arguments + ["--mapping", str(mapping)] * mapped)
    assert result.exit_code == 2, result.output
    assert "missing" in result.output
    assert "Traceback" not in result.output
    with pytest.raises(DatasetError):
        open_dataset(tmp_path / "new.zarr")


@pytest.mark.parametrize("write", [write_v2, write_v3_sharded, write_xarray_v3])
def test_inspect_bench_and_plot_read_them(
    tmp_path: Path, values: Values, write: Callable[[Path, Values], None]
) -> None:
    source = tmp_path / "a.zarr"
    write(source, values)
    shown = CliRunner().invoke(app, ["data", "inspect", str(source)])
    assert shown.exit_code == 0, shown.output
    assert f"pelagos convert {source}" in "".join(shown.output.split("\n")).replace("  ", "")
    result = CliRunner().invoke(app, ["data", "inspect", str(source), "--json"])
    found = json.loads(result.stdout)
    dataset = open_foreign(source)
    assert (found["shape"], found["fingerprint"]) == (list(SHAPE), dataset.fingerprint)
    objects = [p for p in source.rglob("*") if p.is_file() and p.name[0] not in "z."]
    coordinates = [
        p for p in objects if p.relative_to(source).parts[0] in ("x", "y", "time", "label")
    ]
    assert found["num_objects"] == len(objects) - len(coordinates)
    assert found["assumed"]
    timing = ["--seconds", "0.02", "--step-time", "0.01", "--batch", "2", "--json"]
    result = CliRunner().invoke(app, ["data", "bench", str(source), *timing])
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["store"] == "zarr"
    assert report["raw"] == []
    assert [r["num_threads"] for r in report["reader"]] == [1, 4, 16, 32]
    assert report["window_bytes"] > 0
    picture = tmp_path / "a.png"
    result = CliRunner().invoke(app, ["data", "plot", str(source), "-o", str(picture)])
    assert result.exit_code == 0, result.output
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_inspect_takes_a_description(tmp_path: Path, values: Values) -> None:
    write_v2(tmp_path / "a.zarr", values)
    (tmp_path / "d.yaml").write_text("fields: [{name: density}, {name: pressure}]")
    arguments = ["data", "inspect", str(tmp_path / "a.zarr"), "--json", "--description"]
    result = CliRunner().invoke(app, [*arguments, str(tmp_path / "d.yaml")])
    assert result.exit_code == 0, result.output
    fields = json.loads(result.stdout)["spec"]["fields"]
    assert [f["name"] for f in fields] == ["density", "pressure"]


def test_damaged_metadata_and_odd_attributes_are_named(tmp_path: Path, values: Values) -> None:
    source = tmp_path / "a.zarr"
    for content in ("{", "[]"):
        write_group(source, values)
        (source / "zarr.json").write_text(content)
        with pytest.raises(DatasetError, match=r"zarr\.json is damaged"):
            open_readable(source)
    write_group(source, values)
    (source / "data/zarr.json").write_text("{")
    with pytest.raises(DatasetError, match="damaged metadata"):
        open_readable(source)
    write_group(source, values)
    zarr.open_group(source)["data"].attrs["scale_factor"] = [0.1]
    with pytest.raises(DatasetError, match="scale_factor"):
        open_readable(source)


def test_missing_value_may_be_a_list(tmp_path: Path, values: Values) -> None:
    source = tmp_path / "a.zarr"
    write_group(source, values)
    array = zarr.open_group(source)["data"]
    array.attrs["missing_value"] = [-9999.0, 1e20]
    np.testing.assert_array_equal(whole(open_foreign(source)), values)
    for number in (-9999.0, 1e20):
        array[3, 2, 1, 0, 0] = number
        with pytest.raises(DatasetError, match="which its attributes declare missing"):
            open_foreign(source).read_frames(3, [2])
    array.attrs["missing_value"] = {"a": 1}
    with pytest.raises(DatasetError, match="missing_value = "):
        open_foreign(source)


def test_coordinates_and_vectors_of_xarray_are_used(tmp_path: Path, values: Values) -> None:
    write_xarray_v3(tmp_path / "a.zarr", values)
    dataset = open_foreign(tmp_path / "a.zarr")
    spec = dataset.spec
    assert spec.field_names == ("u", "w")
    assert (spec.frame_interval, spec.domain_extent) == (0.25, (3.0, 4.0))
    assert spec.grid_location == "node"
    np.testing.assert_array_equal(dataset.parameters["label"], np.arange(7))


def test_a_description_says_the_rest(
    tmp_path: Path, values: Values, caplog: pytest.LogCaptureFixture
) -> None:
    write_xarray_v3(tmp_path / "a.zarr", values)
    fields = (DescribedField("velocity-y", array="w"), DescribedField("velocity-x", array="u"))
    description = Description(
        fields=fields, splits={"train": (2, 7)}, constant_fields={"density": 1.0}
    )
    dataset = open_readable(tmp_path / "a.zarr", description=description)
    assert dataset.field_names == ("velocity-y", "velocity-x")
    np.testing.assert_array_equal(dataset.read_frames(0, [1])[0], values[0, 1, ::-1])
    assert "pelagos convert" in caplog.text
    caplog.clear()
    open_readable(tmp_path / "a.zarr", description=description)
    assert caplog.text == ""  # the hint stands there once
    write_v3(tmp_path / "b.zarr", values)
    open_readable(tmp_path / "b.zarr")
    assert "fields channel-0, channel-1" in caplog.text
    assert "splits {'train': (0, 5), 'validation': (5, 6), 'test': (6, 7)}" in caplog.text


def test_packed_whole_numbers_are_unpacked(tmp_path: Path, values: Values) -> None:
    packed = {"dtype": "i2", "scale_factor": 0.001, "add_offset": 3.0, "_FillValue": -32768}
    xarray_dataset(values).to_zarr(tmp_path / "a.zarr", encoding={"u": packed, "w": packed})
    np.testing.assert_allclose(
        whole(open_foreign(tmp_path / "a.zarr")), values, rtol=0, atol=0.0005 + 1e-6
    )


@pytest.mark.parametrize("write", WRITERS, ids=lambda w: w.__name__)
def test_a_missing_chunk_is_an_error(
    tmp_path: Path, values: Values, write: Callable[[Path, Values], None]
) -> None:
    write(tmp_path / "a.zarr", values)
    whole(open_foreign(tmp_path / "a.zarr"))
    largest = max((p for p in (tmp_path / "a.zarr").rglob("*") if p.is_file()), key=_size)
    largest.unlink()
    with pytest.raises(DatasetError, match=r"trajectory \d, frames .*Pelagos fills nothing in"):
        whole(open_foreign(tmp_path / "a.zarr"))


def _size(path: Path) -> int:
    return 0 if path.suffix == ".json" or path.name.startswith(".") else path.stat().st_size


@pytest.mark.parametrize("dtype", ["f4", "i2"])
def test_a_chunk_missing_inside_a_shard_is_an_error(
    tmp_path: Path, values: Values, dtype: str
) -> None:
    values = np.round(values * 10 + 100)
    values[3, 2] = 0  # the fill value, which zarr then leaves out of the shard
    options: dict[str, Any] = {"chunks": (1, 1, 2, 6, 8), "shards": (7, 5, 2, 6, 8)}
    for name, is_written in (("whole", True), ("left-out", False)):
        config = {"write_empty_chunks": is_written}
        write_plain(tmp_path / name, values.astype(dtype), config=config, **options)
    np.testing.assert_array_equal(whole(open_foreign(tmp_path / "whole")), values)
    dataset = open_foreign(tmp_path / "left-out")
    np.testing.assert_array_equal(dataset.read_frames(3, [1]), values[3, 1:2])
    with pytest.raises(DatasetError, match="inside a shard is missing"):
        dataset.read_frames(3, [2])


def test_what_cannot_be_told_is_refused(tmp_path: Path, values: Values) -> None:
    group = zarr.open_group(tmp_path / "odd.zarr", mode="w")
    names = ("run", "time", "colour", "y", "x")
    group.create_array("data", shape=SHAPE, dtype="f4", dimension_names=names)[...] = values
    with pytest.raises(DatasetError, match=r'unknown: \["colour"\].*description.dimensions'):
        open_foreign(tmp_path / "odd.zarr")
    known = Description(dimensions=NAMES)
    np.testing.assert_array_equal(whole(open_foreign(tmp_path / "odd.zarr", None, known)), values)
    with pytest.raises(DatasetError, match="2 channels, but description.fields names 1"):
        open_foreign(
            tmp_path / "odd.zarr",
            None,
            Description(dimensions=NAMES, fields=(DescribedField("a"),)),
        )
    with pytest.raises(DatasetError, match="has no array 'pressure'"):
        open_foreign(tmp_path / "odd.zarr", None, Description(array="pressure"))
    with pytest.raises(DatasetError, match=r"outside \[0, 7\)"):
        open_foreign(
            tmp_path / "odd.zarr", None, Description(dimensions=NAMES, splits={"train": (0, 8)})
        )
    values[1, 2, 0, 3, 4] = np.nan
    write_v3(tmp_path / "nan.zarr", values)
    with pytest.raises(DatasetError, match="trajectory 1, frames 2: .*NaN"):
        open_foreign(tmp_path / "nan.zarr").read_frames(1, [2])


def test_pelagos_datasets_open_as_themselves(make_dataset: Any, tmp_path: Path) -> None:
    dataset, _ = make_dataset()
    assert isinstance(open_readable(dataset.uri), Dataset)
    with pytest.raises(DatasetError, match="describes itself"):
        open_readable(dataset.uri, description=Description())
    (Path(dataset.uri) / "manifest.json").unlink()
    with pytest.raises(DatasetError, match="unfinished"):
        open_readable(dataset.uri)
    shutil.rmtree(Path(dataset.uri) / ".pelagos")
    with pytest.raises(DatasetError, match="no manifest.json"):
        open_readable(dataset.uri)
    with pytest.raises(DatasetError, match="no dataset at"):
        open_readable(tmp_path / "nowhere")


def test_statistics_are_computed_once_and_again_for_other_data(
    tmp_path: Path, values: Values, caplog: pytest.LogCaptureFixture
) -> None:
    place = tmp_path / "kept" / "a.json"
    before = sorted((tmp_path).iterdir())
    assert before == []
    write_v2(tmp_path / "a.zarr", values)
    files = sorted((tmp_path / "a.zarr").rglob("*"))
    description = Description(statistics=str(place))
    first = open_foreign(tmp_path / "a.zarr", None, description)
    statistics = first.statistics
    assert json.loads(place.read_text())["fingerprint"] == first.fingerprint
    second = open_foreign(tmp_path / "a.zarr", None, description)
    assert second.statistics == statistics
    assert second.bytes_read == 0
    assert sorted((tmp_path / "a.zarr").rglob("*")) == files  # nothing is written there
    shutil.rmtree(tmp_path / "a.zarr")
    write_v2(tmp_path / "a.zarr", values * 2 + 1000)  # compresses to other sizes
    changed = open_foreign(tmp_path / "a.zarr", None, description)
    assert changed.fingerprint != first.fingerprint
    assert changed.statistics["channel-0"]["mean"] > 900
    place.write_text("{}")
    with pytest.raises(DatasetError, match="not a file of statistics"):
        _ = open_foreign(tmp_path / "a.zarr", None, description).statistics


def test_a_mixture_streams_it_beside_a_pelagos_dataset(
    make_dataset: Any, tmp_path: Path, values: Values
) -> None:
    own, _ = make_dataset(grid_shape=(6, 8))
    write_xarray_v2(tmp_path / "a.zarr", values)
    fields = (DescribedField("density", array="u"), DescribedField("pressure", array="w"))
    foreign = open_readable(tmp_path / "a.zarr", description=Description(fields=fields))
    mixture = Mixture(
        [MixtureEntry(own), MixtureEntry(foreign)],
        ("density", "pressure"),
        lambda n: tuple((i, i + 1) for i in range(n - 1)),
    )
    sampler = Sampler(mixture, 0, 8)
    with StreamLoader(mixture, sampler, global_batch_size=8, stop_step=6, num_threads=6) as loader:
        for batch in loader:
            for row in range(8):
                if batch.dataset[row] == 1:
                    trajectory, start = (
                        int(batch.trajectory[row]),
                        round(float(batch.times[row, 0]) / 0.25),
                    )
                    physical = mixture.normalization.invert(batch.frames[row]).numpy()
                    wanted = values[trajectory, start : start + 2]
                    # float32: three roundings of numbers below 12
                    np.testing.assert_allclose(physical, wanted, rtol=0, atol=5e-6)
    moved = Mixture([MixtureEntry(own)], ("density", "pressure"), lambda n: ((0, 1),))
    with pytest.raises(ValueError, match="datasets"):
        Sampler(moved, 0).check_state(sampler.state_dict())


@pytest.mark.s3
def test_from_an_object_store(s3_server: Any, values: Values) -> None:
    uri = s3_server.new_uri("/foreign.zarr")
    options = s3_server.storage_options
    xarray_dataset(values).to_zarr(uri, storage_options=options, consolidated=True)
    dataset = open_readable(uri, options)
    np.testing.assert_array_equal(whole(dataset), values)  # type: ignore[arg-type]
    first = dataset.fingerprint
    xarray_dataset(values[::-1]).to_zarr(uri, storage_options=options, mode="w", consolidated=True)
    assert open_readable(uri, options).fingerprint != first
