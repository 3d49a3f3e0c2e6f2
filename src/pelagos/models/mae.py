"""Masked autoencoder: the patches that were kept to the values of those that were not.

The encoder sees kept patches alone; a light decoder puts mask tokens between them and predicts
every patch. He et al., "Masked autoencoders are scalable vision learners", CVPR 2022,
arXiv:2111.06377, without the class token. With `local_reconstruction` tokens of intermediate
depths predict too, lower ones a finer scale and upper ones a coarser: Wang et al., "Masked image
modeling with local multi-scale reconstruction", CVPR 2023, arXiv:2303.05251; here with pixels as
targets at two depths, where the paper has histograms of gradients at four.

The encoder is that of `vit`, under the same names. Layout: images `[B, C, *grid]`, two or three
axes; patches `[B, N, volume * C]`; tokens `BND`, kept ones `BKD`. Single-device code.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from einops import rearrange, reduce
from torch import Tensor, nn

from pelagos.models import vit
from pelagos.models.checks import nearest_multiples
from pelagos.models.family import Family, Size
from pelagos.models.layers.convolutions import AVERAGE_POOL
from pelagos.models.layers.linear import Linear
from pelagos.models.layers.vit_layers import (
    Block,
    Encoder,
    PatchOptions,
    Positions,
    PositionTable,
    check_image,
    heads_misfit,
    init_linear,
    patchify,
    resized_positions,
    unpatchify,
)
from pelagos.models.pretrained import Pretrained

__all__ = ["FAMILY", "MAE", "LocalOutput", "MAEConfig", "MaskedOutput"]

_MASK_TOKEN_STD = 0.02
_SPLIT = {2: "b (h w) (s t v) -> b (h s w t) v", 3: "b (d h w) (s t u v) -> b (d s h t w u) v"}
_MERGE = {2: "b (h s w t) v -> b (h w) v", 3: "b (d s h t w u) v -> b (d h w) v"}


@dataclass(frozen=True)
class MAEConfig(PatchOptions):
    """Sizes and options of one masked autoencoder.

    `mask_ratio` is the share of the tokens that training masks. The caller draws the masks; the
    network takes any. `local_reconstruction` adds predictions of half the patch size from a third
    of the encoder's depth, and of twice the patch size from two thirds of it.
    """

    out_channels: int = 3
    positions: Positions = "sin-cos"
    decoder_dim: int = 512
    decoder_depth: int = 8
    decoder_heads: int = 16
    mask_ratio: float = 0.75
    local_reconstruction: bool = False

    @property
    def num_kept(self) -> int:
        """Tokens that the encoder sees at `mask_ratio`."""
        return max(1, round(self.num_tokens * (1 - self.mask_ratio)))

    @property
    def local_depths(self) -> tuple[int, int]:
        """Blocks before the finer and before the coarser local prediction."""
        return max(1, self.depth // 3), max(2, 2 * self.depth // 3)

    def misfits(self) -> list[str]:
        """Options that do not fit together, a line each."""
        problems = super().misfits()
        if self.out_channels != self.in_channels:
            problems.append(
                f"out_channels={self.out_channels} must equal in_channels={self.in_channels}: a "
                f"masked autoencoder predicts its own input"
            )
        problems += heads_misfit(
            "decoder_dim", self.decoder_dim, "decoder_heads", self.decoder_heads
        )
        if not 0.0 < self.mask_ratio < 1.0:
            problems.append(f"mask_ratio={self.mask_ratio} must lie between 0 and 1")
        if self.local_reconstruction and not problems:
            problems = self._local_misfits()
        return problems

    def _local_misfits(self) -> list[str]:
        sizes = {"patch_size": self.patch_size, "image_size / patch_size": self.token_grid}
        problems = [
            f"local_reconstruction: {name}={size} must be even along every axis; axis {axis} has "
            f"{n}: {nearest_multiples(n, 2)}"
            for name, size in sizes.items()
            for axis, n in enumerate(size)
            if n % 2
        ]
        if self.depth < 3:
            problems.append(f"local_reconstruction: depth={self.depth} must be at least 3")
        return problems


@dataclass
class LocalOutput:
    """The predictions of an intermediate depth for its regions.

    Values `[B, R, V]`, masked `[B, R]`, and the image's own values `[B, R, V]`.
    """

    prediction: Tensor
    masked: Tensor
    target: Tensor


@dataclass
class MaskedOutput:
    """`prediction [B, N, volume * C]` of every patch; `masked [B, N]`: those not seen.

    `local`: finer and coarser predictions of intermediate depths, where the configuration asks
    for them; a coarse region is masked if any of its patches is.
    """

    prediction: Tensor
    masked: Tensor
    local: tuple[LocalOutput, ...] = ()


class Decoder(PositionTable):
    """Kept tokens, at their places among mask tokens, to the values of every patch.

    With `merges` to those of regions of two patches along every axis.
    """

    def __init__(self, config: MAEConfig, depth: int, merges: bool = False) -> None:
        width = config.decoder_dim
        super().__init__(width, config.token_grid, config.positions)
        self.token_grid = config.token_grid
        self.merges = merges
        self.mask_token = nn.Parameter(torch.empty(1, 1, width))
        self.embedding = Linear(config.embed_dim, width)
        self.blocks = nn.ModuleList(
            Block(width, config.decoder_heads, config.mlp_ratio) for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.prediction = Linear(width, config.values_per_patch)

    def reset_parameters(self) -> None:
        """Positions as in the encoder; the mask token normal with deviation 0.02."""
        super().reset_parameters()
        nn.init.normal_(self.mask_token, std=_MASK_TOKEN_STD)

    def forward(self, x_BKD: Tensor, kept_BK: Tensor) -> Tensor:
        """`[B, K, D]` at `kept [B, K]` to `[B, N, values]`, or to `[B, N / 2^axes, values]`."""
        x_BKD = self.embedding(x_BKD)
        positions = self.at_tokens().to(x_BKD.dtype)
        mask_tokens = self.mask_token.to(x_BKD.dtype).expand(len(x_BKD), positions.shape[1], -1)
        x_BND = mask_tokens.scatter(1, kept_BK[..., None].expand_as(x_BKD), x_BKD) + positions
        for block in self.blocks:
            x_BND = block(x_BND)
        if self.merges:
            x_BND = merged(x_BND, self.token_grid, "mean")
        return cast(Tensor, self.prediction(self.norm(x_BND)))


def merged(x_BNV: Tensor, token_grid: tuple[int, ...], how: str) -> Tensor:
    """Two tokens along every axis to one: their mean, or the largest."""
    lengths = _halves(token_grid, [n // 2 for n in token_grid])
    return reduce(x_BNV, _MERGE[len(token_grid)], how, **lengths)


def split(x_BNV: Tensor, token_grid: tuple[int, ...]) -> Tensor:
    """Each token's values to those of the regions of half its size, in the order of `patchify`."""
    lengths = _halves(token_grid, token_grid)
    return rearrange(x_BNV, _SPLIT[len(token_grid)], **lengths)


