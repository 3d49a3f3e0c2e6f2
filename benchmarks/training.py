"""Time of one training step of the platform, and as a ratio to a bare torch loop of the same work.

    python benchmarks/training.py                  # poseidon-nano, batch 16, 64 x 64
    python benchmarks/training.py --steps 40

The platform's step streams its batch from Zarr, reduces and logs every value and keeps all its
checks. The bare loop does forward, backward, clipping and AdamW on one batch held in memory. They
take turns within one process; the median of paired ratios is the number to compare.
"""

import argparse
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pelagos.data_pipelines.generate import generate_trajectories
from pelagos.data_pipelines.generate.tasks import GenerationRequest, dataset_spec
from pelagos.data_pipelines.store import create_dataset
from pelagos.jobs.training.blueprint import build_parts
from pelagos.platform.config.schema import PretrainJob
from pelagos.platform.optimization.optimizer import optimizer_factory
from pelagos.platform.records.runs import RunDirectory
from pelagos.platform.strategies import create_strategy
from pelagos.platform.strategies.initialize import draw_missing
from pelagos.platform.strategy_choice import strategy_options
from pelagos.platform.trainer import TrainingLoop

WARM_UP = 3


def make_job(directory: Path, batch: int, size: int) -> PretrainJob:
    """Simulate a small dataset and return a job that trains on it."""
    request = GenerationRequest("ns-sines", 0, 16, size, 6, 0.2, None, "float32", "cpu")
    uri = str(directory / "ns.zarr")
    writer = create_dataset(uri, dataset_spec(request, None, trajectories_per_shard=16))
    data, parameters = generate_trajectories(
        "ns-sines", range(16), seed=0, resolution=size, num_frames=6, final_time=0.2
    )
    writer.write_shard(0, data, parameters)
    writer.finalize()
    return PretrainJob.model_validate(
        {
            "name": "bench",
            "runs_dir": str(directory / "runs"),
            "data": {"mixture": [{"uri": uri}], "global_batch_size": batch, "fields": FIELDS},
            "model": {"name": "poseidon-nano", "config": {"image_size": size}},
            "schedule": {"total_steps": 10**6},
            "tracking": {"uri": None},
            "resources": {"launcher": "none"},
            "parallel": {"strategy": "single"},
        }
    )


FIELDS = ("density", "velocity-x", "velocity-y")


def platform_step(job: PretrainJob, streams: bool) -> Callable[[], float]:
    """Return a function that takes one step of the platform and returns its wall seconds.

    Without `streams` it takes one batch from memory again and again: what reading beside the
    training costs is then left out.
    """
    parts = build_parts(job)
    run = RunDirectory.create(job.model_copy(update={"name": f"streams-{streams}"}))
    strategy = create_strategy("single", strategy_options(job))
    loop = TrainingLoop(job, run, parts, strategy, {})
    stream = parts.streams.open(0, 0, 1)
    held = None if streams else next(stream)
    if held is not None:
        stream.__exit__()
    steps = iter(range(10**6))

    def step() -> float:
        begin = time.perf_counter()
        loop.meter.start(stream.data_wait_seconds)
        batch = (held or next(stream)).to(loop.strategy.device)
        index = next(steps)
        values, _ = loop.train_step(index, batch)
        loop._log_step(index + 1, values | loop.meter.finish(stream.data_wait_seconds))
        return time.perf_counter() - begin

    return step


def bare_step(job: PretrainJob) -> Callable[[], float]:
    """Return the same work without the platform, on one batch in memory."""
    parts = build_parts(job)
    model, objective = parts.model, parts.objective
    batch: Any = next(parts.streams.open(0, 0, 1))
    draw_missing(model, job.seed)
    optimizer = optimizer_factory(job.optimizer, model)(model)

    def step() -> float:
        begin = time.perf_counter()
        magnitudes = objective.magnitudes(batch).sum(dim=0)
        loss = (objective.errors(model, batch).sum(dim=0) / magnitudes).mean()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        loss.item()
        return time.perf_counter() - begin

    return step


def main() -> None:
    """Run the comparison and print it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--size", type=int, default=64)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, 1 thread, torch {torch.__version__}, "
        f"Python {platform.python_version()}, load {os.getloadavg()[0]:.1f}"
    )
    with tempfile.TemporaryDirectory() as scratch:
        job = make_job(Path(scratch), options.batch, options.size)
        bare = bare_step(job)
        variants = {
            "platform": platform_step(job, streams=True),
            "platform, batch in memory": platform_step(job, streams=False),
        }
        rounds = [
            ([step() for step in variants.values()], bare()) for _ in range(WARM_UP + options.steps)
        ][WARM_UP:]
    shape = f"{options.batch} x {len(FIELDS)} x {options.size} x {options.size}"
    print(f"poseidon-nano, {shape}, fp32, {options.steps} steps of each, interleaved")
    show("bare loop", [b for _, b in rounds], options.batch)
    for index, name in enumerate(variants):
        show(name, [times[index] for times, _ in rounds], options.batch)
        ratios = sorted(times[index] / b for times, b in rounds)
        print(
            f"    / bare: {statistics.median(ratios):.3f} (quartiles "
            f"{ratios[len(ratios) // 4]:.3f} to {ratios[3 * len(ratios) // 4]:.3f})"
        )


def show(name: str, times: list[float], batch: int) -> None:
    """Print median and best of a variant."""
    median = statistics.median(times)
    print(
        f"  {name:26s} median {median * 1e3:7.1f} ms  best {min(times) * 1e3:7.1f} ms  "
        f"{batch / median:6.1f} samples/s"
    )


if __name__ == "__main__":
    main()
