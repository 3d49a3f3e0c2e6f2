"""Converted data is held against its equation where file and paper tell all of it."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from pelagos.data_pipelines.convert import ConvertOptions
from pelagos.data_pipelines.generate.trajectories import generate_trajectories
from pelagos.data_pipelines.physics import DatasetPhysics, NoPhysics, dataset_physics
from pelagos.data_pipelines.store import Dataset, open_dataset
from pelagos.jobs import convert

GAS = {"density": 0, "Vx": 1, "Vy": 2, "pressure": 3}
CENTRES = (np.arange(16) + 0.5) / 16


def converted(source: Path) -> tuple[Dataset, DatasetPhysics]:
    uri = str(source.parent / f"{source.name}.zarr")
    convert.run(str(source), uri, ConvertOptions(splits={"test": 2}), num_workers=1)
    dataset = open_dataset(uri)
    return dataset, dataset_physics(dataset, dataset.field_names)


def residuals(dataset: Dataset, physics: DatasetPhysics) -> dict[str, float]:
    """The largest of two trajectories, at the last frames."""
    stop, count = dataset.num_frames, physics.num_frames
    frames = torch.from_numpy(
        np.stack([dataset.read_frames(i, range(stop - count, stop)) for i in (0, 1)])
    )
    found = physics.residuals(frames, frames, dataset.spec.frame_interval, [0, 1])
    return {name: float(values.max()) for name, values in found.items()}


def test_pdebench_darcy(tmp_path: Path) -> None:
    """Solutions of our own solver in PDEBench's layout [n, x, y]."""
    data, _ = generate_trajectories("Darcy", [0, 1], seed=0, resolution=16, num_frames=2)
    file = tmp_path / "2D_DarcyFlow_beta1.0_Train.hdf5"
    with h5py.File(file, "w") as f:
        f["nu"] = data[:, 1, 0].transpose(0, 2, 1)
        f["tensor"] = data[:, 1:, 1].transpose(0, 1, 3, 2)
        f["x-coordinate"] = f["y-coordinate"] = CENTRES
    dataset, physics = converted(file)
    assert dataset.spec.boundary_conditions == {"y": "dirichlet", "x": "dirichlet"}
    assert residuals(dataset, physics)["residual"] < 1e-4


def test_pdebench_reaction_and_diffusion(tmp_path: Path) -> None:
    """On its domain, (-1, 1)^2, after the noise has settled."""
    data, _ = generate_trajectories(
        "Reaction-Diffusion", [0, 1], seed=0, resolution=16, num_frames=11, final_time=1.0
    )
    file = tmp_path / "2D_diff-react_NA_NA.h5"
    with h5py.File(file, "w") as f:
        for i, sample in enumerate(data):
            f[f"{i:04d}/data"] = sample.transpose(0, 3, 2, 1)
            f[f"{i:04d}/grid/x"] = f[f"{i:04d}/grid/y"] = 2.0 * CENTRES - 1.0
            f[f"{i:04d}/grid/t"] = np.linspace(0.0, 1.0, 11)
    dataset, physics = converted(file)
    assert dataset.spec.domain_extent == (2.0, 2.0)
    assert max(residuals(dataset, physics).values()) < 0.02


@pytest.mark.parametrize("viscosity", ["1e-08", "0.01"])
def test_pdebench_gas_is_euler_s_where_it_has_no_viscosity(tmp_path: Path, viscosity: str) -> None:
    data, _ = generate_trajectories("CE-RP", [0, 1], seed=0, resolution=16, num_frames=3)
    file = tmp_path / f"2D_CFD_Rand_M0.1_Eta{viscosity}_Zeta{viscosity}_periodic_16_Train.hdf5"
    with h5py.File(file, "w") as f:
        for key, channel in GAS.items():
            f[key] = data[:, :, channel].transpose(0, 1, 3, 2)
        f["x-coordinate"] = f["y-coordinate"] = CENTRES
        f["t-coordinate"] = np.arange(4) * 0.5
    if viscosity == "0.01":
        with pytest.raises(NoPhysics, match="does not record which equation"):
            converted(file)
        return
    dataset, physics = converted(file)
    assert (physics.name, physics.coefficients) == ("compressible-euler", {"gamma": 5.0 / 3.0})
    assert set(residuals(dataset, physics)) == {"mass", "momentum", "energy"}


def test_pdegym_flow(tmp_path: Path) -> None:
    """Our flow in PDEgym's layout, at the start where it is 1/20 of a unit apart as there."""
    data, _ = generate_trajectories(
        "NS-PwC", [0, 1], seed=0, resolution=128, num_frames=3, final_time=0.1
    )
    with h5py.File(tmp_path / "NS-PwC.nc", "w") as f:
        f["velocity"] = data
    dataset, physics = converted(tmp_path / "NS-PwC.nc")
    assert dataset.spec.frame_interval == 0.05
    assert residuals(dataset, physics)["momentum"] < 0.05
    frame = torch.from_numpy(dataset.read_frames(0, [1]))
    assert float(physics.constraints(frame, frame, [0])["divergence"]) < 1e-5
    turned = frame.transpose(-1, -2)  # axes the other way round
    assert float(physics.constraints(turned, frame, [0])["divergence"]) > 0.3
