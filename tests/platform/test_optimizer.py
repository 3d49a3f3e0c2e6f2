"""Parameter groups hold every trainable parameter once; the schedule is the closed form."""

import math

import pytest
import torch
from torch import nn

from pelagos.models.registry import create_model, list_models, model_info
from pelagos.platform.config.schema import OptimizerConfig, ParameterGroupConfig, ScheduleConfig
from pelagos.platform.optimization.optimizer import (
    freeze,
    group_settings,
    optimizer_factory,
    parameter_groups,
    set_learning_rate,
)
from pelagos.platform.optimization.schedules import lr_factor
from pelagos.platform.trainer import _step_seed
from pelagos.platform.weight_average import WeightAverage


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(3, 4)
        self.norm = nn.LayerNorm(4)
        self.head = nn.Linear(4, 2)
        self.scale = nn.Parameter(torch.ones(2, 2))

    def no_weight_decay(self) -> set[str]:
        return {"scale", "norm.weight", *(n for n, _ in self.named_parameters() if "bias" in n)}


def test_every_trainable_parameter_is_in_exactly_one_group() -> None:
    model = Network()
    model.embed.bias.requires_grad_(False)
    config = OptimizerConfig(groups=(ParameterGroupConfig(pattern="^head", lr=1e-2),))
    groups = parameter_groups(model, group_settings(model, config))
    names = [name for group in groups for name in group["names"]]
    assert sorted(names) == sorted(n for n, p in model.named_parameters() if p.requires_grad)
    assert len(names) == len(set(names))
    rates = {name: (g["lr"], g["weight_decay"]) for g in groups for name in g["names"]}
    assert rates["head.weight"] == (1e-2, 0.1)
    assert rates["head.bias"] == (1e-2, 0.0)
    assert rates["embed.weight"] == (1e-3, 0.1)
    assert rates["norm.weight"] == (1e-3, 0.0)
    assert rates["scale"] == (1e-3, 0.0)


def test_a_pattern_that_matches_nothing_is_refused() -> None:
    config = OptimizerConfig(groups=(ParameterGroupConfig(pattern="backbone", lr=1e-2),))
    with pytest.raises(ValueError, match="backbone matches none of the 7 parameters"):
        group_settings(Network(), config)


def test_every_trainable_parameter_moves_in_the_first_step() -> None:
    torch.manual_seed(0)
    model = Network()
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    optimizer = optimizer_factory(OptimizerConfig(), model)(model)
    x = torch.randn(5, 3)
    (model.head(model.norm(model.embed(x))).square().sum() + model.scale.square().sum()).backward()
    optimizer.step()
    assert [n for n, p in model.named_parameters() if torch.equal(p, before[n])] == []


def test_warm_up_is_linear_and_the_cosine_ends_where_it_should() -> None:
    schedule = ScheduleConfig(total_steps=110, warmup_steps=10, final_lr_fraction=0.1)
    assert [lr_factor(s, schedule) for s in (0, 4, 9)] == [0.1, 0.5, 1.0]
    assert lr_factor(10, schedule) == 1.0
    assert lr_factor(60, schedule) == pytest.approx(0.1 + 0.9 * 0.5, abs=1e-12)
    assert lr_factor(110, schedule) == pytest.approx(0.1, abs=1e-12)
    middle = lr_factor(35, schedule)
    assert middle == pytest.approx(0.1 + 0.45 * (1 + math.cos(math.pi / 4)), abs=1e-12)


def test_constant_schedule_stays() -> None:
    schedule = ScheduleConfig(name="constant", total_steps=100, warmup_steps=2)
    assert {lr_factor(s, schedule) for s in range(2, 100)} == {1.0}


def test_the_average_of_constant_weights_is_the_weights() -> None:
    model = Network()
    weights = dict(model.named_parameters())
    average = WeightAverage(weights, 0.9)
    for step in range(5):
        average.update(weights, step)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(average.tensors[name], parameter.detach(), rtol=1e-6, atol=0)


def test_the_average_follows_the_recursion() -> None:
    model = nn.Linear(1, 1, bias=False)
    weights = dict(model.named_parameters())
    average = WeightAverage(weights, 0.5)
    expected = float(model.weight)
    for step in range(20):
        with torch.no_grad():
            model.weight.fill_(float(step))
        average.update(weights, step)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * step
    assert float(average.tensors["weight"]) == pytest.approx(expected, rel=1e-6)


