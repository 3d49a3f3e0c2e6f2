"""The incompressible solver against closed forms, invariants and its order of convergence."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from pelagos.data_pipelines.generate import solve_navier_stokes
from pelagos.data_pipelines.generate.navier_stokes import poseidon_spectral_viscosity
from pelagos.data_pipelines.generate.spectral import resample, velocity_from_vorticity

TAU = 2.0 * math.pi


def grid(n: int) -> tuple[Tensor, Tensor]:
    nodes = torch.arange(n, dtype=torch.float64) / n
    y, x = torch.meshgrid(nodes, nodes, indexing="ij")
    return x, y


def taylor_green(n: int, mean: tuple[float, float] = (0.0, 0.0), time: float = 0.0) -> Tensor:
    """The vortex array carried by a mean flow, not decayed; [1, 2, y, x]."""
    x, y = grid(n)
    x, y = TAU * (x - mean[0] * time), TAU * (y - mean[1] * time)
    u = mean[0] + torch.sin(x) * torch.cos(y)
    v = mean[1] - torch.cos(x) * torch.sin(y)
    return torch.stack((u, v))[None]


def random_flow(n: int, modes: int, seed: int, speed: float = 1.0) -> Tensor:
    """A smooth random flow with content up to `modes`/2, [1, 2, y, x]."""
    noise = np.random.default_rng(seed).standard_normal((1, 1, modes, modes))
    vorticity = resample(torch.from_numpy(noise), (n, n))[:, 0]
    velocity = velocity_from_vorticity(vorticity)
    return velocity * (speed / velocity.abs().max())


def divergence(velocity: Tensor) -> Tensor:
    n = velocity.shape[-1]
    k = torch.fft.fftfreq(n, 1.0 / n, dtype=velocity.dtype) * TAU
    spectrum = torch.fft.fft2(velocity)
    total = 1j * k * spectrum[..., 0, :, :] + 1j * k[:, None] * spectrum[..., 1, :, :]
    return torch.fft.ifft2(total).real


def test_taylor_green_decays_at_the_rate_of_its_closed_form() -> None:
    viscosity, times = 0.01, [0.0, 0.1, 0.5]
    frames = solve_navier_stokes(taylor_green(24), times, viscosity=viscosity)
    for k, time in enumerate(times):
        exact = taylor_green(24)[0] * math.exp(-2.0 * TAU**2 * viscosity * time)
        # The vortices feel no self-advection and D is exact: only round-off is left, some
        # hundred operations of 1e-16 each.
        torch.testing.assert_close(frames[0, k], exact, rtol=0.0, atol=1e-13)


def test_taylor_green_in_a_mean_wind_is_carried_and_decays() -> None:
    mean, viscosity, time = (1.0, -0.5), 0.005, 0.4
    start = taylor_green(32, mean)
    frames = solve_navier_stokes(start, [0.0, time], viscosity=viscosity, max_step=time / 200)
    wind = torch.tensor(mean, dtype=torch.float64).view(2, 1, 1)
    vortices = taylor_green(32, mean, time)[0] - wind
    exact = wind + vortices * math.exp(-2.0 * TAU**2 * viscosity * time)
    # RK4 on a mode turning at 2 pi (1 + 0.5): phase error (w h)^5 / 120 per step of h = 0.002 is
    # 2e-11, over 200 steps 5e-9.
    torch.testing.assert_close(frames[0, 1], exact, rtol=0.0, atol=1e-8)


def test_fourth_order_in_time() -> None:
    start = random_flow(32, 8, seed=1)
    reference = solve_navier_stokes(start, [0.0, 0.2], viscosity=1e-3, max_step=0.2 / 640)[0, 1]
    steps = [10, 20, 40]
    errors = []
    for count in steps:
        size = 0.2 / count
        frames = solve_navier_stokes(start, [0.0, 0.2], viscosity=1e-3, max_step=size, cfl=1e9)
        errors.append(float((frames[0, 1] - reference).abs().max()))
    slope = -np.polyfit(np.log(steps), np.log(errors), 1)[0]
    assert 3.7 < slope < 4.6, (slope, errors)


def test_spectral_accuracy_in_space() -> None:
    """The error falls faster than any power: each doubling gains far more than the one before."""
    start = random_flow(128, 8, seed=2)
    viscosity, times = 2e-3, [0.0, 0.3]
    reference = solve_navier_stokes(start, times, viscosity=viscosity, max_step=0.003)[:, 1]
    errors = []
    for n in (16, 32, 64):
        coarse = solve_navier_stokes(
            resample(start, (n, n)), times, viscosity=viscosity, max_step=0.003
        )[:, 1]
        errors.append(float((coarse - resample(reference, (n, n))).abs().max()))
    first, second = math.log2(errors[0] / errors[1]), math.log2(errors[1] / errors[2])
    assert second > first + 2.0, errors
    assert second > 8.0, errors


def test_tracer_is_carried_by_a_mean_flow_and_diffuses() -> None:
    x, y = grid(32)
    velocity = torch.stack((torch.full_like(x, 0.5), torch.full_like(x, -1.0)))[None]
    kappa, time = 0.01, 0.3
    tracer = (1.0 + torch.sin(TAU * x) * torch.cos(2.0 * TAU * y))[None, None]
    frames = solve_navier_stokes(
        velocity, [0.0, time], tracer=tracer, tracer_diffusivity=kappa, max_step=0.3 / 400
    )
    decay = math.exp(-kappa * TAU**2 * (1 + 4) * time)
    moved = torch.sin(TAU * (x - 0.5 * time)) * torch.cos(2.0 * TAU * (y + time))
    # (w h)^5 / 120 with w = 2 pi (0.5 + 2), h = 7.5e-4, 400 steps: 8e-10.
    torch.testing.assert_close(frames[0, 1, 2], 1.0 + decay * moved, rtol=0.0, atol=5e-9)
    torch.testing.assert_close(frames[0, 1, :2], velocity[0], rtol=0.0, atol=1e-14)


def test_tracer_mass_is_conserved_and_its_variance_never_grows() -> None:
    x, y = grid(32)
    tracer = torch.exp(-40.0 * ((x - 0.5) ** 2 + (y - 0.5) ** 2))[None, None]
    times = [0.05 * k for k in range(9)]
    frames = solve_navier_stokes(
        random_flow(32, 8, seed=3), times, tracer=tracer, tracer_diffusivity=1e-3
    )
    mass = frames[0, :, 2].mean(dim=(-2, -1))
    # The mean mode's slope is exactly zero; what is left is the inverse transform's rounding.
    torch.testing.assert_close(mass, mass[:1].expand(9), rtol=0.0, atol=1e-15)
    variance = frames[0, :, 2].var(dim=(-2, -1))
    assert bool((variance[1:] < variance[:-1]).all())


@pytest.mark.parametrize("steady", [True, False])
def test_kolmogorov_flow_reaches_its_laminar_balance(steady: bool) -> None:
    """f = (F sin(4 pi y), 0) balances viscosity at u = F / (nu (4 pi)^2) sin(4 pi y)."""
    _, y = grid(16)
    viscosity, strength = 0.05, 0.1
    shape = torch.stack((torch.sin(2.0 * TAU * y), torch.zeros_like(y)))
    rate = viscosity * (2.0 * TAU) ** 2
    forcing = strength * shape if steady else lambda time: strength * math.exp(-time) * shape
    times = [0.0, 0.25, 1.0]
    frames = solve_navier_stokes(
        torch.zeros(1, 2, 16, 16, dtype=torch.float64),
        times,
        viscosity=viscosity,
        forcing=forcing,
        max_step=0.01,
    )
    for k, time in enumerate(times):
        if steady:
            amplitude = strength / rate * (1.0 - math.exp(-rate * time))
        else:
            amplitude = strength * (math.exp(-time) - math.exp(-rate * time)) / (rate - 1.0)
        # Lawson's method treats forcing with RK4: (rate h)^4 / 2880 relative, h = 0.01: 1e-8.
        torch.testing.assert_close(frames[0, k], amplitude * shape, rtol=0.0, atol=1e-9)


def test_gradient_forcing_is_taken_up_by_the_pressure() -> None:
    x, y = grid(16)
    slope = torch.stack(
        (torch.cos(TAU * x) * torch.sin(TAU * y), torch.sin(TAU * x) * torch.cos(TAU * y))
    )
    start = taylor_green(16)
    plain = solve_navier_stokes(start, [0.0, 0.2], viscosity=1e-2)
    forced = solve_navier_stokes(start, [0.0, 0.2], viscosity=1e-2, forcing=slope)
    torch.testing.assert_close(forced, plain, rtol=0.0, atol=1e-14)


def test_energy_never_grows_and_the_flow_stays_divergence_free() -> None:
    n = 48
    start = random_flow(n, 24, seed=4, speed=2.0)
    times = [0.05 * k for k in range(13)]
    frames = solve_navier_stokes(start, times, spectral_viscosity=poseidon_spectral_viscosity(n))
    energy = frames.square().sum(dim=(2, 3, 4))[0]
    assert bool((energy[1:] <= energy[:-1]).all())
    assert energy[-1] < energy[0] * 0.999
    # Derivatives amplify the rounding of the velocity (1e-15) by at most 2 pi n / 2.
    assert float(divergence(frames).abs().max()) < 1e-15 * TAU * n * 10
    momentum = frames.mean(dim=(-2, -1))
    assert float(momentum.abs().max()) < 1e-15


def test_spectral_viscosity_leaves_large_scales_alone() -> None:
    """On a grid of 64 points modes up to |k| = 8 are inviscid, higher ones are damped."""
    x, _ = grid(64)
    rates = []
    for mode in (8, 9):
        velocity = torch.stack((torch.zeros_like(x), torch.sin(TAU * mode * x)))[None]
        frames = solve_navier_stokes(velocity, [0.0, 0.1], spectral_viscosity=1e-2)
        ratio = frames[0, 1, 1].abs().max() / frames[0, 0, 1].abs().max()
        rates.append(-math.log(float(ratio)) / 0.1)
    assert abs(rates[0]) < 1e-12
    # eps (2 pi)^2 (k^2 - N), sampled at the same points, so the ratio is exact to round-off.
    assert rates[1] == pytest.approx(1e-2 * TAU**2 * (81 - 64), rel=1e-11)


def test_transposition_and_shift_symmetry() -> None:
    start = random_flow(32, 8, seed=5)
    times = [0.0, 0.3]
    frames = solve_navier_stokes(start, times, viscosity=1e-3, max_step=0.01)
    turned = solve_navier_stokes(
        start.flip(1).transpose(-1, -2), times, viscosity=1e-3, max_step=0.01
    )
    # Same arithmetic in another order: round-off grown by 30 steps of a smooth flow.
    torch.testing.assert_close(turned.flip(2).transpose(-1, -2), frames, rtol=0.0, atol=1e-12)
    moved = solve_navier_stokes(start.roll((5, 9), (-2, -1)), times, viscosity=1e-3, max_step=0.01)
    torch.testing.assert_close(moved.roll((-5, -9), (-2, -1)), frames, rtol=0.0, atol=1e-12)


def test_wrong_shapes_are_refused() -> None:
    start = taylor_green(16)
    with pytest.raises(ValueError, match="velocity of shape"):
        solve_navier_stokes(start[0], [0.0, 1.0])
    with pytest.raises(ValueError, match="tracer of shape"):
        solve_navier_stokes(start, [0.0, 1.0], tracer=torch.zeros(1, 1, 8, 8))
    with pytest.raises(ValueError, match="forcing of shape"):
        solve_navier_stokes(start, [0.0, 1.0], forcing=torch.zeros(2, 8, 8))
    with pytest.raises(ValueError, match="strictly increase"):
        solve_navier_stokes(start, [0.0, 0.5, 0.5])
    with pytest.raises(ValueError, match="even numbers"):
        solve_navier_stokes(start[..., :15, :15], [0.0, 1.0])
    with pytest.raises(ValueError, match="viscosity of shape"):
        solve_navier_stokes(start, [0.0, 1.0], viscosity=torch.zeros(3))
