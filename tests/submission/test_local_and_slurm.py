"""Submission to this machine and to a real Slurm; secrets stay out of everything that is written."""

import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import fsspec
import pytest
from tests.conftest import S3Server
from tests.submission.conftest import Job, conform, finish, send, wait_for

from pelagos.infra.clusters import ClusterError
from pelagos.jobs import submit
from pelagos.jobs.submission import following, start_again
from pelagos.platform.records.runs import RunError

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]
Clusters = Callable[..., None]


@pytest.mark.targets
def test_conformance_on_this_machine(
    clusters: Clusters, tmp_path: Path, conformance_job: Job
) -> None:
    clusters(here={"kind": "local", "storage": str(tmp_path / "storage")})
    found = conform(conformance_job, "here", "conforms")
    with pytest.raises(RunError, match="has finished; `pelagos clone conforms NEW`"):
        start_again.resume(found, None, (), submit.Options())
    described = following.describe(found)
    assert (described.step, described.state) == (12, "finished")
    assert 0 < (described.goodput or 0) <= 1
    with pytest.raises(ValueError, match="run 'conforms' already exists"):
        send(conformance_job.path, "here", "name=conforms")


@pytest.mark.targets
def test_a_killed_driver_is_lost_until_its_owner_recovers_it(
    clusters: Clusters, tmp_path: Path, conformance_job: Job
) -> None:
    clusters(here={"kind": "local", "storage": str(tmp_path / "storage")})
    found = send(conformance_job.path, "here", "name=killed", "checkpoint.every_steps=3")
    state = wait_for(found, lambda s: s.state == "running")
    os.killpg(state.handle["pid"], signal.SIGKILL)
    state = following.wait(found, 60)
    assert (state.state, state.restarts) == ("lost", 0)
    assert start_again.recover(found).restarts == 1
    finish(found)
    metrics = following.run_directory(found).metrics()
    assert [m["loss"] for m in metrics] == conformance_job.losses


