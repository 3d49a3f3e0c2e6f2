"""A job on its way to a cluster: its name, its needs, and its paths as the cluster sees them."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic.fields import FieldInfo

from pelagos.infra.clusters import ClusterConfig
from pelagos.infra.storage.remote import is_remote
from pelagos.jobs.submission.kinds import kind_of
from pelagos.platform.config.kinds import JOB_KINDS, Job
from pelagos.platform.config.load import ConfigError, Problem, parse_yaml, read_yaml_text
from pelagos.platform.config.old_options import new_key, new_path


def default_overrides(path: str, config: ClusterConfig) -> list[str]:
    """Return the cluster's defaults as overrides, for keys that the job file does not set."""
    return [
        f"{key}={json.dumps(value)}" if not isinstance(value, str) else f"{key}={value}"
        for key, value in cluster_defaults(path, config).items()
    ]


def cluster_defaults(path: str, config: ClusterConfig) -> dict[str, Any]:
    """Return the cluster's values of dotted keys that the job file does not set."""
    tree, lines = parse_yaml(read_yaml_text(path), path)
    given = {".".join(str(part) for part in new_path(key)) for key in lines}
    sections = JOB_KINDS[tree["job"]].model_fields if tree.get("job") in JOB_KINDS else {}
    # a sweep's jobs take them, not the sweep
    defaults = dict(config.defaults) if "jobs" not in sections else {}
    if config.tracking and "experiment" in getattr(
        _section(sections, "tracking"), "model_fields", ()
    ):
        defaults.setdefault("tracking.uri", config.tracking)
    if config.endpoint_url:
        defaults.setdefault("storage.endpoint_url", config.endpoint_url)
    defaults = {k: v for k, v in defaults.items() if k.partition(".")[0] in sections}
    return {key: value for key, value in defaults.items() if new_key(key) not in given}


def prepare(job: Job, config: ClusterConfig) -> Job:
    """Return the job with its local paths absolute, and files that it names taken into it.

    Raises:
        ConfigError: a local path that the cluster's nodes do not see.
    """
    problems: list[Problem] = []

    def place(key: tuple[str | int, ...], uri: str) -> str:
        if is_remote(uri):
            return uri
        path = os.path.abspath(os.path.expanduser(uri.removeprefix("file://")))
        if not any(Path(path).is_relative_to(shared) for shared in config.shared_paths):
            seen = ", ".join(config.shared_paths) or "none"
            problems.append(
                Problem(
                    key,
                    f"{path} is a path on this machine, and the cluster's nodes do not see it "
                    f"(shared_paths: {seen}). Copy it to object storage and name it s3://…. If the "
                    "nodes do see it, list its directory in the cluster's shared_paths",
                )
            )
        return path

    tree, kind = job.model_dump(mode="json"), kind_of(job)
    kind.place(tree, place)
    if problems:
        raise ConfigError(f"job {kind.run_name(job)}", problems)
    return type(job).model_validate(tree)


def _section(fields: Mapping[str, FieldInfo], name: str) -> Any:
    return fields[name].annotation if name in fields else None


def place_job(job: Job, storage: str, runs_dir: Path) -> Job:
    """Return the job with its directories where this machine of the cluster has them."""
    placed: Job = kind_of(job).on_cluster(job, storage, runs_dir)
    return placed
