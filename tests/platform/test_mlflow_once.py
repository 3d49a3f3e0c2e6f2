"""One MLflow run per run, whatever happens to the answers of the store."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import pytest
from mlflow import MlflowClient
from mlflow.entities import ViewType

from pelagos.jobs.sweeping import mlflow_parent
from pelagos.platform.config import PretrainJob
from pelagos.platform.config.sweep import SweepJob
from pelagos.platform.mlflow_records import tracker as module
from pelagos.platform.mlflow_records.store import part_with_run
from pelagos.platform.mlflow_records.tracker import Tracker
from pelagos.platform.records.runs import RunDirectory

MakeJob = Callable[..., PretrainJob]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/mlflow.db"


class Unreliable:
    """A real client, some of whose calls lose their answer, never arrive, or arrive twice."""

    def __init__(self, uri: str, faults: dict[str, str]) -> None:
        self.client, self.faults = MlflowClient(tracking_uri=uri), faults

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.client, name)

        def call(*arguments: Any, **options: Any) -> Any:
            fault = self.faults.pop(name, "")
            if fault == "never arrives":
                raise ConnectionError("no connection")
            answer = method(*arguments, **options)
            if fault == "arrives twice":
                answer = method(*arguments, **options)
            if fault == "answer lost":
                raise ConnectionError("connection reset while reading the answer")
            return answer

        return call


@pytest.fixture
def faults(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, str]:
    """Faults to come, by method of the client."""
    found: dict[str, str] = {}
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(module, "tracking_client", lambda uri: Unreliable(uri, found))
    return found


def tracked(make_job: MakeJob, store: str, name: str) -> tuple[PretrainJob, RunDirectory]:
    job = make_job(name, tracking__uri=store, tracking__experiment=name)
    run = RunDirectory.create(job)
    run.append_metrics({"step": 1, "time": 1.0, "loss": 0.5, "lr": 0.1})
    return job, run


def launched(job: PretrainJob, run: RunDirectory) -> bool:
    """Send the records as a launch does that starts anew, without its measuring of the machine."""
    tracker = Tracker(job, run, [])
    tracker._start_system_metrics = lambda uri, run_id: None  # type: ignore[method-assign]
    return tracker.sync(force=True)


def mlflow_runs(store: str, experiment: str, view: int = ViewType.ALL) -> list[Any]:
    client = MlflowClient(tracking_uri=store)
    found = client.get_experiment_by_name(experiment)
    return list(client.search_runs([found.experiment_id], run_view_type=view))


def test_a_lost_answer_and_a_failed_description_leave_one_run(
    make_job: MakeJob, store: str, faults: dict[str, str]
) -> None:
    job, run = tracked(make_job, store, "lost")
    faults |= {"create_run": "answer lost"}
    assert not launched(job, run)
    (created,) = mlflow_runs(store, "lost")  # it arrived
    faults |= {"log_inputs": "never arrives"}
    assert not launched(job, run)
    assert launched(job, run)
    (only,) = mlflow_runs(store, "lost")
    assert only.info.run_id == created.info.run_id
    assert only.data.params["optimizer.lr"] == "0.003"
    assert only.data.metrics["train/loss"] == 0.5
    record = json.loads((run.path / "tracking.json").read_text())
    assert record["run_id"] == only.info.run_id
    assert "earlier" not in record


def test_settings_that_changed_before_the_description_was_whole_do_not_keep_records_away(
    make_job: MakeJob, store: str, faults: dict[str, str]
) -> None:
    """MLflow refuses another value for a parameter that it has."""
    job, run = tracked(make_job, store, "changed")
    faults |= {"log_text": "never arrives"}
    assert not launched(job, run)
    changed = job.model_copy(update={"seed": job.seed + 1})
    assert launched(changed, run)
    (only,) = mlflow_runs(store, "changed")
    assert only.data.metrics["train/loss"] == 0.5


def test_a_request_that_the_client_repeats_leaves_one_run(
    make_job: MakeJob, store: str, faults: dict[str, str]
) -> None:
    job, run = tracked(make_job, store, "twice")
    faults |= {"create_run": "arrives twice"}
    assert launched(job, run)
    assert len(mlflow_runs(store, "twice")) == 2
    (only,) = mlflow_runs(store, "twice", ViewType.ACTIVE_ONLY)
    assert only.data.metrics["train/loss"] == 0.5


def test_a_branch_gets_a_run_of_its_own_all_the_same(
    make_job: MakeJob, store: str, faults: dict[str, str]
) -> None:
    job, run = tracked(make_job, store, "branch")
    assert launched(job, run)
    (before,) = mlflow_runs(store, "branch")
    part_with_run(run)
    faults |= {"create_run": "answer lost"}
    assert not launched(job, run)
    assert launched(job, run)
    assert len(mlflow_runs(store, "branch")) == 2
    record = json.loads((run.path / "tracking.json").read_text())
    assert [r["run_id"] for r in record["earlier"]] == [before.info.run_id]
    assert record["run_id"] != before.info.run_id


def test_a_sweep_has_one_parent(
    store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    faults = {"create_run": "answer lost"}
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(mlflow_parent, "_client", lambda sweep: Unreliable(store, faults))
    monkeypatch.setattr(mlflow_parent, "_log_job", lambda *_: None)
    sweep = SweepJob.model_validate(
        {
            "job": "sweep",
            "name": "pair",
            "jobs": {"a": {"file": "a.yaml"}},
            "tracking": {"uri": store, "experiment": "pair"},
        }
    )
    assert mlflow_parent.open_parent(sweep, tmp_path) is None
    parent = mlflow_parent.open_parent(sweep, tmp_path)
    assert [run.info.run_id for run in mlflow_runs(store, "pair")] == [parent]
    assert mlflow_parent.open_parent(sweep, tmp_path) == parent
    mlflow.set_tracking_uri(None)
