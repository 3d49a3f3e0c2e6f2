"""The solvers' parts, one by one, against the same formulas in numpy: fluxes, limited slopes, ghost
cells, rates that bound the step, and what is refused."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pelagos.data_pipelines.generate import (
    euler,
    muscl,
    navier_stokes,
    reaction_diffusion,
    shallow_water,
    spectral,
    wave_equation,
)
from pelagos.data_pipelines.generate.riemann import hllc_flux
from pelagos.data_pipelines.generate.runge_kutta import runge_kutta_step
from pelagos.data_pipelines.generate.semilinear import AllenCahn, Burgers, solve_semilinear
from pelagos.data_pipelines.generate.stepping import march

GAMMA = 1.4


def random_gas(seed: int, count: int = 400) -> np.ndarray:
    """Density, normal and transverse velocity, pressure, [4, count]: slower and faster than sound."""
    rng = np.random.default_rng(seed)
    rho, p = 10.0 ** rng.uniform(-1.5, 1.0, (2, count))
    u, v = rng.normal(0.0, 2.0, (2, count)) * np.sqrt(GAMMA * p / rho)
    return np.stack((rho, u, v, p))


def physical_flux(gas: np.ndarray) -> np.ndarray:
    rho, u, v, p = gas
    energy = p / (GAMMA - 1.0) + 0.5 * rho * (u * u + v * v)
    return np.stack((rho * u, rho * u * u + p, rho * u * v, (energy + p) * u))


def hllc_of_toro(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Toro (2009), eqs. 10.37 to 10.39, with the speeds of Einfeldt (1988), eqs. 10.52 to 10.54."""
    (rho_l, u_l, _, p_l), (rho_r, u_r, _, p_r) = left, right
    root_l, root_r = np.sqrt(rho_l), np.sqrt(rho_r)
    mean_u = (root_l * u_l + root_r * u_r) / (root_l + root_r)
    sound_l, sound_r = np.sqrt(GAMMA * p_l / rho_l), np.sqrt(GAMMA * p_r / rho_r)
    eta = 0.5 * root_l * root_r / (root_l + root_r) ** 2
    squares = (root_l * sound_l**2 + root_r * sound_r**2) / (root_l + root_r)
    mean_sound = np.sqrt(squares + eta * (u_r - u_l) ** 2)
    s_l = np.minimum(u_l - sound_l, mean_u - mean_sound)
    s_r = np.maximum(u_r + sound_r, mean_u + mean_sound)
    above = p_r - p_l + rho_l * u_l * (s_l - u_l) - rho_r * u_r * (s_r - u_r)
    star = above / (rho_l * (s_l - u_l) - rho_r * (s_r - u_r))
    fluxes = []
    for gas, speed in ((left, s_l), (right, s_r)):
        rho, u, v, p = gas
        energy = p / (GAMMA - 1.0) + 0.5 * rho * (u * u + v * v)
        size = rho * (speed - u) / (speed - star)
        per_mass = energy / rho + (star - u) * (star + p / (rho * (speed - u)))
        inside = size * np.stack((np.ones_like(u), star, v, per_mass))
        outside = np.stack((rho, rho * u, rho * v, energy))
        fluxes.append(physical_flux(gas) + speed * (inside - outside))
    middle = np.where(star >= 0.0, *fluxes)
    lower = np.where(s_l >= 0.0, physical_flux(left), middle)
    return np.where(s_r <= 0.0, physical_flux(right), lower)


def test_the_flux_of_a_gas_is_that_of_toros_book() -> None:
    left, right = random_gas(1), random_gas(2)
    expected = hllc_of_toro(left, right)
    found = hllc_flux(torch.from_numpy(left), torch.from_numpy(right), GAMMA).numpy()
    scale = np.abs(physical_flux(left)) + np.abs(physical_flux(right)) + np.abs(expected)
    # a few dozen roundings of terms of this size, which cancel where the gas is much slower than sound
    np.testing.assert_array_less(np.abs(found - expected), 1e-11 * (scale + scale.max(axis=0)))
    same = hllc_flux(torch.from_numpy(left), torch.from_numpy(left), GAMMA).numpy()
    np.testing.assert_allclose(same, physical_flux(left), rtol=1e-10, atol=1e-12)


