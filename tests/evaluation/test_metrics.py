"""Metrics against closed forms."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from pelagos.evaluation.measures import metrics
from pelagos.models import losses

N = 32


def wave(kx: int, ky: int, amplitude: float = 1.0) -> Tensor:
    """``amplitude * sin(2π (kx x + ky y))`` on nodes, ``[1, N, N]`` fp64."""
    node = torch.arange(N, dtype=torch.float64) / N
    y, x = torch.meshgrid(node, node, indexing="ij")
    return (amplitude * torch.sin(2 * math.pi * (kx * x + ky * y)))[None]


@pytest.mark.parametrize("name", list(metrics.METRICS))
def test_a_perfect_forecast_scores_zero(name: str):
    truth = torch.randn(3, 2, N, N)
    assert torch.equal(metrics.METRICS[name](truth, truth), torch.zeros(3, dtype=torch.float64))


@pytest.mark.parametrize("name", list(metrics.METRICS))
def test_metrics_keep_leading_axes_and_score_samples_apart(name: str):
    forecast, truth = torch.randn(4, 3, 2, N, N), torch.randn(4, 3, 2, N, N)
    together = metrics.METRICS[name](forecast, truth)
    assert together.shape == (4, 3)
    alone = metrics.METRICS[name](forecast[2, 1], truth[2, 1])
    torch.testing.assert_close(together[2, 1], alone, rtol=1e-12, atol=0)


def test_relative_errors_of_a_scaled_truth_are_the_scale():
    truth = torch.randn(2, 3, N, N, dtype=torch.float64)
    for metric in (metrics.relative_l1, metrics.relative_l2, metrics.nrmse):
        got = metric(1.25 * truth, truth)
        torch.testing.assert_close(got, torch.full((2,), 0.25, dtype=torch.float64))


def test_relative_l1_pools_the_components_of_a_vector():
    truth = torch.stack([torch.full((N, N), 3.0), torch.full((N, N), 1.0)])
    forecast = truth + torch.tensor([1.0, -1.0])[:, None, None]
    assert float(metrics.relative_l1(forecast, truth)) == 2.0 / 4.0
    assert float(metrics.relative_l2(forecast, truth)) == pytest.approx(math.sqrt(2 / 10))


def test_vrmse_of_the_spatial_mean_is_one():
    truth = 5.0 + wave(2, 1)
    forecast = torch.full_like(truth, 5.0)
    assert float(metrics.vrmse(forecast, truth)) == pytest.approx(1.0, rel=1e-12)
    # in whatever units: a variance of 5e-17 is no constant field
    tiny = metrics.vrmse(1e-8 * forecast, 1e-8 * truth)
    assert float(tiny) == pytest.approx(1.0, rel=1e-9)


def test_vrmse_of_a_vector_takes_each_component_about_its_own_mean():
    truth = torch.cat([100.0 + wave(1, 0), -100.0 + wave(0, 1)])
    forecast = truth + 1.0
    assert float(metrics.vrmse(forecast, truth)) == pytest.approx(math.sqrt(2.0), rel=1e-6)


def test_spectrum_of_a_sine_is_one_line():
    spectrum = metrics.energy_spectrum(wave(3, 4, amplitude=2.0)[0])  # |k| = 5
    expected = torch.zeros(N // 2 + 1, dtype=torch.float64)
    expected[5] = 0.5 * 2.0**2 / 2  # half the mean square of 2 sin
    torch.testing.assert_close(spectrum, expected, rtol=1e-12, atol=1e-12)


def test_spectrum_rounds_wave_vectors_to_the_nearest_shell():
    assert int(metrics.energy_spectrum(wave(2, 2)[0]).argmax()) == 3  # |k| = 2.83
    assert int(metrics.energy_spectrum(wave(1, 1)[0]).argmax()) == 1  # |k| = 1.41


@pytest.mark.parametrize("centred", [True, False])
def test_shells_add_up_to_the_mean_square(centred: bool):
    field = torch.randn(2, 24, 40, dtype=torch.float64)
    total = metrics.shell_energy(field, centred=centred).sum(-1)
    torch.testing.assert_close(total, field.square().mean((-2, -1)), rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("kx", "ky", "band"),
    [(3, 0, "low"), (2, 3, "low"), (0, 4, "mid"), (8, 8, "mid"), (12, 0, "high")],
)
def test_an_error_of_one_wave_lies_in_one_band(kx: int, ky: int, band: str):
    truth = torch.randn(1, N, N, dtype=torch.float64)
    forecast = truth + wave(kx, ky, amplitude=0.3)
    for name in metrics.SPECTRAL_BANDS:
        expected = 0.3 / math.sqrt(2) if name == band else 0.0
        got = float(metrics.spectral_rmse(forecast, truth, name))
        assert got == pytest.approx(expected, abs=1e-12)


def test_band_errors_square_to_the_mean_square_error():
    forecast, truth = torch.randn(2, N, N), torch.randn(2, N, N)
    total = sum(
        metrics.spectral_rmse(forecast, truth, band) ** 2 for band in metrics.SPECTRAL_BANDS
    )
    mse = (forecast.double() - truth.double()).square().mean()
    torch.testing.assert_close(total, mse, rtol=1e-12, atol=0)


def test_a_forecast_that_is_not_finite_has_no_finite_error():
    truth = torch.randn(1, N, N)
    forecast = truth.clone()
    forecast[0, 0, 3] = float("nan")  # on the boundary, which one metric sees alone
    for name, metric in metrics.METRICS.items():
        assert not torch.isfinite(metric(forecast, truth)), name


def published_frmse(error: np.ndarray, low: int, high: int) -> tuple[float, float, float]:
    """PDEBench's fRMSE of one channel on a domain of side 1: low, middle, high, by its formula."""
    sides = error.shape
    modes = np.abs(np.fft.fftn(error)) ** 2
    if len(sides) == 1:
        roots = np.sqrt(modes[: sides[0] // 2 + 1])
    else:
        num_shells = min(side // 2 for side in sides)
        sums = np.zeros(num_shells)
        for wave_vector in itertools.product(*(range(side // 2) for side in sides)):
            shell = math.floor(math.sqrt(sum(k * k for k in wave_vector)))
            if shell < num_shells:
                sums[shell] += modes[wave_vector]
        roots = np.sqrt(sums)
    roots = roots / error.size
    return roots[:low].mean(), roots[low:high].mean(), roots[high:].mean()


@pytest.mark.parametrize("sides", [(40,), (41,), (32, 32), (27, 36), (26, 28, 27)])
def test_frmse_is_pdebenchs(sides: tuple[int, ...]):
    rng = np.random.default_rng(3)
    truth, forecast = rng.normal(size=(2, 2, *sides))
    for index, band in enumerate(("low", "mid", "high")):
        by_channel = [published_frmse(forecast[c] - truth[c], 4, 12)[index] for c in range(2)]
        got = metrics.METRICS[f"frmse_{band}"](
            torch.from_numpy(forecast), torch.from_numpy(truth), len(sides)
        )
        assert float(got) == pytest.approx(np.mean(by_channel), rel=1e-10), band
        ours = metrics.spectral_rmse(
            torch.from_numpy(forecast), torch.from_numpy(truth), band, len(sides)
        )
        assert float(ours) > 1.5 * float(got)  # a sum over shells, not a mean


def test_the_bound_of_vanishing_truths_is_that_of_the_losses():
    assert metrics.SMALLEST_LABEL == losses.SMALLEST_LABEL


@pytest.mark.parametrize("value", [0.1, 280.0, -3e-5])
def test_a_constant_field_has_no_vrmse_and_a_size(value: float):
    truth = torch.full((1, N, N), value)
    rounded = torch.nextafter(truth, 2 * truth)
    rounded[0, ::2] = value
    for constant in (truth, rounded):
        assert metrics.vrmse(constant * 1.25, constant).isnan()
        assert metrics.is_undefined("vrmse", constant)
        assert not metrics.is_undefined("relative_l1", constant)
        assert float(metrics.relative_l1(constant * 1.25, constant)) == pytest.approx(0.25)
    varied = truth.double() * (1 + 1e-4 * wave(1, 0))
    assert not metrics.is_undefined("vrmse", varied)
    # 0.25 of the value, over 1e-4 of it times the deviation of a sine
    expected = 0.25 / (1e-4 / math.sqrt(2))
    assert float(metrics.vrmse(varied + 0.25 * value, varied)) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("name", ["relative_l1", "relative_l2", "nrmse", "vrmse"])
def test_a_truth_of_zeros_has_no_relative_error(name: str):
    truth = torch.zeros(2, 1, N, N)
    truth[1] = torch.randn(1, N, N)
    assert metrics.METRICS[name](truth, truth).isnan().tolist() == [True, False]
    assert metrics.METRICS[name](truth + 1, truth).isnan().tolist() == [True, False]
    assert metrics.is_undefined(name, truth).tolist() == [True, False]
    for of_units in ("rmse", "conserved_rmse", "boundary_rmse", "max_error", "spectral_rmse_low"):
        assert metrics.is_undefined(of_units, truth).tolist() == [False, False]


def test_what_is_small_beside_its_dataset_vanishes_as_in_the_losses():
    truth = torch.stack([2e-6 + 1e-6 * wave(1, 0), 2e-3 + 1e-3 * wave(1, 0)])
    for name in ("relative_l1", "vrmse"):
        assert metrics.is_undefined(name, truth).tolist() == [False, False]
        assert metrics.is_undefined(name, truth, scale=10.0).tolist() == [True, False]


@pytest.mark.parametrize("name", ["frmse_high", "spectral_rmse_high"])
def test_a_band_that_the_grid_lacks_is_undefined_not_perfect(name: str):
    truth = torch.randn(3, 1, 16, 16)  # |k| reaches sqrt(2) * 8 = 11.3
    assert metrics.METRICS[name](truth + 1, truth).isnan().all()
    assert metrics.is_undefined(name, truth).tolist() == [True] * 3
    assert not metrics.is_undefined(name, torch.randn(3, 1, 32, 32)).any()


def test_a_shift_is_what_is_not_conserved_and_a_wave_is():
    truth = torch.randn(1, N, N, dtype=torch.float64)
    shifted = metrics.conserved_rmse(truth + 0.25, truth)
    assert float(shifted) == pytest.approx(0.25)
    assert float(metrics.rmse(truth + 0.25, truth)) == pytest.approx(0.25)
    # a whole wave has mean 0 and root mean square 1 / sqrt 2
    assert float(metrics.conserved_rmse(truth + wave(2, 1), truth)) == pytest.approx(0, abs=1e-15)
    assert float(metrics.rmse(truth + wave(2, 1), truth)) == pytest.approx(2**-0.5)


def test_the_boundary_counts_each_outermost_point_once():
    truth = torch.zeros(1, 4, 5, dtype=torch.float64)
    inside, corner = truth.clone(), truth.clone()
    inside[0, 1:3, 1:4] = 7.0
    corner[0, 0, 0] = 3.0
    assert float(metrics.boundary_rmse(inside, truth)) == 0.0
    # 4 x 5 points have 14 on the boundary
    assert float(metrics.boundary_rmse(corner, truth)) == pytest.approx(3.0 / 14**0.5)
    assert float(metrics.max_error(corner - inside, truth)) == 7.0


@pytest.mark.parametrize("sides", [(24,), (6, 8, 10)])
@pytest.mark.parametrize("name", list(metrics.METRICS))
def test_lines_and_volumes_are_scored_over_all_their_points(name: str, sides: tuple[int, ...]):
    truth = torch.randn(3, 2, *sides)
    metric = metrics.METRICS[name]
    scores = metric(truth + 0.5, truth, len(sides))
    assert scores.shape == (3,)
    alone = metric(truth[1] + 0.5, truth[1], len(sides))
    torch.testing.assert_close(scores[1], alone, rtol=1e-12, atol=0, equal_nan=True)
    if name in ("rmse", "conserved_rmse", "boundary_rmse", "max_error", "spectral_rmse_low"):
        expected = torch.full((3,), 0.5, dtype=torch.float64)  # a shift is at every point the same
        torch.testing.assert_close(scores, expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("sides", [(24,), (6, 8, 10)])
def test_shells_of_lines_and_volumes_hold_all_energy_and_waves_lie_in_theirs(
    sides: tuple[int, ...],
):
    field = torch.randn(2, *sides, dtype=torch.float64)
    total = metrics.shell_energy(field, centred=False, num_dimensions=len(sides)).sum(-1)
    mean_square = field.square().flatten(1).mean(1)
    torch.testing.assert_close(total, mean_square, rtol=1e-12, atol=0)
    places = torch.meshgrid(*(torch.arange(n).double() / n for n in sides), indexing="ij")
    numbers = (3,) if len(sides) == 1 else (2, 1, 2)  # |k| = 3
    phase = sum(k * place for k, place in zip(numbers, places, strict=True))
    spectrum = metrics.energy_spectrum(torch.sin(2 * math.pi * phase), len(sides))
    assert len(spectrum) == min(sides) // 2 + 1
    assert float(spectrum[3]) == pytest.approx(0.25)  # half the mean square of a sine


def test_the_boundary_of_a_volume_is_its_faces_and_of_a_line_its_ends():
    volume = torch.zeros(1, 4, 5, 6)
    inside, corner = volume.clone(), volume.clone()
    inside[0, 1:-1, 1:-1, 1:-1] = 7.0
    corner[0, 0, 0, 0] = 3.0
    assert float(metrics.boundary_rmse(inside, volume, 3)) == 0.0
    faces = 4 * 5 * 6 - 2 * 3 * 4
    assert float(metrics.boundary_rmse(corner, volume, 3)) == pytest.approx(3 / faces**0.5)
    line = torch.zeros(1, 9)
    end = line.clone()
    end[0, 8] = 3.0
    assert float(metrics.boundary_rmse(end, line, 1)) == pytest.approx(3 / 2**0.5)
