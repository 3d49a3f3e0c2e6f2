"""`--verify` finds mistakes of the conversion itself: they are planted here, one at a time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import nibabel
import numpy as np
import pytest
import yaml
import zarr
from PIL import Image, ImageOps
from scipy.io import netcdf_file

from pelagos.data_pipelines.convert import ConvertOptions, reading
from pelagos.data_pipelines.convert import source as source_module
from pelagos.data_pipelines.convert.verification import second_decoding, second_files
from pelagos.jobs import convert

RNG = np.random.default_rng(4)
Plant = Callable[[pytest.MonkeyPatch], None]


def numbers(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(np.float32)


def write_gas(folder: Path) -> Path:
    """A square grid, so that exchanged axes fit."""
    with h5py.File(folder / "CE-RP.nc", "w") as f:
        f.create_dataset("data", data=numbers(6, 4, 5, 8, 8), chunks=(1, 1, 5, 8, 8))
    return folder / "CE-RP.nc"


def write_well(folder: Path) -> Path:
    """Stored x first, with a vector, a tensor and a field without time."""
    with h5py.File(folder / "a.hdf5", "w") as f:
        f.attrs.update({"dataset_name": "flow", "n_trajectories": 3})
        dims = f.create_group("dimensions")
        dims.attrs["spatial_dims"] = ["x", "y"]
        dims["time"], dims["x"], dims["y"] = np.arange(4.0), np.arange(6.0), np.arange(6.0)
        for order, shape in enumerate(((3, 4, 6, 6), (3, 4, 6, 6, 2), (3, 4, 6, 6, 2, 2))):
            group = f.create_group(f"t{order}_fields")
            group.attrs["field_names"] = [f"f{order}"]
            group[f"f{order}"] = numbers(*shape)
        mask = f["t0_fields"].create_dataset("mask", data=numbers(6, 6))
        mask.attrs["sample_varying"] = mask.attrs["time_varying"] = False
        f["t0_fields"].attrs["field_names"] = ["f0", "mask"]
    return folder / "a.hdf5"


def write_volumes(folder: Path) -> Path:
    affine = np.diag([-1.0, 1, 1, 1])
    for case in range(2):
        image = nibabel.Nifti1Image(numbers(5, 5, 5), affine)
        nibabel.save(image, folder / f"c{case}.nii")
    return folder


def write_pictures(folder: Path) -> Path:
    for number in range(3):
        exif = Image.Exif()
        exif[0x0112] = 3
        file = folder / "p" / "a" / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        values = RNG.integers(0, 256, (6, 6, 3)).astype(np.uint8)
        Image.fromarray(values).save(file, exif=exif)
    return folder / "p"


def one_frame_late(patch: pytest.MonkeyPatch) -> None:
    true = reading._selection

    def late(source: Any, array: Any, stored: Any, rows: range, frames: range) -> Any:
        first = max(0, frames.start - 1)
        return true(source, array, stored, rows, range(first, first + len(frames)))

    patch.setattr(reading, "_selection", late)
    patch.setattr(reading, "BLOCK_BYTES", 1)
    patch.setattr(reading.blocks, "__defaults__", (1,))  # a frame at a time


def another_trajectory(patch: pytest.MonkeyPatch) -> None:
    true = source_module.Source.locate

    def last_first(source: Any, trajectory: int) -> Any:
        return true(source, source.num_trajectories - 1 - trajectory)

    patch.setattr(source_module.Source, "locate", last_first)
    patch.setattr(reading.blocks, "__defaults__", (1,))


def exchanged_axes(patch: pytest.MonkeyPatch) -> None:
    true = reading._ordered
    patch.setattr(reading, "_ordered", lambda *a: true(*a).swapaxes(-1, -2))
    no_shortcut(patch)


def exchanged_channels(patch: pytest.MonkeyPatch) -> None:
    true = reading._ordered
    patch.setattr(reading, "_ordered", lambda *a: true(*a)[:, :, ::-1])
    no_shortcut(patch)


def no_shortcut(patch: pytest.MonkeyPatch) -> None:
    """Arrays that lie as they are stored are not read past `_ordered`."""
    true = reading.stored_array

    class Plain:
        def __init__(self, array: Any) -> None:
            self.shape, self.dtype, self.array = array.shape, array.dtype, array

        def __getitem__(self, key: Any) -> Any:
            return self.array[key]

    patch.setattr(reading, "stored_array", lambda array: Plain(true(array)))


def lost_flip(patch: pytest.MonkeyPatch) -> None:
    true = reading._ordered

    def unflipped(values: Any, letters: str, order: str, array: Any) -> Any:
        return true(values, letters, order, source_module.dataclasses.replace(array, flipped=""))

    patch.setattr(reading, "_ordered", unflipped)


def ignored_exif(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(ImageOps, "exif_transpose", lambda picture: picture)


def lost_values(patch: pytest.MonkeyPatch) -> None:
    """A part of every picture or array is read as 0."""
    true = reading._ordered

    def gap(*arguments: Any) -> Any:
        found = np.array(true(*arguments))
        found[..., -1:, -1:] = 0
        return found

    patch.setattr(reading, "_ordered", gap)
    no_shortcut(patch)


@pytest.mark.parametrize(
    ("write", "plant"),
    [
        (write_gas, one_frame_late),
        (write_gas, another_trajectory),
        (write_gas, exchanged_axes),
        (write_gas, exchanged_channels),
        (write_gas, lost_values),
        (write_well, one_frame_late),
        (write_well, another_trajectory),
        (write_well, exchanged_axes),
        (write_well, lost_values),
        (write_volumes, lost_flip),
        (write_volumes, exchanged_axes),
        (write_pictures, ignored_exif),
        (write_pictures, exchanged_channels),
        (write_pictures, another_trajectory),
    ],
)
def test_a_mistake_of_the_conversion_is_reported(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    write: Callable[[Path], Path],
    plant: Plant,
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    source = str(write(data))
    right = convert.run(source, str(tmp_path / "right.zarr"), verify=True, num_workers=1)
    assert right.differences == ()
    plant(monkeypatch)  # for converting and for comparing
    wrong = convert.run(source, str(tmp_path / "wrong.zarr"), verify=True, num_workers=1)
    assert wrong.differences, "comparing with the same reading alone finds nothing"
    assert all("read a second way" in line for line in wrong.differences)
    if plant is not lost_values:
        assert any("trajectory" in line and "grid index" in line for line in wrong.differences)


def test_wrong_masks_and_fills_are_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = numbers(4, 3, 8, 8)
    values[:, :, :4] = np.nan  # land
    with h5py.File(tmp_path / "sea.h5", "w") as f:
        f["t"] = values
    mapping = {"fields": [{"key": "t", "axes": list("ntyx"), "names": ["temperature"]}]}
    (tmp_path / "m.yaml").write_text(yaml.safe_dump(mapping))
    options = ConvertOptions(mapping=str(tmp_path / "m.yaml"), missing="mask", fill_value=7.0)
    source = str(tmp_path / "sea.h5")
    right = convert.run(source, str(tmp_path / "right.zarr"), options, verify=True, num_workers=1)
    assert right.differences == ()
    true = source_module.Settlement.apply

    def shifted(settlement: Any, frames: np.ndarray) -> None:
        true(settlement, frames)
        frames[:] = np.roll(frames, 1, axis=-2)

    monkeypatch.setattr(source_module.Settlement, "apply", shifted)
    wrong = convert.run(source, str(tmp_path / "wrong.zarr"), options, verify=True, num_workers=1)
    told = " ".join(wrong.differences)
    assert "field 'mask'" in told
    assert "field 'temperature'" in told
    monkeypatch.setattr(source_module.Settlement, "apply", lambda self, frames: frames.fill(1))
    wrong = convert.run(source, str(tmp_path / "ones.zarr"), options, verify=True, num_workers=1)
    assert any(
        "field 'mask': mean 0.5 in the source, read a second way, 1 stored" in line
        for line in wrong.differences
    )


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_rounding_to_the_stored_type_is_no_mistake(tmp_path: Path, dtype: Any) -> None:
    with h5py.File(tmp_path / "CE-RP.nc", "w") as f:
        f["data"] = 300 + 0.1 * RNG.normal(size=(6, 4, 5, 8, 8))  # float64, with an offset
    options = ConvertOptions(dtype=dtype)
    result = convert.run(
        str(tmp_path / "CE-RP.nc"), str(tmp_path / "out.zarr"), options, verify=True
    )
    assert result.differences == ()


def test_a_limit_is_rounded_to_the_type_of_the_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """numpy, too, calls float32's 0.1, which is 0.10000000149, no more than 0.1."""
    values = np.full((4, 3, 8, 8), np.float32(0.1))
    assert not (values > 0.1).any()
    with h5py.File(tmp_path / "sea.h5", "w") as f:
        f["t"] = values
        f["t"].attrs["valid_max"] = 0.1
    mapping = {"fields": [{"key": "t", "axes": list("ntyx"), "names": ["t"]}]}
    (tmp_path / "m.yaml").write_text(yaml.safe_dump(mapping))
    options = ConvertOptions(mapping=str(tmp_path / "m.yaml"))
    place = str(tmp_path / "out.zarr")
    result = convert.run(str(tmp_path / "sea.h5"), place, options, verify=True, num_workers=1)
    assert result.differences == ()
    # a second way that finds no number at all says so
    monkeypatch.setattr(second_decoding, "_as_stored", lambda limit, stored, values: -1.0)
    result = convert.run(str(tmp_path / "sea.h5"), place, options, verify=True, num_workers=1)
    assert any("0 numbers in the source" in line for line in result.differences)