def test_the_flux_of_shallow_water_is_that_of_toros_book() -> None:
    """HLL (Toro 2001, eq. 10.9) with the speeds of two rarefactions (eq. 10.18)."""
    rng, gravity = np.random.default_rng(3), 1.7
    h_l, h_r = 10.0 ** rng.uniform(-1.0, 1.0, (2, 400))
    u_l, u_r, t_l, t_r = rng.normal(0.0, 3.0, (4, 400))
    c_l, c_r = np.sqrt(gravity * h_l), np.sqrt(gravity * h_r)
    u_star, c_star = (u_l + u_r) / 2 + c_l - c_r, (c_l + c_r) / 2 + (u_l - u_r) / 4
    s_l, s_r = np.minimum(u_l - c_l, u_star - c_star), np.maximum(u_r + c_r, u_star + c_star)
    states = [np.stack((h, h * u)) for h, u in ((h_l, u_l), (h_r, u_r))]
    fluxes = [
        np.stack((h * u, h * u * u + gravity * h * h / 2)) for h, u in ((h_l, u_l), (h_r, u_r))
    ]
    between = s_r * fluxes[0] - s_l * fluxes[1] + s_l * s_r * (states[1] - states[0])
    inside = np.where(s_r <= 0.0, fluxes[1], between / (s_r - s_l))
    expected = np.where(s_l >= 0.0, fluxes[0], inside)
    carried = expected[0] * np.where(expected[0] > 0.0, t_l, t_r)
    left, right = (torch.from_numpy(np.stack(s)) for s in ((h_l, u_l, t_l), (h_r, u_r, t_r)))
    found = shallow_water.hllc_flux(left, right, gravity).numpy()
    np.testing.assert_allclose(found, np.stack((*expected, carried)), rtol=1e-9, atol=1e-9)


def test_limited_slopes_are_van_leers() -> None:
    values = np.random.default_rng(4).normal(0.0, 3.0, (50, 9))
    a, b = np.diff(values)[:, :-1], np.diff(values)[:, 1:]
    smallest = np.minimum(np.abs(a + b) / 4, np.minimum(np.abs(a), np.abs(b)))
    expected = np.where(a * b > 0, np.sign(a) * smallest, 0.0)
    for axis, given in ((-1, values), (-2, values.T)):
        found = muscl.limited_half_slope(torch.from_numpy(given.copy()), axis).numpy()
        np.testing.assert_allclose(found if axis == -1 else found.T, expected, rtol=1e-14)


@pytest.mark.parametrize(("boundary", "mode"), [("periodic", "wrap"), ("outflow", "edge")])
def test_ghost_cells_are_numpys(boundary: Any, mode: Any) -> None:
    fields = np.random.default_rng(5).normal(size=(2, 3, 4, 5))
    for axis in (-1, -2):
        width = [(0, 0)] * 4
        width[axis] = (2, 2)
        found = muscl.pad(torch.from_numpy(fields), axis, boundary).numpy()
        np.testing.assert_array_equal(found, np.pad(fields, width, mode=mode))


def slopes_of(
    module: Any, primitive: np.ndarray, flux: Any, per_length: tuple[float, float]
) -> Any:
    """-div F in numpy, from limited slopes and a flux between primitive states, periodic."""
    total: Any = 0.0
    swapped = [0, 2, 1, 3][: len(primitive)]
    for axis, per in ((-1, per_length[1]), (-2, per_length[0])):
        normal = primitive if axis == -1 else primitive[swapped]
        before, after = np.roll(normal, 1, axis), np.roll(normal, -1, axis)
        a, b = normal - before, after - normal
        smallest = np.minimum(np.abs(a + b) / 4, np.minimum(np.abs(a), np.abs(b)))
        half = np.where(a * b > 0, np.sign(a) * smallest, 0.0)
        left, right = normal + half, np.roll(normal - half, -1, axis)
        through = np.asarray(flux(left, right))  # the face above each cell
        rate = -(through - np.roll(through, 1, axis)) * per
        total = total + (rate if axis == -1 else rate[swapped])
    return total


