"""Fourier neural operators, dense (FNO) and with factorised weights (TFNO).

A layer multiplies the lowest Fourier modes of a field by a matrix for each mode and adds a
pointwise linear map; being a function of the Fourier series, it means the same on every grid.
Li et al., "Fourier neural operator for parametric partial differential equations", ICLR 2021,
arXiv:2010.08895. TFNO stores those matrices as a Tucker decomposition: Kossaifi et al.,
"Multi-grid tensorized Fourier neural operator for high-resolution PDEs", arXiv:2310.00120.

Here each layer is also scaled and shifted by the lead time. Layout: fields are `[B, C, *grid]`
with one, two or three grid axes. Single-device code.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pelagos.models.checks import not_one_of, not_whole_numbers
from pelagos.models.family import Family, FrameOutput, Options, Size
from pelagos.models.layers.frame_layers import GridRule, LeadTimeEmbedding, ScaleShift, check_frame
from pelagos.models.layers.spectral_layers import SpectralConvolution, TuckerConvolution
from pelagos.models.pretrained import Pretrained

__all__ = ["FNO", "FNO_FAMILY", "TFNO", "TFNO_FAMILY", "FNOConfig", "TFNOConfig"]

_POINTWISE: dict[int, type[nn.Conv1d | nn.Conv2d | nn.Conv3d]] = {
    1: nn.Conv1d,
    2: nn.Conv2d,
    3: nn.Conv3d,
}


@dataclass(frozen=True)
class FNOConfig(Options):
    """Sizes and options of one Fourier neural operator.

    `modes`: wave numbers kept on each axis, -modes .. modes - 1; `width`: channels between
    the layers; `use_coordinates`: append each point's place, i / n per axis, to the fields,
    without which the network commutes with translations.

    Raises ValueError listing every option that does not fit.
    """

    in_channels: int = 4
    out_channels: int = 4
    num_dimensions: int = 2
    modes: int = 20
    width: int = 96
    num_layers: int = 5
    use_coordinates: bool = True

    def __post_init__(self) -> None:
        counts = ("in_channels", "out_channels", "modes", "width", "num_layers")
        problems = not_whole_numbers(self, counts)
        problems += not_one_of("num_dimensions", self.num_dimensions, _POINTWISE)
        problems += self._misfits()
        if problems:
            raise ValueError(f"{type(self).__name__}: " + "; ".join(problems))

    def _misfits(self) -> list[str]:
        return []


@dataclass(frozen=True)
class TFNOConfig(FNOConfig):
    """As `FNOConfig`; `rank`: each Tucker rank as a fraction of the side it replaces.

    A weight then has about rank^(2 + num_dimensions) of the dense one's parameters; 1 is full rank.
    """

    rank: float = 0.75

    def _misfits(self) -> list[str]:
        if 0 < self.rank <= 1:
            return []
        return [f"rank={self.rank!r} must be above 0 and at most 1, a fraction of each side"]


def _spectral_convolution(config: FNOConfig) -> SpectralConvolution:
    if isinstance(config, TFNOConfig):
        return TuckerConvolution(config.width, config.modes, config.num_dimensions, config.rank)
    return SpectralConvolution(config.width, config.modes, config.num_dimensions)


class FNOBlock(nn.Module):
    """`GELU((K x + W x) (1 + scale) + shift)`: spectral and pointwise maps, lead time; eq. 2.

    The last block of a network has no GELU.
    """

    def __init__(self, config: FNOConfig, *, last: bool) -> None:
        super().__init__()
        self.spectral = _spectral_convolution(config)
        self.pointwise = _POINTWISE[config.num_dimensions](config.width, config.width, 1)
        self.scale_shift = ScaleShift(config.width, config.width)
        self.last = last

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """`[B, C, *grid]` to the same."""
        mixed = self.scale_shift(self.spectral(x) + self.pointwise(x), embedding)
        return mixed if self.last else F.gelu(mixed)


class FNO(Pretrained):
    """The Fourier neural operator: one frame and a lead time to the frame that much later.

    Any grid of `num_dimensions` axes with at least 2 `modes` points on each.
    """

    model_types = ("fno",)
    config_class = FNOConfig
    config: FNOConfig

    def __init__(self, config: FNOConfig) -> None:
        super().__init__()
        self.config = config
        width, pointwise = config.width, _POINTWISE[config.num_dimensions]
        coordinates = config.num_dimensions if config.use_coordinates else 0
        device = torch.get_default_device()
        with torch.device("meta"):  # modules' own initialisation would only be overwritten
            self.lead_time = LeadTimeEmbedding(width)
            self.lift = pointwise(config.in_channels + coordinates, width, 1)
            self.layers = nn.ModuleList(
                FNOBlock(config, last=layer == config.num_layers - 1)
                for layer in range(config.num_layers)
            )
            self.project = nn.Sequential(
                pointwise(width, 2 * width, 1),
                nn.GELU(),
                pointwise(2 * width, config.out_channels, 1),
            )
        self.materialize(device)

    def forward(self, frame: Tensor, time: Tensor) -> FrameOutput:
        """Predict `[B, C_out, *grid]`, a lead time `time [B]` after `frame [B, C, *grid]`.

        Raises ValueError for a shape that does not fit the configuration.
        """
        config = self.config
        least = 2 * config.modes
        rule = GridRule(config.num_dimensions, 1, least, f"2 * modes({config.modes}) = {least}")
        check_frame(type(self).__name__, frame, time, config.in_channels, rule)
        fields = torch.cat((frame, _coordinates(frame)), 1) if config.use_coordinates else frame
        x, embedding = self.lift(fields), self.lead_time(time)
        for layer in self.layers:
            x = layer(x, embedding)
        return FrameOutput(self.project(x).to(frame.dtype))

    def blocks(self) -> list[nn.Module]:
        """Repeated blocks to wrap, compile or checkpoint, each called as `block(x, embedding)`."""
        return list(self.layers)


class TFNO(FNO):
    """The Fourier neural operator with Tucker-factorised spectral weights."""

    model_types = ("tfno",)
    config_class = TFNOConfig


def _coordinates(field: Tensor) -> Tensor:
    """`[B, num_dimensions, *grid]`: each point's place, i / n per axis."""
    axes = [torch.arange(side, device=field.device) / side for side in field.shape[2:]]
    places = torch.stack(torch.meshgrid(*axes, indexing="ij"))
    return places.to(field.dtype).expand(field.shape[0], *places.shape)


