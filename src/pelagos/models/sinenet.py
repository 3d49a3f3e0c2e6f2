"""SineNet: several small U-Nets in a row, which share one path at full resolution.

A U-Net's skip connections join features of the beginning to those of the end, though what they
describe has moved in between. SineNet lets each of several U-shaped waves evolve the frame a
little and adds its result to its input (wave residual); inside a wave, every block adds its input
too, and on the way down every resolution gets the averages of the wave's input in addition to the
processed features (the paper's dual processing). Zhang et al., "SineNet: Learning temporal dynamics
in time-dependent partial differential equations", ICLR 2024, arXiv:2403.19507.

Written from the paper and from facts about the published network: pooling by averages on the way
down, bicubic interpolation on the way up. Size 8 without `lead_time`, from four frames of three
fields to one, has the 35,490,219 parameters of SineNet-8-dual; names are not the published ones.
Layout: `[B, C, H, W]` throughout. Single-device code.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pelagos.models.checks import not_one_of, not_whole_numbers
from pelagos.models.family import Family, FrameOutput, Options, Size
from pelagos.models.layers.frame_layers import (
    BoundaryConv2d,
    GridRule,
    LeadTimeEmbedding,
    ScaleShift,
    check_frame,
    pad_edges,
)
from pelagos.models.pretrained import Pretrained

__all__ = ["FAMILY", "SineNet", "SineNetConfig"]

Boundary = Literal["periodic", "zeros"]

# Weights of the four nearest points, a quarter of the spacing before the third point: Keys'
# cubic convolution with a = -3/4, as torch's bicubic interpolation has it.
_BICUBIC = (-0.03515625, 0.26171875, 0.87890625, -0.10546875)


@dataclass(frozen=True)
class SineNetConfig(Options):
    """Sizes and options of one SineNet.

    `width`: channels at full resolution; `multiplier`: each resolution's channels over those
    of the next finer one, rounded down; `num_waves` U-Nets in a row, each going down
    `num_levels` times; `boundary`: the field beyond the edges of the grid.
    `lead_time`: whether blocks are scaled and shifted by the lead time; the published network,
    which makes steps of one length, has nothing of the kind and takes no notice of the time.

    Raises ValueError listing every option that does not fit.
    """

    in_channels: int = 4
    out_channels: int = 4
    width: int = 64
    multiplier: float = 1.425
    num_waves: int = 8
    num_levels: int = 4
    boundary: Boundary = "periodic"
    lead_time: bool = True

    def __post_init__(self) -> None:
        counts = ("in_channels", "out_channels", "width", "num_waves", "num_levels")
        problems = not_whole_numbers(self, counts)
        problems += not_one_of("boundary", self.boundary, get_args(Boundary))
        problems += not_one_of("lead_time", self.lead_time, (True, False))
        if self.multiplier < 1:
            problems.append(f"multiplier={self.multiplier} must be at least 1")
        if problems:
            raise ValueError("SineNetConfig: " + "; ".join(problems))

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels at each resolution, from the full one."""
        return tuple(int(self.width * self.multiplier**n) for n in range(self.num_levels + 1))

    @property
    def stride(self) -> int:
        """Points of the grid to one of the coarsest."""
        return int(2**self.num_levels)


class WaveBlock(nn.Module):
    """Two convolutions, each with norm and GELU, added to a projection of part of the input.

    The block sees `inputs + beside` channels, and adds to its result a 1×1 convolution
    of `inputs` alone (block residual).
    """

    def __init__(self, config: SineNetConfig, inputs: int, beside: int, outputs: int) -> None:
        super().__init__()
        self.conv1 = BoundaryConv2d(inputs + beside, outputs, config.boundary)
        self.norm1 = nn.GroupNorm(1, outputs)
        self.scale_shift = ScaleShift(config.width, outputs) if config.lead_time else None
        self.conv2 = BoundaryConv2d(outputs, outputs, config.boundary)
        self.norm2 = nn.GroupNorm(1, outputs)
        self.shortcut = nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor, beside: Tensor | None, embedding: Tensor | None) -> Tensor:
        """`x [B, inputs, H, W]` and `beside [B, beside, H, W]` to `[B, outputs, H, W]`."""
        both = x if beside is None else torch.cat((x, beside), dim=1)
        hidden = self.norm1(self.conv1(both))
        if self.scale_shift is not None:
            hidden = self.scale_shift(hidden, embedding)
        hidden = F.gelu(self.norm2(self.conv2(F.gelu(hidden))))
        return cast(Tensor, hidden + self.shortcut(x))


