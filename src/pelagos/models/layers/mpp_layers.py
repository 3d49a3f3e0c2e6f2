"""The layers of MPP's axial vision transformer: norms over the grid, axial attention, edges.

Attention runs along time, and then along each axis of space with the same weights, the results
averaged; biases are T5's, by offset. McCabe et al., "Multiple physics pretraining for
spatiotemporal surrogate models", NeurIPS 2024, arXiv:2310.02994; the biases: Raffel et al.,
arXiv:1910.10683; the convolutional stem: Touvron et al., arXiv:2203.09795.

Tokens are `BTHWC` (`H` along x, `W` along y), frames in the stem and in the head `BCXY`.
Module names are the published checkpoints'.
"""

from __future__ import annotations

from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pelagos.models.layers.frame_layers import at_least_float32
from pelagos.models.layers.linear import Linear, linear
from pelagos.models.layers.precision import without_autocast
from pelagos.models.layers.tables import kept

Boundary = Literal["open", "periodic", "published-periodic"]
"""Whether opposite edges of the grid are neighbours.

The published networks, on periodic data, take of two images half a period away the one on the side
of the unwrapped offset (and misplace some on odd numbers of tokens), and so do not commute with
rolls. `published-periodic` does as they do, for their numbers; `periodic` commutes.
"""

NUM_BRANCHES = 3
"""Of one block: attention along time, attention along space, MLP."""

_NUM_BUCKETS = 32  # half for keys before the query, half for keys behind it
_NUM_EXACT = 8  # offsets with a bucket each; beyond, four buckets per octave up to 32 tokens
_RMS_EPS = 1e-8
_LAYER_SCALE_INIT = 1e-6
_ROUNDING = 1e-6  # of the mean, in fp32 with the sums of some layers
_LEAST_VARIANCE = 1e-20  # far below the square of the eps: only the square root's slope needs it


class GridRMSNorm(nn.Module):
    """Each channel divided by its deviation over the grid, times a scale; the mean stays.

    A deviation below a millionth of the mean is taken for rounding: a sample at rest, constant
    throughout, would otherwise grow by 1e8 in each norm, as it does in the official code.

    The published checkpoints carry a shift that their network never adds. It takes part with
    weight zero here, so that every parameter has a gradient, which data parallel reductions await.
    """

    def __init__(self, width: int, channels_last: bool) -> None:
        super().__init__()
        self.channels_last = channels_last
        self.weight = nn.Parameter(torch.empty(width))
        self.bias = nn.Parameter(torch.empty(width))

    def reset_parameters(self) -> None:
        """Scale 1, shift 0."""
        nn.init.ones_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        """`[..., H, W, C]`, or `[B, C, H, W]` without `channels_last`, to the same."""
        with without_autocast(x):
            scale = self.weight + 0.0 * self.bias
            axes = (-3, -2) if self.channels_last else (-2, -1)
            values = at_least_float32(x)
            variance, mean = torch.var_mean(values, axes, keepdim=True)
            floor = (_ROUNDING * mean.detach()).square().clamp_min(_LEAST_VARIANCE)
            variance = torch.maximum(variance, floor)
            scale = scale if self.channels_last else scale[:, None, None]
            return (values * (scale / (variance.sqrt() + _RMS_EPS))).to(x.dtype)


class GridNorm(nn.InstanceNorm2d):
    """Instance norm of tokens: each channel has mean 0 and deviation 1 over each frame's grid."""

    def __init__(self, width: int) -> None:
        super().__init__(width, affine=True)

    def forward(self, input: Tensor) -> Tensor:
        """`[..., H, W, C]` to the same."""
        with without_autocast(input):
            values = at_least_float32(input)
            variance, mean = torch.var_mean(values, (-3, -2), correction=0, keepdim=True)
            normal = (values - mean) * torch.rsqrt(variance + self.eps)
            return torch.addcmul(self.bias, normal, self.weight).to(input.dtype)


