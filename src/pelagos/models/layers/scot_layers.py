"""The layers of scOT: conditional norm, windowed cosine attention, blocks, merging, unmerging.

Attention and its continuous position bias: Liu et al., "Swin Transformer V2", arXiv:2111.09883.
Norms conditioned on lead time and the skip connections' blocks: arXiv:2405.19101. Tokens are
`BHWC` throughout (`H`, `W` the token grid); module names are the official checkpoints'.
"""

from __future__ import annotations

import math
from typing import cast

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from pelagos.models.layers.blocked_attention import blocked_cosine_attention, is_worth_blocking
from pelagos.models.layers.linear import Linear
from pelagos.models.layers.precision import without_autocast
from pelagos.models.layers.tables import kept
from pelagos.models.scot_config import ScOTConfig

_MAX_LOG_SCALE = math.log(100.0)  # cosine attention's temperature is clamped to 1/100
_MASKED_LOGIT = -100.0  # added between tokens that a cyclic shift brought together
_POSITION_BIAS_HIDDEN = 512

Axes = tuple[int, int]  # y, x


class ConditionalScale(nn.Linear):
    """The affine map from lead time to a norm's scale: a type, so that it can start at scale 1."""


class ConditionalLayerNorm(nn.Module):
    """Layer norm whose scale and shift are affine in the lead time: `(a t + b) x̂ + (c t + d)`.

    Statistics, scale and shift are computed in fp32 whatever the surrounding autocast. The scalar
    time enters raw, without an embedding (arXiv:2405.19101, eq. 6).
    """

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.dim = dim
        self.eps = eps
        self.weight = ConditionalScale(1, dim)
        self.bias = nn.Linear(1, dim)

    def forward(self, x_BHWC: Tensor, time: Tensor) -> Tensor:
        """`[B, H, W, C]` and time `[B]` to `[B, H, W, C]`."""
        with without_autocast(x_BHWC):
            normal = F.layer_norm(x_BHWC.float(), (self.dim,), eps=self.eps)
            column = time.reshape(-1, 1).to(self.weight.weight.dtype)
            scale = self.weight(column)[:, None, None]
            shift = self.bias(column)[:, None, None]
            return torch.addcmul(shift, scale, normal.to(scale.dtype))


class UnconditionalLayerNorm(nn.LayerNorm):
    """Plain layer norm that takes and ignores the lead time (`use_conditioning=False`)."""

    def forward(self, x_BHWC: Tensor, time: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x_BHWC)


def _norm(config: ScOTConfig, dim: int) -> nn.Module:
    kind = ConditionalLayerNorm if config.use_conditioning else UnconditionalLayerNorm
    return kind(dim, config.layer_norm_eps)


