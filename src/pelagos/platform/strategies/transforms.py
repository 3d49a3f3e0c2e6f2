"""What is applied to a model from outside, in one fixed order: recompute, compile, precision."""

from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_map_only
from torch.utils.checkpoint import checkpoint

from pelagos.platform.strategies.base import StrategyOptions
from pelagos.platform.strategies.precision import apply_precision, check_precision


def apply_transforms(model: nn.Module, options: StrategyOptions) -> None:
    """Wrap the blocks that the model names (`model.blocks()`), then its forward pass, in place.

    Order matters: activation checkpointing goes inside, so that a compiled block contains its own
    recomputation. Parameter names do not change.

    Raises:
        ValueError: the model names no blocks but a per-block transform is asked for, or the device
            lacks the precision.
    """
    check_precision(options.precision, options.use_gpu)
    blocks = blocks_of(model)
    if not blocks and (options.activation_checkpointing != "none" or options.compile):
        raise ValueError(
            f"{type(model).__name__} names no blocks(), which parallel.activation_checkpointing "
            "and parallel.compile apply to; set them to none and false"
        )
    for block in blocks:
        block.register_forward_pre_hook(_gather_gradients_at_input, with_kwargs=True)
        if options.activation_checkpointing == "full":
            _checkpoint_in_place(block)
        if options.compile:
            block.compile()
    apply_precision(model, options.precision, "cuda" if options.use_gpu else "cpu")


def blocks_of(model: nn.Module) -> list[nn.Module]:
    """Return the repeated blocks that the model names."""
    return list(getattr(model, "blocks", list)())


def _gather_gradients_at_input(
    _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Let a block's inputs enter through an alias, which costs nothing.

    Backward then sums what the block contributes to the gradient of its input before that meets
    what others contribute. FSDP2 puts such a node at the inputs of what it wraps; with one under
    every strategy, the sums have one order, and the gradients the same bits.
    """
    return tree_map_only(Tensor, _alias, args), tree_map_only(Tensor, _alias, kwargs)


def _alias(tensor: Tensor) -> Tensor:
    return tensor.view_as(tensor) if tensor.requires_grad else tensor


def _checkpoint_in_place(block: nn.Module) -> None:
    """Recompute `block` in the backward pass, keeping the module object and its names."""
    forward = block.forward

    def recomputed(*args: Any, **kwargs: Any) -> Any:
        return checkpoint(forward, *args, use_reentrant=False, **kwargs)

    block.forward = recomputed
