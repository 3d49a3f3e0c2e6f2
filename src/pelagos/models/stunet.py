"""STU-Net: one U-net of residual blocks from 14 million to 1.4 billion parameters.

Huang et al., "STU-Net: Scalable and transferable medical image segmentation models empowered by
large-scale supervised pre-training", arXiv:2304.06716. Depth and width grow together; no weight
depends on the grid or on how an image is upsampled.

Layout: `[B, C, *grid]`. Single-device code.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from pelagos.models.family import Family, Size
from pelagos.models.layers.convolutions import CONVOLUTION
from pelagos.models.unet3d import ResidualBlock, UNet, UNetConfig, example

__all__ = ["FAMILY", "STUNet", "STUNetConfig"]


@dataclass(frozen=True)
class STUNetConfig(UNetConfig):
    """Sizes of one STU-Net: `depth` residual blocks in every level."""

    depth: int = 1


class STUNet(UNet):
    """STU-Net: residual blocks, and weights that do not depend on how an image is upsampled.

    Initialised torch's own way.
    """

    model_types = ("stunet",)
    config_class = STUNetConfig
    config: STUNetConfig

    def make_stem(self) -> nn.Module:
        """The first block of the finest level."""
        return self._block(self.config.in_channels, self.config.widths[0])

    def make_encoder(self, level: int) -> nn.Module:
        """The level's blocks without the first, which is the stem or the way down."""
        return nn.Sequential(*self._further(level))

    def make_down(self, level: int) -> nn.Module:
        """The first block of the next level, with stride 2."""
        width, coarser = self.config.widths[level : level + 2]
        return self._block(width, coarser, stride=2)

    def make_up(self, level: int) -> nn.Module:
        """Nearest neighbours, then a convolution of kernel 1."""
        width, coarser = self.config.widths[level : level + 2]
        return nn.Sequential(
            nn.Upsample(scale_factor=2, mode="nearest"),
            CONVOLUTION[self.config.num_dimensions](coarser, width, 1),
        )

    def make_decoder(self, level: int) -> nn.Module:
        """The level's blocks, the first from twice the width."""
        width = self.config.widths[level]
        return nn.Sequential(self._block(2 * width, width), *self._further(level))

    def _block(self, width_in: int, width: int, stride: int = 1) -> nn.Module:
        axes = self.config.num_dimensions
        return ResidualBlock(axes, width_in, width, stride, pools=False, projects=True)

    def _further(self, level: int) -> list[nn.Module]:
        axes, width = self.config.num_dimensions, self.config.widths[level]
        return [
            ResidualBlock(axes, width, width, pools=False, projects=False)
            for _ in range(self.config.depth - 1)
        ]


def _scaled(width: int, depth: int) -> dict[str, Any]:
    return {"widths": tuple(width * n for n in (1, 2, 4, 8, 16, 16)), "depth": depth}


FAMILY = Family(
    name="stunet",
    model=STUNet,
    paper="Huang et al., 2023, arXiv:2304.06716",
    inputs="a volume [batch, channel, z, y, x], with num_dimensions=2 an image; every axis a multiple "
    "of 32 (nano: 4); class logits for every voxel",
    call="image",
    example=example,
    sizes=(
        Size("nano", 82_234, {"widths": (8, 16, 32)}),
        Size("S", 14_544_370, _scaled(16, 1)),
        Size("B", 58_158_050, _scaled(32, 1)),
        Size("L", 440_093_890, _scaled(64, 2)),
        Size("H", 1_457_013_410, _scaled(96, 3)),
    ),
    default_channels=(1, 2),
)
