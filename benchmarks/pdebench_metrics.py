"""PDEBench's metrics beside Pelagos': the same fields, in one process.

PDEBench's is what `pip download --no-deps pdebench` gives, unpacked; it needs torch and matplotlib. Its
code is for non-commercial research alone, and nothing of it is copied here.

    python benchmarks/pdebench_metrics.py UNPACKED/pdebench/models
"""

from __future__ import annotations

import importlib
import sys

import torch

from pelagos.evaluation.measures.metrics import METRICS

# theirs, in the order of what `metric_func` returns; the last has three bands
NAMES = ("rmse", "nrmse", "conserved_rmse", "max_error", "boundary_rmse", "frmse")
SIDES = ((64,), (63,), (32, 32), (40, 28), (26, 26, 26))


def main(folder: str) -> None:
    """Print the largest relative difference of each metric on each grid."""
    sys.path.insert(0, folder)
    theirs = importlib.import_module("metrics").metric_func
    torch.manual_seed(0)
    for sides in SIDES:
        truth = torch.randn(1, *sides, dtype=torch.float64)  # one sample, one channel
        forecast = truth + 0.3 * torch.randn_like(truth)
        # [sample, *grid, time, channel]
        shown = [field.reshape(1, *sides, 1, 1) for field in (forecast, truth)]
        # with if_mean theirs fails on volumes
        found = dict(zip(NAMES, theirs(*shown, if_mean=False), strict=True))
        bands = dict(zip(("low", "mid", "high"), found.pop("frmse").flatten(), strict=True))
        found |= {f"frmse_{band}": value for band, value in bands.items()}
        differences = {
            name: abs(float(METRICS[name](forecast, truth, len(sides))) / float(value) - 1)
            for name, value in found.items()
        }
        told = ", ".join(f"{name} {difference:.1e}" for name, difference in differences.items())
        print(f"{' x '.join(map(str, sides))}: {told}")


if __name__ == "__main__":
    main(sys.argv[1])
