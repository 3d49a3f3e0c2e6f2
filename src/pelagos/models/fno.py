"""Fourier neural operators, dense (FNO) and with factorised weights (TFNO).

A layer multiplies the lowest Fourier modes of a field by a matrix for each mode and adds a
pointwise linear map; being a function of the Fourier series, it means the same on every grid.
Li et al., "Fourier neural operator for parametric partial differential equations", ICLR 2021,
arXiv:2010.08895. TFNO stores those matrices as a Tucker decomposition: Kossaifi et al.,
"Multi-grid tensorized Fourier neural operator for high-resolution PDEs", arXiv:2310.00120.

Here each layer is also scaled and shifted by the lead time. Layout: fields are ``[B, C, *grid]``
with one, two or three grid axes; kept modes are ``[M, B, C]``. Single-device code.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pelagos.models.family import Family, FrameOutput, Options, Size
from pelagos.models.frame_layers import (
    GridRule,
    LeadTimeEmbedding,
    ScaleShift,
    at_least_float32,
    check_frame,
    not_one_of,
    not_whole_numbers,
)
from pelagos.models.precision import without_autocast
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

    ``modes``: wave numbers kept on each axis, -modes .. modes - 1; ``width``: channels between
    the layers; ``use_coordinates``: append each point's place, i / n per axis, to the fields,
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

    @property
    def kept_modes(self) -> tuple[int, ...]:
        """Kept Fourier modes per axis; a real field's last axis needs no negative ones."""
        return (2 * self.modes,) * (self.num_dimensions - 1) + (self.modes,)

    def _misfits(self) -> list[str]:
        return []


@dataclass(frozen=True)
class TFNOConfig(FNOConfig):
    """As ``FNOConfig``; ``rank``: each Tucker rank as a fraction of the side it stands for.

    A weight then has about rank^(2 + num_dimensions) of the dense one's parameters; 1 is full rank.
    """

    rank: float = 0.5

    def _misfits(self) -> list[str]:
        if 0 < self.rank <= 1:
            return []
        return [f"rank={self.rank!r} must be above 0 and at most 1, a fraction of each side"]

    def tucker_rank(self, side: int) -> int:
        """The rank of one side."""
        return max(1, round(self.rank * side))


class SpectralConvolution(nn.Module):
    """One complex matrix for each kept Fourier mode: ``y_k = x_k W_k``, fp32 throughout.

    ``weight`` is real, ``[*modes, in, out, 2]``, real part before imaginary, modes first so that
    the product is a batched one. It starts complex normal with variance 1 / in, which keeps the
    energy of the modes.
    """

    def __init__(self, config: FNOConfig) -> None:
        super().__init__()
        self.modes, self.num_dimensions = config.modes, config.num_dimensions
        self._allocate(config)

    def _allocate(self, config: FNOConfig) -> None:
        width = config.width
        self.weight = nn.Parameter(torch.empty(*config.kept_modes, width, width, 2))

    def reset_parameters(self) -> None:
        """Draw the weight from torch's global generator."""
        _complex_normal(self.weight, 1 / self.weight.shape[-3])

    def forward(self, field: Tensor) -> Tensor:
        """``[B, C, *grid]`` to the same."""
        with without_autocast(field):
            series = lowest_modes(at_least_float32(field), self.modes, self.num_dimensions)
            kept = series.shape[2:]
            mixed_MBC = self.mix(series.flatten(2).permute(2, 0, 1))
            series = mixed_MBC.permute(1, 2, 0).unflatten(2, kept)
            return field_of_modes(series, self.modes, field.shape[2:]).to(field.dtype)

    def mix(self, series_MBC: Tensor) -> Tensor:
        """``[M, B, C]`` to the same: a matrix for each mode."""
        return series_MBC @ _as_complex(self.weight).flatten(0, -3)


class TuckerConvolution(SpectralConvolution):
    """``SpectralConvolution`` whose weight is a Tucker decomposition.

    ``W[k1, .., i, o] = Σ core[r1, .., p, q] U1[k1, r1] .. I[i, p] O[o, q]``, all complex, stored as
    real tensors with a last axis of 2. Factors start with variance 1 / rank and the core with
    1 / in, so that W has the dense weight's variance.
    """

    def _allocate(self, config: FNOConfig) -> None:
        assert isinstance(config, TFNOConfig)
        sides = (*config.kept_modes, config.width, config.width)
        ranks = [config.tucker_rank(side) for side in sides]
        self.core = nn.Parameter(torch.empty(*ranks, 2))
        self.input_factor = nn.Parameter(torch.empty(config.width, ranks[-2], 2))
        self.output_factor = nn.Parameter(torch.empty(config.width, ranks[-1], 2))
        for axis, (side, rank) in enumerate(zip(sides[:-2], ranks[:-2], strict=True)):
            self.register_parameter(f"mode_factor_{axis}", nn.Parameter(torch.empty(side, rank, 2)))

    @property
    def mode_factors(self) -> list[Tensor]:
        """``[modes, rank, 2]`` of each axis."""
        return [self.get_parameter(f"mode_factor_{axis}") for axis in range(self.num_dimensions)]

    def reset_parameters(self) -> None:
        """Draw core and factors from torch's global generator."""
        _complex_normal(self.core, 1 / self.input_factor.shape[0])
        for factor in (self.input_factor, self.output_factor, *self.mode_factors):
            _complex_normal(factor, 1 / factor.shape[1])

    def mix(self, series_MBC: Tensor) -> Tensor:
        """``[M, B, C]`` to the same, without ever forming the dense weight."""
        matrices = _as_complex(self.core)
        for axis, factor in enumerate(self.mode_factors):
            product = torch.tensordot(_as_complex(factor), matrices, dims=([1], [axis]))
            matrices = product.movedim(0, axis)
        reduced = series_MBC @ _as_complex(self.input_factor)
        return reduced @ matrices.flatten(0, -3) @ _as_complex(self.output_factor).T


