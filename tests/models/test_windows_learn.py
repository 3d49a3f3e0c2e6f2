"""Networks of several frames learn how fast a wave travels, which one frame does not tell."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from tests.models.test_image_objectives import Windows
from torch import Tensor

from pelagos.models.objectives import Autoregressive
from pelagos.models.registry import create_model

LEARNERS: dict[str, tuple[tuple[int, ...], dict[str, Any], int, float]] = {
    # grid, options, steps of 8 samples, learning rate
    "dpot-nano": ((16, 16), {"img_size": 16, "patch_size": 4, "in_timesteps": 2}, 150, 3e-3),
    "dpot3d-nano": ((8, 16, 16), {"in_timesteps": 2}, 80, 3e-3),
    "simvp-nano": ((16, 16), {"in_timesteps": 2}, 80, 3e-3),
    # four tokens along the wave: of two, its norms leave the signs alone
    "mpp-nano": ((16, 64), {"in_timesteps": 2}, 150, 3e-3),
}
BATCH = 8
OBJECTIVE = Autoregressive(("u",), num_input_frames=2)


def waves(count: int, grid: tuple[int, ...], generator: torch.Generator) -> Windows:
    """``[B, 3, 1, *grid]``: cos(x - c t + phase) along the last axis; c of either sign, per sample."""
    phase, speed = torch.rand(2, count, generator=generator)
    angle = torch.arange(grid[-1]) * 2 * math.pi / grid[-1]
    moved = torch.arange(3)[None, :, None] * (2 * speed - 1)[:, None, None]
    frames = torch.cos(angle - moved + 2 * math.pi * phase[:, None, None])
    shape = (count, 3, 1, *(1,) * (len(grid) - 1), grid[-1])
    values = frames.reshape(shape).expand(count, 3, 1, *grid).contiguous()
    return Windows(values, torch.zeros(count, 3), torch.ones(count, 1, dtype=torch.bool))


def relative_error(prediction: Tensor, truth: Tensor) -> float:
    return ((prediction - truth).norm() / truth.norm()).item()


@pytest.mark.parametrize("name", LEARNERS)
def test_half_the_error_of_the_best_guess_from_one_frame(name: str) -> None:
    grid, options, steps, rate = LEARNERS[name]
    torch.manual_seed(0)
    model = create_model(name, in_channels=1, out_channels=1, **options)
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        loss = OBJECTIVE.errors(model, waves(BATCH, grid, generator)).mean()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    held_out = waves(32, grid, torch.Generator().manual_seed(2)).frames
    with torch.no_grad():
        learned = OBJECTIVE.predict(model.eval(), held_out[:, :2], torch.zeros(32))
    # a wave of unknown direction: the last frame is the best that one frame tells
    assert relative_error(learned, held_out[:, 2]) <= 0.5 * relative_error(
        held_out[:, 1], held_out[:, 2]
    )
