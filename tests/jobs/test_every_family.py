"""Every family of the registry through the whole platform: strategies, recomputation, export."""

from functools import partialmethod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import nn

from pelagos.data_pipelines.store import DatasetSpec, Field, create_dataset
from pelagos.jobs import export
from pelagos.jobs.training.blueprint import build_parts
from pelagos.jobs.training.checking import checked
from pelagos.jobs.weights.forecaster import Forecaster
from pelagos.jobs.weights.run_weights import trained_weights
from pelagos.models.layers import linear
from pelagos.models.objectives import OBJECTIVES
from pelagos.models.registry import FAMILIES, load_pretrained
from pelagos.platform.config import PretrainJob, load_job
from pelagos.platform.records.runs import RunDirectory
from pelagos.platform.trainer import train

# What fits 16 x 16 points (16 x 16 x 8 in three dimensions) with fields a and b, beside the nano size.
OPTIONS: dict[str, dict[str, Any]] = {
    "poseidon": {
        "image_size": 16,
        "patch_size": 2,
        "window_size": 4,
        "depths": [2, 1],
        "num_heads": [2, 4],
        "skip_connections": [1, 0],
    },
    "dpot": {"img_size": 16, "patch_size": 4, "in_timesteps": 2},
    "fno": {"modes": 4},
    "tfno": {"modes": 4},
    "deeponet": {"image_size": [16, 16]},
    "vit": {"image_size": [16, 16], "patch_size": [4, 4]},
    "mae": {"image_size": [16, 16], "patch_size": [4, 4]},
    "nnunet": {"num_dimensions": 2},
    "stunet": {"num_dimensions": 2},
    "mednext": {"num_dimensions": 2},
    "simvp": {"in_timesteps": 2},
    "mpp": {"in_timesteps": 2, "drop_path": 0.5},
    "dpot3d": {"in_timesteps": 2},
}
OBJECTIVE: dict[str, dict[str, Any]] = {
    "frame": {"name": "next_step"},
    "window": {"name": "autoregressive", "config": {"num_input_frames": 2}},
    "masked": {"name": "masked", "config": {"patch_size": 4}},
    "image": {"name": "segmentation", "config": {"label_field": "b", "num_classes": 2}},
}


# Grids of families that take no 16 x 16 points. MPP normalises over the tokens, 16 points each: over
# two of them rounding is magnified more than a hundredfold.
GRIDS: dict[str, tuple[int, ...]] = {"mpp": (64, 32), "dpot3d": (8, 16, 16)}


@pytest.fixture(scope="module")
def datasets(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[int, ...], str]:
    """Smooth random fields on each grid: a, and b of zeros and ones."""
    root = tmp_path_factory.mktemp("families")
    return {grid: write_fields(root, grid) for grid in {(16, 16), *GRIDS.values()}}


def write_fields(root: Path, grid: tuple[int, ...]) -> str:
    spec = DatasetSpec(
        name="two",
        equation="none",
        fields=(Field("a", "a"), Field("b", "b")),
        num_trajectories=6,
        num_frames=4,
        grid_shape=grid,
        frame_interval=0.5,
        domain_extent=(1.0,) * len(grid),
        boundary_conditions=dict.fromkeys("xyz"[: len(grid)], "periodic"),
        parameter_names=("label",),
        splits={"train": (0, 4), "validation": (4, 6)},
    )
    rng = np.random.default_rng(0)
    phases = rng.uniform(0, 6, (6, 4, *grid[:-1], 1))
    waves = np.sin(phases + np.arange(grid[-1]) * 2 * np.pi / grid[-1])
    data = np.stack([waves, waves > 0], axis=2).astype(np.float32)
    writer = create_dataset(str(root / f"{'x'.join(map(str, grid))}.zarr"), spec)
    for shard in range(writer.num_shards):
        rows = writer.shard_trajectories(shard)
        part = slice(rows.start, rows.stop)
        writer.write_shard(shard, data[part], {"label": np.arange(6)[part] % 2})
    writer.finalize()
    return writer.uri


def train_here(path: str, overrides: list[list[str]]) -> list[str]:
    """Take part in several runs, one after the other."""
    kinds = []
    for dotted in overrides:
        job = load_job(path, dotted)
        assert isinstance(job, PretrainJob)
        run = RunDirectory(f"{job.runs_dir}/{job.name}")
        kinds.append(train(job, run, build_parts, {}).kind)
    return kinds


def losses(run: RunDirectory) -> list[float]:
    return [m["loss"] for m in run.metrics()]


# Built from the layers of a family that the usual suite has: only with the long proofs.
RELATIVES = ("tfno", "stunet", "mednext", "dpot3d", "sinenet", "mgno")


