"""A job on its way to a cluster: its name, what it needs, and its paths as the cluster sees them."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pelagos.infra.clusters import ClusterConfig, Needs
from pelagos.infra.storage.remote import is_remote
from pelagos.platform.config.finetune import REGISTRY_SCHEME, FinetuneJob
from pelagos.platform.config.kinds import Job
from pelagos.platform.config.load import ConfigError, Problem, parse_yaml, read_yaml_text
from pelagos.platform.config.measure import EvaluateJob, ProbeJob
from pelagos.platform.config.old_options import new_key, new_path
from pelagos.platform.config.schema import GenerateJob, TrainingJob
from pelagos.platform.config.sweep import SweepJob


def name_of(job: Job) -> str:
    """Return the name of the run that a job makes."""
    return f"{job.run}-evaluation" if isinstance(job, EvaluateJob) else job.name


def needs_of(job: Job) -> Needs:
    """Return the workers that a job needs at once."""
    if isinstance(job, EvaluateJob | SweepJob):  # of a sweep, its report
        return Needs()
    if isinstance(job, ProbeJob):
        return Needs(job.num_nodes, job.cpus_per_node, job.gpus_per_node)
    resources = job.resources
    return Needs(resources.num_workers, resources.cpus_per_worker, resources.gpus_per_worker)


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
    kind = tree.get("job")
    if kind == "probe":
        return {}
    defaults = dict(config.defaults) if kind != "sweep" else {}
    if config.tracking and kind in ("pretrain", "finetune", "sweep"):
        defaults.setdefault("tracking.uri", config.tracking)
    if config.endpoint_url and kind not in ("evaluate", "sweep"):
        defaults.setdefault("storage.endpoint_url", config.endpoint_url)
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
                    f"{path} is a path of this machine, which the cluster's nodes do not see "
                    f"(shared_paths: {seen}). Copy it to object storage and name it s3://…, or list "
                    "its directory in the cluster's shared_paths if the nodes do see it",
                )
            )
        return path

    tree = job.model_dump(mode="json")
    if isinstance(job, TrainingJob):
        _place_training(tree, place, problems)
        if isinstance(job, FinetuneJob):
            _place_source(tree["source"], place)
    elif isinstance(job, GenerateJob):
        for index, dataset in enumerate(tree["datasets"]):
            dataset["uri"] = place(("datasets", index, "uri"), dataset["uri"])
    elif isinstance(job, SweepJob):
        _place_tracking(tree["tracking"], place)
    if problems:
        raise ConfigError(f"job {name_of(job)}", problems)
    return type(job).model_validate(tree)


def place_job(job: Job, storage: str, runs_dir: Path) -> Job:
    """Return the job with its directories where this machine of the cluster has them."""
    if isinstance(job, ProbeJob):
        return job
    if isinstance(job, GenerateJob):
        return _with(job, resources=_on_this_ray(job))
    if isinstance(job, EvaluateJob | SweepJob):
        return _with(job, runs_dir=str(runs_dir))
    checkpoint = job.checkpoint
    if checkpoint.uri is None and is_remote(storage):
        checkpoint = checkpoint.model_copy(update={"uri": f"{storage}/checkpoints"})
    return _with(job, runs_dir=str(runs_dir), checkpoint=checkpoint, resources=_on_this_ray(job))


def _place_training(
    tree: dict[str, Any],
    place: Callable[[tuple[str | int, ...], str], str],
    problems: list[Problem],
) -> None:
    for index, entry in enumerate(tree["data"]["mixture"]):
        entry["uri"] = place(("data", "mixture", index, "uri"), entry["uri"])
    if tree["checkpoint"]["uri"]:
        tree["checkpoint"]["uri"] = place(("checkpoint", "uri"), tree["checkpoint"]["uri"])
    zero = tree["parallel"]["zero"]
    if isinstance(zero["config"], str):
        from pelagos.platform.strategies.zero_config import user_config

        zero["config"] = user_config(zero["config"])
    _place_tracking(tree["tracking"], place)


def _place_tracking(
    tracking: dict[str, Any], place: Callable[[tuple[str | int, ...], str], str]
) -> None:
    uri = tracking["uri"]
    if uri and uri.startswith("sqlite:///"):
        path = uri.removeprefix("sqlite:///")
        tracking["uri"] = f"sqlite:///{place(('tracking', 'uri'), path)}"


def _place_source(source: dict[str, Any], place: Callable[..., str]) -> None:
    """Make a source's path absolute; a run is looked for among the cluster's own."""
    uri = source["uri"]
    if uri is not None and not uri.startswith(REGISTRY_SCHEME):
        source["uri"] = place(("source", "uri"), uri)
    source["runs_dir"] = None


def _on_this_ray(job: TrainingJob | GenerateJob) -> Any:
    address = os.environ.get("PELAGOS_RAY_ADDRESS") or None
    return job.resources.model_copy(update={"ray_address": address})


def _with(job: Job, **changes: Any) -> Job:
    return job.model_copy(update=changes)
