"""What every strategy is built on: its interface, sums over ranks, memory, precision, processes."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn

from pelagos.platform.config.schema import FullyShardConfig, ZeroConfig
from pelagos.platform.strategies import create_strategy
from pelagos.platform.strategies.base import Precision, Strategy, StrategyOptions
from pelagos.platform.strategies.fully_shard import shard_group_size
from pelagos.platform.strategies.precision import apply_precision, check_precision
from pelagos.platform.strategies.processes import ensure_process_group, rank_device

REQUIRED = (
    "static_bytes_per_parameter",
    "prepare",
    "micro_step",
    "backward",
    "step",
    "optimizer",
    "weights",
    "state",
    "load_state",
)

# -- the interface -------------------------------------------------------------------------------------


@pytest.mark.parametrize("missing", REQUIRED)
def test_a_strategy_has_every_method(missing: str) -> None:
    methods = {name: lambda self: None for name in REQUIRED if name != missing}
    with pytest.raises(TypeError, match=f"abstract.* '?{missing}'?$"):
        type("Incomplete", (Strategy,), methods)(StrategyOptions())
    type("Complete", (Strategy,), {**methods, missing: None})(StrategyOptions())


@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16", "fp16"])
def test_fp16_alone_scales_its_loss(precision: Precision) -> None:
    methods = dict.fromkeys(REQUIRED)
    strategy = type("Any", (Strategy,), methods)(StrategyOptions(precision=precision))
    assert (strategy.loss_scale is not None) == (precision == "fp16")
    strategy.rank, strategy.world_size = 3, 7
    assert (strategy.data_rank, strategy.data_world_size) == (3, 7)


# -- memory --------------------------------------------------------------------------------------------


def bytes_held(layouts: list[tuple[str, dict[str, Any], dict[str, Any]]]) -> list[int]:
    """Bytes that a rank holds of eight parameters: weights, gradients and what AdamW keeps."""
    found = []
    for name, fsdp, zero in layouts:
        options = StrategyOptions(fsdp=FullyShardConfig(**fsdp), zero=ZeroConfig(**zero))
        strategy = create_strategy(name, options)
        try:
            found.append(strategy.static_bytes(nn.Linear(3, 2)))
        finally:
            strategy.close()
    return found


# Of fp32: a weight, its gradient, two moments of 4 bytes each. DDP copies gradients into buckets.
# ZeRO (Rajbhandari et al., SC 2020, fig. 1) cuts up moments, with a second copy of the weights that
# they belong to; then gradients; then weights.
BYTES_ON_TWO_RANKS: dict[str, tuple[str, dict[str, Any], dict[str, Any], int]] = {
    "ddp": ("ddp", {}, {}, 4 + 4 + 8 + 4),
    "fsdp": ("fsdp", {}, {}, (4 + 4 + 8) // 2),
    "fsdp offloaded": ("fsdp", {"cpu_offload": True}, {}, 0),
    "hsdp of one": ("hsdp", {"shard_group_size": 1}, {}, 4 + 4 + 8),
    "hsdp of two": ("hsdp", {"shard_group_size": 2}, {}, (4 + 4 + 8) // 2),
    "zero1": ("zero1", {}, {}, 4 + 4 + (4 + 8) // 2),
    "zero2": ("zero2", {}, {}, 4 + (4 + 4 + 8) // 2),
    "zero3": ("zero3", {}, {}, (4 + 4 + 8) // 2),
    "zero1 offloaded": ("zero1", {}, {"offload_optimizer": "cpu"}, 4 + 4),
    "zero2 offloaded": ("zero2", {}, {"offload_optimizer": "cpu"}, 4 + 4 // 2),
}


def test_bytes_of_weights_gradients_and_moments(rank_pool: Any) -> None:
    assert bytes_held([("single", {}, {})]) == [8 * (4 + 4 + 8)]
    layouts = [row[:3] for row in BYTES_ON_TWO_RANKS.values()]
    for found in rank_pool.call(2, __file__, "bytes_held", layouts=layouts):
        told = dict(zip(BYTES_ON_TWO_RANKS, found, strict=True))
        assert told == {name: 8 * row[3] for name, row in BYTES_ON_TWO_RANKS.items()}


# -- ranks ---------------------------------------------------------------------------------------------


def sums_and_waiting() -> dict[str, Any]:
    """Add numbers over two ranks in both ways, then let rank 0 come late to a barrier."""
    strategy = create_strategy("ddp", StrategyOptions())
    try:
        given = torch.tensor([strategy.rank + 1.0, 10.0])
        result: dict[str, Any] = {
            "sum": strategy.all_reduce_sum(given).tolist(),
            "over_data": strategy.sum_over_data(given).tolist(),
        }
        groups = [dist.new_group([rank]) for rank in range(2)]
        strategy.data_group = groups[strategy.rank]  # as where both ranks hold the same samples
        result["over_own_data"] = strategy.sum_over_data(given).tolist()
        result["given"] = given.tolist()
        if strategy.rank == 0:
            time.sleep(0.3)
        before = time.monotonic()
        strategy.barrier()
        result["waited"] = time.monotonic() - before
        return result
    finally:
        strategy.close()


def test_sums_are_over_all_ranks_or_over_shares_of_the_data(rank_pool: Any) -> None:
    ranks = rank_pool.call(2, __file__, "sums_and_waiting")
    for rank, found in enumerate(ranks):
        assert found["sum"] == found["over_data"] == [3.0, 20.0]
        assert found["over_own_data"] == found["given"] == [rank + 1.0, 10.0]
    assert ranks[1]["waited"] > 0.1


@pytest.mark.parametrize(
    ("configured", "local", "world_size", "expected"),
    [(None, None, 6, 6), (None, 4, 8, 4), (None, 4, 6, 2), (3, 4, 6, 3), (1, 4, 8, 1)],
)
def test_ranks_of_a_node_share_a_copy_unless_configured(
    configured: int | None,
    local: int | None,
    world_size: int,
    expected: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    if local is not None:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(local))
    assert shard_group_size(configured, world_size) == expected


def test_a_share_that_does_not_divide_is_refused_with_the_arithmetic() -> None:
    with pytest.raises(ValueError, match=r"got 4, .*: 6 = 1 x 4 \+ 2\. Use one of \[1, 2, 3, 6\]"):
        shard_group_size(4, 6)


def test_a_process_alone_makes_its_group_once() -> None:
    assert not dist.is_initialized()
    try:
        assert ensure_process_group(use_gpu=False, timeout_seconds=77)
        assert (dist.get_rank(), dist.get_world_size(), dist.get_backend()) == (0, 1, "gloo")
        group = dist.distributed_c10d._get_default_group()
        assert group._get_backend(torch.device("cpu")).options._timeout == timedelta(seconds=77)
        assert not ensure_process_group(use_gpu=False, timeout_seconds=1)
    finally:
        dist.destroy_process_group()
    assert rank_device(use_gpu=False) == torch.device("cpu")


@pytest.mark.parametrize(("local_rank", "gpu"), [(None, 0), ("0", 0), ("3", 3), ("5", 1)])
def test_ranks_of_a_node_take_its_gpus_in_turn(
    local_rank: str | None, gpu: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four GPUs, as far as torch is asked; the process group is a real one."""
    taken: list[int] = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    if local_rank is not None:
        monkeypatch.setenv("LOCAL_RANK", local_rank)
    ensure_process_group(use_gpu=False, timeout_seconds=60)
    try:
        assert taken == []
        assert not ensure_process_group(use_gpu=True, timeout_seconds=60)
        assert taken == [gpu]
    finally:
        dist.destroy_process_group()
    monkeypatch.setattr(torch.cuda, "current_device", lambda: gpu)
    assert rank_device(use_gpu=True) == torch.device("cuda", gpu)


