"""Activation checkpointing, applied from outside: which blocks recompute in the backward pass.

Chen et al., Training deep nets with sublinear memory cost, 2016; selectively: Korthikanti et al.,
Reducing activation recomputation in large transformer models, 2022, section 5.
"""

import functools
import logging
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)
from torch.utils.flop_counter import FlopCounterMode

from pelagos.platform.config.schema import EveryNConfig, MemoryBudgetConfig
from pelagos.platform.strategies.base import Recompute

logger = logging.getLogger(__name__)
Mode = Literal["none", "full", "selective"]
ExampleLoss = Callable[[nn.Module], Tensor]
GIBIBYTE = 2**30

aten = torch.ops.aten
# `selective` keeps the products. Everything else is cheap to recompute.
KEPT_OPERATORS = frozenset(
    {
        aten.mm.default,
        aten.addmm.default,
        aten.bmm.default,
        aten.baddbmm.default,
        aten.linear.default,
        aten.convolution.default,
        aten._fft_r2c.default,
        aten._fft_c2r.default,
        aten._fft_c2c.default,
        aten._scaled_dot_product_flash_attention.default,
        aten._scaled_dot_product_flash_attention_for_cpu.default,
        aten._scaled_dot_product_efficient_attention.default,
        aten._scaled_dot_product_cudnn_attention.default,
    }
)
if hasattr(torch.ops.mkldnn, "_linear_pointwise"):  # linear layers on some CPUs
    KEPT_OPERATORS |= {torch.ops.mkldnn._linear_pointwise.default}


@dataclass(frozen=True)
class BlockCost:
    """The memory that one block keeps for the backward pass, and the cost of recomputing it."""

    kept_bytes: int
    """Activations saved inside the block, without its inputs."""
    kept_until_here_bytes: int
    """Activations saved from the start of the forward pass to the end of this block."""
    flops: int


def apply_recompute(
    model: nn.Module,
    blocks: Sequence[nn.Module],
    choice: Recompute,
    example_loss: ExampleLoss | None,
    static_bytes: int,
) -> None:
    """Wrap the blocks that are to recompute, in place; module objects and names stay.

    Args:
        model: on the meta device if a memory budget is to be measured without computing anything.
        blocks: the model's blocks, in the order of the forward pass.
        choice: `parallel.activation_checkpointing`.
        example_loss: runs a micro-batch forward; needed for a memory budget.
        static_bytes: weights, gradients and moments of one rank.

    Raises:
        ValueError: the memory budget cannot be met.
    """
    for block, mode in zip(
        blocks, block_modes(model, blocks, choice, example_loss, static_bytes), strict=True
    ):
        if mode != "none":
            _recompute_in_place(block, mode)


def block_modes(
    model: nn.Module,
    blocks: Sequence[nn.Module],
    choice: Recompute,
    example_loss: ExampleLoss | None,
    static_bytes: int,
) -> list[Mode]:
    """Return the choice for each block; a function of model, micro-batch and choice alone."""
    if isinstance(choice, EveryNConfig):
        return ["none" if i % choice.every_n else "full" for i in range(len(blocks))]
    if isinstance(choice, MemoryBudgetConfig):
        assert example_loss is not None, "a memory budget needs an example batch to measure"
        costs, rest = measure_blocks(model, blocks, example_loss)
        chosen = blocks_within(costs, rest, choice.memory_budget_bytes, static_bytes)
        logger.info(
            "memory budget of %.2f GiB: %d of %d blocks recompute, %.1f %% of their forward FLOPs",
            choice.memory_budget_bytes / GIBIBYTE,
            len(chosen),
            len(blocks),
            100 * sum(costs[i].flops for i in chosen) / max(1, sum(c.flops for c in costs)),
        )
        return ["full" if i in chosen else "none" for i in range(len(blocks))]
    return [choice] * len(blocks)


