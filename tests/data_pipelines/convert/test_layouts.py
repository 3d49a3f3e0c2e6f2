"""Layouts people have, by a mapping: files per trajectory, per split, of other lengths and grids."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
import pytest
import xarray
from typer.testing import CliRunner

from pelagos.cli.main import app
from pelagos.data_pipelines.convert import ConvertOptions, SourceError, open_source
from pelagos.data_pipelines.store import Dataset, open_dataset
from pelagos.jobs import convert

RNG = np.random.default_rng(3)
Values = npt.NDArray[np.float32]

ASSUMED = (
    "the source does not record these, so 1 is assumed for: frame_interval, the extent along y, x"
)


def values(*shape: int) -> Values:
    return RNG.normal(size=shape).astype("f4")


def write_h5(file: Path, **arrays: Any) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(file, "w") as opened:
        for name, numbers in arrays.items():
            opened[name] = numbers


def options(folder: Path, text: str, **others: Any) -> ConvertOptions:
    (folder / "map.yaml").write_text(text)
    return ConvertOptions(mapping=str(folder / "map.yaml"), **others)


def converted(folder: Path, text: str, **others: Any) -> Dataset:
    place = folder / "out.zarr"
    result = convert.run(str(folder), str(place), options(folder, text, **others), verify=True)
    assert result.differences == ()
    return open_dataset(place)


def everything(dataset: Dataset) -> Values:
    count, frames = dataset.num_trajectories, dataset.num_frames
    return np.stack([dataset.window(i, 0, frames) for i in range(count)])


ONE = "fields: [{file: 'runs/*.h5', key: u, axes: [t, y, x], names: [u]}]\n"


def test_one_file_per_trajectory_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    runs = values(11, 3, 4, 5)
    for i, run in enumerate(runs):  # run10 comes after run9
        write_h5(tmp_path / f"runs/run{i}.h5", u=run, nu=i / 7)
    text = ONE + "parameters: {nu: {file: 'runs/*.h5', key: nu}, gamma: 1.4}\n"
    dataset = converted(tmp_path, text)
    np.testing.assert_array_equal(everything(dataset)[:, :, 0], runs)
    assert dataset.parameters["nu"].tolist() == [i / 7 for i in range(11)]
    assert dataset.spec.splits == {"train": (0, 9), "validation": (9, 10), "test": (10, 11)}


def test_several_trajectories_per_file_and_fields_in_files_of_their_own(tmp_path: Path) -> None:
    u, v, mask = values(5, 3, 4, 6), values(5, 3, 4, 6), values(4, 6)
    for name, rows in (("a", slice(0, 2)), ("b", slice(2, 5))):
        np.save(tmp_path / f"u_{name}.npy", u[rows])
        write_h5(tmp_path / f"v/{name}.h5", w=v[rows].transpose(0, 1, 3, 2))
    np.save(tmp_path / "mask.npy", mask)
    text = """
fields:
  - {file: "u_*.npy", axes: [n, t, y, x], names: [u]}
  - {file: "v/*.h5", key: w, axes: [n, t, x, y], names: [v]}
  - {file: mask.npy, axes: [y, x], names: [mask]}