def write_job(family: str, datasets: dict[tuple[int, ...], str], directory: Path) -> Path:
    """The job file of a family's nano size on the data that fit it."""
    call = FAMILIES[family].call
    objective = OBJECTIVE[call]
    if family == "vit":
        objective = {"name": "classification", "config": {"num_classes": 2}}
    assert OBJECTIVES[objective["name"]].call == call
    tree = {
        "job": "pretrain",
        "name": "alone",
        "runs_dir": str(directory / "runs"),
        "data": {
            "mixture": [{"uri": datasets[GRIDS.get(family, (16, 16))]}],
            "fields": ["a", "b"],
            "global_batch_size": 4,
            "normalization": "none",
        },
        "model": {"name": f"{family}-nano", "config": OPTIONS.get(family, {})},
        "objective": objective,
        "optimizer": {"lr": 0.0003},
        "schedule": {"total_steps": 2},
        "validation": {"every_steps": 2, "num_samples": 4},
        "tracking": {"uri": None},
        "resources": {"launcher": "none"},
    }
    path = directory / "job.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


@pytest.mark.parametrize(
    "family",
    [pytest.param(f, marks=pytest.mark.matrix) if f in RELATIVES else f for f in FAMILIES],
)
def test_a_family_trains_alike_everywhere_and_leaves_as_it_was(
    family: str,
    datasets: dict[tuple[int, ...], str],
    rank_pool: Any,
    tmp_path: Path,
) -> None:
    path = write_job(family, datasets, tmp_path)
    call = FAMILIES[family].call
    variants = {
        "alone": [],
        "recomputed": ["parallel.activation_checkpointing=full"],
        "half": ["parallel.precision=bf16"],
        "fsdp": ["parallel.strategy=fsdp", "resources.num_workers=2"],
        "zero3": ["parallel.strategy=zero3", "resources.num_workers=2"],
    }
    runs = {}
    for name, overrides in variants.items():
        job = load_job(path, [f"name={name}", *overrides])
        assert isinstance(job, PretrainJob)
        if name == "alone":
            checked(job)
        runs[name] = RunDirectory.create(job)
    here = [[f"name={n}", *variants[n]] for n in ("alone", "recomputed", "half")]
    assert train_here(str(path), here) == ["finished"] * 3
    there = [[f"name={n}", *variants[n]] for n in ("fsdp", "zero3")]
    answers = rank_pool.call(
        2, __file__, "train_here", timeout=180.0, path=str(path), overrides=there
    )
    assert answers == [["finished"] * 2] * 2
    assert losses(runs["recomputed"]) == losses(runs["alone"])
    # bf16 rounds each product by 2^-9
    assert losses(runs["half"]) == pytest.approx(losses(runs["alone"]), rel=0.05)
    assert losses(runs["half"]) != losses(runs["alone"])
    for name in ("fsdp", "zero3"):
        # sums over ranks round otherwise: 6e-8 relative, a few times
        assert losses(runs[name]) == pytest.approx(losses(runs["alone"]), rel=2e-6)
    exported = export.run("fsdp", tmp_path / "exported", runs_dir=str(tmp_path / "runs"))
    network = load_pretrained(exported.directory)
    _, expected, _ = trained_weights(runs["fsdp"])
    got = network.state_dict()
    assert got.keys() == expected.keys()
    assert all(torch.equal(got[name], expected[name]) for name in expected)
    if call in ("frame", "window"):
        trained, _ = Forecaster.from_run(runs["fsdp"])
        frames = [2] if call == "window" else []
        fields = torch.randn(2, *frames, 2, *GRIDS.get(family, (16, 16)))
        forecast = trained.predict(fields, torch.full((2,), 0.5))
        assert forecast.shape == (2, 2, *GRIDS.get(family, (16, 16)))
        again = Forecaster.load(Path(exported.directory))
        assert torch.equal(again.predict(fields, torch.full((2,), 0.5)), forecast)


@pytest.mark.parametrize(
    "family",
    [pytest.param(f, marks=pytest.mark.matrix) if f != "vit" else f for f in FAMILIES],
)
def test_a_family_trains_alike_compiled(
    family: str,
    datasets: dict[tuple[int, ...], str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = write_job(family, datasets, tmp_path)
    options = ["parallel.compile=true", "parallel.activation_checkpointing=full"]
    variants = {"alone": ["name=alone"], "compiled": ["name=compiled", *options]}
    torch.compiler.reset()  # families share code, of which a process compiles so many shapes
    # whole graphs, forward and backward, and none left out; C++ for them would take longer still
    compiling = partialmethod(nn.Module.compile, backend="aot_eager", fullgraph=True)
    monkeypatch.setattr(nn.Module, "compile", compiling)
    # compiled layers never take oneDNN's products, and MPP's norms over two tokens magnify rounding
    monkeypatch.setattr(linear, "_HAS_AVX512", False)
    runs = {}
    for name, overrides in variants.items():
        job = load_job(path, overrides)
        assert isinstance(job, PretrainJob)
        runs[name] = RunDirectory.create(job)
    assert train_here(str(path), list(variants.values())) == ["finished"] * 2
    # fused operations sum in another order: 6e-8 relative, a few times
    assert losses(runs["compiled"]) == pytest.approx(losses(runs["alone"]), rel=2e-6)
