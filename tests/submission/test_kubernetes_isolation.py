"""Who reaches the pods of a run on Kubernetes, and what they may do: read as Kubernetes reads it."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest
from tests.submission.test_kubernetes import cluster, ray_job, submission, validate

KUBERAY = {"app.kubernetes.io/component": "kuberay-operator"}
VARIANTS: list[dict[str, Any]] = [
    {},
    {"queue_name": None},
    {"queue_name": None, "service_account": None, "secret_name": None},
]


def pods(**changes: Any) -> dict[str, dict[str, Any]]:
    """Templates of all pods that a run has, by role."""
    spec = ray_job(**changes)["spec"]
    ray = spec["rayClusterSpec"]
    return {
        "head": ray["headGroupSpec"]["template"],
        "worker": ray["workerGroupSpecs"][0]["template"],
        "submitter": spec["submitterPodTemplate"],
    }


@pytest.mark.parametrize("changes", VARIANTS)
def test_every_process_of_ray_wants_a_token_of_the_operators_own_secret(
    changes: dict[str, Any],
) -> None:
    validate(ray_job(**changes))
    assert ray_job(**changes)["spec"]["rayClusterSpec"]["authOptions"] == {"mode": "token"}
    for role, template in pods(**changes).items():
        for container in template["spec"]["containers"]:
            values = {e["name"]: e.get("value") for e in container["env"]}
            # explicit: an operator that drops `authOptions` gives no token, and Ray does not start
            assert values["RAY_AUTH_MODE"] == "token", role
            assert "RAY_AUTH_TOKEN" not in values, role
    # neither the dry run nor the manifests hold a token
    assert "auth_token" not in json.dumps(cluster(**changes).manifests(submission()))
    over = cluster(**changes, environment={"RAY_AUTH_MODE": "disabled"})
    handed = submission()
    handed.environment["RAY_AUTH_MODE"] = "disabled"
    assert '"value": "disabled"' not in json.dumps(over.manifests(handed))


@pytest.mark.parametrize("changes", VARIANTS)
def test_pods_meet_kubernetes_restricted_standard(changes: dict[str, Any]) -> None:
    """https://kubernetes.io/docs/concepts/security/pod-security-standards (Restricted)."""
    for role, template in pods(**changes).items():
        pod = template["spec"]
        allowed = {"configMap", "downwardAPI", "emptyDir", "projected", "secret"}
        assert pod["securityContext"]["runAsNonRoot"] is True, role
        assert pod["securityContext"]["runAsUser"] > 0
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod)
        for volume in pod.get("volumes", ()):
            assert set(volume) - {"name"} <= allowed
        for container in pod["containers"]:
            security = container["securityContext"]
            assert security["allowPrivilegeEscalation"] is False
            assert security["capabilities"] == {"drop": ["ALL"]}
    ray = ray_job(**changes)["spec"]["rayClusterSpec"]
    if "autoscalerOptions" in ray:
        security = ray["autoscalerOptions"]["securityContext"]
        assert security == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    assert pods(run_as_user=4321)["worker"]["spec"]["securityContext"]["runAsUser"] == 4321


@pytest.mark.parametrize("changes", VARIANTS)
def test_only_the_autoscaler_can_use_the_kubernetes_api(changes: dict[str, Any]) -> None:
    scales = "queue_name" in changes
    for role, template in pods(**changes).items():
        pod = template["spec"]
        assert pod["automountServiceAccountToken"] is False
        tokens = [v["name"] for v in pod.get("volumes", ()) if "projected" in v]
        assert tokens == (["autoscaler-token"] if scales and role == "head" else [])
        for container in pod["containers"]:  # the autoscaler's comes from the operator
            mounted = {m["name"] for m in container.get("volumeMounts", ())}
            assert not mounted & set(tokens), role
    options = ray_job(**changes)["spec"]["rayClusterSpec"].get("autoscalerOptions", {})
    path = "/var/run/secrets/kubernetes.io/serviceaccount"  # where client libraries look
    mounts = [(m["name"], m["mountPath"]) for m in options.get("volumeMounts", ())]
    assert mounts == ([("autoscaler-token", path)] if scales else [])
    asked = pods(mount_service_account_token=True)
    assert all(t["spec"]["automountServiceAccountToken"] for t in asked.values())


