"""RayJob manifests against the published schema, and the verbs against a stand-in for kubectl.

`kubectl` is a recording stub in these tests, which checks every manifest that it is given against
KubeRay's schema, as the server would; test_kubernetes_server.py has a real API server. The schema is
that of KubeRay 1.7.0 (ray-operator/config/crd/bases/ray.io_rayjobs.yaml, Apache-2.0), without its
descriptions and without `status`.
"""

from __future__ import annotations

import functools
import gzip
import hashlib
import json
import os
import shlex
import stat
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from pelagos.infra.clusters import ClusterError, Code, Needs, Submission
from pelagos.infra.clusters.base import BOOTSTRAP
from pelagos.infra.clusters.kubernetes import KubernetesCluster, object_name
from pelagos.infra.clusters.schema import KubernetesConfig

SCHEMA = Path(__file__).parents[1] / "fixtures" / "rayjob-v1-schema.json.gz"
CODE = Code("s3://b/code/w.whl", "a" * 64, "s3://b/code/f.zip", "b" * 64)
CONFIG: dict[str, Any] = {
    "kind": "kubernetes",
    "storage": "s3://bucket/pelagos",
    "image": "registry.example.org/pelagos:1",
    "namespace": "science",
    "node": {"cpus": 64, "gpus": 8, "memory_bytes": 10**12, "gpu_type": "h100"},
    "max_nodes": 4,
    "secret_name": "pelagos-store",
    "queue_name": "training",
    "priority_classes": {0: "normal", 10: "high"},
    "node_selector": {"gpu": "h100"},
    "spot": {"toleration_key": "spot"},
    "service_account": "pelagos",
}


@functools.cache
def strict_schema() -> jsonschema.protocols.Validator:
    """The schema, refusing keys it does not name: the server would drop them without a word."""

    def close(node: Any) -> Any:
        if isinstance(node, list):
            return [close(item) for item in node]
        if not isinstance(node, dict):
            return node
        closed = {key: close(value) for key, value in node.items()}
        is_open = node.get("x-kubernetes-preserve-unknown-fields")
        if isinstance(node.get("properties"), dict) and not is_open:
            closed.setdefault("additionalProperties", False)
        if node.get("x-kubernetes-int-or-string"):
            closed.pop("type", None)
        return closed

    schema: dict[str, Any] = close(json.loads(gzip.decompress(SCHEMA.read_bytes())))
    schema["properties"]["metadata"] = {"type": "object"}
    kind = jsonschema.validators.validator_for(schema)
    kind.check_schema(schema)
    return kind(schema)


def validate(manifest: dict[str, Any]) -> None:
    error = jsonschema.exceptions.best_match(strict_schema().iter_errors(manifest))
    if error is not None:
        raise error


def submission(run: str = "ns-pretrain", workers: int = 16, priority: int = 0) -> Submission:
    return Submission(
        run=run,
        storage="s3://bucket/pelagos",
        attempt=1,
        needs=Needs(workers, 8, 1),
        code=CODE,
        priority=priority,
        environment={"AWS_REGION": "eu-1"},
    )


def cluster(**changes: Any) -> KubernetesCluster:
    return KubernetesCluster("k8s", KubernetesConfig.model_validate({**CONFIG, **changes}))


def ray_job(**changes: Any) -> dict[str, Any]:
    return cluster(**changes).manifests(submission())[-1]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"spot": None, "queue_name": None, "secret_name": None, "node_selector": {}},
        {"node": None, "priority_classes": {}, "service_account": None, "queue_name": None},
    ],
)
def test_the_manifest_is_valid_under_the_published_schema(changes: dict[str, Any]) -> None:
    validate(ray_job(**changes))


