"""Every operator learns the heat equation in a few seconds, far better than persistence."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from pelagos.models.registry import create_model

SIDE = 16
LEARNERS = {  # options, steps of 8 samples (a sum of products learns more slowly), learning rate
    "fno-nano": ({"num_layers": 2}, 80, 3e-3),
    "tfno-nano": ({"num_layers": 2}, 80, 3e-3),
    "unet-nano": ({}, 40, 3e-3),
    "sinenet-nano": ({}, 70, 3e-3),
    "mgno-nano": ({"num_layers": 2}, 80, 3e-3),
    "deeponet-nano": ({"image_size": SIDE, "num_waves": 3, "num_layers": 1}, 500, 5e-3),
}
BATCH = 8


def heat(
    samples: int, generator: torch.Generator, bandwidth: float = 8.0, diffusivity: float = 0.2
) -> tuple[Tensor, Tensor, Tensor]:
    """Smooth periodic fields ``[B, 1, N, N]``, lead times in 0 .. 1, and the exact solutions.

    Amplitudes of wave number k: exp(-k² / ``bandwidth``), after time t exp(-``diffusivity`` k² t)
    times as large.
    """
    numbers = torch.fft.fftfreq(SIDE, 1 / SIDE)
    squared = numbers[:, None] ** 2 + numbers[None, : SIDE // 2 + 1].abs() ** 2
    noise = torch.randn(samples, 1, SIDE, SIDE, generator=generator)
    series = torch.fft.rfft2(noise) * torch.exp(-squared / bandwidth)
    series[..., 0, 0] = 0  # the mean never changes
    time = torch.rand(samples, generator=generator)
    decay = torch.exp(-diffusivity * squared * time.view(-1, 1, 1, 1))
    initial, final = (torch.fft.irfft2(s, s=(SIDE, SIDE)) for s in (series, series * decay))
    scale = initial.std()
    return initial / scale, time, final / scale


def relative_error(prediction: Tensor, truth: Tensor) -> float:
    return ((prediction - truth).norm() / truth.norm()).item()


def train(
    model: nn.Module,
    steps: int,
    rate: float,
    generator: torch.Generator,
    warm_up: float = 0.0,
    **problem: float,
) -> None:
    """Adam on the mean squared error of fresh samples, ``warm_up`` and a cosine schedule to zero."""
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    schedule: torch.optim.lr_scheduler.LRScheduler
    if warm_up:
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, steps, pct_start=warm_up)
    else:
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        initial, time, final = heat(BATCH, generator, **problem)
        loss = (model(initial, time).output - final).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()


@pytest.mark.parametrize("name", LEARNERS)
def test_half_the_error_of_persistence_on_the_heat_equation(name: str):
    options, steps, rate = LEARNERS[name]
    torch.manual_seed(0)
    model = create_model(name, in_channels=1, out_channels=1, **options)
    train(model, steps, rate, torch.Generator().manual_seed(1))
    initial, time, final = heat(64, torch.Generator().manual_seed(2))
    with torch.no_grad():
        learned = relative_error(model(initial, time).output, final)
    assert learned <= 0.5 * relative_error(initial, final)


def test_points_learn_the_heat_equation_of_a_few_waves():
    """GNOT sees a field through as many numbers per head as a head has features, 12 here.

    Of the fields above, some thirty waves, it learns in 200 steps less than it would need to beat
    persistence.
    """
    few = {"bandwidth": 2.0, "diffusivity": 1.0}
    torch.manual_seed(0)
    model = create_model("gnot-nano", in_channels=1, out_channels=1, depth=1, num_experts=1)
    # at this rate from the first step on, the error stays that of no forecast at all
    train(model, 240, 3e-3, torch.Generator().manual_seed(1), warm_up=0.1, **few)
    initial, time, final = heat(64, torch.Generator().manual_seed(2), **few)
    with torch.no_grad():
        learned = relative_error(model(initial, time).output, final)
    assert learned <= 0.5 * min(relative_error(initial, final), 1.0)  # 1: of no forecast at all