def measure_blocks(
    model: nn.Module, blocks: Sequence[nn.Module], example_loss: ExampleLoss
) -> tuple[list[BlockCost], int]:
    """Run one forward pass; return each block's costs, and all bytes that are saved in it."""
    # storages are held, not only their addresses: that of one which is freed would be given again
    seen: dict[int, Tensor] = {_storage(p): p for p in (*model.parameters(), *model.buffers())}
    total = 0

    def save(tensor: Tensor) -> Tensor:
        nonlocal total
        if _storage(tensor) not in seen:
            seen[_storage(tensor)] = tensor
            total += tensor.untyped_storage().nbytes()
        return tensor

    counter = FlopCounterMode(display=False)
    starts: list[tuple[int, int]] = []
    costs: dict[int, BlockCost] = {}
    index_of = {id(block): index for index, block in enumerate(blocks)}

    def enter(_: nn.Module, inputs: tuple[Any, ...]) -> None:
        for x in inputs:
            if isinstance(x, Tensor):
                save(x)
        starts.append((total, counter.get_total_flops()))

    def leave(block: nn.Module, *_: Any) -> None:
        bytes_before, flops_before = starts.pop()
        flops = counter.get_total_flops() - flops_before
        costs[index_of[id(block)]] = BlockCost(total - bytes_before, total, flops)

    hooks = [h for b in blocks for h in (b.register_forward_pre_hook(enter),)]
    hooks += [b.register_forward_hook(leave) for b in blocks]
    try:
        with torch.autograd.graph.saved_tensors_hooks(save, lambda t: t), counter:
            example_loss(model)
    finally:
        for hook in hooks:
            hook.remove()
    return [costs[i] for i in range(len(blocks))], total


def blocks_within(
    costs: Sequence[BlockCost], total_bytes: int, budget_bytes: int, static_bytes: int
) -> set[int]:
    """Return the blocks to recompute in full, of least cost, so that the peak stays in the budget.

    torch's integer program (`sac_milp`) chooses, given each block's saved bytes and, for the time
    it takes, its FLOPs.

    Raises:
        ValueError: recomputing every block does not suffice; the arithmetic is in the message.
    """
    try:
        from torch.distributed._tools.ilp_utils import Graph
        from torch.distributed._tools.sac_ilp import sac_milp
    except ImportError as error:
        raise ValueError(
            "parallel.activation_checkpointing: a memory budget needs PuLP, which is not "
            "installed: `pip install pulp`, or choose the blocks with full, selective or every_n"
        ) from error
    available = budget_bytes - static_bytes
    discardable = sum(c.kept_bytes for c in costs)
    smallest = total_bytes - discardable + max((c.kept_bytes for c in costs), default=0)
    if total_bytes <= available:
        return set()
    problem = ValueError(
        f"parallel.activation_checkpointing: memory_budget_bytes is {budget_bytes:,}. Weights, "
        f"gradients and moments take {static_bytes:,}, and with every block recomputed the "
        f"activations take at least about {smallest:,}: {static_bytes + smallest:,} together. Raise "
        "the budget, lower parallel.micro_batch_size, or shard over more workers."
    )
    if available <= 0:
        raise problem
    graph = Graph(len(costs) + 1)
    graph.add_node(_node(0, "model", len(costs), BlockCost(total_bytes, total_bytes, 0)))
    for index, cost in enumerate(costs):
        graph.add_node(_node(index + 1, f"block {index}", index, cost))
        graph.ad_matrix[0][index + 1] = 1
    graph.fw_post_order = [*(f"block {i}" for i in range(len(costs))), "model"]
    units = [f"block {i}" for i in range(len(costs))]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of PuLP 4, which torch does not take
        chosen, _, peak = sac_milp(graph, available / GIBIBYTE, ac_units=units)
    if peak < 0:
        raise problem
    return {int(name.removeprefix("block ")) for name in chosen}


def _node(index: int, name: str, position: int, cost: BlockCost) -> Any:
    """Return a node as `sac_milp` reads it; parameters are accounted for outside."""
    return {
        "index": index,
        "fqn": name,
        "pos_fw_post_order": position,
        "is_leaf": False,
        "param_per_module": 0,
        "grad_per_module": 0,
        "grad_total": 0,
        "act_fw_per_module": max(1, cost.kept_bytes),
        "sac_memory": max(1, cost.kept_bytes),
        "act_grad_per_module": 0,
        "act_total": cost.kept_until_here_bytes,
        "sac_runtime": cost.flops / 1e9,
        "n_segments": 1,
        "slopes": [0.0],  # a block is recomputed whole: its time does not depend on the share
        "intercepts": [1.0],
    }


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _recompute_in_place(block: nn.Module, mode: Mode) -> None:
    """Recompute `block` in the backward pass, keeping the module object and its names."""
    forward = block.forward
    options: dict[str, Any] = {"use_reentrant": False}
    if mode == "selective":
        options["context_fn"] = functools.partial(create_selective_checkpoint_contexts, _policy)

    def recomputed(*args: Any, **kwargs: Any) -> Any:
        return checkpoint(forward, *args, **options, **kwargs)

    block.forward = recomputed


def _policy(_: Any, operator: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    if operator in KEPT_OPERATORS:
        return CheckpointPolicy.MUST_SAVE
    return CheckpointPolicy.PREFER_RECOMPUTE
