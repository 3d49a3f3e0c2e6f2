"""One job, the same on every target: submitted, stopped, resumed, finished; and what it should give."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from tests.conftest import free_ports
from tests.submission import slurm_server

from pelagos.jobs import pretrain, submit
from pelagos.jobs.submission import following, start_again
from pelagos.jobs.submission.following import SubmittedRun
from pelagos.jobs.submission.records.record import RunState
from pelagos.platform.config import PretrainJob
from pelagos.platform.config.load import load_job

STEPS = 12
# what a quiet machine does in 40 seconds, with room for one that is busy
START_SECONDS, END_SECONDS = 300, 400


@dataclass(frozen=True)
class Job:
    """The file of the test job, and the losses of its uninterrupted run."""

    path: Path
    losses: list[float]

    def text(self, **overrides: Any) -> list[str]:
        return [f"{key.replace('__', '.')}={value}" for key, value in overrides.items()]


@pytest.fixture(scope="session")
def conformance_job(
    datasets: tuple[str, str],
    tiny_job_text: Callable[..., str],
    tmp_path_factory: pytest.TempPathFactory,
) -> Job:
    """Two workers, a few steps; its losses come from a run in the foreground."""
    directory = tmp_path_factory.mktemp("conformance")
    tree = yaml.safe_load(tiny_job_text(datasets, directory, "reference"))
    tree["resources"] = {"num_workers": 2}
    tree["schedule"] = {"total_steps": STEPS, "warmup_steps": 2}
    tree["checkpoint"] = {"every_steps": 5}
    path = directory / "job.yaml"
    path.write_text(yaml.safe_dump(tree))
    job = load_job(path)
    assert isinstance(job, PretrainJob)
    result = pretrain.run(job)
    assert result.outcome.kind == "finished"
    from pelagos.platform.records.runs import RunDirectory

    metrics = RunDirectory(Path(job.runs_dir) / job.name).metrics()
    return Job(path, [m["loss"] for m in metrics])


@pytest.fixture
def clusters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """`clusters(name={...})` writes clusters.yaml and makes it the one in force."""
    monkeypatch.setenv("PELAGOS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")

    def write(**entries: dict[str, Any]) -> None:
        path = tmp_path / "clusters.yaml"
        path.write_text(yaml.safe_dump({"clusters": entries}))
        monkeypatch.setenv("PELAGOS_CLUSTERS", str(path))

    return write


def send(path: Path, cluster: str, *overrides: str, **options: Any) -> SubmittedRun:
    """Submit a job; return the run."""
    planned = submit.plan([str(path)], cluster, overrides, submit.Options(**options))
    (name,) = submit.submit(planned)
    return following.find(name, cluster)


def wait_for(
    found: SubmittedRun, condition: Callable[[RunState], bool], seconds: float = START_SECONDS
) -> RunState:
    """Wait until a run's state is as wanted; fail with its record and log."""
    begin = time.monotonic()
    while time.monotonic() < begin + seconds:
        state, _ = following.current_state(found)
        if condition(state):
            return state
        if state.has_ended:
            break
        time.sleep(0.5)
    log = "".join(following.follow_logs(found, follow=False))[-3000:]
    events = [f"{e['time']} {e['kind']}" for e in found.record.events()]
    of_run = following.run_directory(found).events()
    events += [f"{e['time']} the run: {e['kind']}" for e in of_run]
    raise AssertionError(
        f"{log}\nafter {time.monotonic() - begin:.0f} s still {state}\n" + "\n".join(sorted(events))
    )


def finish(found: SubmittedRun) -> RunState:
    """Wait until a run has finished."""
    return wait_for(found, lambda s: s.state == "finished", END_SECONDS)


