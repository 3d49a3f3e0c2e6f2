"""Workers that fail by themselves, under Ray: which start again, how often, where; what is said."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tests.conftest import job_text
from tests.jobs.test_kills import CLI, torchrun

from pelagos.platform.checkpoint import CheckpointStore
from pelagos.platform.records.runs import RunDirectory

STEPS = 8
# Each attempt begins at step 1: the first checkpoint is that of the end.
FAULTS = """
import os
from pathlib import Path

import ray
from torch import nn

from pelagos.data_pipelines.store import DatasetError

HERE = Path(__file__).parent
TORN = "Default process group has not been initialized, please make sure to call init_process_group."


class Net(nn.Module):
    def __init__(self, in_channels, out_channels, fault=""):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.fault, self.calls = fault, 0

    def forward(self, frame, lead_time):
        if self.training:
            self.calls += 1
            getattr(self, self.fault, lambda: None)()
        return frame + lead_time.reshape(-1, 1, 1, 1) * self.conv(frame)

    def _is(self, rank, call):
        return int(os.environ.get("RANK", "0")) == rank and self.calls == call

    def always(self):
        if self._is(1, 5):
            raise RuntimeError("mat1 and mat2 cannot be multiplied")

    def once_torn_down(self):
        if self._is(0, 4) and not (HERE / "tripped").exists():
            (HERE / "tripped").touch()
            raise ValueError(TORN)

    def damaged(self):
        if self._is(1, 5):
            raise DatasetError("flow.zarr: shard 3 is damaged")

    def bad_node(self):
        node = ray.get_runtime_context().get_node_id()
        attempts = HERE / "attempts"
        told = attempts.read_text().split() if attempts.exists() else []
        if self.calls == 1 and "RANK" in os.environ:
            attempts.write_text(" ".join([*told, node]))
            if len(told) < 2:
                raise RuntimeError("once" if not told else "and once more")
"""


def write(tmp_path: Path, datasets: tuple[str, str], name: str, fault: str, **more: Any) -> Path:
    job = yaml.safe_load(job_text(datasets, tmp_path, name))
    job["model"] = {"name": "faults:Net", "config": {"fault": fault}}
    job["schedule"]["total_steps"] = STEPS
    job["checkpoint"] = {"every_steps": 100}
    job["tracking"] = {"uri": None}
    job["resources"] = {"num_workers": 2, **more}
    (tmp_path / "faults.py").write_text(FAULTS)
    path = tmp_path / f"{name}.yaml"
    path.write_text(yaml.safe_dump(job))
    return path


def train(job: Path, program: list[str] = CLI) -> tuple[int, str, RunDirectory]:
    done = subprocess.run(
        [*program, "pretrain", str(job)],
        cwd=job.parent,
        env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "400"},
        capture_output=True,
        text=True,
    )
    said = " ".join((done.stdout + done.stderr).split())
    return done.returncode, said, RunDirectory(job.parent / "runs" / job.stem)


def kinds(run: RunDirectory) -> list[str]:
    return [event["kind"] for event in run.events()]


@pytest.mark.ray
@pytest.mark.timeout(600)
def test_an_error_that_comes_twice_alike_ends_the_run_with_its_place(
    datasets: tuple[str, str], tmp_path: Path
) -> None:
    status, said, run = train(write(tmp_path, datasets, "always", "always"))
    assert status == 1
    assert kinds(run).count("restarting") == 1  # of three that health.max_failures permits
    assert "starting them again, restart 1 of 3" in said
    assert "twice the same, so another try cannot help" in said
    line = 1 + FAULTS[: FAULTS.index("mat1 and mat2")].count("\n")
    traceback = run.path / "failures" / "2-rank-1.txt"
    place = f"in step {run.last_step() + 1}, at faults.py:{line} in always; traceback: {traceback}"
    assert (
        f"RuntimeError: mat1 and mat2 cannot be multiplied (rank 1 on {os.uname().nodename}" in said
    )
    assert place in said
    assert place in run.status()["cause"]
    assert traceback.read_text().endswith("RuntimeError: mat1 and mat2 cannot be multiplied\n")


@pytest.mark.ray
@pytest.mark.timeout(600)
def test_a_group_that_is_gone_is_a_lost_peer_and_the_run_goes_on(
    datasets: tuple[str, str], tmp_path: Path
) -> None:
    status, said, run = train(write(tmp_path, datasets, "torn", "once_torn_down"))
    assert status == 0, said
    assert [m["step"] for m in run.metrics()] == list(range(1, STEPS + 1))
    assert kinds(run).count("restarting") == 1
    status, said, alone = train(
        write(tmp_path, datasets, "undisturbed", "", launcher="none"), torchrun(2)
    )
    assert status == 0, said
    one, two = (CheckpointStore(r.checkpoint_uri).load_named(STEPS, "") for r in (run, alone))
    assert one.keys() == two.keys()
    assert [name for name in one if not torch.equal(one[name], two[name])] == []


@pytest.mark.ray
@pytest.mark.timeout(600)
def test_a_permanent_error_ends_the_run_without_a_restart(
    datasets: tuple[str, str], tmp_path: Path
) -> None:
    status, said, run = train(write(tmp_path, datasets, "damaged", "damaged"))
    assert status == 1
    assert "restarting" not in kinds(run)
    assert "DatasetError: flow.zarr: shard 3 is damaged (rank 1 on" in said
    assert kinds(run).count("worker_failed") >= 1


TWO_NODES = """
import json, subprocess, sys
from ray.cluster_utils import Cluster

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
cluster.add_node(num_cpus=1)
try:
    text = open(sys.argv[1]).read().replace("ADDRESS", cluster.address)
    open(sys.argv[1], "w").write(text)
    done = subprocess.run([sys.executable, "-m", "pelagos.cli.main", "pretrain", sys.argv[1]])
finally:
    cluster.shutdown()
sys.exit(done.returncode)
"""


@pytest.mark.ray
@pytest.mark.timeout(600)
def test_a_node_that_failed_twice_gets_no_worker(datasets: tuple[str, str], tmp_path: Path) -> None:
    settings = {"num_workers": 1, "ray_address": "ADDRESS"}
    job = write(tmp_path, datasets, "nodes", "bad_node", **settings)
    path = os.pathsep.join([str(tmp_path), *sys.path])
    done = subprocess.run(
        [sys.executable, "-c", TWO_NODES, str(job)],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    run = RunDirectory(tmp_path / "runs" / "nodes")
    first, second, third = (tmp_path / "attempts").read_text().split()
    restarts = [e for e in run.events() if e["kind"] == "restarting"]
    if first == second:  # Ray packs workers where the first was
        assert third != first
        assert restarts[1]["avoided_nodes"] == [first]
    assert json.dumps(restarts[0]["avoided_nodes"]) == "[]"
    assert len(restarts) == 2
