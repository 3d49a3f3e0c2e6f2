"""The layers of DPOT, in two and in three space dimensions.

Fourier attention (AFNO): Guibas et al., arXiv:2111.13587; blocks and time aggregation: Hao et al.,
arXiv:2403.03542. Layout: frames are `BC` and the grid's axes, x first, tokens `BD` and the
token grid's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pelagos.models.layers.precision import without_autocast

NORM_GROUPS = 8
CONVOLUTIONS: dict[int, type[nn.Conv2d] | type[nn.Conv3d]] = {2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED: dict[int, type[nn.ConvTranspose2d] | type[nn.ConvTranspose3d]] = {
    2: nn.ConvTranspose2d,
    3: nn.ConvTranspose3d,
}


class Sizes(Protocol):
    """The options of a configuration that the layers read."""

    @property
    def patch_size(self) -> int: ...
    @property
    def in_channels(self) -> int: ...
    @property
    def out_channels(self) -> int: ...
    @property
    def in_timesteps(self) -> int: ...
    @property
    def n_blocks(self) -> int: ...
    @property
    def embed_dim(self) -> int: ...
    @property
    def mlp_ratio(self) -> float: ...
    @property
    def lifts(self) -> bool: ...


class FourierMixer(nn.Module):
    """AFNO: a two-layer complex network, shared by all Fourier modes, added to its input.

    Channels are split into heads. GELU acts on real and imaginary parts separately. Weights are
    real tensors `[2 (real, imaginary), head, in, out]`. Everything is computed in fp32.

    In three dimensions the same weights extend the mixer along z: for a field that is constant
    there, they give the two-dimensional mixer's result for its slice. Three things ensure that.
    Modes are scaled by 1/√n along x and y, as in the published networks, but are means along z, so
    that those with wave number 0 along z are the slice's. Only these get the biases, lest the
    others, zero in such a field, start to wave. And the half of the modes that a real field's other
    half follows from is that with positive wave numbers along y, as in two dimensions: the network
    answers to conjugate modes with values that are not conjugate, so that the choice matters.

    The official three-dimensional code does none of the three (`lifts=False`): every mode is
    scaled by 1/√n along z too and gets the biases, and it is along z that modes are halved.
    """

    def __init__(self, width: int, heads: int, lifts: bool = True) -> None:
        super().__init__()
        self.lifts = lifts
        size = width // heads
        self.w1 = nn.Parameter(torch.empty(2, heads, size, size))
        self.b1 = nn.Parameter(torch.empty(2, heads, size))
        self.w2 = nn.Parameter(torch.empty(2, heads, size, size))
        self.b2 = nn.Parameter(torch.empty(2, heads, size))

    def forward(self, x_BD: Tensor) -> Tensor:
        """`[B, D, *grid]` to the same."""
        with without_autocast(x_BD):
            x = x_BD.float()
            lifted = x.ndim == 5 and self.lifts
            axes = (2, 4, 3) if lifted else tuple(range(2, x.ndim))  # the last one is halved
            series = torch.fft.rfftn(x, dim=axes, norm="ortho").movedim(1, -1)
            if lifted:
                series = series / x.shape[4] ** 0.5
            mixed = self._mix(series.unflatten(-1, self.b1.shape[1:]), lifted)
            if lifted:
                mixed = mixed * x.shape[4] ** 0.5
            series = mixed.flatten(-2).movedim(-1, 1)
            grid = [x.shape[axis] for axis in axes]
            waves: Tensor = torch.fft.irfftn(series, s=grid, dim=axes, norm="ortho")
            return (waves + x).to(x_BD.dtype)

    def _mix(self, series: Tensor, lifted: bool) -> Tensor:
        """`[B, *modes, head, channel]` to the same; `lifted`: of x, y and z."""
        heads_first = torch.view_as_real(series).flatten(-2).movedim(-2, 0)
        b1, b2 = (_interleaved(bias.float(), heads_first.ndim) for bias in (self.b1, self.b2))
        if lifted:
            mean_along_z = torch.zeros(series.shape[-3], 1, device=series.device)
            mean_along_z[0] = 1.0
            b1, b2 = b1 * mean_along_z, b2 * mean_along_z
        hidden = F.gelu(_per_head(heads_first, self.w1) + b1)
        mixed = _per_head(hidden, self.w2) + b2
        return torch.view_as_complex(mixed.reshape(*mixed.shape[:-1], -1, 2)).movedim(0, -2)


def _per_head(x: Tensor, weight: Tensor) -> Tensor:
    """`x + i y` times `weight[0] + i weight[1]`, a matrix per head, on `[head, ..., 2 in]`.

    Real and imaginary parts alternate, as complex numbers lie in memory, so that one real product
    does the work of four and their sums.
    """
    real, imaginary = weight.float()
    of_real = torch.stack((real, imaginary), dim=-1).flatten(-2)
    of_imaginary = torch.stack((-imaginary, real), dim=-1).flatten(-2)
    matrices = torch.stack((of_real, of_imaginary), dim=2).flatten(1, 2)
    product: Tensor = x.flatten(1, -2) @ matrices
    return product.reshape(*x.shape[:-1], -1)


def _interleaved(bias: Tensor, num_axes: int) -> Tensor:
    """`[2 (real, imaginary), head, out]` to `[head, 1, ..., 2 out]`, as `_per_head` lays out."""
    pairs = bias.movedim(0, -1).flatten(-2)
    return pairs.reshape(pairs.shape[0], *[1] * (num_axes - 2), pairs.shape[1])


class DPOTBlock(nn.Module):
    """`x + MLP(N(mixer(N(x))))`: one residual around both, group norms with eight groups."""

    def __init__(self, config: Sizes, num_dimensions: int) -> None:
        super().__init__()
        width, hidden = config.embed_dim, int(config.embed_dim * config.mlp_ratio)
        convolution = CONVOLUTIONS[num_dimensions]
        self.norm1 = nn.GroupNorm(NORM_GROUPS, width)
        self.filter = FourierMixer(width, config.n_blocks, config.lifts)
        self.norm2 = nn.GroupNorm(NORM_GROUPS, width)
        self.mlp = nn.Sequential(
            convolution(width, hidden, 1), nn.GELU(), convolution(hidden, width, 1)
        )

    def forward(self, x_BD: Tensor) -> Tensor:
        """`[B, D, *grid]` to the same."""
        return cast(Tensor, x_BD + self.mlp(self.norm2(self.filter(self.norm1(x_BD)))))


class _Widening2d(nn.Conv2d):
    """A 1×1 convolution to a token's channels, merged into the linear map that follows it.

    That map is shared by all tokens, and from few channels it costs far less than from many.
    """

    def forward(self, matrices_TDE: Tensor, position_D: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """The map from narrow channels `[T, N, E]`, and `position` with the bias added."""
        return _widen(self, matrices_TDE, position_D)


class _Widening3d(nn.Conv3d):
    """`_Widening2d` in three dimensions."""

    def forward(self, matrices_TDE: Tensor, position_D: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """The map from narrow channels `[T, N, E]`, and `position` with the bias added."""
        return _widen(self, matrices_TDE, position_D)


def _widen(
    layer: nn.Conv2d | nn.Conv3d, matrices_TDE: Tensor, position_D: Tensor
) -> tuple[Tensor, Tensor]:
    bias = cast(Tensor, layer.bias).reshape(-1, *[1] * (position_D.ndim - 2))
    return layer.weight.flatten(1).T @ matrices_TDE, position_D + bias


class PatchEmbedding(nn.Module):
    """Pixels and coordinates to narrow tokens, and the layer that widens them, under official names."""

    def __init__(self, config: Sizes, num_dimensions: int) -> None:
        super().__init__()
        patch = config.patch_size
        num_coordinates = num_dimensions + 1  # and time
        narrow = config.out_channels * patch + num_coordinates
        convolution = CONVOLUTIONS[num_dimensions]
        widening = _Widening2d if num_dimensions == 2 else _Widening3d
        self.proj = nn.Sequential(
            convolution(config.in_channels + num_coordinates, narrow, patch, stride=patch),
            nn.GELU(),
            widening(narrow, config.embed_dim, 1),
        )

    @property
    def widening(self) -> nn.Module:
        """The last layer, which `TimeAggregator` calls."""
        return self.proj[2]

    def forward(self, pixels_BC: Tensor) -> Tensor:
        """`[B, C, *grid]` to narrow tokens `[B, N, *token grid]`."""
        return cast(Tensor, self.proj[1](self.proj[0](pixels_BC)))


class TimeAggregator(nn.Module):
    """Frames to one: `Σ_t W_t (x_t cos(γ t))`, t from 0 to 1, of tokens x.

    The paper writes exp(-iγt); the published networks use the cosine alone.
    """

    def __init__(self, config: Sizes) -> None:
        super().__init__()
        width = config.embed_dim
        self.w = nn.Parameter(torch.empty(config.in_timesteps, width, width))
        self.gamma = nn.Parameter(torch.empty(1, width))

    def forward(self, narrow_BTN: Tensor, position_D: Tensor, widening: nn.Module) -> Tensor:
        """Narrow tokens `[B, T, N, *grid]` to `[B, D, *grid]`.

        Tokens are narrow ones widened by `widening`, plus `position [1, D, *grid]`; they are
        never made. Widening and aggregation are both linear, and their product, from N channels
        at once, takes a tenth of the work; positions are the same in every frame, so that they
        need the sum of the frames' matrices only.
        """
        time = torch.linspace(0, 1, narrow_BTN.shape[1], device=narrow_BTN.device)
        with without_autocast(narrow_BTN):  # γ reaches 1024: half precision would lose the phase
            waves = torch.cos(time[:, None] * self.gamma.float())
        matrices = waves.to(self.w.dtype)[:, :, None] * self.w
        merged_TND, position_D = widening(matrices, position_D)
        columns = narrow_BTN.flatten(3).permute(1, 2, 0, 3).flatten(2).flatten(0, 1)
        tokens_DB: Tensor = merged_TND.flatten(0, 1).T @ columns
        of_position: Tensor = matrices.sum(0).to(position_D.dtype).T @ position_D[0].flatten(1)
        grid = narrow_BTN.shape[3:]
        tokens = tokens_DB.reshape(-1, narrow_BTN.shape[0], *grid).movedim(1, 0)
        return tokens + of_position.reshape(-1, *grid)


def resize_linear(table: Tensor, grid: Sequence[int]) -> Tensor:
    """Interpolate `[1, D, *old]` to `[1, D, *grid]`, linearly between the cells' centres.

    An axis that keeps its size keeps its bits. Products with small matrices, whose gradient on a
    GPU is the same every time, as that of `F.interpolate` is not.
    """
    for axis, size in enumerate(grid, start=2):
        if table.shape[axis] != size:
            with without_autocast(table):
                weights = _linear_weights(table.shape[axis], size, table.device).to(table.dtype)
                table = (table.movedim(axis, -1) @ weights.T).movedim(-1, axis)
    return table


def _linear_weights(old: int, new: int, device: torch.device) -> Tensor:
    """`[new, old]`: the share of each old cell in each new one."""
    centre = (torch.arange(new, device=device) + 0.5) * (old / new) - 0.5
    centre = centre.clamp(0, old - 1)  # beyond the outermost centres, their values
    distance = (centre[:, None] - torch.arange(old, device=device)).abs()
    return (1.0 - distance).clamp_min(0.0)


def coordinates(x: Tensor) -> Tensor:
    """Of `x [B, *grid, T, C]` the places `[B, *grid, T, d + 1]`: grid and t, from 0 to 1."""
    axes = [torch.linspace(0, 1, size, device=x.device) for size in x.shape[1:-1]]
    places = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)
    return places.to(x.dtype).expand(x.shape[0], *places.shape)
