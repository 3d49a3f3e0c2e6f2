"""The downstream tasks that ship: each has a job, which fits a small dataset of its family."""

from __future__ import annotations

import io
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from rich.console import Console

from pelagos.data_pipelines.generate.families import find_family
from pelagos.data_pipelines.generate.tasks import GenerationRequest, dataset_spec, make_shard
from pelagos.data_pipelines.store import create_dataset, open_dataset
from pelagos.data_pipelines.streaming.normalization import Normalization
from pelagos.jobs import evaluate, finetune
from pelagos.jobs.sweeping.checks import check_labels
from pelagos.jobs.sweeping.trials import trials_of
from pelagos.jobs.training.checking import checked
from pelagos.jobs.training.networks import build_objective
from pelagos.jobs.weights.described_parts import described_network
from pelagos.jobs.weights.forecaster import Forecaster
from pelagos.platform.config import (
    ConfigError,
    FinetuneJob,
    GenerateJob,
    PretrainJob,
    SweepJob,
    load_job,
    resolve_yaml,
)
from pelagos.platform.config.load import parse_job
from pelagos.platform.config.measure import EvaluateJob
from pelagos.platform.config.schema import GenerateDataset
from pelagos.platform.optimization.optimizer import group_settings
from pelagos.platform.records.runs import RunDirectory

CONFIGS = Path(__file__).resolve().parent.parent / "configs/downstream"
GRID = 16
FLUID = ["density", "velocity-x", "velocity-y", "pressure"]
NETWORK = {
    "name": "poseidon-nano",
    "config": {
        "image_size": GRID,
        "embed_dim": 8,
        "depths": [1, 1],
        "num_heads": [2, 2],
        "window_size": 4,
        "skip_connections": [1, 0],
    },
}


def generated() -> dict[str, GenerateDataset]:
    job = load_job(CONFIGS / "generate.yaml")
    assert isinstance(job, GenerateJob)
    return {dataset.family: dataset for dataset in job.datasets}


TASKS = generated()