class Wave(nn.Module):
    """One U-Net, added to its input (wave residual)."""

    def __init__(self, config: SineNetConfig) -> None:
        super().__init__()
        self.boundary = config.boundary
        widths = config.widths
        levels = range(config.num_levels)
        # the first block would see the averages of the wave's input twice
        beside = [0, *(config.width for _ in levels[1:])]
        self.down = nn.ModuleList(
            WaveBlock(config, widths[n], beside[n], widths[n + 1]) for n in levels
        )
        self.up = nn.ModuleList(
            WaveBlock(config, widths[n + 1], widths[n], widths[n]) for n in reversed(levels)
        )

    def forward(self, x: Tensor, embedding: Tensor | None) -> Tensor:
        """`[B, C, H, W]` to the same."""
        kept, averages = [x], x
        for level, block in enumerate(self.down):
            averages = F.avg_pool2d(averages, 2)
            features = F.avg_pool2d(kept[-1], 2)
            kept.append(block(features, averages if level else None, embedding))
        coarse = kept.pop()
        for block in self.up:
            coarse = block(double_grid(coarse, self.boundary), kept.pop(), embedding)
        return x + coarse


def double_grid(field_BCHW: Tensor, boundary: Boundary) -> Tensor:
    """Bicubic interpolation to twice the grid on each axis, `[B, C, 2 H, 2 W]`.

    `F.interpolate` knows no periodic edges, and on a GPU its gradient differs from run to run;
    here every point is a sum of four slices per axis. Without periodicity the last point is repeated.
    """
    padded = pad_edges(field_BCHW, 2, "periodic" if boundary == "periodic" else "nearest")
    for axis in (-2, -1):
        size = padded.shape[axis] - 4
        shifted = [padded.narrow(axis, start, size) for start in range(5)]
        before = sum(w * s for w, s in zip(_BICUBIC, shifted[:4], strict=True))
        after = sum(w * s for w, s in zip(_BICUBIC, shifted[:0:-1], strict=True))
        pairs = torch.stack((cast(Tensor, before), cast(Tensor, after)), dim=axis % 4 + 1)
        padded = pairs.flatten(axis % 4, axis % 4 + 1)
    return padded


class SineNet(Pretrained):
    """The SineNet: one frame and a lead time to the frame that much later.

    Rectangular grids whose sides are multiples of `config.stride`, at least twice as long.
    """

    model_types = ("sinenet",)
    config_class = SineNetConfig
    config: SineNetConfig

    def __init__(self, config: SineNetConfig) -> None:
        super().__init__()
        self.config = config
        device = torch.get_default_device()
        with torch.device("meta"):  # modules' own initialisation would only be overwritten
            self.lead_time = LeadTimeEmbedding(config.width) if config.lead_time else None
            self.lift = BoundaryConv2d(config.in_channels, config.width, config.boundary)
            self.waves = nn.ModuleList(Wave(config) for _ in range(config.num_waves))
            self.project = BoundaryConv2d(config.width, config.out_channels, config.boundary)
        self.materialize(device)

    def forward(self, frame: Tensor, time: Tensor) -> FrameOutput:
        """Predict `[B, C_out, H, W]`, a lead time `time [B]` after `frame [B, C, H, W]`.

        Raises ValueError for a shape that does not fit the configuration.
        """
        config = self.config
        reason = (
            f"2 ** num_levels({config.num_levels}) = {config.stride}; two points of the coarsest "
            f"grid = {2 * config.stride}"
        )
        rule = GridRule(2, config.stride, 2 * config.stride, reason)
        check_frame("SineNet", frame, time, config.in_channels, rule)
        x = self.lift(frame)
        embedding = None if self.lead_time is None else self.lead_time(time)
        for wave in self.waves:
            x = wave(x, embedding)
        return FrameOutput(self.project(x).to(frame.dtype))

    def blocks(self) -> list[nn.Module]:
        """The waves, to wrap, compile or checkpoint, each called as `wave(x, embedding)`."""
        return list(self.waves)


def _example(config: SineNetConfig, batch_size: int) -> tuple[Tensor, ...]:
    side = max(32, 2 * config.stride)
    return torch.zeros(batch_size, config.in_channels, side, side), torch.ones(batch_size)


_NANO: dict[str, Any] = {"width": 16, "num_waves": 2, "num_levels": 2}

FAMILY = Family(
    name="sinenet",
    model=SineNet,
    paper="Zhang et al., ICLR 2024, arXiv:2403.19507",
    inputs="one frame [batch, field, y, x] and a lead time; rectangular grids with sides that are "
    "multiples of 16, at least 32 (nano: of 4, at least 8)",
    call="frame",
    example=_example,
    sizes=(Size("nano", 114_756, _NANO), Size("8", 36_674_940, {})),
)
