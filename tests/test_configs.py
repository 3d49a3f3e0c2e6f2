"""Every job file that ships: it loads, its arithmetic is right, and its dry run passes."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from pelagos.cli.main import app
from pelagos.data_pipelines.generate.families import find_family
from pelagos.data_pipelines.store import DatasetSpec, Field, create_dataset
from pelagos.jobs.sweeping.trials import trials_of
from pelagos.jobs.training.blueprint import Blueprint
from pelagos.jobs.training.checking import checked
from pelagos.jobs.training.networks import build_objective
from pelagos.models.adaptation import adapt
from pelagos.models.registry import create_model
from pelagos.platform.config import (
    FinetuneJob,
    GenerateJob,
    Job,
    PretrainJob,
    SweepJob,
    load_job,
)
from pelagos.platform.config.schema import ConstantsConfig, GenerateDataset
from pelagos.platform.optimization.optimizer import group_settings

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
FILES = sorted(CONFIGS.rglob("*.yaml"))
PAPER_GPUS = 8


def load(name: str) -> Job:
    return load_job(CONFIGS / name)


def load_pretrain(name: str) -> PretrainJob:
    job = load(name)
    assert isinstance(job, PretrainJob)
    return job


def generated(directory: Path) -> dict[str, GenerateDataset]:
    """What `generate.yaml` and `downstream.yaml` of a directory make, by uri."""
    made = {}
    for path in (directory / "generate.yaml", directory / "downstream.yaml"):
        if path.exists():
            job = load_job(path)
            assert isinstance(job, GenerateJob)
            made |= {dataset.uri: dataset for dataset in job.datasets}
    return made


def write_stand_in(uri: str, like: GenerateDataset) -> None:
    """Write a real dataset with the fields and sizes of `like`, but a trajectory per split."""
    family = find_family(like.family)
    spec = DatasetSpec(
        name=family.name,
        equation=family.equation,
        fields=tuple(Field(name, name) for name in family.fields),
        num_trajectories=3,
        num_frames=like.num_frames,
        grid_shape=(like.resolution, like.resolution),
        frame_interval=like.final_time / (like.num_frames - 1),
        domain_extent=(1.0, 1.0),
        boundary_conditions=family.boundary_conditions,
        splits={"train": (0, 1), "validation": (1, 2), "test": (2, 3)},
        constant_fields=family.constant_fields,
    )
    writer = create_dataset(uri, spec)
    ramp = np.linspace(0.5, 1.5, spec.shape[-1], dtype=np.float32)
    growth = np.linspace(1.0, 2.0, spec.num_frames, dtype=np.float32)
    frames = growth[:, None, None, None] * ramp  # what never changes would not be forecast
    for shard in range(writer.num_shards):
        rows = len(writer.shard_trajectories(shard))
        writer.write_shard(shard, np.broadcast_to(frames, (rows, *spec.shape[1:])), {})
    writer.finalize()


def stand_in_overrides(path: Path, directory: Path) -> list[str]:
    """Write stand-ins for a job's mixture; return the overrides that point to them."""
    job = load_job(path)
    assert isinstance(job, PretrainJob)
    datasets = generated(path.parent)
    overrides = []
    for index, entry in enumerate(job.data.mixture):
        uri = directory / Path(entry.uri).name
        if not uri.exists():
            write_stand_in(str(uri), datasets[entry.uri])
        overrides.append(f"data.mixture.{index}.uri={uri}")
    return overrides


def invoke(*arguments: str | Path) -> Any:
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(CONFIGS)))
def test_it_loads(path: Path) -> None:
    load_job(path)


@pytest.mark.parametrize(
    ("path", "model"),
    [("poseidon/finetune.yaml", "poseidon-t"), ("dpot/finetune.yaml", "dpot-ti")],
)
def test_fine_tuning_recipes_fit_their_published_networks(path: str, model: str) -> None:
    job = load(path)
    assert isinstance(job, FinetuneJob)
    with torch.device("meta"):
        network = create_model(model)
    settings = group_settings(network, job.optimizer)
    assert len(settings) == len(list(network.parameters()))
    kept = adapt(network, network.state_dict(), "itself", job.reinitialize).counts()
    if model == "poseidon-t":
        assert kept == {"matched": 844}
        assert settings["patch_recovery.mixup.weight"][:2] == (5e-4, 1e-6)
        assert settings["encoder.layers.0.downsample.norm.weight.weight"][:2] == (5e-4, 0.0)
        attention = "encoder.layers.0.blocks.0.attention.self."
        assert settings[f"{attention}query.weight"][:2] == (5e-5, 1e-6)
        assert settings[f"{attention}query.bias"][:2] == (5e-5, 0.0)
    else:
        assert kept["re-initialised"] == 10
        assert {rate for rate, *_ in settings.values()} == {1e-3}


@pytest.mark.parametrize(
    "path",
    # the images of configs/vision are real: examples/digits.py
    [p for p in FILES if isinstance(load_job(p), PretrainJob) and p.parent.name != "vision"],
    ids=lambda p: str(p.relative_to(CONFIGS)),
)
def test_its_data_is_what_the_generate_jobs_beside_it_make(path: Path) -> None:
    job = load_job(path)
    assert isinstance(job, PretrainJob)
    assert {entry.uri for entry in job.data.mixture} <= generated(path.parent).keys()


def test_quickstart_generates_on_paper(tmp_path: Path) -> None:
    plan = invoke("generate", CONFIGS / "quickstart/generate.yaml", "--dry-run", "--json")
    job = load("quickstart/generate.yaml")
    assert isinstance(job, GenerateJob)
    datasets = job.datasets
    assert plan["rows"]["trajectories"] == sum(d.num_trajectories for d in datasets)


