"""`pelagos evaluate` holds forecasts against the equation that a dataset records."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow import MlflowClient

from pelagos.data_pipelines.generate.tasks import GenerationRequest, dataset_spec, make_shard
from pelagos.data_pipelines.store import create_dataset
from pelagos.jobs import evaluate
from pelagos.jobs.training.blueprint import build_parts
from pelagos.platform.config import PretrainJob
from pelagos.platform.config.load import parse_job
from pelagos.platform.config.measure import EvaluateJob
from pelagos.platform.records.runs import RunDirectory
from pelagos.platform.trainer import train


@pytest.fixture(scope="module")
def run(
    datasets: tuple[str, str],
    tiny_job_text: Callable[[tuple[str, str], Path, str], str],
    tmp_path_factory: pytest.TempPathFactory,
) -> PretrainJob:
    """A run of two steps on Burgers' equation, and on waves of which no equation is recorded."""
    directory = tmp_path_factory.mktemp("physics")
    request = GenerationRequest("burgers", 0, 8, resolution=16, num_frames=5, final_time=0.2)
    uri = str(directory / "burgers.zarr")
    writer = create_dataset(uri, dataset_spec(request, {"train": 4, "validation": 2, "test": 2}))
    for shard in range(writer.num_shards):
        make_shard(writer, request, shard)
    writer.finalize()
    changes = [
        "schedule.total_steps=2",
        "schedule.warmup_steps=0",
        f"tracking.uri=sqlite:///{directory}/mlflow.db",
    ]
    job = parse_job(tiny_job_text((uri, datasets[1]), directory, "run"), "run", changes)
    assert isinstance(job, PretrainJob)
    directory_of_run = RunDirectory.create(job)
    train(job, directory_of_run, build_parts, {})
    client = MlflowClient(tracking_uri=job.tracking.uri)
    tracked = client.create_run(client.create_experiment("physics")).info.run_id
    record = {"uri": job.tracking.uri, "run_id": tracked}
    (directory_of_run.path / "tracking.json").write_text(json.dumps(record))
    return job


def test_the_residual_is_in_the_report_its_numbers_and_the_tracking(run: PretrainJob) -> None:
    # Two leads that are not neighbours: what lies before the second is forecast for the residual.
    job = EvaluateJob(job="evaluate", run="run", runs_dir=run.runs_dir, lead_steps=(1, 4))
    result = evaluate.run(job)
    told = json.loads((result.report.parent / "metrics.json").read_text())
    burgers, waves = told["datasets"]
    assert burgers["physics"]["equation"] == "burgers"
    scores = burgers["physics"]["scores"]
    assert {"truth", "direct", "autoregressive", "one_step", "persistence"} == set(scores)
    truth, model = (scores[m]["residual/residual"]["median"] for m in ("truth", "autoregressive"))
    assert len(truth) == 2
    assert max(truth) < 0.2  # an interval of 0.05 of smooth data
    assert min(model) > max(truth)  # two steps of training
    assert "does not record which equation" in waves["physics"]["note"]
    page = result.report.read_text()
    assert "Physics at lead time" in page
    assert "u_t + (u . grad) u = nu Laplace(u)" in page
    assert "No physics residual: ce does not record which equation it solves" in page
    client = MlflowClient(tracking_uri=run.tracking.uri)
    tracked = json.loads((Path(run.runs_dir) / "run" / "tracking.json").read_text())["run_id"]
    key = "evaluation/Burgers.autoregressive.residual.residual"
    logged = sorted(client.get_metric_history(tracked, key), key=lambda m: m.step)
    assert [m.step for m in logged] == [1, 4]
    assert [m.value for m in logged] == pytest.approx(model)
    assert all(math.isfinite(m.value) for m in logged)


def test_it_can_be_left_out(run: PretrainJob, tmp_path: Path) -> None:
    job = EvaluateJob(
        run="run",
        runs_dir=run.runs_dir,
        physics=False,
        output_dir=str(tmp_path),
        tracking=False,
        max_trajectories=1,
        lead_steps=(1,),
    )
    told = evaluate.run(job).metrics["datasets"]
    assert [dataset["physics"] for dataset in told] == [{"note": "not requested"}] * 2
