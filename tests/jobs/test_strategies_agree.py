"""One job under every strategy: the same curve, and one checkpoint that all of them read.

Real gloo process groups, real FSDP2, real DeepSpeed. Losses are compared step by step.
"""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pelagos.jobs.training.blueprint import build_parts
from pelagos.platform.checkpoint import CheckpointStore
from pelagos.platform.config import PretrainJob, resolve_yaml
from pelagos.platform.config.load import load_job
from pelagos.platform.records.runs import RunDirectory
from pelagos.platform.trainer import train

MakeJob = Callable[..., PretrainJob]
# Sums in another order round differently: 6e-8 relative in fp32. A learning rate at which training
# is not chaotic keeps that from growing much over these steps.
FP32 = 1e-6


def train_here(path: str, overrides: list[str], stop_at: int | None) -> dict[str, Any]:
    """Take part in a run as one rank, until step `stop_at` if given; return how it ended."""
    job = load_job(path, overrides)
    assert isinstance(job, PretrainJob)
    run = RunDirectory(f"{job.runs_dir}/{job.name}")
    run.clear_stop()
    append = run.append_metrics

    def append_and_stop(record: dict[str, Any]) -> None:
        append(record)
        if record["step"] == stop_at - 1:  # seen in the step after
            run.request_stop()

    if stop_at is not None:
        run.append_metrics = append_and_stop  # type: ignore[method-assign]
    outcome = train(job, run, build_parts, {})
    return {"kind": outcome.kind, "step": outcome.step}


class Layouts:
    """Runs one job under strategies and world sizes."""

    def __init__(self, pool: Any, job: PretrainJob, directory: Path) -> None:
        self.pool = pool
        self.job = job
        self.path = directory / "job.yaml"
        self.path.write_text(resolve_yaml(job))

    def run(
        self,
        name: str,
        strategy: str,
        world_size: int,
        stop_at: int | None = None,
        **overrides: Any,
    ) -> RunDirectory:
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
            world_size,
            __file__,
            "train_here",
            timeout=60.0,
            path=str(self.path),
            overrides=dotted,
            stop_at=stop_at,
        )
        return run


def curve(run: RunDirectory) -> list[tuple[float, float]]:
    return [(m["loss"], m["gradient_norm"]) for m in run.metrics()]


def validations(run: RunDirectory) -> list[float]:
    return [e["validation_loss"] for e in run.events() if e["kind"] == "validation"]


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


def assert_same_curve(run: RunDirectory, reference: RunDirectory, tolerance: float) -> None:
    assert [loss for loss, _ in curve(run)] == pytest.approx(
        [loss for loss, _ in curve(reference)], rel=tolerance
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "precision",
    ["fp32", pytest.param("bf16", marks=[pytest.mark.matrix, pytest.mark.timeout(900)])],
)
def test_two_ranks_agree_bit_for_bit(layouts: Layouts, precision: str) -> None:
    # a sum of two does not depend on their order, and all else is the same arithmetic
    options = {"parallel__precision": precision, "validation__every_steps": 15}
    plain = layouts.run("plain", "ddp", 2, **options)
    options["ema_decay"] = 0.9
    reference = layouts.run("ddp", "ddp", 2, **options)
    # validating with the averaged weights in their place leaves the weights as they were
    assert curve(reference) == curve(plain)
    assert validations(reference) != validations(plain)
    expected = weights(reference)
    for strategy in ("fsdp", "hsdp", "zero1", "zero2", "zero3"):
        run = layouts.run(strategy, strategy, 2, **options)
        assert curve(run) == curve(reference), strategy
        assert validations(run) == validations(reference), strategy
        tensors = weights(run)
        assert tensors.keys() == expected.keys()
        assert [n for n in expected if not torch.equal(tensors[n], expected[n])] == [], strategy


@pytest.mark.matrix
@pytest.mark.timeout(900)
def test_four_ranks_agree_up_to_the_order_of_sums(layouts: Layouts) -> None:
    reference = layouts.run("single", "single", 1)
    for strategy in ("ddp", "fsdp", "hsdp", "zero1", "zero2", "zero3"):
        options = {"parallel__fsdp__shard_group_size": 2} if strategy == "hsdp" else {}
        run = layouts.run(strategy, strategy, 4, **options)
        assert_same_curve(run, reference, FP32)


def assert_sweep(layouts: Layouts, sweep: tuple[tuple[str, int, int], ...]) -> None:
    """Train at world sizes and micro-batches of one global batch; compare with one process."""
    common = {"data__global_batch_size": 24, "schedule__total_steps": 8}
    reference = layouts.run("one", "single", 1, **common)
    for strategy, world_size, micro in sweep:
        run = layouts.run(
            f"{strategy}-{world_size}-{micro}",
            strategy,
            world_size,
            parallel__micro_batch_size=micro,
            **common,
        )
        assert_same_curve(run, reference, FP32)


