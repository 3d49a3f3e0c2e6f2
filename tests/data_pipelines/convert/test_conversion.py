"""What holds for every format: memory, going on after a kill, refusals, comparing, the command."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import zlib
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from typer.testing import CliRunner

from pelagos.cli.main import app
from pelagos.data_pipelines.convert import ConvertOptions, SourceError, open_source
from pelagos.data_pipelines.convert.reading import BLOCK_BYTES, blocks
from pelagos.data_pipelines.management.inspection import verify
from pelagos.data_pipelines.store import create_dataset, open_dataset
from pelagos.jobs import convert

SOURCES = Path(__file__).resolve().parents[3] / "src"
FIELDS = ("density", "velocity-x", "velocity-y", "pressure")


def write_gas(file: Path, count: int, frames: int, size: int, seed: int = 0) -> np.ndarray:
    """Like CE-RP.nc, but for its sizes: `data` [n, t, 5, y, x]."""
    data = np.random.default_rng(seed).normal(size=(count, frames, 5, size, size))
    data = data.astype(np.float32)
    with h5py.File(file, "w") as f:
        f["data"] = data
    return data


def write_constant_gas(file: Path, frames: int, size: int) -> None:
    """One trajectory of many bytes in a small file: each frame is the same compressed chunk."""
    frame = (1, 1, 5, size, size)
    packed = zlib.compress(np.full(frame, 0.5, "<f4").tobytes(), 1)
    with h5py.File(file, "w") as f:
        shape = (1, frames, *frame[2:])
        data = f.create_dataset("data", shape, "f4", chunks=frame, compression="gzip")
        for i in range(frames):
            data.id.write_direct_chunk((0, i, 0, 0, 0), packed)


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


# -- memory ---------------------------------------------------------------------------------------


def test_reads_are_bounded_whatever_the_size_of_a_trajectory(tmp_path: Path) -> None:
    """One trajectory is three times what is read at once, another source a hundredth of it."""
    frames, size = 60, 448  # 4 fields: 3.2 MB a frame, 193 MB a trajectory
    write_constant_gas(tmp_path / "CE-RP.nc", frames, size)
    large = open_source(str(tmp_path / "CE-RP.nc"), ConvertOptions())
    pieces = list(blocks(large, range(1)))
    assert sum(len(p.frames) for p in pieces) == frames
    assert max(p.largest_read_bytes for p in pieces) <= BLOCK_BYTES
    assert len(pieces) > 10
    write_gas(tmp_path / "CE-KH.nc", 20, 2, 16)
    small = open_source(str(tmp_path / "CE-KH.nc"), ConvertOptions())
    assert [len(p.frames) for p in blocks(small, range(3, 16))] == [26]  # 13 whole trajectories


def test_memory_stays_bounded_where_a_shard_is_large(tmp_path: Path) -> None:
    """A trajectory of 0.5 GB, which is one shard, in a process that may grow by half of that."""
    write_constant_gas(tmp_path / "CE-RP.nc", 120, 512)
    program = """
