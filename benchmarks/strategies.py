"""Step time and peak memory of every strategy on one job, each beside DDP as a ratio.

    python benchmarks/strategies.py                          # poseidon-nano, 2 ranks, 64 x 64
    python benchmarks/strategies.py --num-workers 4 --steps 20

Each strategy trains in processes of its own, one after the other, with one thread per rank; all take
the same steps, and the losses are compared on the way. How the platform's step compares with a bare
torch loop is measured by `benchmarks/training.py`.
"""

import argparse
import os
import platform
import tempfile
from pathlib import Path

import deepspeed
import torch
from training import make_job

from pelagos.jobs.compare_strategies import layouts_of, run
from pelagos.jobs.measuring.strategy_table import comparison_markdown

STRATEGIES = ("ddp", "fsdp", "hsdp", "zero1", "zero2", "zero3")


def main() -> None:
    """Run every strategy and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--num-workers", type=int, default=2)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--size", type=int, default=64)
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}, DeepSpeed "
        f"{deepspeed.__version__}, Python {platform.python_version()}, load {os.getloadavg()[0]:.1f}"
    )
    print(
        f"poseidon-nano, global batch {options.batch} of {options.size} x {options.size}, fp32, "
        f"{options.num_workers} ranks on gloo, {options.steps} steps"
    )
    with tempfile.TemporaryDirectory() as scratch:
        comparison = run(
            make_job(Path(scratch), options.batch, options.size),
            layouts_of(STRATEGIES, [options.num_workers]),
            Path(scratch) / "comparison",
            steps=options.steps,
            tolerance=1e-6,
        )
    print(comparison_markdown(comparison))
    for sentence in comparison.disagreements:
        print(sentence)


if __name__ == "__main__":
    main()
