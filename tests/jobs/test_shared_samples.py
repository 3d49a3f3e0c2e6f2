"""Ranks that share their samples, as parallelism within a sample will have them.

A batch is cut into `data_world_size` shares; two of four ranks that compute the same share train as
half as many ranks do.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from pelagos.jobs.training.blueprint import build_parts
from pelagos.platform import trainer
from pelagos.platform.config import PretrainJob, resolve_yaml
from pelagos.platform.config.load import load_job
from pelagos.platform.records.runs import RunDirectory
from pelagos.platform.strategies.accelerated import AcceleratedStrategy
from pelagos.platform.strategies.base import StrategyOptions

RANKS_PER_SHARE = 2
FP32 = 1e-6  # sums in another order, as in test_strategies_agree.py


def curve(run: RunDirectory, value: str) -> list[float]:
    return [m[value] for m in run.metrics()]


def validations(run: RunDirectory) -> list[float]:
    return [e["validation_loss"] for e in run.events() if e["kind"] == "validation"]


class PairsStrategy(AcceleratedStrategy):
    """Data-parallel training in which pairs of ranks compute the same samples."""

    def __init__(self, options: StrategyOptions) -> None:
        super().__init__(options)
        groups = [
            dist.new_group(list(range(place, self.world_size, RANKS_PER_SHARE)))
            for place in range(RANKS_PER_SHARE)
        ]
        self.data_group = groups[self.rank % RANKS_PER_SHARE]

    @property
    def data_rank(self) -> int:
        return self.rank // RANKS_PER_SHARE

    @property
    def data_world_size(self) -> int:
        return self.world_size // RANKS_PER_SHARE


def train_in_pairs(path: str, stop_on: int | None) -> list[Any]:
    """Take part as one of four ranks; one of them alone may see a request to stop."""
    job = load_job(path)
    assert isinstance(job, PretrainJob)
    usual = trainer.create_strategy
    trainer.create_strategy = lambda name, options: PairsStrategy(options)
    run = RunDirectory(f"{job.runs_dir}/{job.name}")
    seen: list[Any] = []

    def note(values: dict[str, float]) -> None:
        seen.append(values["loss"])
        if dist.get_rank() == stop_on and len(seen) == 3:
            run.stop_requested = lambda: True  # type: ignore[method-assign]

    try:
        outcome = trainer.train(job, run, build_parts, {}, on_step=note)
    finally:  # these processes serve other tests too
        trainer.create_strategy = usual
    return [outcome.kind, outcome.step]


def train_plainly(path: str) -> None:
    job = load_job(path)
    assert isinstance(job, PretrainJob)
    trainer.train(job, RunDirectory(f"{job.runs_dir}/{job.name}"), build_parts, {})


@pytest.mark.slow
def test_pairs_of_ranks_train_as_half_as_many_ranks(
    rank_pool: Any, make_job: Callable[..., PretrainJob], tmp_path: Path
) -> None:
    def job_of(name: str, num_workers: int) -> tuple[RunDirectory, str]:
        job = make_job(
            name,
            optimizer__lr=0.0003,
            schedule__total_steps=8,
            validation__every_steps=4,
            parallel__strategy="ddp",
            parallel__micro_batch_size=1,
            resources__num_workers=num_workers,
            tracking__uri="null",
        )
        path = tmp_path / f"{name}.yaml"
        path.write_text(resolve_yaml(job))
        return RunDirectory.create(job), str(path)

    plain, plain_path = job_of("plain", 2)
    rank_pool.call(2, __file__, "train_plainly", path=plain_path)
    pairs, path = job_of("pairs", 4)
    rank_pool.call(4, __file__, "train_in_pairs", path=path, stop_on=None)
    assert curve(pairs, "loss") == pytest.approx(curve(plain, "loss"), rel=FP32)
    # differences of gradients round at their own size, which is larger than their sum's
    norms = (curve(run, "gradient_norm") for run in (pairs, plain))
    assert next(norms) == pytest.approx(next(norms), rel=10 * FP32)
    assert validations(pairs) == pytest.approx(validations(plain), rel=FP32)
    # a request that one rank sees stops every one, in the same step
    _, path = job_of("stopped", 4)
    ends = rank_pool.call(4, __file__, "train_in_pairs", path=path, stop_on=3)
    assert ends == [["stopped", 4]] * 4
