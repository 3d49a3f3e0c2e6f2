"""Resampling of periodic fields by cutting or padding their Fourier series."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from pelagos.models.layers.precision import without_autocast


def fourier_resize(field: Tensor, size: int) -> Tensor:
    """Resample `[..., n, n]` to `[..., size, size]` through its discrete Fourier series.

    Wave numbers -m/2 .. m/2 - 1 with m = min(n, size) are kept, amplitudes unchanged: a field
    without energy at or above wave number m/2 is resampled exactly. Computed in fp32 (the FFT has
    no half precision on most devices); the result has the input's dtype. Raises ValueError for a
    grid that is not square, or an odd side.
    """
    rows, columns = field.shape[-2:]
    if rows != columns or rows % 2 or size % 2:
        raise ValueError(
            f"Fourier resize needs a square grid with an even side, got {rows}x{columns} to "
            f"{size}x{size}"
        )
    if rows == size:
        return field
    with without_autocast(field):
        series = torch.fft.fft2(field.float(), norm="forward")
        series = torch.fft.fftshift(series, dim=(-2, -1))
        margin = (size - rows) // 2  # negative: crop
        series = F.pad(series, (margin, margin, margin, margin))
        series = torch.fft.ifftshift(series, dim=(-2, -1))
        resized: Tensor = torch.fft.ifft2(series, norm="forward").real
        return resized.to(field.dtype)