class WindowAttention(nn.Module):
    """Cosine attention within windows, with a continuous log-spaced position bias (Swin v2).

    `window` tokens a side; `shift` > 0 rolls the grid first, so that windows straddle the
    borders of the unshifted ones, and masks pairs which the roll alone brought together (the
    domain is not treated as periodic). Keys carry no bias.

    Both, and the tables in the buffers, are those of the native, square `grid`. Another grid has
    its own window and shift on each axis: as wide as the grid up to the configured size, and no
    shift where one window covers the axis.
    """

    def __init__(self, config: ScOTConfig, dim: int, heads: int, grid: int, shift: int) -> None:
        super().__init__()
        self.heads = heads
        self.grid = grid
        self.widest_window = config.window_size
        self.widest_shift = shift
        self.window = min(config.window_size, grid)
        self.shift = shift if self.window < grid else 0
        self.logit_scale = nn.Parameter(torch.empty(heads, 1, 1))
        self.continuous_position_bias_mlp = nn.Sequential(
            Linear(2, _POSITION_BIAS_HIDDEN),
            nn.ReLU(),
            Linear(_POSITION_BIAS_HIDDEN, heads, bias=False),
        )
        self.query = Linear(dim, dim, bias=config.qkv_bias)
        self.key = Linear(dim, dim, bias=False)
        self.value = Linear(dim, dim, bias=config.qkv_bias)
        span, windows = 2 * self.window - 1, (grid // self.window) ** 2
        self.register_buffer("offsets", torch.empty(span * span, 2), persistent=False)
        self.shift_mask: Tensor | None
        if self.shift:
            area = self.window**2
            self.register_buffer("shift_mask", torch.empty(windows, area, area), persistent=False)
        else:
            self.shift_mask = None

    def reset_buffers(self) -> None:
        """Fill the constant tables (again after `to_empty`)."""
        offsets = cast(Tensor, self.offsets)
        offsets.copy_(_log_offsets(self.window))
        if self.shift_mask is not None:
            window, shift = self.layout((self.grid, self.grid))
            self.shift_mask.copy_(_shift_mask((self.grid, self.grid), window, shift))

    def layout(self, grid: Axes) -> tuple[Axes, Axes]:
        """Window and shift on each axis of a grid."""
        if grid == (self.grid, self.grid):
            return (self.window, self.window), (self.shift, self.shift)
        rows, columns = (min(self.widest_window, side) for side in grid)
        shift = [
            self.widest_shift if n < side else 0
            for n, side in zip((rows, columns), grid, strict=True)
        ]
        return (rows, columns), (shift[0], shift[1])

    def position_bias(self, grid: Axes | None = None) -> Tensor:
        """`[windows or 1, heads, area, area]`: bias of each token pair of a window, with the mask.

        Of the native grid if none is given.
        """
        grid = grid or (self.grid, self.grid)
        (rows, columns), shift = self.layout(grid)
        offsets, mask = cast(Tensor, self.offsets), self.shift_mask
        if grid != (self.grid, self.grid):
            dtype = offsets.dtype
            offsets, mask = kept(_window_tables, grid, (rows, columns), shift, like=offsets)
            offsets, mask = offsets.to(dtype), None if mask is None else mask.to(dtype)
        table = self.continuous_position_bias_mlp(offsets).float()
        # The published bias is 16 sigmoid(.); softmax ignores a constant, and centred on zero the
        # bias keeps its digits when attention runs in bf16.
        table = 16.0 * torch.sigmoid(table) - 8.0
        # Entry (i, j, k, l) of two nested sliding windows is table[i + k, j + l]; reversing the
        # query axes makes it the offset (query - key). Far cheaper to differentiate on a CPU than
        # an indexed gather, whose backward is a serial scatter.
        table = table.T.reshape(self.heads, 2 * rows - 1, 2 * columns - 1).flip(1, 2)
        bias = table.unfold(1, rows, 1).unfold(2, columns, 1).flip(1, 2)
        bias = bias.reshape(1, self.heads, rows * columns, rows * columns)
        return bias if mask is None else bias + mask[:, None]

    def forward(self, x_BHWC: Tensor) -> Tensor:
        """`[B, H, W, C]` to the attended values `[B, H, W, C]`, before the output layer."""
        grid = (x_BHWC.shape[1], x_BHWC.shape[2])
        (rows, columns), (down, right) = self.layout(grid)
        num_rows, num_columns = grid[0] // rows, grid[1] // columns
        if down or right:
            x_BHWC = torch.roll(x_BHWC, (-down, -right), dims=(1, 2))
        pattern = "b (n i) (m j) (h d) -> b (n m h) (i j) d"
        sizes = {"i": rows, "j": columns, "h": self.heads}
        query, key, value = (
            rearrange(part(x_BHWC), pattern, **sizes) for part in (self.query, self.key, self.value)
        )
        scale = self.logit_scale.clamp(max=_MAX_LOG_SCALE).exp()
        scale = scale.repeat(num_rows * num_columns, 1, 1)
        bias = self.position_bias(grid).expand(num_rows * num_columns, -1, -1, -1).flatten(0, 1)
        attended = _attend(query, key, value, scale, bias)
        back = "b (n m h) (i j) d -> b (n i) (m j) (h d)"
        out = rearrange(attended, back, n=num_rows, m=num_columns, **sizes)
        return torch.roll(out, (down, right), dims=(1, 2)) if down or right else out


def _attend(query: Tensor, key: Tensor, value: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """softmax(scale q̂ k̂ᵀ + bias) v for `[B, windows·heads, tokens, d]`; scale, bias without `B`.

    Accelerators take the fused kernel. No fused CPU kernel differentiates the bias, and the
    unfused fallback pays a seventh of Poseidon-T's step for rows that are masked completely, of
    which shifted windows have none; so the CPU path is written out.
    """
    if is_worth_blocking(query, value):
        return blocked_cosine_attention(query, key, value, scale, bias)
    query = (F.normalize(query.float(), dim=-1) * scale).to(value.dtype)
    key = F.normalize(key.float(), dim=-1).to(value.dtype)
    if query.device.type != "cpu":
        mask = bias.to(value.dtype).expand(query.shape[0], -1, -1, -1)
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=1.0)
    weights = torch.softmax(query @ key.transpose(-2, -1) + bias, dim=-1)
    return weights.to(value.dtype) @ value


def _log_offsets(
    rows: int, columns: int | None = None, device: torch.device | None = None
) -> Tensor:
    """`[offsets, 2]`: signed log-spaced (Δy, Δx) of a window, ±1 at its full span; square if one."""

    def steps(window: int) -> Tensor:
        step = torch.arange(1 - window, window, dtype=torch.float32, device=device)
        step = 8.0 * step / max(window - 1, 1)
        return torch.sign(step) * torch.log2(step.abs() + 1.0) / math.log2(8.0)

    axes = (steps(rows), steps(rows if columns is None else columns))
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).reshape(-1, 2)