def test_rates_of_a_gas_are_differences_of_toros_fluxes() -> None:
    gas = random_gas(6, 48).reshape(4, 6, 8)
    expected = slopes_of(euler, gas, hllc_of_toro, (3.0, 5.0))
    given = torch.from_numpy(gas)[None]
    found = euler.euler_slope(given, GAMMA, "periodic", (3.0, 5.0))[0].numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9 * np.abs(expected).max())


def test_rates_of_shallow_water_are_differences_of_its_fluxes() -> None:
    rng = np.random.default_rng(7)
    water = np.stack((rng.uniform(0.5, 2.0, (6, 8)), *rng.normal(0.0, 1.0, (2, 6, 8))))

    def flux(left: np.ndarray, right: np.ndarray) -> np.ndarray:
        sides = (torch.from_numpy(left.copy()), torch.from_numpy(right.copy()))
        return np.asarray(shallow_water.hllc_flux(*sides, 1.7))

    expected = slopes_of(shallow_water, water, flux, (3.0, 5.0))
    found = shallow_water.shallow_water_slope(
        torch.from_numpy(water)[None], 1.7, "periodic", (3, 5)
    )
    np.testing.assert_allclose(found[0].numpy(), expected, rtol=1e-10, atol=1e-10)


def test_gravity_pulls_down_the_slope_of_its_potential() -> None:
    """Beside a uniform state at rest that is kept, gas twice as dense feels twice the force: half of
    its acceleration is left, -d(phi)/dx by central differences."""
    n = 16
    x = (np.arange(n) + 0.5) / n
    potential = np.sin(2 * np.pi * x)[None, :] + 0.3 * np.cos(2 * np.pi * x)[:, None] ** 3
    along_x = -(np.roll(potential, -1, 1) - np.roll(potential, 1, 1)) * n / 2
    along_y = -(np.roll(potential, -1, 0) - np.roll(potential, 1, 0)) * n / 2
    rest = torch.tensor([1.0, 0.0, 0.0, 1.0]).double().view(1, 4, 1, 1).expand(1, 4, n, n)
    heavy = rest * torch.tensor([2.0, 1.0, 1.0, 1.0]).view(1, 4, 1, 1)
    gravity = euler.Gravity(torch.from_numpy(potential)[None], rest.contiguous())
    time = 1e-6
    kept = euler.solve_euler(rest.contiguous(), [0.0, time], gravity=gravity)[0, 1]
    assert torch.equal(kept, rest[0])
    found = euler.solve_euler(heavy.contiguous(), [0.0, time], gravity=gravity)[0, 1] / time
    # in so short a time nothing else moves: pressure gradients grow with its square
    np.testing.assert_allclose(found[1].numpy(), along_x / 2, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(found[2].numpy(), along_y / 2, rtol=1e-3, atol=1e-3)


def test_a_compiled_step_is_given_one_trajectory_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that its results do not depend on the batch; here with the step as it was before compiling."""
    sizes = []

    def step(scheme: Any, state: Tensor, primitive: Tensor, dt: Tensor) -> Tensor:
        sizes.append((len(state), len(primitive), len(dt)))
        return scheme._runge_kutta(state, primitive, dt, second_order=True)  # type: ignore[no-any-return]

    monkeypatch.setattr(euler, "_fused_step", lambda: step)
    gas = torch.from_numpy(random_gas(12, 192).reshape(4, 3, 8, 8)).movedim(1, 0).contiguous()
    gas[:, 1:3] *= 0.1
    compiled = euler.solve_euler(gas, [0.0, 1e-3], compiled=True)
    assert torch.equal(compiled, euler.solve_euler(gas, [0.0, 1e-3]))
    assert set(sizes) == {(1, 1, 1)}
    assert len(sizes) >= 3


# -- rates -----------------------------------------------------------------------------------------


def test_rates_of_gas_and_water_are_the_courant_limit() -> None:
    rng = np.random.default_rng(8)
    u, v, c = rng.normal(size=(3, 2, 4, 6))
    c = np.abs(c) + 0.1
    expected = (7.0 * (np.abs(u) + c) + 3.0 * (np.abs(v) + c)).reshape(2, -1).max(axis=1)
    found = muscl.signal_rate(*map(torch.from_numpy, (u, v, c)), (3.0, 7.0)).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-14)
    gas = torch.from_numpy(random_gas(9, 24).reshape(1, 4, 4, 6))
    scheme = euler._Scheme(GAMMA, ("periodic", "periodic"), (3.0, 7.0))
    primitive, rates = scheme.prepare(euler.to_conserved(gas, GAMMA), [0], [0.0])
    torch.testing.assert_close(primitive, gas)
    rho, u, v, p = gas[0].numpy()
    sound = np.sqrt(GAMMA * p / rho)
    courant = float((7.0 * (np.abs(u) + sound) + 3.0 * (np.abs(v) + sound)).max())
    assert float(rates) == pytest.approx(courant, rel=1e-12)
    water = torch.from_numpy(np.stack((c[0], u[:4, :6], v[:4, :6])))[None]
    shallow = shallow_water._Scheme(1.7, "periodic", (3.0, 7.0))
    _, rates = shallow.prepare(shallow_water.to_momenta(water), [0], [0.0])
    wave = np.sqrt(1.7 * c[0])
    courant = float((7.0 * (np.abs(u) + wave) + 3.0 * (np.abs(v) + wave)).max())
    assert float(rates) == pytest.approx(courant, rel=1e-12)


def test_a_waves_rate_is_the_frequency_of_a_chessboard() -> None:
    """u_tt = -w^2 u for the mode that changes its sign from cell to cell, the fastest of the grid."""
    height, width, speed = 6, 10, 0.7
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    board = (1.0 - 2.0 * ((x + y) % 2)).double()[None]
    fields = torch.full_like(board, speed)
    scheme = wave_equation._Scheme(fields, "periodic", False)
    first, rates = scheme.prepare(torch.stack((board, 0 * board), dim=1), [0], [0.0])
    torch.testing.assert_close(first[:, 1], -(rates**2) * board, rtol=1e-12, atol=0.0)


def rates_at_start(module: Any, monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """What `prepare` says of the first state of every solution that follows."""
    found: list[Tensor] = []

    def watched(state: Tensor, times: Any, **parts: Any) -> Tensor:
        everyone = list(range(len(state)))
        found.append(parts["prepare"](state, everyone, [0.0] * len(state))[1])
        return march(state, times, **parts)

    monkeypatch.setattr(module, "march", watched)
    return found


def test_rates_of_reactions_and_diffusion(monkeypatch: pytest.MonkeyPatch) -> None:
    """4 D (1/dx^2 + 1/dy^2), of a chessboard between walls, plus the slopes of u^3, of u and of v."""
    rates = rates_at_start(reaction_diffusion, monkeypatch)
    fields = torch.from_numpy(np.random.default_rng(10).normal(size=(2, 2, 4, 6)))
    settings: dict[str, Any] = {"diffusivity": (0.01, 0.03), "extent": (2.0, 1.0)}
    reaction_diffusion.solve_reaction_diffusion(fields, [0.0, 1e-6], **settings)
    reaction_diffusion.solve_reaction_diffusion(fields, [0.0, 1e-6], reacting=False, **settings)
    stiff = 4.0 * 0.03 * ((4 / 2.0) ** 2 + 6.0**2)
    largest = np.abs(fields[:, 0].numpy()).reshape(2, -1).max(axis=1)
    np.testing.assert_allclose(rates[0].numpy(), stiff + 3.0 * largest**2 + 2.0, rtol=1e-12)
    np.testing.assert_allclose(rates[1].numpy(), [stiff, stiff], rtol=1e-12)


def test_rates_of_phases_and_of_flows() -> None:
    fields = np.random.default_rng(11).normal(0.0, 1.0, (2, 2, 4, 6))
    modes = spectral.Modes.of((4, 6), torch.float64, torch.device("cpu"))
    for size in (1.0, 1e-3):  # between wells and small: |1 - 3 u^2|, of which 1 is the least
        u = size * fields[:, :1]
        _, rates = AllenCahn(5.0)(spectral.forward(torch.from_numpy(u)), modes)
        steepest = np.maximum(1.0, np.abs(1.0 - 3.0 * u * u).reshape(2, -1).max(axis=1))
        np.testing.assert_allclose(rates.numpy(), 5.0 * steepest, rtol=1e-12)
    crossing = (6 * np.abs(fields[:, 0]) + 4 * np.abs(fields[:, 1])).reshape(2, -1).max(axis=1)
    state = spectral.forward(torch.from_numpy(fields))
    _, rates = Burgers()(state, modes)
    np.testing.assert_allclose(rates.numpy(), crossing, rtol=1e-12)
    scheme = navier_stokes._Scheme.build(torch.from_numpy(fields), 0.0, 0.0, None, None, None)
    _, rates = scheme.prepare(state, [0, 1], [0.0, 0.0])
    np.testing.assert_allclose(rates.numpy(), crossing, rtol=1e-12)


def test_two_thirds_of_the_modes_are_kept() -> None:
    modes = spectral.Modes.of((12, 16), torch.float64, torch.device("cpu"))
    ky = np.abs(np.fft.fftfreq(12, 1 / 12))[:, None]
    kx = np.fft.rfftfreq(16, 1 / 16)[None, :]
    np.testing.assert_array_equal(modes.kept.numpy(), (ky < 12 / 3) & (kx < 16 / 3))
    np.testing.assert_allclose(modes.square.numpy(), kx**2 + ky**2)


def test_a_velocity_has_its_vorticity_and_no_divergence() -> None:
    """Of several fields at once, by numpy's derivatives; the mean and Nyquist's modes are left out."""
    vorticity = np.random.default_rng(13).normal(size=(3, 8, 12))
    ky = np.fft.fftfreq(8, 1 / 8)[:, None]
    kx = np.fft.fftfreq(12, 1 / 12)[None, :]
    found = spectral.velocity_from_vorticity(torch.from_numpy(vorticity)).numpy()
    assert found.shape == (3, 2, 8, 12)
    u, v = np.fft.fft2(found[:, 0]), np.fft.fft2(found[:, 1])
    kept = (np.abs(ky) < 4) & (np.abs(kx) < 6) & ((ky != 0) | (kx != 0))
    curl = 2j * np.pi * (kx * v - ky * u)
    np.testing.assert_allclose(curl, np.fft.fft2(vorticity) * kept, atol=1e-11)
    np.testing.assert_allclose(kx * u + ky * v, 0.0, atol=1e-12)


def test_grids_need_not_be_square() -> None:
    """One mode of the heat equation on 8 x 12 points: its own rate of decay, to rounding."""
    y, x = np.meshgrid(np.arange(8) / 8, np.arange(12) / 12, indexing="ij")
    start = torch.from_numpy(np.sin(2 * np.pi * (3 * x + y)))[None, None]
    frames = solve_semilinear(start, [0.0, 0.5], AllenCahn(0.0), diffusivity=0.01, cfl=1.0)
    decay = math.exp(-0.01 * (2 * np.pi) ** 2 * (9 + 1) * 0.5)
    torch.testing.assert_close(frames[:, 1], start * decay, rtol=0.0, atol=1e-14)


def test_every_trajectory_has_its_own_step() -> None:
    """u' = -u: a step is 1 - h + h^2/2 - h^3/6 + h^4/24, of the h of each."""
    state = torch.from_numpy(np.random.default_rng(14).normal(size=(3, 2, 3, 3)))
    dt = torch.tensor([0.1, 0.5, 1.0], dtype=torch.float64)
    found = runge_kutta_step(state, -state, dt, torch.neg)
    factors = torch.stack([sum((-h) ** k / math.factorial(k) for k in range(5)) for h in dt])
    torch.testing.assert_close(found, state * factors.view(3, 1, 1, 1), rtol=1e-14, atol=0.0)


# -- what is refused -------------------------------------------------------------------------------


def of_shape(name: str, tensor: torch.Tensor) -> str:
    return re.escape(f"Got {name} of shape {tuple(tensor.shape)}")


def test_every_wrong_shape_is_refused() -> None:
    """And named, as a user would print it."""
    ones = torch.ones(2, 3, 8, 8)
    for shape in ((8, 8, 9), (8, 9, 8), (7, 8, 8)):
        for pair in ((torch.ones(8, 8, 8), torch.ones(shape)), (torch.ones(shape), ones[0, :, :1])):
            both = f"{of_shape('displacement', pair[0])} and speed of shape "
            with pytest.raises(ValueError, match=both + re.escape(str(tuple(pair[1].shape)))):
                wave_equation.solve_wave(*pair, [0.0, 1.0])
    with pytest.raises(ValueError, match=of_shape("displacement", ones)):
        wave_equation.solve_wave(ones, ones, [0.0, 1.0])
    for state in (ones, ones[:, [0, 0, 0, 0, 0]], ones[0]):
        with pytest.raises(ValueError, match=of_shape("a state", state)):
            euler.solve_euler(state, [0.0, 1.0])
    for state in (ones[:, :2], ones[:, [0, 0, 0, 0]], ones[0]):
        with pytest.raises(ValueError, match=of_shape("a state", state)):
            shallow_water.solve_shallow_water(state, [0.0, 1.0])
    for state in (ones, ones[:, :1], ones[0]):
        with pytest.raises(ValueError, match=of_shape("velocity", state)):
            navier_stokes.solve_navier_stokes(state, [0.0, 1.0])
    flow = ones[:, :2]
    for forcing in (torch.ones(1, 1, 2, 8, 8), torch.ones(2, 8, 7), torch.ones(8, 8)):
        expected = of_shape("forcing", forcing) + r"; \(2, 8, 8\) or \('batch', 2, 8, 8\) is"
        with pytest.raises(ValueError, match=expected):
            navier_stokes.solve_navier_stokes(flow, [0.0, 1.0], forcing=forcing)
    with pytest.raises(ValueError, match="Got forcing for 3 trajectories; the solver has 2"):
        navier_stokes.solve_navier_stokes(flow, [0.0, 1.0], forcing=torch.ones(3, 2, 8, 8))
    for tracer in (torch.ones(2, 2, 8, 8), torch.ones(1, 1, 8, 8), torch.ones(2, 1, 8, 6)):
        expected = of_shape("tracer", tracer) + r"; the velocity requires \(2, 1, 8, 8\)\."
        with pytest.raises(ValueError, match=expected):
            navier_stokes.solve_navier_stokes(
                flow, [0.0, 1.0], tracer=tracer, tracer_diffusivity=0.1
            )
    for grid in ((1, 8), (8, 1)):
        with pytest.raises(ValueError, match=re.escape(f"Got a grid of {grid}; at least 2 x 2")):
            euler.solve_euler(torch.ones(1, 4, *grid), [0.0, 1.0])
    euler.solve_euler(torch.ones(1, 4, 2, 2), [0.0, math.ulp(1.0)])  # is enough
    for grid in ((2, 8), (8, 2), (5, 8), (8, 5)):
        with pytest.raises(
            ValueError, match=f"Got a grid of {grid[0]} x {grid[1]}; even numbers of at least 4"
        ):
            spectral.Modes.of(grid, torch.float64, torch.device("cpu"))


# -- bits --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("grid", [(6, 10), (16, 16), (12, 20), (48, 32)])
def test_a_transform_has_the_same_bits_beside_others(
    grid: tuple[int, int], dtype: torch.dtype
) -> None:
    """Of fields beside it in the batch, and of channels: one call of MKL makes one transform."""
    fields = torch.randn(2, 5, *grid, dtype=dtype, generator=torch.Generator().manual_seed(0))
    spectra = spectral.forward(fields)
    back = spectral.inverse(spectra, grid)
    for row in range(2):
        for channel in range(5):
            one = (slice(row, row + 1), slice(channel, channel + 1))
            assert torch.equal(spectral.forward(fields[one]), spectra[one])
            assert torch.equal(spectral.inverse(spectra[one], grid), back[one])


def test_no_frame_holds_a_negative_zero() -> None:
    """Equal numbers are then equal bits, which fingerprints of datasets are made of."""
    nothing = -torch.zeros(1, 2, 8, 8)
    times = [0.0, 0.01]
    burgers = solve_semilinear(nothing, times, Burgers(), diffusivity=0.0, cfl=0.5)
    flow = navier_stokes.solve_navier_stokes(nothing, times)
    for found in (burgers, flow, spectral.velocity_from_vorticity(nothing[:, 0])):
        assert not found.any()
        assert not torch.signbit(found).any()
