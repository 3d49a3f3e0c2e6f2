"""What a training is about to do: a line for each phase, before the first step."""

from collections.abc import Iterator
from pathlib import Path

from pelagos.jobs.training.blueprint import Blueprint
from pelagos.platform.config.schema import TrainingJob
from pelagos.platform.mlflow_records.store import tracking_uri
from pelagos.platform.optimization.optimizer_kinds import find_optimizer
from pelagos.platform.strategies import LEAVE_PARAMETERS_WHOLE

WEIGHT_AND_GRADIENT_BYTES = 4 + 4  # of a parameter, in fp32
_LISTED = 6


def phases(blueprint: Blueprint, directory: Path) -> Iterator[tuple[str, str]]:
    """Yield the name and a line of each phase of a training that starts in `directory`."""
    job = blueprint.job
    yield "run", str(directory)
    yield "data", _data(blueprint)
    parameters = sum(p.numel() for p in blueprint.model.parameters())
    yield (
        "model",
        f"{job.model.name}, {parameters:,} parameters, "
        f"{blueprint.flops_per_sample / 1e9:,.2f} GFLOP for each sample",
    )
    yield "memory", _memory(job, parameters)
    yield "tracking", _tracking(job)
    yield "workers", _workers(job)


def _data(blueprint: Blueprint) -> str:
    mixture, fields = blueprint.mixture, blueprint.job.data.fields
    names = ", ".join(fields[:_LISTED]) + (", …" if len(fields) > _LISTED else "")
    grids = ", ".join(" x ".join(map(str, shape)) for shape in mixture.distinct_shapes)
    count = len(mixture.entries)
    return (
        f"{count} dataset{'' if count == 1 else 's'}, {mixture.num_samples:,} samples in an epoch, "
        f"{names} on {grids} points"
    )


def _memory(job: TrainingJob, parameters: int) -> str:
    each = WEIGHT_AND_GRADIENT_BYTES + find_optimizer(job.optimizer).bytes_per_parameter
    share = (
        "of each worker"
        if job.parallel.strategy in LEAVE_PARAMETERS_WHOLE
        else "divided among the workers"
    )
    size = f"{parameters * each / 2**20:,.1f} MiB for weights, gradients and {job.optimizer.name}"
    return f"{size}, {share}; activations come on top"


def _tracking(job: TrainingJob) -> str:
    if job.tracking.uri is None:
        return "none (tracking.uri is null)"
    return f"{tracking_uri(job)}, experiment {job.tracking.experiment}"


def _workers(job: TrainingJob) -> str:
    resources = job.resources
    if resources.launcher != "ray":
        return "this process, without Ray"
    count = resources.num_workers
    each = f"{count} worker{'' if count == 1 else 's'} ({job.parallel.strategy})"
    if resources.ray_address:
        return f"{each} of the Ray cluster at {resources.ray_address}"
    return f"starting Ray with {each} on this machine"
