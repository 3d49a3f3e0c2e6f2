"""Solving numbered trajectories of a family, with a second chance at a smaller step."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from pelagos.data_pipelines.generate.families import (
    CELLS_PER_BATCH,
    NUM_ATTEMPTS,
    find_family,
    trajectory_generator,
)
from pelagos.data_pipelines.generate.family import Array, Family, FloatArray, GenerationError

_DTYPES = {"float32": torch.float32, "float64": torch.float64}


def generate_trajectories(
    family: str | Family,
    indices: Sequence[int],
    *,
    seed: int,
    resolution: int = 128,
    num_frames: int = 21,
    final_time: float = 1.0,
    dtype: str = "float32",
    device: str | torch.device = "cpu",
    solver_resolution: int | None = None,
    compiled: bool = False,
) -> tuple[FloatArray, dict[str, Array]]:
    """Compute trajectories `indices` of a family.

    Args:
        family: a name in `FAMILIES`, or a record.
        indices: trajectory numbers; the number alone decides a trajectory's initial state.
        seed: seed of the dataset.
        resolution: points or cells per axis of the result.
        num_frames: frames at equal intervals from 0 to `final_time`, both included.
        final_time: time of the last frame.
        dtype: arithmetic of the solver, "float32" or "float64"; initial states are float64.
        device: where the solver runs.
        solver_resolution: a multiple of `resolution` to solve on (None: `resolution` times the
            family's `solver_refinement`). Compressible
            frames are then cell means of conserved quantities, incompressible ones Fourier
            truncations.
        compiled: fuse the compressible solver's steps (see `solve_euler`); other last bits.

    Returns:
        (data [n, time, channel, y, x] float32, {parameter: [n] float64}). The parameters are the
        PDE's constants and "cfl", the Courant number a trajectory was accepted with.

    Raises:
        ValueError: unknown family or a number that does not fit.
        GenerationError: trajectories that stayed non-finite, by family, seed and index.
    """
    record = find_family(family) if isinstance(family, str) else family
    fine = solver_resolution or resolution * record.solver_refinement
    if compiled:
        record = dataclasses.replace(record, solve=record.solve_compiled)
    _check(resolution, fine, num_frames, final_time, dtype)
    times = [final_time * k / max(1, num_frames - 1) for k in range(num_frames)]
    data = np.empty((len(indices), num_frames, len(record.fields), resolution, resolution), "f4")
    cfl = np.empty(len(indices))
    on_cpu = torch.device(device).type == "cpu"
    size = max(1, CELLS_PER_BATCH // fine**2) if on_cpu else max(1, len(indices))
    for start in range(0, len(indices), size):
        part = list(indices[start : start + size])
        states = np.stack(
            [record.initial_state(trajectory_generator(seed, record.name, i), fine) for i in part]
        )
        tensor = torch.from_numpy(states).to(device=device, dtype=_DTYPES[dtype])
        frames, used, failed = solve_with_retries(record, tensor, times)
        if failed:
            raise GenerationError(
                f"{record.name}, seed {seed}: trajectories {[part[row] for row in failed]} are not "
                f"finite up to time {final_time} on a {fine} x {fine} grid in {dtype}, at Courant "
                f"numbers from {record.cfl} down to {record.cfl / 2 ** (NUM_ATTEMPTS - 1)}. Use "
                "solver dtype float64, another solver resolution, or another seed."
            )
        coarse = record.coarsen(frames.flatten(0, 1), resolution)
        data[start : start + size] = (
            coarse.float().cpu().reshape(data[start : start + size].shape).numpy()
        )
        cfl[start : start + size] = used
    constants = record.parameters(fine)
    parameters = {name: np.full(len(indices), value) for name, value in constants.items()}
    return data, {**parameters, "cfl": cfl}


def solve_with_retries(
    family: Family, states: Tensor, times: Sequence[float]
) -> tuple[Tensor, list[float], list[int]]:
    """Solve `states` [n, channel, y, x], halving the Courant number of those that fail.

    Returns:
        (frames [n, time, channel, y, x], Courant number used for each, rows that never came out
        finite).
    """
    cfl = family.cfl
    frames = family.solve(states, times, cfl)
    used = [cfl] * states.shape[0]
    failed = _non_finite(frames)
    for _ in range(NUM_ATTEMPTS - 1):
        if not failed:
            break
        cfl /= 2.0
        frames[failed] = family.solve(states[failed], times, cfl)
        for row in failed:
            used[row] = cfl
        failed = [row for row in failed if not bool(torch.isfinite(frames[row]).all())]
    return frames, used, failed


def _non_finite(frames: Tensor) -> list[int]:
    rows: list[int] = (~torch.isfinite(frames).flatten(1).all(dim=1)).nonzero().flatten().tolist()
    return rows


def _check(resolution: int, fine: int, num_frames: int, final_time: float, dtype: str) -> None:
    if resolution < 4 or resolution % 2:
        raise ValueError(f"Got resolution={resolution}; an even number of at least 4 is required.")
    if fine % resolution:
        raise ValueError(
            f"Got solver_resolution={fine} for resolution={resolution}: {fine} % {resolution} = "
            f"{fine % resolution}, but a multiple is required."
        )
    if num_frames < 1 or not final_time > 0.0:
        raise ValueError(
            f"Got num_frames={num_frames}, final_time={final_time}; at least one frame and a "
            "positive time are required."
        )
    if dtype not in _DTYPES:
        raise ValueError(f'Got dtype="{dtype}"; "float32" or "float64" is required.')
