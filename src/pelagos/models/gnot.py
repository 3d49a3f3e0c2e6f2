"""GNOT: a transformer from points to points, on any mesh.

Query points gather the values of input points by normalised linear attention, then exchange them among
themselves; behind each, a few experts, small networks weighted by where the point is: a soft
decomposition of the domain. Hao et al., "GNOT: A general neural operator transformer for operator
learning", ICML 2023, arXiv:2302.14376; here with one input function, coordinates also as sines and
cosines, and the lead time among the features of every point.

The answer at a query follows the query wherever it is in the list and does not depend on the
order of the input points; points marked as padding change nothing. Layout: points `[B, N, axis]`,
features `BND` at input points and `BMD` at queries. Single-device code.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from pelagos.models.checks import fail_on, lists_to_tuples, nearest_multiples, not_whole
from pelagos.models.family import Family, FrameOutput, Options, Size
from pelagos.models.layers.linear import Linear
from pelagos.models.layers.precision import without_autocast
from pelagos.models.pretrained import Pretrained

__all__ = ["FAMILY", "GNOT", "GNOTConfig", "NormalizedAttention", "grid_points"]

# At torch's own scale, softmaxes over features are almost flat: attention gives every point nearly
# the same mean (its spread over points is 2 % of its size), queries and keys get gradients 30 times
# smaller than values, and the loss stays constant for some 100 steps.
_SHARPNESS = 4.0


@dataclass(frozen=True)
class GNOTConfig(Options):
    """Sizes of one GNOT.

    `num_dimensions` of the coordinates, each best within [0, 1]; they enter with their sines and
    cosines at `num_frequencies` octaves. `image_size` is the side of the grids that examples
    have: the network takes any points.

    Raises ValueError, naming the arithmetic and the nearest choice, for sizes that do not fit.
    """

    image_size: int = 64
    num_dimensions: int = 2
    in_channels: int = 4
    out_channels: int = 4
    embed_dim: int = 192
    depth: int = 6
    num_heads: int = 8
    num_experts: int = 3
    num_frequencies: int = 6
    mlp_ratio: float = 2.0

    def __post_init__(self) -> None:
        lists_to_tuples(self)
        fail_on(not_whole(self) or self._misfits(), "GNOT config")

    @property
    def num_features(self) -> int:
        """Numbers that say where and when a point is: coordinates, their waves, the lead time."""
        return self.num_dimensions * (1 + 2 * self.num_frequencies) + 1

    def _misfits(self) -> list[str]:
        problems = []
        if self.num_dimensions > 3:
            problems.append(f"num_dimensions={self.num_dimensions} must be 1, 2 or 3")
        if self.embed_dim % self.num_heads:
            problems.append(
                f"embed_dim={self.embed_dim} must be a multiple of num_heads={self.num_heads}: "
                f"{nearest_multiples(self.embed_dim, self.num_heads)}"
            )
        if int(self.embed_dim * self.mlp_ratio) < 1:
            problems.append(f"mlp_ratio={self.mlp_ratio} leaves no hidden channel")
        return problems


def network(width_in: int, hidden: int, width: int) -> nn.Sequential:
    """Two linear layers with GELU between them."""
    return nn.Sequential(Linear(width_in, hidden), nn.GELU(), Linear(hidden, width))


class Features(Linear):
    """A linear layer before a softmax, initialised `_SHARPNESS` times as large as torch's."""

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Torch's own way; weights of deviation 1 / sqrt(3 width) times `_SHARPNESS`."""
        super().reset_parameters()
        self.weight.mul_(_SHARPNESS)


