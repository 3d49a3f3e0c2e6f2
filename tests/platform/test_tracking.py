"""MLflow holds what the run's files hold, once, whether or not it was there at the time."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
import torch
import yaml
import zarr
from mlflow import MlflowClient
from mlflow.pyfunc import scoring_server
from starlette.testclient import TestClient

from pelagos.data_pipelines.store import open_dataset
from pelagos.jobs import pretrain
from pelagos.jobs.weights.forecaster import Forecaster
from pelagos.platform.config import ConfigError, PretrainJob, resolve_yaml
from pelagos.platform.config.load import parse_job
from pelagos.platform.mlflow_records import tracker as module
from pelagos.platform.records.runs import RunDirectory

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
    names = {"loss": "loss", "lr": "learning_rate", "gradient_norm": "gradient_norm"}
    for name, shown in names.items():
        history = client.get_metric_history(mlflow_run.info.run_id, f"train/{shown}")
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
    validations = client.get_metric_history(recorded.info.run_id, "validation/loss")
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
    # what `mlflow models serve` runs
    served = TestClient(scoring_server.init(registered))
    asked = {"inputs": {"fields": fields.tolist(), "lead_time": lead_time.tolist()}}
    answer = served.post("/invocations", json=asked)
    assert answer.status_code == 200, answer.text
    np.testing.assert_allclose(answer.json()["predictions"], predicted, rtol=1e-6)


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
    given = {"uri": tracking_store, "given": tracking_store}
    assert known == {**given, "run_id": recorded.info.run_id}


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


def history(store: str, run_id: str, name: str) -> list[tuple[int, float]]:
    client = MlflowClient(tracking_uri=store)
    return sorted((point.step, point.value) for point in client.get_metric_history(run_id, name))


def run_ids(store: str, experiment: str) -> list[str]:
    client = MlflowClient(tracking_uri=store)
    found = client.get_experiment_by_name(experiment)
    return [run.info.run_id for run in client.search_runs([found.experiment_id])]


def values(run: RunDirectory, name: str) -> list[tuple[int, float]]:
    return [(m["step"], m[name]) for m in run.metrics()]


def test_names_that_mlflow_refuses_are_mapped_and_the_mapping_is_kept(
    tracking_store: str, tmp_path: Path
) -> None:
    """A dataset's name goes into metrics, a user's into tags."""
    uri = str(tmp_path / "nu=0.001,seed=3.zarr")
    frames = np.random.default_rng(0).normal(size=(10, 3, 1, 16, 16)).astype("f4")
    zarr.create_array(uri, data=frames, chunks=(1, 3, 1, 16, 16))
    described = {"uri": uri, "description": {"fields": [{"name": "velocity-x"}]}}
    tree = {
        "job": "pretrain",
        "name": "odd",
        "runs_dir": str(tmp_path / "runs"),
        "model": {"name": "fno-nano"},
        "data": {"mixture": [described], "fields": ["velocity-x"], "global_batch_size": 2},
        "schedule": {"total_steps": 3},
        "validation": {"every_steps": 3, "num_samples": 2},
        "resources": {"launcher": "none"},
        "tracking": {"uri": tracking_store, "experiment": "odd", "tags": {"who?": "me"}},
    }
    job = parse_job(yaml.safe_dump(tree), "job")
    pretrain.run(job)  # type: ignore[arg-type]
    recorded = the_run(tracking_store, "odd")
    run = RunDirectory(tmp_path / "runs/odd")
    assert history(tracking_store, recorded.info.run_id, "train/loss") == values(run, "loss")
    tags = recorded.data.tags
    meant = {k.removeprefix("pelagos.name."): v for k, v in tags.items() if "pelagos.name." in k}
    for prefix in ("train/loss", "validation/loss"):
        (accepted,) = [k for k, v in meant.items() if v == f"{prefix}/nu=0.001,seed=3"]
        sent = history(tracking_store, recorded.info.run_id, accepted)
        assert [step for step, _ in sent] == ([1, 2, 3] if prefix == "train/loss" else [3])
    (accepted,) = [k for k, v in meant.items() if v == "who?"]
    assert tags[accepted] == "me"


def test_another_store_gets_the_whole_run(
    make_job: MakeJob, tracking_store: str, tmp_path: Path
) -> None:
    """Resumed in the middle, and once more when all is done."""
    other = f"sqlite:///{tmp_path}/other.db"
    job = make_job("moved", tracking__uri=tracking_store, tracking__experiment="moved")
    pretrain.run(job, until_step=4)
    first = the_run(tracking_store, "moved").info.run_id
    result = pretrain.resume(job.runs_dir, "moved", overrides=[f"tracking.uri={other}"])
    run = RunDirectory(f"{job.runs_dir}/moved")
    (second,) = run_ids(other, "moved")
    assert history(other, second, "train/loss") == values(run, "loss")
    assert result.registered_version == "1"
    assert [s for s, _ in history(tracking_store, first, "train/loss")] == [1, 2, 3, 4]
    back = pretrain.resume(job.runs_dir, "moved", overrides=[f"tracking.uri={tracking_store}"])
    assert back.outcome.kind == "finished"
    third = next(r for r in run_ids(tracking_store, "moved") if r != first)
    assert history(tracking_store, third, "train/loss") == values(run, "loss")
    earlier = json.loads((run.path / "tracking.json").read_text())["earlier"]
    assert [e["run_id"] for e in earlier] == [first, second]


def test_a_deleted_experiment_is_refused_at_the_start_and_a_deleted_run_is_made_anew(
    make_job: MakeJob, tracking_store: str
) -> None:
    client = MlflowClient(tracking_uri=tracking_store)
    gone = client.create_experiment("gone")
    client.delete_experiment(gone)
    refused = make_job("refused", tracking__uri=tracking_store, tracking__experiment="gone")
    with pytest.raises(ConfigError, match=r"restore --experiment-id .*tracking\.experiment=OTHER"):
        pretrain.run(refused)
    assert not Path(refused.runs_dir, "refused").exists()
    job = make_job("again", tracking__uri=tracking_store, tracking__experiment="again")
    pretrain.run(job, until_step=3)
    client.delete_run(the_run(tracking_store, "again").info.run_id)
    pretrain.resume(job.runs_dir, "again")
    run = RunDirectory(f"{job.runs_dir}/again")
    assert_each_step_is_there_once(tracking_store, the_run(tracking_store, "again"), run)


def test_steps_that_were_redone_with_another_result_are_sent_again(
    make_job: MakeJob, tracking_store: str
) -> None:
    job = make_job(
        "redone",
        tracking__uri=tracking_store,
        tracking__experiment="redone",
        checkpoint__every_steps=3,
        checkpoint__keep_last=9,
    )
    pretrain.run(job, until_step=5)
    run = RunDirectory(f"{job.runs_dir}/redone")
    for step in (4, 5):  # as if the process had died before it could save
        shutil.rmtree(f"{run.checkpoint_uri}/step-{step:08d}", ignore_errors=True)
    before = values(run, "loss")
    result = pretrain.resume(job.runs_dir, "redone", overrides=["optimizer.frozen=[embeddings]"])
    assert result.outcome.kind == "finished"
    after = values(run, "loss")
    assert before[:4] == after[:4]  # step 4's loss is of the weights of step 3
    assert before[4] != after[4]
    run_id = the_run(tracking_store, "redone").info.run_id
    latest: dict[int, float] = {}
    points = MlflowClient(tracking_uri=tracking_store).get_metric_history(run_id, "train/loss")
    for point in sorted(points, key=lambda p: p.timestamp):
        latest[point.step] = point.value
    assert sorted(latest.items()) == after
    assert len([p for p in points if p.step <= 3]) == 3  # what is the same is not sent twice


def test_a_store_that_is_away_is_asked_again_after_the_set_pause(
    make_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make_job("away", tracking__uri="http://127.0.0.1:9")
    tracker = module.Tracker(job, RunDirectory.create(job), [])
    clock, tries = [1000.0], []

    def connect() -> None:
        tries.append(clock[0])
        raise ConnectionError("away")

    monkeypatch.setattr(tracker, "_connect", connect)
    monkeypatch.setattr(module.time, "monotonic", lambda: clock[0])
    for _ in range(40):
        tracker.sync()
        clock[0] += 1.0
    assert tries == [1000.0, 1000.0 + module.RETRY_SECONDS, 1000.0 + 2 * module.RETRY_SECONDS]
    assert 5 <= module.RETRY_SECONDS <= 60  # seconds: often enough to lose nothing, not more
