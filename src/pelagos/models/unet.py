"""The modern U-Net of PDEArena, from one frame to a later one.

Residual blocks with group norm and GELU on every resolution, scaled and shifted by an embedding of
the lead time; attention between all points at the coarsest; every output of the way down is joined
to an input of the way up. Gupta & Brandstetter, "Towards multi-spatiotemporal-scale generalized PDE
modeling", TMLR 2023, arXiv:2209.15616, whose widths these are.

Down is a strided convolution and up is repetition followed by a convolution, so that a periodic
network commutes with translations by its total stride. Layout: `[B, C, H, W]` throughout.
Single-device code.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from operator import mul
from typing import Any, Literal, cast, get_args

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from pelagos.models.checks import not_one_of, not_whole_numbers
from pelagos.models.family import Family, FrameOutput, Options, Size
from pelagos.models.layers.frame_layers import (
    BoundaryConv2d,
    GridRule,
    LeadTimeEmbedding,
    ScaleShift,
    check_frame,
)
from pelagos.models.pretrained import Pretrained

__all__ = ["FAMILY", "UNet", "UNetConfig"]

Boundary = Literal["periodic", "zeros"]


@dataclass(frozen=True)
class UNetConfig(Options):
    """Sizes and options of one U-Net.

    `width`: channels at full resolution; `multipliers`: each resolution's channels over those
    of the one before it, from the full one (1, 2, 2, 4: 64, 128, 256, 1024); `num_blocks` for
    each resolution on the way down, one more on the way up; `boundary`: the field beyond the
    edges of the grid.

    Raises ValueError listing every option that does not fit.
    """

    in_channels: int = 4
    out_channels: int = 4
    width: int = 64
    multipliers: tuple[int, ...] = (1, 2, 2, 4)
    num_blocks: int = 2
    num_heads: int = 8
    norm_groups: int = 8
    boundary: Boundary = "periodic"

    def __post_init__(self) -> None:
        counts = ("in_channels", "out_channels", "width", "num_blocks", "num_heads", "norm_groups")
        problems = not_whole_numbers(self, counts)
        problems += not_one_of("boundary", self.boundary, get_args(Boundary))
        if not self.multipliers or not all(isinstance(m, int) and m > 0 for m in self.multipliers):
            problems.append(f"multipliers={self.multipliers} must be whole numbers, at least 1")
        if not problems:
            problems = self._misfits()
        if problems:
            raise ValueError("UNetConfig: " + "; ".join(problems))

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels at each resolution, from the full one."""
        return tuple(self.width * product for product in accumulate(self.multipliers, mul))

    @property
    def stride(self) -> int:
        """Points of the grid to one of the coarsest."""
        return int(2 ** (len(self.multipliers) - 1))

    def _misfits(self) -> list[str]:
        problems = []
        if self.width % self.norm_groups:
            nearest = max(1, round(self.width / self.norm_groups)) * self.norm_groups
            problems.append(
                f"width={self.width} must be a multiple of norm_groups({self.norm_groups}); "
                f"the nearest is {nearest}"
            )
        coarsest = self.widths[-1]
        if coarsest % self.num_heads:
            problems.append(
                f"the coarsest width {coarsest} = width({self.width}) * {coarsest // self.width} "
                f"must be a multiple of num_heads({self.num_heads})"
            )
        return problems


