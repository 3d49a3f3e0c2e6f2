"""What a strategy promises about one step."""

import math

import pytest
import torch
from torch import nn

from pelagos.platform.config.schema import OptimizerConfig
from pelagos.platform.optimizer import optimizer_factory
from pelagos.platform.strategies import create_strategy
from pelagos.platform.strategies.base import StrategyOptions


@pytest.mark.parametrize("factor", [1.0, math.nan, math.inf])
def test_only_a_finite_gradient_changes_weights(factor: float) -> None:
    torch.manual_seed(0)
    strategy = create_strategy("single", StrategyOptions())
    try:
        model = nn.Linear(3, 2)
        before = model.weight.detach().clone()
        wrapped = strategy.prepare(model, optimizer_factory(OptimizerConfig()))
        with strategy.micro_step(is_last=True):
            strategy.backward((wrapped(torch.ones(4, 3)) * factor).sum())
        norm = strategy.step(clip_norm=1.0)
        assert math.isfinite(norm) == math.isfinite(factor)
        assert torch.equal(model.weight, before) == (not math.isfinite(factor))
        assert model.weight.grad is None
    finally:
        strategy.close()
