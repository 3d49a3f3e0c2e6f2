"""A network's parameter without elements is trained beside the others, saved and restored."""

import importlib
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pelagos.jobs.training.checking import checked
from pelagos.platform.checkpoint import CheckpointStore
from pelagos.platform.config import ConfigError
from pelagos.platform.config.schema import OptimizerConfig
from pelagos.platform.optimization.optimizer import optimizer_factory
from pelagos.platform.strategies import STRATEGIES, check_parameters, create_strategy
from pelagos.platform.strategies.base import StrategyOptions
from pelagos.platform.tensor_layout import local_part

STATE = {"step": 1, "samples": 4, "seed": 0, "best": None}


class Network(nn.Module):
    """A linear layer, and a table of no rows, as of a model without optional channels."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 2)
        self.table = nn.Parameter(torch.empty(0, 8))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.layer(x), x @ self.table.T], dim=-1)


def two_steps(strategy_name: str, directory: str, resume: bool) -> dict[str, Any]:
    """Take two steps, or the second alone from the checkpoint after the first; return the weights."""
    strategy = create_strategy(strategy_name, StrategyOptions(seed=3))
    try:
        model = Network()
        factory = optimizer_factory(OptimizerConfig(lr=0.01), model)
        wrapped = strategy.prepare(model, factory)
        store = CheckpointStore(directory)
        for step in (1, 2):
            if step == 1 and resume:
                state = strategy.state()
                store.load(1, state)
                strategy.load_state(state)
                continue
            with strategy.micro_step(is_last=True):
                strategy.backward(wrapped(torch.ones(4, 8)).square().mean())
            strategy.step()
            if step == 1:
                store.save(1, strategy.state(), STATE)
        return {n: local_part(t).flatten().tolist() for n, t in strategy.weights().items()}
    finally:
        strategy.close()


@pytest.mark.parametrize("name", ["single", "ddp"])
def test_a_run_continues(rank_pool: Any, tmp_path: Path, name: str) -> None:
    ranks = 1 if name == "single" else 2
    arguments = {"strategy_name": name, "directory": str(tmp_path)}
    whole = rank_pool.call(ranks, __file__, "two_steps", resume=False, **arguments)
    assert rank_pool.call(ranks, __file__, "two_steps", resume=True, **arguments) == whole
    stored = CheckpointStore(str(tmp_path)).load_named(1, "model.")
    assert {n: tuple(t.shape) for n, t in stored.items()} == {
        **{"model.layer.weight": (2, 8), "model.layer.bias": (2,)},
        "model.table": (0, 8),
    }


@pytest.mark.parametrize("name", sorted(STRATEGIES))
def test_strategies_that_divide_parameters_refuse_it(name: str) -> None:
    """FSDP ends in its first backward pass, DeepSpeed where the state is read or gathered."""
    with torch.device("meta"):
        model = Network()
    if name in ("single", "ddp"):
        check_parameters(name, model)
    else:
        told = f"{name} divides each parameter among ranks, but these have no elements: table. Use"
        with pytest.raises(ValueError, match=told):
            check_parameters(name, model)
        check_parameters(name, model.layer)


@pytest.mark.parametrize("name", ["single", "fsdp"])
def test_a_job_with_such_a_network_is_refused_before_it_starts(
    make_job: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    (tmp_path / "network_with_a_table.py").write_text(
        "import torch\n"
        "class Network(torch.nn.Module):\n"
        "    def __init__(self, in_channels: int, out_channels: int) -> None:\n"
        "        super().__init__()\n"
        "        self.layer = torch.nn.Conv2d(in_channels, out_channels, 1)\n"
        "        self.table = torch.nn.Parameter(torch.empty(0, 8))\n"
        "    def forward(self, frame, lead_time):\n"
        "        return self.layer(frame)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    importlib.import_module("network_with_a_table")  # as `--plugin` does
    job = make_job(parallel__strategy=name)
    own = {"name": "network_with_a_table:Network", "config": {}}
    job = job.model_copy(update={"model": job.model.model_copy(update=own)})
    if name == "single":
        assert "network.table" in dict(checked(job).model.named_parameters())
        return
    with pytest.raises(ConfigError) as caught:
        checked(job)
    (problem,) = caught.value.problems
    assert problem.key == ("parallel",)
    assert "have no elements: network.table. Use single or ddp" in problem.message
