"""MedNeXt: a U-net of depthwise convolutions between inverted bottlenecks.

Each block is a depthwise convolution, a norm, an expansion of the channels, GELU and a compression;
the changes of level are such blocks too, with a residual of their own. Roy et al., "MedNeXt:
Transformer-driven scaling of ConvNets for medical image segmentation", MICCAI 2023,
arXiv:2303.09975. Version 2 (Roy et al., arXiv:2512.17774) adds global response normalisation to the
expanded channels (Woo et al., arXiv:2301.00808); here in the first version's ladder of sizes.

Layout: `[B, C, *grid]`. Single-device code.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pelagos.models.family import Family, Size
from pelagos.models.layers.convolutions import CONVOLUTION, INSTANCE_NORM, TRANSPOSED
from pelagos.models.layers.precision import without_autocast
from pelagos.models.unet3d import UNet, UNetBlock, UNetConfig, example

__all__ = ["FAMILY", "GlobalResponseNorm", "MedNeXt", "MedNeXtConfig"]

_RESPONSE_EPS = 1e-6


@dataclass(frozen=True)
class MedNeXtConfig(UNetConfig):
    """Sizes of one MedNeXt; `kernel_size` of its depthwise convolutions is odd (3 or 5 published).

    `encoder_blocks` and `encoder_expansions` have an entry per level, the decoder's one fewer:
    how many blocks, and by how much they expand the channels. A change of level expands like the
    blocks behind it. `up_padding`: where the one voxel is added by which doubling is ambiguous:
    `front` pads the block's output with zeros there, as the published code does; `end` lets the
    convolutions reach one voxel further.
    """

    earlier_defaults: ClassVar[Mapping[str, Any]] = {"up_padding": "end"}
    widths: tuple[int, ...] = (32, 64, 128, 256, 512)
    kernel_size: int = 3
    encoder_blocks: tuple[int, ...] = (2, 2, 2, 2, 2)
    decoder_blocks: tuple[int, ...] = (2, 2, 2, 2)
    encoder_expansions: tuple[int, ...] = (2, 2, 2, 2, 2)
    decoder_expansions: tuple[int, ...] = (2, 2, 2, 2)
    global_response_norm: bool = False
    up_padding: Literal["front", "end"] = "front"

    def misfits(self) -> list[str]:
        """Options that do not fit together, a line each."""
        problems = super().misfits()
        if self.up_padding not in ("front", "end"):
            problems.append(f"up_padding={self.up_padding!r} must be 'front' or 'end'")
        for what in ("blocks", "expansions"):
            problems += self.per_level(f"encoder_{what}", self.num_levels)
            problems += self.per_level(f"decoder_{what}", self.num_levels - 1)
        if self.kernel_size % 2 == 0:
            problems.append(
                f"kernel_size={self.kernel_size} must be odd: {self.kernel_size - 1} or "
                f"{self.kernel_size + 1}"
            )
        return problems


class GlobalResponseNorm(nn.Module):
    """`x + γ (x ‖x‖ / mean ‖x‖) + β`: each channel's norm over the grid against the others'.

    Starts as the identity. The norms are computed in fp32.
    """

    def __init__(self, width: int, axes: int) -> None:
        super().__init__()
        shape = (1, width) + (1,) * axes
        self.scale = nn.Parameter(torch.empty(shape))
        self.shift = nn.Parameter(torch.empty(shape))

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Zeros."""
        self.scale.zero_()
        self.shift.zero_()

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, *grid]` to the same."""
        with without_autocast(x):
            norms = x.float().square().sum(dim=tuple(range(2, x.ndim)), keepdim=True)
            norms = (norms + _RESPONSE_EPS**2).sqrt()  # a channel of zeros has a finite slope
            share = norms / (norms.mean(dim=1, keepdim=True) + _RESPONSE_EPS)
            return (x + self.scale.float() * (x * share) + self.shift.float()).to(x.dtype)


class MedNeXtBlock(UNetBlock):
    """Depthwise convolution, norm, expansion, GELU, compression, and a residual around them.

    `change`: `none` keeps level and width; `down` halves the grid and `up` doubles it, by
    the stride of the depthwise convolution and of a convolution of kernel 1 on the residual. After
    `up` the grid has one voxel fewer, which `up_padding` adds.
    """

    def __init__(
        self,
        config: MedNeXtConfig,
        width_in: int,
        width: int,
        expansion: int,
        change: Literal["none", "down", "up"] = "none",
    ) -> None:
        super().__init__()
        axes, kernel, hidden = config.num_dimensions, config.kernel_size, width_in * expansion
        convolution = CONVOLUTION[axes]
        options: dict[str, Any] = {} if change == "none" else {"stride": 2}
        self.front = [0] * (2 * axes)
        if change == "up" and config.up_padding == "end":
            options["output_padding"] = 1
        elif change == "up":
            self.front = [1, 0] * axes
        resample = TRANSPOSED[axes] if change == "up" else convolution
        self.depthwise = resample(
            width_in, width_in, kernel, padding=kernel // 2, groups=width_in, **options
        )
        self.norm = INSTANCE_NORM[axes](width_in, affine=True)
        response = (
            GlobalResponseNorm(hidden, axes) if config.global_response_norm else nn.Identity()
        )
        self.channels = nn.Sequential(
            convolution(width_in, hidden, 1), nn.GELU(), response, convolution(hidden, width, 1)
        )
        self.shortcut = (
            nn.Identity() if change == "none" else resample(width_in, width, 1, **options)
        )

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, *grid]` to the same at the block's width and level."""
        output = self.shortcut(x) + self.channels(self.norm(self.depthwise(x)))
        return cast(Tensor, F.pad(output, self.front) if any(self.front) else output)


