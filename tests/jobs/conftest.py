"""Two small datasets of travelling waves, and a model small enough to train in a blink."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from pelagos.data_pipelines.store import DatasetSpec, Field, create_dataset
from pelagos.platform.config import PretrainJob
from pelagos.platform.config.load import parse_job

GRID = 16
FRAMES = 5
SPEED = 0.5


def travelling_waves(fields: tuple[str, ...], seed: int, trajectories: int) -> np.ndarray:
    """sin waves moving in x: `[trajectory, time, channel, y, x]`."""
    rng = np.random.default_rng(seed)
    phase = rng.uniform(0, 2 * np.pi, (trajectories, 1, len(fields), 1, 1))
    x = np.arange(GRID)[None, None, None, None, :] / GRID
    y = np.arange(GRID)[None, None, None, :, None] / GRID
    time = np.arange(FRAMES)[None, :, None, None, None] * 0.05
    wave = np.sin(2 * np.pi * (x - SPEED * time) + phase) * np.cos(2 * np.pi * y)
    return (1.5 + wave).astype(np.float32)


def write_waves(
    uri: str, fields: tuple[str, ...], seed: int, constant: dict[str, float] | None = None
) -> None:
    spec = DatasetSpec(
        name=Path(uri).stem,
        equation="u_t + c u_x = 0",
        fields=tuple(Field(name, name) for name in fields),
        num_trajectories=12,
        num_frames=FRAMES,
        grid_shape=(GRID, GRID),
        frame_interval=0.05,
        domain_extent=(1.0, 1.0),
        boundary_conditions={"x": "periodic", "y": "periodic"},
        splits={"train": (0, 8), "validation": (8, 10), "test": (10, 12)},
        constant_fields=constant or {},
        trajectories_per_shard=6,
    )
    writer = create_dataset(uri, spec)
    data = travelling_waves(fields, seed, spec.num_trajectories)
    for shard in range(writer.num_shards):
        rows = writer.shard_trajectories(shard)
        writer.write_shard(shard, data[rows.start : rows.stop], {})
    writer.finalize()


@pytest.fixture(scope="session")
def datasets(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Uris of a dataset with velocities alone, and of one with all four fields."""
    root = tmp_path_factory.mktemp("datasets")
    incompressible, compressible = str(root / "ns.zarr"), str(root / "ce.zarr")
    write_waves(incompressible, ("velocity-x", "velocity-y"), 0, {"density": 1.0})
    write_waves(compressible, ("density", "velocity-x", "velocity-y", "pressure"), 1)
    return incompressible, compressible


@pytest.fixture
def make_job(datasets: tuple[str, str], tmp_path: Path) -> Callable[..., PretrainJob]:
    """Return a job of a tiny Poseidon in one process; keyword arguments are dotted overrides."""

    def make(name: str = "run", **overrides: Any) -> PretrainJob:
        path = tmp_path / f"{name}.yaml"
        path.write_text(job_text(datasets, tmp_path, name))
        dotted = [f"{k.replace('__', '.')}={v}" for k, v in overrides.items()]
        job = parse_job(path.read_text(), str(path), dotted)
        assert isinstance(job, PretrainJob)
        return job

    return make


def job_text(datasets: tuple[str, str], directory: Path, name: str) -> str:
    return yaml.safe_dump(
        {
            "job": "pretrain",
            "name": name,
            "runs_dir": str(directory / "runs"),
            "data": {"mixture": [{"uri": uri} for uri in datasets], "global_batch_size": 4},
            "model": {
                "name": "poseidon-nano",
                "config": {
                    "image_size": GRID,
                    "embed_dim": 8,
                    "depths": [1, 1],
                    "num_heads": [2, 2],
                    "window_size": 4,
                    "skip_connections": [1, 0],
                },
            },
            "objective": {"name": "all2all", "time_scale": 0.2},
            "optimizer": {"lr": 0.003},
            "schedule": {"total_steps": 8, "warmup_steps": 2},
            "checkpoint": {"every_steps": 3},
            "validation": {"every_steps": 4, "num_samples": 8},
            "tracking": {"uri": f"sqlite:///{directory}/mlflow.db"},
            "resources": {"launcher": "none"},
        }
    )
