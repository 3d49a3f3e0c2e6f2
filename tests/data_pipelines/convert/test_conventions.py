"""CF and NUG conventions in every container, against xarray and against arithmetic by hand."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
import pytest
import xarray
import zarr

from pelagos.data_pipelines.conventions import MissingValueError, parse, require_present, time_axis
from pelagos.data_pipelines.convert import ConvertOptions, SourceError, open_source
from pelagos.data_pipelines.foreign import open_foreign
from pelagos.data_pipelines.foreign.identity import fingerprint
from pelagos.data_pipelines.store import Dataset, DatasetError, open_dataset
from pelagos.jobs import convert

SHAPE = (4, 3, 5, 6)
AXES = ("sample", "time", "lat", "lon")
FILL = -32767
HERE = (2, 1, 3, 4)  # where a value is missing


def kelvin() -> xarray.Dataset:
    values = 280 + np.random.default_rng(0).normal(0, 5, SHAPE)
    coordinates = {
        "time": (
            "time",
            [6.0, 12.0, 18.0],
            {"units": "hours since 2000-02-28", "calendar": "noleap"},
        )
    }
    found = xarray.Dataset({"t": (AXES, values, {"units": "K"})}, coords=coordinates)
    found["t"].encoding = {
        "dtype": "i2", "scale_factor": 0.01, "add_offset": 280.0, "_FillValue": FILL
    }  # fmt: skip
    return found


def netcdf4(path: Path, data: xarray.Dataset) -> Path:
    data.to_netcdf(path.with_suffix(".nc"), engine="h5netcdf")
    return path.with_suffix(".nc")


def classic(path: Path, data: xarray.Dataset) -> Path:
    data.to_netcdf(path.with_suffix(".nc"), engine="scipy")
    return path.with_suffix(".nc")


def zarr_2(path: Path, data: xarray.Dataset) -> Path:
    data.to_zarr(path.with_suffix(".zarr"), zarr_format=2, consolidated=False)
    return path.with_suffix(".zarr")


def zarr_3(path: Path, data: xarray.Dataset) -> Path:
    data.to_zarr(path.with_suffix(".zarr"), zarr_format=3, consolidated=False)
    return path.with_suffix(".zarr")


CONTAINERS = [netcdf4, classic, zarr_2, zarr_3]
Write = Callable[[Path, xarray.Dataset], Path]


def read_by_xarray(path: Path) -> npt.NDArray[np.float64]:
    if path.suffix == ".zarr":
        opened = xarray.open_zarr(path, consolidated=False, decode_times=False)
    else:
        opened = xarray.open_dataset(path, decode_times=False)
    with opened:
        found: npt.NDArray[np.float64] = opened["t"].values.astype(np.float64)
    return found


def mapped(folder: Path, **entry: Any) -> ConvertOptions:
    file = folder / "map.yaml"
    text = ", ".join(f"{key}: {value}" for key, value in entry.items())
    file.write_text(
        f"fields:\n  - {{key: t, axes: [n, t, y, x], names: [t]{text and ', ' + text}}}\n"
    )
    return ConvertOptions(mapping=str(file))


def everything(dataset: Dataset) -> npt.NDArray[Any]:
    count, frames = dataset.num_trajectories, dataset.num_frames
    return np.stack([dataset.window(i, 0, frames) for i in range(count)])


@pytest.mark.parametrize("write", CONTAINERS, ids=lambda w: w.__name__)
def test_packed_numbers_are_unpacked_in_every_container(tmp_path: Path, write: Write) -> None:
    path = write(tmp_path / "a", kelvin())
    options = mapped(tmp_path)
    result = convert.run(str(path), str(tmp_path / "out.zarr"), options, verify=True)
    assert result.differences == ()
    dataset = open_dataset(tmp_path / "out.zarr")
    expected = read_by_xarray(path)
    assert expected.mean() == pytest.approx(280, abs=1)  # xarray did unpack
    np.testing.assert_allclose(everything(dataset)[:, :, 0], expected, rtol=1e-7)
    assert dataset.spec.fields[0].unit == "K"


@pytest.mark.parametrize("write", CONTAINERS, ids=lambda w: w.__name__)
def test_a_missing_value_is_an_error_in_every_container(tmp_path: Path, write: Write) -> None:
    data = kelvin()
    data["t"].values[HERE] = np.nan
    data["t"].values[2, 2, 0, :2] = np.nan
    path = write(tmp_path / "a", data)
    assert np.isnan(read_by_xarray(path)).sum() == 3
    where = r"index \(2, 1, 3, 4\).* = -32767, .* of 3 of the"
    with pytest.raises(SourceError, match=rf"a\.\w+: t holds no value at {where}"):
        convert.run(str(path), str(tmp_path / "out.zarr"), mapped(tmp_path))
    with pytest.raises(DatasetError):
        open_dataset(tmp_path / "out.zarr")


@pytest.mark.parametrize("write", [zarr_2, zarr_3], ids=lambda w: w.__name__)
def test_training_in_place_decodes_as_conversion_does(tmp_path: Path, write: Write) -> None:
    path = write(tmp_path / "a", kelvin())
    dataset = open_foreign(path)
    expected = read_by_xarray(path)
    np.testing.assert_allclose(dataset.read_frames(1, range(3))[:, 0], expected[1], rtol=1e-7)
    train = expected[slice(*dataset.spec.splits["train"])]
    assert dataset.statistics["t"]["mean"] == pytest.approx(train.mean(), rel=1e-7)
    spec = dataset.spec
    assert (spec.fields[0].unit, spec.frame_interval) == ("K", 6.0)
    assert spec.generator == {"time_unit": "hour", "calendar": "noleap"}
    assert open_source(str(path), ConvertOptions()).details["calendar"] == "noleap"
    damaged = kelvin()
    damaged["t"].values[HERE] = np.nan
    path = write(tmp_path / "b", damaged)
    with pytest.raises(DatasetError, match=r"index \(2, 1, 3, 4\).*-32767.*--missing mask") as told:
        open_foreign(path).read_frames(2, range(3))
    assert "write_empty_chunks" not in str(told.value)  # that is about chunks that are absent


def test_units_and_times_do_not_change_the_fingerprint(tmp_path: Path) -> None:
    """Runs that began before units and calendars were read go on with their data."""
    dataset = open_foreign(zarr_2(tmp_path / "a", kelvin()))
    plain = tuple(dataclasses.replace(f, unit="1") for f in dataset.spec.fields)
    before = dataclasses.replace(dataset.spec, fields=plain, generator={})
    assert dataset.spec != before
    assert dataset.fingerprint == fingerprint(dataset.uri, None, before, dataset.arrays)


def decoded(stored: Any, **attributes: Any) -> npt.NDArray[Any]:
    numbers = np.asarray(stored)
    found = parse(attributes, numbers.dtype, "file: a").decode(numbers)
    if found.missing is not None:
        np.testing.assert_array_equal(np.isnan(found.values), found.missing)
    return found.values


NAN = np.nan


@pytest.mark.parametrize(
    ("stored", "attributes", "values"),
    [
        # CF 8.1, with numbers of float64 that float32 would round twice
        (np.array([-1, 0, 7], "i2"), {"scale_factor": 0.5, "add_offset": 3}, [2.5, 3, 6.5]),
        (np.array([16777217], "i4"), {"scale_factor": 0.5}, [8388608.5]),
        # several missing values, and a fill value next to them
        (
            np.array([-1, -2, 3, 9], "i2"),
            {"missing_value": np.array([-1, -2], "i2"), "_FillValue": np.int16(9)},
            [NAN, NAN, 3, NAN],
        ),
        (np.array([1e20, 2], "f4"), {"missing_value": 1e20}, [NAN, 2]),
        # a fill value of type float32 for numbers of float64: no float64 equals it exactly
        (np.array([1e20, 2], "f8"), {"_FillValue": np.float32(1e20)}, [NAN, 2]),
        # NUG: limits are of stored numbers, unless they have the type of the unpacked ones
        (
            np.array([-1, 0, 200, 201], "i2"),
            {"scale_factor": 0.1, "valid_range": np.array([0, 200], "i2")},
            [NAN, 0, 20, NAN],
        ),
        (
            np.array([0, 100, 201], "i2"),
            {"scale_factor": 0.1, "valid_range": np.array([1.0, 20.0])},
            [NAN, 10, NAN],
        ),
        (np.array([-1.0, 4.0], "f4"), {"valid_min": np.float32(0)}, [NAN, 4]),
        (np.array([-1.0, 4.0], "f4"), {"valid_max": 3}, [-1, NAN]),
        # bytes that are unsigned, their fill value and limit too
        (
            np.array([-1, -2, 5], "i1"),
            {"_Unsigned": "true", "_FillValue": np.int8(-1)},
            [NAN, 254, 5],
        ),
        (
            np.array([-56, 10], "i1"),
            {"_Unsigned": "true", "valid_max": np.int8(-57), "scale_factor": 2.0},
            [NAN, 20],
        ),
        (np.array([255, 5], "u1"), {"_Unsigned": "false"}, [-1, 5]),
        # text, as netCDF files have it, and Zarr v3's base64
        (np.array([-9999.0, 1], "f4"), {"missing_value": "-9999"}, [NAN, 1]),
        (np.array([-9999.0, 1], "f4"), {"_FillValue": "AAAAAICHw8A="}, [NAN, 1]),
    ],
)
def test_every_attribute(stored: Any, attributes: dict[str, Any], values: list[float]) -> None:
    np.testing.assert_allclose(decoded(stored, **attributes), np.float32(values), rtol=1e-7)


def test_unsigned_numbers_agree_with_xarray(tmp_path: Path) -> None:
    stored = np.arange(-128, 128, dtype="i1").reshape(1, 1, 16, 16)
    with h5py.File(tmp_path / "a.nc", "w") as file:
        data = file.create_dataset("t", data=stored)
        data.attrs.update(_Unsigned="true", scale_factor=0.5, _FillValue=np.int8(-1))
        for axis, name in enumerate(AXES):
            scale = file.create_dataset(name, data=np.arange(stored.shape[axis]))
            scale.make_scale(name)
            data.dims[axis].attach_scale(scale)
    expected = read_by_xarray(tmp_path / "a.nc")
    conventions = parse(
        {"_Unsigned": "true", "scale_factor": 0.5, "_FillValue": -1}, stored.dtype, ""
    )
    np.testing.assert_array_equal(conventions.decode(stored).values, expected)
    assert np.nanmax(expected) == 127.0


def random_array(rng: np.random.Generator) -> tuple[npt.NDArray[Any], dict[str, Any]]:
    """Numbers of some type with some attributes, of those that xarray decodes."""
    dtype = np.dtype(rng.choice(["i1", "u1", "i2", "u2", "i4", "f4", "f8"]))
    if dtype.kind == "f":
        stored = (rng.normal(size=50) * rng.choice([1, 1e5])).astype(dtype)
    else:
        limits = np.iinfo(dtype)
        stored = rng.integers(limits.min, limits.max, size=50, endpoint=True).astype(dtype)
    attributes: dict[str, Any] = {}
    if rng.random() < 0.6:
        attributes["scale_factor"] = float(rng.choice([0.5, 0.01, 2, 1e-3]))
    if rng.random() < 0.5:
        attributes["add_offset"] = float(rng.choice([0.0, 273.15, -5]))
    if rng.random() < 0.7:
        attributes["_FillValue"] = stored[rng.integers(50)]
    if dtype.kind in "iu" and rng.random() < 0.4:
        attributes["_Unsigned"] = "true" if dtype.kind == "i" else "false"
    elif rng.random() < 0.3:  # of these xarray does not change the sign
        attributes["missing_value"] = stored[:2].copy() if rng.random() < 0.5 else stored[3]
    return stored, attributes


@pytest.mark.filterwarnings("ignore:variable")  # of several missing values
def test_random_attributes_agree_with_xarray() -> None:
    rng = np.random.default_rng(0)
    for _ in range(400):
        stored, attributes = random_array(rng)
        variable = xarray.Variable(("x",), stored, dict(attributes))
        expected = xarray.conventions.decode_cf_variable("v", variable, decode_times=False).values
        found = parse(attributes, stored.dtype, "").decode(stored).values
        size = float(np.nanmax(np.abs(expected)))
        np.testing.assert_allclose(
            found.astype(float), expected, rtol=0, atol=1e-6 * size, err_msg=str(attributes)
        )


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"scale_factor": "0.1"}, "f.nc: a has the attribute scale_factor = '0.1'"),
        ({"scale_factor": np.array([1.0, 2.0])}, "scale_factor = .*expected a number"),
        ({"scale_factor": 0.0}, "makes all values the same"),
        ({"add_offset": np.nan}, "add_offset = nan; expected a finite number"),
        ({"_FillValue": "none"}, "_FillValue = 'none'; expected a number"),
        ({"missing_value": {"a": 1}}, "missing_value = "),
        ({"valid_range": [1, 2, 3]}, r"valid_range = \[1, 2, 3\]; expected two numbers"),
        ({"_Unsigned": "maybe"}, "_Unsigned = 'maybe'"),
    ],
)
def test_what_cannot_be_honoured_is_named(attributes: dict[str, Any], message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        parse(attributes, np.dtype("i2"), "f.nc: a")


def test_attributes_that_resemble_are_noted() -> None:
    found = parse({"ScaleFactor": 0.1, "NoData": -1, "long_name": "t"}, np.dtype("i2"), "f: a")
    assert found.is_identity
    assert "NoData, ScaleFactor, which CF does not define" in found.notes[0]


def test_a_missing_value_is_found_where_it_stands() -> None:
    found = parse({"_FillValue": -1}, np.dtype("i2"), "").decode(np.array([[3, 4], [-1, -1]], "i2"))
    with pytest.raises(
        MissingValueError, match=r"f: a holds no value at index \(1, 0\).* 2 of the 4"
    ):
        require_present(found, "f: a")


def test_the_fill_value_of_netcdf_is_no_value(tmp_path: Path) -> None:
    """netCDF's own, where a variable names none: it is what unwritten numbers hold."""
    values = np.ones(SHAPE, "f4")
    values[HERE] = 9.96920996838687e36  # NC_FILL_FLOAT of netcdf.h
    data = xarray.Dataset({"t": (AXES, values)})
    data["t"].encoding["_FillValue"] = None
    for write in (netcdf4, classic):
        path = write(tmp_path / write.__name__, data)
        with pytest.raises(SourceError, match=r"index \(2, 1, 3, 4\).*fill value of netCDF"):
            convert.run(str(path), str(path.with_suffix(".out")), mapped(tmp_path))