class ResidualBlock(nn.Module):
    """Two convolutions after norm and GELU, the second scaled and shifted by the lead time."""

    def __init__(self, config: UNetConfig, inputs: int, outputs: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(config.norm_groups, inputs)
        self.conv1 = BoundaryConv2d(inputs, outputs, config.boundary)
        self.norm2 = nn.GroupNorm(config.norm_groups, outputs)
        self.scale_shift = ScaleShift(4 * config.width, outputs)
        self.conv2 = BoundaryConv2d(outputs, outputs, config.boundary)
        self.shortcut = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """`[B, C, H, W]` to `[B, C_out, H, W]`."""
        hidden = self.conv1(F.gelu(self.norm1(x)))
        hidden = self.conv2(F.gelu(self.scale_shift(self.norm2(hidden), embedding)))
        return cast(Tensor, hidden + self.shortcut(x))


class AttentionBlock(nn.Module):
    """Attention between all points, added to the input."""

    def __init__(self, config: UNetConfig, channels: int) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.norm = nn.GroupNorm(config.norm_groups, channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """`[B, C, H, W]` to the same; the lead time is not used."""
        pattern = "b (three heads c) h w -> three b heads (h w) c"
        query, key, value = rearrange(
            self.qkv(self.norm(x)), pattern, three=3, heads=self.num_heads
        ).unbind()
        mixed = F.scaled_dot_product_attention(query, key, value)
        mixed = rearrange(mixed, "b heads (h w) c -> b (heads c) h w", h=x.shape[2])
        return cast(Tensor, x + self.out(mixed))


class Down(nn.Module):
    """Half the grid on each axis."""

    def __init__(self, config: UNetConfig, channels: int) -> None:
        super().__init__()
        self.conv = BoundaryConv2d(channels, channels, config.boundary, stride=2)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        return cast(Tensor, self.conv(x))


class Up(nn.Module):
    """Twice the grid on each axis."""

    def __init__(self, config: UNetConfig, channels: int) -> None:
        super().__init__()
        self.conv = BoundaryConv2d(channels, channels, config.boundary)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        return cast(Tensor, self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest")))


class UNet(Pretrained):
    """The U-Net: one frame and a lead time to the frame that much later.

    Rectangular grids whose sides are multiples of `config.stride`.
    """

    model_types = ("unet",)
    config_class = UNetConfig
    config: UNetConfig

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        coarsest = config.widths[-1]
        device = torch.get_default_device()
        with torch.device("meta"):  # modules' own initialisation would only be overwritten
            self.lead_time = LeadTimeEmbedding(4 * config.width)
            self.lift = BoundaryConv2d(config.in_channels, config.width, config.boundary)
            self.down, joined = _way_down(config)
            self.middle = nn.ModuleList(
                (
                    ResidualBlock(config, coarsest, coarsest),
                    AttentionBlock(config, coarsest),
                    ResidualBlock(config, coarsest, coarsest),
                )
            )
            self.up = _way_up(config, joined)
            self.norm = nn.GroupNorm(config.norm_groups, config.width)
            self.project = BoundaryConv2d(config.width, config.out_channels, config.boundary)
        self.materialize(device)

    def forward(self, frame: Tensor, time: Tensor) -> FrameOutput:
        """Predict `[B, C_out, H, W]`, a lead time `time [B]` after `frame [B, C, H, W]`.

        Raises ValueError for a shape that does not fit the configuration.
        """
        config = self.config
        reason = f"2 ** (len(multipliers)({len(config.multipliers)}) - 1) = {config.stride}"
        rule = GridRule(2, config.stride, config.stride, reason)
        check_frame("UNet", frame, time, config.in_channels, rule)
        x, embedding = self.lift(frame), self.lead_time(time)
        kept = [x]
        for module in self.down:
            x = module(x, embedding)
            kept.append(x)
        for module in self.middle:
            x = module(x, embedding)
        for module in self.up:
            if not isinstance(module, Up):
                x = torch.cat((x, kept.pop()), dim=1)
            x = module(x, embedding)
        return FrameOutput(self.project(F.gelu(self.norm(x))).to(frame.dtype))

    def blocks(self) -> list[nn.Module]:
        """Repeated blocks to wrap, compile or checkpoint, each called as `block(x, embedding)`."""
        return [m for m in self.modules() if isinstance(m, (ResidualBlock, AttentionBlock))]


def _way_down(config: UNetConfig) -> tuple[nn.ModuleList, list[int]]:
    """The modules from fine to coarse, and the channels of all that the way up joins."""
    modules: list[nn.Module] = []
    joined = [config.width]
    for level, width in enumerate(config.widths):
        for _ in range(config.num_blocks):
            modules.append(ResidualBlock(config, joined[-1], width))
            joined.append(width)
        if level + 1 < len(config.widths):
            modules.append(Down(config, width))
            joined.append(width)
    return nn.ModuleList(modules), joined


def _way_up(config: UNetConfig, joined: list[int]) -> nn.ModuleList:
    """The modules from coarse to fine, each block as wide as the output of the way down it joins."""
    modules: list[nn.Module] = []
    previous, remaining = config.widths[-1], list(joined)
    for level in reversed(range(len(config.widths))):
        for _ in range(config.num_blocks + 1):
            width = remaining.pop()
            modules.append(ResidualBlock(config, previous + width, width))
            previous = width
        if level:
            modules.append(Up(config, previous))
    return nn.ModuleList(modules)


def _example(config: UNetConfig, batch_size: int) -> tuple[Tensor, ...]:
    side = max(32, config.stride)
    return torch.zeros(batch_size, config.in_channels, side, side), torch.ones(batch_size)


_NANO: dict[str, Any] = {"width": 16, "multipliers": (1, 2, 2), "num_blocks": 1, "num_heads": 4}

FAMILY = Family(
    name="unet",
    model=UNet,
    paper="Gupta & Brandstetter, TMLR 2023, arXiv:2209.15616",
    inputs="one frame [batch, field, y, x] and a lead time; rectangular grids with sides that are "
    "multiples of 8 (nano: 4)",
    call="frame",
    example=_example,
    sizes=(Size("nano", 541_572, _NANO), Size("base", 152_274_500, {})),
)