@pytest.fixture(scope="module")
def tiny_dataset(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """Makes 4 trajectories of a family on 16 x 16 points, once, over a quarter of the time."""
    directory = tmp_path_factory.mktemp("downstream")

    def make(family: str) -> str:
        uri, asked = directory / f"{family}.zarr", TASKS[family]
        if not uri.exists():
            request = GenerationRequest(family, 0, 4, GRID, asked.num_frames, asked.final_time / 4)
            spec = dataset_spec(
                request, {"train": 2, "validation": 1, "test": 1}, trajectories_per_shard=4
            )
            writer = create_dataset(str(uri), spec)
            make_shard(writer, request, 0)
            writer.finalize()
        return str(uri)

    return make


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export of a small Poseidon of the four fields that it is pretrained on."""
    pretraining = load_job(CONFIGS.parent / "poseidon/t.yaml")
    assert isinstance(pretraining, PretrainJob)
    constants = pretraining.data.normalization
    assert not isinstance(constants, str)
    description = {
        "model": NETWORK,
        "objective": {"name": "all2all"},
        "fields": FLUID,
        "normalization": Normalization.constants(FLUID, constants.mean, constants.std).to_dict(),
        "datasets": [],
    }
    torch.manual_seed(0)
    directory = tmp_path_factory.mktemp("source") / "export"
    Forecaster(description, described_network(description).state_dict()).save(directory)
    return directory


def shipped(family: str, *overrides: str) -> FinetuneJob:
    job = load_job(CONFIGS / f"{family}.yaml", overrides)
    assert isinstance(job, FinetuneJob)
    return job


def tiny(family: str, uri: str, source: Path, directory: Path) -> FinetuneJob:
    """The shipped job, but on a small dataset, from a small network, for one step."""
    return shipped(
        family,
        f"data.mixture.0.uri={uri}",
        f"source={{uri: {source}}}",
        f"runs_dir={directory}/runs",
        "data.max_trajectories=2",
        "data.global_batch_size=2",
        "schedule.total_steps=1",
        "checkpoint.every_steps=1",
        "validation={every_steps: 1, num_samples: 2}",
        "resources={launcher: none}",
        "tracking.uri=null",
    )


def test_every_generated_family_has_a_job() -> None:
    others = {"generate", "sweep"}
    assert {path.stem for path in CONFIGS.glob("*.yaml")} - others == set(TASKS)


@pytest.mark.parametrize("family", TASKS)
def test_a_recipe_is_arithmetically_right(family: str) -> None:
    job, data = shipped(family), TASKS[family]
    assert [entry.uri for entry in job.data.mixture] == [data.uri]
    trajectories, batch = job.data.max_trajectories or 0, job.data.global_batch_size
    assert trajectories <= (data.splits or {})["train"]
    windows = build_objective(job).frame_windows(data.num_frames)
    assert job.schedule.total_steps * batch == 200 * trajectories * len(windows)
    assert f"= {job.schedule.total_steps:,} steps" in (CONFIGS / f"{family}.yaml").read_text()
    # the longest lead is 1 to the network, as in its pretraining; or that to a frame shortly before
    longest = max(b - a for a, b in windows) * data.final_time / (data.num_frames - 1)
    assert 0.9 < longest / job.objective.config.get("time_scale", 1.0) <= 1 + 1e-12


@pytest.mark.parametrize("family", TASKS)
def test_a_family_marks_the_fields_that_never_change(
    family: str, tiny_dataset: Callable[[str], str]
) -> None:
    with closing(open_dataset(tiny_dataset(family))) as dataset:
        frames = np.stack([dataset.read_frames(i, range(dataset.num_frames)) for i in range(4)])
        still = (frames == frames[:, :1]).all(axis=(0, 1, 3, 4))
        assert dataset.spec.given_fields == tuple(np.array(dataset.field_names)[still])


@pytest.mark.parametrize("family", TASKS)
def test_a_job_fits_its_data(
    family: str, tiny_dataset: Callable[[str], str], source: Path, tmp_path: Path
) -> None:
    job = tiny(family, tiny_dataset(family), source, tmp_path)
    prepared = finetune.prepare(job)
    spec = prepared.mixture.entries[0].dataset.spec
    known = {*spec.field_names, *spec.constant_fields}
    assert known - {"density"} <= set(job.data.fields) <= known | {"pressure"}
    # the network forecasts what changes, and that alone
    scored = prepared.blueprint.objective
    names = [f for group in getattr(scored, "field_groups").values() for f in group]  # noqa: B009
    still = {*spec.given_fields, *spec.constant_fields}
    assert names == [f for f in job.data.fields if f not in still]
    is_steady = find_family(family).physics in ("poisson", "helmholtz", "darcy")
    assert (job.objective.name == "steady") == is_steady
    # embedding and recovery have a rate of their own, and start afresh where the fields are others
    with torch.device("meta"):
        rates = group_settings(prepared.blueprint.model, job.optimizer)
    assert rates["embeddings.patch_embeddings.projection.weight"][:2] == (5e-4, 1e-6)
    fresh = prepared.adaptation.names("re-initialised")
    assert bool(fresh) == (len(job.data.fields) != len(FLUID))
    assert all("embeddings" in name or "patch_recovery" in name for name in fresh)


@pytest.mark.parametrize(
    ("family", "given"), [("darcy", ["permeability"]), ("fns-kf", ["forcing"]), ("burgers", [])]
)
def test_a_job_trains_and_its_forecasts_keep_what_is_given(
    family: str,
    given: list[str],
    tiny_dataset: Callable[[str], str],
    source: Path,
    tmp_path: Path,
) -> None:
    job = tiny(family, tiny_dataset(family), source, tmp_path)
    assert finetune.run(job, Console(file=io.StringIO())).outcome.kind == "finished"
    run = RunDirectory.open(job.runs_dir, job.name)
    forecaster, _ = Forecaster.from_run(run)
    with closing(open_dataset(tiny_dataset(family))) as dataset:
        data = forecaster.view(dataset, {})
    first = data.read(3, [0])
    forecast = forecaster.predict_on(data)(first, torch.tensor([data.frame_interval]))
    kept = [f for i, f in enumerate(data.fields) if torch.equal(forecast[:, i], first[:, i])]
    assert kept == given
    measured, _ = evaluate.measure(
        EvaluateJob(run=job.name, runs_dir=job.runs_dir, lead_steps=(1,))
    )
    scored = {name for group in measured[0].data.groups.values() for name in group}
    assert not scored & {data.fields.index(name) for name in given}
    assert torch.isfinite(torch.as_tensor(measured[0].scores["direct"]["relative_l1"])).all()


def test_a_field_that_changes_in_one_dataset_is_scored(
    tiny_dataset: Callable[[str], str], source: Path, tmp_path: Path
) -> None:
    job = tiny("ns-pwc", tiny_dataset("ns-pwc"), source, tmp_path)
    gas = job.data.mixture[0].model_copy(update={"uri": tiny_dataset("ce-rpui")})
    for mixture, given in (
        ((job.data.mixture[0],), {"density"}),
        ((*job.data.mixture, gas), set()),
    ):
        data = job.data.model_copy(update={"mixture": mixture})
        prepared = finetune.prepare(job.model_copy(update={"data": data}))
        assert prepared.mixture.given_fields == given


def test_the_sweep_draws_the_whole_curve(
    tiny_dataset: Callable[[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(CONFIGS.parent.parent)
    sweep = load_job(CONFIGS / "sweep.yaml")
    assert isinstance(sweep, SweepJob)
    trials = trials_of(sweep)
    assert len(trials) == len({t.name for t in trials}) == 6 * 3 * 3
    assert max(sweep.trajectories) == (TASKS["ns-pwc"].splits or {})["train"]
    jobs = {trial.label: trial.job for trial in trials}
    same = ("objective", "schedule", "validation", "resources")
    for label in ("scratch", "fno"):
        job = jobs[label]
        assert all(getattr(job, key) == getattr(jobs["finetuned"], key) for key in same)
        small = "fno-nano" if label == "fno" else NETWORK["name"]
        resolved = parse_job(
            resolve_yaml(job),
            label,
            [
                f"data.mixture.0.uri={tiny_dataset('ns-pwc')}",
                f"model.name={small}",
                *([f"model.config={NETWORK['config']}"] if label == "scratch" else []),
                "data.max_trajectories=2",
                "resources.gpus_per_worker=0",
            ],
        )
        assert isinstance(resolved, PretrainJob)
        assert checked(resolved).mixture.given_fields == {"density"}


def test_given_fields_are_no_difference_between_labels(
    tiny_dataset: Callable[[str], str], source: Path, tmp_path: Path
) -> None:
    job = tiny("fns-kf", tiny_dataset("fns-kf"), source, tmp_path)
    (tmp_path / "tuned.yaml").write_text(resolve_yaml(job))
    file = str(tmp_path / "tuned.yaml")

    def sweep(*velocity: str) -> SweepJob:
        groups = {"objective.config.field_groups": {"velocity": list(velocity)}}
        tree = {
            "job": "sweep",
            "name": "given",
            "jobs": {"usual": {"file": file}, "named": {"file": file, "set": groups}},
            "trajectories": [1, 2],
            "baseline": "usual",
        }
        parsed = parse_job(yaml.safe_dump(tree), "sweep.yaml")
        assert isinstance(parsed, SweepJob)
        return parsed

    check_labels(sweep("velocity-x", "velocity-y"), {"usual", "named"})
    with pytest.raises(ConfigError, match="jobs.named: is scored on"):
        check_labels(sweep("velocity-x"), {"usual", "named"})
