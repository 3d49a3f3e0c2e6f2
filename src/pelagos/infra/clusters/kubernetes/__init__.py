"""Kubernetes with the KubeRay operator: the RayJob of a run, and its isolation from others."""

from pelagos.infra.clusters.kubernetes.cluster import KubernetesCluster, object_name

__all__ = ["KubernetesCluster", "object_name"]
