"""Parallel strategies: one class each, chosen once by name. No other file names a backend."""

import importlib.util
from collections.abc import Callable

from torch import nn

from pelagos.platform.strategies.base import Strategy, StrategyOptions


def _accelerated(options: StrategyOptions) -> Strategy:
    from pelagos.platform.strategies.accelerated import AcceleratedStrategy

    return AcceleratedStrategy(options)


def _fully_shard(options: StrategyOptions) -> Strategy:
    from pelagos.platform.strategies.fully_shard import FullyShardStrategy

    return FullyShardStrategy(options)


def _hybrid_shard(options: StrategyOptions) -> Strategy:
    from pelagos.platform.strategies.fully_shard import HybridShardStrategy

    return HybridShardStrategy(options)


def _zero(stage: int) -> Callable[[StrategyOptions], Strategy]:
    def create(options: StrategyOptions) -> Strategy:
        from pelagos.platform.strategies import zero

        return (zero.ZeroStrategy, zero.Zero2Strategy, zero.Zero3Strategy)[stage - 1](options)

    return create


# Each imports its library when it is chosen: a machine needs only that of the strategy it runs.
STRATEGIES: dict[str, Callable[[StrategyOptions], Strategy]] = {
    "single": _accelerated,
    "ddp": _accelerated,
    "fsdp": _fully_shard,
    "hsdp": _hybrid_shard,
    "zero1": _zero(1),
    "zero2": _zero(2),
    "zero3": _zero(3),
}


LEAVE_PARAMETERS_WHOLE = ("single", "ddp")


def check_strategy(name: str, options: StrategyOptions, world_size: int) -> None:
    """Reject settings that a strategy does not support, in the driver, before a worker is started.

    Raises:
        ValueError: its library is missing, its options contradict each other or this machine, or it
            cuts up the matrices that the optimizer needs whole.
    """
    if options.optimizer.needs_whole_matrices and name not in LEAVE_PARAMETERS_WHOLE:
        raise ValueError(
            f"parallel.strategy: {name} gives each rank a part of every parameter, but this "
            f"optimizer needs whole matrices. Use {' or '.join(LEAVE_PARAMETERS_WHOLE)}, or another "
            "optimizer"
        )
    if not name.startswith("zero"):
        return
    if importlib.util.find_spec("deepspeed") is None:
        raise ValueError(
            f"parallel.strategy: {name} needs DeepSpeed, which is not installed: `pip install "
            "deepspeed`, or use fsdp"
        )
    from pelagos.platform.strategies.zero_config import check_nvme, zero_config

    zero_config(int(name[-1]), options, world_size)
    check_nvme(options.zero)


def check_parameters(name: str, model: nn.Module) -> None:
    """Reject a network that a strategy cannot divide, in the driver, before a worker is started.

    Raises:
        ValueError: a parameter has no elements. FSDP cannot sum its gradients over ranks, and
            DeepSpeed keeps no state of it.
    """
    if name in LEAVE_PARAMETERS_WHOLE:
        return
    empty = [n for n, p in model.named_parameters() if 0 in p.shape]
    if empty:
        raise ValueError(
            f"parallel.strategy: {name} divides each parameter among ranks, but these have no "
            f"elements: {', '.join(empty)}. Use {' or '.join(LEAVE_PARAMETERS_WHOLE)}, or a network "
            "without these parameters"
        )


def create_strategy(name: str, options: StrategyOptions) -> Strategy:
    """Return the strategy of that name, in this process group."""
    return STRATEGIES[name](options)


__all__ = [
    "STRATEGIES",
    "Strategy",
    "StrategyOptions",
    "check_parameters",
    "check_strategy",
    "create_strategy",
]
