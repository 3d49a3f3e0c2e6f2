"""SimVP: several frames to the next ones, by convolutions alone.

An encoder shrinks each frame; the translator mixes all frames' channels, stacked, by gated spatial
attention over large neighbourhoods; a decoder grows each predicted frame, with a skip connection
from the encoder's first layer. Tan et al., "SimVP: Towards simple yet powerful spatiotemporal
predictive learning", arXiv:2211.12509, its second version (gSTA).

Where the paper predicts as many frames as it sees, with each frame's own skip, here the number is
free and the skip is that of the last frame, the nearest to all that follow; and norms over groups
replace those over batches, which would make samples and ranks depend on each other.

Layout: input and prediction are `[B, X, Y, T, C]`; features are `BCXY`, frames among the batch
in encoder and decoder and among the channels in the translator. Single-device code.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from pelagos.models.checks import (
    fail_on,
    lists_to_tuples,
    nearest_multiples,
    not_whole,
    wrong_frames,
)
from pelagos.models.family import Family, Options, Size
from pelagos.models.pretrained import Pretrained

__all__ = ["FAMILY", "SimVP", "SimVPConfig"]

_NORM_GROUPS = 2
_LAYER_SCALE_INIT = 1e-2
_NEAR = 5  # kernel of the first depthwise convolution
_DILATION = 3  # of the second


@dataclass(frozen=True)
class SimVPConfig(Options):
    """Sizes of one SimVP.

    `spatial_dim` channels in `spatial_depth` layers of encoder and decoder, every second of
    which halves or doubles the grid; `translator_dim` channels in `translator_depth` blocks of
    the translator, whose attention reaches over `kernel_size` tokens. `img_size` is the side of
    the grids that examples have: the network takes any that the stride divides.

    Raises ValueError, naming the arithmetic and the nearest choice, for sizes that do not fit.
    """

    img_size: int = 128
    in_channels: int = 4
    out_channels: int = 4
    in_timesteps: int = 10
    out_timesteps: int = 1
    spatial_dim: int = 64
    spatial_depth: int = 4
    translator_dim: int = 512
    translator_depth: int = 8
    kernel_size: int = 21
    mlp_ratio: float = 4.0

    def __post_init__(self) -> None:
        lists_to_tuples(self)
        fail_on(not_whole(self) or self._misfits(), "SimVP config")

    @property
    def total_stride(self) -> int:
        """Pixels along one axis per token of the translator."""
        return int(2 ** (self.spatial_depth // 2))

    def _misfits(self) -> list[str]:
        problems = [
            f"{name}={size} must be a multiple of {divisor} ({what}): "
            f"{nearest_multiples(size, divisor)}"
            for name, size, divisor, what in (
                ("img_size", self.img_size, self.total_stride, "2**(spatial_depth // 2)"),
                ("spatial_dim", self.spatial_dim, _NORM_GROUPS, "norm groups"),
            )
            if size % divisor
        ]
        if self.kernel_size < _DILATION:
            problems.append(f"kernel_size={self.kernel_size} must be at least {_DILATION}")
        if int(self.translator_dim * self.mlp_ratio) < 1:
            problems.append(f"mlp_ratio={self.mlp_ratio} leaves no hidden channel")
        return problems


class SpatialLayer(nn.Module):
    """Convolution of kernel 3, group norm, SiLU; with `change` to half or twice the grid."""

    def __init__(self, width_in: int, width: int, change: str = "none") -> None:
        super().__init__()
        grown = 4 * width if change == "double" else width
        stride = 2 if change == "halve" else 1
        self.convolution = nn.Conv2d(width_in, grown, 3, stride=stride, padding=1)
        self.shuffle = nn.PixelShuffle(2) if change == "double" else nn.Identity()
        self.norm = nn.GroupNorm(_NORM_GROUPS, width)

    def forward(self, x_BCXY: Tensor) -> Tensor:
        return nn.functional.silu(self.norm(self.shuffle(self.convolution(x_BCXY))))


class GatedAttention(nn.Module):
    """`σ(g) f`, both of a large neighbourhood: depthwise, dilated depthwise, then pointwise."""

    def __init__(self, width: int, kernel_size: int) -> None:
        super().__init__()
        far = 2 * (kernel_size // _DILATION // 2) + 1
        reach = (far - 1) * _DILATION // 2
        self.enter = nn.Sequential(nn.Conv2d(width, width, 1), nn.GELU())
        self.neighbourhood = nn.Sequential(
            nn.Conv2d(width, width, _NEAR, padding=_NEAR // 2, groups=width),
            nn.Conv2d(width, width, far, padding=reach, dilation=_DILATION, groups=width),
            nn.Conv2d(width, 2 * width, 1),
        )
        self.leave = nn.Conv2d(width, width, 1)

    def forward(self, x_BCXY: Tensor) -> Tensor:
        features, gate = self.neighbourhood(self.enter(x_BCXY)).chunk(2, dim=1)
        return cast(Tensor, self.leave(torch.sigmoid(gate) * features)) + x_BCXY


class TranslatorBlock(nn.Module):
    """`x + s₁ attention(N(x))`, then `x + s₂ MLP(N(x))`; the MLP has a depthwise convolution."""

    def __init__(self, width: int, config: SimVPConfig) -> None:
        super().__init__()
        hidden = int(width * config.mlp_ratio)
        self.norm1 = nn.GroupNorm(1, width)
        self.attention = GatedAttention(width, config.kernel_size)
        self.norm2 = nn.GroupNorm(1, width)
        self.mlp = nn.Sequential(
            nn.Conv2d(width, hidden, 1),
            nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden),
            nn.GELU(),
            nn.Conv2d(hidden, width, 1),
        )
        self.scale1 = nn.Parameter(torch.empty(width, 1, 1))
        self.scale2 = nn.Parameter(torch.empty(width, 1, 1))

    def reset_parameters(self) -> None:
        """Both scales 0.01: a fresh block is close to the identity."""
        nn.init.constant_(self.scale1, _LAYER_SCALE_INIT)
        nn.init.constant_(self.scale2, _LAYER_SCALE_INIT)

    def forward(self, x_BCXY: Tensor) -> Tensor:
        x_BCXY = x_BCXY + self.scale1.to(x_BCXY.dtype) * self.attention(self.norm1(x_BCXY))
        return x_BCXY + self.scale2.to(x_BCXY.dtype) * cast(Tensor, self.mlp(self.norm2(x_BCXY)))


class SimVP(Pretrained):
    """The SimVP network: `in_timesteps` frames to the next `out_timesteps`.

    Initialised torch's own way, scales of the translator's branches at 0.01.
    """

    model_types = ("simvp",)
    config_class = SimVPConfig
    config: SimVPConfig

    def __init__(self, config: SimVPConfig) -> None:
        super().__init__()
        self.config = config
        width, depth, inner = config.spatial_dim, config.spatial_depth, config.translator_dim
        halving = [bool(i % 2) for i in range(depth)]
        device = torch.get_default_device()
        with torch.device("meta"):  # modules' own initialisation would only be overwritten
            self.encoder = nn.ModuleList(
                SpatialLayer(width if i else config.in_channels, width, "halve" if h else "none")
                for i, h in enumerate(halving)
            )
            self.enter = nn.Conv2d(config.in_timesteps * width, inner, 1)
            self.translator = nn.ModuleList(
                TranslatorBlock(inner, config) for _ in range(config.translator_depth)
            )
            self.leave = nn.Conv2d(inner, config.out_timesteps * width, 1)
            self.decoder = nn.ModuleList(
                SpatialLayer(width, width, "double" if h else "none") for h in reversed(halving)
            )
            self.readout = nn.Conv2d(width, config.out_channels, 1)
        self.materialize(device)

    def forward(self, x: Tensor) -> tuple[Tensor]:
        """Predict the frames after `x [B, X, Y, T, C]`: `([B, X, Y, T_out, C_out],)`.

        Raises ValueError for frames or channels other than configured, and for a grid that the
        stride does not divide.
        """
        self._check(x)
        config = self.config
        frames = x.permute(0, 3, 4, 1, 2)
        features, skip = frames.flatten(0, 1), frames
        for depth, layer in enumerate(self.encoder):
            features = layer(features)
            if depth == 0:
                skip = features.unflatten(0, (len(x), config.in_timesteps))[:, -1:]
        stacked = self.enter(features.reshape(len(x), -1, *features.shape[2:]))
        for block in self.translator:
            stacked = block(stacked)
        stacked = self.leave(stacked)
        features = stacked.reshape(-1, config.spatial_dim, *stacked.shape[2:])
        for layer in self.decoder[:-1]:
            features = layer(features)
        skip = skip.expand(-1, config.out_timesteps, -1, -1, -1).flatten(0, 1)
        prediction = self.readout(self.decoder[-1](features + skip))
        prediction = prediction.unflatten(0, (len(x), config.out_timesteps))
        return (prediction.permute(0, 3, 4, 1, 2).to(x.dtype),)

    def no_weight_decay(self) -> set[str]:
        """Names of parameters without weight decay: biases, norms, scales of branches."""
        scales = (".scale1", ".scale2")
        return super().no_weight_decay() | {
            name for name, _ in self.named_parameters() if name.endswith(scales)
        }

    def blocks(self) -> list[nn.Module]:
        """Repeated blocks to wrap, compile or checkpoint, each called as `block(x)`."""
        return [*self.encoder, *self.translator, *self.decoder]

    def _check(self, x: Tensor) -> None:
        config, shape = self.config, tuple(x.shape)
        if len(shape) != 5 or shape[3:] != (config.in_timesteps, config.in_channels):
            raise ValueError(
                f"SimVP got x of shape {shape}, needs [batch, X, Y, T, C] = [batch, X, Y, "
                f"{config.in_timesteps}, {config.in_channels}]: "
                f"in_timesteps={config.in_timesteps}, in_channels={config.in_channels}"
                + (wrong_frames(shape[3], config.in_timesteps) if len(shape) == 5 else "")
            )
        stride = config.total_stride
        fail_on(
            [
                f"{axis}={n} is not a multiple of {stride}; nearest: {nearest_multiples(n, stride)}"
                for axis, n in zip("XY", shape[1:3], strict=True)
                if n % stride
            ],
            f"SimVP got a grid of {shape[1:3]}; its stride is "
            f"2**(spatial_depth({config.spatial_depth}) // 2) = {stride}",
        )


_NANO: dict[str, Any] = {
    "img_size": 64,
    "spatial_dim": 16,
    "translator_dim": 64,
    "translator_depth": 2,
    "kernel_size": 9,
}


def _example(config: SimVPConfig, batch_size: int) -> tuple[Tensor, ...]:
    side = config.img_size
    return (torch.zeros(batch_size, side, side, config.in_timesteps, config.in_channels),)


FAMILY = Family(
    name="simvp",
    model=SimVP,
    paper="Tan et al., 2022, arXiv:2211.12509",
    inputs="10 equally spaced frames [batch, x, y, time, field]; every axis a multiple of 4",
    call="window",
    example=_example,
    sizes=(
        Size("nano", 152_372, _NANO),
        Size("base", 26_547_140, {}),
    ),
)
