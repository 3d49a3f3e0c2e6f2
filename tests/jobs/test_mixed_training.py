"""Training on datasets of different grids and fields at once, alone and on several ranks."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from pelagos.data_pipelines.store import DatasetSpec, Field, create_dataset
from pelagos.jobs.training.blueprint import build_parts
from pelagos.jobs.training.checking import checked
from pelagos.platform.config import PretrainJob, load_job
from pelagos.platform.records.runs import RunDirectory
from pelagos.platform.trainer import train


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """16 x 16 points with two fields in 5 frames, 24 x 8 points with one field in 4 frames."""
    root = tmp_path_factory.mktemp("mixed")
    uris = []
    for name, grid, fields, frames in (
        ("square", (16, 16), ("density", "pressure"), 5),
        ("flat", (24, 8), ("density",), 4),
    ):
        spec = DatasetSpec(
            name=name,
            equation="none",
            fields=tuple(Field(f, f) for f in fields),
            num_trajectories=8,
            num_frames=frames,
            grid_shape=grid,
            frame_interval=0.1,
            domain_extent=(1.0, 1.0),
            boundary_conditions={"x": "periodic", "y": "periodic"},
            splits={"train": (0, 6), "validation": (6, 8)},
        )
        writer = create_dataset(str(root / f"{name}.zarr"), spec)
        data = np.random.default_rng(len(name)).normal(1.0, 0.5, spec.shape).astype(np.float32)
        for shard in range(writer.num_shards):
            rows = writer.shard_trajectories(shard)
            writer.write_shard(shard, data[rows.start : rows.stop], {})
        writer.finalize()
        uris.append(writer.uri)
    return uris


@pytest.fixture
def job_path(mixed: list[str], tmp_path: Path) -> Path:
    tree = {
        "job": "pretrain",
        "name": "alone",
        "runs_dir": str(tmp_path / "runs"),
        "data": {
            "mixture": [{"uri": uri, "weight": 1.0} for uri in mixed],
            "fields": ["density", "pressure"],
            "global_batch_size": 4,
            "run_length": 2,
        },
        "model": {"name": "fno-nano", "config": {"modes": 4, "width": 8, "num_layers": 2}},
        "objective": {"name": "next_step", "config": {"loss": "vrmse"}},
        "optimizer": {"lr": 0.0003},
        "schedule": {"total_steps": 10},
        "validation": {"every_steps": 10, "num_samples": 7},
        "tracking": {"uri": None},
        "resources": {"launcher": "none"},
    }
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


def train_here(path: str, overrides: list[str]) -> str:
    job = load_job(path, overrides)
    assert isinstance(job, PretrainJob)
    return train(job, RunDirectory(f"{job.runs_dir}/{job.name}"), build_parts, {}).kind


def losses(run: RunDirectory) -> list[dict[str, float]]:
    keys = ("loss", "loss/square", "loss/flat")
    steps = [{k: m[k] for k in keys if k in m} for m in run.metrics()]
    (validation,) = [e for e in run.events() if e["kind"] == "validation"]
    return [*steps, {k: v for k, v in validation.items() if k.startswith("validation_loss")}]


@pytest.mark.parametrize(
    "strategy",
    [
        *(pytest.param(name, marks=pytest.mark.matrix) for name in ("ddp", "hsdp", "zero1")),
        *("fsdp", "zero2", "zero3"),
    ],
)
def test_grids_mix_and_every_rank_agrees(job_path: Path, rank_pool: Any, strategy: str) -> None:
    runs: dict[str, RunDirectory] = {}
    ranks = [f"parallel.strategy={strategy}", "resources.num_workers=2"]
    for name, size, overrides in (("alone", 1, []), ("ranks", 2, ranks)):
        dotted = [f"name={name}", *overrides]
        job = load_job(job_path, dotted)
        assert isinstance(job, PretrainJob)
        checked(job)
        runs[name] = RunDirectory.create(job)
        answers = rank_pool.call(
            size, __file__, "train_here", timeout=60.0, path=str(job_path), overrides=dotted
        )
        assert answers == ["finished"] * size
    alone, ranks_together = losses(runs["alone"]), losses(runs["ranks"])
    # each step is of one dataset here, and both have their turn
    assert {k for step in alone[:-1] for k in step} == {"loss", "loss/square", "loss/flat"}
    assert all(len(step) == 2 for step in alone[:-1])
    for one, other in zip(alone, ranks_together, strict=True):
        assert one.keys() == other.keys()
        assert other == pytest.approx(one, rel=1e-6)
