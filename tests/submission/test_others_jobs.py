"""A job that somebody else wrote sends no secret anywhere, and takes no file of this machine along."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from pelagos.cli.main import app
from pelagos.infra.clusters.local import LocalCluster
from pelagos.infra.storage.local import DirectoryStore

Clusters = Callable[..., None]
TRAINING = (Path(__file__).parents[2] / "configs/quickstart/pretrain.yaml").read_text()
OWN_TRACKING = 'uri: "sqlite:///quickstart/mlflow.db"'
CLONE = ("clone", "theirs", "mine", "--cluster", "here", "resources.num_workers=1")


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    found: list[Any] = []

    def start(self: LocalCluster, submission: Any) -> dict[str, Any]:
        found.append(submission)
        return {"host": "elsewhere", "pid": 1, "started": "1", "attempt": 1}

    monkeypatch.setattr(LocalCluster, "start", start)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return found


def submitted_by_another(tmp_path: Path, clusters: Clusters, job: str) -> None:
    store = DirectoryStore(str(tmp_path / "storage"))
    clusters(here={"kind": "local", "storage": store.uri})
    code = {"wheel_uri": "w", "files_uri": "f", "wheel_sha256": "0" * 64, "files_sha256": "0" * 64}
    event = {
        "time": 1.0,
        "kind": "submitted",
        "by": "another",
        "host": "h",
        "job": job.replace("name: quickstart", "name: theirs"),
        "cluster": "here",
        "cluster_config": {"kind": "local", "storage": store.uri},
        "needs": {},
        "code": code,
        "priority": 0,
        "retries": 0,
        "after": [],
    }
    store.write("records/theirs/events/00000000.json", json.dumps(event).encode())


@pytest.mark.parametrize(
    ("job", "key"),
    [
        (TRAINING.replace(OWN_TRACKING, "uri: https://evil.example"), "tracking.uri"),
        (TRAINING + "storage: {endpoint_url: https://evil.example}\n", "storage.endpoint_url"),
        (
            TRAINING + "parallel: {strategy: zero2, zero: {config: SECRET}}\n",
            "parallel.zero.config",
        ),
        (
            TRAINING.replace("ns-gauss.zarr}", "ns-gauss.zarr, description: SECRET}"),
            "data.mixture.0.description",
        ),
    ],
)
@pytest.mark.parametrize("verb", [CLONE, ("resume", "theirs", "--take-over")])
def test_what_another_wrote_names_no_place_for_secrets(
    tmp_path: Path,
    clusters: Clusters,
    started: list[Any],
    job: str,
    key: str,
    verb: tuple[str, ...],
) -> None:
    secret = tmp_path / "docker.json"
    secret.write_text('{"auths": "the secret"}')
    submitted_by_another(tmp_path, clusters, job.replace("SECRET", str(secret)))
    # so that a take-over finds it stopped
    event = json.dumps({"time": 2.0, "kind": "stopped"}).encode()
    store = DirectoryStore(str(tmp_path / "storage"))
    store.write("records/theirs/events/00000001.json", event)
    before = sorted(store.sizes())
    shown = CliRunner().invoke(app, verb)
    assert shown.exit_code == 2
    assert key in shown.output
    assert "may come from somebody else" in shown.output
    assert started == []
    assert sorted(store.sizes()) == before


def test_an_address_that_this_user_gives_or_configures_is_used(
    tmp_path: Path, clusters: Clusters, started: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    job = TRAINING.replace(OWN_TRACKING, "uri: https://mlflow.example")
    submitted_by_another(tmp_path, clusters, job)
    shown = CliRunner().invoke(app, [*CLONE, "tracking.uri=https://mlflow.example"])
    assert shown.exit_code == 0, shown.output
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://mlflow.example")
    shown = CliRunner().invoke(app, [*CLONE[:2], "second", *CLONE[3:]])
    assert shown.exit_code == 0, shown.output
    assert [submission.run for submission in started] == ["mine", "second"]
