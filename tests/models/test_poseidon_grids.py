"""Grids that Poseidon's network does not take, and what its errors say of them."""

from __future__ import annotations

import pytest
import torch
from tests.models.test_poseidon import small_model


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((2, 4, 17, 17), "nearest grid is 16x16, with resize='none' 16x16"),
        ((2, 4, 24, 34), "nearest grid is 24x24, with resize='none' 16x32"),
        ((2, 3, 16, 16), "num_channels=4"),
    ],
)
def test_the_fourier_resize_names_the_nearest_square(shape: tuple[int, ...], message: str):
    with pytest.raises(ValueError, match=message):
        small_model()(torch.zeros(shape), torch.zeros(2))