def conform(job: Job, cluster: str, name: str, *overrides: str) -> SubmittedRun:
    """Submit the test job, stop it in the middle, resume it; its losses must be those expected."""
    found = send(job.path, cluster, f"name={name}", *overrides)
    wait_for(found, lambda s: s.state == "running")
    following.stop(found, now=False)
    wait_for(found, lambda s: s.state == "stopped")
    directory = following.run_directory(found)
    stopped_at = directory.last_step()
    assert 0 < stopped_at < STEPS, "it was to stop on the way"
    start_again.resume(found, None, (), submit.Options())
    state = finish(found)
    assert state.attempt == 2
    metrics = following.run_directory(found).metrics()
    assert [m["step"] for m in metrics] == list(range(1, STEPS + 1))
    assert [m["loss"] for m in metrics] == job.losses
    return found


@dataclass(frozen=True)
class RayServer:
    """A Ray cluster of three raylets on this machine, with tokens on."""

    address: str
    token_file: Path

    def config(self, storage: Path | str, **more: Any) -> dict[str, Any]:
        return {
            "kind": "ray",
            "address": self.address,
            "token_file": str(self.token_file),
            "storage": str(storage),
            "shared_paths": ["/"],
            "python": sys.executable,
            **more,
        }


@pytest.fixture(scope="module")
def ray_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayServer]:
    """A head without workers' cores, and two nodes of one core each: two workers take both."""
    directory = tmp_path_factory.mktemp("ray")
    token_file = directory / "token"
    token_file.touch(mode=0o600)
    token_file.write_text(os.urandom(32).hex())
    port, dashboard = _free_ports(2)
    environment = {
        **os.environ,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token_file),
        "RAY_USAGE_STATS_ENABLED": "0",
        "OMP_NUM_THREADS": "1",
    }
    ray = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block"]
    memory = "--object-store-memory=100000000"
    # sockets need short paths, shorter than pytest's directories
    head = ["--head", f"--port={port}", f"--dashboard-port={dashboard}", "--num-cpus=0", memory]
    commands = [[*ray, *head]] + [
        [*ray, f"--address=127.0.0.1:{port}", "--num-cpus=1", memory] for _ in range(2)
    ]
    processes = []
    try:
        for command in commands:
            with (directory / f"ray-{len(processes)}.log").open("wb") as log:
                processes.append(
                    subprocess.Popen(
                        command,
                        env=environment,
                        stdout=log,
                        stderr=subprocess.STDOUT,
                        start_new_session=True,
                    )
                )
            # one after the other: raylets that start at once on one machine take each other's ports
            _wait_for_port(dashboard, processes[0])
            _wait_for_nodes(dashboard, token_file.read_text(), len(processes))
        yield RayServer(f"http://127.0.0.1:{dashboard}", token_file)
    finally:
        for process in reversed(processes):
            kill_tree(process.pid)


def kill_tree(pid: int) -> None:
    """Kill a process and all that it started."""
    try:
        process = psutil.Process(pid)
    except psutil.NoSuchProcess:
        return
    for each in [*process.children(recursive=True), process]:
        try:
            each.send_signal(signal.SIGKILL)
        except psutil.NoSuchProcess:
            continue
    process.wait(10)


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [int(each.getsockname()[1]) for each in sockets]
    for each in sockets:
        each.close()
    return ports


def _wait_for_port(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.3)
    raise RuntimeError(f"Ray's dashboard did not come up (exit {process.poll()})")


def _wait_for_nodes(port: int, token: str, count: int) -> None:
    import requests

    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        answer = requests.get(
            f"http://127.0.0.1:{port}/nodes?view=summary",
            headers={"Authorization": f"Bearer {token}"},
            timeout=10,
        )
        nodes = answer.json().get("data", {}).get("summary", []) if answer.ok else []
        if sum(n["raylet"].get("state") == "ALIVE" for n in nodes) >= count:
            return
        time.sleep(0.5)
    raise RuntimeError(f"Ray has not {count} nodes after 120 s: {answer.text[:500]}")


@pytest.fixture(scope="module")
def real_slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    problem = slurm_server.install()
    if problem:
        pytest.skip(problem)
    with slurm_server.slurm(tmp_path_factory.mktemp("slurm"), free_ports(2)):
        yield
