"""Reading `clusters.yaml`: the project's own file, on top of the user's.

A project's file comes with the project, from its authors. Until its user has looked at it and
said so (`pelagos clusters --trust`), it may name storage and defaults; keys about where a secret goes or
what runs with it count only in the user's own file.
"""

import logging
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
from pelagos.platform.config.trusted_files import is_trusted

logger = logging.getLogger(__name__)
PROJECT_FILE = "clusters.yaml"
# Keys that a project's file may set for one of the user's own clusters.
PROJECT_KEYS = frozenset({"storage", "defaults"})
# Keys it may set for its own clusters: none decides where a secret goes or what runs with it.
HARMLESS_KEYS = PROJECT_KEYS | {
    *("kind", "node", "max_nodes", "price_per_device_hour", "currency", "shared_paths", "quotas"),
    *("partition", "account", "qos", "constraint", "time_limit", "notice_seconds", "exclusive"),
}
# Defaults that say where a secret goes, or name a file of this machine that is sent along.
_ASKING_DEFAULTS = (
    *("tracking.uri", "storage.endpoint_url", "checkpoint.uri", "source.uri"),
    *("data.mixture", "parallel.zero.config"),
)
_warned: set[str] = set()
NAME_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")


def user_file() -> Path:
    """Return the path of the user's own clusters.yaml, which need not exist."""
    home = os.environ.get("XDG_CONFIG_HOME") or str(Path.home() / ".config")
    return Path(home) / "pelagos" / PROJECT_FILE


def load_clusters() -> dict[str, ClusterConfig]:
    """Return every cluster by name: of PELAGOS_CLUSTERS if set, else the user's and the project's.

    Clusters of a project's file that is not trusted are left out, with a warning, if they need to be.

    Raises:
        ConfigError: with every problem of a file.
    """
    clusters, left_out = _load()
    for name, reason in left_out.items():
        if name not in _warned:
            _warned.add(name)
            logger.warning("cluster %s: %s", name, reason)
    return clusters


def find_cluster(name: str) -> ClusterConfig:
    """Return one cluster. Raises `ConfigError`, listing the known ones."""
    clusters, left_out = _load()
    if name in left_out:
        raise ConfigError(PROJECT_FILE, [Problem(("clusters", name), left_out[name])])
    if name not in clusters:
        known = ", ".join(clusters) or f"none (write {PROJECT_FILE} here or {user_file()})"
        raise ConfigError(
            f"cluster {name}",
            [Problem((name,), f"no such cluster{nearest(name, clusters)}; known: {known}")],
        )
    return clusters[name]


def _load() -> tuple[dict[str, ClusterConfig], dict[str, str]]:
    """The clusters, and by name why others of the project's file are left out."""
    given = os.environ.get("PELAGOS_CLUSTERS")
    if given:
        return parse_clusters(read_yaml_text(given), given), {}
    own = user_file()
    clusters = parse_clusters(read_yaml_text(own), str(own)) if own.exists() else {}
    path = Path(PROJECT_FILE)
    if not path.exists() or (own.exists() and path.samefile(own)):
        return clusters, {}
    project = parse_clusters(read_yaml_text(path), str(path))
    if is_trusted(path):
        return clusters | project, {}
    left_out = {}
    for name, config in project.items():
        asking = [key for key in config.defaults if _is_asking(key)]
        asks = sorted(set(config.model_fields_set) - HARMLESS_KEYS)
        asks += [f"defaults.{key}" for key in sorted(asking)]
        if name in clusters:
            # of a cluster of the user's own, the project says where it keeps its runs
            told = {key: getattr(config, key) for key in config.model_fields_set & PROJECT_KEYS}
            if asking:
                told["defaults"] = {k: v for k, v in config.defaults.items() if k not in asking}
            clusters[name] = clusters[name].model_copy(update=told)
        elif not asks:
            clusters[name] = config
        if asks:
            left_out[name] = (
                f"not used: it sets {', '.join(asks)}, and you have not trusted {path} yet. Read "
                "the file, then: pelagos clusters --trust"
            )
    return clusters, {name: why for name, why in left_out.items() if name not in clusters}


def _is_asking(key: str) -> bool:
    """Whether a dotted key of a job, or a section that contains it, is among those that need trust."""
    return any(
        key == asking or key.startswith(f"{asking}.") or asking.startswith(f"{key}.")
        for asking in _ASKING_DEFAULTS
    )


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
        return None, [Problem(prefix, "a name consists of letters, digits, '.', '_' and '-'", line)]
    kind = entry.get("kind") if isinstance(entry, dict) else None
    if not isinstance(kind, str) or kind not in CLUSTER_KINDS:
        allowed = ", ".join(CLUSTER_KINDS)
        message = f"got {kind!r}, allowed: {allowed}{nearest(str(kind), CLUSTER_KINDS)}"
        return None, [Problem((*prefix, "kind"), message, lines.get((*prefix, "kind"), line))]
    return validate_section(CLUSTER_KINDS[kind], entry, lines, prefix)
