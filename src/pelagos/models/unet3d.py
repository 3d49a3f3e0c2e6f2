"""The skeleton of segmentation U-nets in two or three dimensions: `nnunet`, `stunet`, `mednext`.

An encoder halves the grid from level to level, a decoder doubles it, and skip connections join them
at every level (Ronneberger et al., arXiv:1505.04597; in volumes Çiçek et al., arXiv:1606.06650).
Each family builds its own levels; blocks that two families share are here too.

Layout: `[B, C, *grid]` throughout; level 0 is the finest. Single-device code.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pelagos.models.checks import fail_on, lists_to_tuples, nearest_multiples, not_whole
from pelagos.models.family import Options
from pelagos.models.layers.convolutions import AVERAGE_POOL, CONVOLUTION, INSTANCE_NORM
from pelagos.models.pretrained import Pretrained

_SLOPE = 0.01  # of the leaky rectifier


@dataclass(frozen=True)
class UNetConfig(Options):
    """Options of every U-net: `widths` are the channels of its levels, the finest first.

    `out_channels` is the number of classes; `num_dimensions` 2 or 3. With `deep_supervision`
    every decoder level has its own head, used in training mode alone.

    Raises ValueError for values that do not fit together.
    """

    in_channels: int = 1
    out_channels: int = 2
    num_dimensions: int = 3
    widths: tuple[int, ...] = (32, 64, 128, 256, 320, 320)
    deep_supervision: bool = False

    def __post_init__(self) -> None:
        lists_to_tuples(self)
        problems = not_whole(self) or self.misfits()
        fail_on(problems, f"{type(self).__name__.removesuffix('Config')} config")

    @property
    def num_levels(self) -> int:
        return len(self.widths)

    @property
    def total_stride(self) -> int:
        """Voxels of the input along one axis per voxel of the coarsest level."""
        return int(2 ** (self.num_levels - 1))

    def misfits(self) -> list[str]:
        """Options that do not fit together, a line each; every number is already whole."""
        problems = []
        if self.num_dimensions not in CONVOLUTION:
            problems.append(f"num_dimensions={self.num_dimensions} must be 2 or 3")
        if self.num_levels < 2:
            problems.append(f"widths={self.widths} needs at least 2 levels")
        return problems

    def per_level(self, name: str, count: int) -> list[str]:
        """A line if an option has not `count` entries."""
        got = getattr(self, name)
        if len(got) == count:
            return []
        return [f"{name}={got} has {len(got)} entries, len(widths)={self.num_levels} needs {count}"]


class UNet(Pretrained):
    """Skeleton of a segmentation U-net: image `[B, C, *grid]` to logits `[B, K, *grid]`.

    A family defines its stem, its levels and its changes of level, and how a skip
    connection joins the decoder.
    """

    config: UNetConfig

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config
        last = config.num_levels - 1
        num_heads = last if config.deep_supervision else 1
        device = torch.get_default_device()
        with torch.device("meta"):  # modules' own initialisation would only be overwritten
            self.stem = self.make_stem()
            self.encoder = nn.ModuleList(map(self.make_encoder, range(last + 1)))
            self.down = nn.ModuleList(map(self.make_down, range(last)))
            self.up = nn.ModuleList(map(self.make_up, range(last)))
            self.decoder = nn.ModuleList(map(self.make_decoder, range(last)))
            self.heads = nn.ModuleList(
                CONVOLUTION[config.num_dimensions](width, config.out_channels, 1)
                for width in config.widths[:num_heads]
            )
        self.materialize(device)

    @abstractmethod
    def make_stem(self) -> nn.Module:
        """Image to the finest level."""

    @abstractmethod
    def make_encoder(self, level: int) -> nn.Module:
        """The layers after the change to a level, or after the stem."""

    @abstractmethod
    def make_down(self, level: int) -> nn.Module:
        """From a level to the next coarser one."""

    @abstractmethod
    def make_up(self, level: int) -> nn.Module:
        """To a level from the next coarser one."""

    @abstractmethod
    def make_decoder(self, level: int) -> nn.Module:
        """The layers after the skip connection of a level."""

    def join(self, x: Tensor, skip: Tensor) -> Tensor:
        """The decoder's features and the encoder's of one level, one after the other."""
        return torch.cat((x, skip), dim=1)

    def forward(self, image: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Logits `[B, K, *grid]`; with `deep_supervision`, in training mode, a tuple of maps.

        Those are of every decoder level, the finest first, each at half the size of the one before.
        Raises ValueError for channels other than configured, and for a grid that the total stride
        does not divide.
        """
        self._check(image)
        x, skips = self.stem(image), []
        for stage, down in zip(self.encoder, self.down, strict=False):
            skips.append(stage(x))
            x = down(skips[-1])
        x = self.encoder[-1](x)
        maps: list[Tensor] = []
        for level in reversed(range(len(skips))):
            x = self.decoder[level](self.join(self.up[level](x), skips[level]))
            if level == 0 or (self.training and self.config.deep_supervision):
                maps.insert(0, self.heads[level](x).to(image.dtype))
        return tuple(maps) if self.training and self.config.deep_supervision else maps[0]

    def blocks(self) -> list[nn.Module]:
        """Blocks of the levels and between them to wrap, compile or checkpoint: `block(x)`."""
        stages = [*self.encoder, *self.decoder]
        inside = [block for stage in stages for block in cast(nn.Sequential, stage)]
        units = [self.stem, *inside, *self.down, *self.up]
        return [unit for unit in units if isinstance(unit, UNetBlock)]

    def _check(self, image: Tensor) -> None:
        config, shape = self.config, tuple(image.shape)
        stride, axes = config.total_stride, config.num_dimensions
        name = type(self).__name__
        if len(shape) != axes + 2 or shape[1] != config.in_channels:
            raise ValueError(
                f"{name} got an image of shape {shape}, needs [batch, {config.in_channels}, *grid] "
                f"with {axes} axes: in_channels={config.in_channels}, num_dimensions={axes}"
            )
        problems = [
            f"axis {axis} has {n} voxels, not a multiple of {stride}; nearest: "
            f"{nearest_multiples(n, stride)}"
            for axis, n in enumerate(shape[2:])
            if n % stride
        ]
        if not problems and all(n == stride for n in shape[2:]):
            problems = [f"one voxel is left to normalise over; an axis needs {2 * stride} voxels"]
        fail_on(
            problems,
            f"{name} got a grid of {shape[2:]}; its total stride is "
            f"2**(levels({config.num_levels}) - 1) = {stride}",
        )


