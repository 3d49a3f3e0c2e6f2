"""Parallel strategies: one class each, chosen once by name. No other file names a backend."""

from collections.abc import Callable

from pelagos.platform.strategies.accelerated import AcceleratedStrategy
from pelagos.platform.strategies.base import Strategy, StrategyOptions

STRATEGIES: dict[str, Callable[[StrategyOptions], Strategy]] = {
    "single": AcceleratedStrategy,
    "ddp": AcceleratedStrategy,
}


def create_strategy(name: str, options: StrategyOptions) -> Strategy:
    """Return the strategy of that name, in this process group."""
    return STRATEGIES[name](options)


__all__ = ["STRATEGIES", "Strategy", "StrategyOptions", "create_strategy"]