"""
    dataset = converted(tmp_path, text)
    found = everything(dataset)
    np.testing.assert_array_equal(found[:, :, 0], u)
    np.testing.assert_array_equal(found[:, :, 1], v)
    np.testing.assert_array_equal(found[3, 2, 2], mask)
    assert dataset.spec.given_fields == ("mask",)
    (tmp_path / "v/b.h5").rename(tmp_path / "v/c.h5")
    with pytest.raises(SourceError, match=r"u_b\.npy has no matching file for v/\*\.h5"):
        open_source(str(tmp_path), options(tmp_path, text))


def test_a_folder_for_each_split(tmp_path: Path) -> None:
    rows = {"train": values(3, 2, 4, 4), "valid": values(1, 2, 4, 4), "test": values(2, 2, 4, 4)}
    for split, found in rows.items():
        for i, run in enumerate(found):
            write_h5(tmp_path / split / f"{i}.h5", u=run)
    (tmp_path / "scripts").mkdir()
    write_h5(tmp_path / "scripts/0.h5", u=values(2, 4, 4))
    text = "fields: [{file: '{split}/*.h5', key: u, axes: [t, y, x], names: [u]}]\n"
    dataset = converted(tmp_path, text)
    assert dataset.spec.splits == {"train": (0, 3), "validation": (3, 4), "test": (4, 6)}
    np.testing.assert_array_equal(
        everything(dataset)[:, :, 0], np.concatenate([rows[s] for s in ("train", "valid", "test")])
    )
    source = open_source(str(tmp_path), options(tmp_path, text))
    assert source.notes == ("left out, because they have no name of a split: scripts", ASSUMED)
    with pytest.raises(SourceError, match="the folders of the files already give the splits"):
        open_source(str(tmp_path), options(tmp_path, text + "splits: {train: 1.0}"))


def test_lengths_that_differ_are_rejected_or_cut_by_a_key(tmp_path: Path) -> None:
    runs = [values(frames, 4, 5) for frames in (5, 3, 4)]
    for i, run in enumerate(runs):
        write_h5(tmp_path / f"runs/{i}.h5", u=run)
    message = r"runs/1\.h5 has 3 frames and .*runs/0\.h5 has 5, .*`num_frames: shortest`"
    with pytest.raises(SourceError, match=message):
        open_source(str(tmp_path), options(tmp_path, ONE))
    source = open_source(str(tmp_path), options(tmp_path, ONE + "num_frames: shortest"))
    assert source.notes == ("the first 3 frames are kept; 2 of 3 files have more", ASSUMED)
    dataset = converted(tmp_path, ONE + "num_frames: shortest")
    np.testing.assert_array_equal(everything(dataset)[:, :, 0], np.stack([r[:3] for r in runs]))
    assert open_source(str(tmp_path), options(tmp_path, ONE, num_frames=2)).num_frames == 2
    with pytest.raises(SourceError, match=r"num_frames is 4, but .*runs/1\.h5 has 3 frames"):
        open_source(str(tmp_path), options(tmp_path, ONE + "num_frames: 4"))


def test_grids_that_differ_are_several_datasets(tmp_path: Path) -> None:
    runs = [values(2, points, 5) for points in (4, 6, 4)]
    for i, run in enumerate(runs):
        write_h5(tmp_path / f"runs/{i}.h5", u=run)
    message = (
        r"2 different grids \(y x x\):\n  2 with 4x5, e.g. .*0\.h5\n  1 with 6x5, e.g. .*1\.h5\n"
    )
    with pytest.raises(SourceError, match=message + r".*--grid 4x5"):
        open_source(str(tmp_path), options(tmp_path, ONE))
    source = open_source(str(tmp_path), options(tmp_path, ONE, grid=(4, 5)))
    assert source.notes == ("1 of 3 files have other grids and are left out", ASSUMED)
    dataset = converted(tmp_path, ONE, grid=(4, 5))
    np.testing.assert_array_equal(everything(dataset)[:, :, 0], np.stack([runs[0], runs[2]]))
    with pytest.raises(
        SourceError, match=r"--grid 9x9: no file has this grid \(y x x\):\n  2 with"
    ):
        open_source(str(tmp_path), options(tmp_path, ONE, grid=(9, 9)))
    arguments = ["convert", str(tmp_path), "--dry-run", "--mapping", str(tmp_path / "map.yaml")]
    result = CliRunner().invoke(app, [*arguments, "--grid", "6x5", "--json"])
    assert json.loads(result.stdout)["shape"] == [1, 2, 1, 6, 5]
    result = CliRunner().invoke(app, [*arguments, "--grid", "six"])
    assert (result.exit_code, "64x128" in result.output) == (2, True)


def test_a_time_coordinate_gives_the_interval_and_is_compared(tmp_path: Path) -> None:
    def write(name: str, hours: list[float], units: str) -> None:
        data = xarray.Dataset(
            {"u": (("time", "y", "x"), values(3, 4, 5), {"units": "m s-1"})},
            coords={"time": ("time", hours, {"units": units, "calendar": "noleap"})},
        )
        data.to_netcdf(tmp_path / f"runs/{name}.nc", engine="h5netcdf")

    (tmp_path / "runs").mkdir()
    write("a", [0, 6, 12], "hours since 2000-01-01")
    write("b", [24, 30, 36], "hours since 2000-01-01")
    text = """
