"""Poseidon and DPOT beside their official code: the same weights, in turns, in one process.

For `models.py`. One step is forward, backward, clipping to 5 and AdamW, in fp32, on the device at
hand. On a shared machine the best of the turns is the number to compare. Poseidon's is a clone of
github.com/camlab-ethz/poseidon, which needs ``transformers==4.49`` beside Pelagos; DPOT's one of
github.com/HaoZhongkai/DPOT. Nothing of them is copied here.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable
from typing import Any

import torch
from model_steps import new_model, stepper
from torch import Tensor, nn


def official_scot(path: str, ours: nn.Module) -> nn.Module:
    """The official network of the same configuration, with the same weights."""
    sys.path.insert(0, path)
    from scOT.model import ScOT, ScOTConfig

    config: Any = ours.config
    options = {k: getattr(config, k) for k in config.__dataclass_fields__}
    options = {k: list(v) if isinstance(v, tuple) else v for k, v in options.items()}
    network: nn.Module = ScOT(ScOTConfig(**options))
    network.load_state_dict(ours.state_dict(), strict=True)
    return network


def official_dpot(path: str, ours: nn.Module) -> nn.Module:
    """The official DPOT of the same configuration, with the same weights."""
    sys.path.insert(0, path)
    from models.dpot import DPOTNet  # type: ignore[import-not-found]  # noqa: TID251 of the clone

    config: Any = ours.config
    network: nn.Module = DPOTNet(**{k: getattr(config, k) for k in config.__dataclass_fields__})
    network.load_state_dict(ours.state_dict(), strict=True)
    return network


def compare_with_scot(clone: str, name: str, batch: int, turns: int) -> None:
    """Steps of a Poseidon and of the official one, on random frames of its native grid."""
    ours, device = new_model(name)
    config: Any = ours.config
    side = config.image_size
    generator = torch.Generator().manual_seed(0)
    pixels, labels = (
        torch.randn(batch, config.num_channels, side, side, generator=generator).to(device)
        for _ in range(2)
    )
    lead = torch.rand(batch, generator=generator).to(device)

    def step_of(model: nn.Module) -> Callable[[], float]:
        return stepper(model, lambda: model(pixel_values=pixels, time=lead, labels=labels).loss)

    candidates = {
        "pelagos": step_of(ours),
        "official": step_of(official_scot(clone, ours).to(device)),
    }
    report(f"{name} {list(pixels.shape)}", batch, candidates, turns)


def compare_with_dpot(clone: str, name: str, batch: int, turns: int) -> None:
    """Steps of a DPOT and of the official one, on random frames of its native grid."""
    ours, device = new_model(name)
    config: Any = ours.config
    side = config.img_size
    shape = (batch, side, side, config.in_timesteps, config.in_channels)
    window = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device)

    def step_of(model: nn.Module) -> Callable[[], float]:
        def compute_loss() -> Tensor:
            prediction, logits = model(window)
            square: Tensor = prediction.square().mean()
            return square + 0.0 * logits.sum()

        return stepper(model, compute_loss)

    candidates = {
        "pelagos": step_of(ours),
        "official": step_of(official_dpot(clone, ours).to(device)),
    }
    report(f"{name} {list(window.shape)}", batch, candidates, turns)


def report(title: str, batch: int, candidates: dict[str, Callable[[], float]], turns: int) -> None:
    """Run the candidates in turn and print the best and median step of each."""
    for step in candidates.values():
        step()
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(turns):
        for name, step in candidates.items():
            seconds[name].append(step())
    for name, taken in seconds.items():
        best, median = min(taken), statistics.median(taken)
        line = f"{title} {name}: best {best:.3f} s, median {median:.3f} s, {batch / best:.1f}/s"
        if name != "official" and "official" in seconds:
            line += f", {min(seconds['official']) / best:.2f} times as fast as official"
        print(line, flush=True)
