"""Missing values as data: rejected, filled, or masked by a field, with statistics of the rest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
import pytest
import xarray
import zarr
from PIL import Image
from typer.testing import CliRunner

from pelagos.cli.main import app
from pelagos.data_pipelines.convert import ConvertOptions, SourceError
from pelagos.data_pipelines.management import report
from pelagos.data_pipelines.management.inspection import verify
from pelagos.data_pipelines.pictures.animation import animate
from pelagos.data_pipelines.pictures.plot_parts import colour_limits, shown_frames
from pelagos.data_pipelines.pictures.plots import contact_sheet
from pelagos.data_pipelines.store import Dataset, DatasetSpec, Field, create_dataset, open_dataset
from pelagos.data_pipelines.streaming.mixtures.mixture import Mixture
from pelagos.data_pipelines.streaming.mixtures.mixture_entry import MixtureEntry
from pelagos.data_pipelines.streaming.normalization import Normalization
from pelagos.jobs import convert

SHAPE = (8, 3, 6, 7)  # member, time, y, x; the first 8 - 2 train
AXES = ("member", "time", "lat", "lon")
LAND = np.zeros(SHAPE[2:], bool)
LAND[2:4, 3:] = True
Values = npt.NDArray[np.float64]


def ocean(cloudy: bool = False) -> xarray.Dataset:
    """Two fields without values on land; of clouds, one also where there happen to be some."""
    rng = np.random.default_rng(1)
    t, s = rng.normal(285, 3, SHAPE), rng.normal(35, 1, SHAPE)
    t[..., LAND] = s[..., LAND] = np.nan
    if cloudy:
        t[rng.random(SHAPE) < 0.1] = np.nan
    wind = rng.normal(size=SHAPE)  # is everywhere
    return xarray.Dataset({"s": (AXES, s), "t": (AXES, t), "wind": (AXES, wind)})


def write(data: xarray.Dataset, path: Path) -> Path:
    encoding: dict[str, Any] = {n: {"_FillValue": -9999.0, "dtype": "f4"} for n in ("s", "t")}
    encoding["wind"] = {"_FillValue": None, "dtype": "f4"}
    if path.suffix == ".zarr":
        data.to_zarr(path, zarr_format=2, encoding=encoding, consolidated=False)
    else:
        engine: Any = "scipy" if path.stem == "classic" else "h5netcdf"
        data.to_netcdf(path, engine=engine, encoding=encoding)
    return path


def converted(source: Path, **options: Any) -> tuple[Dataset, tuple[str, ...]]:
    target = source.parent / "out"
    result = convert.run(str(source), str(target), ConvertOptions(**options), verify=True)
    assert result.differences == ()
    return open_dataset(target), result.notes


def channel(dataset: Dataset, name: str) -> npt.NDArray[Any]:
    at = dataset.field_names.index(name)
    count, frames = dataset.num_trajectories, dataset.num_frames
    return np.stack([dataset.window(i, 0, frames)[:, at] for i in range(count)])


def check_statistics(dataset: Dataset, name: str, values: Values) -> None:
    """Against numpy, on the training split, where there are values."""
    train = values[slice(*dataset.spec.splits["train"])].astype("f4").astype(float)
    found = dataset.statistics[name]
    assert found["count"] == np.isfinite(train).sum()
    assert found["mean"] == pytest.approx(np.nanmean(train), rel=1e-12)
    assert found["std"] == pytest.approx(np.nanstd(train), rel=1e-10)
    assert (found["min"], found["max"]) == (np.nanmin(train), np.nanmax(train))
    changes = np.diff(train, axis=1)
    assert found["delta_count"] == np.isfinite(changes).sum()
    assert found["delta_std"] == pytest.approx(np.nanstd(changes), rel=1e-10)


@pytest.mark.parametrize("name", ["a.nc", "classic.nc", "a.zarr"])
def test_a_fixed_mask_becomes_one_given_field(tmp_path: Path, name: str) -> None:
    data = ocean()
    dataset, notes = converted(write(data, tmp_path / name), missing="mask")
    assert dataset.field_names == ("s", "t", "wind", "mask")
    assert dataset.spec.masks == {"s": "mask", "t": "mask"}
    assert dataset.spec.given_fields == ("mask",)
    np.testing.assert_array_equal(channel(dataset, "mask"), np.broadcast_to(~LAND, SHAPE))
    for field in ("s", "t", "wind"):
        values = data[field].values
        check_statistics(dataset, field, values)
        found, is_there = channel(dataset, field), np.isfinite(values)
        np.testing.assert_array_equal(found[is_there], values[is_there].astype("f4"))
        if field != "wind":  # neutral to a network: zero once it is normalised
            mean = np.nanmean(values[:6].astype("f4").astype(float))
            assert np.unique(found[~is_there]).tolist() == [np.float32(mean)]
    missing = int(LAND.sum()) * 24
    assert any(note.startswith(f"t: {missing} of 1008 values") for note in notes), notes
    assert dataset.spec.generator["missing"]["count"] == {"s": missing, "t": missing}


def test_masks_that_differ_or_change_are_fields_of_their_own(tmp_path: Path) -> None:
    data = ocean(cloudy=True)
    dataset, _ = converted(write(data, tmp_path / "a.nc"), missing="mask")
    assert dataset.spec.masks == {"s": "mask-s", "t": "mask-t"}
    assert dataset.spec.given_fields == ("mask-s",)  # that of clouds changes
    np.testing.assert_array_equal(channel(dataset, "mask-t"), np.isfinite(data["t"].values))
    check_statistics(dataset, "t", data["t"].values)
    assert verify(dataset.uri).damage == []
    found = report(dataset, dataset.manifest.statistics)
    assert found.differences == []
    assert sum(found.histograms["t"]["counts"]) == np.isfinite(data["t"].values).sum()


def test_filled_with_a_number_or_the_mean(tmp_path: Path) -> None:
    data = ocean(cloudy=True)
    source = write(data, tmp_path / "a.nc")
    (tmp_path / "one").mkdir()
    result = convert.run(
        str(source), str(tmp_path / "one/a"), ConvertOptions(missing="fill", fill_value=-1.0)
    )
    dataset = open_dataset(result.uri)
    assert (dataset.field_names, dataset.spec.masks) == (("s", "t", "wind"), {})
    expected = np.nan_to_num(data["t"].values.astype("f4"), nan=-1)
    np.testing.assert_array_equal(channel(dataset, "t"), expected)
    assert dataset.spec.generator["missing"]["fill"] == {"s": -1.0, "t": -1.0}
    dataset, notes = converted(source, missing="fill")
    mean = np.float32(np.nanmean(data["t"].values[:6].astype("f4").astype(float)))
    np.testing.assert_array_equal(channel(dataset, "t")[np.isnan(data["t"].values)], mean)
    assert any("are missing: filled, with 28" in note for note in notes)


def test_a_mapping_says_it_and_the_command_wins(tmp_path: Path) -> None:
    source = write(ocean(), tmp_path / "a.nc")
    mapping = tmp_path / "map.yaml"
    mapping.write_text("fields: [{key: t, axes: [n, t, y, x], names: [t]}]\nmissing: mask\n")
    dataset, _ = converted(source, mapping=str(mapping))
    assert dataset.spec.masks == {"t": "mask"}
    arguments = ["convert", str(source), str(tmp_path / "b"), "--mapping", str(mapping)]
    result = CliRunner().invoke(app, [*arguments, "--missing", "reject"])
    assert (result.exit_code, "holds no value at index" in result.output) == (2, True)
    result = CliRunner().invoke(app, [*arguments, "--missing", "hide"])
    assert (result.exit_code, "allowed: reject, fill, mask" in result.output) == (2, True)
    shown = CliRunner().invoke(app, ["data", "inspect", dataset.uri])
    assert "mask of t" in shown.output


def test_nan_of_plain_arrays_is_missing_too(tmp_path: Path) -> None:
    values = ocean()["t"].values.astype("f4")
    np.save(tmp_path / "a.npy", values)
    mapping = tmp_path / "map.yaml"
    mapping.write_text("fields: [{file: a.npy, axes: [n, t, y, x], names: [t]}]")
    dataset, _ = converted(tmp_path, mapping=str(mapping), missing="mask")
    np.testing.assert_array_equal(channel(dataset, "mask"), np.isfinite(values))
    values[1, 1, 0, 0] = np.inf
    np.save(tmp_path / "a.npy", values)
    options = ConvertOptions(mapping=str(mapping), missing="mask", fill_value=0.0)
    with pytest.raises(SourceError, match=r"trajectory 1, frame 1, field 't', grid index \(0, 0\)"):
        convert.run(str(tmp_path), str(tmp_path / "inf"), options)


def test_what_was_never_written_is_not_masked(tmp_path: Path) -> None:
    """A gap is a fault of the file, whatever becomes of missing values."""
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("t", SHAPE, "f4", chunks=(1, *SHAPE[1:]))[:5] = 1
    mapping = tmp_path / "map.yaml"
    mapping.write_text("fields: [{key: t, axes: [n, t, y, x], names: [t]}]")
    options = ConvertOptions(mapping=str(mapping), missing="mask")
    with pytest.raises(SourceError, match=r"t holds nothing at index \(5, 0, 0, 0\)"):
        convert.run(str(tmp_path / "a.h5"), str(tmp_path / "out"), options)
    array = zarr.create_array(
        tmp_path / "a.zarr", shape=SHAPE, dtype="f4", chunks=(1, *SHAPE[1:]), shards=SHAPE,
        dimension_names=AXES, fill_value=0.0,
    )  # fmt: skip
    array[:5] = 1  # and three chunks of the shard are left out
    with pytest.raises(SourceError, match="a chunk inside a shard is missing"):
        convert.run(str(tmp_path / "a.zarr"), str(tmp_path / "z"), ConvertOptions(missing="mask"))


def test_nothing_to_mask_is_noted_and_a_field_of_nothing_rejected(tmp_path: Path) -> None:
    data = ocean().fillna(1.0)
    _, notes = converted(write(data, tmp_path / "a.nc"), missing="mask")
    assert "no value is missing: nothing was masked" in notes
    data["t"].values[:6] = np.nan
    with pytest.raises(SourceError, match="field 't' has no value in the training split"):
        convert.run(str(write(data, tmp_path / "b.nc")), "unused", ConvertOptions(missing="fill"))
    with pytest.raises(SourceError, match="fill_value needs `missing: fill`"):
        convert.run(str(tmp_path / "b.nc"), "unused", ConvertOptions(fill_value=1.0))


def test_a_mask_must_be_a_stored_field() -> None:
    values: dict[str, Any] = {
        "name": "a", "equation": "", "num_trajectories": 1, "num_frames": 2, "grid_shape": (4,),
        "frame_interval": 1.0, "domain_extent": (1.0,), "boundary_conditions": {}, "splits": {},
        "fields": (Field("t", "t"), Field("mask", "mask")),
    }  # fmt: skip
    spec = DatasetSpec(**values, masks={"t": "mask"})
    assert DatasetSpec.from_json(spec.to_json()).masks == {"t": "mask"}
    assert "masks" not in DatasetSpec(**values).to_json()
    for masks in ({"t": "land"}, {"u": "mask"}, {"t": "mask", "mask": "t"}):
        with pytest.raises(ValueError, match="masks must name stored fields"):
            DatasetSpec(**values, masks=masks)


def test_statistics_of_a_writer_do_not_depend_on_pieces(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    data = rng.normal(size=(1, 5, 2, 4, 6)).astype("f4")
    data[:, :, 1] = rng.random((1, 5, 4, 6)) < 0.7
    data[0, 2, 1] = 0  # a frame without any value
    spec = DatasetSpec(
        name="a", equation="", num_trajectories=1, num_frames=5, grid_shape=(4, 6),
        frame_interval=1.0, domain_extent=(1.0, 1.0), boundary_conditions={}, splits={},
        fields=(Field("t", "t"), Field("mask", "mask")), masks={"t": "mask"},
    )  # fmt: skip
    found = []
    for name, pieces in (("a", [5]), ("b", [1, 3, 1])):
        writer = create_dataset(tmp_path / name, spec)
        blocks = np.split(data[0], np.cumsum(pieces)[:-1])
        writer.write_shard_frames(0, iter(blocks))
        writer.finalize()
        found.append(open_dataset(tmp_path / name).manifest.statistics["all"]["t"])
    assert found[0] == found[1]
    values = np.where(data[0, :, 1] != 0, data[0, :, 0].astype(float), np.nan)
    assert found[0]["std"] == pytest.approx(np.nanstd(values), rel=1e-12)
    assert found[0]["delta_mean"] == pytest.approx(np.nanmean(np.diff(values, axis=0)), rel=1e-12)


def test_pictures_leave_masked_points_white(tmp_path: Path) -> None:
    dataset, _ = converted(write(ocean(), tmp_path / "a.nc"), missing="mask")
    shown = shown_frames(dataset, 0, [0, 2])
    expected = ocean()["t"].values[0, [0, 2]].astype("f4")
    np.testing.assert_array_equal(shown[:, 1], expected)
    assert colour_limits(shown[:, 1], "t")[1] > 270  # the scale is that of the values
    animate(dataset, tmp_path / "a.gif")
    picture = np.asarray(Image.open(tmp_path / "a.gif").convert("RGB")).astype(int)
    panel = picture.shape[1] // 4
    pixel = picture.shape[0] / 6
    row, column = int((6 - 3 + 0.5) * pixel - pixel / 2), int(4.5 * panel / 7)
    assert (picture[row, column] > 240).all()  # land, in the middle of rows 2 and 3
    contact_sheet(dataset, tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 0


def test_batches_hold_masks_as_they_are(tmp_path: Path) -> None:
    """A mask is neither scaled nor forecast, and the fill is 0 to a network."""
    data = ocean(cloudy=True)
    dataset, _ = converted(write(data, tmp_path / "a.nc"), missing="mask")
    fields = ("t", "mask-t", "s", "mask-s")
    normalization = Normalization.from_statistics([dataset], fields)
    assert (normalization.mean[1], normalization.std[1]) == (0.0, 1.0)
    mixture = Mixture([MixtureEntry(dataset)], fields, lambda frames: [(0, 1, 2)], normalization)
    batch = np.empty((3, 4, *SHAPE[2:]), np.float32)
    mixture.read(0, 2, (0, 1, 2), batch)
    is_there = np.isfinite(data["t"].values[2])
    np.testing.assert_array_equal(batch[:, 1], is_there)
    assert np.abs(batch[:, 0][~is_there]).max() < 1e-5
    assert mixture.given_fields == {"mask-t", "mask-s"}


def test_a_dataset_without_a_mask_has_values_everywhere(tmp_path: Path) -> None:
    """In a mixture with one that has: its mask is 1, not the 0 of an absent field."""
    masked, _ = converted(write(ocean(), tmp_path / "a.nc"), missing="mask")
    (tmp_path / "whole").mkdir()
    whole, _ = converted(write(ocean().fillna(285.0), tmp_path / "whole/a.nc"))
    mixture = Mixture(
        [MixtureEntry(masked), MixtureEntry(whole)], ("t", "mask"), lambda n: [(0, 1)]
    )
    batch = np.empty((2, 2, *SHAPE[2:]), np.float32)
    mixture.read(1, 0, (0, 1), batch)
    assert (batch[:, 1] == 1).all()
    assert mixture.present(1).tolist() == [True, True]
    mixture.read(0, 0, (0, 1), batch)
    np.testing.assert_array_equal(batch[:, 1], np.broadcast_to(~LAND, batch[:, 1].shape))


def test_a_conversion_that_wrote_nothing_is_not_in_the_way_of_the_advised_one(
    tmp_path: Path,
) -> None:
    source, target = write(ocean(), tmp_path / "a.nc"), tmp_path / "out"
    with pytest.raises(SourceError, match="--missing mask"):
        convert.run(str(source), str(target), ConvertOptions())
    assert not target.exists()
    assert convert.run(str(source), str(target), ConvertOptions(missing="mask")).spec.masks
    # what has a shard stays: a trajectory without gaps, then one with
    late = ocean()
    late["t"][:6], late["s"][:6] = 285.0, 35.0
    source, target = write(late, tmp_path / "b.nc"), tmp_path / "late"
    options = {"num_workers": 1}
    with pytest.raises(SourceError):
        convert.run(str(source), str(target), ConvertOptions(trajectories_per_shard=1), **options)  # type: ignore[arg-type]
    kept = {p: p.stat().st_mtime_ns for p in target.rglob("*") if p.is_file()}
    assert len(kept) > 6
    with pytest.raises(ValueError, match="was begun with another spec"):
        convert.run(str(source), str(target), ConvertOptions(missing="mask"))
    assert {p: p.stat().st_mtime_ns for p in kept} == kept
