"""Patches, positions and the encoder that `vit` and `mae` share.

An image or a volume is cut into patches, each a token; pre-norm transformer blocks mix them.
Dosovitskiy et al., "An image is worth 16x16 words", ICLR 2021, arXiv:2010.11929. The fixed
positions are those of He et al., arXiv:2111.06377, for any number of axes.

Layout: images are `[B, C, *grid]`, two or three axes; patches `[B, N, volume * C]`, the first
grid axis slowest among the tokens, the channel fastest within a patch; tokens `BND`; the table
of positions `[1, D, *token grid]`. Single-device code.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, cast

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from pelagos.models.checks import fail_on, lists_to_tuples, nearest_multiples, not_whole
from pelagos.models.family import Options
from pelagos.models.layers.linear import Linear

Positions = Literal["learned", "sin-cos"]

_NORM_EPS = 1e-6
_POSITION_STD = 0.02
_LONGEST_WAVE = 10_000.0
_CUT = {
    2: "b c (h i) (w j) -> b (h w) (i j c)",
    3: "b c (d i) (h j) (w k) -> b (d h w) (i j k c)",
}


@dataclass(frozen=True)
class PatchOptions(Options):
    """The encoder's sizes: `image_size` and `patch_size` have one entry per axis, two or three.

    `positions`: `learned`, or fixed `sin-cos`.

    Raises ValueError, naming the arithmetic and the nearest choice, for sizes that do not divide.
    """

    image_size: tuple[int, ...] = (224, 224)
    patch_size: tuple[int, ...] = (16, 16)
    in_channels: int = 3
    out_channels: int = 1000
    embed_dim: int = 768
    depth: int = 12
    num_heads: int = 12
    mlp_ratio: float = 4.0
    positions: Positions = "learned"

    def __post_init__(self) -> None:
        lists_to_tuples(self)
        problems = not_whole(self) or self.misfits()
        fail_on(problems, f"{type(self).__name__.removesuffix('Config')} config")

    @property
    def token_grid(self) -> tuple[int, ...]:
        """Tokens along each axis."""
        return tuple(n // p for n, p in zip(self.image_size, self.patch_size, strict=True))

    @property
    def num_tokens(self) -> int:
        """Tokens of one image."""
        return math.prod(self.token_grid)

    @property
    def values_per_patch(self) -> int:
        """Numbers in one patch of the input."""
        return math.prod(self.patch_size) * self.in_channels

    def misfits(self) -> list[str]:
        """Options that do not fit together, a line each; every number is already whole."""
        image, patch = self.image_size, self.patch_size
        if len(image) != len(patch) or len(image) not in _CUT:
            return [
                f"image_size={image} has {len(image)} axes and patch_size={patch} has "
                f"{len(patch)}; both need 2 or 3"
            ]
        problems = [
            f"axis {axis} of image_size={image} must be a multiple of {p} (patch_size={patch}): "
            f"{nearest_multiples(n, p)}"
            for axis, (n, p) in enumerate(zip(image, patch, strict=True))
            if n % p
        ]
        problems += heads_misfit("embed_dim", self.embed_dim, "num_heads", self.num_heads)
        if int(self.embed_dim * self.mlp_ratio) < 1:
            problems.append(f"mlp_ratio={self.mlp_ratio} leaves no hidden channel")
        if self.positions not in ("learned", "sin-cos"):
            problems.append(f"positions={self.positions!r} must be 'learned' or 'sin-cos'")
        return problems


def heads_misfit(width_name: str, width: int, heads_name: str, heads: int) -> list[str]:
    """A line if the heads do not divide the width."""
    if width % heads == 0:
        return []
    return [
        f"{width_name}={width} must be a multiple of {heads_name}={heads}: "
        f"{nearest_multiples(width, heads)}"
    ]


def patchify(image: Tensor, patch_size: tuple[int, ...]) -> Tensor:
    """`[B, C, *grid]` to `[B, N, volume * C]`."""
    return rearrange(image, _CUT[len(patch_size)], **_lengths(patch_size))


def unpatchify(patches: Tensor, patch_size: tuple[int, ...], grid: tuple[int, ...]) -> Tensor:
    """`[B, N, volume * C]` to `[B, C, *image]`: the inverse, `grid` the tokens per axis."""
    left, right = _CUT[len(patch_size)].split(" -> ")
    lengths = _lengths(patch_size) | dict(zip("hw" if len(grid) == 2 else "dhw", grid, strict=True))
    return rearrange(patches, f"{right} -> {left}", **lengths)


def _lengths(patch_size: tuple[int, ...]) -> dict[str, int]:
    return dict(zip("ijk", patch_size, strict=False))


def check_image(image: Tensor, options: PatchOptions, model: str) -> None:
    """Raise ValueError if an image is not of the configured size."""
    expected = (options.in_channels, *options.image_size)
    if tuple(image.shape[1:]) != expected:
        raise ValueError(
            f"{model} got an image of shape {tuple(image.shape)}, needs [batch, "
            f"{', '.join(map(str, expected))}]: in_channels={options.in_channels}, "
            f"image_size={options.image_size}"
        )


def sin_cos_positions(width: int, grid: tuple[int, ...]) -> Tensor:
    """`[1, D, *grid]`: sines and cosines of each axis's index, at falling frequencies.

    The last axis (x) comes first, as in MAE's code, which puts the width before the height. Each has
    `D // (2 * axes)` frequencies, 10000^(-k / number); channels left over are 0.
    """
    number = width // (2 * len(grid))
    frequencies = _LONGEST_WAVE ** (-torch.arange(number, dtype=torch.float32) / max(number, 1))
    axes = torch.meshgrid(*(torch.arange(n, dtype=torch.float32) for n in grid), indexing="ij")
    waves = [
        wave(axis * f)
        for axis in reversed(axes)
        for wave in (torch.sin, torch.cos)
        for f in frequencies
    ]
    waves += [torch.zeros_like(axes[0])] * (width - len(waves))
    return torch.stack(waves)[None]


def resized_positions(source: Tensor, target: Tensor, positions: Positions) -> Tensor | None:
    """A table `[1, D, *grid]` for the grid of another: interpolated, or the fixed one anew.

    None if widths or numbers of axes differ.
    """
    if source.ndim != target.ndim or source.shape[:2] != target.shape[:2]:
        return None
    grid = tuple(target.shape[2:])
    if source.shape == target.shape:
        return source
    if positions == "sin-cos":
        return sin_cos_positions(target.shape[1], grid).to(source)
    mode = "bicubic" if len(grid) == 2 else "trilinear"
    return F.interpolate(source.float(), grid, mode=mode, align_corners=False).to(source.dtype)


class PositionTable(nn.Module):
    """Base of modules that add positions to tokens: `position`, learned or a fixed table.

    The fixed one is in state dicts too, under the same name: weights trained with either load
    into a network with the other.
    """

    position: Tensor

    def __init__(self, width: int, grid: tuple[int, ...], positions: Positions) -> None:
        super().__init__()
        self.positions = positions
        table = torch.empty(1, width, *grid)
        if positions == "learned":
            self.position = nn.Parameter(table)
        else:
            self.register_buffer("position", table)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Normal with deviation 0.02 cut at ±2, or the fixed table."""
        if self.positions == "learned":
            nn.init.trunc_normal_(self.position, std=_POSITION_STD)
        else:
            table = sin_cos_positions(self.position.shape[1], tuple(self.position.shape[2:]))
            self.position.copy_(table)

    def at_tokens(self) -> Tensor:
        """`[1, N, D]`."""
        return self.position.flatten(2).transpose(1, 2)


