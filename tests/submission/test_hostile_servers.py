"""What answers in a cluster's place - garbage, floods, redirects - is named within bounded time, and no
token follows to another host."""

import contextlib
import http.server
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from pelagos.cli.main import app
from pelagos.infra.clusters import ClusterConfig, open_cluster, ray_jobs
from pelagos.infra.clusters.base import ClusterError
from pelagos.infra.clusters.schema import KubernetesConfig, RayConfig

TOKEN = "token-of-the-victim"
VERSION = b'{"ray_version": "2.99.0", "version": "4", "ray_commit": "x", "session_name": "x"}'
JOB = {"submission_id": "pelagos-run-1"}
GARBAGE = (
    b"",
    b"[]",
    b"5",
    b"{}",
    b"null",
    b'{"ray_version": []}',
    b"[" * 9000,
    b"\xff\xfe\0",
    b"<html>",
)


class Server(http.server.ThreadingHTTPServer):
    """Gives `version` to the first question and `answer` to others; keeps the tokens it was sent."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.version, self.answer, self.status = VERSION, b"{}", 200
        self.redirect, self.flood = "", False
        self.tokens: list[str | None] = []

    def address(self, host: str = "127.0.0.1") -> str:
        return f"http://{host}:{self.server_port}"


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def _answer(self) -> None:
        self.server.tokens.append(self.headers.get("Authorization"))
        is_version = self.path.startswith("/api/version")
        if self.server.redirect:
            self.send_response(307)
            self.send_header("Location", f"{self.server.redirect}{self.path}")
            self.end_headers()
            return
        body = self.server.version if is_version else self.server.answer
        self.send_response(200 if is_version else self.server.status)
        if self.server.flood:
            self.end_headers()
            with contextlib.suppress(OSError):
                while True:
                    self.wfile.write(b" " * 2**20)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST = do_PUT = do_DELETE = _answer

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def servers(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Server, Server]]:
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    both = Server(), Server()
    threads = [threading.Thread(target=server.serve_forever, args=(0.05,)) for server in both]
    for thread in threads:
        thread.start()
    try:
        yield both
    finally:
        for server, thread in zip(both, threads, strict=True):
            server.shutdown()
            server.server_close()
            thread.join()


def ray_cluster(server: Server, storage: Path) -> Any:
    return open_cluster(
        "lab", RayConfig(kind="ray", address=server.address(), storage=str(storage))
    )


@pytest.mark.parametrize("body", GARBAGE)
def test_garbage_in_place_of_a_dashboard_is_named(
    servers: tuple[Server, Server], tmp_path: Path, body: bytes
) -> None:
    server, _ = servers
    server.version = body
    cluster = ray_cluster(server, tmp_path)
    assert [check.ok for check in cluster.check()] == [False]
    for ask in (cluster.state, cluster.logs, cluster.cancel):
        with pytest.raises(ClusterError, match="lab"):
            ask(JOB)


@pytest.mark.parametrize("status", [200, 302, 404, 500])
@pytest.mark.parametrize("body", GARBAGE)
def test_garbage_in_place_of_a_job_is_named(
    servers: tuple[Server, Server], tmp_path: Path, body: bytes, status: int
) -> None:
    server, _ = servers
    server.answer, server.status = body, status
    cluster = ray_cluster(server, tmp_path)
    for ask in (cluster.state, cluster.logs, cluster.cancel):
        with contextlib.suppress(ClusterError):  # nothing else
            ask(JOB)


def test_a_flood_is_cut_short(servers: tuple[Server, Server], tmp_path: Path) -> None:
    server, _ = servers
    server.flood = True
    begin = time.monotonic()
    (check,) = ray_cluster(server, tmp_path).check()
    assert not check.ok
    assert "more than" in check.seen
    assert time.monotonic() - begin < ray_jobs.TIMEOUT_SECONDS


def test_no_token_follows_a_redirect_to_another_host(
    servers: tuple[Server, Server], tmp_path: Path
) -> None:
    server, strange = servers
    server.redirect = strange.address("localhost")
    cluster = ray_cluster(server, tmp_path)
    cluster.check()
    for ask in (cluster.state, cluster.logs, cluster.cancel):
        with contextlib.suppress(ClusterError):
            ask(JOB)
    assert set(server.tokens) == {f"Bearer {TOKEN}"}
    assert strange.tokens
    assert set(strange.tokens) == {None}


def test_verbs_show_what_a_server_says_and_command_no_terminal(
    servers: tuple[Server, Server], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, _ = servers
    server.version = (
        b'{"ray_version": "2.99[/red]\\u001b]0;title\\u0007\\ud800[link=https://e.example]"}'
    )
    path = tmp_path / "clusters.yaml"
    entry = {"kind": "ray", "address": server.address(), "storage": str(tmp_path / "storage")}
    path.write_text(yaml.safe_dump({"clusters": {"lab": entry}}))
    monkeypatch.setenv("PELAGOS_CLUSTERS", str(path))
    monkeypatch.chdir(tmp_path)
    for verb in (["clusters"], ["clusters", "--json"], ["list"]):
        done = CliRunner().invoke(app, verb, env={"COLUMNS": "300"})
        assert done.exception is None or isinstance(done.exception, SystemExit), repr(
            done.exception
        )
        assert not set(done.output) & set("\x1b\x07\ud800")
    server.version = b"[]"
    for verb in (["clusters"], ["doctor", "--cluster", "lab", "--nodes", "0"], ["list"]):
        done = CliRunner().invoke(app, verb, env={"COLUMNS": "300"})
        assert done.exception is None or isinstance(done.exception, SystemExit), repr(
            done.exception
        )


@pytest.fixture
def kubectl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program that prints what a file beside it holds: an API server's words, whatever they are."""
    folder = tmp_path / "bin"
    folder.mkdir()
    program = folder / "kubectl"
    program.write_text('#!/bin/sh\ncat > /dev/null < /dev/null; exec cat "$(dirname "$0")/said"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return folder / "said"


KUBERNETES: ClusterConfig = KubernetesConfig(
    kind="kubernetes", storage="s3://b/p", image="i", namespace="n"
)


@pytest.mark.parametrize(
    "said",
    [
        *GARBAGE,
        b'{"status": []}',
        b'{"status": {"jobStatus": 5, "reason": ["x"], "jobDeploymentStatus": {}}}',
        b'{"status": "Complete"}',
    ],
)
def test_garbage_of_an_api_server_is_named(kubectl: Path, said: bytes) -> None:
    kubectl.write_bytes(said)
    cluster = open_cluster("k", KUBERNETES)
    handle = {"name": "run-1", "namespace": "n"}
    assert all(isinstance(check.seen, str) for check in cluster.check())
    with contextlib.suppress(ClusterError):  # nothing else
        assert isinstance(cluster.state(handle).detail, str)
    cluster.logs(handle)
    cluster.cancel(handle)
