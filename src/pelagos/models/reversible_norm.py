"""Per-sample normalisation around a network, undone at its end (RevIN, Kim et al., ICLR 2022)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_EPS = 1e-5


@dataclass(frozen=True)
class ReversibleNorm:
    """Mean and standard deviation of each sample and channel, over frames and space.

    Without the learnt affine map of the paper's: a first layer has one. ``mean`` and ``scale`` are
    ``[B, C, 1, ...]``, of one frame's axes.
    """

    mean: Tensor
    scale: Tensor

    @classmethod
    def of(cls, frames: Tensor) -> ReversibleNorm:
        """The norm of ``frames [B, F, C, *grid]``; a channel of zeros stays zero."""
        axes = (1, *range(3, frames.ndim))
        variance, mean = torch.var_mean(frames.float(), dim=axes, correction=0, keepdim=True)
        scale = (variance + _EPS).sqrt()
        return cls(mean[:, 0].to(frames.dtype), scale[:, 0].to(frames.dtype))

    def apply(self, frames: Tensor) -> Tensor:
        """``[B, F, C, *grid]`` with mean 0 and deviation 1 of each channel."""
        return (frames - self.mean[:, None]) / self.scale[:, None]

    def undo(self, frame: Tensor) -> Tensor:
        """The way back, of one frame ``[B, C, *grid]``."""
        return frame * self.scale + self.mean
