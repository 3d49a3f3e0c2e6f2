"""Files of one dataset that say different things of themselves are told apart."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import zarr

from pelagos.data_pipelines.convert import ConvertOptions, SourceError, open_source
from pelagos.data_pipelines.convert.agreement import Agreement, agrees, common_length, steps
from pelagos.data_pipelines.store import open_dataset
from pelagos.jobs import convert

RNG = np.random.default_rng(5)


def numbers(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(np.float32)


def write_well(
    file: Path,
    *,
    times: np.ndarray | None = None,
    length: float = 1.0,
    kind: str = "PERIODIC",
    grid_type: str = "cartesian",
    frames: int = 4,
    **attributes: Any,
) -> np.ndarray:
    """A file of The Well with one field `[2, frames, 6, 5]`."""
    data = numbers(2, frames, 6, 5)
    with h5py.File(file, "w") as f:
        names = list(attributes)
        f.attrs.update(
            {"dataset_name": "flow", "n_trajectories": 2, "grid_type": grid_type, **attributes}
        )
        f.attrs["simulation_parameters"] = names
        dims = f.create_group("dimensions")
        dims.attrs["spatial_dims"] = ["x", "y"]
        dims["time"] = np.arange(frames) * 0.25 if times is None else times
        dims["x"], dims["y"] = np.arange(6) * length / 6, np.arange(5) / 5
        side = f.create_group("boundary_conditions/x")
        side.attrs.update({"bc_type": kind, "associated_dims": ["x"]})
        side["mask"] = np.isin(np.arange(6), (0, 5))
        f.create_group("scalars").attrs["field_names"] = []
        group = f.create_group("t0_fields")
        group.attrs["field_names"] = ["p"]
        group["p"] = data
        group["p"].attrs.update(
            {"sample_varying": True, "time_varying": True, "dim_varying": [True, True]}
        )
    return data


def write_gas(
    file: Path, *, dt: float = 0.1, length: float = 1.0, start: float = 0.0, **attributes: Any
) -> None:
    """A file of PDEBench with an array per field."""
    with h5py.File(file, "w") as f:
        f["tensor"] = numbers(3, 4, 8)
        f["x-coordinate"] = start + (np.arange(8) + 0.5) * length / 8
        f["t-coordinate"] = np.arange(5) * dt
        f.attrs.update(attributes)


def write_samples(file: Path, **last: Any) -> np.ndarray:
    """A file of PDEBench with a group per sample, of which the last may be another."""
    data = numbers(3, 5, 6, 4, 1)
    with h5py.File(file, "w") as f:
        for i in range(3):
            of = last if i == 2 else {}
            f[f"{i:04d}/data"] = data[i, : of.get("frames", 4)].repeat(
                of.get("channels", 1), axis=-1
            )
            f[f"{i:04d}/grid/x"] = (np.arange(6) + 0.5) / 6 * of.get("length", 1.0)
            f[f"{i:04d}/grid/y"] = (np.arange(4) + 0.5) / 4
            f[f"{i:04d}/grid/t"] = np.arange(of.get("frames", 4)) * of.get("dt", 0.5)
    return data


def refusal(path: Path, **options: Any) -> str:
    with pytest.raises(SourceError) as found:
        open_source(str(path), ConvertOptions(**options))
    return str(found.value)


# -- the mechanism --------------------------------------------------------------------------------


def test_values_agree_up_to_the_rounding_of_float32_and_no_further() -> None:
    assert agrees(np.arange(9) * np.float32(0.1), np.arange(9) * 0.1)
    assert not agrees(0.1, 0.10001)
    assert not agrees(np.arange(3.0), np.arange(4.0))
    assert not agrees({"x": "wall"}, {"x": "wall", "y": "wall"})
    assert agrees(None, None)
    assert not agrees(None, np.arange(2))
    assert steps(np.arange(100, dtype=np.float32) * np.float32(0.01)) == pytest.approx(0.01, 1e-5)
    assert np.array_equal(steps(np.array([0.0, 1.0, 3.0])), [1.0, 2.0])


def test_a_disagreement_names_both_places_and_both_values() -> None:
    found = Agreement()
    found.require("the spacing", "a.h5", 0.5)
    found.require("the spacing", "b.h5", 0.5)
    with pytest.raises(SourceError, match=r"c\.h5: the spacing is 0\.75, but 0\.5 in a\.h5\."):
        found.require("the spacing", "c.h5", 0.75)
    for place, value in (("a", 1.0), ("b", 2.0), ("c", 3.0)):
        found.remark("the start", place, value, "it is ignored")
    assert found.notes == ["the start differs: 1 in a, 2 in b; it is ignored"]


def test_lengths_are_cut_by_the_key_alone() -> None:
    assert common_length([("a", 5), ("b", 5)], None) == (5, ())
    with pytest.raises(SourceError, match=r"b has 7 frames and a has 5, .*--num-frames 5 keeps"):
        common_length([("a", 5), ("b", 7)], None)
    with pytest.raises(SourceError, match="--num-frames 5"):
        common_length([("a", 5), ("b", 7)], 6)
    assert common_length([("a", 5), ("b", 7)], 4)[0] == 5


# -- The Well -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"times": np.arange(4) * 0.3}, "the time between frames is 0.3"),
        (
            {"times": np.array([0, 0.25, 0.6, 0.75])},
            "whether times are evenly spaced is False",
        ),
        ({"length": 10.0}, "the position along x is"),
        ({"kind": "WALL"}, "the boundary condition is {'x': 'wall', 'y': 'open'}"),
        ({"grid_type": "polar"}, "the type of grid is polar"),
        ({"frames": 5}, "b.hdf5 has 5 frames"),
    ],
)
def test_unlike_files_of_the_well(tmp_path: Path, changes: dict[str, Any], what: str) -> None:
    write_well(tmp_path / "a.hdf5")
    write_well(tmp_path / "b.hdf5", **changes)
    told = refusal(tmp_path)
    assert what in told
    assert "a.hdf5" in told
    assert "b.hdf5" in told


def test_trajectories_of_one_file_of_the_well_agree_too(tmp_path: Path) -> None:
    write_well(tmp_path / "a.hdf5", times=np.arange(4) * np.array([[0.1], [0.2]]))
    assert "a.hdf5: time[1]: the time between frames is 0.2" in refusal(tmp_path)


def test_uneven_times_of_the_well_agree_in_their_mean(tmp_path: Path) -> None:
    uneven = np.array([0, 0.24, 0.51, 0.75])
    write_well(tmp_path / "a.hdf5", times=uneven)
    write_well(tmp_path / "b.hdf5", times=np.array([0, 0.26, 0.5, 0.752]))
    source = open_source(str(tmp_path), ConvertOptions())
    assert source.frame_interval == pytest.approx(0.25)
    told = " ".join(source.notes)
    assert "the uneven spacing of times differs: [0.24, 0.27, 0.24] in" in told
    assert "times of the frames are not evenly spaced" in told
    write_well(tmp_path / "b.hdf5", times=uneven * 1.05)
    assert "the mean time between frames is 0.2625, but" in refusal(tmp_path)


def test_what_may_differ_between_files_of_the_well(tmp_path: Path) -> None:
    data = (
        write_well(tmp_path / "a.hdf5", viscosity=0.1),
        write_well(tmp_path / "b.hdf5", viscosity=0.3, times=2 + np.arange(6) * 0.25, frames=6),
    )
    options = ConvertOptions(num_frames=3)
    result = convert.run(str(tmp_path), str(tmp_path / "out.zarr"), options, verify=True)
    assert result.differences == ()
    assert "the time of the first frame differs: 0 in" in " ".join(result.notes)
    assert "trajectories have 4 to 6 frames; the first 3" in " ".join(result.notes)
    dataset = open_dataset(tmp_path / "out.zarr")
    assert dataset.parameters["viscosity"].tolist() == [0.1, 0.1, 0.3, 0.3]
    assert (dataset.window(3, 0, 3)[:, 0] == data[1][1, :3].transpose(0, 2, 1)).all()


# -- PDEBench -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"dt": 0.2}, "the time between frames is 0.2, but"),
        ({"length": 3.0}, "the position along x is"),
        ({"start": 1.0}, "the position along x is"),
    ],
)
def test_unlike_files_of_pdebench(tmp_path: Path, changes: dict[str, Any], what: str) -> None:
    write_gas(tmp_path / "a.hdf5")
    write_gas(tmp_path / "b.hdf5", **changes)
    told = refusal(tmp_path)
    assert what in told
    assert "a.hdf5" in told
    assert "b.hdf5" in told


def test_files_of_pdebench_of_other_physics_have_parameters_or_are_told_apart(
    tmp_path: Path,
) -> None:
    write_gas(tmp_path / "a_Nu0.1.hdf5", Nu=0.1, beta=1.0)
    write_gas(tmp_path / "b_Nu0.2.hdf5", Nu=0.2)
    source = open_source(str(tmp_path), ConvertOptions())
    assert source.parts[0].parameters == {"Nu": 0.1}
    assert {part.parameter("Nu", 0) for part in source.parts} == {0.1, 0.2}
    assert "left out, because some files lack them: parameters beta" in source.notes
    write_gas(tmp_path / "c_periodic.hdf5", Nu=0.3)
    assert "the boundary condition is {'x': 'periodic'}, but" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("last", "what"),
    [
        ({"frames": 5}, "0002 has 5 frames"),
        ({"frames": 3}, "0002 has 3, but all trajectories"),
        ({"dt": 0.25}, "0002: the time between frames is 0.25, but"),
        ({"length": 2.0}, "0002: the position along x is"),
        ({"channels": 2}, "0002: the shape of data except its frames is (6, 4, 2), but"),
    ],
)
def test_unlike_samples_of_one_file_of_pdebench(
    tmp_path: Path, last: dict[str, Any], what: str
) -> None:
    write_samples(tmp_path / "a.h5", **last)
    assert what in refusal(tmp_path / "a.h5")


def test_longer_samples_are_cut_by_the_key(tmp_path: Path) -> None:
    data = write_samples(tmp_path / "a.h5", frames=5)
    options = ConvertOptions(num_frames=4)
    convert.run(str(tmp_path / "a.h5"), str(tmp_path / "out.zarr"), options)
    stored = open_dataset(tmp_path / "out.zarr").window(2, 0, 4)
    assert (stored[:, 0] == data[2, :4, :, :, 0].transpose(0, 2, 1)).all()


def test_arrays_of_one_file_of_pdebench_are_equally_long(tmp_path: Path) -> None:
    """The longer one would be cut without a word."""
    file = tmp_path / "a.hdf5"
    for longer in ((4, 4, 8), (3, 5, 8)):
        with h5py.File(file, "w") as f:
            f["density"], f["Vx"], f["pressure"] = (
                numbers(3, 4, 8),
                numbers(*longer),
                numbers(3, 4, 8),
            )
            f["x-coordinate"], f["t-coordinate"] = (np.arange(8) + 0.5) / 8, np.arange(5) * 0.1
        assert f"a.hdf5: Vx has shape {longer}" in refusal(file)


def test_positions_of_pdebench_may_be_edges(tmp_path: Path) -> None:
    write_gas(tmp_path / "a.hdf5")
    with h5py.File(tmp_path / "a.hdf5", "a") as f:
        del f["x-coordinate"]
        f["x-coordinate"] = np.arange(9) / 8
    source = open_source(str(tmp_path / "a.hdf5"), ConvertOptions())
    assert (source.domain_extent, source.grid_location) == ((1.0,), "cell")
    with h5py.File(tmp_path / "a.hdf5", "a") as f:
        del f["x-coordinate"], f["t-coordinate"]
        f["x-coordinate"] = np.arange(10) / 8
    assert "x-coordinate holds 10 positions for 8 points along x" in refusal(tmp_path / "a.hdf5")
    with h5py.File(tmp_path / "a.hdf5", "a") as f:
        del f["x-coordinate"]
        f["t-coordinate"] = np.arange(3) * 0.1
    assert "3 times for 4 frames" in refusal(tmp_path / "a.hdf5")


def test_fields_of_the_well_are_as_long_as_the_file_says(tmp_path: Path) -> None:
    for shape in ((3, 4, 6, 5), (2, 5, 6, 5), (2, 4, 7, 5)):
        write_well(tmp_path / "a.hdf5")
        with h5py.File(tmp_path / "a.hdf5", "a") as f:
            attributes = dict(f["t0_fields/p"].attrs)
            del f["t0_fields/p"]
            f["t0_fields/p"] = numbers(*shape)
            f["t0_fields/p"].attrs.update(attributes)
        assert f"/t0_fields/p has shape {shape} along ntxy" in refusal(tmp_path / "a.hdf5")


def test_hidden_files_links_and_capitals(tmp_path: Path) -> None:
    write_gas(tmp_path / "store.hdf5")
    folder = tmp_path / "data"
    folder.mkdir()
    write_gas(folder / "A.HDF5")
    (folder / "b.hdf5").symlink_to(tmp_path / "store.hdf5")
    (folder / "._b.hdf5").write_bytes(b"resource fork")
    assert open_source(str(folder), ConvertOptions()).num_trajectories == 6
    (tmp_path / "store.hdf5").unlink()
    assert "b.hdf5 is a link to" in refusal(folder)


# -- Poseidon, DPOT, CFDBench, OME-Zarr -----------------------------------------------------------


def test_unlike_files_of_poseidon(tmp_path: Path) -> None:
    def write(name: str, frames: int = 3, size: int = 6, **coordinates: Any) -> None:
        with h5py.File(tmp_path / f"velocity_{name}.nc", "w") as f:
            f["velocity"] = numbers(2, frames, 2, size, size)
            f["velocity"].attrs["units"] = coordinates.pop("units", "m/s")
            for key, values in coordinates.items():
                f[key] = values

    write("0", time=np.arange(3) * 0.1)
    for changes, what in (
        ({"time": np.arange(3) * 0.2}, "the step of the coordinate time is 0.2, but"),
        ({"time": np.arange(3) * 0.1, "units": "cm/s"}, "the unit of velocity is cm/s"),
        ({"time": np.arange(3) * 0.1, "size": 8}, "the grid (y, x) is (8, 8)"),
        ({"time": np.arange(3) * 0.1, "frames": 4}, "velocity_1.nc has 4 frames"),
    ):
        write("1", **changes)
        assert what in refusal(tmp_path, problem="NS-Sines")


def test_unlike_samples_of_helmholtz(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "Helmholtz.h5", "w") as f:
        for i, size in enumerate((6, 6, 7)):
            f[f"Sample_{i}/a"], f[f"Sample_{i}/u"] = numbers(size, size), numbers(size, size)
            f[f"Sample_{i}/bc"] = 0.5
    assert "Sample_2: the shape of each array is {'a': (7, 7)" in refusal(tmp_path / "Helmholtz.h5")


def test_longer_files_of_dpot_are_cut_by_the_key_alone(tmp_path: Path) -> None:
    data = [numbers(6, 5, frames, 1) for frames in (4, 3)]
    for i, values in enumerate(data):
        with h5py.File(tmp_path / f"data_{i}.hdf5", "w") as f:
            f["data"] = values
    assert "data_0.hdf5 has 4 frames" in refusal(tmp_path)
    source = open_source(str(tmp_path), ConvertOptions(num_frames=3))
    assert source.num_frames == 3
    with h5py.File(tmp_path / "data_1.hdf5", "a") as f:
        f["t"] = np.arange(3) * 0.5
    assert "the step of the coordinate t is 0.5, but" in refusal(
        tmp_path, num_frames=3, format="dpot"
    )


def test_cases_of_cfdbench_of_other_sizes_are_pointed_out(tmp_path: Path) -> None:
    for i, extra in enumerate(({}, {"angle": 3.0}, {})):
        case = tmp_path / f"case{i:04d}"
        case.mkdir()
        np.save(case / "u.npy", numbers(3, 6, 5))
        np.save(case / "v.npy", numbers(3, 6, 5))
        numbers_of_case = {"height": 0.1 * (i + 1), "width": 0.2, **extra}
        (case / "case.json").write_text(json.dumps(numbers_of_case))
    source = open_source(str(tmp_path), ConvertOptions())
    told = " ".join(source.notes)
    assert "the size (height, width) differs" in told
    assert "left out, because some cases lack them: parameters angle" in told
    assert sorted(part.parameter("height", 0) for part in source.parts) == pytest.approx(
        [0.1, 0.2, 0.3]
    )
    np.save(tmp_path / "case0002" / "u.npy", numbers(3, 6, 4))
    np.save(tmp_path / "case0002" / "v.npy", numbers(3, 6, 4))
    assert "the grid (y, x) is (6, 4), but" in refusal(tmp_path)


def write_image(
    place: Path,
    pixel: float = 0.5,
    unit: str = "micrometer",
    label_pixel: float | None = None,
    label_shift: float = 7.0,
) -> None:
    root = zarr.open_group(place, mode="w", zarr_format=2)
    axes = [{"name": name, "type": "space", "unit": unit} for name in "yx"]

    def described(scale: float, shift: float) -> list[dict[str, Any]]:
        transformations = [
            {"type": "scale", "scale": [scale, scale]},
            {"type": "translation", "translation": [shift, shift]},
        ]
        datasets = [{"path": "0", "coordinateTransformations": transformations}]
        return [{"axes": axes, "datasets": datasets, "version": "0.4"}]

    root.attrs["multiscales"] = described(pixel, 7.0)
    root.create_array("0", data=RNG.integers(0, 99, (6, 8)).astype(np.uint16))
    root.create_group("labels").attrs["labels"] = ["cells"]
    cells = root.create_group("labels/cells")
    cells.attrs["multiscales"] = described(label_pixel or pixel, label_shift)
    cells.create_array("0", data=RNG.integers(0, 9, (6, 8)).astype(np.int32))


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"pixel": 0.25}, "the size of a pixel (scale) is {'y': 0.25, 'x': 0.25}, but"),
        ({"unit": "nanometer"}, "the unit is {'y': 'nanometer', 'x': 'nanometer'}, but"),
        ({"label_pixel": 1.0}, "labels/cells: the scale along"),
        ({"label_shift": 0.0}, "labels/cells: the translation along"),
    ],
)
def test_unlike_images_of_ome_zarr(tmp_path: Path, changes: dict[str, Any], what: str) -> None:
    write_image(tmp_path / "a.ome.zarr")
    assert open_source(str(tmp_path), ConvertOptions()).domain_extent == (3.0, 4.0)
    write_image(tmp_path / "b.ome.zarr", **changes)
    assert what in refusal(tmp_path)
