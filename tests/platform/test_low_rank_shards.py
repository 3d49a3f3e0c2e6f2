"""Low-rank updates under a strategy that gives each rank a part of every parameter."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pelagos.models.low_rank import add_low_rank
from pelagos.platform.config.schema import OptimizerConfig
from pelagos.platform.optimization.optimizer import optimizer_factory
from pelagos.platform.strategies import create_strategy
from pelagos.platform.strategies.base import StrategyOptions


class Net(nn.Module):
    """Kernels of one point, wider than they are deep."""

    def __init__(self) -> None:
        super().__init__()
        self.lift = nn.Conv2d(3, 8, 1)
        self.project = nn.Conv2d(8, 2, 1)

    def init_weights(self, module: nn.Module) -> None:
        for number, parameter in enumerate(module._parameters.values()):
            if parameter is not None:
                draw = torch.Generator().manual_seed(number)
                parameter.copy_(torch.randn(parameter.shape, generator=draw))

    def forward(self, x: Tensor) -> Tensor:
        return self.project(self.lift(x))


def outputs(strategy_name: str) -> list[float]:
    """Return what the network answers after one step, on every rank."""
    strategy = create_strategy(strategy_name, StrategyOptions())
    try:
        with torch.device("meta"):
            model = Net()
            add_low_rank(model, ["weight"], 2, 4.0, [])
        config = OptimizerConfig(lr=0.01)
        wrapped = strategy.prepare(model, optimizer_factory(config, model))
        inputs = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(9))
        with strategy.micro_step(is_last=True):
            strategy.backward(wrapped(inputs).square().mean())
        strategy.step()
        with torch.no_grad():
            return [float(value) for value in wrapped(inputs).flatten()]
    finally:
        strategy.close()


def test_parts_of_kernels_are_updated_as_whole_ones(rank_pool: Any) -> None:
    expected = outputs("single")
    for found in rank_pool.call(2, __file__, "outputs", strategy_name="fsdp"):
        torch.testing.assert_close(torch.tensor(found), torch.tensor(expected))
