"""MLflow holds what the run's files hold, once, whether or not it was there at the time."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
import torch
from mlflow import MlflowClient

from pelagos.data_pipelines.store import open_dataset
from pelagos.jobs import pretrain
from pelagos.jobs.forecaster import Forecaster
from pelagos.platform.config import PretrainJob, resolve_yaml
from pelagos.platform.runs import RunDirectory

MakeJob = Callable[..., PretrainJob]
STEPS = 8


@pytest.fixture(scope="session")
def tracking_store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One SQLite store for all: MLflow takes seconds to create one."""
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/mlflow.db"


@pytest.fixture(autouse=True)
def in_own_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Artifacts of a SQLite store go below the current directory."""
    monkeypatch.chdir(tmp_path)
    yield
    mlflow.set_tracking_uri(None)


def request_stop_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    original = RunDirectory.append_metrics

    def append(run: RunDirectory, record: dict[str, Any]) -> None:
        original(run, record)
        if record["step"] == step:
            run.request_stop()

    monkeypatch.setattr(RunDirectory, "append_metrics", append)


def the_run(store: str, experiment: str) -> Any:
    """The one MLflow run of an experiment."""
    client = MlflowClient(tracking_uri=store)
    found = client.get_experiment_by_name(experiment)
    (run,) = client.search_runs([found.experiment_id])
    return run


def assert_each_step_is_there_once(store: str, mlflow_run: Any, run: RunDirectory) -> None:
    client = MlflowClient(tracking_uri=store)
    for name in ("loss", "lr", "gradient_norm"):
        history = client.get_metric_history(mlflow_run.info.run_id, name)
        sent = sorted((point.step, point.value) for point in history)
        assert sent == [(m["step"], m[name]) for m in run.metrics()]


def test_a_stopped_and_resumed_run_is_one_complete_mlflow_run(
    make_job: MakeJob,
    datasets: tuple[str, str],
    tracking_store: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    job = make_job("tracked", tracking__uri=tracking_store, tracking__experiment="whole")
    with monkeypatch.context() as patch:
        request_stop_at(patch, 4)
        stopped = pretrain.run(job)
    assert stopped.outcome.kind == "stopped"
    assert the_run(tracking_store, "whole").info.status == "KILLED"
    result = pretrain.resume(job.runs_dir, job.name)
    assert result.outcome.kind == "finished"
    assert result.registered_version == "1"

    run = RunDirectory(f"{job.runs_dir}/{job.name}")
    client = MlflowClient(tracking_uri=tracking_store)
    recorded = the_run(tracking_store, "whole")
    assert recorded.info.status == "FINISHED"
    assert recorded.info.run_name == "tracked"
    assert [m["step"] for m in run.metrics()] == list(range(1, STEPS + 1))
    assert_each_step_is_there_once(tracking_store, recorded, run)

    params = recorded.data.params
    assert params["schedule.total_steps"] == str(STEPS)
    assert params["optimizer.lr"] == "0.003"
    assert params["optimizer.weight_decay"] == str(job.optimizer.weight_decay)  # a default
    assert params["data.mixture.0.uri"] == datasets[0]
    tags = recorded.data.tags
    assert tags["pelagos.code"]
    assert tags["pelagos.checkpoint"].endswith(f"step {STEPS}")
    digests = {entry.dataset.digest for entry in recorded.inputs.dataset_inputs}
    assert digests == {open_dataset(uri).fingerprint[:32] for uri in datasets}
    artifacts = {a.path for a in client.list_artifacts(recorded.info.run_id, "run")}
    assert {"run/job.yaml", "run/metrics.jsonl", "run/events.jsonl"} <= artifacts
    validations = client.get_metric_history(recorded.info.run_id, "validation_loss")
    assert [v.step for v in validations] == [4, 8]

    forecaster, _ = Forecaster.from_run(run)
    fields = np.random.default_rng(0).normal(1.5, 0.5, (3, 4, 16, 16)).astype(np.float32)
    lead_time = np.array([0.05, 0.1, 0.2], np.float32)
    mlflow.set_tracking_uri(tracking_store)
    registered = mlflow.pyfunc.load_model("models:/tracked/1")
    predicted = registered.predict({"fields": fields, "lead_time": lead_time})
    expected = forecaster.predict(torch.from_numpy(fields), torch.from_numpy(lead_time))
    np.testing.assert_array_equal(predicted, expected.numpy())
    without = registered.predict(
        {"fields": fields, "lead_time": lead_time}, params={"absent": ["pressure"]}
    )
    expected = forecaster.predict(
        torch.from_numpy(fields), torch.from_numpy(lead_time), ["pressure"]
    )
    np.testing.assert_array_equal(without, expected.numpy())
    assert not np.array_equal(without[:, 0], predicted[:, 0])


def test_a_store_that_is_away_costs_nothing_and_gets_everything_later(
    make_job: MakeJob, tracking_store: str, caplog: pytest.LogCaptureFixture
) -> None:
    away = "http://127.0.0.1:9"
    job = make_job("away", tracking__uri=away, tracking__experiment="late")
    result = pretrain.run(job)
    assert result.outcome.kind == "finished"
    assert result.registered_version is None
    warnings = [r.getMessage() for r in caplog.records if "does not answer" in r.getMessage()]
    assert len(warnings) == 1
    assert away in warnings[0]

    run = RunDirectory(f"{job.runs_dir}/{job.name}")
    assert [m["step"] for m in run.metrics()] == list(range(1, STEPS + 1))
    assert not (run.path / "tracking.json").exists()
    tracking = job.tracking.model_copy(update={"uri": tracking_store})
    run.replace("job.yaml", resolve_yaml(job.model_copy(update={"tracking": tracking})))
    late = pretrain.resume(job.runs_dir, job.name)
    assert late.outcome.kind == "finished"
    assert late.registered_version == "1"
    again = pretrain.resume(job.runs_dir, job.name)  # nothing is sent or registered twice
    assert again.registered_version == "1"
    recorded = the_run(tracking_store, "late")
    assert recorded.info.status == "FINISHED"
    assert_each_step_is_there_once(tracking_store, recorded, run)
    known = json.loads((run.path / "tracking.json").read_text())
    assert known == {"uri": tracking_store, "run_id": recorded.info.run_id}


def test_what_a_stopped_launch_recorded_does_not_speak_for_the_next(
    make_job: MakeJob, tracking_store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make_job("twice", tracking__uri=tracking_store, tracking__experiment="twice")
    with monkeypatch.context() as patch:
        request_stop_at(patch, 3)
        assert pretrain.run(job).outcome.kind == "stopped"
    with monkeypatch.context() as patch:  # the driver dies between the last step and its records
        patch.setattr(pretrain, "_close_records", lambda *_: None)
        assert pretrain.resume(job.runs_dir, job.name).outcome.kind == "finished"
    assert pretrain.resume(job.runs_dir, job.name).registered_version == "1"
    assert the_run(tracking_store, "twice").info.status == "FINISHED"
