"""Fourier neural operators: the same on every grid, mode by mode, dense and factorised."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from pelagos.models.fno import FNO, TFNO, FNOConfig, TFNOConfig
from pelagos.models.layers.spectral_layers import SpectralConvolution, field_of_modes, lowest_modes

SMALL_FNO = {"in_channels": 2, "out_channels": 1, "modes": 4, "width": 8, "num_layers": 2}


def waves(rows: int, columns: int, highest: int = 3) -> Tensor:
    """One random field ``[1, 2, rows, columns]`` of wave numbers up to ``highest``, any grid."""
    generator = torch.Generator().manual_seed(2)
    y = torch.arange(rows, dtype=torch.float64)[:, None] / rows
    x = torch.arange(columns, dtype=torch.float64) / columns
    field = torch.zeros(2, rows, columns, dtype=torch.float64)
    for channel in range(2):
        for k in range(-highest, highest + 1):
            for m in range(highest + 1):
                amplitude, shift = torch.rand(2, generator=generator, dtype=torch.float64)
                phase = k * y + m * x + shift
                field[channel] += amplitude / 10 * torch.cos(2 * math.pi * phase)
    return field[None].float()


def across_resolutions(model: FNO, highest: int) -> float:
    """How much the predictions from 32² and 64² samples differ at the points they share."""
    with torch.no_grad():
        coarse, fine = (
            model(waves(side, side, highest), torch.tensor([0.5])).output for side in (32, 64)
        )
    return ((coarse - fine[..., ::2, ::2]).abs().max() / fine.abs().max()).item()


def test_fno_means_the_same_on_every_grid_that_resolves_the_field():
    torch.manual_seed(0)
    functional = FNO(FNOConfig(**SMALL_FNO, use_coordinates=False))
    # fp32, and harmonics that GELU makes above wave number 28, which 32 points alias into the modes
    assert across_resolutions(functional, highest=3) < 1e-5
    assert across_resolutions(functional, highest=20) > 1e-2  # 32 points do not resolve this
    # a coordinate jumps from 1 to 0 at the edge: a function that no grid resolves
    assert across_resolutions(FNO(FNOConfig(**SMALL_FNO)), highest=3) > 1e-3


def test_fno_commutes_with_translations_unless_it_sees_coordinates():
    frame, time, shift = waves(16, 20), torch.tensor([0.5]), (3, 7)
    torch.manual_seed(0)
    for use_coordinates in (False, True):
        model = FNO(FNOConfig(**SMALL_FNO, use_coordinates=use_coordinates))
        with torch.no_grad():
            moved = model(frame.roll(shift, (2, 3)), time).output
            difference = (moved - model(frame, time).output.roll(shift, (2, 3))).norm()
        assert (difference > 1e-2 * moved.norm()) == use_coordinates
        assert use_coordinates or difference < 1e-5 * moved.norm()


@pytest.mark.parametrize("grid", [(9,), (8, 11), (7, 6, 9)])
def test_each_mode_is_multiplied_by_its_own_matrix(grid: tuple[int, ...]):
    # cos(2π k·x) in channel i becomes Re(W[k, i, o] exp(2πi k·x)) in channel o
    modes, dimensions = 3, len(grid)
    convolution = SpectralConvolution(4, modes, dimensions).double()
    convolution.reset_parameters()
    numbers = (-2, 1, 2)[-dimensions:]
    axes = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) / n for n in grid), indexing="ij")
    phase = 2 * math.pi * sum(k * axis for k, axis in zip(numbers, axes, strict=True))
    field = torch.zeros(1, 4, *grid, dtype=torch.float64)
    field[0, 1] = torch.cos(phase)
    matrix = torch.view_as_complex(convolution.weight.detach())[numbers][1]
    expected = torch.stack([(w * torch.exp(1j * phase)).real for w in matrix])
    with torch.no_grad():
        torch.testing.assert_close(convolution(field)[0], expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("grid", [(9,), (8, 11), (7, 6, 9)])
def test_a_field_of_the_kept_modes_alone_survives_them(grid: tuple[int, ...]):
    noise = torch.randn(2, 3, *grid, dtype=torch.float64)
    once = field_of_modes(lowest_modes(noise, 3, len(grid)), 3, noise.shape[2:])
    again = field_of_modes(lowest_modes(once, 2, len(grid)), 2, noise.shape[2:])
    assert (once - noise).norm() > 0.1 * noise.norm()
    series = torch.fft.fftn(again, dim=tuple(range(2, noise.ndim)))
    kept = torch.fft.fftfreq(grid[0], 1 / grid[0]).abs() <= 2
    assert series[:, :, ~kept].abs().max() < 1e-10
    twice = field_of_modes(lowest_modes(again, 3, len(grid)), 3, noise.shape[2:])
    torch.testing.assert_close(twice, again, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dimensions", [1, 2, 3])
def test_full_rank_tfno_is_the_fno_of_its_contracted_weights(dimensions: int):
    options = {**SMALL_FNO, "modes": 2, "num_dimensions": dimensions}
    torch.manual_seed(0)
    factorised = TFNO(TFNOConfig(**options, rank=1.0))
    dense = FNO(FNOConfig(**options))
    state, weights = factorised.state_dict(), dense.state_dict()
    for key in weights:
        weights[key] = state[key] if key in state else contracted(state, key, dimensions)
    dense.load_state_dict(weights)
    frame, time = torch.randn(2, 2, *(5, 6, 4)[:dimensions]), torch.tensor([0.1, 0.8])
    with torch.no_grad():
        expected, got = dense(frame, time).output, factorised(frame, time).output
    # the same sums in another order, a few hundred terms
    assert (got - expected).norm() < 1e-5 * expected.norm()
    assert contracted(state, "layers.0.spectral.weight", dimensions).shape[0] == 2 * 2 ** (
        dimensions > 1
    )


def contracted(state: dict[str, Tensor], key: str, dimensions: int) -> Tensor:
    """The dense weight that core and factors of a TFNO stand for."""
    stem = key.removesuffix("weight")
    core, left, right, *modes = (
        torch.view_as_complex(state[stem + name])
        for name in (
            "core",
            "input_factor",
            "output_factor",
            *(f"mode_factor_{axis}" for axis in range(dimensions)),
        )
    )
    small, large = "abc"[:dimensions], "ABC"[:dimensions]
    factors = ",".join(f"{k}{r}" for k, r in zip(large, small, strict=True))
    weight = torch.einsum(f"{small}pq,ip,oq,{factors}->{large}io", core, left, right, *modes)
    return torch.view_as_real(weight)


def test_a_low_rank_saves_parameters_and_starts_with_the_same_energy():
    torch.manual_seed(0)
    low = TFNO(TFNOConfig(modes=8, width=32, num_layers=1, rank=0.5)).layers[0].spectral
    full = SpectralConvolution(32, 8, 2)
    sizes = [sum(p.numel() for p in module.parameters()) for module in (low, full)]
    factors = 16 * 8 + 8 * 4 + 2 * 32 * 16  # of two axes of modes, of channels in and out
    assert sizes == [0.5**4 * 2 * 16 * 8 * 32 * 32 + 2 * factors, 2 * 16 * 8 * 32 * 32]
    weight = contracted({f"x.{k}": v for k, v in low.state_dict().items()}, "x.weight", 2)
    full.reset_parameters()
    # one draw of a random tensor's energy; 16 factors' columns make it vary by some 20 percent
    assert 0.5 < (weight.square().mean() / full.weight.square().mean()).item() < 2


# periodic grids ---------------------------------------------------------------------------------
