"""One meaning of the global gradient norm, of clipping and of loss scaling, for every strategy."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

# added to the norm before dividing, as torch and DeepSpeed do
CLIP_EPS = 1e-6


def global_norm(
    parts: Sequence[Tensor], group: dist.ProcessGroup | None, device: torch.device
) -> Tensor:
    """Return the L2 norm of gradients of which `parts` are this rank's, as an fp32 scalar.

    Squares are summed in float64, so that the result does not depend on how the gradients are cut
    up: another order of the sums changes it by 1e-16, which rounding to fp32 hides.

    Args:
        parts: gradients, or this rank's elements.
        group: the ranks that hold the other elements; None: this rank holds all.
        device: where the result is wanted.
    """
    held = [part for part in parts if part.numel()]
    square = torch.zeros((), dtype=torch.float64, device=device)
    if held:
        norms = torch._foreach_norm(held, 2, dtype=torch.float64)
        square = torch.stack(norms).square().sum().to(device)
    if group is not None:
        dist.all_reduce(square, group=group)
    return square.sqrt().float()


def clip_factor(scaled_norm: Tensor, clip_norm: float | None, loss_scale: float) -> Tensor | None:
    """Return the factor that multiplies gradients; None: no factor.

    1 / (max(1, (norm + 1e-6) / clip_norm) * loss_scale), with the roundings of DeepSpeed's own
    expression, because DeepSpeed cannot be given another.
    """
    if clip_norm is None:
        return None if loss_scale == 1.0 else torch.full_like(scaled_norm, 1.0 / loss_scale)
    excess = ((scaled_norm / loss_scale) + CLIP_EPS) / clip_norm
    return 1.0 / (torch.clamp(excess, min=1.0) * loss_scale)


@dataclass
class LossScale:
    """Dynamic loss scaling for fp16 (Micikevicius et al., Mixed Precision Training, 2018, 3.2).

    A step whose gradients overflow changes nothing and halves the scale; `growth_interval` good
    steps in a row double it. The state is two numbers, and is saved with the trainer's.
    """

    scale: float = 65536.0
    good_steps: int = 0
    growth_interval: int = 2000

    def update(self, is_finite: bool) -> None:
        """Take in whether a step's gradients were finite."""
        if not is_finite:
            self.scale, self.good_steps = self.scale / 2.0, 0
            return
        self.good_steps += 1
        if self.good_steps >= self.growth_interval:
            self.scale, self.good_steps = self.scale * 2.0, 0

    @property
    def is_exhausted(self) -> bool:
        """Whether the loss is so large that not even a scale below 1 helped."""
        return self.scale < 1.0

    def state(self) -> dict[str, Any]:
        """Return the state as JSON."""
        return {"scale": self.scale, "good_steps": self.good_steps}

    def load(self, state: dict[str, Any]) -> None:
        """Take over a state; raises `ValueError` where it is none."""
        scale = float(state["scale"])
        if not (math.isfinite(scale) and scale > 0):
            raise ValueError(f"the checkpoint's loss scale is {scale}; expected a positive number")
        self.scale, self.good_steps = scale, int(state["good_steps"])