import resource, sys
from pelagos.data_pipelines.convert import ConvertOptions
from pelagos.jobs import convert
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
before = peak()
result = convert.run(sys.argv[1], sys.argv[2])
print(result.spec.num_shards, peak() - before)
"""
    found = run_python(program, tmp_path / "CE-RP.nc", tmp_path / "out.zarr")
    num_shards, grown = map(int, found.split())
    assert num_shards == 1
    assert grown < 120 * 4 * 512**2 * 4 / 2


def run_python(program: str, *arguments: Path) -> str:
    environment = {**os.environ, "PYTHONPATH": str(SOURCES)}
    return subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    ).stdout


# -- going on -------------------------------------------------------------------------------------


def test_killed_and_continued_it_is_the_uninterrupted_dataset(tmp_path: Path) -> None:
    source, place = tmp_path / "CE-RP.nc", tmp_path / "out.zarr"
    write_gas(source, 60, 2, 32)
    options = ConvertOptions(trajectories_per_shard=1)
    uninterrupted = tmp_path / "whole.zarr"
    command = [sys.executable, "-m", "pelagos.cli.main", "convert"]
    command += [str(source), str(place), "--workers", "1", "--trajectories-per-shard", "1"]
    process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(SOURCES)})
    while len(list((place / ".pelagos" / "shards").glob("*.json"))) < 2:
        assert process.poll() is None, "the conversion ended before it could be killed"
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (place / "manifest.json").exists()
    result = convert.run(str(source), str(place), options, num_workers=2)
    assert 0 < result.metrics["trajectories_converted"] <= 58
    convert.run(str(source), str(uninterrupted), options)
    assert snapshot(place) == snapshot(uninterrupted)
    again = convert.run(str(source), str(place), options)
    assert again.metrics["trajectories_converted"] == 0


def test_a_source_that_changed_is_not_mixed_with_what_was_begun(tmp_path: Path) -> None:
    source, place = tmp_path / "CE-RP.nc", tmp_path / "out.zarr"
    write_gas(source, 6, 2, 8)
    found = open_source(str(source), ConvertOptions())
    create_dataset(str(place), found.spec(ConvertOptions()))
    write_gas(source, 7, 2, 8)
    with pytest.raises(
        ValueError, match=r"begun with another spec:\n.*num_trajectories: 7 here, 6"
    ):
        convert.run(str(source), str(place))
    convert.run(str(source), str(place), overwrite=True)
    assert open_dataset(str(place)).num_trajectories == 7
    write_gas(source, 8, 2, 8)
    with pytest.raises(FileExistsError, match=r"another complete dataset:\n(.*\n)+.*--overwrite"):
        convert.run(str(source), str(place))
    assert open_dataset(str(place)).num_trajectories == 7


# -- refusals -------------------------------------------------------------------------------------


def test_a_value_that_is_not_finite_is_named_with_its_file(tmp_path: Path) -> None:
    source = tmp_path / "CE-RP.nc"
    data = write_gas(source, 6, 3, 8)
    with h5py.File(source, "a") as f:
        f["data"][4, 2, 3, 1, 5] = np.nan
    message = (
        r"CE-RP\.nc: data\[4\]: trajectory 4, frame 2, field 'pressure', grid index \(1, 5\): nan "
        r"is not finite as float32"
    )
    with pytest.raises(SourceError, match=message):
        convert.run(str(source), str(tmp_path / "out.zarr"))
    assert not (tmp_path / "out.zarr" / "manifest.json").exists()
    with h5py.File(source, "a") as f:
        f["data"][...] = np.where(np.isfinite(data), data, 0)
        f["data"][1, 1, 0, 2, 3] = 1e6  # too large for half precision
    with pytest.raises(SourceError, match=r"data\[1\]: .* inf is not finite as float16"):
        convert.run(str(source), str(tmp_path / "half.zarr"), ConvertOptions(dtype="float16"))


def test_bfloat16_is_rounded_and_compared_as_stored(tmp_path: Path) -> None:
    source, target = tmp_path / "CE-RP.nc", tmp_path / "out.zarr"
    data = write_gas(source, 6, 3, 8)
    arguments = ["convert", str(source), str(target), "--dtype", "bfloat16", "--verify"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    dataset = open_dataset(target)
    assert dataset.spec.dtype == "bfloat16"
    found = dataset.window(5, 0, 3)
    np.testing.assert_allclose(found, data[5, :, :4], rtol=2.0**-8)  # 8 bits, half a unit
    assert (found != data[5, :, :4]).any()
    with h5py.File(source, "a") as f:
        f["data"][1, 1, 0, 2, 3] = 3.4e38  # rounds to more than the largest bfloat16
    with pytest.raises(SourceError, match=r"data\[1\]: .*not finite as bfloat16"):
        convert.run(str(source), str(tmp_path / "large.zarr"), ConvertOptions(dtype="bfloat16"))


@pytest.mark.parametrize("name", ["nothing.nc", "text.nc", "empty"])
def test_what_is_no_source_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "text.nc").write_text("not HDF5")
    (tmp_path / "empty").mkdir()
    told = "does not exist" if "nothing" in name else "resembles none of the formats the_well"
    with pytest.raises(SourceError, match=told):
        open_source(str(tmp_path / name), ConvertOptions())


def test_a_wrong_format_is_answered_with_the_right_one(tmp_path: Path) -> None:
    write_gas(tmp_path / "CE-RP.nc", 3, 2, 8)
    with pytest.raises(SourceError, match=r"CE-RP\.nc: .*density.*\n.*looks like poseidon: try"):
        open_source(str(tmp_path / "CE-RP.nc"), ConvertOptions(format="pdebench"))
    write_gas(tmp_path / "CE-KH.nc", 3, 2, 40)  # one array `data` too, but its axes are others
    with pytest.raises(SourceError, match=r"40 channels are more than 32.*\n.*looks like poseidon"):
        open_source(str(tmp_path / "CE-KH.nc"), ConvertOptions(format="dpot"))
    with pytest.raises(
        SourceError, match=r"--format: got 'hdf5'; known formats: the_well, poseidon"
    ):
        open_source(str(tmp_path / "CE-RP.nc"), ConvertOptions(format="hdf5"))


def test_a_file_cut_short_is_named(tmp_path: Path) -> None:
    source = tmp_path / "CE-RP.nc"
    write_gas(source, 6, 3, 64)
    found = open_source(str(source), ConvertOptions())
    source.write_bytes(source.read_bytes()[: 10**6])
    with pytest.raises(SourceError, match=r"cannot read .*CE-RP\.nc as HDF5: .*truncated"):
        list(blocks(found, range(6)))


def test_a_missing_package_is_named_with_its_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_gas(tmp_path / "CE-RP.nc", 3, 2, 8)
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(SourceError, match=r"needs the package h5py: pip install 'pelagos\[conv"):
        open_source(str(tmp_path / "CE-RP.nc"), ConvertOptions())


# -- options --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "splits"),
    [
        ({}, {"train": (0, 16), "validation": (16, 18), "test": (18, 20)}),
        ({"max_trajectories": 9}, {"train": (0, 7), "validation": (7, 8), "test": (8, 9)}),
        ({"splits": {"train": 0.5, "test-ood": 0.25}}, {"train": (0, 10), "test-ood": (10, 15)}),
        ({"splits": {"train": 2, "test": 18}}, {"train": (0, 2), "test": (2, 20)}),
    ],
)
def test_splits(tmp_path: Path, options: dict[str, Any], splits: dict[str, Any]) -> None:
    data = write_gas(tmp_path / "CE-RP.nc", 20, 2, 8)
    chosen = ConvertOptions(**options)
    source = open_source(str(tmp_path / "CE-RP.nc"), chosen)
    assert source.spec(chosen).splits == splits
    if "max_trajectories" in options:  # the first of every split
        kept = [*range(7), 16, 18]
        found = np.concatenate([b.frames for b in blocks(source, range(9))])
        assert (found.reshape(9, 2, 4, 8, 8) == data[kept, :, :4]).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"splits": {"train": 0.9, "test": 0.2}}, "shares that add up to at most"),
        ({"num_frames": 3}, r"--num-frames 3: CE-RP has 2 frames"),
        ({"max_trajectories": 2}, r"--max-trajectories 2 is less than the number of splits"),
    ],
)
def test_options_that_do_not_fit(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    write_gas(tmp_path / "CE-RP.nc", 20, 2, 8)
    with pytest.raises(SourceError, match=message):
        open_source(str(tmp_path / "CE-RP.nc"), ConvertOptions(**options))


def test_swapped_axes_are_swapped_in_the_values(tmp_path: Path) -> None:
    data = np.random.default_rng(0).normal(size=(20, 2, 5, 6, 4)).astype(np.float32)
    with h5py.File(tmp_path / "CE-RP.nc", "w") as f:
        f["data"] = data
    options = ConvertOptions(swap_axes=True, max_trajectories=9)
    source, place = str(tmp_path / "CE-RP.nc"), str(tmp_path / "out.zarr")
    result = convert.run(source, place, options, verify=True)
    assert result.differences == ()
    dataset = open_dataset(place)
    assert dataset.spec.grid_shape == (4, 6)
    for stored, given in enumerate([*range(7), 16, 18]):  # the first of every split
        wanted = data[given, :, :4].swapaxes(-1, -2)
        assert np.array_equal(dataset.window(stored, 0, 2), wanted)


# -- comparing ------------------------------------------------------------------------------------


def test_comparing_finds_a_value_that_differs(tmp_path: Path) -> None:
    source, place = tmp_path / "CE-RP.nc", tmp_path / "out.zarr"
    write_gas(source, 6, 3, 8)
    convert.run(str(source), str(place))
    with h5py.File(source, "a") as f:
        f["data"][5, 1, 2, 3, 4] += 1e-6
    result = convert.run(str(source), str(place), verify=True)
    assert len(result.differences) == 1
    assert "data[5]: trajectory 5, frame 1, field 'velocity-y', grid index (3, 4)" in str(
        result.differences[0]
    )
    assert verify(str(place)).is_whole


# -- the command ----------------------------------------------------------------------------------


def test_the_command(tmp_path: Path) -> None:
    source, place = str(tmp_path / "CE-RP.nc"), str(tmp_path / "out.zarr")
    write_gas(tmp_path / "CE-RP.nc", 10, 3, 8)
    runner = CliRunner()
    planned = json.loads(runner.invoke(app, ["convert", source, "--dry-run", "--json"]).stdout)
    assert planned["shape"] == [10, 3, 4, 8, 8]
    assert planned["raw_bytes"] == 10 * 3 * 4 * 8 * 8 * 4
    assert not Path(place).exists()
    shown = runner.invoke(app, ["convert", source, place, "--dry-run"])
    assert "train 8, validation 1, test 1" in shown.stdout
    done = runner.invoke(app, ["convert", source, place, "--verify", "--compression", "zstd"])
    assert done.exit_code == 0, done.output
    assert "the same as the source" in done.stdout
    assert open_dataset(place).spec.compression == "zstd"
    refused = runner.invoke(app, ["convert", source, place, "--compression", "gzip"])
    assert (refused.exit_code, "--compression: got 'gzip'" in refused.stderr) == (2, True)
    with h5py.File(source, "a") as f:
        f["data"][0, 0, 0, 0, 0] += 1
    found = runner.invoke(app, ["convert", source, place, "--verify", "--compression", "zstd"])
    assert (found.exit_code, "2 differences" in found.stdout) == (1, True)
    assert "field 'density': mean " in found.stdout  # the statistics are compared too


def test_the_list_of_formats() -> None:
    listed = json.loads(CliRunner().invoke(app, ["convert", "--list", "--json"]).stdout)
    names = [row["name"] for row in listed]
    assert names == [
        *("the_well", "poseidon", "pdebench", "dpot", "cfdbench"),
        *("ome-zarr", "nifti", "images", "zarr", "netcdf", "arrays"),
    ]
    assert "CFDBench" in CliRunner().invoke(app, ["convert", "--list"]).stdout
