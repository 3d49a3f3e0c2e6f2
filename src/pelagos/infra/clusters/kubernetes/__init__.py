"""Kubernetes with the KubeRay operator: the RayJob of a run, and what keeps it apart from others."""

from pelagos.infra.clusters.kubernetes.cluster import KubernetesCluster, object_name

__all__ = ["KubernetesCluster", "object_name"]
