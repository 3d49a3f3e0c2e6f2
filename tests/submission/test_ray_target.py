"""Submission to a real Ray cluster of several nodes: conformance, chain, priorities, lost driver."""

import os
import re
import signal
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
import yaml
from tests.submission.conftest import STEPS, Job, RayServer, conform, finish, send, wait_for

from pelagos.infra.clusters import ClusterError, open_cluster
from pelagos.jobs import submit
from pelagos.jobs.submission import following
from pelagos.platform.config.clusters import find_cluster

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]
Clusters = Callable[..., None]


@pytest.fixture
def lab(ray_server: RayServer, clusters: Clusters, tmp_path: Path) -> Path:
    clusters(lab=ray_server.config(tmp_path / "storage"))
    return tmp_path / "storage"


def test_conformance_on_ray(lab: Path, conformance_job: Job) -> None:
    found = conform(conformance_job, "lab", "conforms")
    kinds = [e["kind"] for e in found.record.events()]
    assert kinds.count("running") == 2


def test_pretrain_finetune_evaluate_by_one_submit(
    lab: Path, conformance_job: Job, tmp_path: Path
) -> None:
    tree = yaml.safe_load(conformance_job.path.read_text())
    for key in ("model", "runs_dir"):
        del tree[key]
    tree |= {"job": "finetune", "name": "tuned", "source": {"run": "reference"}}
    tree["resources"] = {"num_workers": 1}
    tree["schedule"] = {"total_steps": 3}
    second, third = tmp_path / "finetune.yaml", tmp_path / "evaluate.yaml"
    second.write_text(yaml.safe_dump(tree))
    third.write_text(
        yaml.safe_dump(
            {"job": "evaluate", "run": "tuned", "max_trajectories": 1, "tracking": False}
        )
    )
    files = [str(conformance_job.path), str(second), str(third)]
    names = submit.submit(submit.plan(files, "lab", (), submit.Options()))
    assert names == ["reference", "tuned", "tuned-evaluation"]
    runs = [following.find(name) for name in names]
    wait_for(runs[1], lambda s: s.reason == "after reference")
    for run in runs:
        finish(run)
    for before, after in pairwise(runs):
        end = before.record.events()[-1]["time"]
        assert next(e["time"] for e in after.record.events() if e["kind"] == "started") > end
    (source,) = [e for e in following.run_directory(runs[1]).events() if e["kind"] == "source"]
    assert (source["run"], source["step"]) == ("reference", STEPS)
    assert (lab / "runs/tuned/evaluation/test/report.html").exists()


@pytest.mark.targets
def test_a_killed_driver_is_started_again_and_loses_nothing(
    lab: Path, conformance_job: Job
) -> None:
    found = send(conformance_job.path, "lab", "name=killed", "checkpoint.every_steps=3")
    state = wait_for(found, lambda s: s.state == "running")
    match = re.search(r"process (\d+)", state.where)
    assert match
    os.kill(int(match[1]), signal.SIGKILL)
    finish(found)
    events = found.record.events()
    (retried,) = [e for e in events if e["kind"] == "retried"]
    assert retried["cause_kind"] == "node lost"
    metrics = following.run_directory(found).metrics()
    assert [m["loss"] for m in metrics] == conformance_job.losses


@pytest.mark.targets
def test_what_needs_the_whole_cluster_waits_its_turn_by_priority(
    lab: Path, conformance_job: Job
) -> None:
    first = send(conformance_job.path, "lab", "name=first")
    wait_for(first, lambda s: s.state in ("starting", "running"))
    later = send(conformance_job.path, "lab", "name=later")
    urgent = send(conformance_job.path, "lab", "name=urgent", priority=10)
    state = wait_for(later, lambda s: bool(s.reason))
    assert "at once" in state.reason or "behind" in state.reason
    following.stop(later, now=False)
    wait_for(later, lambda s: s.state == "cancelled")
    finish(urgent)
    assert first.record.state().state == "finished"


def test_a_wrong_token_and_a_silent_address_are_told_apart(
    ray_server: RayServer, clusters: Clusters, tmp_path: Path
) -> None:
    wrong = tmp_path / "wrong"
    wrong.touch(mode=0o600)
    wrong.write_text("0" * 64)
    readable = tmp_path / "readable"
    readable.write_text("token")
    readable.chmod(0o644)
    good = ray_server.config(tmp_path / "storage")
    clusters(
        refused={**good, "token_file": str(wrong)},
        open={**good, "token_file": str(readable)},
        away={**good, "address": "http://127.0.0.1:9"},
    )
    for name, message in (
        ("refused", "refused the token from .*wrong"),
        ("open", "others can read it. chmod 600"),
        ("away", "cannot be reached at http://127.0.0.1:9: no answer"),
    ):
        cluster = open_cluster(name, find_cluster(name))
        (check,) = cluster.check()
        assert not check.ok
        assert re.search(message, check.seen)
        with pytest.raises(ClusterError, match=message):
            cluster.state({"submission_id": "x"})


def test_a_submission_that_cannot_be_handed_over_is_recorded_as_failed(
    ray_server: RayServer, clusters: Clusters, tmp_path: Path, conformance_job: Job
) -> None:
    clusters(away={**ray_server.config(tmp_path / "storage"), "address": "http://127.0.0.1:9"})
    with pytest.raises(ClusterError, match="cannot be reached"):
        send(conformance_job.path, "away", "name=lost")
    state = following.find("lost").record.state()
    assert (state.state, state.cause_kind) == ("failed", "infrastructure")