@pytest.mark.s3
def test_conformance_with_object_storage_and_no_secret_written(
    clusters: Clusters,
    tmp_path: Path,
    conformance_job: Job,
    s3_server: S3Server,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Records, logs, checkpoints in S3; the keys come from a private file on the cluster."""
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    secrets = tmp_path / "outside" / "secrets"
    secrets.parent.mkdir()
    secrets.touch(mode=0o600)
    secrets.write_text("MLFLOW_TRACKING_PASSWORD=planted-password\nOTHER=planted-other\n")
    scratch = tmp_path / "scratch"
    monkeypatch.setenv("PELAGOS_SCRATCH", str(scratch))
    storage = s3_server.new_uri()
    clusters(
        here={
            "kind": "local",
            "storage": storage,
            "endpoint_url": s3_server.endpoint,
            "secrets_file": str(secrets),
        }
    )
    found = conform(conformance_job, "here", "remote", f"tracking.uri=sqlite:///{scratch}/ml.db")
    log = "".join(following.follow_logs(found, follow=False))
    assert "checkpoint of step 12" in log
    filesystem = fsspec.filesystem("s3", **s3_server.storage_options)
    objects = filesystem.find(storage.removeprefix("s3://"))
    assert any("/checkpoints/remote/" in name for name in objects)
    planted = [b"planted-password", b"planted-other", s3_server.secret_key.encode()]
    texts = {name: filesystem.cat_file(name) for name in objects}
    for directory in (scratch, tmp_path / "cache"):
        texts |= {str(p): p.read_bytes() for p in directory.rglob("*") if p.is_file()}
    assert len(texts) > 20
    assert [name for name, text in texts.items() if any(p in text for p in planted)] == []
    # a run that has finished goes on as a branch from its last checkpoint, for longer
    longer = ["schedule.total_steps=14", "optimizer.lr=1e-4"]
    start_again.resume(found, None, longer, submit.Options(), from_step="last")
    assert finish(found).attempt == 3
    directory = following.run_directory(found)
    assert [m["step"] for m in directory.metrics()] == list(range(1, 15))
    assert [m["loss"] for m in directory.metrics()][:12] == conformance_job.losses
    assert [e["step"] for e in directory.events() if e["kind"] == "branched"] == [12]


@pytest.mark.targets
def test_a_dependency_that_failed_cancels_what_comes_after(
    clusters: Clusters, tmp_path: Path, conformance_job: Job
) -> None:
    clusters(here={"kind": "local", "storage": str(tmp_path / "storage")})
    # more workers than the batch has samples of: refused by the run itself, not by submit
    broken = send(conformance_job.path, "here", "name=broken", "optimizer.lr=1e30")
    after = send(conformance_job.path, "here", "name=after", after=("broken",))
    state = wait_for(broken, lambda s: s.state == "failed")
    assert state.cause_kind == "user error"
    assert state.restarts == 0
    state = wait_for(after, lambda s: s.state == "cancelled")
    assert state.reason == "broken had to finish first, but is failed"


@pytest.fixture
def hpc(real_slurm: None, clusters: Clusters, tmp_path: Path) -> Path:
    import sys

    clusters(
        hpc={
            "kind": "slurm",
            "storage": str(tmp_path / "storage"),
            "venv": str(Path(sys.executable).parent.parent),
            "partition": "debug",
            "time_limit": "00:20:00",
            "notice_seconds": 60,
            "node": {"cpus": 2},
            "environment": {"OMP_NUM_THREADS": "1"},
        }
    )
    return tmp_path / "storage"


def test_conformance_on_slurm(hpc: Path, conformance_job: Job) -> None:
    conform(conformance_job, "hpc", "conforms")


@pytest.mark.targets
def test_a_notice_before_the_limit_saves_requeues_and_continues(
    hpc: Path, conformance_job: Job
) -> None:
    """What Slurm does `notice_seconds` before the time limit, done by hand: the same signal."""
    found = send(conformance_job.path, "hpc", "name=limited")
    wait_for(found, lambda s: s.state == "running")
    job_id = found.record.state().handle["job_id"]
    subprocess.run(["scancel", "--signal=USR1", "--batch", job_id], check=True)
    # Slurm holds a requeued job back for two minutes
    wait_for(found, lambda s: s.state == "finished", 480)
    events = found.record.events()
    assert [e["kind"] for e in events].count("preempted") == 1
    metrics = following.run_directory(found).metrics()
    assert [m["loss"] for m in metrics] == conformance_job.losses
    directory = following.run_directory(found)
    assert sum(e["kind"] == "resumed" for e in directory.events()) == 1


@pytest.mark.targets
def test_slurm_keeps_the_queue_and_the_verbs_see_it(hpc: Path, conformance_job: Job) -> None:
    first = send(conformance_job.path, "hpc", "name=first")
    second = send(conformance_job.path, "hpc", "name=second", after=("first",))
    _, seen = following.current_state(second)
    assert "pending" in seen
    following.stop(first, now=True)
    wait_for(first, lambda s: s.state in ("stopped", "cancelled"))
    # Slurm drops what depended on a job that did not succeed; looking at it records nothing
    wait_for(second, lambda s: s.state == following.LOST)
    state = start_again.recover(second)
    reason = f"first had to finish first, but is {first.record.state().state}"
    assert (state.state, state.reason) == ("cancelled", reason)


def test_an_unknown_partition_is_refused_with_those_there_are(
    hpc: Path, conformance_job: Job, clusters: Clusters, tmp_path: Path
) -> None:
    clusters(hpc={"kind": "slurm", "storage": str(tmp_path / "storage"), "partition": "gpus"})
    with pytest.raises(ClusterError, match="no partition 'gpus'; it has debug, urgent"):
        send(conformance_job.path, "hpc", "name=misplaced")
    assert following.find("misplaced").record.state().state == "failed"
