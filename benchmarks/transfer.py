"""Does pretraining pay? A small model fine-tuned on a flow it has not seen, against the same network
from scratch, at equal steps, for few trajectories and several seeds; an FNO beside them.

    pelagos generate configs/transfer/generate.yaml
    pelagos pretrain configs/transfer/pretrain.yaml
    pelagos generate configs/transfer/downstream.yaml
    python benchmarks/transfer.py                       # three seeds, 1, 4 and 16 trajectories

It runs `configs/transfer/sweep.yaml` (trials that are over already are not run again) and prints,
for each number of trajectories, the mean over seeds of the median relative L1 error of 24 held-out
trajectories at the last lead, its range over seeds, the mean VRMSE behind a slash, and the ratio of
the former to training from scratch.
"""

from __future__ import annotations

import argparse
import os
import platform
from statistics import fmean

import torch

from pelagos.evaluation.pages.summary import Error
from pelagos.evaluation.pages.sweep_page import SweepRow
from pelagos.jobs import sweep
from pelagos.platform.config import load_job
from pelagos.platform.config.sweep import SweepJob

CONFIG = "configs/transfer/sweep.yaml"
METHODS = ("direct", "autoregressive")


def errors(rows: list[SweepRow], label: str, trajectories: int | None, method: str) -> list[Error]:
    """Return the errors of every seed."""
    return [
        row.both_errors(method)
        for row in rows
        if row.label == label and row.trajectories == trajectories and method in row.errors
    ]


def cell(found: list[Error]) -> str:
    """Return relative L1 with its range over seeds, and VRMSE."""
    shares = [error.relative_l1 for error in found]
    vrmse = fmean(error.vrmse for error in found)
    return f"{fmean(shares):.3f} ({min(shares):.3f}-{max(shares):.3f}) / {vrmse:.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--trajectories", nargs="+", type=int, default=[1, 4, 16])
    parser.add_argument("overrides", nargs="*", help="key=value of the sweep")
    arguments = parser.parse_args()
    given = [f"seeds={arguments.seeds}", f"trajectories={arguments.trajectories}"]
    job = load_job(CONFIG, [*given, *arguments.overrides])
    assert isinstance(job, SweepJob)
    result = sweep.run(job)
    rows = list(result.report.rows)
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}, "
        f"{len(arguments.seeds)} seeds; report: {result.path}"
    )
    for method in METHODS:
        print(f"\n{method}\n| trajectories | " + " | ".join(job.jobs) + " | fine-tuned / scratch |")
        print("|" + "---|" * (len(job.jobs) + 2))
        for count in arguments.trajectories:
            found = {label: errors(rows, label, count, method) for label in job.jobs}
            cells = [cell(of_seeds) for of_seeds in found.values()]
            means = {k: fmean(e.relative_l1 for e in of_seeds) for k, of_seeds in found.items()}
            ratio = means["finetuned"] / means["scratch"]
            print(f"| {count} | " + " | ".join(cells) + f" | {ratio:.2f} |")


if __name__ == "__main__":
    main()
