"""Per-sample normalisation around a network, undone at its end (RevIN, Kim et al., ICLR 2022)."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor

_EPS = 1e-5


@dataclass(frozen=True)
class ReversibleNorm:
    """Mean and standard deviation of each sample and channel, over frames and space.

    Without the learnt affine map of the paper's: a first layer has one. `mean` and `scale` are
    `[B, C, 1, ...]`, of one frame's axes.
    """

    mean: Tensor
    scale: Tensor

    @classmethod
    def of(
        cls, frames: Tensor, valid: Tensor | None = None, kept: Collection[int] = ()
    ) -> ReversibleNorm:
        """The norm of `frames [B, F, C, *grid]`; a channel of zeros stays zero.

        `valid`, bool of the same shape, marks the points that count, None all points; `kept`
        are channels that stay as they are.
        """
        axes = (1, *range(3, frames.ndim))
        if valid is None:
            variance, mean = torch.var_mean(frames.float(), dim=axes, correction=0, keepdim=True)
        else:
            count = valid.sum(dim=axes, keepdim=True).clamp_min(1)
            mean = frames.float().where(valid, 0.0).sum(dim=axes, keepdim=True) / count
            squares = (frames.float() - mean).square().where(valid, 0.0)
            variance = squares.sum(dim=axes, keepdim=True) / count
        scale = (variance + _EPS).sqrt()
        if kept:
            channels = torch.tensor(sorted(kept), device=frames.device)
            mean, scale = mean.index_fill(2, channels, 0.0), scale.index_fill(2, channels, 1.0)
        return cls(mean[:, 0].to(frames.dtype), scale[:, 0].to(frames.dtype))

    def apply(self, frames: Tensor) -> Tensor:
        """`[B, F, C, *grid]` with mean 0 and deviation 1 of each channel."""
        return (frames - self.mean[:, None]) / self.scale[:, None]

    def undo(self, frame: Tensor) -> Tensor:
        """The way back, of one frame `[B, C, *grid]`."""
        return frame * self.scale + self.mean
