"""What other readers of Zarr see: coordinates and attributes by the CF conventions, in xarray."""

from __future__ import annotations

import json
import shutil
import subprocess
import venv
from pathlib import Path
from typing import Any

import google_crc32c
import h5py
import numpy as np
import pytest
import xarray
import zarr

from pelagos.data_pipelines.management import append, change_splits, copy
from pelagos.data_pipelines.management.inspection import verify
from pelagos.data_pipelines.store import Field, open_dataset

CHECKER = "compliance-checker==6.1.0"
KINDS: list[dict[str, Any]] = [
    {},
    {"grid_shape": (9,), "domain_extent": (1.0,), "boundary_conditions": {"x": "wall"}},
    {
        "grid_shape": (3, 4, 5),
        "domain_extent": (1.0, 1.0, 1.0),
        "boundary_conditions": {"z": "periodic"},
        "parameter_names": (),
    },
    {
        "dtype": "bfloat16",
        "chunk_shape": (5, 8),
        "fields": (Field("température", "temperature", "K"), Field("mask", "mask")),
        "masks": {"température": "mask"},
        "given_fields": ("mask",),
        "constant_fields": {"density": 1.0},
        "physics": {"equation": "burgers", "coefficients": {"viscosity": 0.01}},
        "generator": {"time_unit": "hour", "command": {"seed": 3, "of": [1, {"a": None}]}},
        "published_normalization": {"mean": {"mask": 0.5}},
    },
]


def without_fill(data: xarray.Dataset) -> dict[str, dict[str, None]]:
    """xarray gives every float variable of netCDF a fill value, which CF forbids of coordinates."""
    return {str(name): {"_FillValue": None} for name in data.coords}


@pytest.mark.parametrize("kind", KINDS, ids=["plane", "line", "volume", "everything"])
def test_coordinates_and_attributes_follow_cf(
    make_dataset: Any, tmp_path: Path, kind: dict[str, Any]
) -> None:
    dataset, data = make_dataset(**kind)
    spec = dataset.spec
    found = xarray.open_zarr(dataset.uri)
    axes = ("x", "y", "z")[: len(spec.grid_shape)][::-1]
    assert found["data"].dims == ("trajectory", "time", "channel", *axes)
    assert set(found.coords) == {"trajectory", "time", "channel", *axes}
    for name, coordinate in found.coords.items():
        assert coordinate.dims == (name,)
        assert "_FillValue" not in coordinate.attrs
        assert coordinate.encoding.get("_FillValue") is None
        assert coordinate.attrs["long_name"]
        if name != "channel":
            assert coordinate.attrs["units"] == (
                "hour" if name == "time" and kind == KINDS[3] else "1"
            )
    assert {name: found[name].attrs["axis"] for name in axes} == {
        name: name.upper() for name in axes
    }
    assert "z" not in axes or found["z"].attrs["positive"] == "up"
    time = found["time"]
    assert (time.attrs["standard_name"], time.attrs["axis"]) == ("time", "T")
    np.testing.assert_allclose(time.values, np.arange(5) * 0.05, rtol=1e-15)
    assert found["trajectory"].values.tolist() == list(range(7))
    assert found["channel"].values.tolist() == [f.name for f in spec.fields]
    # selection by name, against what was written
    name = spec.fields[0].name
    values = found["data"].sel(channel=name, trajectory=4).values
    if spec.dtype != "bfloat16":
        np.testing.assert_array_equal(values, data[4, :, 0])
    assert found["data"].sel(channel=[name]).sizes["channel"] == 1
    # attributes that are objects or lists of texts are JSON text, and mean what the manifest says
    manifest = json.loads((Path(dataset.uri) / "manifest.json").read_text())
    attributes = found.attrs
    assert attributes["title"] == "small"
    for key, value in manifest["spec"].items():
        nested = isinstance(value, dict) or any(
            isinstance(part, (dict, str)) for part in (value if isinstance(value, list) else ())
        )
        assert isinstance(attributes[key], str) or not nested
        stored = attributes[key]
        is_text = isinstance(stored, str) and not isinstance(value, str)
        assert (json.loads(stored) if is_text else stored) == value, key
    assert json.loads(attributes["statistics"]) == manifest["statistics"]["train"]
    assert dataset.attrs["fields"] == manifest["spec"]["fields"]
    assert verify(dataset.uri).damage == []
    # netCDF, as xarray writes it and as h5py reads it
    for options in ({}, {"encoding": without_fill(found)}):
        target = tmp_path / "a.nc"
        found.to_netcdf(target, engine="h5netcdf", **options)
        with xarray.open_dataset(target, engine="h5netcdf") as again:
            xarray.testing.assert_equal(again["data"], found["data"])
            assert again.attrs["fields"] == attributes["fields"]
        with h5py.File(target) as file:
            assert file["time"].attrs["standard_name"] == "time"
            filled = [name for name in found.coords if "_FillValue" in file[str(name)].attrs]
            assert (filled == []) == bool(options)


def test_the_bytes_of_the_coordinates_are_those_of_the_page(make_dataset: Any) -> None:
    dataset, _ = make_dataset()
    root = Path(dataset.uri)

    def payload(name: str) -> bytes:
        content = (root / name / "c/0").read_bytes()
        assert google_crc32c.value(content[:-4]) == int.from_bytes(content[-4:], "little")
        return content[:-4]

    assert np.frombuffer(payload("trajectory"), "<i8").tolist() == list(range(7))
    rest, names = payload("channel"), []
    count, rest = int.from_bytes(rest[:4], "little"), rest[4:]
    for _ in range(count):
        length = int.from_bytes(rest[:4], "little")
        names.append(rest[4 : 4 + length].decode())
        rest = rest[4 + length :]
    assert (names, rest) == (["density", "pressure"], b"")
    assert zarr.open_group(dataset.uri, mode="r")["channel"][:].tolist() == names


