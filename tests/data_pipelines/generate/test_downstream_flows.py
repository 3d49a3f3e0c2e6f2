"""Poseidon's downstream flows: initial states against their formulas, forcing, gravity."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from pelagos.data_pipelines.generate import (
    FAMILIES,
    downstream_flows,
    euler,
    generate_trajectories,
    solve_euler,
    solve_navier_stokes,
    trajectory_generator,
)
from pelagos.data_pipelines.generate.euler import Gravity, to_conserved
from pelagos.data_pipelines.generate.navier_stokes import poseidon_spectral_viscosity

TAU = 2.0 * math.pi
INCOMPRESSIBLE = ["NS-PwC", "NS-BB", "NS-SL", "NS-SVS", "NS-Tracer-PwC", "FNS-KF"]


def draw(name: str, index: int, resolution: int) -> np.ndarray:
    return FAMILIES[name].initial_state(trajectory_generator(0, name, index), resolution)


def solved(name: str, resolution: int, times: list[float]) -> Tensor:
    """Two trajectories in double precision, [2, time, channel, y, x]."""
    family = FAMILIES[name]
    states = torch.from_numpy(np.stack([draw(name, i, resolution) for i in range(2)]))
    return family.solve(states, times, family.cfl)


def divergence(velocity: Tensor) -> Tensor:
    n = velocity.shape[-1]
    k = torch.fft.fftfreq(n, 1.0 / n, dtype=velocity.dtype) * TAU
    spectrum = torch.fft.fft2(velocity)
    total = 1j * k * spectrum[..., 0, :, :] + 1j * k[:, None] * spectrum[..., 1, :, :]
    return torch.fft.ifft2(total).real


@pytest.mark.parametrize("name", INCOMPRESSIBLE)
def test_incompressible_flows_have_no_divergence_and_keep_their_momentum(name: str) -> None:
    frames = solved(name, 32, [0.0, 0.1, 0.3])
    velocity = frames[:, :, :2]
    gradient = TAU * 16 * float(velocity.abs().max())
    # Round-off of a gradient of the highest mode; the projected forcing has no mean either.
    assert float(divergence(velocity).abs().max()) < 1e-13 * gradient
    mean = velocity.mean(dim=(-2, -1))
    torch.testing.assert_close(mean, mean[:, :1].expand_as(mean), rtol=0.0, atol=1e-14)
    if name != "FNS-KF":
        energy = (velocity**2).mean(dim=(-3, -2, -1))
        assert bool((energy[:, 1:] < energy[:, :-1]).all())


def test_tracer_keeps_its_mean_and_loses_variance() -> None:
    tracer = solved("NS-Tracer-PwC", 32, [0.0, 0.2, 0.5])[:, :, 2]
    mean = tracer.mean(dim=(-2, -1))
    torch.testing.assert_close(mean, mean[:, :1].expand_as(mean), rtol=1e-13, atol=0.0)
    variance = tracer.var(dim=(-2, -1))
    assert bool((variance[:, 1:] < variance[:, :-1]).all())
    # The disk is cut to the modes of the 2/3 rule: Gibbs's overshoot of a jump, 9 %, doubled where
    # the edge's waves meet.
    assert -0.2 < float(tracer.min()) < 0.0
    assert 1.0 < float(tracer.max()) < 1.2


def test_bridge_matches_its_series_at_a_point() -> None:
    size = downstream_flows.NUM_BRIDGE_MODES
    table = trajectory_generator(0, "NS-BB", 3).uniform(-1.0, 1.0, (2, 2, size, 2, size))
    x, y, total = 5 / 128, 17 / 128, 0.0
    for n in range(1, size + 1):
        for m in range(1, size + 1):
            waves_y = (math.cos(TAU * n * y), math.sin(TAU * n * y))
            waves_x = (math.cos(TAU * m * x), math.sin(TAU * m * x))
            for i in range(2):
                for j in range(2):
                    term = waves_y[i] * waves_x[j] * table[1, i, n - 1, j, m - 1]
                    total += term * (m * m + n * n) ** -0.75
    assert draw("NS-BB", 3, 128)[1, 17, 5] == pytest.approx(total, abs=1e-12)


def test_bridge_spectrum_falls_with_the_cube_of_the_wave_number() -> None:
    power = np.zeros((128, 65))
    for index in range(4):
        power += (np.abs(np.fft.rfft2(draw("NS-BB", index, 128))) ** 2).sum(axis=0)
    k = np.arange(1, 40)
    diagonal = np.array([power[i, i] + power[-i, i] for i in k])
    slope = np.polyfit(np.log(k), np.log(diagonal), 1)[0]
    # |k|^(-3) in power; 32 uniform squares to a mode scatter by 0.9/sqrt(32) = 0.16 in the
    # logarithm, over 39 points spread by 0.9: 0.16/(0.9 sqrt(39)) = 0.03.
    assert slope == pytest.approx(-3.0, abs=0.12)


def test_bridge_is_recorded_after_half_a_unit_of_flow() -> None:
    start = torch.from_numpy(draw("NS-BB", 0, 32))[None]
    eps = poseidon_spectral_viscosity(32)
    longer = solve_navier_stokes(start, [0.0, 0.5, 0.6], spectral_viscosity=eps)
    frames = solved("NS-BB", 32, [0.0, 0.1])
    torch.testing.assert_close(frames[0], longer[0, 1:], rtol=0.0, atol=1e-12)


def test_shear_layers_lie_a_quarter_from_the_perturbed_border() -> None:
    velocity = draw("NS-SL", 1, 256)
    assert not velocity[1].any()
    assert np.abs(velocity[0]).max() <= 1.0
    rising = (velocity[0][:-1] < 0.0) & (velocity[0][1:] >= 0.0)
    falling = (velocity[0][:-1] >= 0.0) & (velocity[0][1:] < 0.0)
    assert (rising.sum(axis=0) == 1).all()
    assert (falling.sum(axis=0) == 1).all()
    lower, upper = rising.argmax(axis=0), falling.argmax(axis=0)
    # Both borders move together: they stay half the square apart, to a cell.
    assert np.abs(upper - lower - 128).max() <= 1
    assert np.ptp(lower) > 3
    assert np.abs(lower / 256 - 0.25).max() < 0.0625 + 0.025 * 12


def test_vortex_sheet_kernel_has_unit_integral_and_support() -> None:
    radius = np.linspace(0.0, 1.2, 120_001)
    values = downstream_flows._spline(radius)
    # The trapezoidal rule for a function with bounded second derivative: step^2 = 1e-10.
    assert np.trapezoid(TAU * radius * values, radius) == pytest.approx(1.0, abs=1e-8)
    assert (values[radius >= 1.0] == 0.0).all()
    assert (values >= 0.0).all()


def test_vortex_sheet_carries_its_length_as_circulation() -> None:
    amplitude, offset = np.full(10, 0.003), np.linspace(0.0, 0.9, 10)
    fine = np.linspace(0.0, 1.0, 100_001)
    slope = 0.2 * TAU * np.cos(TAU * fine)
    for a, b in zip(amplitude, offset, strict=True):
        slope = slope + a * TAU * np.cos(TAU * (fine + b))
    length = float(np.trapezoid(np.sqrt(1.0 + slope**2), fine))
    sizes = [64, 128, 256]
    totals = [downstream_flows.sheet_vorticity(amplitude, offset, n).mean() for n in sizes]
    errors = [abs(total / length - 1.0) for total in totals]
    # A sum over a grid is exact up to the kernel's spectrum at wave number N, which falls like its
    # fourth power: to 1e-3 where the kernel spans ten cells.
    assert errors[1] < 1e-3, errors
    assert errors[2] < 1e-4, errors


def test_kolmogorov_forcing_drives_the_closed_form_from_rest() -> None:
    family = FAMILIES["FNS-KF"]
    state = draw("FNS-KF", 0, 32)
    state[:2] = 0.0
    frames = family.solve(torch.from_numpy(state)[None], [0.0, 0.4], family.cfl)[0]
    # Across the wave vector (1, 1) is (f, -f)/2; such a shear feels no advection, and its wave
    # number is below the spectral viscosity's: it grows linearly.
    grown = 0.4 * 0.5 * torch.from_numpy(state[2])
    expected = torch.stack((grown, -grown, torch.from_numpy(state[2])))
    torch.testing.assert_close(frames[1], expected, rtol=0.0, atol=1e-13)
    assert float(frames[0, 2].std()) == pytest.approx(0.1 / math.sqrt(2.0), rel=1e-3)


def test_uneven_quadrants_are_in_range_and_periodic() -> None:
    state = draw("CE-RPUI", 0, 128)
    assert len(np.unique(state[0])) == 4
    for field, low, high in ((0, 1.0, 3.0), (1, -10.0, 10.0), (2, -10.0, 10.0), (3, 5.0, 7.0)):
        assert low <= state[field].min() <= state[field].max() <= high
    # Four terms of 0.01 move a border by at most 0.04, and do move it.
    centres = (np.arange(128) + 0.5) / 128
    clear = np.abs((centres * 2.0) % 1.0 - 0.5) < 0.5 - 2 * 0.04
    for rows in (centres < 0.5, centres > 0.5):
        for columns in (centres < 0.5, centres > 0.5):
            block = state[0][np.ix_(rows & clear, columns & clear)]
            assert np.unique(block).size == 1
            assert np.unique(state[0][np.ix_(rows, columns)]).size > 1


def test_richtmyer_meshkov_density_has_the_published_mean() -> None:
    states = np.stack([draw("CE-RM", i, 128) for i in range(8)])
    # Conserved, so the mean over all times is the initial one. The squared perturbation adds
    # pi eps^2 sum a^2 / 2 < 1e-4, cells on the front 1e-3.
    assert states[:, 0].mean() == pytest.approx(1.1964245, abs=2e-3)
    assert states[:, 0].mean() == pytest.approx(1.0 + math.pi / 16.0, abs=2e-3)
    assert np.abs(states[0] - states[1]).max() > 0.0


@pytest.mark.parametrize("name", ["CE-RPUI", "CE-RM"])
def test_gas_conserves_mass_momentum_and_energy(name: str) -> None:
    frames = solved(name, 24, [0.0, 0.02, 0.05])
    conserved = to_conserved(frames.flatten(0, 1)).unflatten(0, (2, 3))
    total, scale = conserved.sum(dim=(-2, -1)), conserved.abs().sum(dim=(-2, -1))[:, :1]
    assert bool(((total - total[:, :1]).abs() <= 1e-13 * scale.amax(dim=-1, keepdim=True)).all())


def star(n: int) -> tuple[Tensor, Gravity]:
    """A polytrope without a jump of the density, and its gravity."""
    state = torch.from_numpy(draw("GCE-RT", 0, n))[None].clone()
    constant = state[:, 4] ** 2 / (4.0 * state[:, 3])
    state[:, 0] = state[:, 4] / (-2.0 * constant)
    return state[:, :4], Gravity(state[:, 4], state[:, :4])


def test_rayleigh_taylor_profile_is_hydrostatic_inside_and_heavier_outside() -> None:
    state = draw("GCE-RT", 2, 256)
    density, pressure, potential = state[0], state[3], state[4]
    inside = np.s_[126:130, 100:156]  # a row through the centre, within the front
    force = -np.gradient(potential, 1 / 256, axis=1) * density
    gap = (np.gradient(pressure, 1 / 256, axis=1) - force)[inside]
    middle = np.abs(np.arange(100, 156) - 127.5) < 256 * 0.25 * 0.05
    assert np.abs(gap[:, middle]).max() < 1e-4  # second differences of a smooth profile
    ratio = density / (pressure / -potential * 2.0)  # rho_eq = 2 p / -phi
    assert np.unique(ratio.round(9)).size == 2
    assert 1.04 / 0.96 <= ratio.max() <= 1.06 / 0.94


def test_a_star_at_rest_stays_at_rest_to_the_last_bit() -> None:
    state, gravity = star(32)
    frames = solve_euler(state, [0.0, 0.2], gamma=2.0, gravity=gravity)
    rest = solve_euler(state, [0.0], gamma=2.0)
    assert torch.equal(frames[:, 1], rest[:, 0])


def test_what_the_balance_subtracts_is_a_discretisation_error_of_second_order() -> None:
    sizes, errors = [32, 64, 128], []
    for n in sizes:
        _, gravity = star(n)
        scheme = euler._Scheme(2.0, ("periodic", "periodic"), (float(n), float(n)))
        source = scheme.with_gravity(gravity).source
        assert source is not None
        x = (np.arange(n) + 0.5) / n - 0.5
        radius = np.hypot(x[None, :], x[:, None])
        # Away from the centre, an extremum, and from the kink where the square is continued.
        ring = torch.from_numpy((radius > 0.15) & (radius < 0.4))
        errors.append(float(source.residuals[1][0, 1:3, ring].abs().mean()))
    slope = -np.polyfit(np.log(sizes), np.log(errors), 1)[0]
    assert 1.8 < slope < 2.4, (slope, errors)


def test_gravity_does_work_and_moves_momentum_like_its_density() -> None:
    """A uniform fluid in a plane potential: momentum and energy grow as the source says."""
    n, size, time = 32, 0.01, 0.05
    x = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    potential = (size * torch.sin(TAU * x)).expand(1, n, n).contiguous()
    uniform = torch.zeros(1, 4, n, n, dtype=torch.float64)
    uniform[:, 0], uniform[:, 3] = 1.0, 1.0
    field = Gravity(potential, uniform)
    # `rest` is not hydrostatic here: its residual, the force on it, is taken away from all.
    still = solve_euler(uniform, [0.0, time], gravity=field)
    torch.testing.assert_close(still[:, 1], uniform, rtol=0.0, atol=1e-15)
    heavy = uniform.clone()
    heavy[:, 0] = 1.5
    moved = solve_euler(heavy, [0.0, time], gravity=field)[0, 1]
    force = -0.5 * size * TAU * torch.cos(TAU * x)  # on the excess of density
    # Acoustics over t: cos(2 pi c t) with c = 0.97, an effect of (2 pi c t)^2/6 = 1.5 %.
    torch.testing.assert_close(
        (moved[0] * moved[1]).mean(dim=0),
        force * time,
        rtol=0.0,
        atol=0.03 * 0.5 * size * TAU * time,
    )
    assert float(moved[2].abs().max()) < 1e-14


def test_energy_with_the_potential_is_conserved_at_second_order() -> None:
    sizes, errors = [16, 32, 64], []
    for n in sizes:
        family = FAMILIES["GCE-RT"]
        state = torch.from_numpy(draw("GCE-RT", 0, n))[None]
        frames = family.solve(state, [0.0, 0.25], family.cfl)[0]
        energy = to_conserved(frames[:, :4], 2.0)[:, 3]
        total = (energy + frames[:, 0] * frames[:, 4]).mean(dim=(-2, -1))
        released = (frames[1, 0] - frames[0, 0]).mul(frames[0, 4]).mean()
        errors.append(float((total[1] - total[0]).abs() / released.abs()))
    slope = -np.polyfit(np.log(sizes), np.log(errors), 1)[0]
    assert 1.7 < slope < 2.5, (slope, errors)
    assert errors[-1] < 0.005  # of the energy that the fall has released


def test_rayleigh_taylor_statistics_are_the_published_ones() -> None:
    states = np.stack([draw("GCE-RT", i, 16) for i in range(500)])
    published = FAMILIES["GCE-RT"].published_normalization
    # The mean of one state varies by 20 %: by 1 % over 500 draws, and over the published 1,260 by
    # 0.6 %; twice their sum of squares is allowed.
    for channel, name in ((0, "density"), (3, "pressure"), (4, "potential")):
        mean = published["mean"][name]
        assert states[:, channel].mean() == pytest.approx(mean, rel=0.025), name


def test_rayleigh_taylor_keeps_mass_and_potential_and_coarsens_both() -> None:
    settings = {"seed": 0, "num_frames": 3, "final_time": 0.3, "dtype": "float64"}
    fine = generate_trajectories("GCE-RT", [0], resolution=32, **settings)[0][0]
    coarse = generate_trajectories("GCE-RT", [0], resolution=16, solver_resolution=32, **settings)
    assert fine[:, 0].mean(axis=(1, 2)) == pytest.approx(fine[0, 0].mean(), rel=1e-6)
    assert np.array_equal(fine[0, 4], fine[2, 4])
    blocks = fine[:, [0, 4]].reshape(3, 2, 16, 2, 16, 2).mean(axis=(3, 5))
    np.testing.assert_allclose(coarse[0][0][:, [0, 4]], blocks, rtol=1e-6)
    assert np.abs(fine[2, 1:3]).max() > 1e-3  # the unstable layer starts to fall


def test_gravity_is_refused_where_it_is_not_implemented() -> None:
    state, gravity = star(16)
    with pytest.raises(ValueError, match="periodic"):
        solve_euler(state, [0.0, 0.1], gravity=gravity, boundary_x="outflow")
