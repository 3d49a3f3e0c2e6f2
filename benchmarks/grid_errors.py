"""The error that each simulated family's own grid leaves: a solution against one on a finer grid.

    python benchmarks/grid_errors.py [--resolution 128] [--trajectories 1] [--families A B …]

The trajectory of a family as `pelagos generate` makes it by default is compared with the same one
solved on twice as many cells per axis (and brought to the stored grid as the family does). Printed
are relative L1 differences per field over all frames after the first, the largest of the fields,
and in the last frame. For a method of order p the error itself is 1 / (1 - 2^-p) times that: 4/3 of
it for order 2, twice for shocks (order 1).
"""

import argparse
import os
import platform
import time

import numpy as np
import torch

from pelagos.data_pipelines.generate.families import FAMILIES
from pelagos.data_pipelines.generate.trajectories import generate_trajectories

# As much of a trajectory as decides its error; steady problems have an input and a solution.
NUM_FRAMES, FINAL_TIME = 6, 1.0


def difference(coarse: np.ndarray, fine: np.ndarray) -> float:
    """Relative L1, in per cent."""
    return float(100 * np.abs(coarse - fine).sum() / np.abs(fine).sum())


def measure(name: str, resolution: int, count: int) -> tuple[float, float, str, float]:
    """Largest difference over fields (all frames; last frame), that field, and the seconds."""
    family = FAMILIES[name]
    frames = 2 if family.physics in ("poisson", "helmholtz", "darcy") else NUM_FRAMES
    usual = resolution * family.solver_refinement
    begin = time.perf_counter()
    coarse, fine = (
        generate_trajectories(
            name,
            range(count),
            seed=0,
            resolution=resolution,
            num_frames=frames,
            final_time=FINAL_TIME,
            solver_resolution=solver,
        )[0]
        for solver in (usual, 2 * usual)
    )
    rows = []
    for channel, field in enumerate(family.fields):
        if field in family.given_fields:
            continue
        a, b = coarse[:, 1:, channel], fine[:, 1:, channel]
        rows.append((difference(a, b), difference(a[:, -1], b[:, -1]), field))
    worst = max(rows)
    return *worst[:2], worst[2], time.perf_counter() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--resolution", type=int, default=128)
    parser.add_argument("--trajectories", type=int, default=1)
    parser.add_argument("--families", nargs="*", default=list(FAMILIES))
    arguments = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    print(f"{platform.processor() or platform.machine()}, torch {torch.__version__}")
    print(f"{arguments.resolution} stored points per axis, {arguments.trajectories} trajectories")
    print(f"{'family':14} {'field':16} {'all frames %':>12} {'last frame %':>12} {'s':>7}")
    for name in arguments.families:
        try:
            every, last, field, seconds = measure(
                name, arguments.resolution, arguments.trajectories
            )
        except ValueError as error:
            print(f"{name:14} {error}", flush=True)
            continue
        print(f"{name:14} {field:16} {every:12.2f} {last:12.2f} {seconds:7.1f}", flush=True)


if __name__ == "__main__":
    main()
