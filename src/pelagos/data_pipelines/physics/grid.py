"""Differences on the grid of a dataset, in double precision: spectral where it is periodic."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from pelagos.data_pipelines.generate.reaction_diffusion import closed_difference

PERIODIC = "periodic"
MIXED = "mixed"  # sides of an axis, or axes, that differ where one condition is required


@dataclass(frozen=True)
class Grid:
    """An equidistant grid in two dimensions; every pair is (y, x).

    Fields are [batch, y, x]. Wave numbers are those of `rfft2`.
    """

    shape: tuple[int, int]
    extent: tuple[float, float]
    boundary: tuple[str, str]

    @property
    def spacing(self) -> tuple[float, float]:
        """Distances of neighbours, (y, x)."""
        return self.extent[0] / self.shape[0], self.extent[1] / self.shape[1]

    @property
    def cells_per_length(self) -> tuple[float, float]:
        """Inverse of the spacing, (y, x)."""
        return self.shape[0] / self.extent[0], self.shape[1] / self.extent[1]

    @property
    def is_periodic(self) -> bool:
        return self.boundary == (PERIODIC, PERIODIC)

    @property
    def condition(self) -> str:
        """The one boundary condition of all sides, or `mixed`."""
        return self.boundary[0] if self.boundary[0] == self.boundary[1] else MIXED

    def wave_numbers(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Angular (ky [y, 1], kx [1, x/2 + 1])."""
        (height, width), (tall, wide) = self.shape, self.extent
        kwargs = {"dtype": torch.float64, "device": like.device}
        ky = torch.fft.fftfreq(height, 1.0 / height, **kwargs) * (2.0 * math.pi / tall)
        kx = torch.fft.rfftfreq(width, 1.0 / width, **kwargs) * (2.0 * math.pi / wide)
        return ky[:, None], kx[None, :]

    def slopes(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Multipliers (i ky, i kx) of first derivatives; the Nyquist mode has none."""
        ky, kx = self.wave_numbers(like)
        height, width = self.shape
        ky, kx = ky.clone(), kx.clone()
        if height % 2 == 0:
            ky[height // 2] = 0.0
        if width % 2 == 0:
            kx[:, width // 2] = 0.0
        return 1j * ky, 1j * kx

    def resolved(self, like: Tensor) -> Tensor:
        """The 2/3 rule, [y, x/2 + 1]: 1 where 3|kx| < Nx and 3|ky| < Ny, else 0 (Orszag, 1971)."""
        height, width = self.shape
        ky = torch.fft.fftfreq(height, 1.0 / height, device=like.device).abs()[:, None]
        kx = torch.fft.rfftfreq(width, 1.0 / width, device=like.device)[None, :]
        kept: Tensor = (3 * ky < height) & (3 * kx < width)
        return kept.double()

    def transform(self, field: Tensor) -> Tensor:
        """Spectrum [batch, y, x/2 + 1] of a field."""
        spectrum: Tensor = torch.fft.rfft2(field.double())
        return spectrum

    def field(self, spectrum: Tensor) -> Tensor:
        """The field of a spectrum."""
        field: Tensor = torch.fft.irfft2(spectrum, s=self.shape)
        return field

    def gradient(self, field: Tensor) -> tuple[Tensor, Tensor]:
        """(d/dx, d/dy) of a field on a periodic grid."""
        spectrum = self.transform(field)
        along_y, along_x = self.slopes(field)
        return self.field(spectrum * along_x), self.field(spectrum * along_y)

    def laplacian(self, field: Tensor) -> Tensor:
        """Spectral on a periodic grid; else of second order, with no flux through the boundary."""
        if self.is_periodic:
            ky, kx = self.wave_numbers(field)
            return self.field(self.transform(field) * -(kx * kx + ky * ky))
        per_y, per_x = self.cells_per_length
        return closed_difference(field, -1) * per_x**2 + closed_difference(field, -2) * per_y**2

    def divergence(self, along_x: Tensor, along_y: Tensor) -> Tensor:
        """div of a vector field on a periodic grid."""
        by_y, by_x = self.slopes(along_x)
        return self.field(self.transform(along_x) * by_x + self.transform(along_y) * by_y)

    def solenoidal(self, spectra: Tensor) -> Tensor:
        """Leray projection of spectra [batch, 2 (x, y), y, x/2 + 1]: the part without divergence."""
        ky, kx = (slope.imag for slope in self.slopes(spectra.real))
        square = kx * kx + ky * ky
        inverse = torch.where(square > 0.0, 1.0 / square.clamp_min(1e-300), 0.0)
        along = (kx * spectra[:, 0] + ky * spectra[:, 1]) * inverse
        return spectra - torch.stack((kx * along, ky * along), dim=1)


def boundary_of(conditions: Mapping[str, str], axis: str) -> str:
    """The condition at both ends of an axis of a dataset, `mixed` if they differ or lack."""
    if axis in conditions:
        return conditions[axis]
    low, high = conditions.get(f"{axis}-low"), conditions.get(f"{axis}-high")
    return low if low is not None and low == high else MIXED


def block_means(values: Tensor, count: int) -> Tensor:
    """Means over `count` equal blocks per axis, `[..., y, x]` to `[..., count, count]`.

    Where `count` does not divide an axis, the largest number below that does.
    """
    rows, columns = (_divisor(size, count) for size in values.shape[-2:])
    *front, height, width = values.shape
    split = values.reshape(*front, rows, height // rows, columns, width // columns)
    return split.mean((-3, -1))


def _divisor(size: int, most: int) -> int:
    return next(number for number in range(min(size, most), 0, -1) if size % number == 0)
