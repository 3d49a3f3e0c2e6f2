"""Whole numbers in 16-bit types are noted where they are rounded; ids are never merged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
import xarray as xr
import zarr
from PIL import Image
from typer.testing import CliRunner

from pelagos.cli.main import app
from pelagos.data_pipelines.convert import ConvertOptions, SourceError
from pelagos.data_pipelines.foreign import open_readable
from pelagos.data_pipelines.store import DatasetError, open_dataset
from pelagos.jobs import convert

DIMS = ("sample", "time", "y", "x")
SHAPE = (3, 2, 4, 5)
# Beyond the digits of each type, and odd: torch and numpy say what they become.
NUMBERS = {"bfloat16": 259, "float16": 2051}
KINDS = ["npy", "npz", "hdf5", "classic", "zarr2", "zarr3"]


def rounded(number: int, dtype: str) -> float:
    return float(torch.tensor(number, dtype=torch.int32).to(getattr(torch, dtype)))


def write(folder: Path, kind: str, values: Any, name: str = "u", **attributes: Any) -> Path:
    """An array in one of the containers; those of xarray name its axes."""
    folder.mkdir(exist_ok=True)
    place = folder / f"{kind}.{'zarr' if kind.startswith('zarr') else 'nc'}"
    there = xr.Dataset({name: (DIMS, values, attributes)})
    if kind.startswith("zarr"):
        there.to_zarr(place, zarr_format=int(kind[-1]), consolidated=False)
    elif kind in ("hdf5", "classic"):
        there.to_netcdf(place, engine={"hdf5": "h5netcdf", "classic": "scipy"}[kind])  # type: ignore[call-overload]
    else:
        place = folder / f"a.{kind}"
        np.save(place, values) if kind == "npy" else np.savez(place, **{name: values})
    return place


def options_of(folder: Path, kind: str, name: str = "u", **options: Any) -> ConvertOptions:
    if kind in ("npy", "npz"):
        key = f", key: {name}" if kind == "npz" else ""
        mapping = folder / "m.yaml"
        mapping.write_text(f"fields: [{{axes: [n, t, y, x], names: [{name}]{key}}}]")
        options["mapping"] = str(mapping)
    return ConvertOptions(**options)


def notes_of(folder: Path, kind: str, values: Any, name: str = "u", **given: Any) -> list[str]:
    """What a conversion notes of rounding."""
    attributes = given.pop("attributes", {})
    source = write(folder, kind, values, name, **attributes)
    options = options_of(folder, kind, name, **given)
    result = convert.run(str(source), str(folder / "out.zarr"), options, verify=True)
    assert result.differences == ()
    return [note for note in result.notes if "rounds" in note]


@pytest.mark.parametrize("kind", KINDS)
def test_the_first_rounded_number_of_a_field_is_noted(tmp_path: Path, kind: str) -> None:
    for dtype, number in NUMBERS.items():
        values = np.full(SHAPE, 3, np.int16)
        values[1, 1, 2, 3] = number
        values[2, 0, 0, 0] = number + 2
        options = {"dtype": dtype, "trajectories_per_shard": 1}
        (note,) = notes_of(tmp_path / dtype, kind, values, **options)
        assert f"first {number}, which becomes {rounded(number, dtype):.0f}." in note
        assert note.startswith("u: ")
        assert str(tmp_path / dtype) in note
        stored = open_dataset(tmp_path / dtype / "out.zarr").window(1, 1, 1)
        assert stored[0, 0, 2, 3] == rounded(number, dtype)


def test_numbers_that_the_type_holds_are_not_noted(tmp_path: Path) -> None:
    values = np.full(SHAPE, 256, np.int32)
    values[1] = 258  # even: bfloat16 holds it
    assert notes_of(tmp_path / "even", "hdf5", values, dtype="bfloat16") == []
    values[2] = 259
    assert notes_of(tmp_path / "wide", "hdf5", values, dtype="float32") == []
    floats = values.astype(np.float32)  # measured: rounding them is what the type is asked for
    assert notes_of(tmp_path / "float", "hdf5", floats, dtype="bfloat16") == []
    packed = {"scale_factor": 0.5}
    found = notes_of(tmp_path / "packed", "zarr2", values, dtype="bfloat16", attributes=packed)
    assert found == []


def test_each_field_is_noted_once_and_missing_values_do_not_hide_it(tmp_path: Path) -> None:
    values = np.full((*SHAPE, 2), 259, np.int16)
    values[..., 1] = 261
    values[0, 0, 0, 0] = -1
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["u"] = values
        file["u"].attrs["_FillValue"] = np.int16(-1)
    (tmp_path / "m.yaml").write_text(
        "fields: [{key: u, axes: [n, t, y, x, c], names: [a, b]}]\nmissing: mask"
    )
    arguments = ["convert", str(tmp_path / "a.h5"), str(tmp_path / "out.zarr"), "--json"]
    arguments += ["--mapping", str(tmp_path / "m.yaml"), "--dtype", "bfloat16"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    notes = [note for note in json.loads(result.stdout)["notes"] if "rounds" in note]
    for note, name, number in zip(notes, "ab", (259, 261), strict=True):
        becomes = rounded(number, "bfloat16")
        assert note.startswith(f"{name}: ")
        assert f"first {number}, which becomes {becomes:.0f}" in note


def test_deep_pictures_are_noted_and_labels_rejected(tmp_path: Path) -> None:
    picture = np.full((6, 8), 2051, np.uint16)
    for number in range(3):
        folder = tmp_path / "pictures" / "cells"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(folder / f"{number}.png")
    options = ConvertOptions(dtype="float16")
    result = convert.run(str(tmp_path / "pictures"), str(tmp_path / "out.zarr"), options)
    (note,) = [note for note in result.notes if "rounds" in note]
    assert f"first 2051, which becomes {float(np.float16(2051)):.0f}" in note
    labels = np.full(SHAPE, 2051, np.uint16)
    with pytest.raises(SourceError, match="label 2051 becomes 2052 in float16"):
        notes_of(tmp_path / "labels", "hdf5", labels, "label", dtype="float16")


# -- parameters -----------------------------------------------------------------------------------


def write_parameter(folder: Path, kind: str, name: str, numbers: Any) -> Path:
    place = folder / f"{kind}.{'zarr' if kind.startswith('zarr') else 'nc'}"
    there = xr.Dataset({"u": (DIMS, np.ones(SHAPE, "f4")), name: (DIMS[:1], numbers)})
    if kind.startswith("zarr"):
        there.to_zarr(place, zarr_format=int(kind[-1]), consolidated=False)
    else:
        there.to_netcdf(place, engine={"hdf5": "h5netcdf", "classic": "scipy"}[kind])  # type: ignore[call-overload]
    return place


@pytest.mark.parametrize("kind", ["hdf5", "zarr2", "zarr3"])
def test_classes_that_float64_merges_are_rejected(tmp_path: Path, kind: str) -> None:
    """2^53 + 1 is the first whole number that float64 rounds, to 2^53."""
    ids = np.array([0, 2**53, 2**53 + 1], np.int64)
    assert float(ids[1]) == float(ids[2])
    source = write_parameter(tmp_path, kind, "label", ids)
    message = rf"label.* holds the whole number {2**53 + 1}.*rounds to {2**53}, at index \(2\)"
    with pytest.raises(SourceError, match=message):
        convert.run(str(source), str(tmp_path / "out.zarr"))
    assert not (tmp_path / "out.zarr").exists()
    ids[2] = 2**53 - 1
    kept = tmp_path / "kept"
    kept.mkdir()
    source = write_parameter(kept, kind, "label", ids)
    convert.run(str(source), str(kept / "out.zarr"))
    assert open_dataset(kept / "out.zarr").parameters["label"].tolist() == [0, 2**53, 2**53 - 1]


def test_seeds_that_float64_rounds_are_noted(tmp_path: Path) -> None:
    seeds = np.array([1, 2**63 + 1, 2], np.uint64)
    for kind in ("hdf5", "zarr3"):
        source = write_parameter(tmp_path, kind, "seed", seeds)
        result = convert.run(str(source), str(tmp_path / f"{kind}-out.zarr"))
        (note,) = [note for note in result.notes if "rounds" in note]
        assert f"{2**63 + 1}, which float64 rounds to {2**63}" in note


@pytest.mark.parametrize("kind", ["hdf5", "classic", "zarr2", "zarr3"])
@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_a_parameter_without_a_number_is_named_when_the_source_is_read(
    tmp_path: Path, kind: str, number: float
) -> None:
    source = write_parameter(tmp_path, kind, "nu", np.array([1.0, number, number]))
    message = rf"{source.name}.*nu.* holds {number} at index \(1\).*true of 2 of 3"
    with pytest.raises(SourceError, match=message):
        convert.plan(str(source), ConvertOptions())
    if kind.startswith("zarr"):
        with pytest.raises(ValueError, match=message):
            _ = open_readable(str(source)).parameters


@pytest.mark.parametrize("kind", ["hdf5", "classic", "zarr2", "zarr3"])
@pytest.mark.parametrize("name", ["time", "x"])
def test_a_position_without_a_number_is_named(tmp_path: Path, kind: str, name: str) -> None:
    place = tmp_path / f"{kind}.{'zarr' if kind.startswith('zarr') else 'nc'}"
    points = np.arange(float(SHAPE[DIMS.index(name)]))
    points[-1] = np.nan
    there = xr.Dataset({"u": (DIMS, np.ones(SHAPE, "f4"))}, {name: (name, points)})
    if kind.startswith("zarr"):
        there.to_zarr(place, zarr_format=int(kind[-1]), consolidated=False)
    else:
        there.to_netcdf(place, engine={"hdf5": "h5netcdf", "classic": "scipy"}[kind])  # type: ignore[call-overload]
    message = rf"{place.name}.*{name}.* holds nan at index \({len(points) - 1}\).*position"
    with pytest.raises(SourceError, match=message):
        convert.plan(str(place), ConvertOptions())


@pytest.mark.parametrize("number", [1e20, -1e9, 65535.0, 0.5])
def test_a_missing_value_that_the_type_cannot_hold_hides_nothing(
    tmp_path: Path, number: float
) -> None:
    """Two bytes hold no 1e20: no value is missing, for the conversion, `--verify` and xarray."""
    values = np.random.default_rng(0).integers(-9, 9, SHAPE, np.int16)
    source = write(tmp_path, "hdf5", values, missing_value=np.float64(number))
    result = convert.run(str(source), str(tmp_path / "out.zarr"), verify=True)
    assert result.differences == ()
    told = f"missing_value = {number:g}, which its type int16 cannot hold"
    assert any(told in note for note in result.notes)
    with xr.open_dataset(source) as opened:
        expected = opened["u"].values
    found = open_dataset(tmp_path / "out.zarr").window(1, 0, 2)[:, 0]
    np.testing.assert_array_equal(found, expected[1])
    np.testing.assert_array_equal(found, values[1])


def test_a_scalar_of_a_published_format_is_named_too(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "1D_Burgers.h5", "w") as file:
        file["tensor"] = np.ones((20, 3, 8), "f4")
        file["x-coordinate"], file["t-coordinate"] = np.linspace(0, 1, 8), np.linspace(0, 1, 3)
        file.attrs["Nu"] = np.nan
    with pytest.raises(SourceError, match=r"1D_Burgers\.h5: parameter 'Nu' is nan at index \(0\)"):
        convert.plan(str(tmp_path / "1D_Burgers.h5"), ConvertOptions())


# -- NaN in fields --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_nan_is_told_with_its_count_and_an_advice_that_works(tmp_path: Path, kind: str) -> None:
    values = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
    values[:, :, :2, 0] = np.nan
    source = write(tmp_path, kind, values)
    options = options_of(tmp_path, kind)
    with pytest.raises(SourceError) as caught:
        convert.run(str(source), str(tmp_path / "out.zarr"), options)
    told = str(caught.value)
    count = int(np.isnan(values[0]).sum())
    assert source.name in told
    assert "trajectory 0, frame 0, field 'u', grid index (0, 0)" in told
    assert f"true of {count} of the {values[0].size} values" in told
    assert "--missing mask" in told
    for policy in ("mask", "fill"):
        options = options_of(tmp_path, kind, missing=policy)
        convert.run(str(source), str(tmp_path / f"{policy}.zarr"), options, verify=True)
        stored = open_dataset(tmp_path / f"{policy}.zarr").window(2, 1, 1)[0]
        kept = ~np.isnan(values[2, 1])
        np.testing.assert_array_equal(stored[0][kept], values[2, 1][kept])
        if policy == "mask":
            np.testing.assert_array_equal(stored[1], kept)


def test_nan_in_nifti_has_the_same_advice(tmp_path: Path) -> None:
    nibabel = pytest.importorskip("nibabel")
    values = np.ones((4, 5, 6), np.float32)
    values[1, 2, 3] = np.nan
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), tmp_path / "a.nii")
    with pytest.raises(SourceError, match=r"a\.nii.*true of 1 of the 120 values.*--missing mask"):
        convert.run(str(tmp_path / "a.nii"), str(tmp_path / "out.zarr"))
    options = ConvertOptions(missing="mask")
    convert.run(str(tmp_path / "a.nii"), str(tmp_path / "masked.zarr"), options, verify=True)
    mask = open_dataset(tmp_path / "masked.zarr").window(0, 0, 1)[0, 1]
    np.testing.assert_array_equal(mask, ~np.isnan(values.transpose(2, 1, 0)))


@pytest.mark.parametrize("kind", KINDS)
def test_a_field_that_float32_makes_zero_is_rejected(tmp_path: Path, kind: str) -> None:
    """The smallest number of float32 is 1.4e-45; a trajectory that is 0 itself may stay so."""
    values = np.zeros(SHAPE)
    values[1:] = 3e-60
    source = write(tmp_path, kind, values)
    options = options_of(tmp_path, kind)
    with pytest.raises(SourceError, match=r"'u'.* 0 to 2 becomes 0 in float32.*largest is 3e-60"):
        convert.run(str(source), str(tmp_path / "out.zarr"), options)
    assert not (tmp_path / "out.zarr").exists()
    values[2, 1, 3, 4] = 1e-44  # a field is more than its tails
    values[0] = 0
    source = write(tmp_path / "kept", kind, values)
    convert.run(str(source), str(tmp_path / "kept.zarr"), options_of(tmp_path, kind), verify=True)
    found = open_dataset(tmp_path / "kept.zarr").window(2, 1, 1)[0, 0]
    np.testing.assert_array_equal(found, values[2, 1].astype(np.float32))
    assert found.any()


def test_numbers_too_large_for_float32_say_so(tmp_path: Path) -> None:
    source = write(tmp_path, "hdf5", np.full(SHAPE, 1e300))
    with pytest.raises(SourceError, match="inf is not finite as float32.*beyond 3.4e38.*unit"):
        convert.run(str(source), str(tmp_path / "out.zarr"))


def test_missing_classes_get_no_mean(tmp_path: Path) -> None:
    """The mean of classes 0 and 3 is no class."""
    labels = np.full(SHAPE, 3, np.float32)
    labels[:, :, 0], labels[0, 1, 2, 3] = 0, np.nan
    source = write(tmp_path, "hdf5", labels, "label")
    place = str(tmp_path / "out.zarr")
    with pytest.raises(SourceError, match="numbers classes.*--fill-value 0.*--missing mask"):
        convert.run(str(source), place, ConvertOptions(missing="fill"))
    with pytest.raises(SourceError, match=r"fill_value 1\.5 is not a class"):
        convert.run(str(source), place, ConvertOptions(missing="mask", fill_value=1.5))
    convert.run(str(source), place, ConvertOptions(missing="mask"), verify=True)
    found = open_dataset(place).window(0, 0, 2)
    assert set(np.unique(found[:, 0])) == {0, 3}
    np.testing.assert_array_equal(found[:, 1], ~np.isnan(labels[0]))
    filled = str(tmp_path / "filled.zarr")
    convert.run(str(source), filled, ConvertOptions(missing="fill", fill_value=7), verify=True)
    assert open_dataset(filled).window(0, 1, 1)[0, 0, 2, 3] == 7


def test_an_infinite_value_has_no_advice_to_mask_it(tmp_path: Path) -> None:
    values = np.ones(SHAPE, np.float32)
    values[0, 1] = np.nan  # elsewhere in the field
    values[0, 0, 1, 2] = np.inf
    source = write(tmp_path, "hdf5", values)
    with pytest.raises(SourceError, match="inf is not finite") as caught:
        convert.run(str(source), str(tmp_path / "out.zarr"))
    assert "--missing" not in str(caught.value)


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_nan_of_foreign_zarr_in_place_has_index_count_and_advice(
    tmp_path: Path, zarr_format: int
) -> None:
    values = np.ones(SHAPE, np.float32)
    values[2, 1, 3, 2:4] = np.nan
    source = write(tmp_path, f"zarr{zarr_format}", values)
    dataset = open_readable(str(source))
    assert dataset.read_frames(2, [0]).sum() == 20
    with pytest.raises(DatasetError) as caught:
        dataset.read_frames(2, [1])
    told = str(caught.value)
    assert "'u' holds NaN, which is no value, at index (2, 1, 3, 2)" in told
    assert "true of 2 of the 20 numbers" in told
    assert "--missing mask" in told
    assert "write_empty_chunks" not in told


# -- arrays that are no fields ---------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["hdf5", "classic", "zarr2", "zarr3"])
def test_static_arrays_of_a_group_are_left_out_with_a_note(tmp_path: Path, kind: str) -> None:
    rng = np.random.default_rng(1)
    values = rng.normal(size=(3, 2, 4, 5, 6)).astype(np.float32)
    there = xr.Dataset(
        {
            "u": (("sample", "time", "z", "y", "x"), values),
            "soil": (("z", "y", "x"), np.ones((4, 5, 6), "f4")),
            "land": (("y", "x"), np.ones((5, 6), "f4")),
            "corners": (("y", "x", "corner"), np.ones((5, 6, 4), "f4")),
        }
    )
    place = tmp_path / f"{kind}.{'zarr' if kind.startswith('zarr') else 'nc'}"
    if kind.startswith("zarr"):
        there.to_zarr(place, zarr_format=int(kind[-1]), consolidated=False)
    else:
        there.to_netcdf(place, engine={"hdf5": "h5netcdf", "classic": "scipy"}[kind])  # type: ignore[call-overload]
    result = convert.run(str(place), str(tmp_path / "out.zarr"), verify=True)
    assert (result.spec.field_names, result.differences) == (("u",), ())
    (note,) = [note for note in result.notes if "left out" in note]
    assert all(name in note for name in ("soil", "land", "corners"))
    np.testing.assert_array_equal(
        open_dataset(tmp_path / "out.zarr").window(1, 0, 2)[:, 0], values[1]
    )
    if kind.startswith("zarr"):
        foreign = open_readable(str(place))
        np.testing.assert_array_equal(foreign.read_frames(2, [1])[0, 0], values[2, 1])
        result = CliRunner().invoke(app, ["data", "inspect", str(place), "--json"])
        assert "soil" in " ".join(json.loads(result.stdout)["notes"])


def test_a_group_of_groups_names_them(tmp_path: Path) -> None:
    group = zarr.create_group(tmp_path / "a.zarr")
    group.create_group("run").create_array("u", data=np.ones(SHAPE), dimension_names=DIMS)
    with pytest.raises(ValueError, match=r"only groups: name one of .*a\.zarr/run"):
        open_readable(str(tmp_path / "a.zarr"))
    assert open_readable(str(tmp_path / "a.zarr/run")).num_trajectories == 3


def test_arrays_of_which_none_is_along_time_are_still_an_error(tmp_path: Path) -> None:
    group = zarr.create_group(tmp_path / "a.zarr")
    group.create_array("soil", data=np.ones((4, 5, 6)), dimension_names=("z", "y", "x"))
    group.create_array("odd", data=np.ones((4, 5, 6)), dimension_names=("time", "y", "corner"))
    with pytest.raises(ValueError, match="unknown.*corner"):
        open_readable(str(tmp_path / "a.zarr"))