def test_the_schema_is_strict_enough_to_catch_a_slip() -> None:
    manifest = ray_job()
    manifest["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["minReplica"] = 1
    with pytest.raises(jsonschema.ValidationError, match="minReplica"):
        validate(manifest)
    manifest = ray_job()
    manifest["spec"]["backoffLimit"] = "2"
    with pytest.raises(jsonschema.ValidationError, match="is not of type 'integer'"):
        validate(manifest)


def test_the_manifest_holds_what_the_cluster_is_configured_for() -> None:
    job = ray_job()
    assert job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "training"
    spec = job["spec"]
    assert spec["suspend"] is True
    assert spec["shutdownAfterJobFinishes"] is True
    (group,) = spec["rayClusterSpec"]["workerGroupSpecs"]
    assert group["replicas"] == 2  # 16 workers, 8 GPUs on a node
    pod = group["template"]["spec"]
    (container,) = pod["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "8"
    assert container["resources"]["limits"]["cpu"] == "64"
    assert container["envFrom"] == [{"secretRef": {"name": "pelagos-store"}}]
    assert {"name": "AWS_REGION", "value": "eu-1"} in container["env"]
    assert {t["key"] for t in pod["tolerations"]} == {"spot"}
    assert pod["volumes"][0]["emptyDir"]["medium"] == "Memory"
    assert pod["nodeSelector"] == {"gpu": "h100"}
    head = spec["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    assert "tolerations" not in head  # the driver does not run on nodes that are taken away
    assert "nvidia.com/gpu" not in head["containers"][0]["resources"]["limits"]


def test_pods_are_asked_for_on_demand_but_not_under_kueue() -> None:
    """Kueue's webhook refuses a RayJob whose cluster would change its size."""
    fixed = ray_job()["spec"]["rayClusterSpec"]
    assert "enableInTreeAutoscaling" not in fixed
    (group,) = fixed["workerGroupSpecs"]
    assert [group[f"{name}eplicas"] for name in ("r", "minR", "maxR")] == [2, 2, 2]
    growing = ray_job(queue_name=None)["spec"]["rayClusterSpec"]
    assert growing["enableInTreeAutoscaling"] is True
    (group,) = growing["workerGroupSpecs"]
    assert [group[f"{name}eplicas"] for name in ("r", "minR", "maxR")] == [0, 0, 2]


@pytest.mark.parametrize(
    ("priority", "name"), [(-1, None), (0, "normal"), (9, "normal"), (10, "high")]
)
def test_the_priority_class_is_the_highest_not_above(priority: int, name: str | None) -> None:
    job = cluster().manifests(submission(priority=priority))[-1]
    pod = job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["template"]["spec"]
    assert pod.get("priorityClassName") == name


def test_a_job_larger_than_the_cluster_is_refused_with_the_arithmetic() -> None:
    with pytest.raises(
        ClusterError,
        match=r"40 workers of 8 CPU and 1 GPU at 8 per node take 5 nodes\. The cluster has at most 4",
    ):
        cluster().check_needs(Needs(40, 8, 1))
    with pytest.raises(
        ClusterError, match="one worker needs 128 CPU and 1 GPU, but one node has 64"
    ):
        cluster().check_needs(Needs(1, 128, 1))


RUN_NAMES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", fullmatch=True)


@given(RUN_NAMES, RUN_NAMES)
def test_names_are_legal_in_kubernetes_and_do_not_meet(first: str, second: str) -> None:
    names = [object_name(run, 1) for run in (first, second)]
    for name in names:
        assert len(name) <= 47
        assert name[0].isalpha()
        assert set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")
    assert (names[0] == names[1]) == (first == second)


@given(st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=60))
def test_a_hostile_storage_prefix_stays_one_argument(text: str) -> None:
    """KubeRay puts the entry point into a shell's script, and Ray joins its words for another shell
    by the rules of Windows, which know no single quotes."""
    hostile = Submission(run="run", storage=f"s3://b/{text}", attempt=1, needs=Needs(), code=CODE)
    rendered = cluster().render(hostile)
    entry_point = yaml.safe_load(rendered["rayjob.yaml"])["spec"]["entrypoint"]
    handed = subprocess.list2cmdline(shlex.split(entry_point))
    assert shlex.split(handed) == shlex.split(entry_point)
    assert entry_point == ray_job()["spec"]["entrypoint"]
    files = yaml.safe_load(rendered["configmap.yaml"])["data"]
    mounted = {f"/pelagos/{name}": content for name, content in files.items()}
    program, option, place = shlex.split(handed)[1:]
    assert "--arguments" in mounted[program]
    assert option == "--arguments"
    assert json.loads(mounted[place])[-4:-1] == [f"s3://b/{text}", "run", "1"]


def test_bootstrap_reads_its_arguments_from_the_file(tmp_path: Path) -> None:
    for part in ("w.whl", "f.zip"):
        with zipfile.ZipFile(tmp_path / part, "w") as archive:
            archive.writestr("pelagos/__init__.py", "")
            archive.writestr("shown.py", "import sys; print(sys.argv[1:])")
    digests = [hashlib.sha256((tmp_path / n).read_bytes()).hexdigest() for n in ("w.whl", "f.zip")]
    code = Code(str(tmp_path / "w.whl"), digests[0], str(tmp_path / "f.zip"), digests[1])
    handed = Submission("run", "s3://b/$(id) 'x'", 2, Needs(), code)
    arguments = ["--module", "shown", *handed.arguments()]
    (tmp_path / "arguments.json").write_text(json.dumps(arguments))
    done = subprocess.run(
        [sys.executable, str(BOOTSTRAP), "--arguments", str(tmp_path / "arguments.json")],
        env={**os.environ, "PELAGOS_CACHE": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip() == str(["s3://b/$(id) 'x'", "run", "2", "DIGEST"]), done.stderr


STUB = """\
#!{python}
import json, pathlib, sys
place = pathlib.Path({place!r})
with (place / "calls").open("a") as calls:
    calls.write(json.dumps(sys.argv[1:]) + "\\n")
arguments = [a for a in sys.argv[1:] if not a.startswith(("--request-timeout", "--context"))]
verb = arguments[0]
if (place / "down").exists():
    sys.exit("Unable to connect to the server: dial tcp 10.0.0.1:6443: i/o timeout")
if verb == "apply":
    manifest = json.load(sys.stdin)
    (place / (manifest["kind"] + ".json")).write_text(json.dumps(manifest))
    manifest["metadata"]["uid"] = "uid-of-" + manifest["kind"]
    if "--output=json" in arguments:
        print(json.dumps(manifest))
elif verb == "patch" and (place / "unpatchable").exists():
    sys.exit("Error from server (Forbidden)")
elif verb == "get" and arguments[1] == "customresourcedefinition":
    print("{{" + ('"authOptions": {{}}' if (place / "new").exists() else "") + "}}")
elif verb == "get" and arguments[1] == "rayjobs.ray.io":
    status = place / "status"
    if not status.exists():
        sys.exit('Error from server (NotFound): rayjobs.ray.io "x" not found')
    print(json.dumps({{"status": json.loads(status.read_text())}}))
elif verb == "logs":
    print("step 1")
"""


@pytest.fixture
def kubectl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in for kubectl (see the module's first lines); returns where it keeps its notes."""
    program = tmp_path / "bin" / "kubectl"
    program.parent.mkdir()
    program.write_text(STUB.format(python=sys.executable, place=str(tmp_path)))
    program.chmod(program.stat().st_mode | stat.S_IEXEC)
    monkeypatch.setenv("PATH", str(program.parent), prepend=":")
    return tmp_path


def test_the_verbs_speak_kubectl(kubectl: Path) -> None:
    target = cluster(context="lab")
    handle = target.start(submission())
    assert handle == {"name": "ns-pretrain-1"}
    handle = target.checked_handle("ns-pretrain", "s3://bucket/here", handle)
    assert handle == {"name": "ns-pretrain-1", "namespace": "science"}
    for forged in ("other-1", "ns-pretrain", "ns-pretrain-0", "--all", "ns-pretrain-1 -A"):
        with pytest.raises(ClusterError, match="this cluster never gives that name"):
            target.checked_handle("ns-pretrain", "s3://bucket/here", {"name": forged})
    validate(json.loads((kubectl / "RayJob.json").read_text()))
    assert (
        "def main" in json.loads((kubectl / "ConfigMap.json").read_text())["data"]["bootstrap.py"]
    )
    assert target.state(handle).state == "ended"  # it is not there (any more)
    states: list[tuple[dict[str, str], str, bool | None]] = [
        ({}, "waiting", None),
        ({"jobDeploymentStatus": "Suspended"}, "waiting", None),
        ({"jobDeploymentStatus": "Running", "jobStatus": "RUNNING"}, "running", None),
        ({"jobDeploymentStatus": "Complete", "jobStatus": "SUCCEEDED"}, "ended", True),
        ({"jobDeploymentStatus": "Failed", "jobStatus": "FAILED"}, "ended", False),
    ]
    for status, expected, succeeded in states:
        (kubectl / "status").write_text(json.dumps(status))
        seen = target.state(handle)
        if expected == "ended":
            assert (seen.state, seen.succeeded) == (expected, succeeded)
        else:
            assert seen.state == expected
    assert target.logs(handle) == "step 1\n"
    target.cancel(handle)
    calls = [json.loads(line) for line in (kubectl / "calls").read_text().splitlines()]
    assert all(call[0] == "--context=lab" for call in calls)


def calls_of(kubectl: Path) -> list[list[str]]:
    calls = [json.loads(line) for line in (kubectl / "calls").read_text().splitlines()]
    return [[a for a in call if not a.startswith("--request-timeout")] for call in calls]


def test_what_a_run_needs_is_removed_with_it(kubectl: Path) -> None:
    """The parts belong to the RayJob: the server removes them when it removes that."""
    cluster().start(submission())
    kinds = [call[0] for call in calls_of(kubectl)]
    assert kinds == ["apply", "apply", "apply", "patch", "patch"]
    patched = {}
    for call in calls_of(kubectl)[3:]:
        assert call[3:5] == ["--namespace", "science"]
        patch = json.loads(call[-1].removeprefix("--patch="))
        patched[call[1], call[2]] = patch["metadata"]["ownerReferences"]
    owner = {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "name": "ns-pretrain-1",
        "uid": "uid-of-RayJob",
    }
    assert patched == {
        ("configmap", "ns-pretrain-1-bootstrap"): [owner],
        ("networkpolicy", "ns-pretrain-1"): [owner],
    }
    (kubectl / "unpatchable").touch()
    with pytest.raises(ClusterError, match="kubectl patch: .*Forbidden"):
        cluster().start(submission())
    assert calls_of(kubectl)[-1][:3] == ["delete", "rayjobs.ray.io", "ns-pretrain-1"]


def test_an_operator_without_tokens_is_found(kubectl: Path) -> None:
    check = {c.name: c for c in cluster().check()}["tokens for Ray"]
    assert not check.ok
    assert "1.5.1 or newer" in check.remedy
    (kubectl / "new").touch()
    assert {c.name: c for c in cluster().check()}["tokens for Ray"].ok


def test_an_api_server_that_is_away_is_named(kubectl: Path) -> None:
    (kubectl / "down").touch()
    target = cluster()
    with pytest.raises(ClusterError, match=r"k8s: kubectl apply: Unable to connect to the server"):
        target.start(submission())
    assert not target.check()[0].ok
