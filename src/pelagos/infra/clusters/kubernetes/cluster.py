"""Kubernetes: RayJob manifests for the KubeRay operator (API `ray.io/v1`).

They are applied with kubectl's configuration through the Kubernetes API.

Nothing of the namespace is trusted. The operator gives every Ray cluster a token of its own, in a
Secret; a NetworkPolicy keeps other pods away from it; processes are no root and hold no right to the
Kubernetes API, but for the autoscaler's container.
"""

import contextlib
import hashlib
import json
import re
import shutil
import subprocess
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

import yaml

from pelagos.infra.clusters.base import (
    BOOTSTRAP,
    Cluster,
    ClusterError,
    SchedulerState,
    Submission,
    workers_per_node,
)
from pelagos.infra.clusters.kubernetes.isolation import (
    API_TOKEN,
    API_TOKEN_PATH,
    CONTAINER_SECURITY,
    autoscaler_token,
    labels,
    network_policy,
    pod_security,
    submitter,
    unexpanded,
)
from pelagos.infra.clusters.schema import KubernetesConfig
from pelagos.infra.doctor import Check
from pelagos.infra.json_text import parse_json

TIMEOUT_SECONDS = 60
IDLE_SECONDS = 60  # a pod that computes nothing is kept so long
BOOTSTRAP_PATH = "/pelagos/bootstrap.py"
# KubeRay and Ray read the entry point with a shell each, and Ray drops quotes in between: no text of a
# job is in it
ENTRY_POINT = f"python {BOOTSTRAP_PATH} --arguments /pelagos/arguments.json"
# final values of a RayJob's `status.jobDeploymentStatus`
ENDED = ("Complete", "Failed", "ValidationFailed")


