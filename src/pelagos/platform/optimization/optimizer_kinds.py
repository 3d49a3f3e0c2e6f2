"""The optimizers by name: how each is built, and its state per parameter."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pelagos.platform.optimization.settings import OptimizerSettings
from pelagos.registry import Registry

BuildOptimizer = Callable[[list[dict[str, Any]], OptimizerSettings], torch.optim.Optimizer]


@dataclass(frozen=True)
class OptimizerKind:
    """The properties of an optimizer that the platform needs.

    A rate of 0 must leave a parameter as it is: so do frozen groups stay. Unless it needs whole
    matrices, what an optimizer does to one value may depend on that value, its gradient and its
    state alone, because strategies cut parameters up and lay them end to end.

    Attributes:
        build: makes it from parameter groups, which have `lr` and `weight_decay`, and the job's
            `optimizer` section, whose `config` holds options of its own.
        moments: names of its state's tensors of a parameter's shape, zero before the first step.
        scalars: names of its state's single numbers, zero before the first step.
        option_names: permitted keys of `optimizer.config`.
        needs_whole_matrices: it mixes the values of a parameter (Muon, Shampoo), so that it runs only
            under strategies that leave parameters whole.
    """

    build: BuildOptimizer
    moments: tuple[str, ...] = ()
    scalars: tuple[str, ...] = ()
    option_names: tuple[str, ...] = ()
    needs_whole_matrices: bool = False

    @property
    def bytes_per_parameter(self) -> int:
        """Bytes of fp32 state for each trained value."""
        return 4 * len(self.moments)

    def fresh_state(self, parameter: Tensor) -> dict[str, Tensor]:
        """Return a parameter's state as it is before the first step."""
        scalars = {name: torch.zeros((), dtype=torch.float32) for name in self.scalars}
        return scalars | {name: torch.zeros_like(parameter.detach()) for name in self.moments}


def _adamw(groups: list[dict[str, Any]], config: OptimizerSettings) -> torch.optim.Optimizer:
    return torch.optim.AdamW(groups, betas=config.betas, eps=config.eps)


OPTIMIZERS: Registry[OptimizerKind] = Registry(
    "optimizer",
    {"adamw": OptimizerKind(_adamw, moments=("exp_avg", "exp_avg_sq"), scalars=("step",))},
)


def find_optimizer(config: OptimizerSettings) -> OptimizerKind:
    """Return the kind that a job's `optimizer` section names.

    Raises:
        ValueError: there is none of that name, or it has no such options.
    """
    kind = OPTIMIZERS[config.name]
    unknown = sorted(set(config.config) - set(kind.option_names))
    if unknown:
        raise ValueError(
            f"optimizer {config.name} has no option {', '.join(unknown)} in optimizer.config; it has "
            f"{', '.join(kind.option_names) or 'none'}"
        )
    return kind
