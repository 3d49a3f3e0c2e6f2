"""Whoever may write to a tracking server cannot have MLflow's credentials sent elsewhere, nor files of
those who send theirs."""

import http.server
import json
import logging
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from pelagos.platform.mlflow_records.artifacts import (
    StrangeArtifactsError,
    log_own_files,
    reject_strange_host,
    resolved_artifacts,
    tracking_client,
)
from pelagos.platform.mlflow_records.store import TRACKING_RECORD, earlier_runs, recorded_run
from pelagos.platform.records.runs import RunDirectory

RUN = "a" * 32
TOKEN = "token-of-the-victim"


class Server(http.server.ThreadingHTTPServer):
    """Answers as MLflow does, says that artifacts are at `artifacts`, and keeps what it was asked."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.artifacts = ""
        self.redirect = ""
        self.asked: list[tuple[str, str | None]] = []

    def address(self, host: str = "127.0.0.1") -> str:
        return f"{host}:{self.server_port}"


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def _answer(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.asked.append((self.path, self.headers.get("Authorization")))
        if self.server.redirect:
            self.send_response(307)
            self.send_header("Location", f"{self.server.redirect}{self.path}")
            self.end_headers()
            return
        info = {
            "run_id": RUN,
            "experiment_id": "1",
            "artifact_uri": self.server.artifacts,
            "status": "RUNNING",
            "lifecycle_stage": "active",
            "start_time": 1,
        }
        told = {"run": {"info": info, "data": {}}, "artifact_uri": self.server.artifacts}
        body = json.dumps(told).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST = do_PUT = _answer

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def servers(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Server, Server]]:
    """The tracking server, and one that a colleague listens on, under another name."""
    import mlflow

    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", TOKEN)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    before = mlflow.get_tracking_uri()
    both = Server(), Server()
    threads = [threading.Thread(target=server.serve_forever, args=(0.05,)) for server in both]
    for thread in threads:
        thread.start()
    try:
        mlflow.set_tracking_uri(f"http://{both[0].address()}")
        yield both
    finally:
        mlflow.set_tracking_uri(before)
        for server, thread in zip(both, threads, strict=True):
            server.shutdown()
            server.server_close()
            thread.join()


@pytest.mark.parametrize("scheme", ["http", "mlflow-artifacts"])
def test_no_token_goes_to_where_an_experiment_says_that_artifacts_are(
    servers: tuple[Server, Server], scheme: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, strange = servers
    uri = f"http://{own.address()}"
    own.artifacts = f"{scheme}://{strange.address('localhost')}/x"
    file = tmp_path / "report.html"
    file.write_text("report")
    client = tracking_client(uri)
    attempts: list[Callable[[], object]] = [
        lambda: client.log_artifact(RUN, str(file)),
        lambda: client.log_artifacts(RUN, str(tmp_path)),
        lambda: client.log_text(RUN, "text", "a.txt"),
        lambda: log_own_files(client, RUN, tmp_path, "evaluation"),
        lambda: resolved_artifacts("models:/shared/1", uri),
        lambda: resolved_artifacts(f"runs:/{RUN}/model", uri),
    ]
    for attempt in attempts:
        with pytest.raises(StrangeArtifactsError, match="your MLflow credentials would go to"):
            attempt()
    assert strange.asked == []
    monkeypatch.setenv(
        "PELAGOS_MLFLOW_ARTIFACTS", f"https://a, http://{strange.address('localhost')}"
    )
    assert resolved_artifacts("models:/shared/1", uri) == own.artifacts


def test_a_redirect_takes_no_token_along(servers: tuple[Server, Server]) -> None:
    own, strange = servers
    own.redirect = f"http://{strange.address('localhost')}"
    tracking_client(f"http://{own.address()}").get_run(RUN)
    assert [token for _, token in own.asked] == [f"Bearer {TOKEN}"]
    assert [token for _, token in strange.asked] == [None]


def test_hosts_of_artifacts() -> None:
    own = "https://mlflow.example:5000"
    for address in (f"{own}/a", "mlflow-artifacts:/a", "s3://bucket/a", "/disk/a", "file:///disk"):
        assert reject_strange_host(address, own) == address
    for address in (
        "http://mlflow.example:5000/a",
        "https://mlflow.example/a",
        "https://e.example",
    ):
        with pytest.raises(StrangeArtifactsError):
            reject_strange_host(address, own)
    with pytest.raises(StrangeArtifactsError):
        reject_strange_host("https://e.example/a", "sqlite:///mlflow.db")


def test_links_among_files_of_a_run_are_not_sent(tmp_path: Path) -> None:
    secret = tmp_path / "id_ed25519"
    secret.write_text("secret")
    output = tmp_path / "evaluation"
    (output / "figures").mkdir(parents=True)
    (output / "report.html").write_text("report")
    (output / "metrics.json").symlink_to(secret)
    (output / "keys").symlink_to(tmp_path)
    sent: dict[str, str] = {}

    def log_artifacts(run_id: str, directory: str, place: str) -> None:
        paths = [path for path in Path(directory).rglob("*") if path.is_file()]
        sent.update({str(path.relative_to(directory)): path.read_text() for path in paths})

    client = SimpleNamespace(log_artifacts=log_artifacts)
    log_own_files(client, RUN, output, "evaluation")
    log_own_files(client, RUN, output, "run", ("report.html", "metrics.json", "absent.json"))
    assert sent == {"report.html": "report"}


@pytest.mark.parametrize("given", ["sqlite:///mlflow.db", "https://mlflow.example"])
def test_the_record_of_a_run_names_no_other_server(
    make_job: Callable[..., object], given: str
) -> None:
    """A relative SQLite path means the store it was; so any address was taken from the record."""
    job = make_job(tracking__uri=given)
    run = RunDirectory.create(job)  # type: ignore[arg-type]
    told = {"uri": "https://evil.example", "given": given, "run_id": RUN, "earlier": ["x", 5]}
    run.replace(TRACKING_RECORD, json.dumps(told))
    assert recorded_run(job, run) is None  # type: ignore[arg-type]
    assert earlier_runs(run) == []
    told["uri"] = given if "https" in given else f"sqlite:///{run.path}/mlflow.db"
    run.replace(TRACKING_RECORD, json.dumps(told))
    found = recorded_run(job, run)  # type: ignore[arg-type]
    assert found is not None
    assert found.uri == told["uri"]


def test_a_poisoned_line_of_metrics_does_not_end_tracking(
    make_job: Callable[..., object], caplog: pytest.LogCaptureFixture
) -> None:
    from pelagos.platform.mlflow_records.tracker import Tracker

    job = make_job()
    run = RunDirectory.create(job)  # type: ignore[arg-type]
    lines = [
        '{"step": 1, "time": 1.0, "loss": 0.5}',
        '{"step": 2, "loss": [1], "x": "y"}',
        '{"step": 3, "time": 1e400, "loss": 1}',
    ]
    run.metrics_path.write_text("\n".join(lines) + "\n")
    bad = [
        {"kind": "checkpoint"},
        {"kind": "branched", "step": 1, "settings": 5},
        {"kind": "validation", "step": 1, "validation_loss": "x"},
        {"kind": "taken_over", "step": 1, "source": "a", "checkpoint": "b", "settings": {"a": 1}},
    ]
    run.events_path.write_text("\n".join(json.dumps({"time": 1.0, **event}) for event in bad))
    with caplog.at_level(logging.WARNING):
        assert Tracker(job, run, []).sync(force=True), caplog.text  # type: ignore[arg-type]
    assert run.events() == []
