"""Parts that the networks from one frame to a later one share: edges, lead time, checks.

Fields are `[B, C, *grid]`; a lead time is `[B]`, a fraction of the longest. Single-device code.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pelagos.models.layers.precision import without_autocast

__all__ = [
    "BoundaryConv2d",
    "Edges",
    "GridRule",
    "LeadTimeEmbedding",
    "ScaleShift",
    "at_least_float32",
    "check_frame",
    "pad_edges",
]

Edges = Literal["periodic", "zeros", "reflect", "nearest"]
"""What lies beyond the edges of a grid.

`periodic`: the other side; `zeros`: zeros; `reflect`: the mirror image about the last point,
which is not repeated; `nearest`: the last point again.
"""

_NUM_FREQUENCIES = 16
_HIGHEST_FREQUENCY = 100.0  # radians over the longest lead time: resolves a hundredth of it


def pad_edges(field_BCHW: Tensor, width: int, edges: Edges) -> Tensor:
    """`[B, C, H + 2 width, W + 2 width]`: the field and the values beyond its edges.

    Made of copies alone: unlike `F.pad`'s reflection, its gradient on a GPU is the same every
    time.

    >>> pad_edges(torch.arange(4.0).view(1, 1, 1, 4).expand(1, 1, 4, 4), 2, "reflect")[0, 0, 0]
    tensor([2., 1., 0., 1., 2., 3., 2., 1.])
    """
    if edges == "zeros":
        return F.pad(field_BCHW, (width, width, width, width))
    for axis in (-2, -1):
        size = field_BCHW.shape[axis]
        if edges == "periodic":
            before = field_BCHW.narrow(axis, size - width, width)
            after = field_BCHW.narrow(axis, 0, width)
        elif edges == "reflect":
            before = field_BCHW.narrow(axis, 1, width).flip(axis)
            after = field_BCHW.narrow(axis, size - 1 - width, width).flip(axis)
        else:
            before = field_BCHW.narrow(axis, 0, 1).repeat_interleave(width, axis)
            after = field_BCHW.narrow(axis, size - 1, 1).repeat_interleave(width, axis)
        field_BCHW = torch.cat((before, field_BCHW, after), axis)
    return field_BCHW


class BoundaryConv2d(nn.Conv2d):
    """A convolution with an odd kernel that keeps the grid (halves it, with stride 2)."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        edges: Edges,
        *,
        kernel_size: int = 3,
        stride: int = 1,
        bias: bool = True,
    ) -> None:
        own = kernel_size // 2 if edges == "zeros" else 0
        super().__init__(inputs, outputs, kernel_size, stride=stride, padding=own, bias=bias)
        self.edges: Edges = edges

    def forward(self, input: Tensor) -> Tensor:
        """`[B, C, H, W]` to `[B, C_out, H, W]`, or half as many points with stride 2."""
        padded = input
        if self.edges != "zeros":
            padded = pad_edges(input, self.kernel_size[0] // 2, self.edges)
        return super().forward(padded)


class LeadTimeEmbedding(nn.Module):
    """Lead times `[B]` to vectors `[B, width]`: sines and cosines, then two linear layers."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Linear(2 * _NUM_FREQUENCIES, width)
        self.second = nn.Linear(width, width)

    def forward(self, time: Tensor) -> Tensor:
        with without_autocast(time):  # half precision would round the fastest phase by 0.2
            exponents = torch.linspace(0, 1, _NUM_FREQUENCIES, device=time.device)
            phase = time.float()[:, None] * torch.exp(exponents * math.log(_HIGHEST_FREQUENCY))
            waves = torch.cat((phase.sin(), phase.cos()), dim=-1)
        hidden = F.gelu(self.first(waves.to(self.first.weight.dtype)))
        embedding: Tensor = self.second(hidden)
        return embedding


class ScaleShift(nn.Module):
    """`x (1 + scale) + shift` per channel, both linear in an embedding of the lead time."""

    def __init__(self, embedding_width: int, channels: int) -> None:
        super().__init__()
        self.linear = nn.Linear(embedding_width, 2 * channels)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """`x [B, C, *grid]` and `embedding [B, width]` to `[B, C, *grid]`."""
        both = self.linear(F.gelu(embedding))
        scale, shift = both.view(*both.shape, *(1,) * (x.ndim - 2)).chunk(2, dim=1)
        conditioned: Tensor = x * (1 + scale) + shift
        return conditioned


def at_least_float32(tensor: Tensor) -> Tensor:
    """The tensor in fp32, or in fp64 where it is."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


@dataclass(frozen=True)
class GridRule:
    """Which grids a network takes: sides that are multiples of a number, and not too short.

    `reason` is the arithmetic behind both.
    """

    num_dimensions: int
    multiple: int
    shortest: int
    reason: str

    def fits(self, grid: Iterable[int]) -> bool:
        """Whether every side does."""
        return all(side >= self.shortest and side % self.multiple == 0 for side in grid)

    def nearest(self, grid: Iterable[int]) -> tuple[int, ...]:
        """The nearest grid that fits."""
        least = -(-self.shortest // self.multiple)
        return tuple(max(least, round(side / self.multiple)) * self.multiple for side in grid)


def check_frame(name: str, frame: Tensor, time: Tensor, channels: int, rule: GridRule) -> None:
    """Raise ValueError, with the arithmetic, if a frame or a lead time does not fit a network."""
    shape = tuple(frame.shape)
    axes = ", ".join("DHW"[-rule.num_dimensions :])
    needed = (
        f"needs [batch, {channels}, {axes}]: in_channels={channels}, every side at least "
        f"{rule.shortest} and a multiple of {rule.multiple} ({rule.reason})"
    )
    if len(shape) != 2 + rule.num_dimensions or shape[1] != channels:
        raise ValueError(f"{name} got a frame of shape {shape}, {needed}")
    if not rule.fits(shape[2:]):
        raise ValueError(
            f"{name} got a frame of shape {shape}, {needed}; the nearest grid is "
            f"{'x'.join(map(str, rule.nearest(shape[2:])))}"
        )
    if tuple(time.shape) != shape[:1]:
        raise ValueError(f"{name} got time of shape {tuple(time.shape)}, needs ({shape[0]},)")