def matches(selector: dict[str, Any], labels: dict[str, str]) -> bool:
    assert set(selector) <= {"matchLabels"}
    return selector.get("matchLabels", {}).items() <= labels.items()


def reaches(
    policy: dict[str, Any], namespace: str, labels: dict[str, str], port: int, home: str = "science"
) -> bool:
    """Whether a pod may connect, by the rules of networking.k8s.io/v1: one rule, one peer suffices."""
    for rule in policy["spec"]["ingress"]:
        ports = [p["port"] for p in rule.get("ports", ()) if p["protocol"] == "TCP"]
        if ports and port not in ports:
            continue
        for peer in rule["from"]:
            in_namespace = (
                matches(peer["namespaceSelector"], {"kubernetes.io/metadata.name": namespace})
                if "namespaceSelector" in peer
                else namespace == home
            )
            if in_namespace and matches(peer.get("podSelector", {}), labels):
                return True
    return False


def test_only_the_runs_own_pods_and_the_operator_connect() -> None:
    policy = cluster().manifests(submission())[1]
    assert policy["kind"] == "NetworkPolicy"
    assert policy["spec"]["policyTypes"] == ["Ingress"]
    own = {role: template["metadata"]["labels"] for role, template in pods().items()}
    for role, labels in own.items():
        assert matches(policy["spec"]["podSelector"], labels), role
        for port in (6379, 8265, 10001, 10002, 19999, 8080):
            assert reaches(policy, "science", labels, port), (role, port)
            # a pod of the same labels in a namespace where somebody else may make one
            assert not reaches(policy, "elsewhere", labels, port)
    other = cluster().manifests(submission("other"))[-1]["spec"]["submitterPodTemplate"]
    strangers = ({}, {"app": "web"}, other["metadata"]["labels"])
    for labels in strangers:
        assert not any(reaches(policy, "science", labels, p) for p in (6379, 8265, 8080, 10001))
    assert reaches(policy, "anywhere", KUBERAY, 8265)
    assert not reaches(policy, "anywhere", KUBERAY, 6379)
    strict = cluster(operator_namespace="kuberay", metrics_namespace="prom")
    strict_policy = strict.manifests(submission())[1]
    assert reaches(strict_policy, "kuberay", KUBERAY, 8265)
    assert not reaches(strict_policy, "anywhere", KUBERAY, 8265)
    assert reaches(strict_policy, "prom", {}, 8080)
    assert not reaches(strict_policy, "prom", {}, 8265)
    assert not reaches(policy, "prom", {}, 8080)


def test_the_parts_are_what_kubernetes_knows() -> None:
    """Read into the models of Kubernetes's own client: a key that they do not have would be lost."""
    client = pytest.importorskip("kubernetes").client
    api = client.ApiClient()
    config, policy, _ = cluster(metrics_namespace="prom").manifests(submission())
    for manifest in (config, policy):
        answer = SimpleNamespace(data=json.dumps(manifest))
        model = api.deserialize(answer, f"V1{manifest['kind']}")
        assert api.sanitize_for_serialization(model) == manifest
    assert {"bootstrap.py", "arguments.json"} == set(config["data"])


def test_values_of_the_environment_name_no_other_variable() -> None:
    """Kubernetes replaces `$(NAME)` by the value of NAME, also one from a Secret, and `$$` by `$`."""
    handed = submission()
    handed.environment["SHOWN"] = "$(AWS_SECRET_ACCESS_KEY) $HOME $$"
    job = cluster().manifests(handed)[-1]
    head = job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    (value,) = [e["value"] for e in head["containers"][0]["env"] if e["name"] == "SHOWN"]
    assert "$(" not in value.replace("$$", "")
    assert value.replace("$$", "$") == "$(AWS_SECRET_ACCESS_KEY) $HOME $$"


@pytest.mark.parametrize("run", ["a" * 62 + "-b", "x" * 60 + "._-y", "Ns_1"])
def test_labels_are_legal(run: str) -> None:
    import re

    legal = re.compile(r"([A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?)?")
    for manifest in cluster().manifests(submission(run)):
        for value in manifest["metadata"]["labels"].values():
            assert legal.fullmatch(value), value
