"""Clusters that runs are submitted to: one class per kind."""

from typing import Any

from pelagos.infra.clusters.base import (
    Cluster,
    ClusterError,
    Code,
    Needs,
    SchedulerState,
    Submission,
)
from pelagos.infra.clusters.kubernetes import KubernetesCluster
from pelagos.infra.clusters.local import LocalCluster
from pelagos.infra.clusters.ray_jobs import RayJobsCluster
from pelagos.infra.clusters.schema import CLUSTER_KINDS, ClusterConfig
from pelagos.infra.clusters.slurm import SlurmCluster

CLUSTERS: dict[str, type[Cluster]] = {
    "local": LocalCluster,
    "ray": RayJobsCluster,
    "slurm": SlurmCluster,
    "kubernetes": KubernetesCluster,
}


def open_cluster(name: str, config: ClusterConfig) -> Cluster:
    """Return the cluster of a name and its configuration; nothing is contacted yet."""
    return CLUSTERS[config.kind](name, config)


def recorded_config(values: dict[str, Any]) -> ClusterConfig:
    """Return a cluster's configuration from its entry in a run's record.

    Raises:
        ValueError: it is none.
    """
    kind = values.get("kind")
    if not isinstance(kind, str) or kind not in CLUSTER_KINDS:
        raise ValueError(
            f"{kind!r} is not a kind of cluster; known kinds: {', '.join(CLUSTER_KINDS)}"
        )
    return CLUSTER_KINDS[kind].model_validate(values)


__all__ = [
    "CLUSTERS",
    "Cluster",
    "ClusterConfig",
    "ClusterError",
    "Code",
    "Needs",
    "SchedulerState",
    "Submission",
    "open_cluster",
    "recorded_config",
]
