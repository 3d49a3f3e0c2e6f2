"""Access to the pods of a run on Kubernetes, and the rights of their processes."""

from typing import Any

from pelagos.infra.clusters.schema import KubernetesConfig

DASHBOARD_PORT, METRICS_PORT = 8265, 8080
OPERATOR_LABELS = {"app.kubernetes.io/component": "kuberay-operator"}  # of Helm and Kustomize
CONTAINER_SECURITY = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
API_TOKEN_PATH = "/var/run/secrets/kubernetes.io/serviceaccount"
API_TOKEN = "autoscaler-token"


def network_policy(name: str, config: KubernetesConfig) -> dict[str, Any]:
    """Return who may open a connection to the run's pods: themselves, and the operator.

    Ray's own ports take any peer with the token, unencrypted; the pods choose most ports.
    """
    own = {"podSelector": {"matchLabels": labels(name)}}
    operator = {
        "namespaceSelector": _namespace_selector(config.operator_namespace),
        "podSelector": {"matchLabels": OPERATOR_LABELS},
    }
    ingress = [
        {"from": [own]},
        {"from": [operator], "ports": [{"protocol": "TCP", "port": DASHBOARD_PORT}]},
    ]
    if config.metrics_namespace:
        prometheus = {"namespaceSelector": _namespace_selector(config.metrics_namespace)}
        port = {"protocol": "TCP", "port": METRICS_PORT}
        ingress.append({"from": [prometheus], "ports": [port]})
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {
            "name": name,
            "namespace": config.namespace,
            "labels": labels(name),
        },
        "spec": {**own, "policyTypes": ["Ingress"], "ingress": ingress},
    }


def submitter(name: str, config: KubernetesConfig) -> dict[str, Any]:
    """Return the pod that hands the entry point to Ray: KubeRay's own choice, as others secured."""
    limits = {"cpu": "1", "memory": "1Gi"}
    container = {
        "name": "ray-job-submitter",
        "image": config.image,
        "imagePullPolicy": config.image_pull_policy,
        "env": [{"name": "RAY_AUTH_MODE", "value": "token"}],
        "resources": {"requests": {"cpu": "500m", "memory": "200Mi"}, "limits": limits},
        "securityContext": CONTAINER_SECURITY,
    }
    spec = {**pod_security(config), "containers": [container], "restartPolicy": "Never"}
    return {"metadata": {"labels": labels(name)}, "spec": spec}


def pod_security(config: KubernetesConfig) -> dict[str, Any]:
    """Return the start of every pod's specification."""
    account = {"serviceAccountName": config.service_account} if config.service_account else {}
    return {
        **account,
        "automountServiceAccountToken": config.mount_service_account_token,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": config.run_as_user,
            "runAsGroup": config.run_as_user,
            "fsGroup": config.run_as_user,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
    }


def labels(name: str) -> dict[str, str]:
    """Return the labels of all that belongs to an attempt of a run."""
    return {"app.kubernetes.io/managed-by": "pelagos", "pelagos/job": name}


def _namespace_selector(namespace: str | None) -> dict[str, Any]:
    """Return the selector of a namespace by its name, or of every one."""
    return {"matchLabels": {"kubernetes.io/metadata.name": namespace}} if namespace else {}


def unexpanded(value: str) -> str:
    """Return a text that Kubernetes does not expand: `$(NAME)` would be another variable's value."""
    return value.replace("$", "$$")


def autoscaler_token() -> dict[str, Any]:
    """Return the volume by which the autoscaler, a container of the head's pod, uses the API.

    It asks for pods and gives them back: KubeRay binds its account to a role for pods and RayClusters
    of the namespace. The container of the run's driver does not mount the volume.
    """
    sources = [
        {"serviceAccountToken": {"path": "token", "expirationSeconds": 3600}},
        {
            "configMap": {
                "name": "kube-root-ca.crt",
                "items": [{"key": "ca.crt", "path": "ca.crt"}],
            }
        },
        {
            "downwardAPI": {
                "items": [{"path": "namespace", "fieldRef": {"fieldPath": "metadata.namespace"}}]
            }
        },
    ]
    return {"name": API_TOKEN, "projected": {"sources": sources}}