class Attention(nn.Module):
    """Multi-head self-attention over tokens `BND`."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.query_key_value = Linear(width, 3 * width)
        self.projection = Linear(width, width)

    def forward(self, x_BND: Tensor) -> Tensor:
        parts = self.query_key_value(x_BND).unflatten(-1, (3, self.num_heads, -1))
        query, key, value = parts.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value)
        return cast(Tensor, self.projection(mixed.transpose(1, 2).flatten(2)))


class Block(nn.Module):
    """`x + attention(N(x))`, then `x + MLP(N(x))`."""

    def __init__(self, width: int, num_heads: int, mlp_ratio: float) -> None:
        super().__init__()
        hidden = int(width * mlp_ratio)
        self.norm1 = nn.LayerNorm(width, eps=_NORM_EPS)
        self.attention = Attention(width, num_heads)
        self.norm2 = nn.LayerNorm(width, eps=_NORM_EPS)
        self.mlp = nn.Sequential(Linear(width, hidden), nn.GELU(), Linear(hidden, width))

    def forward(self, x_BND: Tensor) -> Tensor:
        x_BND = x_BND + self.attention(self.norm1(x_BND))
        return cast(Tensor, x_BND + self.mlp(self.norm2(x_BND)))


class Encoder(PositionTable):
    """Patches to tokens: an embedding, positions, blocks and a last norm. No class token."""

    def __init__(self, options: PatchOptions) -> None:
        width = options.embed_dim
        super().__init__(width, options.token_grid, options.positions)
        self.embedding = Linear(options.values_per_patch, width)
        self.blocks = nn.ModuleList(
            Block(width, options.num_heads, options.mlp_ratio) for _ in range(options.depth)
        )
        self.norm = nn.LayerNorm(width, eps=_NORM_EPS)

    def forward(
        self, patches: Tensor, kept: Tensor | None = None, depths: tuple[int, ...] = ()
    ) -> tuple[Tensor, ...]:
        """The normed tokens of `patches [B, N, values]`, or of those at `kept [B, K]` alone.

        Behind them the tokens after each of `depths` blocks, not normed.
        """
        positions = self.at_tokens()
        if kept is not None:
            patches = take(patches, kept)
            positions = take(positions.expand(len(kept), -1, -1), kept)
        x_BND = self.embedding(patches)
        x_BND = x_BND + positions.to(x_BND.dtype)
        between = []
        for depth, block in enumerate(self.blocks, start=1):
            x_BND = block(x_BND)
            if depth in depths:
                between.append(x_BND)
        return self.norm(x_BND), *between


def take(x_BND: Tensor, indices_BK: Tensor) -> Tensor:
    """`[B, K, D]`: each sample's tokens at its indices."""
    return x_BND.gather(1, indices_BK[..., None].expand(-1, -1, x_BND.shape[-1]))


def init_linear(module: nn.Module) -> bool:
    """Initialise a linear layer as both papers do, Xavier uniform with zero bias; False if none."""
    if not isinstance(module, nn.Linear):
        return False
    nn.init.xavier_uniform_(module.weight)
    if module.bias is not None:
        nn.init.zeros_(module.bias)
    return True
