"""One job under every strategy: the same curve, and one checkpoint that all of them read.

Real gloo process groups, real FSDP2, real DeepSpeed. Losses are compared step by step.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pelagos.jobs.parts import build_parts
from pelagos.platform.checkpoint import CheckpointStore
from pelagos.platform.config import PretrainJob, resolve_yaml
from pelagos.platform.config.load import load_job
from pelagos.platform.runs import RunDirectory
from pelagos.platform.trainer import train

MakeJob = Callable[..., PretrainJob]
# Sums in another order round differently: 6e-8 relative in fp32. A learning rate at which training
# is not chaotic keeps that from growing much over these steps.
FP32 = 1e-6


def train_here(path: str, overrides: list[str]) -> dict[str, Any]:
    """Take part in a run as one rank; return how it ended."""
    job = load_job(path, overrides)
    assert isinstance(job, PretrainJob)
    run = RunDirectory(f"{job.runs_dir}/{job.name}")
    outcome = train(job, run, build_parts, {})
    return {"kind": outcome.kind, "step": outcome.step}


class Layouts:
    """Runs one job under strategies and world sizes."""

    def __init__(self, pool: Any, job: PretrainJob, directory: Path) -> None:
        self.pool = pool
        self.job = job
        self.path = directory / "job.yaml"
        self.path.write_text(resolve_yaml(job))

    def run(self, name: str, strategy: str, world_size: int, **overrides: Any) -> RunDirectory:
        """Train a run from where it stands, or from its beginning."""
        dotted = [f"{k.replace('__', '.')}={v}" for k, v in overrides.items()]
        dotted += [
            f"name={name}",
            f"parallel.strategy={strategy}",
            f"resources.num_workers={world_size}",
        ]
        job = load_job(self.path, dotted)
        assert isinstance(job, PretrainJob)
        run = RunDirectory(f"{job.runs_dir}/{name}")
        if not run.path.exists():
            run = RunDirectory.create(job)
        self.pool.call(
            world_size, __file__, "train_here", path=str(self.path), overrides=dotted
        )
        return run


def curve(run: RunDirectory) -> list[tuple[float, float]]:
    return [(m["loss"], m["gradient_norm"]) for m in run.metrics()]


def weights(run: RunDirectory) -> dict[str, torch.Tensor]:
    store = CheckpointStore(run.checkpoint_uri)
    step = store.latest_step()
    assert step is not None
    return store.load_named(step, "")


@pytest.fixture
def layouts(rank_pool: Any, make_job: MakeJob, tmp_path: Path) -> Layouts:
    job = make_job(
        optimizer__lr=0.0003,
        optimizer__clip_norm=0.05,
        schedule__total_steps=30,
        checkpoint__every_steps=30,
        validation__every_steps=30,
        tracking__uri="null",
    )
    return Layouts(rank_pool, job, tmp_path)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_two_ranks_agree_bit_for_bit(layouts: Layouts, precision: str) -> None:
    reference = layouts.run("ddp", "ddp", 2, parallel__precision=precision)
    expected = weights(reference)
    for strategy in ("fsdp", "hsdp", "zero1", "zero2", "zero3"):
        run = layouts.run(strategy, strategy, 2, parallel__precision=precision)
        w = weights(run)
        print(strategy, curve(run)==curve(reference), sum(not torch.equal(w[n], expected[n]) for n in expected))
