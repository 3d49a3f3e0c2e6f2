"""AdamW over parameter groups, and the learning rate as a pure function of the step."""

import math
import re
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from pelagos.platform.config.schema import OptimizerConfig, ScheduleConfig

OptimizerFactory = Callable[[nn.Module], torch.optim.Optimizer]


def optimizer_factory(config: OptimizerConfig) -> OptimizerFactory:
    """Return the function that builds the optimizer of a model, after any sharding or wrapping."""

    def build(model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.AdamW(
            parameter_groups(model, config), betas=config.betas, eps=config.eps
        )

    return build


def parameter_groups(model: nn.Module, config: OptimizerConfig) -> list[dict[str, Any]]:
    """Return optimizer groups that hold every trainable parameter exactly once.

    A parameter takes the settings of the first of `config.groups` whose pattern is found in its
    name; vectors, scalars and the names of `model.no_weight_decay()` are not decayed (unless a
    group says so).

    Raises:
        ValueError: a pattern matches no parameter.
    """
    exempt: set[str] = getattr(model, "no_weight_decay", set)()
    unmatched = {group.pattern for group in config.groups}
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        lr = config.lr
        decay = 0.0 if parameter.ndim < 2 or name in exempt else config.weight_decay
        for group in config.groups:
            if re.search(group.pattern, name):
                unmatched.discard(group.pattern)
                lr = group.lr if group.lr is not None else lr
                decay = group.weight_decay if group.weight_decay is not None else decay
                break
        entry = groups.setdefault(
            (lr, decay), {"params": [], "names": [], "lr": lr, "base_lr": lr, "weight_decay": decay}
        )
        entry["params"].append(parameter)
        entry["names"].append(name)
    if unmatched:
        names = [n for n, _ in model.named_parameters()]
        raise ValueError(
            f"optimizer.groups: {', '.join(sorted(unmatched))} match none of the "
            f"{len(names)} parameters, e.g. {', '.join(names[:3])}"
        )
    return list(groups.values())


def lr_factor(step: int, schedule: ScheduleConfig) -> float:
    """Return the share of the peak learning rate used in `step` (counted from 0).

    Linear from 0 over `warmup_steps`, then constant or half a cosine down to
    `final_lr_fraction` at `total_steps` (Loshchilov and Hutter, SGDR, 2017, eq. 5).
    """
    if step < schedule.warmup_steps:
        return (step + 1) / schedule.warmup_steps
    if schedule.name == "constant":
        return 1.0
    span = schedule.total_steps - schedule.warmup_steps
    progress = min(1.0, (step - schedule.warmup_steps) / span)
    low = schedule.final_lr_fraction
    return low + (1.0 - low) * 0.5 * (1.0 + math.cos(math.pi * progress))


def set_learning_rate(optimizer: torch.optim.Optimizer, factor: float) -> float:
    """Set each group's rate to `factor` times its peak; return the first group's rate."""
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor
    return float(optimizer.param_groups[0]["lr"])


class WeightAverage:
    """Exponential moving average of the trainable weights, in fp32.

    average <- decay * average + (1 - decay) * weight, with the decay raised from small values
    over the first steps, (1 + n) / (10 + n), so that the initial weights are forgotten.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.tensors = {
            name: parameter.detach().clone().float()
            for name, parameter in model.named_parameters()
            if parameter.requires_grad
        }

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Take in the weights after optimizer step `step` (counted from 0)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, parameter in model.named_parameters():
            if name in self.tensors:
                self.tensors[name].lerp_(parameter.detach().float(), 1.0 - decay)