def test_fill_values_of_zarr_2_that_someone_chose(tmp_path: Path) -> None:
    """As xarray reads them; zero, which nobody chooses, stays a number."""
    values = np.full(SHAPE, 2.0, "f4")
    values[HERE] = 0
    for fill, is_missing in ((0.0, False), (2.0, True), (None, False)):
        array = zarr.create_array(
            tmp_path / "a.zarr", shape=SHAPE, dtype="f4", fill_value=fill, zarr_format=2,
            overwrite=True, attributes={"_ARRAY_DIMENSIONS": list(AXES)},
            config={"write_empty_chunks": True},
        )  # fmt: skip
        array[...] = values
        dataset = open_foreign(tmp_path / "a.zarr")
        if is_missing:
            with pytest.raises(DatasetError, match=r"fill_value of its \.zarray = 2"):
                dataset.read_frames(0, [0])
        else:
            np.testing.assert_array_equal(dataset.read_frames(2, range(3))[:, 0], values[2])


@pytest.mark.parametrize(
    ("points", "attributes", "seconds"),
    [
        ([0, 6, 12], {"units": "hours since 1900-01-01"}, 6 * 3600),
        ([0, 1, 2], {"units": "days since 0001-01-01", "calendar": "360_day"}, 86400),
        ([0, 1, 2], {"units": "months since 2000-01-01", "calendar": "360_day"}, 30 * 86400),
        ([0, 500, 1000], {"units": "milliseconds since 1970-01-01"}, 0.5),
    ],
)
def test_times_have_a_unit(points: list[int], attributes: dict[str, str], seconds: float) -> None:
    lengths = {"hour": 3600.0, "day": 86400.0, "millisecond": 1e-3}
    found = time_axis(np.array(points), attributes, "f: time")
    assert found.unit is not None
    assert np.diff(found.points).tolist() == pytest.approx([seconds / lengths[found.unit]] * 2)


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        (
            {"units": "months since 2000-01-01"},
            "months have no fixed length in the calendar standard",
        ),
        ({"units": "fortnights since 2000-01-01"}, "known units: .*day"),
        (
            {"units": "days since 2000-01-01", "calendar": "mayan"},
            "calendar 'mayan'; known calendars: ",
        ),
    ],
)
def test_times_that_cannot_be_told_are_named(attributes: dict[str, str], message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        time_axis(np.arange(3), attributes, "f: time")


def test_moments_are_seconds() -> None:
    points = np.array(["2000-02-28T00", "2000-02-29T00", "2000-03-01T00"], "M8[h]")
    assert time_axis(points, {}, "f: time").points.tolist() == [0, 86400, 172800]