def _shift_mask(
    grid: Axes, window: Axes, shift: Axes, device: torch.device | None = None
) -> Tensor:
    """`[windows, area, area]`: 0 within a region of the unrolled grid, -100 across."""
    rows, columns = (
        (position >= side - width).long() + (position >= side - step).long()
        for side, width, step in zip(grid, window, shift, strict=True)
        for position in [torch.arange(side, device=device)]
    )
    label = 3 * rows[:, None] + columns[None, :]
    label = rearrange(label, "(n i) (m j) -> (n m) (i j)", i=window[0], j=window[1])
    return torch.where(label[:, :, None] == label[:, None, :], 0.0, _MASKED_LOGIT)


def _window_tables(
    grid: Axes, window: Axes, shift: Axes, device: torch.device
) -> tuple[Tensor, Tensor | None]:
    """Offsets and, with a shift, the mask of a grid that is not the native one."""
    offsets = _log_offsets(*window, device)
    return offsets, _shift_mask(grid, window, shift, device) if any(shift) else None


class _Dense(nn.Module):
    """A linear layer under the name `dense`, as in the official checkpoints."""

    def __init__(self, dim_in: int, dim_out: int) -> None:
        super().__init__()
        self.dense = Linear(dim_in, dim_out)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.dense(x))


class _Attention(nn.Module):
    """Windowed attention and its output layer, under the official names."""

    def __init__(self, config: ScOTConfig, dim: int, heads: int, grid: int, shift: int) -> None:
        super().__init__()
        self.add_module("self", WindowAttention(config, dim, heads, grid, shift))
        self.output = _Dense(dim, dim)

    def forward(self, x_BHWC: Tensor) -> Tensor:
        return cast(Tensor, self.output(self.get_submodule("self")(x_BHWC)))


class ScOTBlock(nn.Module):
    """Swin-v2 block with residual post-norm: `x + N(attention(x))`, then `x + N(mlp(x))`."""

    def __init__(self, config: ScOTConfig, stage: int, shifted: bool) -> None:
        super().__init__()
        dim, shift = config.stage_width(stage), config.window_size // 2 if shifted else 0
        hidden = int(dim * config.mlp_ratio)
        self.attention = _Attention(
            config, dim, config.num_heads[stage], config.stage_grid(stage), shift
        )
        self.layernorm_before = _norm(config, dim)
        self.intermediate = _Dense(dim, hidden)
        self.output = _Dense(hidden, dim)
        self.layernorm_after = _norm(config, dim)

    def forward(self, x_BHWC: Tensor, time: Tensor) -> Tensor:
        """`[B, H, W, C]` and time `[B]` to `[B, H, W, C]`."""
        x_BHWC = x_BHWC + self.layernorm_before(self.attention(x_BHWC), time)
        hidden = self.output(F.gelu(self.intermediate(x_BHWC)))
        return cast(Tensor, x_BHWC + self.layernorm_after(hidden, time))