def lowest_modes(field: Tensor, modes: int, num_dimensions: int) -> Tensor:
    """Fourier coefficients ``[B, C, 2m, .., m]`` of wave numbers 0 .. m - 1, then -m .. -1.

    Normalised to be those of the function, whatever the grid that samples it.
    """
    series = torch.fft.rfft(field, norm="forward").narrow(-1, 0, modes)
    for axis in range(-2, -num_dimensions - 1, -1):
        series = torch.fft.fft(series, dim=axis, norm="forward")
        negative = series.narrow(axis, series.shape[axis] - modes, modes)
        series = torch.cat((series.narrow(axis, 0, modes), negative), axis)
    return series


def field_of_modes(series: Tensor, modes: int, grid: torch.Size) -> Tensor:
    """The real field ``[B, C, *grid]`` of the coefficients that ``lowest_modes`` returns."""
    for axis in range(-len(grid), -1):
        gap = list(series.shape)
        gap[axis] = grid[axis] - 2 * modes
        positive, negative = series.split(modes, axis)
        series = torch.cat((positive, series.new_zeros(gap), negative), axis)
        series = torch.fft.ifft(series, dim=axis, norm="forward")
    field: Tensor = torch.fft.irfft(series, n=grid[-1], norm="forward")
    return field


def _as_complex(real: Tensor) -> Tensor:
    return torch.view_as_complex(at_least_float32(real).contiguous())


@torch.no_grad()
def _complex_normal(parameter: Tensor, variance: float) -> None:
    parameter.normal_(0.0, (variance / 2) ** 0.5)


class FNOBlock(nn.Module):
    """``GELU((K x + W x) (1 + scale) + shift)``: spectral and pointwise maps, lead time; eq. 2.

    The last block of a network has no GELU.
    """

    def __init__(
        self, config: FNOConfig, convolution: type[SpectralConvolution], *, last: bool
    ) -> None:
        super().__init__()
        self.spectral = convolution(config)
        self.pointwise = _POINTWISE[config.num_dimensions](config.width, config.width, 1)
        self.scale_shift = ScaleShift(config.width, config.width)
        self.last = last

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """``[B, C, *grid]`` to the same."""
        mixed = self.scale_shift(self.spectral(x) + self.pointwise(x), embedding)
        return mixed if self.last else F.gelu(mixed)


class FNO(Pretrained):
    """The Fourier neural operator: one frame and a lead time to the frame that much later.

    Any grid of ``num_dimensions`` axes with at least 2 ``modes`` points on each.
    """

    model_types = ("fno",)
    config_class: type[FNOConfig] = FNOConfig
    config: FNOConfig
    convolution: type[SpectralConvolution] = SpectralConvolution

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
                FNOBlock(config, self.convolution, last=layer == config.num_layers - 1)
                for layer in range(config.num_layers)
            )
            self.project = nn.Sequential(
                pointwise(width, 2 * width, 1),
                nn.GELU(),
                pointwise(2 * width, config.out_channels, 1),
            )
        self.materialize(device)

    def forward(self, frame: Tensor, time: Tensor) -> FrameOutput:
        """Predict ``[B, C_out, *grid]``, a lead time ``time [B]`` after ``frame [B, C, *grid]``.

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
        """Repeated blocks to wrap, compile or checkpoint, each called as ``block(x, embedding)``."""
        return list(self.layers)


class TFNO(FNO):
    """The Fourier neural operator with Tucker-factorised spectral weights."""

    model_types = ("tfno",)
    config_class = TFNOConfig
    convolution = TuckerConvolution


def _coordinates(field: Tensor) -> Tensor:
    """``[B, num_dimensions, *grid]``: each point's place, i / n per axis."""
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
        Size("nano", 38_236, {**_NANO, "rank": 0.75}),
        Size("base", 23_653_468, {**_BASE, "rank": 0.75}),
    ),
)
