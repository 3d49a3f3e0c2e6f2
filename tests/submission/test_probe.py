"""`pelagos doctor --cluster`: what the nodes report, and what is made of it."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.submission.conftest import RayServer

from pelagos.infra.clusters import ClusterConfig
from pelagos.jobs.probe_cluster import probe_cluster
from pelagos.jobs.submission.node_probe import NodeReport, checks_of, storage_problem
from pelagos.platform.config.clusters import find_cluster
from pelagos.platform.config.measure import ProbeJob

GOOD = NodeReport("a", {"python": "3.11.7", "torch": "2.13.0"}, 8, 1, "")
JOB = ProbeJob(name="probe", num_nodes=2, cpus_per_node=8, gpus_per_node=1)


def test_nodes_that_agree_are_fine() -> None:
    checks = checks_of([GOOD, replace(GOOD, host="b", clock_offset_seconds=0.4)], JOB)
    assert [check.name for check in checks if not check.ok] == []


@pytest.mark.parametrize(
    ("changed", "name", "seen"),
    [
        (
            {"versions": {"python": "3.11.7", "torch": "2.11.0"}},
            "versions",
            "2.11.0 on b, 2.13.0 on a",
        ),
        ({"versions": {"python": "3.11.7"}}, "versions", "torch missing on b"),
        ({"clock_offset_seconds": -3.0}, "clocks", r"at most 3.000 s apart \(b by -3.0 s\)"),
        ({"storage_problem": "refused"}, "storage on nodes", "b: refused"),
        ({"gpus": 0}, "devices on nodes", "b has 8 CPU and 0 GPU"),
    ],
)
def test_the_node_that_differs_is_named(changed: dict[str, Any], name: str, seen: str) -> None:
    import re

    checks = checks_of([GOOD, replace(GOOD, host="b", **changed)], JOB)
    (bad,) = [check for check in checks if not check.ok]
    assert bad.name == name
    assert re.search(seen, bad.seen)
    assert bad.remedy


def test_missing_nodes_are_counted() -> None:
    (bad,) = [check for check in checks_of([GOOD], JOB) if not check.ok]
    assert (bad.name, bad.seen) == ("nodes", "1: a")


def test_a_head_that_takes_no_work_needs_no_devices_and_does_not_count() -> None:
    head = replace(GOOD, host="head", cpus=2, gpus=0, computes=False)
    checks = {c.name: c for c in checks_of([head, GOOD, replace(GOOD, host="b")], JOB)}
    assert [name for name, check in checks.items() if not check.ok] == []
    assert checks["nodes"].seen == "2: a, b; in addition head, which takes no work"
    short = {c.name: c for c in checks_of([head, GOOD], JOB)}
    assert not short["nodes"].ok


def test_storage_is_written_and_read(tmp_path: Path) -> None:
    assert storage_problem(str(tmp_path / "storage"), None) == ""
    (tmp_path / "file").write_text("not a directory")
    assert "file" in storage_problem(str(tmp_path / "file" / "below"), None)


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_every_node_of_a_ray_cluster_is_looked_at(
    ray_server: RayServer, clusters: Callable[..., None], tmp_path: Path
) -> None:
    clusters(lab=ray_server.config(tmp_path / "storage"))
    config: ClusterConfig = find_cluster("lab")
    checks = {check.name: check for check in probe_cluster("lab", config, 1)}
    assert [name for name, check in checks.items() if not check.ok] == []
    assert checks["nodes"].seen.startswith("2: ")
    assert "which takes no work" in checks["nodes"].seen  # the head, which is looked at as well
    assert "written and read from 3 node(s)" in checks["storage on nodes"].seen
    assert "over 2 nodes" in checks["collective"].seen
    assert checks["versions"].seen.startswith("python 3.")
