"""One meaning of norms, clipping, loss scales and initial weights, by closed forms and by torch."""

import hashlib
import math
from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pelagos.platform.strategies import transforms
from pelagos.platform.strategies.base import StrategyOptions
from pelagos.platform.strategies.gradients import LossScale, clip_factor, global_norm
from pelagos.platform.strategies.initialize import (
    draw,
    draw_missing,
    drawn_copy,
    is_on_meta,
    modules_to_draw,
)

CPU = torch.device("cpu")


# -- gradients ---------------------------------------------------------------------------------------


def test_the_norm_is_that_of_all_elements() -> None:
    assert float(global_norm([], None, CPU)) == 0.0
    nothing = torch.zeros(0)
    assert float(global_norm([nothing], None, CPU)) == 0.0
    parts = [torch.tensor([3.0]), nothing, torch.tensor([[4.0, 12.0]])]
    norm = global_norm(parts, None, CPU)
    assert (float(norm), norm.dtype, norm.shape) == (13.0, torch.float32, ())


@pytest.mark.parametrize("scale", [1.0, 4.0, 0.5])
@pytest.mark.parametrize("norm", [0.0, 0.5, 2.0, 8.0])
@pytest.mark.parametrize("limit", [None, 2.0, 0.25])
def test_clipping_and_scaling_are_one_factor(
    scale: float, norm: float, limit: float | None
) -> None:
    """Of gradients that were multiplied by the loss scale, and have this norm without it."""
    factor = clip_factor(torch.tensor(norm * scale), limit, scale)
    if limit is None and scale == 1.0:
        assert factor is None
        return
    assert factor is not None
    shrink = 1.0 if limit is None else min(1.0, limit / (norm + 1e-6))
    assert float(factor) == pytest.approx(shrink / scale, rel=1e-6)


def test_a_scale_grows_after_as_many_good_steps_as_are_set_each_time() -> None:
    scale, sizes = LossScale(8.0, growth_interval=3), []
    for _ in range(9):
        scale.update(True)
        sizes.append(scale.scale)
    assert sizes == [8, 8, 16, 16, 16, 32, 32, 32, 64]
    scale.update(True)
    scale.update(True)
    scale.update(False)
    assert (scale.scale, scale.state()) == (32.0, {"scale": 32.0, "good_steps": 0})
    for _ in range(2):
        scale.update(True)
    assert scale.scale == 32.0  # an overflow begins the count anew
    assert (LossScale().scale, LossScale().growth_interval) == (2.0**16, 2000)
    assert LossScale(1.0).is_exhausted is False
    assert LossScale(0.5).is_exhausted is True


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
def test_no_scale_is_taken_over_that_is_none(value: float) -> None:
    scale = LossScale(8.0)
    with pytest.raises(ValueError, match="expected a positive number"):
        scale.load({"scale": value, "good_steps": 3})
    scale.load({"scale": 0.25, "good_steps": 7})
    assert (scale.scale, scale.good_steps) == (0.25, 7)


# -- initial weights -----------------------------------------------------------------------------------


class Net(nn.Module):
    """Parameters of its own, a buffer, a missing bias and modules inside modules."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.empty(3))
        self.inner = nn.Sequential(nn.Linear(3, 4, bias=False), nn.Tanh(), nn.BatchNorm1d(4))
        self.last = nn.Linear(4, 2)

    def init_weights(self, module: nn.Module) -> None:
        for parameter in module.parameters(recurse=False):
            parameter.normal_()
        for buffer in module.buffers(recurse=False):
            buffer.fill_(2)


def seed_of(seed: int, name: str) -> int:
    digest = hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") // 2


def test_a_module_is_drawn_from_the_seed_and_its_name() -> None:
    with torch.device("meta"):
        model = Net()
    order = [name for name, _ in modules_to_draw(model)]
    assert order == ["last", "inner.2", "inner.0", ""]  # children first, without what has no values
    assert all(is_on_meta(module) for _, module in modules_to_draw(model))
    state = torch.random.get_rng_state()
    draw_missing(model, 7)
    assert torch.equal(torch.random.get_rng_state(), state)
    for name, module in modules_to_draw(model):
        assert not is_on_meta(module)
        generator = torch.Generator().manual_seed(seed_of(7, name))
        for parameter in module.parameters(recurse=False):
            expected = torch.empty(parameter.shape).normal_(generator=generator)
            assert torch.equal(parameter, expected), name
        assert all(bool((buffer == 2).all()) for buffer in module.buffers(recurse=False))
    assert torch.equal(torch.random.get_rng_state(), state)


def test_only_what_has_no_values_is_drawn() -> None:
    model = Net()
    with torch.no_grad():
        model.scale.fill_(5)
    with torch.device("meta"):
        model.last = nn.Linear(4, 2)
    kept = {n: t.clone() for n, t in model.state_dict().items() if not n.startswith("last")}
    draw_missing(model, 7)
    assert all(torch.equal(model.state_dict()[name], t) for name, t in kept.items())
    assert not is_on_meta(model.last)


def test_a_copy_is_drawn_beside_the_module() -> None:
    model = Net()
    before = {n: t.clone() for n, t in model.state_dict().items()}
    norm = model.inner[2]
    places = {n: t.data_ptr() for n, t in norm.state_dict().items()}
    parameters, buffers = drawn_copy(model, "inner.2", norm, 7)
    assert {n: t.data_ptr() for n, t in norm.state_dict().items()} == places
    assert all(torch.equal(model.state_dict()[n], t) for n, t in before.items())
    assert (set(parameters), set(buffers)) == (
        {"weight", "bias"},
        {"running_mean", "running_var", "num_batches_tracked"},
    )
    generator = torch.Generator().manual_seed(seed_of(7, "inner.2"))
    assert torch.equal(parameters["weight"], torch.empty(4).normal_(generator=generator))
    assert all(bool((buffer == 2).all()) for buffer in buffers.values())
    linear = model.inner[0]
    assert set(drawn_copy(model, "inner.0", linear, 7)[0]) == {"weight"}
    assert linear.bias is None


def test_a_module_may_reset_itself_and_a_model_draw_all_at_once() -> None:
    plain = nn.Sequential(nn.Linear(3, 4))
    draw(plain, "0", plain[0], 3)
    torch.manual_seed(seed_of(3, "0"))
    assert torch.equal(plain[0].weight, nn.Linear(3, 4).weight)

    class Whole(Net):
        def draw_whole(self, seed: int, name: str, key: str) -> Tensor:
            return torch.tensor(float(seed + len(name) + len(key)))

    whole = Whole()
    draw(whole, "last", whole.last, 3)
    assert bool((whole.last.weight == 3 + 4 + 6).all())
    assert bool((whole.last.bias == 3 + 4 + 4).all())
    draw(whole, "inner.0", whole.inner[0], 3)  # whose bias is None
    assert bool((whole.inner[0].weight == 3 + 7 + 6).all())
    draw(whole, "inner.2", whole.inner[2], 3)
    assert bool((whole.inner[2].running_mean == 3 + 7 + 12).all())


def test_what_cannot_be_drawn_is_named() -> None:
    class Bare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(2))

    with pytest.raises(
        ValueError, match=r"no rule initialises part \(Bare\): give Sequential a method"
    ):
        draw(nn.Sequential(Bare()), "part", Bare(), 0)
    tied = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    tied[1].weight = tied[0].weight
    with pytest.raises(
        ValueError, match=r"shares one parameter under two names, 0\.weight and 1\.weight"
    ):
        list(modules_to_draw(tied))


# -- transforms --------------------------------------------------------------------------------------


class Blocks(nn.Module):
    """Two blocks that it names, and a tensor that two modules use."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleList(nn.Sequential(nn.Linear(3, 3), nn.Tanh()) for _ in range(2))

    def blocks(self) -> Any:
        return iter(self.parts)

    def forward(self, x: Tensor) -> Tensor:
        return self.parts[0](x) + self.parts[1](x)


