"""Grids that Poseidon's network takes or not, and what its errors say of them."""

from __future__ import annotations

import pytest
import torch
from tests.models.test_poseidon import PARITY, SMALL, relative, small_model

from pelagos.models.poseidon import ScOTConfig


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


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((2, 4, 12, 17), r"window_size=4 tokens .* the nearest grid is 8x16"),
        ((2, 4, 24, 3), "the nearest grid is 16x4"),
        (
            (2, 4, 18, 31),
            r"patch_size\(2\) \* 2\*\*\(stages\(2\) - 1\) = 4\. .* nearest grid is 16x32",
        ),
        ((2, 3, 16, 16), "num_channels=4"),
    ],
)
def test_without_resize_bad_grids_name_the_nearest(shape: tuple[int, ...], message: str):
    with pytest.raises(ValueError, match=message):
        small_model(resize="none")(torch.zeros(shape), torch.zeros(2))


def test_only_known_ways_of_resizing():
    with pytest.raises(ValueError, match="resize='linear' must be 'fourier' or 'none'"):
        ScOTConfig(**SMALL, resize="linear")  # type: ignore[arg-type]


def test_a_block_compiled_on_a_rectangle_equals_eager():
    block = small_model().blocks()[1]  # shifted
    tokens, time = torch.randn(2, 4, 16, 8), torch.tensor([0.2, 0.9])
    with torch.no_grad():
        compiled = torch.compile(block, fullgraph=True, backend="aot_eager", dynamic=False)
        assert relative(compiled(tokens, time), block(tokens, time)) < PARITY
