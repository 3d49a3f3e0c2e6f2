"""Files as the published loaders read them, small, and what must come out of them."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from pelagos.data_pipelines.convert import ConvertOptions, SourceError, open_source
from pelagos.data_pipelines.store import Dataset, open_dataset
from pelagos.jobs import convert

RNG = np.random.default_rng(7)


def numbers(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(np.float32)


def converted(source: Path, **options: Any) -> Dataset:
    uri = str(source.parent / f"{source.name}.out.zarr")
    result = convert.run(str(source), uri, ConvertOptions(**options), verify=True, num_workers=2)
    assert result.differences == ()
    return open_dataset(uri)


def everything(dataset: Dataset) -> np.ndarray:
    """`[trajectory, time, channel, y, x]`."""
    spec = dataset.spec
    return np.stack([dataset.window(i, 0, spec.num_frames) for i in range(spec.num_trajectories)])


# -- The Well -------------------------------------------------------------------------------------


def write_well(file: Path, count: int, viscosity: float) -> dict[str, np.ndarray]:
    """Two dimensions, T = 4, x = 6, y = 5; a field of each order, one constant, one along x only."""
    file.parent.mkdir(parents=True, exist_ok=True)
    data = {
        "density": numbers(count, 4, 6, 5),
        "mask": numbers(6, 5),
        "inlet": numbers(count, 4, 6),
        "velocity": numbers(count, 4, 6, 5, 2),
        "stress": numbers(count, 4, 6, 5, 2, 2),
        "drag": numbers(count),
    }
    with h5py.File(file, "w") as f:
        f.attrs.update(
            {
                "dataset_name": "tiny_flow",
                "grid_type": "cartesian",
                "n_spatial_dims": 2,
                "n_trajectories": count,
                "simulation_parameters": ["viscosity"],
                "viscosity": viscosity,
            }
        )
        dims = f.create_group("dimensions")
        dims.attrs["spatial_dims"] = ["x", "y"]
        for name, values in {
            "time": np.arange(4, dtype=np.float32) * np.float32(0.25),
            "x": np.arange(6, dtype=np.float32) / 6,
            "y": np.arange(5, dtype=np.float32) * 2 / 5,
        }.items():
            dims.create_dataset(name, data=values).attrs["sample_varying"] = False
        conditions = f.create_group("boundary_conditions")
        walls, flow = conditions.create_group("y_walls"), conditions.create_group("x_periodic")
        for group, dim, kind, size in ((walls, "y", "WALL", 5), (flow, "x", "PERIODIC", 6)):
            group.attrs.update({"associated_dims": [dim], "bc_type": kind})
            group["mask"] = np.isin(np.arange(size), (0, size - 1))
        scalars = f.create_group("scalars")
        scalars.attrs["field_names"] = ["viscosity", "drag", "clock"]
        for name, values, varying in (
            ("viscosity", np.float32(viscosity), (False, False)),
            ("drag", data["drag"], (True, False)),
            ("clock", np.zeros(4, np.float32), (False, True)),
        ):
            scalar = scalars.create_dataset(name, data=values)
            scalar.attrs["sample_varying"], scalar.attrs["time_varying"] = varying
        for order, names in enumerate((["density", "mask", "inlet"], ["velocity"], ["stress"])):
            group = f.create_group(f"t{order}_fields")
            group.attrs["field_names"] = names
            for name in names:
                field = group.create_dataset(name, data=data[name])
                field.attrs["sample_varying"] = field.attrs["time_varying"] = name != "mask"
                field.attrs["dim_varying"] = [True, name != "inlet"]
    return data


def test_the_well_in_split_folders(tmp_path: Path) -> None:
    root = tmp_path / "tiny_flow"
    train = [write_well(root / f"data/train/part_{i}.hdf5", 2, 0.1 * i) for i in (2, 10)]
    test = write_well(root / "data/test/part_0.hdf5", 1, 0.5)
    dataset = converted(root)
    spec = dataset.spec
    assert spec.name == "tiny_flow"
    assert spec.field_names == (
        *("density", "mask", "inlet", "velocity-x", "velocity-y"),
        *("stress-xx", "stress-xy", "stress-yx", "stress-yy"),
    )
    assert spec.splits == {"train": (0, 4), "test": (4, 5)}
    assert (spec.grid_shape, spec.domain_extent) == ((5, 6), (2.0, 1.0))
    assert (spec.frame_interval, spec.grid_location) == (0.25, "node")
    assert spec.boundary_conditions == {"x": "periodic", "y": "wall"}
    all_files = [*train, test]
    density = np.concatenate([d["density"] for d in all_files])
    stored = everything(dataset)
    assert (stored[:, :, 0] == density.transpose(0, 1, 3, 2)).all()  # [.., x, y] -> [.., y, x]
    assert (stored[2:4, :, 1] == train[1]["mask"].T).all()  # constant: in every frame
    assert (stored[:2, :, 2, 3] == train[0]["inlet"]).all()  # constant along y: in every row
    assert (stored[4, :, 4] == test["velocity"][0, ..., 1].transpose(0, 2, 1)).all()
    assert (stored[4, :, 6] == test["stress"][0, ..., 0, 1].transpose(0, 2, 1)).all()
    parameters = dataset.parameters
    assert np.allclose(parameters["viscosity"], [0.2, 0.2, 1.0, 1.0, 0.5])
    assert (parameters["drag"] == np.concatenate([d["drag"] for d in all_files])).all()
    assert spec.parameter_names == ("viscosity", "drag")


def test_one_file_of_the_well_is_divided_and_a_strange_one_refused(tmp_path: Path) -> None:
    write_well(tmp_path / "a.hdf5", 10, 1.0)
    source = open_source(str(tmp_path / "a.hdf5"), ConvertOptions())
    assert source.spec(ConvertOptions()).splits == {
        "train": (0, 8),
        "validation": (8, 9),
        "test": (9, 10),
    }
    assert any("clock changes in time" in note for note in source.notes)
    with h5py.File(tmp_path / "a.hdf5", "a") as f:
        del f["t1_fields/velocity"]
    with pytest.raises(SourceError, match=r"a\.hdf5: /t1_fields/velocity is missing"):
        open_source(str(tmp_path / "a.hdf5"), ConvertOptions())
    with h5py.File(tmp_path / "a.hdf5", "a") as f:
        del f.attrs["n_trajectories"]
    with pytest.raises(SourceError, match=r"a\.hdf5: / has no attribute 'n_trajectories'"):
        open_source(str(tmp_path / "a.hdf5"), ConvertOptions())


# -- PDEBench -------------------------------------------------------------------------------------


def test_pdebench_with_a_group_per_sample(tmp_path: Path) -> None:
    file = tmp_path / "2D_rdb_NA_NA.h5"
    data = numbers(12, 3, 6, 5, 1)
    with h5py.File(file, "w") as f:
        for i, sample in enumerate(data):
            f[f"{i:04d}/data"] = sample
            f[f"{i:04d}/grid/x"] = np.linspace(-2.5, 2.5, 6, endpoint=False) + 5 / 12
            f[f"{i:04d}/grid/y"] = np.linspace(-2.5, 2.5, 5, endpoint=False) + 0.5
            f[f"{i:04d}/grid/t"] = np.linspace(0, 1, 3)
            f[f"{i:04d}"].attrs["config"] = "sim: {}"
    dataset = converted(file)
    assert dataset.field_names == ("height",)
    assert dataset.spec.domain_extent == (5.0, 5.0)
    assert dataset.spec.frame_interval == 0.5
    assert (everything(dataset) == data.transpose(0, 1, 4, 3, 2)).all()
    # the published loader tests on the first tenth
    assert dataset.spec.splits == {"test": (0, 1), "train": (1, 11), "validation": (11, 12)}


def test_pdebench_with_an_array_per_field(tmp_path: Path) -> None:
    file = tmp_path / "2D_CFD_Rand_M0.1_Eta0.01_Zeta0.01_periodic_6_Train.hdf5"
    data = {key: numbers(5, 3, 6, 4) for key in ("density", "pressure", "Vx", "Vy")}
    with h5py.File(file, "w") as f:
        for key, values in data.items():
            f[key] = values
        f["x-coordinate"] = (np.arange(6) + 0.5) / 6
        f["y-coordinate"] = (np.arange(4) + 0.5) / 4
        f["t-coordinate"] = np.arange(4) * 0.05  # one more than there are frames
        f.attrs.update({"M": 0.1, "eta": 0.01, "zeta": 0.01, "note": "text"})
    dataset = converted(file)
    assert dataset.field_names == ("density", "velocity-x", "velocity-y", "pressure")
    stored = everything(dataset)
    for channel, key in enumerate(("density", "Vx", "Vy", "pressure")):
        assert (stored[:, :, channel] == data[key].transpose(0, 1, 3, 2)).all()
    assert dataset.spec.boundary_conditions == {"y": "periodic", "x": "periodic"}
    assert {k: v[0] for k, v in dataset.parameters.items()} == {"M": 0.1, "eta": 0.01, "zeta": 0.01}
    assert dataset.spec.frame_interval == 0.05


def test_pdebench_scalar_darcy_and_incompressible(tmp_path: Path) -> None:
    burgers, darcy, flow = (tmp_path / f"{n}.hdf5" for n in ("1D_Burgers", "2D_Darcy", "ns_incom"))
    wave, nu, solution = numbers(4, 3, 16), numbers(4, 6, 5), numbers(4, 1, 6, 5)
    velocity, particles, force = numbers(2, 3, 6, 5, 2), numbers(2, 3, 6, 5, 1), numbers(2, 6, 5, 2)
    with h5py.File(burgers, "w") as f:
        f["tensor"], f["x-coordinate"], f["t-coordinate"] = wave, np.arange(16) / 16, np.arange(4.0)
        f.attrs["Nu"] = 0.001
    with h5py.File(darcy, "w") as f:
        f["nu"], f["tensor"] = nu, solution
        f["x-coordinate"], f["y-coordinate"] = np.arange(6) / 6, np.arange(5) / 5
        f.attrs["beta"] = 1.0
    with h5py.File(flow, "w") as f:
        f["velocity"], f["particles"], f["force"] = velocity, particles, force
        f["t"] = np.tile(np.arange(3) * 0.1, (2, 1))
    assert (everything(converted(burgers))[:, :, 0] == wave).all()
    stored = everything(converted(darcy))
    assert (stored[:, :, 0] == nu.transpose(0, 2, 1)[:, None]).all()
    assert (stored[:, 0, 1] == 0).all()
    assert (stored[:, 1, 1] == solution[:, 0].transpose(0, 2, 1)).all()
    dataset = converted(flow)
    assert dataset.field_names == ("velocity-x", "velocity-y", "tracer", "force-x", "force-y")
    stored = everything(dataset)
    assert (stored[:, :, 1] == velocity[..., 1].transpose(0, 1, 3, 2)).all()
    assert (stored[:, 2, 4] == force[..., 1].transpose(0, 2, 1)).all()


# -- Poseidon -------------------------------------------------------------------------------------


def test_poseidon_gas_keeps_four_channels_constants_and_published_splits(tmp_path: Path) -> None:
    data = numbers(400, 2, 5, 4, 4)
    with h5py.File(tmp_path / "CE-RP.nc", "w") as f:
        f["data"] = data
    dataset = converted(tmp_path / "CE-RP.nc")
    spec = dataset.spec
    assert (everything(dataset) == data[:, :, :4]).all()
    assert spec.splits == {"train": (0, 40), "validation": (40, 160), "test": (160, 400)}
    assert spec.published_normalization["offset"] == {"pressure": 0.215}
    assert spec.published_normalization["std"]["velocity-x"] == 0.391
    assert spec.frame_interval == 0.05


def test_poseidon_constants_are_those_of_the_simulated_families() -> None:
    """The two places that know the published constants agree, to the digits that each has."""
    from pelagos.data_pipelines.convert.pdegym_problems import PROBLEMS
    from pelagos.data_pipelines.generate.families import FAMILIES

    shared = [name for name in PROBLEMS if name in FAMILIES]
    assert len(shared) >= 15
    for name in shared:
        theirs = FAMILIES[name].published_normalization
        if not theirs:
            continue
        problem = PROBLEMS[name]
        for key, ours in (("mean", problem.mean), ("std", problem.std), ("offset", problem.offset)):
            for field, value in theirs[key].items():
                assert ours[field] == pytest.approx(value, rel=1e-5, abs=1e-8), (name, key, field)


@pytest.mark.parametrize(
    ("name", "arrays", "fields", "frames"),
    [
        ("NS-SL", {"velocity": (4, 3, 2, 6, 6)}, ("velocity-x", "velocity-y"), 3),
        ("NS-PwC", {"velocity": (4, 3, 3, 6, 6)}, ("velocity-x", "velocity-y", "tracer"), 3),
        ("FNS-KF", {"solution": (4, 3, 2, 6, 6)}, ("velocity-x", "velocity-y", "forcing"), 3),
        ("ACE", {"solution": (4, 3, 6, 6)}, ("phase",), 3),
        ("Wave-Layer", {"solution": (4, 3, 1, 6, 6), "c": (4, 6, 6)}, ("displacement", "speed"), 3),
        ("SE-AF", {"solution": (4, 2, 6, 6)}, ("mask", "density"), 2),
        ("Poisson-Gauss", {"source": (4, 6, 6), "solution": (4, 6, 6)}, ("source", "solution"), 2),
        (
            "GCE-RT",
            {"solution": (4, 3, 6, 6, 6)},
            ("density", "velocity-x", "velocity-y", "pressure", "potential"),
            3,
        ),
    ],
)
def test_poseidon_problems(
    tmp_path: Path, name: str, arrays: dict[str, Any], fields: tuple[str, ...], frames: int
) -> None:
    data = {key: numbers(*shape) for key, shape in arrays.items()}
    with h5py.File(tmp_path / f"{name}.nc", "w") as f:
        for key, values in data.items():
            f[key] = values
    dataset = converted(tmp_path / f"{name}.nc")
    stored = everything(dataset)
    assert (dataset.field_names, dataset.num_frames) == (fields, frames)
    without_time = {
        "FNS-KF": "forcing",
        "Wave-Layer": "speed",
        "SE-AF": "mask",
        "Poisson-Gauss": "source",
    }
    assert dataset.spec.given_fields == tuple(f for f in fields if f == without_time.get(name))
    if name == "NS-SL":
        assert (stored == data["velocity"].swapaxes(-1, -2)).all()
    elif name == "NS-PwC":
        assert (stored == data["velocity"]).all()
        assert dataset.spec.published_normalization["mean"]["tracer"] == 0.19586183
    elif name == "FNS-KF":
        x = np.linspace(0, 1, 6)
        forcing = 0.1 * np.sin(2 * np.pi * (x[:, None] + x))
        assert np.abs(stored[:, :, 2] - forcing).max() < 1e-7
    elif name == "Wave-Layer":
        assert (stored[:, :, 0] == data["solution"][:, :, 0]).all()
        assert (stored[:, :, 1] == data["c"][:, None]).all()
    elif name == "SE-AF":
        assert (stored[:, :, 0] == data["solution"][:, :1]).all()
        assert (stored[:, 1, 1] == data["solution"][:, 1]).all()
        assert (stored[:, 0, 1] == 0).all()
    elif name == "Poisson-Gauss":
        assert (stored[:, 1, 1] == data["solution"]).all()
        assert (stored[:, 0, 0] == data["source"]).all()
    elif name == "GCE-RT":
        assert (stored[:, :, 4] == data["solution"][:, :, 5]).all()


def test_helmholtz_has_a_group_per_sample(tmp_path: Path) -> None:
    a, u, b = numbers(12, 6, 6), numbers(12, 6, 6), numbers(12)
    with h5py.File(tmp_path / "Helmholtz.h5", "w") as f:
        for i in range(12):
            f[f"Sample_{i}/a"], f[f"Sample_{i}/u"], f[f"Sample_{i}/bc"] = a[i], u[i], b[i]
    stored = everything(converted(tmp_path / "Helmholtz.h5"))
    assert (stored[:, 1, 0] == a).all()  # Sample_10 after Sample_9
    assert (stored[:, :, 1] == b[:, None, None, None]).all()
    assert (stored[:, 1, 2] == u).all()


def test_a_poseidon_file_of_another_name_needs_the_problem(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "velocity_0.nc", "w") as f:
        f["velocity"] = numbers(2, 3, 2, 6, 4)
    with pytest.raises(SourceError, match="resembles none of the formats"):
        open_source(str(tmp_path / "velocity_0.nc"), ConvertOptions())
    with pytest.raises(SourceError, match="give --problem, one of NS-Sines"):
        open_source(str(tmp_path / "velocity_0.nc"), ConvertOptions(format="poseidon"))
    options = ConvertOptions(problem="ns-sines", swap_axes=True)
    source = open_source(str(tmp_path / "velocity_0.nc"), options)
    assert (source.name, source.grid_shape) == ("NS-Sines", (4, 6))


def test_the_divergence_tells_which_axis_of_a_flow_is_x(tmp_path: Path) -> None:
    x = np.arange(32) * 2 * np.pi / 32
    stream = np.sin(2 * x)[None] * np.cos(x + 0.3)[:, None] + np.sin(x)[:, None]  # [y, x]
    u, v = np.gradient(stream, axis=0), -np.gradient(stream, axis=1)
    for name, flow in (("NS-Sines", [u.T, v.T]), ("NS-BB", [u, v])):
        with h5py.File(tmp_path / f"{name}.nc", "w") as f:
            f["velocity"] = np.broadcast_to(np.float32(flow), (4, 2, 2, 32, 32))
    notes = open_source(str(tmp_path / "NS-Sines.nc"), ConvertOptions()).notes
    assert any("velocity-x runs along the first axis" in note for note in notes)
    notes = open_source(str(tmp_path / "NS-BB.nc"), ConvertOptions()).notes
    assert not any("runs along" in note for note in notes)


# -- DPOT and CFDBench ----------------------------------------------------------------------------


def test_dpot_scattered_files(tmp_path: Path) -> None:
    root = tmp_path / "swe_pdb"
    data = numbers(13, 6, 5, 4, 1)
    for i, values in enumerate(data):
        folder = root / ("train" if i < 11 else "test")
        folder.mkdir(parents=True, exist_ok=True)
        with h5py.File(folder / f"data_{i if i < 11 else i - 11}.hdf5", "w") as f:
            f["data"] = values
    dataset = converted(root)
    assert dataset.spec.splits == {"train": (0, 11), "test": (11, 13)}
    assert dataset.field_names == ("height",)
    assert (everything(dataset) == data.transpose(0, 3, 4, 2, 1)).all()  # data_10 after data_9


def test_dpot_one_file_for_all(tmp_path: Path) -> None:
    data = {name: numbers(3, 6, 5, 4) for name in ("train", "test")}
    for name, values in data.items():
        with h5py.File(tmp_path / f"ns2d_1e-5_{name}.hdf5", "w") as f:
            f["data"] = values
    dataset = converted(tmp_path / "ns2d_1e-5", format="dpot")
    assert dataset.spec.splits == {"train": (0, 3), "test": (3, 6)}
    both = np.concatenate([data["train"], data["test"]])
    assert (everything(dataset)[:, :, 0] == both.transpose(0, 3, 2, 1)).all()


def test_cfdbench_cuts_cases_into_trajectories(tmp_path: Path) -> None:
    root = tmp_path / "cavity"
    flows: dict[str, np.ndarray] = {}
    names = []
    for subset, count in (("prop", 6), ("bc", 4)):
        for i in range(count):
            case = root / subset / f"case{i:04d}"
            case.mkdir(parents=True)
            flows[f"{subset}{i}"] = numbers(2, 4 + 3 * (i % 2), 6, 5)
            np.save(case / "u.npy", flows[f"{subset}{i}"][0])
            np.save(case / "v.npy", flows[f"{subset}{i}"][1])
            numbers_of_case = {"vel_top": i, "density": 1.5, "height": 0.1, "width": 0.2}
            (case / "case.json").write_text(json.dumps(numbers_of_case))
            names.append(f"{subset}{i}")
    dataset = converted(root, num_frames=3)
    random.Random(0).shuffle(names)  # as the published loader does
    windows = [flows[n][:, s : s + 3] for n in names for s in range(0, flows[n].shape[1] - 2, 3)]
    assert (everything(dataset) == np.stack(windows).transpose(0, 2, 1, 3, 4)).all()
    lengths = [flows[n].shape[1] // 3 for n in names]
    assert dataset.spec.splits == {
        "train": (0, sum(lengths[:8])),
        "validation": (sum(lengths[:8]), sum(lengths[:9])),
        "test": (sum(lengths[:9]), sum(lengths)),
    }
    assert dataset.spec.domain_extent == (0.1, 0.2)
    assert dataset.parameters["vel_top"][0] == int(names[0][-1])
