"""Residuals of what our solvers make, read from datasets: small, beside those of wrong coefficients."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from pelagos.data_pipelines.generate.families import FAMILIES
from pelagos.data_pipelines.generate.tasks import GenerationRequest, dataset_spec, make_shard
from pelagos.data_pipelines.physics import DatasetPhysics, NoPhysics, dataset_physics
from pelagos.data_pipelines.store import DatasetSpec, Field, create_dataset, open_dataset
from pelagos.data_pipelines.store.readable import ReadableDataset


def generated(
    directory: Path, family: str, final_time: float, num_frames: int, resolution: int = 32
) -> ReadableDataset:
    request = GenerationRequest(
        family, 0, 2, resolution=resolution, num_frames=num_frames, final_time=final_time
    )
    uri = str(directory / f"{family}.zarr")
    writer = create_dataset(uri, dataset_spec(request, {"train": 2}))
    for shard in range(writer.num_shards):
        make_shard(writer, request, shard)
    writer.finalize()
    return open_dataset(uri)


def worst(physics: DatasetPhysics, dataset: ReadableDataset, part: str) -> float:
    """The largest residual of both trajectories, at the last frame."""
    count, last = physics.num_frames, dataset.num_frames
    frames = torch.from_numpy(
        np.stack([dataset.read_frames(i, range(last - count, last)) for i in (0, 1)])
    )
    scores = physics.residuals(frames, frames, dataset.spec.frame_interval, [0, 1])
    return float(scores[part].max())


@pytest.mark.parametrize(
    ("family", "part", "final_time", "num_frames", "wrong", "most"),
    [
        # A short interval leaves of the right equation a hundredth or less (with shocks, a fifth).
        ("Burgers", "residual", 0.02, 3, {"viscosity": 0.03}, 0.01),
        ("ACE", "residual", 0.02, 3, {"reaction_rate": 5.0}, 0.01),
        ("NS-Sines", "momentum", 0.02, 3, {"viscosity": 0.003}, 0.02),
        ("NS-Tracer-PwC", "tracer", 0.02, 3, {"viscosity": 0.003}, 0.02),
        ("FNS-KF", "momentum", 0.02, 3, {"viscosity": 0.01}, 0.01),
        ("CE-RP", "energy", 0.01, 3, {"gamma": 1.8}, 0.2),
        ("Shallow-Water", "momentum", 0.1, 3, {"gravity": 2.0}, 0.2),
        # solved on three cells per stored cell: what the stored grid's differences leave is in it
        ("Wave-Gauss", "residual", 0.06, 7, {"domain_metres": 1500.0}, 0.08),
        ("Reaction-Diffusion", "activator", 0.04, 5, {"activator_diffusivity": 2e-3}, 0.02),
        ("Helmholtz", "residual", 1.0, 2, {"omega": 8.5}, 1e-4),
        ("Darcy", "residual", 1.0, 2, {"source": 1.2}, 1e-4),
    ],
)
def test_own_data_obeys_its_equation_and_no_other(
    tmp_path: Path,
    family: str,
    part: str,
    final_time: float,
    num_frames: int,
    wrong: dict[str, float],
    most: float,
) -> None:
    dataset = generated(tmp_path, family, final_time, num_frames)
    physics = dataset_physics(dataset, dataset.field_names)
    right = worst(physics, dataset, part)
    assert right < most
    changed = dataclasses.replace(physics, coefficients={**physics.coefficients, **wrong})
    assert worst(changed, dataset, part) > 4.0 * right


def test_poisson_of_another_source_is_off_by_the_difference(tmp_path: Path) -> None:
    dataset = generated(tmp_path, "Poisson-Gauss", 1.0, 2)
    physics = dataset_physics(dataset, dataset.field_names)
    assert worst(physics, dataset, "residual") < 1e-4
    data = torch.from_numpy(dataset.read_frames(0, [1]))[None]
    halved = data.clone()
    halved[:, :, physics.channels["solution"]] *= 0.5
    score = physics.residuals(halved, data, 1.0, [0])["residual"]
    assert float(score) == pytest.approx(0.5, abs=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_records_an_equation_that_can_be_measured(tmp_path: Path, family: str) -> None:
    # On 16 cells a shear layer's border is perturbed by less than a cell, and nothing happens.
    resolution = 64 if family == "CE-KH" else 16
    dataset = generated(tmp_path, family, 0.1, 3, resolution)
    physics = dataset_physics(dataset, dataset.field_names)
    frames = torch.from_numpy(dataset.read_frames(0, [0, 1, 2]))[None]
    window = frames[:, -physics.num_frames :]
    scores = physics.residuals(window, window, 0.05, [0])
    assert scores
    assert all(value.shape == (1,) and bool(value >= 0.0) for value in scores.values())
    for name, share in physics.constraints(frames[:, 2], frames[:, 2], [0]).items():
        assert float(share) < 1e-4, name  # fp32 data
    for name, drift in physics.drifts(frames[:, 2], frames[:, 0], [0]).items():
        assert float(drift) < 1e-5, name


def spec(**changes: object) -> DatasetSpec:
    values = {
        "name": "tank",
        "equation": "u_t + a u_x = 0",
        "fields": (Field("dye", "tracer"),),
        "num_trajectories": 2,
        "num_frames": 2,
        "grid_shape": (8, 8),
        "frame_interval": 0.1,
        "domain_extent": (1.0, 1.0),
        "boundary_conditions": {"x": "periodic", "y-low": "periodic", "y-high": "periodic"},
        "splits": {"train": (0, 2)},
        "parameter_names": ("speed",),
        "physics": {
            "equation": "advection",
            "coefficients": {"velocity-x": "speed", "velocity-y": 0.0},
            "fields": {"concentration": "dye"},
        },
    }
    return DatasetSpec(**{**values, **changes})  # type: ignore[arg-type]


def written(directory: Path, **changes: object) -> ReadableDataset:
    """Dye carried along x, in each trajectory at its own speed, in steps of whole cells."""
    writer = create_dataset(str(directory / "tank.zarr"), spec(**changes))
    x = np.arange(8) / 8
    dye = np.sin(2 * np.pi * (x[None, :] - np.array([0.0, 0.01])[:, None]))  # [time, x]
    faster = np.sin(2 * np.pi * (x[None, :] - np.array([0.0, 0.02])[:, None]))
    data = np.stack((dye, faster))[:, :, None, None, :].repeat(8, 3).astype(np.float32)
    rows = {"speed": np.array([0.1, 0.2])}
    start = 0
    for shard in range(writer.num_shards):
        stop = start + len(writer.shard_trajectories(shard))
        writer.write_shard(shard, data[start:stop], {k: v[start:stop] for k, v in rows.items()})
        start = stop
    writer.finalize()
    return open_dataset(str(directory / "tank.zarr"))


def test_coefficients_of_each_trajectory_and_other_names_of_fields(tmp_path: Path) -> None:
    dataset = written(tmp_path)
    physics = dataset_physics(dataset, ("density", "dye"))
    assert physics.channels == {"concentration": 1}
    stored = np.stack([dataset.read_frames(i, [0, 1]) for i in (0, 1)])
    frames = torch.from_numpy(np.repeat(stored, 2, axis=2))
    right = physics.residuals(frames, frames, 0.1, [0, 1])["residual"]
    exchanged = physics.residuals(frames, frames, 0.1, [1, 0])["residual"]
    # (2 pi a dt)^2/12 of the interval, 1.3e-3 for the faster.
    assert float(right.max()) < 2e-3
    # The slower at twice its speed leaves all of its change, the faster at half of it half.
    assert exchanged.tolist() == pytest.approx([1.0, 0.5], abs=0.01)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"physics": {}}, "does not record which equation"),
        ({"physics": {"equation": "advektion"}}, 'did you mean "advection"'),
        ({"physics": {"equation": "burgers", "coefficients": {"viscosity": 1}}}, "velocity-x"),
        (
            {
                "physics": {
                    "equation": "advection",
                    "coefficients": {"velocity-x": 1},
                    "fields": {"concentration": "dye"},
                }
            },
            "velocity-y",
        ),
        ({"boundary_conditions": {"x": "wall", "y": "wall"}}, "the boundaries periodic"),
    ],
)
def test_what_cannot_be_measured_says_why(
    tmp_path: Path, changes: dict[str, object], reason: str
) -> None:
    dataset = written(tmp_path, **changes)
    with pytest.raises(NoPhysics, match=reason):
        dataset_physics(dataset, dataset.field_names)


def test_a_record_without_its_equation_is_refused() -> None:
    with pytest.raises(ValueError, match="physics must name its equation"):
        spec(physics={"coefficients": {}})
    assert "physics" not in spec(physics={}).to_json()
    assert DatasetSpec.from_json(spec().to_json()) == dataclasses.replace(
        spec(), trajectories_per_shard=2, chunk_shape=(8, 8)
    )