def _halves(token_grid: tuple[int, ...], lengths: Any) -> dict[str, int]:
    axes, halves = ("hw", "st") if len(token_grid) == 2 else ("dhw", "stu")
    return dict(zip(axes, lengths, strict=True)) | dict.fromkeys(halves, 2)


class MAE(Pretrained):
    """The masked autoencoder.

    Linear layers start Xavier uniform with zero biases, mask tokens normal with deviation 0.02, the
    rest torch's own way. Positions are fixed unless the configuration says `learned`.
    """

    model_types = ("mae",)
    config_class = MAEConfig
    config: MAEConfig

    def __init__(self, config: MAEConfig) -> None:
        super().__init__()
        self.config = config
        device = torch.get_default_device()
        with torch.device("meta"):  # modules' own initialisation would only be overwritten
            self.encoder = Encoder(config)
            self.decoder = Decoder(config, config.decoder_depth)
            self.local_decoders = nn.ModuleList(
                [Decoder(config, 1), Decoder(config, 1, merges=True)]
                if config.local_reconstruction
                else []
            )
        self.materialize(device)

    def forward(self, image: Tensor, keep: Tensor) -> MaskedOutput:
        """Predict every patch of `image [B, C, *grid]` from those where `keep [B, N]` is True.

        Every sample keeps the same number of tokens, at least one; counting them waits for the
        device. On the meta device, where nothing can be counted, it is that of `mask_ratio`.

        Raises ValueError for a shape that does not fit the configuration, or for an unsuitable mask.
        """
        config = self.config
        check_image(image, config, "MAE")
        num_kept = self._num_kept(image, keep)
        kept = (~keep).to(torch.uint8).argsort(dim=1, stable=True)[:, :num_kept]
        depths = config.local_depths if config.local_reconstruction else ()
        tokens, *between = self.encoder(self.patchify(image), kept, depths)
        local = [
            decoder(x_BKD, kept).to(image.dtype)
            for decoder, x_BKD in zip(self.local_decoders, between, strict=True)
        ]
        prediction = self.decoder(tokens, kept).to(image.dtype)
        return MaskedOutput(prediction, ~keep, self._local_outputs(image, local, ~keep))

    def patchify(self, image: Tensor) -> Tensor:
        """`[B, C, *grid]` to `[B, N, volume * C]`, the target of `prediction`."""
        return patchify(image, self.config.patch_size)

    def unpatchify(self, patches: Tensor) -> Tensor:
        """`[B, N, volume * C]` to `[B, C, *grid]`."""
        return unpatchify(patches, self.config.patch_size, self.config.token_grid)

    def local_targets(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """The targets of `local`: half patches, and patches of the image at half size."""
        patch = self.config.patch_size
        finer = patchify(image, tuple(p // 2 for p in patch))
        return finer, patchify(AVERAGE_POOL[len(patch)](2)(image), patch)

    @torch.no_grad()
    def init_weights(self, module: nn.Module) -> None:
        """Initialise the direct parameters and buffers of one of `modules()`."""
        if not init_linear(module):
            super().init_weights(module)

    def no_weight_decay(self) -> set[str]:
        """Names of parameters without weight decay: biases, norms, positions, mask tokens."""
        kept = (".position", ".mask_token")
        names = {name for name, _ in self.named_parameters() if name.endswith(kept)}
        return super().no_weight_decay() | names

    def resized_parameter(self, name: str, source: Tensor) -> Tensor | None:
        """The positions of another grid: interpolated if they are learned, the fixed ones anew."""
        if not name.endswith(".position"):
            return None
        target = self.state_dict()[name]
        return resized_positions(source, target, self.config.positions)

    def blocks(self) -> list[nn.Module]:
        """Repeated blocks to wrap, compile or checkpoint, each called as `block(x)`."""
        return [module for module in self.modules() if isinstance(module, Block)]

    def _num_kept(self, image: Tensor, keep: Tensor) -> int:
        expected = (image.shape[0], self.config.num_tokens)
        if tuple(keep.shape) != expected or keep.dtype != torch.bool:
            raise ValueError(
                f"MAE got keep of shape {tuple(keep.shape)} and {keep.dtype}, needs {expected} and "
                f"torch.bool: image_size={self.config.image_size} / "
                f"patch_size={self.config.patch_size} = {self.config.token_grid} tokens"
            )
        if keep.is_meta:
            return self.config.num_kept
        fewest, most = (int(count) for count in keep.sum(dim=1).aminmax())
        if fewest != most or fewest < 1:
            raise ValueError(
                f"MAE got masks that keep {fewest} to {most} of {expected[1]} tokens; every sample "
                f"must keep the same number, at least 1 (mask_ratio={self.config.mask_ratio}: "
                f"{self.config.num_kept})"
            )
        return most

    def _local_outputs(
        self, image: Tensor, predictions: list[Tensor], masked: Tensor
    ) -> tuple[LocalOutput, ...]:
        if not predictions:
            return ()
        grid = self.config.token_grid
        finer, coarser = predictions
        finer_target, coarser_target = self.local_targets(image)
        column = masked[..., None].to(torch.uint8)
        masked_finer = split(column.expand(-1, -1, 2 ** len(grid)), grid)[..., 0].bool()
        masked_coarser = merged(column, grid, "max")[..., 0].bool()
        return (
            LocalOutput(split(finer, grid), masked_finer, finer_target),
            LocalOutput(coarser, masked_coarser, coarser_target),
        )


_NANO: dict[str, Any] = {**vit.NANO, "decoder_dim": 32, "decoder_depth": 1, "decoder_heads": 4}


def _example(config: MAEConfig, batch_size: int) -> tuple[Tensor, ...]:
    keep = torch.arange(config.num_tokens) < config.num_kept
    image = torch.zeros(batch_size, config.in_channels, *config.image_size)
    return image, keep.expand(batch_size, -1)


FAMILY = Family(
    name="mae",
    model=MAE,
    paper="He et al., CVPR 2022, arXiv:2111.06377",
    inputs="an image [batch, channel, y, x] or a volume [batch, channel, z, y, x] of the configured "
    "size, 224 a side (nano: 32), and the tokens to keep; predicts the others",
    call="masked",
    example=_example,
    sizes=(
        Size("nano", 169_680, _NANO),
        Size("S", 47_401_344, vit.SMALL),
        Size("B", 111_654_912, {}),
        Size("L", 329_238_272, vit.LARGE),
        Size("H", 656_612_684, vit.HUGE),
    ),
    default_channels=(3, 3),
)