class NormalizedAttention(nn.Module):
    """Linear attention: `z = Σₙ (q̃ · k̃ₙ) vₙ / Σₙ q̃ · k̃ₙ`, with q̃ and k̃ softmaxes over features.

    All weights are positive and add up to 1, as in the softmax attention that it replaces (for
    which torch has kernels, and which costs M N), yet Σ k̃ₙ ⊗ vₙ is formed once: M + N. Sums over
    points are fp32. (The published code adds q̃ to z. Without, the heat equation was learnt sooner.)
    """

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.query = Features(width, width)
        self.key = Features(width, width)
        self.value = Linear(width, width)
        self.projection = Linear(width, width)

    def forward(self, x_BMD: Tensor, source_BND: Tensor, valid_BN: Tensor | None) -> Tensor:
        """`[B, M, D]`: for each of `x`, the mean of the values of the valid ones of `source`."""
        query, key, value = (
            layer(points).float().unflatten(-1, (self.num_heads, -1))
            for layer, points in (
                (self.query, x_BMD),
                (self.key, source_BND),
                (self.value, source_BND),
            )
        )
        query, key = query.softmax(dim=-1), key.softmax(dim=-1)
        if valid_BN is not None:
            key = key.masked_fill(~valid_BN[:, :, None, None], 0.0)
        with without_autocast(x_BMD):
            total = key.sum(dim=1)
            share = torch.einsum("bmhd,bhd->bmh", query, total)[..., None]
            moments = torch.einsum("bnhd,bnhe->bhde", key, value)
            mixed = torch.einsum("bmhd,bhde->bmhe", query, moments) / share
        return cast(Tensor, self.projection(mixed.flatten(2).to(x_BMD.dtype)))


class Experts(nn.Module):
    """Several networks, averaged with weights that depend on where the point is."""

    def __init__(self, config: GNOTConfig) -> None:
        super().__init__()
        width, hidden = config.embed_dim, int(config.embed_dim * config.mlp_ratio)
        self.experts = nn.ModuleList(
            network(width, hidden, width) for _ in range(config.num_experts)
        )

    def forward(self, x_BMD: Tensor, weights_BME: Tensor) -> Tensor:
        answers = [
            expert(x_BMD) * weights_BME[..., i, None] for i, expert in enumerate(self.experts)
        ]
        return torch.stack(answers).sum(dim=0)


class GNOTBlock(nn.Module):
    """Attention to the input points, experts, attention among the queries, experts; pre-norm."""

    def __init__(self, config: GNOTConfig) -> None:
        super().__init__()
        width, heads = config.embed_dim, config.num_heads
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(5))
        self.gather = NormalizedAttention(width, heads)
        self.exchange = NormalizedAttention(width, heads)
        self.experts1 = Experts(config)
        self.experts2 = Experts(config)

    def forward(
        self,
        x_BMD: Tensor,
        source_BND: Tensor,
        weights_BME: Tensor,
        valid_BN: Tensor | None,
        valid_BM: Tensor | None,
    ) -> Tensor:
        """Features at queries `[B, M, D]` to the same."""
        before, source, gate1, among, gate2 = self.norms
        x_BMD = x_BMD + self.gather(before(x_BMD), source(source_BND), valid_BN)
        x_BMD = x_BMD + self.experts1(gate1(x_BMD), weights_BME)
        queries = among(x_BMD)
        x_BMD = x_BMD + self.exchange(queries, queries, valid_BM)
        return cast(Tensor, x_BMD + self.experts2(gate2(x_BMD), weights_BME))


