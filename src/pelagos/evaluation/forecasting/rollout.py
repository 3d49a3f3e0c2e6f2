"""Forecasts from a model that is only a function of past frames and a lead time.

A state is one frame `[B, C, *grid]`, normalised, or the latest F frames `[B, F, C, *grid]`, one
rollout step apart, for models that take several; truth is `[B, T, C, *grid]`. `present` bool
marks the channels that the dataset has: the others go into the model as zeros (the normalised mean)
at every step, as in training, whatever the model predicted there. It is `[C, 1, 1]` on grids of two
axes, `[C, 1]` and `[C, 1, 1, 1]` on those of one and three, and so distinguishes frames from states of
several (`EvaluationData.channel_mask`).
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

# (state, lead_time [B]) -> the frame [B, C, *grid] that much later
Predict = Callable[[Tensor, Tensor], Tensor]


def direct(
    predict: Predict,
    initial: Tensor,
    lead_steps: Sequence[int],
    frame_interval: float,
    present: Tensor,
) -> Tensor:
    """One forward pass per lead time from the initial frame, `[B, len(lead_steps), C, *grid]`."""
    start = masked(initial, present)
    forecasts = [_advance(predict, start, step * frame_interval, present) for step in lead_steps]
    return torch.stack(forecasts, dim=1)


def autoregressive(
    predict: Predict,
    initial: Tensor,
    lead_steps: Sequence[int],
    frame_interval: float,
    present: Tensor,
    *,
    rollout_step: int = 1,
) -> Tensor:
    """Steps of `rollout_step` frames fed back, at the lead steps `[B, len(lead_steps), ...]`.

    Raises ValueError if a lead step is not a multiple of `rollout_step`.
    """
    check_rollout_step(lead_steps, rollout_step)
    wanted, state, kept = set(lead_steps), masked(initial, present), {}
    for step in range(rollout_step, max(wanted) + 1, rollout_step):
        frame, state = advance(predict, state, rollout_step * frame_interval, present)
        if step in wanted:
            kept[step] = frame
    return torch.stack([kept[step] for step in lead_steps], dim=1)


def advance(
    predict: Predict, state: Tensor, lead_time: float, present: Tensor
) -> tuple[Tensor, Tensor]:
    """The frame `lead_time` later, and the state that has it as its latest."""
    frame = _advance(predict, state, lead_time, present)
    return frame, frame if state.ndim == frame.ndim else torch.cat(
        (state[:, 1:], frame[:, None]), dim=1
    )


def ensemble(
    predict: Predict,
    initial: Tensor,
    lead_steps: Sequence[int],
    frame_interval: float,
    present: Tensor,
    *,
    num_members: int,
    rollout_step: int = 1,
) -> Tensor:
    """Mean of forecasts that reach each lead by other steps, `[B, len(lead_steps), C, *grid]`.

    A model of any lead time has as many ways to a lead as the lead has ordered partitions into
    steps: one step, many small ones, and all between. Errors of different ways differ, so their
    mean is often better than each. See `partitions` for which ways are taken.
    """
    forecasts = []
    for lead in lead_steps:
        ways = partitions(lead // rollout_step, num_members)
        members = []
        for way in ways:
            state = masked(initial, present)
            for part in way:
                lead_time = part * rollout_step * frame_interval
                state = _advance(predict, state, lead_time, present)
            members.append(state)
        forecasts.append(torch.stack(members).mean(0))
    return torch.stack(forecasts, dim=1)


def partitions(whole: int, most: int) -> list[tuple[int, ...]]:
    """Up to `most` ordered partitions of a whole number, always the same, without repeats.

    The first is the one of a single part, the second that of ones; the others are drawn evenly
    from all 2^(whole - 1).

    >>> partitions(3, 9)
    [(3,), (1, 1, 1), (1, 2), (2, 1)]
    """
    cuts = whole - 1
    count = 2**cuts
    chosen = dict.fromkeys([0, count - 1])  # bits say where the whole is cut
    draw = random.Random(whole)
    while len(chosen) < min(most, count):
        chosen.setdefault(draw.randrange(count))
    return [_parts(bits, whole) for bits in list(chosen)[:most]]


def _parts(bits: int, whole: int) -> tuple[int, ...]:
    ends = [i + 1 for i in range(whole - 1) if bits >> i & 1] + [whole]
    return tuple(b - a for a, b in itertools.pairwise([0, *ends]))


def one_step(
    predict: Predict,
    truth: Tensor,
    lead_steps: Sequence[int],
    frame_interval: float,
    present: Tensor,
    *,
    rollout_step: int = 1,
    input_frames: int = 1,
) -> Tensor:
    """Each target frame from the true frames up to `rollout_step` before it, `[B, leads, ...]`.

    `truth` begins with the first of the `input_frames` that a rollout starts from, and reaches
    to the last lead.
    """
    start = (input_frames - 1) * rollout_step
    forecasts = [
        _advance(
            predict,
            masked(
                state_at(truth, start + step - rollout_step, rollout_step, input_frames), present
            ),
            rollout_step * frame_interval,
            present,
        )
        for step in lead_steps
    ]
    return torch.stack(forecasts, dim=1)


def state_at(truth: Tensor, frame: int, rollout_step: int, input_frames: int) -> Tensor:
    """The state whose latest frame is `truth[:, frame]`."""
    if input_frames == 1:
        return truth[:, frame]
    first = frame - (input_frames - 1) * rollout_step
    return truth[:, first : frame + 1 : rollout_step]


def persistence(initial: Tensor, lead_steps: Sequence[int]) -> Tensor:
    """The forecast that nothing changes, `[B, len(lead_steps), C, *grid]`."""
    return initial.unsqueeze(1).expand(-1, len(lead_steps), *initial.shape[1:])


def mean_field(mean: Tensor, initial: Tensor, lead_steps: Sequence[int]) -> Tensor:
    """The forecast of the dataset's mean, `[B, len(lead_steps), C, *grid]`.

    `mean` is the mean of each channel, `[C, *grid]` or shaped to broadcast to that.
    """
    return mean.to(initial).expand(len(initial), len(lead_steps), *initial.shape[1:])


def masked(state: Tensor, present: Tensor) -> Tensor:
    """`[..., C, *grid]` with zeros in the channels that are not present."""
    return state.masked_fill(~present.to(state.device), 0.0)


def check_rollout_step(lead_steps: Sequence[int], rollout_step: int) -> None:
    """Raises ValueError, naming them, for lead steps that are not positive multiples."""
    if not lead_steps:
        raise ValueError("evaluation needs at least one lead step, got none")
    bad = [step for step in lead_steps if step < 1 or rollout_step < 1 or step % rollout_step]
    if bad:
        raise ValueError(
            f"lead steps must be positive multiples of rollout_step={rollout_step} frames (at "
            f"least 1), got {bad}"
        )


def _advance(predict: Predict, state: Tensor, lead_time: float, present: Tensor) -> Tensor:
    forecast = predict(state, state.new_full((state.shape[0],), lead_time))
    if forecast.shape != (state.shape[0], *state.shape[-present.ndim :]):
        raise ValueError(
            f"predict returned shape {tuple(forecast.shape)} for frames of {tuple(state.shape)}; a "
            "forecast needs as many channels as its input"
        )
    return masked(forecast.to(state.dtype), present)
