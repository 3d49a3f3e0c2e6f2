"""Reading `clusters.yaml`: the project's own file, on top of the user's."""

import os
import re
from pathlib import Path
from typing import Any

from pelagos.infra.clusters.schema import CLUSTER_KINDS, ClusterConfig
from pelagos.platform.config.load import (
    ConfigError,
    KeyPath,
    Problem,
    nearest,
    parse_yaml,
    read_yaml_text,
    validate_section,
)

PROJECT_FILE = "clusters.yaml"
NAME_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")


def user_file() -> Path:
    """Return the path of the user's own clusters.yaml, which need not exist."""
    home = os.environ.get("XDG_CONFIG_HOME") or str(Path.home() / ".config")
    return Path(home) / "pelagos" / PROJECT_FILE


def load_clusters() -> dict[str, ClusterConfig]:
    """Return every cluster by name: of PELAGOS_CLUSTERS if set, else the user's and the project's.

    Raises:
        ConfigError: with every problem of a file.
    """
    given = os.environ.get("PELAGOS_CLUSTERS")
    if given:
        return parse_clusters(read_yaml_text(given), given)
    clusters: dict[str, ClusterConfig] = {}
    for path in (user_file(), Path(PROJECT_FILE)):
        if path.exists():
            clusters |= parse_clusters(read_yaml_text(path), str(path))
    return clusters


def find_cluster(name: str) -> ClusterConfig:
    """Return one cluster. Raises `ConfigError`, listing those there are."""
    clusters = load_clusters()
    if name not in clusters:
        known = ", ".join(clusters) or f"none (write {PROJECT_FILE} here or {user_file()})"
        raise ConfigError(
            f"cluster {name}",
            [Problem((name,), f"no such cluster{nearest(name, clusters)}; there are: {known}")],
        )
    return clusters[name]


def parse_clusters(text: str, source: str) -> dict[str, ClusterConfig]:
    """Return the clusters that `text` describes. Raises `ConfigError`."""
    tree, lines = parse_yaml(text, source)
    entries = tree.get("clusters")
    if not isinstance(entries, dict) or set(tree) != {"clusters"}:
        message = "expected one key `clusters` with a mapping of names to clusters"
        raise ConfigError(source, [Problem(("clusters",), message, 1)])
    clusters: dict[str, ClusterConfig] = {}
    problems: list[Problem] = []
    for name, entry in entries.items():
        cluster, found = _parse_cluster(str(name), entry, lines)
        problems += found
        if cluster is not None:
            clusters[str(name)] = cluster
    if problems:
        raise ConfigError(source, sorted(problems, key=lambda p: p.line or 0))
    return clusters


def _parse_cluster(
    name: str, entry: Any, lines: dict[KeyPath, int]
) -> tuple[ClusterConfig | None, list[Problem]]:
    prefix = ("clusters", name)
    line = lines.get(prefix)
    if not NAME_PATTERN.fullmatch(name):
        return None, [Problem(prefix, "a name has letters, digits, '.', '_' and '-' only", line)]
    kind = entry.get("kind") if isinstance(entry, dict) else None
    if kind not in CLUSTER_KINDS:
        allowed = ", ".join(CLUSTER_KINDS)
        message = f"got {kind!r}, allowed: {allowed}{nearest(str(kind), CLUSTER_KINDS)}"
        return None, [Problem((*prefix, "kind"), message, lines.get((*prefix, "kind"), line))]
    return validate_section(CLUSTER_KINDS[kind], entry, lines, prefix)
