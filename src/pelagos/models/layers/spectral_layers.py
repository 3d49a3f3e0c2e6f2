"""Convolutions in Fourier space: a matrix for each of a field's lowest modes.

Fields are `[B, C, *grid]` with one, two or three grid axes; kept modes are `[M, B, C]`. On an axis
the wave numbers -m .. m - 1 are kept, on the last 0 .. m - 1, a real field's others being known.
Computed in fp32 at least. Single-device code.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pelagos.models.layers.frame_layers import at_least_float32
from pelagos.models.layers.precision import without_autocast

__all__ = ["SpectralConvolution", "TuckerConvolution", "field_of_modes", "lowest_modes"]


class SpectralConvolution(nn.Module):
    """One complex matrix for each kept Fourier mode: `y_k = x_k W_k`, fp32 throughout.

    `weight` is real, `[*modes, in, out, 2]`, real part before imaginary, modes first so that
    the product is a batched one. It starts complex normal with variance 1 / in, which keeps the
    energy of the modes.
    """

    def __init__(self, width: int, modes: int, num_dimensions: int) -> None:
        super().__init__()
        self.modes, self.num_dimensions = modes, num_dimensions
        self._allocate((*(2 * modes,) * (num_dimensions - 1), modes, width, width))

    def _allocate(self, sides: tuple[int, ...]) -> None:
        self.weight = nn.Parameter(torch.empty(*sides, 2))

    def reset_parameters(self) -> None:
        """Draw the weight from torch's global generator."""
        _complex_normal(self.weight, 1 / self.weight.shape[-3])

    def forward(self, field: Tensor) -> Tensor:
        """`[B, C, *grid]` to the same."""
        with without_autocast(field):
            series = lowest_modes(at_least_float32(field), self.modes, self.num_dimensions)
            kept = series.shape[2:]
            mixed_MBC = self.mix(series.flatten(2).permute(2, 0, 1))
            series = mixed_MBC.permute(1, 2, 0).reshape(*series.shape[:2], *kept)
            return field_of_modes(series, self.modes, field.shape[2:]).to(field.dtype)

    def mix(self, series_MBC: Tensor) -> Tensor:
        """`[M, B, C]` to the same: a matrix for each mode."""
        return series_MBC @ _as_complex(self.weight).flatten(0, -3)


class TuckerConvolution(SpectralConvolution):
    """`SpectralConvolution` whose weight is a Tucker decomposition.

    `rank`: each Tucker rank as a fraction of the side it replaces.
    `W[k1, .., i, o] = Σ core[r1, .., p, q] U1[k1, r1] .. I[i, p] O[o, q]`, all complex, stored as
    real tensors with a last axis of 2. Factors start with variance 1 / rank and the core with
    1 / in, so that W has the dense weight's variance.
    """

    def __init__(self, width: int, modes: int, num_dimensions: int, rank: float) -> None:
        self.rank = rank
        super().__init__(width, modes, num_dimensions)

    def _allocate(self, sides: tuple[int, ...]) -> None:
        ranks = [max(1, round(self.rank * side)) for side in sides]
        self.core = nn.Parameter(torch.empty(*ranks, 2))
        *factors, input_factor, output_factor = (
            nn.Parameter(torch.empty(side, rank, 2))
            for side, rank in zip(sides, ranks, strict=True)
        )
        self.input_factor, self.output_factor = input_factor, output_factor
        for axis, factor in enumerate(factors):
            self.register_parameter(f"mode_factor_{axis}", factor)

    @property
    def mode_factors(self) -> list[Tensor]:
        """`[modes, rank, 2]` of each axis."""
        return [self.get_parameter(f"mode_factor_{axis}") for axis in range(self.num_dimensions)]

    def reset_parameters(self) -> None:
        """Draw core and factors from torch's global generator."""
        _complex_normal(self.core, 1 / self.input_factor.shape[0])
        for factor in (self.input_factor, self.output_factor, *self.mode_factors):
            _complex_normal(factor, 1 / factor.shape[1])

    def mix(self, series_MBC: Tensor) -> Tensor:
        """`[M, B, C]` to the same, without ever forming the dense weight."""
        matrices = _as_complex(self.core)
        for axis, factor in enumerate(self.mode_factors):
            product = torch.tensordot(_as_complex(factor), matrices, dims=([1], [axis]))
            matrices = product.movedim(0, axis)
        reduced = series_MBC @ _as_complex(self.input_factor)
        mixed: Tensor = reduced @ matrices.flatten(0, -3) @ _as_complex(self.output_factor).T
        return mixed


def lowest_modes(field: Tensor, modes: int, num_dimensions: int) -> Tensor:
    """Fourier coefficients `[B, C, 2m, .., m]` of wave numbers 0 .. m - 1, then -m .. -1.

    Normalised to be those of the function, whatever the grid that samples it.
    """
    series: Tensor = torch.fft.rfft(field, norm="forward").narrow(-1, 0, modes)
    for axis in range(-2, -num_dimensions - 1, -1):
        series = torch.fft.fft(series, dim=axis, norm="forward")
        negative = series.narrow(axis, series.shape[axis] - modes, modes)
        series = torch.cat((series.narrow(axis, 0, modes), negative), axis)
    return series


def field_of_modes(series: Tensor, modes: int, grid: torch.Size) -> Tensor:
    """The real field `[B, C, *grid]` of the coefficients that `lowest_modes` returns."""
    for axis in range(-len(grid), -1):
        gap = list(series.shape)
        gap[axis] = grid[axis] - 2 * modes
        positive, negative = torch.split(series, modes, axis)
        series = torch.cat((positive, series.new_zeros(gap), negative), axis)
        series = torch.fft.ifft(series, dim=axis, norm="forward")
    field: Tensor = torch.fft.irfft(series, n=grid[-1], norm="forward")
    return field


def _as_complex(real: Tensor) -> Tensor:
    return torch.view_as_complex(at_least_float32(real).contiguous())


@torch.no_grad()
def _complex_normal(parameter: Tensor, variance: float) -> None:
    parameter.normal_(0.0, (variance / 2) ** 0.5)
