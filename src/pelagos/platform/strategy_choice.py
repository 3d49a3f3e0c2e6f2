"""A job's requirements of its strategy, and the check of its number of processes."""

from collections.abc import Callable

from torch import Tensor, nn

from pelagos.platform.config.checks import local_batch_size, micro_batch_size
from pelagos.platform.config.schema import TrainingJob
from pelagos.platform.optimization.optimizer_kinds import find_optimizer
from pelagos.platform.strategies import StrategyOptions


def check_world(job: TrainingJob, world_size: int) -> None:
    """Raise `ValueError` unless as many processes run as the job says."""
    if world_size != job.resources.num_workers:
        raise ValueError(
            f"resources.num_workers is {job.resources.num_workers}, but {world_size} process(es) "
            "run. With launcher: none start as many with `torchrun --nproc-per-node="
            f"{job.resources.num_workers} -m pelagos.cli.main pretrain …`, or set "
            f"resources.num_workers={world_size}."
        )


def strategy_options(
    job: TrainingJob, example_loss: Callable[[nn.Module], Tensor] | None = None
) -> StrategyOptions:
    """Return a job's requirements of its strategy."""
    parallel = job.parallel
    micro = micro_batch_size(job)
    return StrategyOptions(
        precision=parallel.precision,
        activation_checkpointing=parallel.activation_checkpointing,
        compile=parallel.compile,
        use_gpu=job.resources.gpus_per_worker > 0,
        seed=job.seed,
        clip_norm=job.optimizer.clip_norm,
        micro_batch_size=micro,
        num_micro_batches=local_batch_size(job) // micro,
        collective_timeout_seconds=job.health.collective_timeout_seconds,
        fsdp=parallel.fsdp,
        zero=parallel.zero,
        optimizer=find_optimizer(job.optimizer),
        example_loss=example_loss,
    )
