"""Runs on lines and on volumes, evaluated from the command line: errors of all points, and pictures."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from typer.testing import CliRunner

from pelagos.cli.main import app
from pelagos.data_pipelines.store import DatasetSpec, Field, create_dataset, open_dataset
from pelagos.evaluation.pages import line_plots, plots
from pelagos.jobs import evaluate
from pelagos.jobs.training.blueprint import build_parts
from pelagos.jobs.weights.forecaster import Forecaster
from pelagos.platform.config import EvaluateJob, PretrainJob, load_job
from pelagos.platform.records.runs import RunDirectory
from pelagos.platform.trainer import train

FNO: dict[str, Any] = {"modes": 3, "width": 6, "num_layers": 2}
WINDOW = {"name": "autoregressive", "config": {"num_input_frames": 2}}
# model, its options, its objective, and the data's grid
RUNS: dict[str, tuple[str, dict[str, Any], dict[str, Any], tuple[int, ...]]] = {
    "line": ("fno-nano", {**FNO, "num_dimensions": 1}, {"name": "next_step"}, (24,)),
    "volume": ("fno-nano", {**FNO, "num_dimensions": 3}, {"name": "next_step"}, (6, 8, 10)),
    "window": ("dpot3d-nano", {"in_timesteps": 2}, WINDOW, (8, 16, 16)),
}


def write_waves(root: Path, grid: tuple[int, ...]) -> str:
    """Waves that travel along every axis: a of mean 2, b of mean 0."""
    spec = DatasetSpec(
        name="waves",
        equation="none",
        fields=(Field("a", "a"), Field("b", "b")),
        num_trajectories=5,
        num_frames=5,
        grid_shape=grid,
        frame_interval=0.5,
        domain_extent=(1.0,) * len(grid),
        boundary_conditions=dict.fromkeys("xyz"[: len(grid)], "periodic"),
        splits={"train": (0, 2), "validation": (2, 3), "test": (3, 5)},
    )
    places = np.meshgrid(*(2 * np.pi * np.arange(n) / n for n in grid), indexing="ij")
    phase = sum((i + 1) * place for i, place in enumerate(places))
    moves = 0.4 * np.arange(5)[None, :] + np.arange(5)[:, None]
    moves = moves.reshape(5, 5, *(1,) * len(grid))
    data = np.stack([2 + np.sin(phase + moves), np.cos(places[0] - moves)], axis=2)
    writer = create_dataset(str(root / "waves.zarr"), spec)
    for shard in range(writer.num_shards):
        rows = writer.shard_trajectories(shard)
        writer.write_shard(shard, data[rows.start : rows.stop].astype(np.float32), {})
    writer.finalize()
    return writer.uri


def trained(kind: str, root: Path) -> tuple[RunDirectory, str]:
    model, options, objective, grid = RUNS[kind]
    uri = write_waves(root, grid)
    tree = {
        "job": "pretrain",
        "name": kind,
        "runs_dir": str(root / "runs"),
        "data": {"mixture": [{"uri": uri}], "fields": ["a", "b"], "global_batch_size": 2},
        "model": {"name": model, "config": options},
        "objective": objective,
        "optimizer": {"lr": 0.003},
        "schedule": {"total_steps": 3},
        "validation": {"every_steps": 3, "num_samples": 2},
        "tracking": {"uri": None},
        "resources": {"launcher": "none"},
    }
    path = root / "job.yaml"
    path.write_text(yaml.safe_dump(tree))
    job = load_job(str(path))
    assert isinstance(job, PretrainJob)
    run = RunDirectory.create(job)
    assert train(job, run, build_parts, {}).kind == "finished"
    return run, uri


@pytest.mark.parametrize("kind", ["line", "window"])
def test_a_run_is_measured_at_all_points_and_drawn(kind: str, tmp_path: Path) -> None:
    run, uri = trained(kind, tmp_path)
    arguments = ["evaluate", kind, f"--runs-dir={tmp_path}/runs", "stability_steps=4"]
    done = CliRunner().invoke(app, [*arguments, "--json"])
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    (scores,) = told["datasets"]
    found = {
        metric: np.array(numbers["per_trajectory"])
        for metric, numbers in scores["scores"]["autoregressive"].items()
    }
    check_errors(run, uri, found)
    shells = min(RUNS[kind][3]) // 2 + 1
    assert np.array(scores["spectra"]["truth"]).shape[1:] == (2, shells)
    assert told["stability"][0]["first_non_finite_step"] == [None, None]
    folder = Path(told["report"]).parent / "figures"
    drawn = {path.name.removeprefix("waves-") for path in folder.iterdir()}
    # the trajectory with the median error, the lower one of an even number
    last = found["vrmse"][:, -1].mean(axis=-1)
    middle = scores["trajectories"][int(np.argsort(last, kind="stable")[(len(last) - 1) // 2])]
    stem = f"trajectory-{middle}"
    wanted = {"error-growth.png", "spectra.png", "stability.png", f"{stem}-rollout.gif"}
    assert drawn >= {*wanted, f"{stem}-rollout.png", f"{stem}-autoregressive.png"}
    with Image.open(folder / f"waves-{stem}-rollout.gif") as moving:
        assert moving.n_frames == len(scores["lead_steps"])


def test_direct_forecasts_and_ensembles_of_volumes_are_measured(tmp_path: Path) -> None:
    run, uri = trained("volume", tmp_path)
    job = EvaluateJob(run="volume", runs_dir=f"{tmp_path}/runs", ensemble_size=2)
    (measured,), _ = evaluate.measure(job)
    assert measured.forecast_methods == ("direct", "autoregressive", "ensemble")
    for method in ("direct", "ensemble"):  # of one step there is one way
        check_errors(run, uri, measured.scores[method])


def check_errors(run: RunDirectory, uri: str, found: Mapping[str, np.ndarray]) -> None:
    """Compare scores ``[trajectory, lead, field]`` at the first lead with errors taken by hand."""
    forecaster, _ = Forecaster.from_run(run)
    data, frames = open_dataset(uri), forecaster.objective.input_frames
    seen = torch.from_numpy(np.stack([data.read_frames(i, range(frames)) for i in (3, 4)]))
    truth = np.stack([data.read_frames(i, [frames])[0] for i in (3, 4)])
    forecast = forecaster.predict(seen if frames > 1 else seen[:, 0], torch.full((2,), 0.5)).numpy()
    axes = tuple(range(2, truth.ndim))
    expected = {
        "relative_l1": np.abs(forecast - truth).sum(axes) / np.abs(truth).sum(axes),
        "rmse": np.sqrt(np.square(forecast - truth).mean(axes)),
        "conserved_rmse": np.abs((forecast - truth).mean(axes)),
        "max_error": np.abs(forecast - truth).max(axes),
    }
    for metric, values in expected.items():
        # fields and differences are fp32: roundings of 6e-8 of values about 2, a few times
        np.testing.assert_allclose(found[metric][:, 0], values, rtol=1e-4, err_msg=metric)


@pytest.mark.parametrize(
    ("drawing", "sides"), [(line_plots, (8,)), (plots, (5, 6, 7))], ids=["line", "volume"]
)
def test_several_forecasts_are_animated(drawing: ModuleType, sides: tuple[int, ...]) -> None:
    images = {name: np.random.default_rng(0).normal(size=(3, *sides)) for name in ("truth", "m")}
    target = io.BytesIO()
    drawing.animate(target, images, "a", (0.5, 1.0, 1.5), reference="truth")
    with Image.open(target) as moving:
        assert moving.n_frames == 3  # type: ignore[attr-defined]


def test_the_picture_of_a_volume_is_its_middle_plane_and_says_so() -> None:
    volume = np.arange(2 * 5 * 3 * 4.0, dtype=np.float32).reshape(2, 5, 3, 4)
    assert np.array_equal(plots.middle_plane(volume, 3), volume[:, 2])
    assert np.array_equal(plots.middle_plane(volume, 2), volume)
    assert plots.plane_name((5, 3, 4)) == "plane z = 2 of 0 to 4"
