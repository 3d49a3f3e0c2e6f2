"""Transformations applied to a model from outside, in fixed order: recompute, compile, precision."""

from typing import Any

from torch import Tensor, nn

from pelagos.platform.strategies.base import StrategyOptions
from pelagos.platform.strategies.precision import apply_precision, check_precision
from pelagos.platform.strategies.recompute import apply_recompute

GRAPHS_PER_BLOCK = 8


def apply_transforms(model: nn.Module, options: StrategyOptions, static_bytes: int) -> None:
    """Wrap the blocks that the model names (`model.blocks()`), then its forward pass, in place.

    Called before the model is drawn and sharded. `static_bytes` is the size of weights, gradients and
    moments on one rank.

    Order matters: activation checkpointing goes inside, so that a compiled block contains its own
    recomputation. Parameter names do not change.

    Raises:
        ValueError: the model names no blocks but a per-block transform is asked for, the device
            lacks the precision, or a memory budget cannot be met.
    """
    check_precision(options.precision, options.use_gpu)
    blocks = blocks_of(model)
    if not blocks and (options.activation_checkpointing != "none" or options.compile):
        raise ValueError(
            f"{type(model).__name__} has no blocks(), which parallel.activation_checkpointing and "
            "parallel.compile need; set them to none and false"
        )
    fix_order_of_gradient_sums(model)
    apply_recompute(
        model, blocks, options.activation_checkpointing, options.example_loss, static_bytes
    )
    if options.compile:
        _allow_graphs(len(blocks))
        for block in blocks:
            # Blocks share their code and differ in grid and width; what torch makes of such shapes
            # as unknowns, its own code generator fails on (Poseidon-T, torch 2.13).
            block.compile(dynamic=False)
    apply_precision(model, options.precision, "cuda" if options.use_gpu else "cpu")


def _allow_graphs(num_blocks: int) -> None:
    """Let every block have as many graphs as torch lets one function have.

    Torch counts them by code, which the blocks share: at its limit of 8 the others would run as they
    are written, with a warning. Blocks differ in width and grid, and each runs with gradients and
    without, on every grid of a mixture.
    """
    from torch._dynamo import config

    most = GRAPHS_PER_BLOCK * num_blocks
    config.recompile_limit = max(config.recompile_limit, most)
    config.accumulated_recompile_limit = max(config.accumulated_recompile_limit, 2 * most)


def blocks_of(model: nn.Module) -> list[nn.Module]:
    """Return the repeated blocks that the model names."""
    return list(getattr(model, "blocks", list)())


def fix_order_of_gradient_sums(model: nn.Module) -> None:
    """Let the inputs of every composite module enter through an alias, which copies nothing.

    Where a tensor has several uses, backward adds up their contributions to its gradient. With the
    alias, the contributions of one module are summed before those of others join. FSDP2 and ZeRO-3
    put autograd nodes there that have this effect; with the alias, every strategy adds in the same
    order, and gradients have the same bits.
    """
    for module in model.modules():
        if next(module.children(), None) is not None:
            module.register_forward_pre_hook(_alias_inputs)


def _alias_inputs(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(x.view_as(x) if isinstance(x, Tensor) and x.requires_grad else x for x in inputs)
