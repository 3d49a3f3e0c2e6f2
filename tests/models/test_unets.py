"""Segmentation U-nets: grids, deep supervision, skips; and prediction by overlapping patches."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from pelagos.models.mednext import GlobalResponseNorm
from pelagos.models.registry import create_model
from pelagos.models.sliding_window import patch_starts, patch_weights, predict_by_patches

UNETS = ["nnunet-nano", "stunet-nano", "mednext-nano"]


# -- U-nets ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("axes", [2, 3])
@pytest.mark.parametrize("name", UNETS)
def test_maps_have_the_grid_of_the_image(name: str, axes: int):
    grid = (8, 12, 16)[:axes]
    options = {"num_dimensions": axes, "in_channels": 2, "out_channels": 3}
    model = create_model(name, **options, deep_supervision=True, widths=(4, 6, 8))
    maps = model(torch.randn(1, 2, *grid))
    assert [tuple(m.shape) for m in maps] == [
        (1, 3, *(n // stride for n in grid)) for stride in (1, 2)
    ]
    model.eval()
    answer = model(torch.randn(1, 2, *grid))
    assert answer.shape == (1, 3, *grid)
    plain = create_model(name, **options, widths=(4, 6, 8))
    assert plain(torch.randn(1, 2, *grid)).shape == (1, 3, *grid)


@pytest.mark.parametrize("name", UNETS)
def test_the_coarsest_level_reaches_the_finest_map(name: str):
    torch.manual_seed(0)
    model = create_model(name, num_dimensions=2).eval()
    image = torch.randn(1, 1, 32, 32)
    with torch.no_grad():
        before = model(image)
        for parameter in model.encoder[-1].parameters():
            parameter.mul_(2.0)
        for parameter in model.down[-1].parameters():
            parameter.mul_(2.0)
        assert (model(image) - before).abs().max() > 1e-3


@pytest.mark.parametrize("name", UNETS)
def test_skips_reach_the_map_past_the_coarser_levels(name: str):
    torch.manual_seed(0)
    model = create_model(name, num_dimensions=2).eval()
    with torch.no_grad():
        for parameter in model.up[0].parameters():
            parameter.zero_()
        answer = model(torch.randn(1, 1, 16, 16))
    assert answer.std(dim=(2, 3)).min() > 1e-3


def test_global_response_norm_is_its_formula():
    norm = GlobalResponseNorm(3, axes=2)
    x = torch.randn(2, 3, 4, 5)
    norm.reset_parameters()
    assert torch.equal(norm(x), x)
    nn.init.normal_(norm.scale)
    nn.init.normal_(norm.shift)
    norms = torch.linalg.vector_norm(x, dim=(2, 3), keepdim=True)
    expected = x + norm.scale * x * norms / norms.mean(dim=1, keepdim=True) + norm.shift
    torch.testing.assert_close(norm(x), expected)
    zero = torch.zeros(1, 3, 4, 5, requires_grad=True)
    norm(zero).sum().backward()
    assert zero.grad.isfinite().all()


def test_grids_that_do_not_fit_name_the_nearest():
    model = create_model("nnunet-nano")
    with pytest.raises(ValueError, match=r"levels\(3\) - 1\) = 4: axis 1 has 10 .*: 8 or 12"):
        model(torch.zeros(1, 1, 8, 10, 8))
    with pytest.raises(ValueError, match="an axis needs 8 voxels"):
        model(torch.zeros(1, 1, 4, 4, 4))
    with pytest.raises(ValueError, match=r"needs \[batch, 1, \*grid\] with 3 axes"):
        model(torch.zeros(1, 1, 8, 8))


# -- prediction by patches ------------------------------------------------------------------------


class Pointwise(nn.Module):
    """Every voxel by itself; counts its calls and checks the patches it is given."""

    def __init__(self, patch: tuple[int, ...]) -> None:
        super().__init__()
        self.patch, self.calls = patch, 0

    def forward(self, x: Tensor) -> Tensor:
        assert tuple(x.shape[2:]) == self.patch
        self.calls += 1
        return torch.cat((x.sin(), x.square().sum(dim=1, keepdim=True)), dim=1)


@pytest.mark.parametrize(
    ("grid", "patch"),
    [((7, 9), (4, 3)), ((5, 6, 7), (4, 4, 4)), ((3, 10), (5, 4)), ((4, 4), (4, 4))],
)
@pytest.mark.parametrize("overlap", [0.0, 0.5, 0.8])
def test_a_pointwise_model_by_patches_is_the_model(grid: tuple, patch: tuple, overlap: float):
    volume, model = torch.randn(2, 2, *grid), Pointwise(patch)
    got = predict_by_patches(model, volume, patch, overlap)
    model.patch = grid
    # weighted means of equal numbers: a few roundings of 6e-8
    torch.testing.assert_close(got, model(volume), rtol=1e-6, atol=1e-6)


def test_neighbours_overlap_by_at_least_what_is_asked_and_cover_everything():
    for size in range(4, 40):
        for side in (1, 3, 4):
            for overlap in (0.0, 0.5, 0.75):
                starts = patch_starts(size, side, overlap)
                steps = [b - a for a, b in pairwise(starts)]
                assert starts[0] == 0
                assert starts[-1] == size - side
                assert all(1 <= step <= max(1, side * (1 - overlap)) for step in steps)


def test_weights_are_symmetric_positive_and_largest_at_the_centre():
    weights = patch_weights((8, 5))
    torch.testing.assert_close(weights, weights.flip(0, 1))
    assert weights.min() >= 1e-3
    assert weights.max() == 1.0 == weights[4, 2]
    # deviation: an eighth of the side
    assert weights[4, 3] == pytest.approx(math.exp(-0.5 * (1 / (5 / 8)) ** 2), rel=1e-5)


def test_a_model_with_several_maps_and_half_precision_volumes():
    model = create_model("nnunet-nano", num_dimensions=2, deep_supervision=True)
    got = predict_by_patches(model, torch.randn(1, 1, 20, 18), (16, 16))
    assert got.shape == (1, 2, 20, 18)
    half = predict_by_patches(Pointwise((4, 4)), torch.randn(1, 1, 6, 6).bfloat16(), (4, 4))
    assert half.dtype == torch.bfloat16
    with pytest.raises(ValueError, match=r"patch=\(4,\) must have one side .* overlap=1.0 must"):
        predict_by_patches(model, torch.zeros(1, 1, 8, 8), (4,), overlap=1.0)
