"""nnU-Net: a plain U-net of convolutions, or with residual blocks in its encoder.

Isensee et al., "nnU-Net: a self-configuring method for deep learning-based biomedical image
segmentation", Nature Methods 2021, arXiv:1809.10486; the residual encoder is that of "nnU-Net
revisited", MICCAI 2024, arXiv:2404.09556, whose presets M, L and XL differ in the size of the
patches that they are trained on. The paper's method chooses strides by dataset; here every level
halves every axis.

Layout: `[B, C, *grid]`. Single-device code.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from pelagos.models.family import Family, Size
from pelagos.models.layers.convolutions import TRANSPOSED
from pelagos.models.unet3d import ConvolutionBlock, ResidualBlock, UNet, UNetConfig, example

__all__ = ["FAMILY", "NnUNet", "NnUNetConfig"]


@dataclass(frozen=True)
class NnUNetConfig(UNetConfig):
    """Sizes of one nnU-Net.

    `encoder_blocks` and `decoder_blocks` count the units of each level (one fewer in the
    decoder than levels): convolutions, in the encoder residual blocks if `encoder` says so.
    """

    encoder: Literal["plain", "residual"] = "plain"
    encoder_blocks: tuple[int, ...] = (2, 2, 2, 2, 2, 2)
    decoder_blocks: tuple[int, ...] = (2, 2, 2, 2, 2)

    def misfits(self) -> list[str]:
        """Options that do not fit together, a line each."""
        problems = super().misfits()
        problems += self.per_level("encoder_blocks", self.num_levels)
        problems += self.per_level("decoder_blocks", self.num_levels - 1)
        if self.encoder not in ("plain", "residual"):
            problems.append(f"encoder={self.encoder!r} must be 'plain' or 'residual'")
        return problems


class NnUNet(UNet):
    """nnU-Net's network: strided down, transposed convolutions up, initialised torch's own way."""

    model_types = ("nnunet",)
    config_class = NnUNetConfig
    config: NnUNetConfig

    def make_stem(self) -> nn.Module:
        """One convolution."""
        config = self.config
        return ConvolutionBlock(config.num_dimensions, config.in_channels, config.widths[0])

    def make_encoder(self, level: int) -> nn.Module:
        """The level's blocks without the first, which is the stem or the way down."""
        width, count = self.config.widths[level], self.config.encoder_blocks[level]
        residual_stem = level == 0 and self.config.encoder == "residual"
        return nn.Sequential(
            *(self._block(width, width) for _ in range(count if residual_stem else count - 1))
        )

    def make_down(self, level: int) -> nn.Module:
        """The first block of the next level, with stride 2."""
        width, coarser = self.config.widths[level : level + 2]
        return self._block(width, coarser, stride=2)

    def make_up(self, level: int) -> nn.Module:
        """A transposed convolution of kernel and stride 2."""
        width, coarser = self.config.widths[level : level + 2]
        return TRANSPOSED[self.config.num_dimensions](coarser, width, 2, stride=2)

    def make_decoder(self, level: int) -> nn.Module:
        """Convolutions, the first from twice the width."""
        axes, width = self.config.num_dimensions, self.config.widths[level]
        inputs = [2 * width] + [width] * (self.config.decoder_blocks[level] - 1)
        return nn.Sequential(*(ConvolutionBlock(axes, n, width) for n in inputs))

    def _block(self, width_in: int, width: int, stride: int = 1) -> nn.Module:
        axes = self.config.num_dimensions
        if self.config.encoder == "plain":
            return ConvolutionBlock(axes, width_in, width, stride)
        return ResidualBlock(axes, width_in, width, stride, pools=True, projects=False)


_NANO: dict[str, Any] = {
    "widths": (8, 16, 32),
    "encoder_blocks": (2, 2, 2),
    "decoder_blocks": (2, 2),
}
_RESIDUAL: dict[str, Any] = {
    "encoder": "residual",
    "encoder_blocks": (1, 3, 4, 6, 6, 6),
    "decoder_blocks": (1, 1, 1, 1, 1),
}

FAMILY = Family(
    name="nnunet",
    model=NnUNet,
    paper="Isensee et al., Nature Methods 2021, arXiv:1809.10486; arXiv:2404.09556 (resenc)",
    inputs="a volume [batch, channel, z, y, x], with num_dimensions=2 an image; every axis a multiple "
    "of 32 (nano: 4); class logits for every voxel",
    call="image",
    example=example,
    sizes=(
        Size("nano", 85_346, _NANO),
        Size("plain", 31_194_050, {}),
        Size("resenc", 102_348_226, _RESIDUAL),
    ),
    default_channels=(1, 2),
)