class Pointwise(nn.Conv2d):
    """A convolution with a 1×1 kernel, on tokens `[..., C]`."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, 1)

    def forward(self, input: Tensor) -> Tensor:
        return linear(input, self.weight.flatten(1), self.bias)


class _BucketTable(nn.Embedding):
    """One value per bucket and head, read through a matrix `[offsets, buckets]`.

    A product, not a gather: its gradient on a GPU is the same every time.
    """

    def forward(self, input: Tensor) -> Tensor:
        return input.to(self.weight.dtype) @ self.weight


class RelativePositionBias(nn.Module):
    """The bias of attention for the offset between two tokens of an axis, per head."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.relative_attention_bias = _BucketTable(_NUM_BUCKETS, heads)

    def forward(self, tokens: Tensor, axis: int, boundary: Boundary = "open") -> Tensor:
        """`[heads, n, n]` (query, key) for the n tokens along an axis of `tokens`."""
        length = tokens.shape[axis]
        shares = kept(bucket_shares, length, boundary, like=tokens)
        with without_autocast(tokens):  # half precision would round the table
            table = self.relative_attention_bias(shares).T
        # entry (s, k) of the sliding window is table[s + k]; reversing the queries makes it the
        # offset (key - query)
        return cast(Tensor, table.unfold(1, length, 1).flip(1))


def bucket_shares(length: int, boundary: Boundary, device: torch.device) -> Tensor:
    """`[2 length - 1, 32]`: which bucket each offset (key - query) takes its bias from.

    On a periodic axis, an offset is that to the key's nearest image; of two images half a period
    away, each has a half.
    """
    offset = torch.arange(1 - length, length, device=device)
    half = length // 2
    if boundary == "periodic":
        below = (offset + half) % length - half
        above = half - (half - offset) % length
        if length % 2:  # no offset is half of an odd period
            above = below
        return (_one_hot(_buckets(below)) + _one_hot(_buckets(above))) / 2
    if boundary == "published-periodic" and half:
        offset = torch.where(offset > half, offset % -half, offset)
        offset = torch.where(offset < -half, offset % half, offset)
    return _one_hot(_buckets(offset))