class GNOT(Pretrained):
    """The network: a function given at points, and a lead time, to its later values at queries.

    Initialised torch's own way, but for queries and keys (`Features`).
    """

    model_types = ("gnot",)
    config_class = GNOTConfig
    config: GNOTConfig

    def __init__(self, config: GNOTConfig) -> None:
        super().__init__()
        self.config = config
        width, features = config.embed_dim, config.num_features
        device = torch.get_default_device()
        with torch.device("meta"):  # modules' own initialisation would only be overwritten
            self.source = network(features + config.in_channels, width, width)
            self.queries = network(features, width, width)
            self.gate = network(features, width, config.num_experts)
            self.layers = nn.ModuleList(GNOTBlock(config) for _ in range(config.depth))
            self.norm = nn.LayerNorm(width)
            self.readout = network(width, width, config.out_channels)
        self.materialize(device)

    def forward(self, frame: Tensor, time: Tensor) -> FrameOutput:
        """Forecast a gridded `frame [B, C, *grid]` a lead `time [B]` ahead, on its own points.

        Every axis runs from 0 to 1. Raises ValueError for a shape that does not fit.
        """
        config, shape = self.config, tuple(frame.shape)
        if len(shape) != config.num_dimensions + 2 or shape[1] != config.in_channels:
            raise ValueError(
                f"GNOT got a frame of shape {shape}, needs [batch, {config.in_channels}, *grid] "
                f"with {config.num_dimensions} axes: in_channels={config.in_channels}, "
                f"num_dimensions={config.num_dimensions}"
            )
        points = grid_points(shape[2:], frame).expand(shape[0], -1, -1)
        values = frame.flatten(2).transpose(1, 2)
        answer = self.forward_points(points, values, points, time)
        return FrameOutput(
            answer.transpose(1, 2).reshape(shape[0], config.out_channels, *shape[2:])
        )

    def forward_points(
        self,
        points: Tensor,
        values: Tensor,
        queries: Tensor,
        time: Tensor,
        valid: Tensor | None = None,
        valid_queries: Tensor | None = None,
    ) -> Tensor:
        """The answer `[B, M, C_out]` at `queries [B, M, axis]`, a lead `time [B]` ahead.

        `values [B, N, C]` are given at `points [B, N, axis]`. `valid [B, N]` is False for
        points that only pad a sample to the length of others, `valid_queries [B, M]` likewise;
        every sample needs a valid one of each. Raises ValueError for shapes that do not fit.
        """
        self._check(points, values, queries, time, valid, valid_queries)
        # padding may hold infinities, and 0 times those is not 0
        points, values = _zero_padding(points, valid), _zero_padding(values, valid)
        queries = _zero_padding(queries, valid_queries)
        here, there = self._features(points, time), self._features(queries, time)
        source = self.source(torch.cat((here, values), dim=-1))
        x_BMD = self.queries(there)
        weights = self.gate(there).softmax(dim=-1).to(x_BMD.dtype)
        for layer in self.layers:
            x_BMD = layer(x_BMD, source, weights, valid, valid_queries)
        return cast(Tensor, self.readout(self.norm(x_BMD))).to(values.dtype)

    def blocks(self) -> list[nn.Module]:
        """Repeated blocks to wrap, compile or checkpoint."""
        return list(self.layers)

    def _features(self, points: Tensor, time: Tensor) -> Tensor:
        octaves = torch.arange(self.config.num_frequencies, device=points.device)
        angles = (points.float()[..., None] * (math.pi * 2.0**octaves)).flatten(-2)
        waves = (angles.sin().to(points.dtype), angles.cos().to(points.dtype))
        lead = time.to(points.dtype)[:, None, None].expand(*points.shape[:2], 1)
        return torch.cat((points, *waves, lead), dim=-1)

    def _check(
        self,
        points: Tensor,
        values: Tensor,
        queries: Tensor,
        time: Tensor,
        valid: Tensor | None,
        valid_queries: Tensor | None,
    ) -> None:
        config = self.config
        batch, number = points.shape[0], points.shape[1]
        needed = {
            "points": (points, (batch, number, config.num_dimensions)),
            "values": (values, (batch, number, config.in_channels)),
            "queries": (queries, (batch, *queries.shape[1:2], config.num_dimensions)),
            "time": (time, (batch,)),
            "valid": (valid, (batch, number)),
            "valid_queries": (valid_queries, (batch, *queries.shape[1:2])),
        }
        fail_on(
            [
                f"{name} of shape {tuple(tensor.shape)}, needs {shape}"
                for name, (tensor, shape) in needed.items()
                if tensor is not None and tuple(tensor.shape) != shape
            ],
            f"GNOT (in_channels={config.in_channels}, num_dimensions={config.num_dimensions}) got",
        )


def _zero_padding(values: Tensor, valid: Tensor | None) -> Tensor:
    return values if valid is None else values.masked_fill(~valid[..., None], 0.0)


def grid_points(grid: tuple[int, ...], like: Tensor) -> Tensor:
    """`[1, N, axis]`: coordinates of a grid's points, each axis from 0 to 1, the last fastest."""
    axes = [torch.linspace(0, 1, n, device=like.device) for n in grid]
    return (
        torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)
        .flatten(0, -2)[None]
        .to(like.dtype)
    )


_NANO: dict[str, Any] = {
    "image_size": 32,
    "embed_dim": 48,
    "depth": 2,
    "num_heads": 4,
    "num_experts": 2,
    "num_frequencies": 4,
}


def _example(config: GNOTConfig, batch_size: int) -> tuple[Tensor, ...]:
    grid = (config.image_size,) * config.num_dimensions
    return torch.zeros(batch_size, config.in_channels, *grid), torch.ones(batch_size)


FAMILY = Family(
    name="gnot",
    model=GNOT,
    paper="Hao et al., ICML 2023, arXiv:2302.14376",
    inputs="one frame [batch, field, y, x] of any grid and a lead time; or values at any points, to "
    "any others (forward_points)",
    call="frame",
    example=_example,
    sizes=(
        Size("nano", 123_990, _NANO),
        Size("base", 7_249_159, {}),
    ),
)
