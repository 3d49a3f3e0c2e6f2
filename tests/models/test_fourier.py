"""Fourier resampling against band-limited fields, which it must reproduce."""

from __future__ import annotations

import math

import pytest
import torch

from pelagos.models.layers.fourier import fourier_resize


def band_limited(size: int) -> torch.Tensor:
    """A field with wave numbers up to 3 on ``size`` nodes j/size."""
    node = torch.arange(size, dtype=torch.float64) / size
    y, x = torch.meshgrid(node, node, indexing="ij")
    waves = torch.sin(2 * math.pi * (3 * x + y)) + 0.5 * torch.cos(2 * math.pi * (x - 2 * y))
    return (0.7 + waves).float()[None, None]


@pytest.mark.parametrize(("size", "target"), [(8, 20), (20, 8), (16, 32), (32, 16)])
def test_band_limited_fields_are_resampled_exactly(size: int, target: int):
    # An fp32 FFT of n² points errs by about log2(n²) * 6e-8 = 6e-7 of the largest value.
    got = fourier_resize(band_limited(size), target)
    torch.testing.assert_close(got, band_limited(target), rtol=0, atol=2e-6)


def test_same_size_is_the_identity():
    field = torch.randn(2, 3, 8, 8)
    assert fourier_resize(field, 8) is field


@pytest.mark.parametrize(("shape", "target"), [((1, 1, 8, 6), 8), ((1, 1, 7, 7), 8), ((8, 8), 5)])
def test_grids_without_a_symmetric_spectrum_are_refused(shape: tuple[int, ...], target: int):
    with pytest.raises(ValueError, match="square grid with an even side"):
        fourier_resize(torch.zeros(shape), target)