class KubernetesCluster(Cluster):
    """Applies, reads and deletes RayJobs with the user's kubeconfig."""

    config: KubernetesConfig

    def check(self) -> list[Check]:
        if shutil.which("kubectl") is None:
            return [Check("kubectl", False, "not on the PATH", "install kubectl")]
        checks = []
        questions = (
            ("api server", ["version", "--output=json"], "check the kubeconfig and its context"),
            (
                "KubeRay operator",
                ["get", "customresourcedefinition", "rayjobs.ray.io", "--output=name"],
                "install it: helm install kuberay-operator kuberay/kuberay-operator",
            ),
            (
                "permission to create RayJobs",
                ["auth", "can-i", "create", "rayjobs.ray.io", "--namespace", self.config.namespace],
                "ask for a role with create, get, list, patch, delete on rayjobs.ray.io",
            ),
            (
                "permission to create NetworkPolicies",
                [
                    *("auth", "can-i", "create", "networkpolicies.networking.k8s.io"),
                    *("--namespace", self.config.namespace),
                ],
                "ask for a role with create, get, patch on networkpolicies and configmaps",
            ),
        )
        for name, command, remedy in questions:
            try:
                self._kubectl(*command)
                checks.append(Check(name, True, "yes"))
            except ClusterError as error:
                checks.append(Check(name, False, str(error), remedy))
        return [*checks, self._check_tokens()]

    def _check_tokens(self) -> Check:
        """Return whether the operator knows `authOptions`: an older one would leave them out."""
        remedy = "upgrade the KubeRay operator and its custom resources to 1.5.1 or newer"
        try:
            text = self._kubectl(
                "get", "customresourcedefinition", "rayjobs.ray.io", "--output=json"
            )
        except ClusterError as error:
            return Check("tokens for Ray", False, str(error), remedy)
        is_known = '"authOptions"' in text
        seen = "yes" if is_known else "this KubeRay does not support authOptions"
        return Check("tokens for Ray", is_known, seen, remedy)

    def render(self, submission: Submission) -> dict[str, str]:
        return {
            f"{m['kind'].lower()}.yaml": yaml.safe_dump(m, sort_keys=False, width=100)
            for m in self.manifests(submission)
        }

    def start(self, submission: Submission) -> dict[str, Any]:
        *parts, ray_job = self.manifests(submission)
        # the NetworkPolicy comes first: no pod of the run is ever without it
        for manifest in parts:
            self._kubectl("apply", "--filename=-", stdin=json.dumps(manifest))
        applied = self._kubectl("apply", "--filename=-", "--output=json", stdin=json.dumps(ray_job))
        name = object_name(submission.run, submission.attempt)
        try:
            for part in parts:
                self._give_to(self._object(applied), part)
        except ClusterError:
            self.cancel({"name": name, "namespace": self.config.namespace})
            raise
        return {"name": name}

    def _give_to(self, owner: dict[str, Any], part: dict[str, Any]) -> None:
        """Make the server remove a part of a run when it removes the RayJob."""
        try:
            reference = {
                "apiVersion": owner["apiVersion"],
                "kind": owner["kind"],
                "name": owner["metadata"]["name"],
                "uid": owner["metadata"]["uid"],
            }
        except (KeyError, TypeError) as error:
            raise ClusterError(
                f"cluster {self.name}: the API server's answer is not a RayJob: it lacks {error}"
            ) from error
        patch = {"metadata": {"ownerReferences": [reference]}}
        name, namespace = part["metadata"]["name"], part["metadata"]["namespace"]
        self._kubectl(
            *("patch", part["kind"].lower(), name, "--namespace", namespace),
            *("--type=merge", f"--patch={json.dumps(patch)}"),
        )

    def checked_handle(self, run: str, storage: str, handle: Mapping[str, Any]) -> dict[str, Any]:
        name = str(handle.get("name", ""))
        attempt = name.rpartition("-")[2]
        is_own = re.fullmatch(r"[1-9][0-9]{0,8}", attempt) and name == object_name(
            run, int(attempt)
        )
        if not is_own:
            raise self.not_its_handle(run, f"RayJob {name}")
        return {"name": name, "namespace": self.config.namespace}

    def state(self, handle: dict[str, Any]) -> SchedulerState:
        try:
            text = self._kubectl(
                "get",
                "rayjobs.ray.io",
                handle["name"],
                "--namespace",
                handle["namespace"],
                "--output=json",
            )
        except ClusterError as error:
            if "NotFound" in str(error):
                return SchedulerState("ended", "the cluster has no such RayJob (any more)")
            raise
        status = self._object(text).get("status") or {}
        keys = ("jobDeploymentStatus", "jobStatus", "reason")
        deployment, job, reason = (str(status.get(key) or "") for key in keys)
        detail = ", ".join(filter(None, [deployment, job, reason]))
        if deployment in ENDED or job in ("SUCCEEDED", "FAILED", "STOPPED"):
            return SchedulerState("ended", detail, job == "SUCCEEDED")
        return SchedulerState("running" if job == "RUNNING" else "waiting", detail)

    def _object(self, text: str) -> dict[str, Any]:
        """Return kubectl's output on an object. Raises `ClusterError` if it is none."""
        try:
            found = parse_json(text)
        except ValueError as error:
            raise ClusterError(
                f"cluster {self.name}: the API server's answer is not an object: {error}"
            ) from error
        if not isinstance(found, dict) or not isinstance(found.get("status") or {}, dict):
            raise ClusterError(
                f"cluster {self.name}: the API server's answer is not an object: {text[:200]!r}"
            )
        return found

    def logs(self, handle: dict[str, Any]) -> str:
        with contextlib.suppress(ClusterError):
            return self._kubectl(
                "logs",
                "--namespace",
                handle["namespace"],
                f"--selector=job-name={handle['name']}",
                "--tail=-1",
            )
        return ""

    def cancel(self, handle: dict[str, Any]) -> None:
        self._kubectl(
            "delete",
            "rayjobs.ray.io",
            handle["name"],
            "--namespace",
            handle["namespace"],
            "--ignore-not-found",
            "--wait=false",
        )

    def manifests(self, submission: Submission) -> list[dict[str, Any]]:
        """Return the applied objects: bootstrap.py with its arguments, the NetworkPolicy, the RayJob."""
        name = object_name(submission.run, submission.attempt)
        files = {
            "bootstrap.py": BOOTSTRAP.read_text(),
            "arguments.json": json.dumps(submission.arguments()),
        }
        bootstrap = {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {
                "name": f"{name}-bootstrap",
                "namespace": self.config.namespace,
                "labels": labels(name),
            },
            "data": files,
        }
        return [bootstrap, network_policy(name, self.config), self._ray_job(submission, name)]

    def _ray_job(self, submission: Submission, name: str) -> dict[str, Any]:
        config = self.config
        marks = {**labels(name), "pelagos/run": submission.run[:63].rstrip("-._")}
        if config.queue_name:
            marks["kueue.x-k8s.io/queue-name"] = config.queue_name
        return {
            "apiVersion": "ray.io/v1",
            "kind": "RayJob",
            "metadata": {"name": name, "namespace": config.namespace, "labels": marks},
            "spec": {
                "entrypoint": ENTRY_POINT,
                "submissionMode": "K8sJobMode",
                "shutdownAfterJobFinishes": True,
                "ttlSecondsAfterFinished": config.keep_seconds,
                # a lost head is one more attempt: the run continues from its last checkpoint
                "backoffLimit": 2,
                # with Kueue a RayJob is created suspended and admitted when its quota allows
                **({"suspend": True} if config.queue_name else {}),
                "rayClusterSpec": self._ray_cluster(submission, name),
                "submitterPodTemplate": submitter(name, self.config),
            },
        }

    def _ray_cluster(self, submission: Submission, name: str) -> dict[str, Any]:
        needs = submission.needs
        groups = self.num_nodes(needs)
        per_pod = -(-needs.num_workers // groups)
        cpus, gpus = per_pod * needs.cpus_per_worker, per_pod * needs.gpus_per_worker
        autoscaling, replicas = self._autoscaling(groups)
        return {
            "rayVersion": version("ray"),
            # the operator makes a Secret with a token for this Ray cluster alone, and gives it to its
            # containers, the autoscaler's and the submitter's among them
            "authOptions": {"mode": "token"},
            **autoscaling,
            "headGroupSpec": {
                # the driver runs here and computes nothing: workers are placed on the others
                "rayStartParams": {"num-cpus": "0", "dashboard-host": "0.0.0.0"},
                "template": self._pod(submission, name, cpus=2, gpus=0, is_worker=False),
            },
            "workerGroupSpecs": [
                {
                    "groupName": "workers",
                    **replicas,
                    "rayStartParams": {},
                    "template": self._pod(submission, name, cpus=cpus, gpus=gpus, is_worker=True),
                }
            ],
        }

    def _autoscaling(self, most: int) -> tuple[dict[str, Any], dict[str, int]]:
        """Return the Ray cluster's settings for it, and the worker group's numbers of pods.

        Pods are asked for when the driver places its workers, all at once, and given back after the
        last step: a run that waits for another one, or writes its report, holds no GPU. Kueue, which
        grants the whole job its room before it starts, refuses a RayJob that would change its size
        (unless its feature gate ElasticJobsViaWorkloadSlices is on).
        """
        if self.config.queue_name:
            return {}, {"replicas": most, "minReplicas": most, "maxReplicas": most}
        options = {
            "upscalingMode": "Default",
            "idleTimeoutSeconds": IDLE_SECONDS,
            "securityContext": CONTAINER_SECURITY,
            "volumeMounts": [{"name": API_TOKEN, "mountPath": API_TOKEN_PATH, "readOnly": True}],
        }
        return (
            {"enableInTreeAutoscaling": True, "autoscalerOptions": options},
            {"replicas": 0, "minReplicas": 0, "maxReplicas": most},
        )

    def _pod(
        self, submission: Submission, name: str, cpus: int, gpus: int, is_worker: bool
    ) -> dict[str, Any]:
        config = self.config
        resources: dict[str, Any] = {"cpu": str(cpus)}
        if gpus:
            resources["nvidia.com/gpu"] = str(gpus)
        if config.node and config.node.memory_bytes and is_worker:
            fit = max(1, workers_per_node(submission.needs, config.node.cpus, config.node.gpus))
            share = -(-submission.needs.num_workers // self.num_nodes(submission.needs)) / fit
            resources["memory"] = str(int(config.node.memory_bytes * min(1.0, share) * 0.9))
        values = {
            **submission.environment,
            "PELAGOS_RAY_ADDRESS": "auto",
            # without a token Ray does not start: an operator that knows no authOptions fails
            "RAY_AUTH_MODE": "token",
        }
        environment = [
            {"name": key, "value": unexpanded(value)} for key, value in sorted(values.items())
        ]
        container: dict[str, Any] = {
            "name": "ray-worker" if is_worker else "ray-head",
            "image": config.image,
            "imagePullPolicy": config.image_pull_policy,
            "env": environment,
            "resources": {"requests": dict(resources), "limits": dict(resources)},
            "securityContext": CONTAINER_SECURITY,
            "volumeMounts": [
                {"name": "shared-memory", "mountPath": "/dev/shm"},
                {"name": "bootstrap", "mountPath": "/pelagos", "readOnly": True},
            ],
        }
        if config.secret_name:
            container["envFrom"] = [{"secretRef": {"name": config.secret_name}}]
        spec: dict[str, Any] = {
            **pod_security(config),
            "containers": [container],
            "volumes": [
                {
                    "name": "shared-memory",
                    "emptyDir": {"medium": "Memory", "sizeLimit": str(config.shared_memory_bytes)},
                },
                {"name": "bootstrap", "configMap": {"name": f"{name}-bootstrap"}},
            ],
        }
        if not is_worker and not config.queue_name:
            spec["volumes"].append(autoscaler_token())
        if priority_class := self._priority_class(submission.priority):
            spec["priorityClassName"] = priority_class
        if is_worker:
            if config.node_selector:
                spec["nodeSelector"] = dict(config.node_selector)
            if config.spot:
                spec["tolerations"] = [
                    {"key": config.spot.toleration_key, "operator": "Exists", "effect": effect}
                    for effect in ("NoSchedule", "NoExecute")
                ]
        return {"metadata": {"labels": labels(name)}, "spec": spec}

    def _priority_class(self, priority: int) -> str | None:
        allowed = [p for p in self.config.priority_classes if p <= priority]
        return self.config.priority_classes[max(allowed)] if allowed else None

    def _kubectl(self, *command: str, stdin: str | None = None) -> str:
        """Run kubectl; return its output. Raises `ClusterError` with its own words."""
        context = [f"--context={self.config.context}"] if self.config.context else []
        try:
            done = subprocess.run(
                ["kubectl", *context, f"--request-timeout={TIMEOUT_SECONDS}s", *command],
                input=stdin,
                capture_output=True,
                text=True,
                errors="replace",  # pods may print any bytes
                timeout=2 * TIMEOUT_SECONDS,
            )
        except FileNotFoundError as error:
            raise ClusterError(
                f"cluster {self.name}: kubectl is not installed on this machine"
            ) from error
        except subprocess.TimeoutExpired as error:
            raise ClusterError(f"cluster {self.name}: the API server does not answer") from error
        if done.returncode:
            said = (done.stderr or done.stdout).strip()
            raise ClusterError(f"cluster {self.name}: kubectl {command[0]}: {said}")
        return done.stdout


def object_name(run: str, attempt: int) -> str:
    """Return the Kubernetes name of a run's attempt: lower case, and unlike that of any other run.

    Names of runs may be forbidden in Kubernetes, so where one has to be changed a digest keeps
    two such names apart. KubeRay allows 47 characters.
    """
    plain = re.sub(r"[^a-z0-9-]+", "-", run.lower()).strip("-")
    tail = f"-{attempt}"
    if plain != run or len(plain) + len(tail) > 47:
        digest = hashlib.sha256(run.encode()).hexdigest()[:8]
        plain = f"{plain[: 38 - len(tail)].strip('-')}-{digest}".strip("-")
    if not plain[0].isalpha():
        plain = f"r-{plain}"[: 47 - len(tail)]
    return f"{plain}{tail}"