class MedNeXt(UNet):
    """The MedNeXt network: skips are added. Initialised torch's own way."""

    model_types = ("mednext",)
    config_class = MedNeXtConfig
    config: MedNeXtConfig

    def make_stem(self) -> nn.Module:
        """A convolution of kernel 1."""
        config = self.config
        return CONVOLUTION[config.num_dimensions](config.in_channels, config.widths[0], 1)

    def make_encoder(self, level: int) -> nn.Module:
        """The level's blocks."""
        config = self.config
        return self._stage(level, config.encoder_blocks[level], config.encoder_expansions[level])

    def make_decoder(self, level: int) -> nn.Module:
        """The level's blocks."""
        config = self.config
        return self._stage(level, config.decoder_blocks[level], config.decoder_expansions[level])

    def make_down(self, level: int) -> nn.Module:
        """A block with stride 2."""
        width, coarser = self.config.widths[level : level + 2]
        expansion = self.config.encoder_expansions[level + 1]
        return MedNeXtBlock(self.config, width, coarser, expansion, "down")

    def make_up(self, level: int) -> nn.Module:
        """A block of transposed convolutions with stride 2."""
        width, coarser = self.config.widths[level : level + 2]
        expansion = self.config.decoder_expansions[level]
        return MedNeXtBlock(self.config, coarser, width, expansion, "up")

    def join(self, x: Tensor, skip: Tensor) -> Tensor:
        """Their sum."""
        return x + skip

    def _stage(self, level: int, count: int, expansion: int) -> nn.Module:
        width = self.config.widths[level]
        return nn.Sequential(
            *(MedNeXtBlock(self.config, width, width, expansion) for _ in range(count))
        )


def _sizes(blocks: tuple[int, ...], expansions: tuple[int, ...]) -> dict[str, Any]:
    return {
        "encoder_blocks": (*blocks, blocks[-1]),
        "decoder_blocks": blocks,
        "encoder_expansions": (*expansions, expansions[-1]),
        "decoder_expansions": expansions,
    }


_NANO: dict[str, Any] = {"widths": (8, 16, 32), **_sizes((1, 1), (2, 2))}
_BASE = _sizes((2, 2, 2, 2), (2, 3, 4, 4))
_MEDIUM = _sizes((3, 4, 4, 4), (2, 3, 4, 4))
_LARGE = _sizes((3, 4, 8, 8), (3, 4, 8, 8))
_V2: dict[str, Any] = {"global_response_norm": True}

FAMILY = Family(
    name="mednext",
    model=MedNeXt,
    paper="Roy et al., MICCAI 2023, arXiv:2303.09975; arXiv:2512.17774 (version 2)",
    inputs="a volume [batch, channel, z, y, x], with num_dimensions=2 an image; every axis a multiple "
    "of 16 (nano: 4); class logits for every voxel",
    call="image",
    example=example,
    sizes=(
        Size("nano", 19_426, {**_NANO, **_V2}),
        Size("S", 5_550_914, {}),
        Size("B", 10_526_306, _BASE),
        Size("M", 17_548_962, _MEDIUM),
        Size("L", 61_779_266, _LARGE),
        Size("v2-S", 5_568_450, _V2),
        Size("v2-B", 10_559_778, {**_BASE, **_V2}),
        Size("v2-M", 17_604_706, {**_MEDIUM, **_V2}),
        Size("v2-L", 61_969_474, {**_LARGE, **_V2}),
    ),
    default_channels=(1, 2),
)