# -- precision -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_weights_and_gradients_stay_fp32_while_products_do_not(precision: Precision) -> None:
    model = nn.Linear(3, 2)
    apply_precision(model, precision, "cpu")
    x = torch.ones(4, 3, requires_grad=True)
    out = model(x)
    expected = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    assert out.dtype == expected
    out.float().sum().backward()
    assert {t.dtype for t in (model.weight, model.weight.grad, x.grad)} == {torch.float32}


@pytest.mark.parametrize("named", ["in fp32", "in tf32", "in bf16"])
def test_tf32_is_allowed_where_it_is_asked_for(named: str) -> None:
    precision: Any = named.split()[1]  # as words come from a file
    places = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [place.allow_tf32 for place in places]
    try:
        for asked in (True, False):
            for place in places:
                place.allow_tf32 = not asked
            apply_precision(nn.Linear(3, 2), precision if asked else "fp32", "cuda")
            expected = asked and precision == "tf32"
            assert [place.allow_tf32 for place in places] == [expected] * 2
    finally:
        for place, value in zip(places, before, strict=True):
            place.allow_tf32 = value


def test_a_processor_takes_no_tf32() -> None:
    with pytest.raises(ValueError, match=r"parallel\.precision: "):
        check_precision("tf32", use_gpu=False)
    others: tuple[Precision, ...] = ("fp32", "fp16", "bf16")
    for precision in others:
        check_precision(precision, use_gpu=False)


@pytest.mark.parametrize(
    ("name", "capability", "lacks"),
    [("T4", (7, 5), ("bf16", "tf32")), ("A100", (8, 0), ()), ("H100", (9, 0), ())],
)
def test_a_gpu_before_ampere_has_no_bf16_and_no_tf32(
    name: str, capability: tuple[int, int], lacks: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compute capabilities as NVIDIA lists them (CUDA C++ Programming Guide, section 16)."""
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: name)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    precisions: tuple[Precision, ...] = ("fp32", "fp16", "bf16", "tf32")
    for precision in precisions:
        if precision in lacks:
            told = rf"T4 has compute capability 7\.5, but {precision} needs 8\.0; use fp16 or fp32"
            with pytest.raises(ValueError, match=told):
                check_precision(precision, use_gpu=True)
        else:
            check_precision(precision, use_gpu=True)
