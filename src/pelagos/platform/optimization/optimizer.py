"""The optimizer over parameter groups, and their rates and decays."""

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import nn

from pelagos.platform.optimization.optimizer_kinds import find_optimizer
from pelagos.platform.optimization.settings import OptimizerSettings

OptimizerFactory = Callable[[nn.Module], torch.optim.Optimizer]


class GroupSettings(NamedTuple):
    """The optimizer's treatment of a parameter; `pattern` is the index of the one that matched."""

    lr: float
    weight_decay: float
    pattern: int = -1
    frozen_until_step: int = 0


def optimizer_factory(config: OptimizerSettings, model: nn.Module) -> OptimizerFactory:
    """Return the function that builds the optimizer of `model` once it is wrapped and sharded.

    Which parameter is in which group is settled here: a sharded parameter may have lost its shape.

    Raises:
        ValueError: a pattern of the configuration matches no parameter; there is no such optimizer.
    """
    settings, kind = group_settings(model, config), find_optimizer(config)

    def build(sharded: nn.Module) -> torch.optim.Optimizer:
        groups = parameter_groups(sharded, settings)
        return kind.build(groups, config)

    return build


def freeze(model: nn.Module, patterns: tuple[str, ...]) -> None:
    """Mark the parameters whose names match a pattern as not trained.

    Raises:
        ValueError: a pattern matches no parameter, or nothing is left to train.
    """
    unmatched = set(patterns)
    for name, parameter in model.named_parameters():
        found = {pattern for pattern in patterns if re.search(pattern, name)}
        unmatched -= found
        if found:
            parameter.requires_grad_(False)
    if unmatched:
        raise ValueError(_no_match("optimizer.frozen", unmatched, model))
    if not any(p.requires_grad for p in model.parameters()):
        raise ValueError("optimizer.frozen matches every parameter, so nothing is left to train")


def group_settings(model: nn.Module, config: OptimizerSettings) -> dict[str, GroupSettings]:
    """Return the settings of every trainable parameter by name.

    A parameter takes the settings of the first of `config.groups` whose pattern is found in its
    name. Not decayed, unless a group says so, are the names of `model.no_weight_decay()`, which is
    the model's whole rule; of a model without one, vectors and scalars. Rates fall towards the input
    by `config.layer_decay` (layer-wise decay, as in BEiT, arXiv:2106.08254, appendix G).

    Raises:
        ValueError: a pattern matches no parameter.
    """
    exempt = _exempt(model)
    unmatched = {group.pattern for group in config.groups}
    shares = layer_shares(model, config.layer_decay)
    settings: dict[str, GroupSettings] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        lr = config.lr
        decay = 0.0 if name in exempt else config.weight_decay
        matched, frozen_until = -1, 0
        for index, group in enumerate(config.groups):
            if re.search(group.pattern, name):
                unmatched.discard(group.pattern)
                lr = group.lr if group.lr is not None else lr
                decay = group.weight_decay if group.weight_decay is not None else decay
                matched, frozen_until = index, group.frozen_until_step
                break
        settings[name] = GroupSettings(lr * shares[name], decay, matched, frozen_until)
    if unmatched:
        raise ValueError(_no_match("optimizer.groups", unmatched, model))
    return settings


def _exempt(model: nn.Module) -> set[str]:
    """Return the names of parameters without weight decay."""
    rule: Callable[[], set[str]] | None = getattr(model, "no_weight_decay", None)
    if rule is not None:
        return rule()
    return {name for name, parameter in model.named_parameters() if parameter.ndim < 2}


def layer_shares(model: nn.Module, layer_decay: float) -> dict[str, float]:
    """Return each parameter's share of the rate.

    `layer_decay` to the power of the number of layers above it, the layers being `model.blocks()`
    in order, what comes before them, and after.
    """
    names = [name for name, _ in model.named_parameters()]
    if layer_decay == 1.0:
        return dict.fromkeys(names, 1.0)
    blocks: list[nn.Module] = getattr(model, "blocks", list)()
    places = {module: name for name, module in model.named_modules()}
    prefixes = [f"{places[block]}." for block in blocks]
    inside = {
        name: depth
        for name in names
        for depth, prefix in enumerate(prefixes, start=1)
        if name.startswith(prefix)
    }
    first = next((i for i, name in enumerate(names) if name in inside), 0)
    top = len(blocks) + 1
    depths = {name: inside.get(name, 0 if i < first else top) for i, name in enumerate(names)}
    return {name: layer_decay ** (top - depth) for name, depth in depths.items()}


def parameter_groups(model: nn.Module, settings: dict[str, GroupSettings]) -> list[dict[str, Any]]:
    """Return optimizer groups that hold every trainable parameter exactly once."""
    groups: dict[GroupSettings, dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if name not in settings:
            continue
        own = settings[name]
        entry = groups.setdefault(
            own,
            {
                "params": [],
                "names": [],
                "lr": own.lr,
                "base_lr": own.lr,
                "weight_decay": own.weight_decay,
                "frozen_until_step": own.frozen_until_step,
            },
        )
        entry["params"].append(parameter)
        entry["names"].append(name)
    return list(groups.values())


def _no_match(key: str, patterns: set[str], model: nn.Module) -> str:
    names = [n for n, _ in model.named_parameters()]
    return (
        f"{key}: {', '.join(sorted(patterns))} matches none of the {len(names)} parameters, e.g. "
        f"{', '.join(names[:3])}"
    )


def set_learning_rate(optimizer: torch.optim.Optimizer, factor: float, step: int) -> float:
    """Set each group's rate for `step` to `factor` times its peak; return the highest.

    A rate of 0 leaves a group's weights as they are, bit for bit: AdamW's decay is times the rate
    too. So a group stays frozen until its step (gradual unfreezing, arXiv:1801.06146, sec. 3.3).
    """
    for group in optimizer.param_groups:
        is_frozen = step < group.get("frozen_until_step", 0)
        group["lr"] = 0.0 if is_frozen else group["base_lr"] * factor
    return max(float(group["lr"]) for group in optimizer.param_groups)