class ConvNeXtBlock(nn.Module):
    """Depthwise 7×7, norm, pointwise MLP, layer scale: the refinement of a skip connection."""

    def __init__(self, config: ScOTConfig, stage: int) -> None:
        super().__init__()
        dim = config.stage_width(stage)
        self.dwconv = nn.Conv2d(dim, dim, kernel_size=7, padding=3, groups=dim)
        self.norm = _norm(config, dim)
        self.pwconv1 = Linear(dim, 4 * dim)
        self.pwconv2 = Linear(4 * dim, dim)
        self.weight = nn.Parameter(torch.empty(dim))

    def forward(self, x_BHWC: Tensor, time: Tensor) -> Tensor:
        """`[B, H, W, C]` and time `[B]` to `[B, H, W, C]`."""
        hidden = self.dwconv(x_BHWC.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        hidden = self.pwconv2(F.gelu(self.pwconv1(self.norm(hidden, time))))
        return torch.addcmul(x_BHWC, self.weight, hidden)


class PatchMerging(nn.Module):
    """Halve the token grid and double the width."""

    def __init__(self, config: ScOTConfig, stage: int) -> None:
        super().__init__()
        dim = config.stage_width(stage)
        self.reduction = Linear(4 * dim, 2 * dim, bias=False)
        self.norm = _norm(config, 2 * dim)

    def forward(self, x_BHWC: Tensor, time: Tensor) -> Tensor:
        merged = rearrange(x_BHWC, "b (h p) (w q) c -> b h w (q p c)", p=2, q=2)
        return cast(Tensor, self.norm(self.reduction(merged), time))


class PatchUnmerging(nn.Module):
    """Double the token grid and halve the width."""

    def __init__(self, config: ScOTConfig, stage: int) -> None:
        super().__init__()
        dim = config.stage_width(stage)
        self.upsample = Linear(dim, 2 * dim, bias=False)
        self.mixup = Linear(dim // 2, dim // 2, bias=False)
        self.norm = _norm(config, dim // 2)

    def forward(self, x_BHWC: Tensor, time: Tensor) -> Tensor:
        fine = rearrange(self.upsample(x_BHWC), "b h w (p q c) -> b (h p) (w q) c", p=2, q=2)
        return cast(Tensor, self.mixup(self.norm(fine, time)))


class _PatchProjection(nn.Module):
    def __init__(self, config: ScOTConfig) -> None:
        super().__init__()
        patch = config.patch_size
        self.projection = nn.Conv2d(config.num_channels, config.embed_dim, patch, stride=patch)

    def forward(self, pixels_BCHW: Tensor) -> Tensor:
        return cast(Tensor, self.projection(pixels_BCHW))


class Embeddings(nn.Module):
    """Pixels to tokens: strided convolution and norm, no absolute position."""

    def __init__(self, config: ScOTConfig) -> None:
        super().__init__()
        self.patch_embeddings = _PatchProjection(config)
        self.norm = _norm(config, config.embed_dim)

    def forward(self, pixels_BCHW: Tensor, time: Tensor) -> Tensor:
        tokens = self.patch_embeddings(pixels_BCHW).permute(0, 2, 3, 1)
        return cast(Tensor, self.norm(tokens, time))


class PatchRecovery(nn.Module):
    """Tokens to pixels: transposed convolution, then a 5×5 convolution over the seams."""

    def __init__(self, config: ScOTConfig) -> None:
        super().__init__()
        patch, channels = config.patch_size, config.num_out_channels
        self.projection = nn.ConvTranspose2d(config.embed_dim, channels, patch, stride=patch)
        self.mixup = nn.Conv2d(channels, channels, kernel_size=5, padding=2, bias=False)

    def forward(self, x_BHWC: Tensor) -> Tensor:
        return cast(Tensor, self.mixup(self.projection(x_BHWC.permute(0, 3, 1, 2))))
