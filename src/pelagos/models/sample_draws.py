"""Random numbers of one sample, from its own seed: the same whichever rank or micro-batch has it."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def draws_per_sample(model: nn.Module) -> bool:
    """Whether a network draws in its forward pass, and so takes the samples' seeds in training.

    The network itself (`Pretrained.draws_per_sample`), or a data parallel wrapper of it.
    """
    network = getattr(model, "module", model)
    return model.training and bool(getattr(network, "draws_per_sample", False))


def normal_like(values: Tensor, seeds: Tensor) -> Tensor:
    """Standard normal numbers of the shape of `values [B, ...]`, sample b's from `seeds[b]`.

    Drawn on the values' device: another kind of device draws other numbers.
    """
    if seeds.is_meta:
        return torch.empty_like(values)
    return torch.stack(
        [
            torch.randn(sample.shape, generator=generator, device=values.device, dtype=values.dtype)
            for sample, generator in zip(values, _generators(seeds, values.device), strict=True)
        ]
    )


def uniform(shape: tuple[int, ...], seeds: Tensor, device: torch.device) -> Tensor:
    """Uniform numbers in [0, 1) `[B, *shape]`, sample b's from `seeds[b]`."""
    if seeds.is_meta:
        return torch.empty(len(seeds), *shape, device=device)
    return torch.stack(
        [
            torch.rand(shape, generator=generator, device=device)
            for generator in _generators(seeds, device)
        ]
    )


def _generators(seeds: Tensor, device: torch.device) -> list[torch.Generator]:
    return [torch.Generator(device).manual_seed(int(seed)) for seed in seeds.tolist()]
