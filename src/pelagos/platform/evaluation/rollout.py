"""Forecasts from a model that is only a function of a state and a lead time.

States are ``[B, C, y, x]``, normalised; truth is ``[B, T, C, y, x]``. ``present [C]`` bool marks the
channels that the dataset has: the others go into the model as zeros (the normalised mean) at every
step, as in training, whatever the model made of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Predict = Callable[[Tensor, Tensor], Tensor]  # (frames [B, C, y, x], lead_time [B]) -> same shape


def direct(
    predict: Predict,
    initial: Tensor,
    lead_steps: Sequence[int],
    frame_interval: float,
    present: Tensor,
) -> Tensor:
    """One forward pass per lead time from the initial frame, ``[B, len(lead_steps), C, y, x]``."""
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
    """Steps of ``rollout_step`` frames fed back, at the lead steps ``[B, len(lead_steps), ...]``.

    Raises ValueError if a lead step is not a multiple of ``rollout_step``.
    """
    check_rollout_step(lead_steps, rollout_step)
    wanted, state, kept = set(lead_steps), masked(initial, present), {}
    for step in range(rollout_step, max(wanted) + 1, rollout_step):
        state = _advance(predict, state, rollout_step * frame_interval, present)
        if step in wanted:
            kept[step] = state
    return torch.stack([kept[step] for step in lead_steps], dim=1)


def one_step(
    predict: Predict,
    truth: Tensor,
    lead_steps: Sequence[int],
    frame_interval: float,
    present: Tensor,
    *,
    rollout_step: int = 1,
) -> Tensor:
    """Each target frame from the true frame ``rollout_step`` before it, ``[B, leads, C, y, x]``.

    ``truth[:, 0]`` is the initial frame, so ``truth`` needs ``max(lead_steps) + 1`` frames.
    """
    forecasts = [
        _advance(
            predict,
            masked(truth[:, step - rollout_step], present),
            rollout_step * frame_interval,
            present,
        )
        for step in lead_steps
    ]
    return torch.stack(forecasts, dim=1)


def persistence(initial: Tensor, lead_steps: Sequence[int]) -> Tensor:
    """The forecast that nothing changes, ``[B, len(lead_steps), C, y, x]``."""
    return initial.unsqueeze(1).expand(-1, len(lead_steps), *initial.shape[1:])


def masked(state: Tensor, present: Tensor) -> Tensor:
    """``[..., C, y, x]`` with zeros in the channels that are not present."""
    return state.masked_fill(~present.to(state.device)[:, None, None], 0.0)


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
    if forecast.shape != state.shape:
        raise ValueError(
            f"predict returned shape {tuple(forecast.shape)} for frames of {tuple(state.shape)}; "
            f"a forecast needs as many channels as it takes in"
        )
    return masked(forecast.to(state.dtype), present)
