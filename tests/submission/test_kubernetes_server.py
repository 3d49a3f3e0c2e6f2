"""Submission to a real Kubernetes API server; no node runs the pods, and no operator the RayJob."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import S3Server, free_ports
from tests.submission import kubernetes_server
from tests.submission.conftest import send
from tests.submission.kubernetes_server import KubernetesServer
from tests.submission.test_kubernetes import CONFIG, cluster, submission

from pelagos.infra.clusters import ClusterError
from pelagos.infra.clusters.schema import KubernetesConfig
from pelagos.infra.services.render import render
from pelagos.jobs.submission import following
from pelagos.jobs.submission.handing_over import submission_of

pytestmark = [pytest.mark.targets, pytest.mark.slow, pytest.mark.timeout(3600)]


@pytest.fixture(scope="module")
def running_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KubernetesServer]:
    folder = tmp_path_factory.mktemp("kubernetes")
    (folder / "build").mkdir()
    if problem := kubernetes_server.install(folder / "build"):
        pytest.skip(problem)
    with kubernetes_server.kubernetes(folder, free_ports(3)) as server:
        yield server


@pytest.fixture
def server(running_server: KubernetesServer, monkeypatch: pytest.MonkeyPatch) -> KubernetesServer:
    monkeypatch.setenv("KUBECONFIG", str(running_server.kubeconfig))
    return running_server


def stored(server: KubernetesServer, name: str) -> dict[str, Any]:
    text = server.kubectl("get", "rayjobs.ray.io", name, "--namespace=science", "--output=json")
    found: dict[str, Any] = json.loads(text)
    return found


def changed(sent: Any, kept: Any, path: str = "spec") -> list[str]:
    """What the server dropped or changed; it may add its defaults."""
    if isinstance(sent, dict) and isinstance(kept, dict):
        return [
            line
            for key, value in sent.items()
            for line in changed(value, kept.get(key), f"{path}.{key}")
        ]
    if isinstance(sent, list) and isinstance(kept, list) and len(sent) == len(kept):
        pairs = enumerate(zip(sent, kept, strict=True))
        return [line for i, (a, b) in pairs for line in changed(a, b, f"{path}[{i}]")]
    return [] if sent == kept else [f"{path}: sent {sent}, kept {kept}"]


def set_status(server: KubernetesServer, name: str, **status: str) -> None:
    """Say what the operator would say."""
    path = f"/apis/ray.io/v1/namespaces/science/rayjobs/{name}/status"
    manifest = stored(server, name) | {"status": status}
    server.kubectl("replace", f"--raw={path}", "--filename=-", stdin=json.dumps(manifest))


@pytest.mark.s3
def test_a_run_is_submitted_followed_and_ended(
    server: KubernetesServer,
    clusters: Callable[..., None],
    datasets: tuple[str, str],
    tiny_job_text: Callable[..., str],
    s3_server: S3Server,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    job_file = tmp_path / "job.yaml"
    job_file.write_text(tiny_job_text(datasets, tmp_path, "on-pods"))
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    config = CONFIG | {"storage": s3_server.new_uri(), "endpoint_url": s3_server.endpoint}
    del config["queue_name"]
    config["shared_paths"] = ["/"]
    clusters(k8s=config)
    found = send(job_file, "k8s")
    cluster = found.own_cluster()
    sent = cluster.manifests(  # type: ignore[attr-defined]
        submission_of(found.record, 1, cluster.config)
    )[-1]
    kept = stored(server, "on-pods-1")
    assert changed(sent["spec"], kept["spec"]) == []
    for part in ("configmap/on-pods-1-bootstrap", "networkpolicy/on-pods-1"):
        held = json.loads(server.kubectl("get", part, "--namespace=science", "--output=json"))
        (owner,) = held["metadata"]["ownerReferences"]
        assert (owner["kind"], owner["uid"]) == ("RayJob", kept["metadata"]["uid"])
    state, _ = following.current_state(found)
    assert state.state in ("queued", "starting")
    set_status(server, "on-pods-1", jobDeploymentStatus="Running", jobStatus="RUNNING")
    assert cluster.state(found.handle(state)).state == "running"
    following.stop(found, now=True)
    left = server.kubectl("get", "rayjobs.ray.io", "--namespace=science", "--output=name")
    assert "on-pods" not in left
    assert found.record.state().has_ended


def test_the_server_validates_what_it_is_given(server: KubernetesServer) -> None:
    manifest = cluster().manifests(submission("typed"))[-1]
    manifest["spec"]["backoffLimit"] = "two"
    with pytest.raises(AssertionError, match="backoffLimit"):
        server.kubectl("apply", "--validate=false", "--filename=-", stdin=json.dumps(manifest))


def test_a_cluster_is_checked_as_the_one_who_asks(server: KubernetesServer) -> None:
    checks = {c.name: c for c in cluster(context="admin").check()}
    assert all(check.ok for check in checks.values())
    guest = {c.name: c for c in cluster(context="guest").check()}
    assert guest["api server"].ok
    assert not guest["permission to create RayJobs"].ok
    assert not guest["permission to create NetworkPolicies"].ok
    with pytest.raises(ClusterError, match=r'(?s)k8s: kubectl apply: .*User "guest" cannot'):
        cluster(context="guest").start(submission("refused"))
    with pytest.raises(ClusterError, match="Unauthorized|must be logged in|credentials"):
        cluster(context="stranger").start(submission("refused"))
    with pytest.raises(ClusterError, match=r'namespaces "nowhere" not found'):
        cluster(namespace="nowhere").start(submission("refused"))
    with pytest.raises(ClusterError, match='context "elsewhere" does not exist'):
        cluster(context="elsewhere").start(submission("refused"))


def test_the_manifests_of_mlflow_are_accepted(server: KubernetesServer) -> None:
    config = KubernetesConfig.model_validate(CONFIG)
    text = render("mlflow", "k8s", config)["mlflow.yaml"]
    said = server.kubectl("apply", "--dry-run=server", "--filename=-", stdin=text)
    assert len(said.splitlines()) == 8
    assert all("server dry run" in line for line in said.splitlines())