def make_earlier(root: Path) -> None:
    """The dataset as it was written before it had these coordinates, by the page of that time."""
    document = json.loads((root / "zarr.json").read_text())
    attributes = document["attributes"]
    for key in ("title", "source", "history"):
        del attributes[key]
    manifest = json.loads((root / "manifest.json").read_text())
    attributes |= manifest["spec"] | {"statistics": manifest["statistics"]["train"]}
    listed = document["consolidated_metadata"]["metadata"]
    for name in ("channel", "trajectory"):
        shutil.rmtree(root / name)
        del listed[name]
    listed["time"]["attributes"] = {"long_name": "time", "units": "1"}
    if manifest["spec"]["dtype"] == "bfloat16":
        listed["data"]["attributes"]["bfloat16"] = True
    for name in ("time", "data"):
        (root / name / "zarr.json").write_text(json.dumps(listed[name]))
    (root / "zarr.json").write_text(json.dumps(document))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_earlier_datasets_read_verify_copy_and_grow(
    make_dataset: Any, tmp_path: Path, dtype: str
) -> None:
    dataset, _ = make_dataset(dtype=dtype)
    make_earlier(Path(dataset.uri))
    earlier = open_dataset(dataset.uri)
    assert earlier.fingerprint == dataset.fingerprint
    np.testing.assert_array_equal(earlier.window(3, 0, 5), dataset.window(3, 0, 5))
    assert earlier.attrs["fields"][1]["name"] == "pressure"
    assert set(xarray.open_zarr(dataset.uri).coords) == {"time", "x", "y"}
    assert verify(dataset.uri).damage == []
    copy(earlier, str(tmp_path / "copy"))
    assert verify(str(tmp_path / "copy")).damage == []
    other, _ = make_dataset(seed=1, dtype=dtype)
    append(earlier, other)
    assert verify(dataset.uri).damage == []
    grown = xarray.open_zarr(dataset.uri)
    assert grown["trajectory"].values.tolist() == list(range(14))
    assert grown["channel"].values.tolist() == ["density", "pressure"]
    moved = open_dataset(str(tmp_path / "copy"))
    change_splits(moved, {"train": (0, 7)})
    assert verify(moved.uri).damage == []
    assert "channel" in xarray.open_zarr(moved.uri).coords


def test_damaged_coordinates_are_found(make_dataset: Any) -> None:
    dataset, _ = make_dataset()
    root = Path(dataset.uri)

    def found(key: str, content: bytes) -> list[str]:
        path = root / key
        before = path.read_bytes()
        path.write_bytes(content)
        told = [damage.problem for damage in verify(dataset.uri).damage]
        path.write_bytes(before)
        return told

    for name in ("channel", "trajectory"):
        content = (root / name / "c/0").read_bytes()
        assert found(f"{name}/c/0", content[:-1] + b"\0")
        payload = content[:-4].replace(b"density", b"Density").replace(b"\x06\0\0\0", b"\x09\0\0\0")
        checksum = google_crc32c.value(payload).to_bytes(4, "little")
        assert found(f"{name}/c/0", payload + checksum)
    # more trajectories than the manifest has are being appended, and no damage
    longer = np.arange(9, dtype="<i8").tobytes()
    checksum = google_crc32c.value(longer).to_bytes(4, "little")
    assert found("trajectory/c/0", longer + checksum) == []
    document = json.loads((root / "zarr.json").read_text())
    document["attributes"]["fields"] = "[{"
    assert found("zarr.json", json.dumps(document).encode())
    document["attributes"]["fields"] = "[]"
    assert found("zarr.json", json.dumps(document).encode())


@pytest.mark.targets
@pytest.mark.timeout(900)
def test_a_checker_of_cf_finds_no_error(make_dataset: Any, tmp_path: Path) -> None:
    """The IOOS compliance checker, in an environment of its own from PyPI.

    A time axis of CF counts from a date, which no simulation has: that is all it misses, and who
    exports a dataset says it.
    """
    venv.create(tmp_path / "checker", with_pip=True)
    python = tmp_path / "checker/bin/python"
    install = [str(python), "-m", "pip", "install", "--quiet", CHECKER]
    subprocess.run(install, check=True, timeout=600)

    def errors(data: xarray.Dataset, name: str) -> list[str]:
        target = tmp_path / name
        data.to_netcdf(target, engine="h5netcdf", encoding=without_fill(data))
        command = [str(python.parent / "compliance-checker"), "-t", "cf:1.11", "-f", "json", "-o"]
        report = tmp_path / f"{name}.json"
        subprocess.run([*command, str(report), str(target)], check=False, timeout=120)
        found = json.loads(report.read_text())["cf:1.11"]["high_priorities"]
        return [message for check in found for message in check["msgs"]]

    for index, kind in enumerate(KINDS):
        data = xarray.open_zarr(make_dataset(**kind)[0].uri)
        told = errors(data, f"{index}.nc")
        assert [message for message in told if not message.startswith("time ")] == []
        data["time"].attrs["units"] = "hours since 2000-01-01"
        assert errors(data, f"{index}-dated.nc") == []
