"""Whole images and volumes through a model that was trained on patches.

Overlapping patches are predicted one by one and averaged with weights that fall off from their
centres like a Gaussian, as in nnU-Net (Isensee et al., arXiv:1809.10486): a convolution knows least
at the edge of its view. Layout: `[B, C, *grid]`, two or three axes.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_SIGMA_SHARE = 1 / 8  # deviation of the weights, as a share of the patch's side
_LEAST_WEIGHT = 1e-3  # of the largest, at a patch's corner


@torch.no_grad()
def predict_by_patches(
    model: nn.Module, volume: Tensor, patch: Sequence[int], overlap: float = 0.5
) -> Tensor:
    """The model's map `[B, K, *grid]` of a volume `[B, C, *grid]` of any size.

    `patch` is the grid that the model is called with, `overlap` the share of a side by which
    neighbours overlap at least. Volumes smaller than the patch are padded with zeros for the call.
    Of a model that answers with several maps the first is taken, the finest.

    Sums are fp32; of a model that treats every voxel alike the result is its own answer, but for
    their rounding. Raises ValueError for sizes that do not fit.
    """
    grid, patch = tuple(volume.shape[2:]), tuple(patch)
    _check(volume, patch, overlap)
    missing = [max(0, side - n) for side, n in zip(patch, grid, strict=True)]
    padded = F.pad(volume, [end for extra in reversed(missing) for end in (0, extra)])
    starts = [
        patch_starts(size, side, overlap)
        for size, side in zip(padded.shape[2:], patch, strict=True)
    ]
    weight = patch_weights(patch).to(volume.device)
    total = torch.zeros(padded.shape[2:], device=volume.device)
    summed: Tensor | None = None
    for corner in itertools.product(*starts):
        window: Any = (..., *(slice(s, s + side) for s, side in zip(corner, patch, strict=True)))
        answer = model(padded[window])
        finest: Tensor = answer[0] if isinstance(answer, tuple) else answer
        if summed is None:
            summed = torch.zeros(*finest.shape[:2], *total.shape, device=volume.device)
        summed[window] += finest.float() * weight
        total[window] += weight
    assert summed is not None  # every axis has at least one start
    inside: Any = (..., *(slice(0, n) for n in grid))
    return (summed / total)[inside].to(volume.dtype)


def patch_starts(size: int, side: int, overlap: float) -> list[int]:
    """Where patches begin along one axis: evenly spread, from 0 to `size - side`.

    >>> patch_starts(10, 4, 0.5), patch_starts(4, 4, 0.5)
    ([0, 2, 4, 6], [0])
    """
    longest_step = max(1, int(side * (1 - overlap)))
    steps = math.ceil((size - side) / longest_step)
    return [round(i * (size - side) / steps) for i in range(steps + 1)] if steps else [0]


def patch_weights(patch: tuple[int, ...]) -> Tensor:
    """`[*patch]`: a Gaussian around the centre, 1 at most, nowhere less than 1e-3."""
    weight = torch.ones(())
    for side in patch:
        offset = torch.arange(side, dtype=torch.float32) - (side - 1) / 2
        weight = weight[..., None] * torch.exp(-0.5 * (offset / (side * _SIGMA_SHARE)) ** 2)
    return (weight / weight.max()).clamp_min(_LEAST_WEIGHT)


def _check(volume: Tensor, patch: tuple[int, ...], overlap: float) -> None:
    problems = []
    axes = volume.ndim - 2
    if axes not in (2, 3) or len(patch) != axes or min(patch, default=0) < 1:
        problems.append(
            f"patch={patch} must have one side of at least 1 for each of the {axes} axes of a "
            f"volume of shape {tuple(volume.shape)}, 2 or 3 behind batch and channels"
        )
    if not 0.0 <= overlap < 1.0:
        problems.append(f"overlap={overlap} must be at least 0 and less than 1")
    if problems:
        raise ValueError("predict_by_patches: " + "; ".join(problems))
