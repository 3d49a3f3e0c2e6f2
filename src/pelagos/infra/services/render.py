"""`pelagos infra render`: files for the services around a cluster, from templates and clusters.yaml."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from pelagos.infra.clusters.kubernetes.isolation import unexpanded
from pelagos.infra.clusters.schema import ClusterConfig, KubernetesConfig, printable
from pelagos.infra.storage.files import replace_durably

TEMPLATES = Path(__file__).with_name("templates")


@dataclass(frozen=True)
class Panel:
    """A figure of the dashboard: a metric of `records/ray_metrics.py`, a line for each of `labels`."""

    title: str
    metric: str
    labels: str
    unit: str

    @property
    def record(self) -> str:
        """Name of the rule that records it."""
        return f"pelagos:{self.metric}"

    @property
    def expr(self) -> str:
        """The metric that the rule records; Ray puts `ray_` before every metric."""
        return f"max by ({self.labels}) (ray_pelagos_{self.metric})"


PANELS = (
    Panel("Throughput, samples per second", "samples_per_second", "run", "short"),
    Panel("Data stall", "data_stall_fraction", "run", "percentunit"),
    Panel("Goodput", "goodput", "run", "percentunit"),
    Panel("Memory per rank", "memory_bytes", "run, rank", "bytes"),
    Panel("Step time per rank", "step_seconds", "run, rank", "s"),
    Panel("Loss", "loss", "run", "short"),
)


def render(kind: str, name: str, config: ClusterConfig) -> dict[str, str]:
    """Return the files of a kind for a cluster, by name. Raises `ValueError`."""
    if kind not in KINDS:
        raise ValueError(f"unknown kind of files {kind!r}; known kinds: {', '.join(KINDS)}")
    return KINDS[kind](name, config)


def write(files: dict[str, str], directory: Path, overwrite: bool) -> list[Path]:
    """Write files; refuses to replace any unless `overwrite`. Raises `FileExistsError`."""
    paths = {directory / name: text for name, text in files.items()}
    taken = [str(path) for path in paths if path.exists()]
    if taken and not overwrite:
        raise FileExistsError(f"{', '.join(taken)} already exist; --overwrite replaces them")
    directory.mkdir(parents=True, exist_ok=True)
    for path, text in paths.items():
        replace_durably(path, text.encode())
    return list(paths)


def _image(name: str, config: ClusterConfig) -> dict[str, str]:
    values = {
        "image": getattr(config, "image", "pelagos:latest"),
        "cpu_base": "debian:trixie-slim",
        "cuda_base": "nvidia/cuda:12.8.1-cudnn-devel-ubuntu24.04",
    }
    return {"Dockerfile": _fill("Dockerfile.j2", values)}


def _ray_up(name: str, config: ClusterConfig) -> dict[str, str]:
    node = config.node
    values = {
        "name": name,
        "region": config.region or "us-east-1",
        "max_workers": config.max_nodes or 4,
        "image": getattr(config, "image", "registry.example.org/pelagos:cuda"),
        "cpus": node.cpus if node else 192,
        "gpus": node.gpus if node else 8,
        "instance_type": "p5.48xlarge",
    }
    return {"ray-up.yaml": _fill("ray-up.yaml.j2", values)}


def _mlflow(name: str, config: ClusterConfig) -> dict[str, str]:
    values = {
        "namespace": _namespace(config),
        "arguments": [unexpanded(argument) for argument in _mlflow_arguments(config)],
        "endpoint_url": unexpanded(config.endpoint_url or ""),
        "mlflow_version": version("mlflow"),
    }
    return {
        "mlflow.yaml": _fill("mlflow.yaml.j2", values),
        "kustomization.yaml": _fill("kustomization.yaml.j2", {}),
    }


def _mlflow_arguments(config: ClusterConfig) -> list[str]:
    """Return the arguments of `mlflow server`: a login, and the names under which requests come.

    MLflow answers 403 to every other name in the `Host` of a request, against DNS rebinding.
    """
    service = f"mlflow.{_namespace(config)}"
    names = ["mlflow", service, f"{service}.svc", f"{service}.svc.cluster.local"]
    # a forwarded port comes as one of these
    hosts = [*names, *(f"{name}:5000" for name in (*names, "localhost", "127.0.0.1"))]
    if config.tracking and urlsplit(config.tracking).netloc:
        outside = urlsplit(config.tracking)
        # a star would let every name through
        hosts += [h for h in (outside.hostname, outside.netloc) if h and not set(h) & set("*,")]
    return [
        *("--host", "0.0.0.0", "--port", "5000"),
        *("--app-name", "basic-auth"),
        *("--allowed-hosts", ",".join(dict.fromkeys(hosts))),
        *("--serve-artifacts", "--artifacts-destination", f"{config.storage}/mlflow"),
    ]


def _monitoring(name: str, config: ClusterConfig) -> dict[str, str]:
    values = {"kind": config.kind, "namespace": _namespace(config), "panels": PANELS}
    return {
        "prometheus.yml": _fill("prometheus.yml.j2", values),
        "pelagos.rules.yml": _fill("pelagos.rules.yml.j2", values),
        "grafana-dashboard.json": json.dumps(_dashboard(), indent=1) + "\n",
    }


def _bucket_policy(name: str, config: ClusterConfig) -> dict[str, str]:
    """Return the rights of the nodes' role, and actions on the bucket's records denied to all."""
    match = re.fullmatch(r"s3a?://([a-z0-9][a-z0-9.-]*)/(.+?)/*", printable(config.storage))
    if match is None:
        raise ValueError(
            f"cluster {name}: storage {config.storage} is not s3://bucket/prefix, so it needs no "
            "bucket policy"
        )
    bucket = f"arn:aws:s3:::{match[1]}"
    # in policies these are wildcards and variables, unless written as variables themselves
    prefix = re.sub(r"[*?$]", r"${\g<0>}", match[2])
    values = {"bucket": bucket, "prefix": prefix, "objects": f"{bucket}/{prefix}"}
    return {
        "role-policy.json": _fill("role-policy.json.j2", values),
        "bucket-policy.json": _fill("bucket-policy.json.j2", values),
    }


def _dashboard() -> dict[str, Any]:
    """Return a Grafana dashboard (schema version 39): two panels in a row."""
    panels = [
        {
            "id": index + 1,
            "type": "timeseries",
            "title": panel.title,
            "datasource": {"type": "prometheus", "uid": "${datasource}"},
            "gridPos": {"h": 8, "w": 12, "x": 12 * (index % 2), "y": 8 * (index // 2)},
            "fieldConfig": {"defaults": {"unit": panel.unit}, "overrides": []},
            "targets": [
                {"refId": "A", "expr": f'{panel.record}{{run=~"$run"}}', "legendFormat": "__auto"}
            ],
        }
        for index, panel in enumerate(PANELS)
    ]
    variables = [
        {"name": "datasource", "type": "datasource", "query": "prometheus"},
        {
            "name": "run",
            "type": "query",
            "multi": True,
            "includeAll": True,
            "datasource": {"type": "prometheus", "uid": "${datasource}"},
            "query": "label_values(ray_pelagos_step, run)",
        },
    ]
    return {
        "title": "Pelagos",
        "uid": "pelagos",
        "schemaVersion": 39,
        "refresh": "30s",
        "time": {"from": "now-6h", "to": "now"},
        "templating": {"list": variables},
        "panels": panels,
    }


def _namespace(config: ClusterConfig) -> str:
    return config.namespace if isinstance(config, KubernetesConfig) else "pelagos"


def _fill(template: str, values: dict[str, Any]) -> str:
    """Return a template's text. It quotes every value by `tojson`, or has it in a comment.

    Raises:
        ValueError: a value would end the comment's line.
    """
    for value in values.values():
        if isinstance(value, str):
            printable(value)
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), undefined=StrictUndefined, keep_trailing_newline=True
    )
    return environment.get_template(template).render(values)


KINDS: dict[str, Callable[[str, ClusterConfig], dict[str, str]]] = {
    "image": _image,
    "ray-up": _ray_up,
    "mlflow": _mlflow,
    "monitoring": _monitoring,
    "bucket-policy": _bucket_policy,
}
