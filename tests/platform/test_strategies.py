"""What a strategy promises about one step, about initial weights, and what it refuses."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from pelagos.jobs.training.checking import checked
from pelagos.models.registry import create_model
from pelagos.platform.config import ConfigError, PretrainJob
from pelagos.platform.config.schema import OptimizerConfig, ZeroConfig
from pelagos.platform.optimization.optimizer import optimizer_factory
from pelagos.platform.optimization.optimizer_kinds import OPTIMIZERS, OptimizerKind
from pelagos.platform.strategies import STRATEGIES, check_strategy, create_strategy
from pelagos.platform.strategies.base import Precision, Strategy, StrategyOptions
from pelagos.platform.strategies.gradients import LossScale, clip_factor, global_norm
from pelagos.platform.strategies.initialize import draw_missing
from pelagos.platform.strategies.zero_config import zero_config
from pelagos.platform.tensor_layout import local_part

MakeJob = Callable[..., PretrainJob]
MIB = 2**20


def prepared(strategy: Strategy, model: nn.Module, **config: Any) -> nn.Module:
    return strategy.prepare(model, optimizer_factory(OptimizerConfig(**config), model))


@pytest.mark.parametrize("factor", [1.0, math.nan, math.inf])
def test_only_a_finite_gradient_changes_weights(factor: float) -> None:
    strategy = create_strategy("single", StrategyOptions(clip_norm=1.0))
    try:
        model = nn.Linear(3, 2)
        before = model.weight.detach().clone()
        wrapped = prepared(strategy, model)
        with strategy.micro_step(is_last=True):
            strategy.backward((wrapped(torch.ones(4, 3)) * factor).sum())
        norm = strategy.step()
        assert math.isfinite(norm) == math.isfinite(factor)
        assert torch.equal(model.weight, before) == (not math.isfinite(factor))
        assert model.weight.grad is None
    finally:
        strategy.close()


def test_the_norm_does_not_depend_on_how_gradients_are_cut_up() -> None:
    draw = torch.Generator().manual_seed(0)
    gradient = torch.randn(10_007, generator=draw) * torch.logspace(-6, 3, 10_007)
    whole = global_norm([gradient], None, torch.device("cpu"))
    for pieces in (2, 3, 64):
        cut = global_norm(list(gradient.chunk(pieces)), None, torch.device("cpu"))
        assert torch.equal(whole, cut)
    assert float(whole) == pytest.approx(float(gradient.double().norm()), rel=1e-7)


def test_clipping_brings_the_norm_down_to_its_limit_and_never_up() -> None:
    norm = torch.tensor(8.0)
    factor = clip_factor(norm, 2.0, 1.0)
    assert factor is not None
    assert float(factor) * 8.0 == pytest.approx(2.0, rel=1e-6)
    small = clip_factor(torch.tensor(0.5), 2.0, 1.0)
    assert small is not None
    assert float(small) == 1.0
    assert clip_factor(norm, None, 1.0) is None


def test_the_loss_scale_halves_on_overflow_and_grows_back() -> None:
    scale = LossScale(scale=8.0, growth_interval=2)
    scale.update(is_finite=False)
    assert scale.scale == 4.0
    scale.update(is_finite=True)
    restored = LossScale(growth_interval=2)
    restored.load(json.loads(json.dumps(scale.state())))
    for each in (scale, restored):
        each.update(is_finite=True)
        assert each.scale == 8.0
    broken = LossScale(scale=8.0, growth_interval=2)
    for is_finite in (True, False, True):  # two good steps, but not in a row
        broken.update(is_finite)
    assert broken.scale == 4.0
    for _ in range(4):
        scale.update(is_finite=False)
    assert scale.is_exhausted
    with pytest.raises(ValueError, match="expected a positive number"):
        scale.load({"scale": 0.0, "good_steps": 0})


def half_precision_steps(strategy_name: str, scale: float) -> dict[str, Any]:
    """Take part in three fp16 steps from a loss scale; return what came of it."""
    strategy = create_strategy(strategy_name, StrategyOptions(precision="fp16", clip_norm=1.0))
    try:
        with torch.device("meta"):
            model = nn.Sequential(nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 1))
        wrapped = prepared(strategy, model, lr=0.01)
        assert strategy.loss_scale is not None
        strategy.loss_scale.scale = scale
        norms = []
        for _ in range(3):
            with strategy.micro_step(is_last=True):
                strategy.backward(wrapped(torch.ones(4, 8)).float().square().mean())
            norms.append(strategy.step())
        weights = {n: local_part(t).flatten().tolist() for n, t in strategy.weights().items()}
        return {"norms": norms, "scale": strategy.loss_scale.scale, "weights": weights}
    finally:
        strategy.close()


def test_fp16_scales_the_loss_alike_under_every_strategy(rank_pool: Any) -> None:
    """One process: the bits must agree; a scale that overflows changes no weight."""
    (reference,) = rank_pool.call(
        1, __file__, "half_precision_steps", strategy_name="single", scale=1024.0
    )
    assert all(math.isfinite(n) and n > 0 for n in reference["norms"])
    for name in ("fsdp", "zero1", "zero2", "zero3"):
        (result,) = rank_pool.call(
            1, __file__, "half_precision_steps", strategy_name=name, scale=1024.0
        )
        assert result == reference, name
    for name in ("single", "fsdp", "zero1", "zero3"):
        (result,) = rank_pool.call(
            1, __file__, "half_precision_steps", strategy_name=name, scale=2.0**40
        )
        assert not math.isfinite(result["norms"][0])
        assert result["scale"] == 2.0**37


# -- initial weights ------------------------------------------------------------------------------

BIG = {"image_size": 32, "embed_dim": 192, "depths": (4, 4), "num_heads": (4, 4), "window_size": 4}


def on_meta(**config: Any) -> nn.Module:
    with torch.device("meta"):
        return create_model("poseidon-nano", **{**BIG, "skip_connections": (1, 0), **config})


def initial_weights(strategy_name: str) -> dict[str, list[float]]:
    """Take part in an initialisation; return some elements of what this rank holds."""
    strategy = create_strategy(strategy_name, StrategyOptions(seed=5))
    try:
        prepared(strategy, on_meta(embed_dim=8))
        whole: dict[str, torch.Tensor] = {}
        for name, tensor in strategy.state().items():
            if name.startswith("model."):
                start = getattr(tensor, "start", None)
                part = local_part(tensor).flatten()
                if hasattr(tensor, "full_tensor"):
                    part, start = tensor.full_tensor().flatten(), 0
                whole[name] = torch.full((tensor.numel(),), math.nan)
                whole[name][start or 0 : (start or 0) + len(part)] = part
        return {n: [v for v in t.tolist() if not math.isnan(v)] for n, t in whole.items()}
    finally:
        strategy.close()


def test_the_same_seed_gives_the_same_weights_everywhere(rank_pool: Any) -> None:
    model = on_meta(embed_dim=8)
    draw_missing(model, 5)
    expected = {f"model.{n}": t.flatten().tolist() for n, t in model.state_dict().items()}
    for strategy, world_size in (
        ("single", 1),
        ("ddp", 2),
        ("fsdp", 2),
        ("zero2", 2),
        ("zero3", 3),
    ):
        ranks = rank_pool.call(world_size, __file__, "initial_weights", strategy_name=strategy)
        for name, values in expected.items():
            parts = [rank[name] for rank in ranks]
            joined = [value for part in parts for value in part]
            assert values in (parts[0], joined), (strategy, name)


def test_another_seed_gives_other_weights_and_the_order_does_not_matter() -> None:
    first, second = on_meta(embed_dim=8), on_meta(embed_dim=8)
    draw_missing(first, 5)
    draw_missing(second, 6)
    name = "patch_recovery.projection.weight"
    assert not torch.equal(first.state_dict()[name], second.state_dict()[name])


def peak_of_initialisation(strategy_name: str) -> tuple[int, int]:
    """Return by how much the peak memory of this process grew until every weight had its value
    (the optimizer is made next), and the bytes of the model."""

    def peak() -> int:
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) * 1024

    # the first use of a library is not what is measured
    first = create_strategy(strategy_name, StrategyOptions())
    prepared(first, on_meta(embed_dim=8))
    first.close()
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts from what is held now
    before = peak()
    strategy = create_strategy(strategy_name, StrategyOptions())
    model = on_meta()
    num_bytes = 4 * sum(p.numel() for p in model.parameters())
    make_optimizer = optimizer_factory(OptimizerConfig(), model)
    grown = []

    def measure_and_make(sharded: nn.Module) -> torch.optim.Optimizer:
        grown.append(peak() - before)
        return make_optimizer(sharded)

    strategy.prepare(model, measure_and_make)
    strategy.close()
    return grown[0], num_bytes


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["fsdp", pytest.param("zero3", marks=pytest.mark.matrix)])
def test_no_rank_ever_holds_the_whole_model(rank_pool: Any, strategy: str) -> None:
    # a rank keeps a quarter of the weights; the rest of the bound is one module whole, and buffers
    rank_pool.close()  # processes whose heaps hold nothing that an earlier call has freed
    results = rank_pool.call(4, __file__, "peak_of_initialisation", strategy_name=strategy)
    for grown, num_bytes in results:
        assert num_bytes > 60 * MIB
        assert grown < 0.75 * num_bytes
    rank_pool.close()
    ((whole, num_bytes),) = rank_pool.call(
        1, __file__, "peak_of_initialisation", strategy_name="single"
    )
    assert whole > 0.95 * num_bytes  # the measurement does see a model that is whole


# -- what is refused ------------------------------------------------------------------------------


def complaints(make_job: MakeJob, **overrides: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        checked(make_job(**overrides))
    return " ".join(str(caught.value).split())


@pytest.mark.parametrize(
    ("overrides", "complaint"),
    [
        (
            {
                "resources__num_workers": 4,
                "parallel__fsdp__shard_group_size": 3,
                "strategy": "hsdp",
            },
            "does not divide the 4 workers: 4 = 1 x 3 + 1. Use one of [1, 2, 4]",
        ),
        ({"resources__num_workers": 2, "strategy": "single"}, "single runs on 1 worker"),
        ({"parallel__precision": "tf32", "strategy": "ddp"}, "tf32 is a format of NVIDIA GPUs"),
        (
            {"parallel__zero__offload_parameters": "cpu", "strategy": "zero2"},
            "is an option of zero3, but the strategy is zero2",
        ),
        (
            {"parallel__zero__quantized_weights": "true", "strategy": "zero3"},
            "runs on GPUs only",
        ),
        (
            {"parallel__zero__offload_optimizer": "nvme", "strategy": "zero3"},
            "nvme_path",
        ),
        ({"parallel__compile": "true", "strategy": "zero3"}, "does not work with zero3"),
        (
            {"resources__num_workers": 4, "validation__num_samples": 3, "strategy": "ddp"},
            "got 3, but each of the 4 workers needs at least one",
        ),
        (
            {"parallel__zero__config__gradient_clipping": 9.0, "strategy": "zero1"},
            "gradient_clipping is 9.0 there, but 5.0 in the job",
        ),
        (
            {"parallel__zero__config": "nothing.json", "strategy": "zero1"},
            "cannot read nothing.json",
        ),
        (
            {
                "parallel__zero__offload_optimizer": "nvme",
                "parallel__zero__nvme_path": "/nonexistent",
                "strategy": "zero3",
            },
            "/nonexistent is not a directory",
        ),
        ({"optimizer__frozen": "[nothing_like_this]", "strategy": "ddp"}, "matches none of the"),
        ({"optimizer__frozen": "['.']", "strategy": "ddp"}, "nothing is left to train"),
    ],
)
def test_bad_input_is_refused_before_a_worker_is_started(
    make_job: MakeJob, overrides: dict[str, Any], complaint: str
) -> None:
    strategy = overrides["strategy"]
    rest = {k: v for k, v in overrides.items() if k != "strategy"}
    assert complaint in complaints(make_job, parallel__strategy=strategy, **rest)


def test_a_missing_deepspeed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(ValueError, match="zero2 needs DeepSpeed, which is not installed"):
        check_strategy("zero2", StrategyOptions(), 2)


def test_the_shipped_strategies_are_those_of_the_schema() -> None:
    from pelagos.platform.config.schema import ParallelConfig

    annotation = ParallelConfig.model_fields["strategy"].annotation
    assert set(STRATEGIES) == set(annotation.__args__)  # type: ignore[union-attr]


def test_a_users_own_deepspeed_configuration_is_merged(tmp_path: Path) -> None:
    path = tmp_path / "deepspeed.json"
    path.write_text(
        json.dumps(
            {
                "train_batch_size": "auto",
                "zero_optimization": {"stage": 3, "reduce_bucket_size": 1000},
                "comms_logger": {"enabled": True},
            }
        )
    )
    options = StrategyOptions(micro_batch_size=2, zero=ZeroConfig(config=str(path)))
    config = zero_config(3, options, world_size=4)
    assert config["train_batch_size"] == 8
    assert config["zero_optimization"]["reduce_bucket_size"] == 1000
    assert config["comms_logger"] == {"enabled": True}
    with pytest.raises(ValueError, match=r"zero_optimization\.stage is 3 there, but 2 in the job"):
        zero_config(2, options, world_size=4)


@pytest.mark.parametrize("precision", ["tf32"])
def test_a_precision_that_the_device_lacks_is_refused_by_the_worker(precision: Precision) -> None:
    strategy = create_strategy("single", StrategyOptions(precision=precision))
    try:
        with pytest.raises(ValueError, match="format of NVIDIA GPUs"):
            prepared(strategy, nn.Linear(2, 2))
    finally:
        strategy.close()


MUON = OptimizerKind(
    lambda groups, config: torch.optim.Muon(groups, momentum=0.9),
    moments=("momentum_buffer",),
    needs_whole_matrices=True,
)


@pytest.mark.parametrize("name", sorted(set(STRATEGIES) - {"single", "ddp"}))
def test_optimizers_of_whole_matrices_run_where_matrices_are_whole(name: str) -> None:
    options = StrategyOptions(optimizer=MUON)
    with pytest.raises(ValueError, match=f"{name} gives each rank a part .* Use single or ddp"):
        check_strategy(name, options, 2)
    check_strategy("ddp", options, 2)


def test_an_optimizer_of_whole_matrices_steps_as_torchs_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(OPTIMIZERS._parts, "muon", MUON)
    model = nn.Linear(5, 3, bias=False)
    twin = nn.Linear(5, 3, bias=False)
    twin.load_state_dict(model.state_dict())
    plain = torch.optim.Muon(twin.parameters(), lr=0.02, weight_decay=0.1, momentum=0.9)
    strategy = create_strategy("single", StrategyOptions(optimizer=MUON))
    try:
        wrapped = prepared(strategy, model, name="muon", lr=0.02)
        for step in range(3):
            inputs = torch.randn(7, 5, generator=torch.Generator().manual_seed(step))
            with strategy.micro_step(is_last=True):
                strategy.backward(wrapped(inputs).square().mean())
            strategy.step()
            twin(inputs).square().mean().backward()
            plain.step()
            plain.zero_grad()
        assert torch.equal(model.weight, twin.weight)
        moment = plain.state[twin.weight]["momentum_buffer"]
        assert torch.equal(strategy.state()["optimizer.weight.momentum_buffer"], moment)
    finally:
        strategy.close()