def test_frozen_parameters_are_those_that_match() -> None:
    model = Network()
    freeze(model, ("^embed", "scale"))
    trained = [n for n, p in model.named_parameters() if p.requires_grad]
    assert trained == ["norm.weight", "norm.bias", "head.weight", "head.bias"]
    settings = group_settings(model, OptimizerConfig())
    assert sorted(settings) == sorted(trained)
    with pytest.raises(ValueError, match=r"optimizer\.frozen: backbone matches none"):
        freeze(Network(), ("backbone",))
    with pytest.raises(ValueError, match="nothing is left to train"):
        freeze(Network(), (".",))


class Stack(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(2, 2)
        self.layers = nn.ModuleList(nn.Linear(2, 2) for _ in range(3))
        self.head = nn.Linear(2, 2)

    def blocks(self) -> list[nn.Module]:
        return list(self.layers)


def test_rates_fall_by_the_layer_decay_from_the_head_to_the_embedding() -> None:
    settings = group_settings(Stack(), OptimizerConfig(lr=1.0, layer_decay=0.5))
    rates = {name.removesuffix(".weight"): s.lr for name, s in settings.items() if "weight" in name}
    expected = {"head": 1.0, "layers.2": 0.5, "layers.1": 0.25, "layers.0": 0.125, "embed": 0.0625}
    assert rates == expected
    pattern = ParameterGroupConfig(pattern="layers.1", lr=8.0)
    settings = group_settings(Stack(), OptimizerConfig(lr=1.0, layer_decay=0.5, groups=(pattern,)))
    assert settings["layers.1.weight"].lr == 2.0


def test_a_group_stays_as_it_is_until_its_step() -> None:
    torch.manual_seed(0)
    model = Stack()
    late = ParameterGroupConfig(pattern="embed|layers.0", frozen_until_step=2)
    optimizer = optimizer_factory(OptimizerConfig(lr=0.1, groups=(late,)), model)(model)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    moved = []
    for step in range(3):
        assert set_learning_rate(optimizer, 1.0, step) == 0.1
        x = model.embed(torch.ones(1, 2))
        for layer in model.layers:
            x = layer(x)
        model.head(x).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        after = dict(model.named_parameters())
        moved.append({n.rpartition(".")[0] for n in before if not torch.equal(before[n], after[n])})
    assert moved[0] == moved[1] == {"layers.1", "layers.2", "head"}
    assert moved[2] == {"embed", "layers.0", "layers.1", "layers.2", "head"}


def test_a_models_own_rule_is_the_whole_rule() -> None:
    """Poseidon's official recipe decays the layer scales of its residual blocks, which are vectors:
    its rule tests names for `bias` and for norms alone (arXiv:2405.19101's code)."""
    with torch.device("meta"):
        model = create_model("poseidon-nano", in_channels=4, out_channels=4)
    settings = group_settings(model, OptimizerConfig(weight_decay=0.1))
    scales = [n for n, p in model.named_parameters() if p.ndim == 1 and "bias" not in n]
    scales = [n for n in scales if n.startswith("residual_blocks") and "norm" not in n]
    assert len(scales) > 0
    assert {settings[name].weight_decay for name in scales} == {0.1}
    assert {s.weight_decay for n, s in settings.items() if "bias" in n or "norm" in n} == {0.0}


FIRST_OF_FAMILY = {model_info(name).family: name for name in reversed(list_models())}


@pytest.mark.parametrize("name", FIRST_OF_FAMILY.values())
def test_no_family_decays_its_norms(name: str) -> None:
    with torch.device("meta"):
        model = create_model(name, in_channels=4, out_channels=4)
    settings = group_settings(model, OptimizerConfig(weight_decay=0.1))
    normalise = (nn.LayerNorm, nn.GroupNorm, nn.modules.batchnorm._NormBase)
    for path, module in model.named_modules():
        if isinstance(module, normalise) or type(module).__name__.endswith("Norm"):
            for parameter, _ in module.named_parameters():
                assert settings[f"{path}.{parameter}"].weight_decay == 0.0, f"{path}.{parameter}"


@pytest.mark.parametrize("seed", [0, 20_261_130, 2**32 - 1, 10**20])
def test_every_seed_of_a_job_can_seed_a_step(seed: int) -> None:
    drawn = torch.Generator().manual_seed(_step_seed(seed, 10**6, 7))
    other = torch.Generator().manual_seed(_step_seed(seed, 10**6, 8))
    assert torch.rand((), generator=drawn) != torch.rand((), generator=other)
    assert _step_seed(0, 1, 2) == 65_539  # runs that began with small seeds continue as they were
