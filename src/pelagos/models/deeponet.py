"""DeepONet: an operator as a sum of products, one factor of the input and one of the place.

A branch network turns the frame, known at fixed sensors, into coefficients; a trunk network turns a
place and a lead time into as many basis functions; the prediction there is their inner product. It
can be asked for at any point. Lu et al., "Learning nonlinear operators via DeepONet based on the
universal approximation theorem of operators", Nature Machine Intelligence 2021, arXiv:1910.03193.

The sensors are the points of a grid, the branch is convolutional, and the trunk sees places as
sines and cosines too, scaled and shifted by the lead time. Layout: frames `[B, C, H, W]`, points
`[B, N, 2]` with y before x, in units of the grid's sides: row i of H is at y = i / H.
Single-device code.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pelagos.models.checks import not_whole_numbers
from pelagos.models.family import Family, FrameOutput, Options, Size
from pelagos.models.layers.frame_layers import LeadTimeEmbedding, ScaleShift
from pelagos.models.layers.linear import Linear
from pelagos.models.layers.precision import without_autocast
from pelagos.models.pretrained import Pretrained

__all__ = ["FAMILY", "DeepONet", "DeepONetConfig"]

_NUM_AXES = 2


@dataclass(frozen=True)
class DeepONetConfig(Options):
    """Sizes and options of one DeepONet.

    `image_size`: rows and columns of the sensors, one number for as many of both;
    `branch_width`: channels of the branch's first stage, doubled by every later one of its
    `num_stages`, each halving the grid; `trunk_width` and `num_layers` of the trunk;
    `num_basis`: products in the sum; `num_waves`: the trunk sees sines and cosines of the wave
    numbers 1 .. num_waves on each axis.

    Raises ValueError listing every option that does not fit.
    """

    in_channels: int = 4
    out_channels: int = 4
    image_size: int | tuple[int, int] = 128
    branch_width: int = 64
    num_stages: int = 5
    trunk_width: int = 512
    num_layers: int = 6
    num_basis: int = 256
    num_waves: int = 16

    def __post_init__(self) -> None:
        counts = ("in_channels", "out_channels", "branch_width", "num_stages", "trunk_width")
        problems = not_whole_numbers(self, (*counts, "num_layers", "num_basis", "num_waves"))
        if len(self.grid) != _NUM_AXES or not all(isinstance(n, int) and n > 0 for n in self.grid):
            problems.append(
                f"image_size={self.image_size} must be one whole number, or two: rows and columns"
            )
        elif not problems and min(self.grid) < 2**self.num_stages:
            most = int(math.log2(min(self.grid)))
            problems.append(
                f"image_size={self.image_size} must be at least 2 ** num_stages({self.num_stages}) "
                f"= {2**self.num_stages}; it allows at most num_stages={most}"
            )
        if problems:
            raise ValueError("DeepONetConfig: " + "; ".join(problems))

    @property
    def grid(self) -> tuple[int, ...]:
        """Rows and columns of the sensors."""
        size = self.image_size
        return tuple(size) if isinstance(size, (tuple, list)) else (size, size)


class BranchStage(nn.Module):
    """Half the grid, another number of channels: a strided convolution and a residual one."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.down = nn.Conv2d(inputs, outputs, 3, stride=2, padding=1)
        self.conv = nn.Conv2d(outputs, outputs, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W]` to `[B, C_out, ceil(H / 2), ceil(W / 2)]`."""
        x = F.gelu(self.down(x))
        return x + F.gelu(self.conv(x))


class Branch(nn.Module):
    """A frame to coefficients `[B, C_out, num_basis]`."""

    def __init__(self, config: DeepONetConfig) -> None:
        super().__init__()
        widths = [config.branch_width * 2**stage for stage in range(config.num_stages)]
        self.stages = nn.ModuleList(
            BranchStage(inputs, outputs)
            for inputs, outputs in zip((config.in_channels, *widths[:-1]), widths, strict=True)
        )
        rows, columns = (-(-side // 2**config.num_stages) for side in config.grid)
        self.shape = (config.out_channels, config.num_basis)
        self.out = Linear(widths[-1] * rows * columns, math.prod(self.shape))

    def forward(self, frame: Tensor) -> Tensor:
        x = frame
        for stage in self.stages:
            x = stage(x)
        coefficients: Tensor = self.out(x.flatten(1))
        return coefficients.view(-1, *self.shape)


class TrunkLayer(nn.Module):
    """`x + GELU(linear(x))`."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, N, width]` to the same."""
        return x + F.gelu(self.linear(x))


class Trunk(nn.Module):
    """Places `[B, N, 2]` and lead times `[B]` to basis functions `[B, N, num_basis]`."""

    def __init__(self, config: DeepONetConfig) -> None:
        super().__init__()
        self.num_waves = config.num_waves
        self.place = Linear(_NUM_AXES * (1 + 2 * config.num_waves), config.trunk_width)
        self.lead_time = LeadTimeEmbedding(config.trunk_width)
        self.scale_shift = ScaleShift(config.trunk_width, config.trunk_width)
        self.layers = nn.ModuleList(
            TrunkLayer(config.trunk_width) for _ in range(config.num_layers)
        )
        self.out = Linear(config.trunk_width, config.num_basis)

    def forward(self, points: Tensor, time: Tensor) -> Tensor:
        with without_autocast(points):  # half precision would lose the fastest waves' phases
            places = points.float()
            numbers = torch.arange(1, self.num_waves + 1, device=points.device)
            phases = (2 * math.pi * places[..., None] * numbers).flatten(-2)
            features = torch.cat((places, phases.sin(), phases.cos()), dim=-1)
        x = self.place(features.to(self.place.weight.dtype))
        x = F.gelu(self.scale_shift(x.mT, self.lead_time(time)).mT)
        for layer in self.layers:
            x = layer(x)
        return cast(Tensor, self.out(x))


class DeepONet(Pretrained):
    """The DeepONet: one frame and a lead time to the frame that much later, or to points of it."""

    model_types = ("deeponet",)
    config_class = DeepONetConfig
    config: DeepONetConfig

    def __init__(self, config: DeepONetConfig) -> None:
        super().__init__()
        self.config = config
        device = torch.get_default_device()
        with torch.device("meta"):  # modules' own initialisation would only be overwritten
            self.branch = Branch(config)
            self.trunk = Trunk(config)
            self.bias = nn.Parameter(torch.empty(config.out_channels))
        self.materialize(device)

    def forward(self, frame: Tensor, time: Tensor) -> FrameOutput:
        """Predict `[B, C_out, H, W]`, a lead time `time [B]` after `frame [B, C, H, W]`.

        Raises ValueError for a shape that does not fit the configuration.
        """
        points = grid_points(self.config.grid, frame.device)
        values_BCN = self.query(frame, points.expand(frame.shape[0], -1, -1), time)
        return FrameOutput(values_BCN.view(*values_BCN.shape[:2], *self.config.grid))

    def query(self, frame: Tensor, points: Tensor, time: Tensor) -> Tensor:
        """Predict `[B, C_out, N]` at `points [B, N, 2]`, y before x, 1 a side of the grid.

        Raises ValueError for a shape that does not fit the configuration.
        """
        self._check(frame, points, time)
        coefficients = self.branch(frame)
        basis = self.trunk(points, time)
        values = torch.einsum("bcp,bnp->bcn", coefficients, basis)
        return (values + self.bias[:, None]).to(frame.dtype)

    @torch.no_grad()
    def init_weights(self, module: nn.Module) -> None:
        """Initialise the direct parameters of one of `modules()`: torch's own way, zero bias."""
        if module is self:
            self.bias.zero_()
        else:
            super().init_weights(module)

    def blocks(self) -> list[nn.Module]:
        """Stages of the branch and layers of the trunk, each called as `block(x)`."""
        return [*self.branch.stages, *self.trunk.layers]

    def _check(self, frame: Tensor, points: Tensor, time: Tensor) -> None:
        config, shape = self.config, tuple(frame.shape)
        if len(shape) != 2 + _NUM_AXES or shape[1:] != (config.in_channels, *config.grid):
            raise ValueError(
                f"DeepONet got a frame of shape {shape}, needs [batch, {config.in_channels}, "
                f"{', '.join(map(str, config.grid))}]: in_channels={config.in_channels}, sensors of "
                f"image_size={config.image_size}; for other places use query(frame, points, time)"
            )
        if points.ndim != 3 or (points.shape[0], points.shape[2]) != (shape[0], _NUM_AXES):
            raise ValueError(
                f"DeepONet got points of shape {tuple(points.shape)}, needs [{shape[0]}, N, 2]"
            )
        if tuple(time.shape) != shape[:1]:
            raise ValueError(f"DeepONet got time of shape {tuple(time.shape)}, needs ({shape[0]},)")


def grid_points(grid: tuple[int, ...], device: torch.device) -> Tensor:
    """`[1, H W, 2]`: the places of a grid's points, row by row."""
    axes = [torch.arange(side, device=device) / side for side in grid]
    points: Tensor = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)
    return points.view(1, -1, len(grid))


def _example(config: DeepONetConfig, batch_size: int) -> tuple[Tensor, ...]:
    return torch.zeros(batch_size, config.in_channels, *config.grid), torch.ones(batch_size)


_NANO: dict[str, Any] = {
    "image_size": 32,
    "branch_width": 16,
    "num_stages": 2,
    "trunk_width": 64,
    "num_layers": 2,
    "num_basis": 64,
    "num_waves": 6,
}

FAMILY = Family(
    name="deeponet",
    model=DeepONet,
    paper="Lu et al., Nature Machine Intelligence 2021, arXiv:1910.03193",
    inputs="one frame [batch, field, y, x] on a fixed, rectangular grid (image_size; 128 a side, "
    "nano: 32) and a lead time; query() answers at any points",
    call="frame",
    example=_example,
    sizes=(Size("nano", 570_148, _NANO), Size("base", 38_168_452, {})),
)