def _buckets(offset: Tensor) -> Tensor:
    distance = offset.abs()
    # 16 tokens start a bucket: rounding must not leave them below it; no other whole number is
    # nearer than 8e-3 to an edge
    octaves = torch.log2(distance.clamp_min(1) / _NUM_EXACT)
    far = (_NUM_EXACT + 4 * octaves + 1e-4).long().clamp_max(_NUM_BUCKETS // 2 - 1)
    return torch.where(distance < _NUM_EXACT, distance, far) + (offset > 0) * (_NUM_BUCKETS // 2)


def _one_hot(bucket: Tensor) -> Tensor:
    return (bucket[:, None] == torch.arange(_NUM_BUCKETS, device=bucket.device)).float()


class _AxisAttention(nn.Module):
    """Queries, keys and values under the official names; queries and keys are layer-normed."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.input_head = Pointwise(width, 3 * width)
        self.output_head = Pointwise(width, width)
        self.qnorm = nn.LayerNorm(width // heads)
        self.knorm = nn.LayerNorm(width // heads)
        self.rel_pos_bias = RelativePositionBias(heads)

    def project(self, x_BTHWC: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Three of `[B, T, H, W, heads, d]`."""
        parts = self.input_head(x_BTHWC).unflatten(-1, (self.heads, 3, -1))
        query, key, value = parts.unbind(-2)
        return self.qnorm(query), self.knorm(key), value


def _attend(parts: tuple[Tensor, Tensor, Tensor], bias: Tensor, axis: int) -> Tensor:
    """softmax(q kᵀ / √d + bias) v along one axis of `[B, T, H, W, heads, d]`."""
    dtype = parts[2].dtype  # of the values: norms have left queries and keys in fp32
    moved = [part.to(dtype).movedim(axis, 3).transpose(3, 4) for part in parts]
    query, key, value = (part.flatten(0, 2) for part in moved)  # [lines, heads, n, d]
    mask = bias.to(dtype)[None]
    attended = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    return attended.reshape(moved[2].shape).transpose(3, 4).movedim(3, axis).flatten(-2)


class TemporalAttention(_AxisAttention):
    """`x + γ O(N(attention along time of N(x)))`."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__(width, heads)
        self.norm1 = GridNorm(width)
        self.norm2 = GridNorm(width)
        self.gamma = nn.Parameter(torch.empty(width))

    def reset_parameters(self) -> None:
        """The layer scale: 1e-6."""
        nn.init.constant_(self.gamma, _LAYER_SCALE_INIT)

    def forward(self, x_BTHWC: Tensor, kept_BT: Tensor | None) -> Tensor:
        parts = self.project(self.norm1(x_BTHWC))
        attended = _attend(parts, self.rel_pos_bias(x_BTHWC, 1), axis=1)
        branch = self.output_head(self.norm2(attended))
        return torch.addcmul(x_BTHWC, _scaled(self.gamma, kept_BT), branch)


class SpatialAttention(_AxisAttention):
    """`x + γ O(N(mean of attention along x and y of N(x)))`, then `x + γ' N(MLP(x))`."""

    def __init__(self, width: int, heads: int, boundary: Boundary) -> None:
        super().__init__(width, heads)
        self.boundary: Boundary = boundary
        self.norm1 = GridRMSNorm(width, channels_last=True)
        self.norm2 = GridRMSNorm(width, channels_last=True)
        self.gamma_att = nn.Parameter(torch.empty(width))
        self.gamma_mlp = nn.Parameter(torch.empty(width))
        self.mlp = FeedForward(width)
        self.mlp_norm = GridRMSNorm(width, channels_last=True)

    def reset_parameters(self) -> None:
        """The layer scales: 1e-6."""
        nn.init.constant_(self.gamma_att, _LAYER_SCALE_INIT)
        nn.init.constant_(self.gamma_mlp, _LAYER_SCALE_INIT)

    def forward(self, x_BTHWC: Tensor, kept: tuple[Tensor | None, Tensor | None]) -> Tensor:
        parts = self.project(self.norm1(x_BTHWC))
        along_x, along_y = (
            _attend(parts, self.rel_pos_bias(x_BTHWC, axis, self.boundary), axis) for axis in (2, 3)
        )
        attended = self.output_head(self.norm2((along_x + along_y) / 2))
        x_BTHWC = torch.addcmul(x_BTHWC, _scaled(self.gamma_att, kept[0]), attended)
        branch = self.mlp_norm(self.mlp(x_BTHWC))
        return torch.addcmul(x_BTHWC, _scaled(self.gamma_mlp, kept[1]), branch)


def _scaled(gamma: Tensor, kept_BT: Tensor | None) -> Tensor:
    """A branch's scale `[C]`, or `[B, T, 1, 1, C]` where it is left out of some frames."""
    return gamma if kept_BT is None else kept_BT.to(gamma.dtype)[..., None, None, None] * gamma


class FeedForward(nn.Module):
    """Two linear layers, four times as wide in between."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = Linear(width, 4 * width)
        self.fc2 = Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.fc2(F.gelu(self.fc1(x))))


class SpaceTimeBlock(nn.Module):
    """Attention along time, then along the axes of space.

    Stochastic depth leaves each branch out of each frame of each sample on its own. The published
    code leaves attention along time out of a frame of all samples at once, which no sample's own
    seed can decide; of one sample, both are the same.
    """

    def __init__(self, width: int, heads: int, boundary: Boundary) -> None:
        super().__init__()
        self.temporal = TemporalAttention(width, heads)
        self.spatial = SpatialAttention(width, heads, boundary)

    def forward(self, x_BTHWC: Tensor, kept_BNT: Tensor | None = None) -> Tensor:
        """`[B, T, H, W, C]` to the same; factors of the branches `[B, branch, T]`, or None."""
        along_time, along_space, mlp = (None,) * 3 if kept_BNT is None else kept_BNT.unbind(1)
        x_BTHWC = self.temporal(x_BTHWC, along_time)
        return cast(Tensor, self.spatial(x_BTHWC, (along_space, mlp)))


class FieldProjection(nn.Module):
    """The columns of a linear layer that belong to the fields present, scaled to keep variance.

    `weight [width, vocabulary]`; `entries` are the fields' places in the vocabulary.
    """

    def __init__(self, vocabulary: int, width: int, entries: tuple[int, ...]) -> None:
        super().__init__()
        self.entries = entries
        self.weight = nn.Parameter(torch.empty(width, vocabulary))
        self.bias = nn.Parameter(torch.empty(width))

    def reset_parameters(self) -> None:
        """As a linear layer over the whole vocabulary."""
        bound = self.weight.shape[1] ** -0.5
        nn.init.uniform_(self.weight, -bound, bound)
        nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, fields: Tensor) -> Tensor:
        """`[..., C]` to `[..., width]`."""
        scale: float = (self.weight.shape[1] / len(self.entries)) ** 0.5
        weight = columns(self.weight, 1, self.entries)
        return linear(fields, weight, self.bias) * scale


def columns(table: Tensor, axis: int, entries: tuple[int, ...]) -> Tensor:
    """The entries of one axis, in their order; made of copies, for a repeatable gradient."""
    return torch.cat([table.narrow(axis, entry, 1) for entry in entries], axis)


class Stem(nn.Module):
    """Pixels to tokens: convolutions with strides 4, 2 and 2."""

    def __init__(self, width: int) -> None:
        super().__init__()
        narrow = width // 4
        self.in_proj = nn.Sequential(
            nn.Conv2d(narrow, narrow, 4, stride=4, bias=False),
            GridRMSNorm(narrow, channels_last=False),
            nn.GELU(),
            nn.Conv2d(narrow, narrow, 2, stride=2, bias=False),
            GridRMSNorm(narrow, channels_last=False),
            nn.GELU(),
            nn.Conv2d(narrow, width, 2, stride=2, bias=False),
            GridRMSNorm(width, channels_last=False),
        )

    def forward(self, pixels_BCXY: Tensor) -> Tensor:
        """`[B, width / 4, X, Y]` to `[B, width, X / 16, Y / 16]`."""
        return cast(Tensor, self.in_proj(pixels_BCXY))


class Head(nn.Module):
    """Tokens to pixels: transposed convolutions with strides 2, 2 and 4, the last one per field."""

    def __init__(self, vocabulary: int, width: int, entries: tuple[int, ...]) -> None:
        super().__init__()
        narrow = width // 4
        self.entries = entries
        self.out_proj = nn.Sequential(
            nn.ConvTranspose2d(width, narrow, 2, stride=2, bias=False),
            GridRMSNorm(narrow, channels_last=False),
            nn.GELU(),
            nn.ConvTranspose2d(narrow, narrow, 2, stride=2, bias=False),
            GridRMSNorm(narrow, channels_last=False),
            nn.GELU(),
        )
        self.out_kernel = nn.Parameter(torch.empty(narrow, vocabulary, 4, 4))
        self.out_bias = nn.Parameter(torch.empty(vocabulary))

    def reset_parameters(self) -> None:
        """As a transposed convolution to the whole vocabulary."""
        bound = self.out_kernel[0].numel() ** -0.5
        nn.init.uniform_(self.out_kernel, -bound, bound)
        nn.init.uniform_(self.out_bias, -bound, bound)

    def forward(self, tokens_BCHW: Tensor) -> Tensor:
        """`[B, width, H, W]` to `[B, C, 16 H, 16 W]`."""
        kernel = columns(self.out_kernel, 1, self.entries)
        bias = columns(self.out_bias, 0, self.entries)
        return F.conv_transpose2d(self.out_proj(tokens_BCHW), kernel, bias, stride=4)
