"""Adaptive time marching of a batch in which every trajectory keeps its own clock.

A trajectory's sequence of steps depends on its own state alone: its CFL limit, its clock, its next
frame. Batch mates that are faster or slower never change it, so trajectory *i* comes out with the
same bits whether it is solved alone, in a batch of any size, or by any number of workers. The
solvers keep the other half of that promise (see `pelagos.data_pipelines.generate.spectral`).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

MAX_STEPS_PER_FRAME = 200_000  # a step this small means a blow-up, not a solution

Prepare = Callable[[Tensor, list[int], list[float]], tuple[Tensor, Tensor]]
Step = Callable[[Tensor, Tensor, Tensor, list[int], list[float]], Tensor]
Frame = Callable[[Tensor], Tensor]


def march(
    state: Tensor,
    times: Sequence[float],
    *,
    cfl: float,
    prepare: Prepare,
    step: Step,
    frame: Frame,
    max_step: float | None = None,
) -> Tensor:
    """March `state` [batch, ...] through `times`, returning frames [batch, time, channel, y, x].

    Steps between two frames are equal parts of the time that is left, each at most `cfl / rate`
    (and `max_step`), so frames are hit exactly and no step is a sliver.

    Args:
        state: solver state, first axis the trajectories.
        times: increasing; `state` is the state at `times[0]`, which becomes frame 0.
        cfl: Courant number.
        prepare: (state [n, ...], trajectory numbers, clocks) -> (auxiliary tensor [n, ...], rates
            [n]) where the rate is signal speed over cell width, the inverse of the time in which a
            signal crosses a cell. The auxiliary tensor is handed to `step` unchanged.
        step: (state, auxiliary, step sizes [n], trajectory numbers, clocks) -> state.
        frame: state [n, ...] -> frames [n, channel, y, x].
        max_step: upper bound of the step size whatever the CFL limit.

    Returns:
        Frames. A trajectory whose rate stops being finite, or which would need more than
        `MAX_STEPS_PER_FRAME` steps to the next frame, is given up: its later frames are NaN.
    """
    check_times(times)
    if not cfl > 0.0:
        raise ValueError(f"Got cfl={cfl}; the Courant number must be positive.")
    batch = state.shape[0]
    first = frame(state)
    frames = first.new_full((batch, len(times), *first.shape[1:]), float("nan"))
    frames[:, 0] = first
    clocks = [float(times[0])] * batch
    goals = [1] * batch
    active = list(range(batch)) if len(times) > 1 else []
    while active:
        whole = len(active) == batch
        part = state if whole else state[active]
        now = [clocks[i] for i in active]
        auxiliary, rates = prepare(part, active, now)
        left = [times[goals[i]] - clocks[i] for i in active]
        counts = [
            _steps_left(gap, rate, cfl, max_step)
            for gap, rate in zip(left, rates.tolist(), strict=True)
        ]
        sizes = [0.0 if n is None else gap / n for gap, n in zip(left, counts, strict=True)]
        part = step(part, auxiliary, part.real.new_tensor(sizes), active, now)
        if whole:
            state = part
        else:
            state[active] = part
        going = []
        for row, (i, n) in enumerate(zip(active, counts, strict=True)):
            if n is None:
                continue
            clocks[i] += sizes[row]
            if n == 1:
                clocks[i] = float(times[goals[i]])
                frames[i, goals[i]] = frame(part[row : row + 1])[0]
                goals[i] += 1
            if goals[i] < len(times):
                going.append(i)
        active = going
    return frames


def check_times(times: Sequence[float]) -> None:
    """Raise ValueError unless `times` is non-empty and strictly increasing."""
    if not times:
        raise ValueError("Got no times; at least the time of the initial state is required.")
    for earlier, later in itertools.pairwise(times):
        if not later > earlier:
            raise ValueError(f"Got times {earlier} then {later}; times must strictly increase.")


def _steps_left(gap: float, rate: float, cfl: float, max_step: float | None) -> int | None:
    """Number of equal steps that cover `gap`, or None where the trajectory is lost."""
    if not math.isfinite(rate):
        return None
    limit = max_step if max_step is not None else math.inf
    if rate > 0.0:
        limit = min(limit, cfl / rate)
    count = gap / limit
    if not count <= MAX_STEPS_PER_FRAME:
        return None
    return max(1, math.ceil(count - 1e-9))


def per_trajectory(value: float | Tensor, like: Tensor, name: str) -> Tensor:
    """A scalar or a [batch] tensor of coefficients as a [batch] tensor on the device of `like`."""
    batch = like.shape[0]
    tensor = torch.as_tensor(value, dtype=like.real.dtype, device=like.device)
    if tensor.ndim == 0:
        return tensor.expand(batch)
    if tensor.shape != (batch,):
        raise ValueError(
            f"Got {name} of shape {tuple(tensor.shape)}; a number or one value per trajectory, "
            f"shape ({batch},), is required."
        )
    return tensor