def _example(config: FNOConfig, batch_size: int) -> tuple[Tensor, ...]:
    grid = (max(32, 2 * config.modes),) * config.num_dimensions
    return torch.zeros(batch_size, config.in_channels, *grid), torch.ones(batch_size)


_NANO: dict[str, Any] = {"modes": 6, "width": 16, "num_layers": 3}
_BASE: dict[str, Any] = {"modes": 20, "width": 96, "num_layers": 5}
_INPUTS = (
    "one frame [batch, field, *grid] and a lead time; any grid of one, two or three axes "
    "(num_dimensions) with at least 2 * modes points on each (base: 40, nano: 12)"
)

FNO_FAMILY = Family(
    name="fno",
    model=FNO,
    paper="Li et al., ICLR 2021, arXiv:2010.08895",
    inputs=_INPUTS,
    call="frame",
    example=_example,
    # Real numbers: Poseidon's FNO of this size counts 37 million, a complex weight as one.
    sizes=(Size("nano", 114_628, _NANO), Size("base", 73_900_228, _BASE)),
)

TFNO_FAMILY = Family(
    name="tfno",
    model=TFNO,
    paper="Kossaifi et al., arXiv:2310.00120",
    inputs=_INPUTS,
    call="frame",
    example=_example,
    sizes=(
        Size("nano", 38_236, _NANO),
        Size("base", 23_653_468, _BASE),
    ),
)