fields: [{file: "runs/*.nc", key: u, axes: [t, y, x], names: [u]}]
frame_interval: {file: "runs/*.nc", key: time}
"""
    spec = converted(tmp_path, text).spec
    assert (spec.frame_interval, spec.fields[0].unit) == (6.0, "m s-1")
    assert spec.generator["time_unit"] == "hour"
    write("c", [0, 3, 6], "hours since 2000-01-01")
    with pytest.raises(SourceError, match=r"c\.nc has a frame every 3 hour .*a\.nc every 6 hour"):
        open_source(str(tmp_path), options(tmp_path, text))
    write("c", [0, 0.25, 0.5], "days since 2000-01-01")  # 6 hours as well
    assert open_source(str(tmp_path), options(tmp_path, text)).frame_interval == 6.0
    write("c", [0, 0.5, 1.0], "days since 2000-01-01")
    with pytest.raises(SourceError, match=r"c\.nc has a frame every 0\.5 day"):
        open_source(str(tmp_path), options(tmp_path, text))


@pytest.mark.parametrize("mapped", [True, False])
@pytest.mark.parametrize(
    ("other", "is_same"),
    [("noleap", False), ("360_day", False), ("gregorian", True), (None, True)],
)
def test_calendars_that_differ_are_both_named(
    tmp_path: Path, mapped: bool, other: str | None, is_same: bool
) -> None:
    """CF 1.11, 4.4.1: gregorian is standard, and so is a date without a calendar."""
    runs = {"a": "standard", "b": other}
    (tmp_path / "runs").mkdir()
    for i, (name, calendar) in enumerate(runs.items()):
        attributes = {"units": f"hours since 200{i}-01-01"}
        attributes |= {"calendar": calendar} if calendar else {}
        data = xarray.Dataset(
            {"u": (("time", "y", "x"), values(3, 4, 5))},
            coords={"time": ("time", [0.0, 6.0, 12.0], attributes)},
        )
        data.to_netcdf(tmp_path / f"runs/{name}.nc", engine="h5netcdf")
    text = ONE.replace(".h5", ".nc") + "frame_interval: {file: 'runs/*.nc', key: time}"
    place, chosen = (tmp_path, options(tmp_path, text)) if mapped else (tmp_path / "runs", None)
    if is_same:
        assert open_source(str(place), chosen or ConvertOptions()).frame_interval == 6
        return
    message = (
        rf"b\.nc has a frame every 6 hour \(calendar {other}, since 2001-01-01\), but .*a\.nc every "
        r"6 hour \(calendar standard, since 2000-01-01\)\. .*calendar"
    )
    with pytest.raises(SourceError, match=message):
        open_source(str(place), chosen or ConvertOptions())


def test_paths_of_a_mapping_are_filled_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("RUNS", "runs")
    write_h5(tmp_path / "home/one.h5", u=values(2, 3, 4, 5))
    write_h5(tmp_path / "runs/0.h5", u=values(3, 4, 5))
    one = "fields: [{file: ~/one.h5, key: u, axes: [n, t, y, x], names: [u]}]"
    assert open_source(str(tmp_path), options(tmp_path, one)).num_trajectories == 2
    runs = "fields: [{file: '${RUNS}/*.h5', key: u, axes: [t, y, x], names: [u]}]"
    assert open_source(str(tmp_path), options(tmp_path, runs)).num_trajectories == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        # names that are not there: what there is, with the nearest
        ("fields: [{file: run.h5, key: velocty, axes: [t, y, x], names: [u]}]",
         r"run\.h5 has no array 'velocty'; did you mean 'velocity'\?; it has g/p, velocity"),
        ("fields: [{file: runn.h5, key: u, axes: [t, y, x], names: [u]}]",
         r"runn\.h5 does not exist; did you mean 'run\.h5'\?; the folder has map\.yaml, run\.h5"),
        ("fields: [{file: 'r*.hdf', key: u, axes: [t, y, x], names: [u]}]",
         r"no file matches .*r\*\.hdf; the folder has map\.yaml, run\.h5"),
        ("fields: [{key: u, axes: [t, y, x], names: [u]}]",
         r"is a folder: name one of its files in `file`.*; it has map\.yaml, run\.h5"),
        # keys and values: line, key, nearest
        ("fields:\n  - {file: run.h5, kye: u, axes: [t, y, x], names: [u]}",
         r"1 problem\n  line 2: fields\.0\.kye: unknown key; did you mean 'key'\?; known keys here"),
        ("fields:\n  - {file: run.h5, axes: [t, y, w], names: [u]}",
         r"line 2: fields\.0\.axes\.2: got 'w', allowed"),
        ("fields:\n  - {file: run.h5, axes: [t, y, x]}\ngrid_location: nodes",
         r"2 problems\n  line 2: fields\.0\.names: missing.*\n"
         r"  line 3: grid_location: got 'nodes', .*did you mean 'node'\?"),
        ("fields: []\nframe_interval: yes", r"line 2: frame_interval: got 'yes'"),
        ("name: a\nname: b", "line 2: name: given twice, first in line 1"),
        ("parameters: {nu: {file: a.h5, ky: nu}}\nfields: [{axes: [x], names: [u]}]",
         r"line 1: parameters\.nu\.ky: unknown key; did you mean 'key'\?"),
        ("- a", "the file must be a mapping"),
    ],
)  # fmt: skip
def test_mistakes_are_named_with_what_there_is(tmp_path: Path, text: str, message: str) -> None:
    write_h5(tmp_path / "run.h5", velocity=values(2, 4, 5), **{"g/p": values(2, 4, 5)})
    with pytest.raises(SourceError, match=message):
        open_source(str(tmp_path), options(tmp_path, text))
