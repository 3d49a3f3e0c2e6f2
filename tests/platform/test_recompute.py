"""Recomputing activations: the same bits, fewer bytes kept, and a budget that is met."""

import shutil
from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from pelagos.models.registry import create_model
from pelagos.platform.config.schema import EveryNConfig, MemoryBudgetConfig
from pelagos.platform.strategies.base import Recompute, StrategyOptions
from pelagos.platform.strategies.recompute import apply_recompute, measure_blocks
from pelagos.platform.strategies.transforms import apply_transforms

MIB = 2**20


def network() -> nn.Module:
    torch.manual_seed(0)
    return create_model(
        "poseidon-nano",
        image_size=32,
        embed_dim=16,
        depths=(4, 4),
        num_heads=(2, 2),
        window_size=4,
        skip_connections=(1, 0),
    )


def example_loss(model: nn.Module) -> Tensor:
    with next(model.parameters()).device:
        x, time = torch.linspace(0, 1, 4 * 4 * 32 * 32).reshape(4, 4, 32, 32), torch.ones(4)
    output: Tensor = model(x, time).output
    return output.square().mean()


def blocks_of(model: nn.Module) -> list[nn.Module]:
    return list(model.blocks())  # type: ignore[operator]


def kept_bytes_and_gradients(choice: Recompute) -> tuple[int, list[Tensor]]:
    model = network()
    apply_recompute(model, blocks_of(model), choice, example_loss, 0)
    kept: dict[int, Tensor] = {}  # the tensors themselves: freed addresses are given again
    parameters = {p.untyped_storage().data_ptr() for p in (*model.parameters(), *model.buffers())}

    def save(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = tensor.detach()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(save, lambda t: t):
        loss = example_loss(model)
        total = sum(t.untyped_storage().nbytes() for t in kept.values())
    torch.autograd.backward(loss)
    return total, [p.grad for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize("choice", ["full", "selective", EveryNConfig(every_n=2)])
def test_recomputing_changes_no_bit(choice: Recompute) -> None:
    _, expected = kept_bytes_and_gradients("none")
    _, gradients = kept_bytes_and_gradients(choice)
    assert len(gradients) == len(expected)
    assert all(torch.equal(a, b) for a, b in zip(gradients, expected, strict=True))


def test_more_recomputing_keeps_fewer_bytes() -> None:
    everything, _ = kept_bytes_and_gradients("none")
    half, _ = kept_bytes_and_gradients(EveryNConfig(every_n=2))
    nothing, _ = kept_bytes_and_gradients("full")
    assert nothing < half < everything


class Counted(TorchDispatchMode):
    """Counts operators by name, those of a recomputation included."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.counts[str(func)] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("choice", "products", "activations"),
    [("none", 2, 2), ("selective", 2, 3), ("full", 4, 3)],
)
def test_only_a_full_recomputation_repeats_matrix_products(
    choice: Recompute, products: int, activations: int
) -> None:
    """Repeated is what the backward pass needs: the last activation's result is no part of it."""
    block = nn.Sequential(nn.Linear(3, 5), nn.GELU(), nn.Linear(5, 3), nn.GELU())
    apply_recompute(block, [block], choice, lambda model: model(torch.ones(2, 3)).sum(), 0)
    with Counted() as counted:
        torch.autograd.backward(block(torch.ones(2, 3)).sum())
    assert counted.counts["aten.addmm.default"] == products
    assert counted.counts["aten.gelu.default"] == activations


def test_a_measurement_on_the_meta_device_is_what_a_real_pass_keeps() -> None:
    model = network()
    real, real_total = measure_blocks(model, blocks_of(model), example_loss)
    with torch.device("meta"):
        empty = network()
    costs, total = measure_blocks(empty, blocks_of(empty), example_loss)
    assert [c.flops for c in costs] == [c.flops for c in real]
    assert all(c.flops > 0 and c.kept_bytes > 0 for c in costs)
    # operators may save other helper tensors on another device, but no other activations
    assert total == pytest.approx(real_total, rel=0.1)


def test_a_memory_budget_is_met_by_recomputing_no_more_than_it_takes() -> None:
    everything, _ = kept_bytes_and_gradients("none")
    nothing, _ = kept_bytes_and_gradients("full")
    kept = []
    for share in (1.1, 0.95, 0.8):
        budget = int(nothing + share * (everything - nothing))
        total, gradients = kept_bytes_and_gradients(MemoryBudgetConfig(memory_budget_bytes=budget))
        assert total <= budget
        kept.append(total)
    assert kept[0] == everything  # nothing to do
    assert nothing <= kept[2] <= kept[1] < everything
    assert nothing < kept[1]
    _, expected = kept_bytes_and_gradients("none")
    assert all(torch.equal(a, b) for a, b in zip(gradients, expected, strict=True))


def test_a_budget_that_cannot_be_met_is_refused_with_the_arithmetic() -> None:
    model = network()
    choice = MemoryBudgetConfig(memory_budget_bytes=MIB)
    with pytest.raises(ValueError, match=r"is 1,048,576. Weights, .* take 4,000,000, and "):
        apply_recompute(model, blocks_of(model), choice, example_loss, 4_000_000)
    choice = MemoryBudgetConfig(memory_budget_bytes=200_000)
    with pytest.raises(ValueError, match="with every block recomputed"):
        apply_recompute(model, blocks_of(model), choice, example_loss, 0)


@pytest.mark.matrix  # two minutes of compiling
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_blocks_that_share_code_on_three_grids_compile_to_the_same_numbers() -> None:
    """Given sizes as unknowns, torch's code generator would fail on the third grid."""
    losses = {}
    for compiled in (False, True):
        torch.manual_seed(0)
        model = create_model(
            "poseidon-nano",
            image_size=32,
            embed_dim=8,
            depths=(1, 1, 1),
            num_heads=(2, 2, 2),
            window_size=4,
            skip_connections=(1, 1, 0),
        )
        apply_transforms(model, StrategyOptions(compile=compiled), static_bytes=0)
        loss = example_loss(model)
        loss.backward()  # type: ignore[no-untyped-call]
        losses[compiled] = loss.item()
    assert losses[True] == pytest.approx(losses[False], rel=1e-5)