def test_quickstart_trains_on_paper(tmp_path: Path) -> None:
    path = CONFIGS / "quickstart/pretrain.yaml"
    overrides = stand_in_overrides(path, tmp_path)
    plan = invoke("pretrain", path, *overrides, f"runs_dir={tmp_path}/runs", "--dry-run", "--json")
    job = load_pretrain("quickstart/pretrain.yaml")
    assert plan["rows"]["samples"] == job.schedule.total_steps * job.data.global_batch_size
    assert plan["rows"]["flops"] > 0
    assert not (tmp_path / "runs").exists()


def test_the_sweep_names_job_files_that_ship(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(CONFIGS.parent)
    sweep = load("transfer/sweep.yaml")
    assert isinstance(sweep, SweepJob)
    trials = trials_of(sweep)
    assert len(trials) == len({t.name for t in trials}) == 3 * 3 * 2
    largest = generated(CONFIGS / "transfer")["transfer/data/ns-gauss.zarr"]
    assert max(sweep.trajectories) == (largest.splits or {})["train"]


@pytest.mark.parametrize("folder", ["quickstart", "transfer"])
def test_with_and_without_pretraining_the_task_is_the_same(folder: str) -> None:
    scratch, pretrained = (load_pretrain(f"{folder}/{n}.yaml") for n in ("scratch", "pretrain"))
    finetuned = load(f"{folder}/finetune.yaml")
    assert isinstance(finetuned, FinetuneJob)
    assert scratch.model == pretrained.model
    assert finetuned.source.run == pretrained.name
    assert finetuned.schedule.total_steps == scratch.schedule.total_steps
    assert finetuned.data.mixture == scratch.data.mixture
    assert finetuned.data.global_batch_size == scratch.data.global_batch_size
    seen = {entry.uri for entry in pretrained.data.mixture}
    assert not seen & {entry.uri for entry in finetuned.data.mixture}


# -- the published Poseidon recipes -----------------------------------------------------------------


def samples_per_epoch(job: PretrainJob) -> int:
    """Pairs of frames in the training splits that the generate job makes."""
    datasets = [generated(CONFIGS / "poseidon")[entry.uri] for entry in job.data.mixture]
    windows = {d.uri: len(build_objective(job).frame_windows(d.num_frames)) for d in datasets}
    return sum((d.splits or {})["train"] * windows[d.uri] for d in datasets)


@pytest.mark.parametrize(
    ("size", "lr", "batch", "epochs", "warmup_epochs"),
    [("t", 1e-3, 640, 40, 2), ("b", 5e-4, 320, 40, 2), ("l", 2e-4, 128, 20, 1)],
)
def test_poseidon_recipe(size: str, lr: float, batch: int, epochs: int, warmup_epochs: int) -> None:
    job = load_pretrain(f"poseidon/{size}.yaml")
    epoch = samples_per_epoch(job)
    assert epoch == 5_137_440  # the paper's C.1: 66 pairs of each of 77,840 trajectories
    assert job.optimizer.lr == lr
    assert job.data.global_batch_size == batch
    assert job.schedule.total_steps * batch == epochs * epoch
    assert job.schedule.warmup_steps == math.ceil(warmup_epochs * epoch / batch)
    # the ratio of the loss is formed over what one of the 8 GPUs sees
    assert job.objective.config["loss_scope"] == "micro_batch"
    assert (job.parallel.micro_batch_size or 0) * PAPER_GPUS == batch
    assert job.validation.every_steps == math.ceil(epoch / batch)
    stated = (CONFIGS / f"poseidon/{size}.yaml").read_text(encoding="utf-8")
    for number in (epoch, job.schedule.total_steps):
        assert f"= {number:,}" in stated


@pytest.mark.parametrize("size", ["t", "b", "l"])
def test_poseidon_normalisation_is_the_published_one(size: str) -> None:
    job = load_pretrain(f"poseidon/{size}.yaml")
    assert isinstance(job.data.normalization, ConstantsConfig)
    for entry in job.data.mixture:
        dataset = generated(CONFIGS / "poseidon")[entry.uri]
        published = find_family(dataset.family).published_normalization
        assert job.data.normalization.mean == published["mean"]
        assert job.data.normalization.std == published["std"]
        assert entry.offset == published["offset"]
        interval = dataset.final_time / (dataset.num_frames - 1)
        # the model sees lead time / time_scale, as the paper's lead in frames / 20
        assert interval / job.objective.config["time_scale"] == pytest.approx(
            1 / published["lead_steps_per_unit"], rel=1e-12
        )


def test_poseidon_fits_its_data(tmp_path: Path) -> None:
    path = CONFIGS / "poseidon/t.yaml"
    job = load_job(path, stand_in_overrides(path, tmp_path))
    assert isinstance(job, PretrainJob)
    mixture = checked(job).mixture
    assert mixture.sample_shape == (2, 4, 128, 128)
    assert mixture.num_samples == 6 * 66  # one training trajectory of each family


@pytest.mark.parametrize("size", ["b", "l"])
def test_the_larger_poseidons_differ_in_size_alone(size: str) -> None:
    small, large = load_pretrain("poseidon/t.yaml"), load_pretrain(f"poseidon/{size}.yaml")
    assert large.model.name == f"poseidon-{size}"
    assert large.objective == small.objective
    assert large.data.model_copy(update={"global_batch_size": 640}) == small.data
    with torch.device("meta"):
        assert sum(1 for _ in Blueprint(large).model.parameters()) > 0
