"""What others append to a run's record, or write into its directory, redirects none of its secrets."""

import json
from pathlib import Path
from typing import Any

import pytest

from pelagos.infra.directory_store import DirectoryStore
from pelagos.jobs import training
from pelagos.jobs.pretrain import PretrainResult
from pelagos.jobs.run_submitted import Driver
from pelagos.platform.config.load import load_job, resolve_yaml
from pelagos.platform.config.schema import TrainingJob
from pelagos.platform.runs import Outcome, RunDirectory

TRAINING = Path(__file__).parents[2] / "configs/quickstart/pretrain.yaml"


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Driver:
    """Of a run that has begun, on its second attempt."""
    for name in ("MLFLOW_TRACKING_URI", "PELAGOS_STORAGE_ENDPOINT", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name, raising=False)
    store = DirectoryStore(str(tmp_path))
    job = load_job(
        TRAINING, ["name=r", f"runs_dir={tmp_path / 'runs'}", "tracking.uri=https://own"]
    )
    assert isinstance(job, TrainingJob)
    RunDirectory.create(job)
    first = {
        "time": 1.0,
        "kind": "submitted",
        "by": "me",
        "host": "h",
        "job": resolve_yaml(job),
        "cluster": "here",
        "priority": 0,
        "retries": 0,
        "after": [],
    }
    store.write("records/r/events/00000000.json", json.dumps(first).encode())
    return Driver(store, "r", 2)


@pytest.fixture
def resumed(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    found: list[Any] = []

    def resume(*arguments: Any, **_: Any) -> Any:
        found.append(arguments)
        return PretrainResult("r", Outcome("finished", 1), {})

    monkeypatch.setattr(training, "resume", resume)
    return found


def append(driver: Driver, *overrides: str) -> None:
    event = {"time": 2.0, "kind": "retried", "overrides": overrides}
    driver.store.write("records/r/events/00000001.json", json.dumps(event).encode())


@pytest.mark.parametrize("key", ["tracking.uri", "storage.endpoint_url"])
def test_an_appended_event_redirects_no_secret(
    driver: Driver, resumed: list[Any], key: str
) -> None:
    append(driver, f"{key}=https://evil.example")
    assert driver.drive() == 1
    assert resumed == []
    assert key in driver.record.state().cause


def test_a_changed_job_file_redirects_no_secret(driver: Driver, resumed: list[Any]) -> None:
    path = driver.runs_dir / "r" / "job.yaml"
    path.write_text(path.read_text().replace("https://own", "https://evil.example"))
    assert driver.drive() == 1
    assert resumed == []


def test_where_the_environment_says_it_goes_on(
    driver: Driver, resumed: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    append(driver, "tracking.uri=https://new")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://new")
    assert driver.drive() == 0
    assert len(resumed) == 1