def test_one_changed_number_moves_the_statistics(tmp_path: Path) -> None:
    source = write_gas(tmp_path)
    convert.run(str(source), str(tmp_path / "out.zarr"))
    with h5py.File(source, "a") as f:
        f["data"][5, 1, 2, 3, 4] = 50.0
    result = convert.run(str(source), str(tmp_path / "out.zarr"), verify=True)
    assert any(
        "trajectories 0 to 5, field 'velocity-y'" in line and "max 50 in the source" in line
        for line in result.differences
    )


@pytest.mark.parametrize("kind", ["npy", "npz", "h5", "zarr", "nc"])
def test_every_container_is_read_a_second_way(tmp_path: Path, kind: str) -> None:
    """Numbers at an index and slices of it, against numpy."""
    values, packed = numbers(3, 4, 5), RNG.integers(-99, 99, (3, 4, 5)).astype(np.int16)
    packed[1, 2, 3] = -7
    file = str(tmp_path / f"a.{kind}")
    attributes = {"scale_factor": 0.5, "add_offset": 10.0, "_FillValue": np.int16(-7)}
    if kind == "npy":
        np.save(file, values)
    elif kind == "npz":
        np.savez_compressed(file, v=values)
    elif kind == "h5":
        with h5py.File(file, "w") as f:
            f["v"], f["p"] = values, packed
            f["p"].attrs.update(attributes)
    elif kind == "zarr":
        root = zarr.open_group(file, mode="w")
        root.create_array("v", data=values)
        root.create_array("p", data=packed).attrs.update({**attributes, "_FillValue": -7})
    else:
        with netcdf_file(file, "w") as f:
            for name, size in zip("nyx", values.shape, strict=True):
                f.createDimension(name, size)
            f.createVariable("v", "f4", tuple("nyx"))[:] = values
            variable = f.createVariable("p", "i2", tuple("nyx"))
            variable[:] = packed
            for key, value in attributes.items():
                setattr(variable, key, value)
    reader = {"h5": "hdf5", "nc": "hdf5", "zarr": "strict-zarr"}.get(kind, kind)
    opened = second_files.open_second(reader, file)
    found = opened.array(source_module.StoredArray(reader, file, "v", "nyx", 0))
    assert found.shape == (3, 4, 5)
    assert float(found.read((2, 3, 4))) == values[2, 3, 4]
    assert np.array_equal(found.read((slice(1, 3), 2, slice(None))), values[1:3, 2])
    if kind in ("h5", "zarr", "nc"):
        found = opened.array(source_module.StoredArray(reader, file, "p", "nyx", 0))
        wanted = np.where(packed == -7, np.nan, packed * 0.5 + 10.0)
        everything = found.read((slice(None), slice(None), slice(None)))
        assert np.array_equal(everything, wanted, equal_nan=True)
    opened.close()


