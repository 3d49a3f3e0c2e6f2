"""netCDF that names its dimensions converts unaided, as Zarr does; other sources get a draft."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import xarray
import yaml
from typer.testing import CliRunner

from pelagos.cli.main import app
from pelagos.data_pipelines.convert import ConvertOptions, SourceError, open_source
from pelagos.data_pipelines.store import Dataset, open_dataset
from pelagos.jobs import convert

RNG = np.random.default_rng(5)
SHAPE = (5, 3, 4, 6)  # member, time, lat, lon


def simulation(first_hour: float = 0.0, members: bool = True) -> xarray.Dataset:
    axes = ("member", "time", "lat", "lon")[not members :]
    shape = SHAPE[not members :]
    fields = {
        "u": (axes, RNG.normal(size=shape), {"units": "m s-1"}),
        "p": (axes, RNG.normal(size=shape), {"units": "Pa"}),
        "land": (("lat", "lon"), np.ones(SHAPE[2:])),
    }
    coordinates: dict[str, Any] = {
        "time": ("time", first_hour + 6.0 * np.arange(3), {"units": "hours since 2000-01-01"}),
        "lat": ("lat", 60.0 - 0.5 * np.arange(4)),
        "lon": ("lon", 0.25 * np.arange(6)),
    }
    if members:
        fields["viscosity"] = (("member",), np.arange(5) / 7)
    return xarray.Dataset(fields, coords=coordinates)


def netcdf4(data: xarray.Dataset, path: Path) -> None:
    data.to_netcdf(path, engine="h5netcdf")


def classic(data: xarray.Dataset, path: Path) -> None:
    data.to_netcdf(path, engine="scipy")


def converted(source: Path, target: Path, options: ConvertOptions | None = None) -> Dataset:
    result = convert.run(str(source), str(target), options, verify=True)
    assert result.differences == ()
    return open_dataset(target)


@pytest.mark.parametrize("write", [netcdf4, classic], ids=lambda w: w.__name__)
def test_netcdf_converts_unaided_as_zarr_does(
    tmp_path: Path, write: Callable[[xarray.Dataset, Path], None]
) -> None:
    data = simulation().drop_vars("land")
    write(data, tmp_path / "a.nc")
    # as float32, which is what becomes of both
    data.to_zarr(tmp_path / "a.zarr", zarr_format=2, consolidated=False)
    dataset = converted(tmp_path / "a.nc", tmp_path / "from-nc")
    other = converted(tmp_path / "a.zarr", tmp_path / "from-zarr")
    by_name = {name: i for i, name in enumerate(dataset.field_names)}
    for name in ("u", "p"):
        expected = data[name].values.astype("f4")
        found = np.stack([dataset.window(i, 0, 3)[:, by_name[name]] for i in range(5)])
        np.testing.assert_array_equal(found, expected)
    assert dataset.spec.frame_interval == other.spec.frame_interval == 6.0
    assert dataset.spec.domain_extent == pytest.approx((2.0, 1.5))
    assert other.spec.domain_extent == pytest.approx((2.0, 1.5))
    assert {f.name: f.unit for f in dataset.spec.fields} == {"u": "m s-1", "p": "Pa"}
    assert {f.name: f.unit for f in other.spec.fields} == {"u": "m s-1", "p": "Pa"}
    assert dataset.parameters["viscosity"].tolist() == (np.arange(5) / 7).tolist()
    assert dataset.spec.generator["time_unit"] == "hour"


def test_what_is_left_out_and_assumed_is_noted(tmp_path: Path) -> None:
    netcdf4(simulation().drop_vars(["time", "lon"]), tmp_path / "a.nc")
    source = open_source(str(tmp_path / "a.nc"), ConvertOptions())
    assert source.format == "netcdf"
    assert source.notes == (
        "left out, because they are not along time or trajectories, or have another grid or length: "
        "land",
        "the source does not record these, so 1 is assumed for: frame_interval, the extent along x",
        f"{tmp_path}/a.nc: lat falls, 60 to 58.5 (4 points, -0.5 apart); rows keep the file's "
        "order, so the dataset's y runs against it",
    )
    simulation().drop_vars(["land", "lon"]).to_zarr(tmp_path / "a.zarr", consolidated=False)
    (note,) = open_source(str(tmp_path / "a.zarr"), ConvertOptions()).notes
    assert "y runs against its coordinate, which falls from 60 to 58.5" in note
    assert "extent 1 along x" in note


def test_positions_of_all_files_and_arrays_are_compared(tmp_path: Path) -> None:
    """Shifted, in another unit, or the other way round: no dataset holds both."""
    runs, beside = tmp_path / "runs", tmp_path / "beside"
    runs.mkdir()
    beside.mkdir()
    first = simulation(members=False).assign_coords(lat=("lat", 0.5 * np.arange(4), {"units": "m"}))
    netcdf4(first, runs / "a.nc")
    same = first.assign_coords(lat=first["lat"].astype("f4"))  # rounding is no difference
    lat = first["lat"].values
    changes = {
        "shifted": ("lat", lat + 0.25, {"units": "m"}),
        "scaled": ("lat", lat, {"units": "km"}),
        "bare": ("lat", lat, {}),
        "turned": ("lat", lat[::-1].copy(), {"units": "m"}),
    }
    fields = ["{file: '*.nc', key: u, axes: [t, y, x], names: [u]}"]
    given = "{file: '*.nc', key: lat}"
    for extent in (f"{{y: {given}}}", "{}", "{y: 2.0}"):
        mapping = tmp_path / "runs.yaml"
        mapping.write_text(f"fields: [{fields[0]}]\ndomain_extent: {extent}\n")
        options = ConvertOptions(mapping=str(mapping))
        netcdf4(same, runs / "b.nc")
        open_source(str(runs), options)
        for change in changes.values():
            netcdf4(first.assign_coords(lat=change), runs / "b.nc")
            if extent == "{y: 2.0}":
                assert open_source(str(runs), options).domain_extent == (2.0, 1.0)
                continue
            with pytest.raises(SourceError, match=r"b\.nc: lat has the points along y at .*a\.nc"):
                open_source(str(runs), options)
    # two arrays of one trajectory, each in a file of its own
    mapping.write_text(
        "fields: [{file: u.nc, key: u, axes: [t, y, x], names: [u]}, "
        "{file: p.nc, key: p, axes: [t, y, x], names: [p]}]\n"
    )
    options = ConvertOptions(mapping=str(mapping))
    for write in (netcdf4, classic):
        write(first, beside / "u.nc")
        write(same, beside / "p.nc")
        open_source(str(beside), options)
        for change in changes.values():
            write(first.assign_coords(lat=change), beside / "p.nc")
            with pytest.raises(SourceError, match=r"p\.nc: lat has the points along y"):
                open_source(str(beside), options)
        write(simulation(first_hour=6.0, members=False).assign_coords(lat=lat), beside / "p.nc")
        write(first.assign_coords(lat=lat), beside / "u.nc")
        with pytest.raises(SourceError, match=r"p\.nc: time has the frames at 6 to 18 hours since"):
            open_source(str(beside), options)


def test_an_array_that_only_a_later_file_has_is_noted(tmp_path: Path) -> None:
    for i in range(4):
        run = simulation(members=False).drop_vars("land")
        netcdf4(run.assign(q=run["p"]) if i == 2 else run, tmp_path / f"{i}.nc")
    notes = open_source(str(tmp_path), ConvertOptions()).notes
    expected = (
        f"left out: q, which 1 of 4 files have, e.g. {tmp_path}/2.nc, but {tmp_path}/0.nc lacks"
    )
    assert expected in notes


def test_other_beginnings_are_noted(tmp_path: Path) -> None:
    for name, hour in (("a", 0.0), ("b", 0.0), ("c", 48.0)):
        netcdf4(simulation(hour, members=False).drop_vars("land"), tmp_path / f"{name}.nc")
    notes = open_source(str(tmp_path), ConvertOptions()).notes
    assert (
        f"the time of the first frame differs: 0 hour since 2000-01-01 in {tmp_path}/a.nc, 48 hour "
        f"since 2000-01-01 in {tmp_path}/c.nc; frames are counted from 0"
    ) in notes
    (tmp_path / "c.nc").unlink()
    notes = open_source(str(tmp_path), ConvertOptions()).notes
    assert not any("first frame" in note for note in notes)


def test_a_parameter_in_two_units_is_rejected(tmp_path: Path) -> None:
    for name, unit in (("a", "m"), ("b", "metre"), ("c", "cm")):
        run = simulation(members=False).drop_vars("land")
        netcdf4(run.assign(depth=((), 5.0, {"units": unit})), tmp_path / f"{name}.nc")
    message = r"c\.nc: depth is in cm, but .*a\.nc: depth in m. A parameter has one unit"
    with pytest.raises(SourceError, match=message):
        open_source(str(tmp_path), ConvertOptions())
    (tmp_path / "c.nc").unlink()
    (source,) = open_source(str(tmp_path), ConvertOptions()).splits.values()
    assert [part.parameters["depth"] for part in source] == [(5.0,), (5.0,)]


def test_a_folder_of_netcdf_files_with_a_trajectory_each(tmp_path: Path) -> None:
    runs = [simulation(members=False).drop_vars("land") for _ in range(4)]
    (tmp_path / "runs").mkdir()
    for i, run in enumerate(runs):
        netcdf4(run, tmp_path / f"runs/run{i}.nc")
    dataset = converted(tmp_path / "runs", tmp_path / "out")
    at = dataset.field_names.index("p")
    for i, run in enumerate(runs):
        found = dataset.window(i, 0, 3)[:, at]
        np.testing.assert_array_equal(found, run["p"].values.astype("f4"))


def test_a_folder_per_split(tmp_path: Path) -> None:
    for split in ("train", "valid"):
        (tmp_path / "all" / split).mkdir(parents=True)
        netcdf4(simulation().drop_vars("land"), tmp_path / "all" / split / "a.nc")
    dataset = converted(tmp_path / "all", tmp_path / "out")
    assert dataset.spec.splits == {"train": (0, 5), "validation": (5, 10)}


def test_pieces_of_one_trajectory_are_not_taken_for_several(tmp_path: Path) -> None:
    (tmp_path / "years").mkdir()
    for i in range(3):
        netcdf4(simulation(18.0 * i, members=False), tmp_path / f"years/{2000 + i}.nc")
    message = r"2001\.nc begins where .*2000\.nc ends, so the files are pieces of one trajectory"
    with pytest.raises(SourceError, match=message):
        open_source(str(tmp_path / "years"), ConvertOptions())


@pytest.mark.parametrize("calendar", ["standard", "noleap", "360_day"])
def test_pieces_are_told_by_their_dates(tmp_path: Path, calendar: str) -> None:
    """xarray writes each file's times from the file's own first one."""
    first = simulation(members=False).isel(time=slice(0, 2))
    dates = ("2000-02-28", "2000-02-28 12:00:00") if calendar == "standard" else (
        "2001-02-28 12:0:0", "2001-03-01T00:00Z" if calendar == "noleap" else "2001-02-29")  # fmt: skip
    for name, date in zip(("a", "b"), dates, strict=True):
        units = {"units": f"hours since {date}", "calendar": calendar}
        netcdf4(first.assign_coords(time=("time", [0.0, 6.0], units)), tmp_path / f"{name}.nc")
    with pytest.raises(SourceError, match=r"b\.nc begins where .*a\.nc ends"):
        open_source(str(tmp_path), ConvertOptions())
    units["units"] = "hours since 2010-01-01"
    netcdf4(first.assign_coords(time=("time", [0.0, 6.0], units)), tmp_path / "b.nc")
    assert open_source(str(tmp_path), ConvertOptions()).frame_interval == 6.0


def test_places_and_moments_may_be_written_in_several_ways(tmp_path: Path) -> None:
    one = simulation(members=False)
    one["lat"].attrs["units"], one["lon"].attrs["units"] = "degrees_north", "m"
    other = one.copy()
    other["lat"].attrs["units"], other["lon"].attrs["units"] = "degree_N", "metres"
    days = {"units": "days since 1999-12-31T12:00:00Z"}
    other = other.assign_coords(time=("time", 0.5 + 0.25 * np.arange(3), days))
    mapping = tmp_path / "beside.yaml"
    mapping.write_text(
        "fields: [{file: u.nc, key: u, axes: [t, y, x], names: [u]}, "
        "{file: p.nc, key: p, axes: [t, y, x], names: [p]}]\n"
    )
    netcdf4(one, tmp_path / "u.nc")
    netcdf4(other, tmp_path / "p.nc")
    read = [xarray.load_dataset(tmp_path / name, engine="h5netcdf") for name in ("u.nc", "p.nc")]
    np.testing.assert_array_equal(read[0]["time"].values, read[1]["time"].values)
    open_source(str(tmp_path), ConvertOptions(mapping=str(mapping)))
    for start in (0.25, 0.51):  # the numbers of hours say the same, or nearly so
        late = other.assign_coords(time=("time", start + 0.25 * np.arange(3), days))
        netcdf4(late, tmp_path / "p.nc")
        with pytest.raises(
            SourceError, match="The fields of a trajectory must have the same times"
        ):
            open_source(str(tmp_path), ConvertOptions(mapping=str(mapping)))


@pytest.mark.parametrize("kind", ["nc", "zarr"])
def test_fields_along_dimensions_of_several_names_lie_in_one_place(
    tmp_path: Path, kind: str
) -> None:
    """u on cells and p on nodes, as staggered grids have them."""
    data = simulation().drop_vars("land")
    data["p"] = data["p"].rename(lat="latitude")
    for shift in (0.0, 0.25):
        data = data.assign_coords(latitude=data["lat"].values + shift)
        place = tmp_path / f"{shift}.{kind}"
        if kind == "nc":
            netcdf4(data, place)
        else:
            data.to_zarr(place, zarr_format=3, consolidated=False)
        if not shift:
            assert open_source(str(place), ConvertOptions()).domain_extent == (2.0, 1.5)
            continue
        with pytest.raises(SourceError, match=r"lat\w* has the points along y at"):
            open_source(str(place), ConvertOptions())


def test_files_of_other_steps_or_domains_are_rejected(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    netcdf4(simulation(members=False), tmp_path / "runs/a.nc")
    other = simulation(members=False)
    for change, message in (
        ({"lon": other["lon"] * 2}, r"b\.nc: lon has the points .* 0\.5 apart\), .*a\.nc.* 0\.25"),
        ({"lat": [60.0, 59.0, 57.0, 56.0]}, r"b\.nc: lat has steps from -2 to -1, .*even"),
    ):
        changed = other.assign_coords({k: v.data if hasattr(v, "data") else v
                                       for k, v in change.items()})  # fmt: skip
        netcdf4(changed, tmp_path / "runs/b.nc")
        with pytest.raises(SourceError, match=message):
            open_source(str(tmp_path / "runs"), ConvertOptions())


# -- drafts ---------------------------------------------------------------------------------------


def draft(source: Path) -> str:
    result = CliRunner().invoke(app, ["convert", str(source), "--draft-mapping"])
    assert result.exit_code == 0, result.output
    return result.stdout


def through_draft(source: Path, folder: Path) -> Dataset:
    (folder / "draft.yaml").write_text(draft(source))
    return converted(source, folder / "out", ConvertOptions(mapping=str(folder / "draft.yaml")))


def test_a_draft_of_named_dimensions_converts_as_it_is(tmp_path: Path) -> None:
    data = simulation()
    netcdf4(data, tmp_path / "a.nc")
    text = draft(tmp_path / "a.nc")
    assert "guessed" not in text
    assert "# left out: land (4, 6) along lat, lon" in text
    assert yaml.safe_load(text)["frame_interval"] == {"key": "time"}
    dataset = through_draft(tmp_path / "a.nc", tmp_path)
    at = dataset.field_names.index("u")
    np.testing.assert_array_equal(dataset.window(4, 0, 3)[:, at], data["u"].values[4].astype("f4"))


def test_a_draft_of_unnamed_arrays_says_what_is_guessed(tmp_path: Path) -> None:
    data = RNG.normal(size=(5, 3, 12, 16, 2)).astype("f4")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["flow"], file["nu"] = data, np.arange(5.0)
    text = draft(tmp_path / "a.h5")
    assert "# guessed: the axes of flow (5, 3, 12, 16, 2) are [n, t, y, x, c]" in text
    dataset = through_draft(tmp_path / "a.h5", tmp_path)
    assert dataset.field_names == ("flow-0", "flow-1")
    np.testing.assert_array_equal(dataset.window(4, 0, 3), data[4].transpose(0, 3, 1, 2))
    assert dataset.parameters["nu"].tolist() == [0, 1, 2, 3, 4]


def test_a_draft_of_a_folder_has_a_pattern(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    runs = RNG.normal(size=(4, 3, 12, 16)).astype("f4")
    for i, run in enumerate(runs):
        np.savez(tmp_path / f"runs/{i}.npz", u=run, nu=np.array(i / 3))
    dataset = through_draft(tmp_path / "runs", tmp_path)
    np.testing.assert_array_equal(dataset.window(3, 0, 3)[:, 0], runs[3])
    assert dataset.parameters["nu"].tolist() == [0, 1 / 3, 2 / 3, 1]


def test_a_draft_of_nothing_says_what_there_is(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.arange(4))
    result = CliRunner().invoke(app, ["convert", str(tmp_path / "a.npy"), "--draft-mapping"])
    assert result.exit_code == 2
    assert "it has" in result.output
    assert "(4,)" in result.output


def test_files_whose_positions_run_the_other_way_are_rejected(tmp_path: Path) -> None:
    """Latitude from north to south in one file of several: its values would stand upside down."""
    folder = tmp_path / "runs"
    folder.mkdir()
    one = simulation(members=False)
    netcdf4(one, folder / "0.nc")
    netcdf4(one.isel(lat=slice(None, None, -1)), folder / "1.nc")
    message = (
        r"1\.nc: lat has the points along y .* 0.5 apart\), .*0\.nc.* -0.5 apart\)\. .*one order"
    )
    with pytest.raises(SourceError, match=message):
        converted(folder, tmp_path / "out.zarr")


@pytest.mark.parametrize("kind", ["netcdf", "zarr"])
def test_frames_that_run_backwards_in_time_are_rejected(tmp_path: Path, kind: str) -> None:
    backwards = simulation().isel(time=slice(None, None, -1))
    place = tmp_path / f"back.{kind}"
    if kind == "netcdf":
        netcdf4(backwards, place.with_suffix(".nc"))
        place = place.with_suffix(".nc")
    else:
        backwards.to_zarr(place, zarr_format=2)
    with pytest.raises(SourceError, match="backwards"):
        converted(place, tmp_path / "out.zarr")


def test_a_missing_parameter_is_not_answered_with_a_mask(tmp_path: Path) -> None:
    """Masks are of fields: advice that ends in the same error is none."""
    encoding = {"viscosity": {"_FillValue": 2 / 7}}
    simulation().to_netcdf(tmp_path / "a.nc", engine="h5netcdf", encoding=encoding)
    for options in (ConvertOptions(), ConvertOptions(missing="mask")):
        with pytest.raises(ValueError, match=r"viscosity holds no value at index \(2\)") as caught:
            converted(tmp_path / "a.nc", tmp_path / "out.zarr", options)
        assert "--missing" not in str(caught.value)
        assert "need every value" in str(caught.value)


def test_a_parameter_that_a_later_file_lacks_is_named_as_one(tmp_path: Path) -> None:
    for i in range(2):
        run = simulation(members=False).drop_vars("land")
        netcdf4(run.assign(nu=0.1) if i == 0 else run, tmp_path / f"{i}.nc")
    with pytest.raises(SourceError, match=r"1\.nc has no array 'nu'.*It is parameter 'nu', which"):
        open_source(str(tmp_path), ConvertOptions())


def test_one_time_step_in_several_units_is_one(tmp_path: Path) -> None:
    first = simulation(members=False).drop_vars("land")
    other = first.assign_coords(
        time=("time", 360.0 * np.arange(3), {"units": "minutes since 2001-01-01"})
    )
    netcdf4(first, tmp_path / "a.nc")
    netcdf4(other, tmp_path / "b.nc")
    source = open_source(str(tmp_path), ConvertOptions())
    assert (source.frame_interval, source.details["time_unit"]) == (6.0, "hour")
    netcdf4(
        other.assign_coords(
            time=("time", 6.0 * np.arange(3), {"units": "minutes since 2001-01-01"})
        ),
        tmp_path / "b.nc",
    )
    with pytest.raises(SourceError, match=r"b\.nc has a frame every 6 minute.*a\.nc every 6 hour"):
        open_source(str(tmp_path), ConvertOptions())
