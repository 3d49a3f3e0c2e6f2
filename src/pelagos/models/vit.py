"""Vision Transformer: images and volumes to class logits or to a dense map.

Patches are tokens, mixed by a transformer; the head turns them into the output. Dosovitskiy et al.,
"An image is worth 16x16 words: Transformers for image recognition at scale", ICLR 2021,
arXiv:2010.11929, in its mean-pooled form: without a class token, hence with 2 D parameters fewer
than the published counts (ViT-B/16: 86,567,656 with it).

The encoder is that of `mae`, under the same names. Layout: input `[B, C, *grid]`, two or three
axes; tokens `BND`. Single-device code.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from pelagos.models.family import Family, Size
from pelagos.models.layers.convolutions import CONVOLUTION, TRANSPOSED
from pelagos.models.layers.vit_layers import (
    Encoder,
    PatchOptions,
    check_image,
    init_linear,
    patchify,
    resized_positions,
    unpatchify,
)
from pelagos.models.pretrained import Pretrained

__all__ = ["FAMILY", "HEADS", "ViT", "ViTConfig"]


@dataclass(frozen=True)
class ViTConfig(PatchOptions):
    """Sizes and options of one Vision Transformer.

    `out_channels` is the number of classes K. `head`: `classification` answers with logits
    `[B, K]`, `segmentation` with a map `[B, K, *grid]`, by one linear layer per patch
    (`segmentation_decoder="linear"`) or by convolutions of `decoder_width` channels that see
    over the patches' edges (`"convolution"`).
    """

    head: Literal["classification", "segmentation"] = "classification"
    segmentation_decoder: Literal["linear", "convolution"] = "linear"
    decoder_width: int = 64

    def misfits(self) -> list[str]:
        """Options that do not fit together, a line each."""
        problems = super().misfits()
        for name, known in (("head", HEADS), ("segmentation_decoder", DECODERS)):
            if getattr(self, name) not in known:
                problems.append(f"{name}={getattr(self, name)!r} must be one of {', '.join(known)}")
        return problems


class ClassificationHead(nn.Module):
    """The mean token to class logits."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.logits = nn.Linear(config.embed_dim, config.out_channels)

    def forward(self, x_BND: Tensor) -> Tensor:
        """`[B, N, D]` to `[B, K]`."""
        return cast(Tensor, self.logits(x_BND.mean(dim=1)))


class LinearDecoder(nn.Module):
    """Each token to the map of its own patch."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.config = config
        values = config.values_per_patch // config.in_channels * config.out_channels
        self.logits = nn.Linear(config.embed_dim, values)

    def forward(self, x_BND: Tensor) -> Tensor:
        """`[B, N, D]` to `[B, K, *grid]`."""
        return unpatchify(self.logits(x_BND), self.config.patch_size, self.config.token_grid)


class ConvolutionalDecoder(nn.Module):
    """Each token to narrow features of its patch, which convolutions join across patches."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        axes, width, patch = len(config.patch_size), config.decoder_width, config.patch_size
        convolution = CONVOLUTION[axes]
        self.token_grid = config.token_grid
        self.layers = nn.Sequential(
            TRANSPOSED[axes](config.embed_dim, width, cast(Any, patch), stride=cast(Any, patch)),
            nn.GELU(),
            convolution(width, width, 3, padding=1),
            nn.GELU(),
            convolution(width, config.out_channels, 1),
        )

    def forward(self, x_BND: Tensor) -> Tensor:
        """`[B, N, D]` to `[B, K, *grid]`."""
        x = x_BND.transpose(1, 2)
        return cast(Tensor, self.layers(x.reshape(*x.shape[:2], *self.token_grid)))


DECODERS: dict[str, type[nn.Module]] = {
    "linear": LinearDecoder,
    "convolution": ConvolutionalDecoder,
}


class SegmentationHead(nn.Module):
    """Tokens to a dense map, by the configured decoder."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.decoder = DECODERS[config.segmentation_decoder](config)

    def forward(self, x_BND: Tensor) -> Tensor:
        """`[B, N, D]` to `[B, K, *grid]`."""
        return cast(Tensor, self.decoder(x_BND))


HEADS: dict[str, type[nn.Module]] = {
    "classification": ClassificationHead,
    "segmentation": SegmentationHead,
}


class ViT(Pretrained):
    """The Vision Transformer: `image [B, C, *grid]` to logits `[B, K]` or `[B, K, *grid]`.

    Linear layers start Xavier uniform with zero biases, learned positions normal with deviation
    0.02 cut at ±2, the rest torch's own way.
    """

    model_types = ("vit",)
    config_class = ViTConfig
    config: ViTConfig

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.config = config
        device = torch.get_default_device()
        with torch.device("meta"):  # modules' own initialisation would only be overwritten
            self.encoder = Encoder(config)
            self.head = HEADS[config.head](config)
        self.materialize(device)

    def forward(self, image: Tensor) -> Tensor:
        """Logits of an image or volume. Raises ValueError for a shape other than configured."""
        check_image(image, self.config, "ViT")
        tokens = self.encoder(patchify(image, self.config.patch_size))[0]
        return cast(Tensor, self.head(tokens)).to(image.dtype)

    @torch.no_grad()
    def init_weights(self, module: nn.Module) -> None:
        """Initialise the direct parameters and buffers of one of `modules()`."""
        if not init_linear(module):
            super().init_weights(module)

    def no_weight_decay(self) -> set[str]:
        """Names of parameters without weight decay: biases, norms, positions."""
        return super().no_weight_decay() | (
            {"encoder.position"} if self.config.positions == "learned" else set()
        )

    def resized_parameter(self, name: str, source: Tensor) -> Tensor | None:
        """The positions of another grid, interpolated (bicubic, in volumes trilinear)."""
        if name != "encoder.position":
            return None
        return resized_positions(source, self.encoder.position, self.config.positions)

    def blocks(self) -> list[nn.Module]:
        """Repeated blocks to wrap, compile or checkpoint, each called as `block(x)`."""
        return list(self.encoder.blocks)


NANO: dict[str, Any] = {
    "image_size": (32, 32),
    "patch_size": (4, 4),
    "embed_dim": 64,
    "depth": 3,
    "num_heads": 4,
}
SMALL: dict[str, Any] = {"embed_dim": 384, "depth": 12, "num_heads": 6}
LARGE: dict[str, Any] = {"embed_dim": 1024, "depth": 24, "num_heads": 16}
HUGE: dict[str, Any] = {
    "embed_dim": 1280,
    "depth": 32,
    "num_heads": 16,
    "patch_size": (14, 14),
}


def _example(config: ViTConfig, batch_size: int) -> tuple[Tensor, ...]:
    return (torch.zeros(batch_size, config.in_channels, *config.image_size),)


FAMILY = Family(
    name="vit",
    model=ViT,
    paper="Dosovitskiy et al., ICLR 2021, arXiv:2010.11929",
    inputs="an image [batch, channel, y, x] or a volume [batch, channel, z, y, x] of the configured "
    "size, 224 a side (nano: 32); class logits, or with head=segmentation a map",
    call="image",
    example=_example,
    sizes=(
        Size("nano", 222_312, NANO),
        Size("S", 22_049_896, SMALL),
        Size("B", 86_566_120, {}),
        Size("L", 304_324_584, LARGE),
        Size("H", 632_043_240, HUGE),
    ),
    default_channels=(3, 1000),
)
