"""MgNO: a multigrid neural operator, from one frame to a later one.

Each layer is `GELU(W u + B u)`, where `W`, linear, is one V-cycle of multigrid with learned
convolutions for its stencils and `B` is pointwise. He, Liu & Xu, "MgNO: Efficient parameterization
of linear operators via multigrid", ICLR 2024, arXiv:2310.19809. Nothing lifts the fields first: the
first layer goes from them to `width` channels.

The padding of the convolutions alone imposes the boundary condition, on every level: circular for
periodic fields, zeros for u = 0 a spacing beyond the grid (Dirichlet), the mirror image for a
vanishing normal derivative at its outermost points (Neumann). Here each layer is also scaled and
shifted by the lead time. Layout: `[B, C, H, W]` throughout. Single-device code.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pelagos.models.checks import not_one_of, not_whole_numbers
from pelagos.models.family import Family, FrameOutput, Options, Size
from pelagos.models.layers.frame_layers import (
    BoundaryConv2d,
    Edges,
    GridRule,
    LeadTimeEmbedding,
    ScaleShift,
    check_frame,
)
from pelagos.models.pretrained import Pretrained

__all__ = ["FAMILY", "MgNO", "MgNOConfig"]

Boundary = Literal["periodic", "dirichlet", "neumann"]

_EDGES: dict[str, Edges] = {"periodic": "periodic", "dirichlet": "zeros", "neumann": "reflect"}


@dataclass(frozen=True)
class MgNOConfig(Options):
    """Sizes and options of one MgNO.

    `num_levels`: grids of the V-cycle, each with half the points of the one before on an axis;
    `num_steps`: smoothing steps on a level, on the way down and again on the way up;
    `num_coarsest_steps`: on the coarsest level; `boundary`: the boundary condition.

    Raises ValueError listing every option that does not fit.
    """

    in_channels: int = 4
    out_channels: int = 4
    width: int = 48
    num_layers: int = 6
    num_levels: int = 5
    num_steps: int = 1
    num_coarsest_steps: int = 2
    boundary: Boundary = "periodic"

    def __post_init__(self) -> None:
        counts = ("in_channels", "out_channels", "width", "num_layers", "num_levels", "num_steps")
        problems = not_whole_numbers(self, (*counts, "num_coarsest_steps"))
        problems += not_one_of("boundary", self.boundary, _EDGES)
        if problems:
            raise ValueError("MgNOConfig: " + "; ".join(problems))

    @property
    def stride(self) -> int:
        """Points of the grid to one of the coarsest."""
        return int(2 ** (self.num_levels - 1))

    @property
    def grid_rule(self) -> GridRule:
        """Which grids fit: a periodic one must halve exactly; a mirror needs two points."""
        stride = self.stride
        reason = f"2 ** (num_levels({self.num_levels}) - 1) = {stride}"
        if self.boundary == "periodic":
            return GridRule(2, stride, stride, reason)
        least = stride + 1
        return GridRule(2, 1, least, f"{reason}, plus 1 for two points of the coarsest grid")


class Level(nn.Module):
    """The stencils of one grid: `A` of the equation `A u = f` and the smoothers of each step."""

    def __init__(self, config: MgNOConfig, inputs: int, outputs: int, level: int) -> None:
        super().__init__()
        edges = _EDGES[config.boundary]
        coarsest = level == config.num_levels - 1
        steps = config.num_coarsest_steps if coarsest else config.num_steps
        # u = 0 at first, so that a single step on the coarsest grid has no use for A
        self.operator = (
            None if coarsest and steps == 1 else BoundaryConv2d(outputs, inputs, edges, bias=False)
        )
        self.before = _smoothers(steps, inputs, outputs, edges)
        self.after = _smoothers(0 if coarsest else steps, inputs, outputs, edges)

    def smooth(self, right: Tensor, u: Tensor | None, *, after: bool) -> Tensor:
        """`u + S (f - A u)`, once for each smoother `S`; None means u = 0."""
        for smoother in self.after if after else self.before:
            u = smoother(right) if u is None else u + smoother(self.residual(right, u))
        assert u is not None
        return u

    def residual(self, right: Tensor, u: Tensor) -> Tensor:
        """`f - A u`."""
        assert self.operator is not None
        return right - cast(Tensor, self.operator(u))


class VCycle(nn.Module):
    """One V-cycle from u = 0 for the right side `f`: a linear operator `f -> u`.

    Down: smooth, restrict the residual by a convolution of stride 2. Up: add the correction,
    spread over the finer grid and convolved (a transposed convolution), and smooth again.
    """

    def __init__(self, config: MgNOConfig, inputs: int, outputs: int) -> None:
        super().__init__()
        edges, finer = _EDGES[config.boundary], range(config.num_levels - 1)
        self.levels = nn.ModuleList(
            Level(config, inputs, outputs, level) for level in range(config.num_levels)
        )
        self.restrict = nn.ModuleList(
            BoundaryConv2d(inputs, inputs, edges, stride=2, bias=False) for _ in finer
        )
        self.prolong = nn.ModuleList(
            BoundaryConv2d(outputs, outputs, edges, bias=False) for _ in finer
        )

    def forward(self, right: Tensor) -> Tensor:
        """`[B, inputs, H, W]` to `[B, outputs, H, W]`."""
        levels = [cast(Level, level) for level in self.levels]
        rights, solutions = [right], [levels[0].smooth(right, None, after=False)]
        for level, finer, restrict in zip(levels[1:], levels, self.restrict, strict=False):
            rights.append(restrict(finer.residual(rights[-1], solutions[-1])))
            solutions.append(level.smooth(rights[-1], None, after=False))
        u = solutions.pop()
        for index in reversed(range(len(solutions))):
            fine = solutions[index]
            u = fine + self.prolong[index](spread(u, fine.shape[-2], fine.shape[-1]))
            u = levels[index].smooth(rights[index], u, after=True)
        return u


def spread(coarse: Tensor, rows: int, columns: int) -> Tensor:
    """Each point to every second point of `[B, C, rows, columns]`, zeros between."""
    zeros = torch.zeros_like(coarse)
    wide = torch.stack((coarse, zeros), dim=-1).flatten(-2)
    fine = torch.stack((wide, torch.zeros_like(wide)), dim=-2).flatten(-3, -2)
    return fine[..., :rows, :columns]


def _smoothers(steps: int, inputs: int, outputs: int, edges: Edges) -> nn.ModuleList:
    return nn.ModuleList(BoundaryConv2d(inputs, outputs, edges, bias=False) for _ in range(steps))


class MgNOLayer(nn.Module):
    """`GELU((W u + B u + b) (1 + scale) + shift)`: V-cycle, pointwise map, lead time."""

    def __init__(self, config: MgNOConfig, inputs: int) -> None:
        super().__init__()
        self.cycle = VCycle(config, inputs, config.width)
        self.pointwise = nn.Conv2d(inputs, config.width, 1)
        self.scale_shift = ScaleShift(config.width, config.width)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """`[B, inputs, H, W]` to `[B, width, H, W]`."""
        return F.gelu(self.scale_shift(self.cycle(x) + self.pointwise(x), embedding))


class MgNO(Pretrained):
    """The MgNO: one frame and a lead time to the frame that much later.

    Rectangular grids: periodic ones with sides that are multiples of `config.stride`, others of
    any side above it.
    """

    model_types = ("mgno",)
    config_class = MgNOConfig
    config: MgNOConfig

    def __init__(self, config: MgNOConfig) -> None:
        super().__init__()
        self.config = config
        device = torch.get_default_device()
        with torch.device("meta"):  # modules' own initialisation would only be overwritten
            self.lead_time = LeadTimeEmbedding(config.width)
            self.layers = nn.ModuleList(
                MgNOLayer(config, config.width if layer else config.in_channels)
                for layer in range(config.num_layers)
            )
            self.project = nn.Conv2d(config.width, config.out_channels, 1)
        self.materialize(device)

    def forward(self, frame: Tensor, time: Tensor) -> FrameOutput:
        """Predict `[B, C_out, H, W]`, a lead time `time [B]` after `frame [B, C, H, W]`.

        Raises ValueError for a shape that does not fit the configuration.
        """
        check_frame("MgNO", frame, time, self.config.in_channels, self.config.grid_rule)
        x, embedding = frame, self.lead_time(time)
        for layer in self.layers:
            x = layer(x, embedding)
        return FrameOutput(self.project(x).to(frame.dtype))

    def blocks(self) -> list[nn.Module]:
        """Repeated blocks to wrap, compile or checkpoint, each called as `block(x, embedding)`."""
        return list(self.layers)


def _example(config: MgNOConfig, batch_size: int) -> tuple[Tensor, ...]:
    side = max(32, 2 * config.stride)
    return torch.zeros(batch_size, config.in_channels, side, side), torch.ones(batch_size)


_NANO: dict[str, Any] = {"width": 16, "num_layers": 3, "num_levels": 3}

FAMILY = Family(
    name="mgno",
    model=MgNO,
    paper="He, Liu & Xu, ICLR 2024, arXiv:2310.19809",
    inputs="one frame [batch, field, y, x] and a lead time; rectangular grids, periodic with sides "
    "that are multiples of 16 (nano: 4), or dirichlet or neumann with any side above that",
    call="frame",
    example=_example,
    sizes=(Size("nano", 73_108, _NANO), Size("base", 2_538_436, {})),
)