@pytest.mark.slow
def test_world_size_and_micro_batch_do_not_change_the_curve(layouts: Layouts) -> None:
    assert_sweep(layouts, (("ddp", 2, 4), ("fsdp", 3, 8), ("zero2", 3, 2), ("zero3", 4, 2)))


@pytest.mark.matrix
@pytest.mark.timeout(1800)
def test_eight_ranks_do_not_change_the_curve(layouts: Layouts) -> None:
    assert_sweep(
        layouts,
        tuple(
            (s, 8, m) for s in ("ddp", "fsdp", "hsdp", "zero1", "zero2", "zero3") for m in (1, 3)
        ),
    )


CHAIN = (
    ("single", 1),
    ("fsdp", 2),
    ("zero1", 4),
    ("ddp", 2),
    ("zero3", 2),
    ("hsdp", 4),
    ("zero2", 2),
    ("zero3", 4),
    ("ddp", 4),
    ("zero2", 4),
    ("fsdp", 4),
    ("zero1", 2),
    ("zero3", 1),
    ("fsdp", 1),
    ("zero1", 1),
)


@pytest.mark.slow
def test_a_checkpoint_of_any_strategy_resumes_under_any_other(layouts: Layouts) -> None:
    # moving average, two optimizer groups, frozen parameters, and parameters of two elements
    common = {
        "ema_decay": 0.9,
        "optimizer__groups": "[{pattern: decoder, lr: 0.0001, weight_decay: 0.01}]",
        "optimizer__frozen": "[residual_blocks]",
    }
    reference = layouts.run("whole", "single", 1, **common)
    expected = weights(reference)
    for index, (strategy, world_size) in enumerate(CHAIN, start=1):
        run = layouts.run("chain", strategy, world_size, stop_at=2 * index, **common)
    assert [m["step"] for m in run.metrics()] == list(range(1, 31))
    assert_same_curve(run, reference, FP32)
    tensors = weights(run)
    assert tensors.keys() == expected.keys()
    frozen = [n for n in expected if n.startswith("model.residual_blocks")]
    assert frozen
    assert all(torch.equal(tensors[n], expected[n]) for n in frozen)
    assert not any(n.startswith("optimizer.residual_blocks") for n in tensors)
    steps = {float(t) for n, t in tensors.items() if n.endswith(".step")}
    assert steps == {30.0}
    average = [n for n in expected if n.startswith("ema.")]
    assert average
    for name in average:
        assert tensors[name].numpy() == pytest.approx(expected[name].numpy(), rel=1e-4, abs=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    "strategy",  # three ranks of ddp: test_kills.py
    [pytest.param("fsdp", marks=pytest.mark.matrix), "zero3"],
)
def test_the_same_layout_resumes_bit_for_bit(layouts: Layouts, strategy: str) -> None:
    common = {"schedule__total_steps": 10, "ema_decay": 0.9, "parallel__micro_batch_size": 1}
    whole = layouts.run("whole", strategy, 2, **common)
    layouts.run("parts", strategy, 2, stop_at=5, **common)
    parts = layouts.run("parts", strategy, 2, **common)
    assert curve(parts) == curve(whole)
    tensors, expected = weights(parts), weights(whole)
    assert [n for n in expected if not torch.equal(tensors[n], expected[n])] == []


LAYOUTS = (
    ("single", 1),
    *((s, w) for s in ("ddp", "fsdp", "hsdp", "zero1", "zero2", "zero3") for w in (1, 2, 4)),
)


@pytest.mark.matrix
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(("strategy", "world_size"), LAYOUTS)
def test_every_layout_resumes_what_this_one_saved(
    layouts: Layouts, strategy: str, world_size: int
) -> None:
    """The whole matrix: `pytest -m matrix`. Ten steps after the seam equal the uninterrupted run."""
    common = {"schedule__total_steps": 14, "ema_decay": 0.9}
    reference = layouts.run("whole", strategy, world_size, **common)
    source = layouts.run("source", strategy, world_size, stop_at=4, **common)
    for other, size in LAYOUTS:
        target = source.path.with_name(f"{other}-{size}")
        shutil.copytree(source.path, target)
        run = layouts.run(target.name, other, size, **common)
        assert_same_curve(run, reference, FP32)
        if (other, size) == (strategy, world_size):
            assert curve(run) == curve(reference)
        shutil.rmtree(target)