def test_blocks_are_what_the_model_names() -> None:
    model = Blocks()
    assert transforms.blocks_of(model) == list(model.parts)
    assert transforms.blocks_of(nn.Linear(2, 2)) == []


@pytest.mark.parametrize(
    "options", [StrategyOptions(compile=True), StrategyOptions(activation_checkpointing="full")]
)
def test_a_model_without_blocks_has_nothing_to_wrap(options: StrategyOptions) -> None:
    with pytest.raises(ValueError, match=r"Linear has no blocks\(\)"):
        transforms.apply_transforms(nn.Linear(2, 2), options, 0)
    transforms.apply_transforms(nn.Linear(2, 2), StrategyOptions(), 0)


def test_every_block_is_compiled_for_its_own_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[nn.Module, dict[str, Any]]] = []
    monkeypatch.setattr(nn.Module, "compile", lambda self, **how: calls.append((self, how)))
    model = Blocks()
    transforms.apply_transforms(model, StrategyOptions(), 0)
    assert calls == []
    transforms.apply_transforms(model, StrategyOptions(compile=True), 0)
    assert calls == [(block, {"dynamic": False}) for block in model.parts]


def test_blocks_may_have_eight_graphs_each(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._dynamo import config

    # as torch has them, whatever other tests did, and put back afterwards
    monkeypatch.setattr(config, "recompile_limit", 8)
    monkeypatch.setattr(config, "accumulated_recompile_limit", 256)
    transforms._allow_graphs(1)
    assert (config.recompile_limit, config.accumulated_recompile_limit) == (8, 256)
    transforms._allow_graphs(20)
    assert (config.recompile_limit, config.accumulated_recompile_limit) == (160, 320)
    transforms._allow_graphs(2)  # never fewer than before
    assert (config.recompile_limit, config.accumulated_recompile_limit) == (160, 320)


def test_the_forward_pass_runs_in_the_devices_precision() -> None:
    model = Blocks()
    transforms.apply_transforms(model, StrategyOptions(precision="bf16"), 0)
    assert model(torch.ones(2, 3)).dtype == torch.bfloat16
    plain = Blocks()
    transforms.apply_transforms(plain, StrategyOptions(), 0)
    assert plain(torch.ones(2, 3)).dtype == torch.float32


def test_composite_modules_take_their_inputs_through_an_alias() -> None:
    """It copies nothing, and what every one of them adds to a gradient comes in one sum."""
    model = Blocks()
    transforms.fix_order_of_gradient_sums(model)
    hooked = [name for name, module in model.named_modules() if module._forward_pre_hooks]
    assert hooked == ["", "parts", "parts.0", "parts.1"]
    seen: list[Any] = []
    model.parts[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    x = torch.ones(2, 3, requires_grad=True)
    model(x)
    assert seen[0].data_ptr() == x.data_ptr()
    names: Counter[str] = Counter()
    node = seen[0].grad_fn
    while node is not None:
        names[node.name()] += 1
        node = node.next_functions[0][0] if node.next_functions else None
    assert names["ViewBackward0"] == 2  # the model's alias, and the block's
    model(torch.ones(2, 3))
    assert seen[1].grad_fn is None
    whole = (3, None, x.detach())
    assert all(a is b for a, b in zip(transforms._alias_inputs(model, whole), whole, strict=True))