def test_mapped_arrays_of_many_shapes(tmp_path: Path) -> None:
    """Axes in any order, without time, without trajectories, with an axis of length one."""
    np.save(tmp_path / "v.npy", numbers(3, 6, 5, 4, 2))
    np.savez(tmp_path / "p.npz", p=numbers(4, 3, 6, 5))
    np.save(tmp_path / "c.npy", numbers(5, 6))
    np.save(tmp_path / "s.npy", numbers(3, 1, 6, 5))
    mapping = {
        "fields": [
            {"file": "v.npy", "axes": list("nyxtc"), "names": ["u", "v"]},
            {"file": "p.npz", "key": "p", "axes": list("tnyx"), "names": ["p"]},
            {"file": "c.npy", "axes": ["x", "y"], "names": ["c"]},
            {"file": "s.npy", "axes": ["n", "1", "y", "x"], "names": ["s"]},
        ]
    }
    (tmp_path / "m.yaml").write_text(yaml.safe_dump(mapping))
    options = ConvertOptions(
        mapping=str(tmp_path / "m.yaml"), num_frames=3, splits={"train": 1, "test": 2}
    )
    result = convert.run(str(tmp_path), str(tmp_path / "out.zarr"), options, verify=True)
    assert result.differences == ()
    np.save(tmp_path / "c.npy", numbers(5, 6))
    result = convert.run(str(tmp_path), str(tmp_path / "out.zarr"), options, verify=True)
    assert any("c.npy" in line and "read a second way" in line for line in result.differences)


def test_pictures_are_resized_and_read_raw_the_same_way(tmp_path: Path) -> None:
    values = RNG.integers(0, 65536, (6, 4)).astype(np.uint16)
    for number in range(2):
        file = tmp_path / "p" / "a" / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(values).save(file)
    options = ConvertOptions(size=3)
    result = convert.run(str(tmp_path / "p"), str(tmp_path / "out.zarr"), options, verify=True)
    assert result.differences == ()