class UNetBlock(nn.Module):
    """Base of the units of levels: the ones that `UNet.blocks` lists."""


class ConvolutionBlock(UNetBlock):
    """A convolution of kernel 3, instance norm, leaky rectifier."""

    def __init__(self, axes: int, width_in: int, width: int, stride: int = 1) -> None:
        super().__init__()
        self.convolution = CONVOLUTION[axes](width_in, width, 3, stride=stride, padding=1)
        self.norm = INSTANCE_NORM[axes](width, affine=True)

    def forward(self, x: Tensor) -> Tensor:
        return F.leaky_relu(self.norm(self.convolution(x)), _SLOPE, inplace=True)


class ResidualBlock(UNetBlock):
    """Two convolutions around which the input is added.

    Where width or stride change, the input passes `shortcut`: averaging (`pools`) or strided,
    then a convolution of kernel 1.
    """

    def __init__(
        self, axes: int, width_in: int, width: int, stride: int = 1, *, pools: bool, projects: bool
    ) -> None:
        super().__init__()
        self.first = ConvolutionBlock(axes, width_in, width, stride)
        self.second = nn.Sequential(
            CONVOLUTION[axes](width, width, 3, padding=1), INSTANCE_NORM[axes](width, affine=True)
        )
        layers: list[nn.Module] = []
        if pools and stride > 1:
            layers.append(AVERAGE_POOL[axes](stride))
        if pools and width != width_in:
            layers.append(CONVOLUTION[axes](width_in, width, 1, bias=False))
            layers.append(INSTANCE_NORM[axes](width, affine=True))
        if projects:
            layers.append(CONVOLUTION[axes](width_in, width, 1, stride=stride))
        self.shortcut = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        summed = self.second(self.first(x)) + self.shortcut(x)
        return F.leaky_relu(summed, _SLOPE)


def example(config: UNetConfig, batch_size: int) -> tuple[Tensor, ...]:
    """The smallest image that leaves the coarsest level more than one voxel."""
    grid = (2 * config.total_stride,) * config.num_dimensions
    return (torch.zeros(batch_size, config.in_channels, *grid),)
