"""Residuals of closed-form solutions: small, of the expected order, and large of wrong fields.

Every residual is a share of the rate of change. In the interval it is of second order (fourth for
the wave equation), in the spacing spectral or, for finite volumes, of second order.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping

import pytest
import torch
from torch import Tensor

from pelagos.data_pipelines.physics import EQUATIONS, DatasetPhysics
from pelagos.data_pipelines.physics.grid import Grid

TAU = 2.0 * math.pi
Solution = Callable[[Tensor, Tensor, float], dict[str, Tensor]]  # (x, y, t) -> fields


def bound(
    name: str,
    n: int,
    coefficients: Mapping[str, float],
    fields: tuple[str, ...],
    boundary: str = "periodic",
    extent: tuple[float, float] = (1.0, 1.0),
) -> DatasetPhysics:
    equation = EQUATIONS[name]
    grid = Grid((n, n), extent, (boundary, boundary))
    channels = {field: i for i, field in enumerate(fields)}
    values = {**equation.defaults, **coefficients}
    return DatasetPhysics(name, equation, grid, channels, {}, values)


def sampled(
    physics: DatasetPhysics, solution: Solution, times: list[float], *, cells: bool = False
) -> Tensor:
    """Frames [1, time, channel, y, x] of a solution at the nodes or at the cell centres."""
    (n, _), (tall, wide) = physics.grid.shape, physics.grid.extent
    position = (torch.arange(n, dtype=torch.float64) + (0.5 if cells else 0.0)) / n
    y, x = torch.meshgrid(position * tall, position * wide, indexing="ij")
    frames = []
    for time in times:
        fields = solution(x, y, time)
        frames.append(torch.stack([fields[name].expand(n, n) for name in physics.channels]))
    return torch.stack(frames)[None]


def residual(
    physics: DatasetPhysics,
    solution: Solution,
    interval: float,
    *,
    start: float = 0.1,
    cells: bool = False,
) -> dict[str, float]:
    times = [start + interval * k for k in range(physics.num_frames)]
    frames = sampled(physics, solution, times, cells=cells)
    scores = physics.residuals(frames, frames, interval, [0])
    return {name: float(value) for name, value in scores.items()}


def orders(errors: list[float]) -> list[float]:
    """Observed orders between errors at steps that halve."""
    return [math.log2(a / b) for a, b in itertools.pairwise(errors)]


def heat(x: Tensor, y: Tensor, t: float) -> dict[str, Tensor]:
    """Two modes, decaying at rates of 5 and 13 (2 pi)^2 D, D = 0.01."""
    d = 0.01 * TAU**2
    first = math.exp(-5 * d * t) * torch.sin(TAU * (2 * x + y))
    return {"temperature": first + math.exp(-13 * d * t) * torch.cos(TAU * (3 * x - 2 * y)) + 2.0}


def advection(x: Tensor, y: Tensor, t: float) -> dict[str, Tensor]:
    a, b = x - 0.7 * t, y + 0.3 * t
    return {"concentration": torch.exp(torch.sin(TAU * a) * torch.cos(TAU * b))}


def wave(x: Tensor, y: Tensor, t: float) -> dict[str, Tensor]:
    """Two travelling waves, c = 1."""
    along = torch.sin(TAU * (x - t)) + 0.5 * torch.cos(TAU * (3 * x + 4 * y - 5 * t))
    return {"displacement": along}


def allen_cahn(x: Tensor, y: Tensor, t: float) -> dict[str, Tensor]:
    """Homogeneous relaxation u_t = R u (1 - u^2), R = 2, from u = 1/3 on."""
    e = math.exp(4.0 * t)
    return {"phase": torch.full_like(x, math.sqrt(e / (8.0 + e)))}


def burgers(x: Tensor, y: Tensor, t: float) -> dict[str, Tensor]:
    """Cole-Hopf: u = -2 nu grad(phi)/phi, phi_t = nu Laplace(phi), nu = 0.05."""
    nu = 0.05
    decay = math.exp(-2 * nu * TAU**2 * t)
    cx, cy, sx, sy = torch.cos(TAU * x), torch.cos(TAU * y), torch.sin(TAU * x), torch.sin(TAU * y)
    phi = 2.0 + decay * cx * cy
    scale = 2 * nu * TAU * decay / phi
    return {"velocity-x": scale * sx * cy, "velocity-y": scale * cx * sy}


def moving_taylor_green(x: Tensor, y: Tensor, t: float) -> dict[str, Tensor]:
    """Taylor and Green's vortices (1937), nu = 0.01, carried along by a mean velocity (0.5, -0.25);
    their vorticity, and a tracer that only decays with them as it is a function of their stream."""
    decay = math.exp(-2 * 0.01 * TAU**2 * t)
    a, b = TAU * (x - 0.5 * t), TAU * (y + 0.25 * t)
    return {
        "velocity-x": 0.5 + decay * torch.sin(a) * torch.cos(b),
        "velocity-y": -0.25 - decay * torch.cos(a) * torch.sin(b),
        "tracer": decay * torch.sin(a) * torch.sin(b),
    }


def taylor_green_vorticity(x: Tensor, y: Tensor, t: float) -> dict[str, Tensor]:
    decay = math.exp(-2 * 0.01 * TAU**2 * t)
    return {"vorticity": decay * torch.sin(TAU * x) * torch.sin(TAU * y)}


PERIODIC: dict[str, tuple[Solution, dict[str, float], tuple[str, ...]]] = {
    "heat": (heat, {"diffusivity": 0.01}, ("temperature",)),
    "advection": (advection, {"velocity-x": 0.7, "velocity-y": -0.3}, ("concentration",)),
    "allen-cahn": (allen_cahn, {"diffusivity": 0.1, "reaction_rate": 2.0}, ("phase",)),
    "burgers": (burgers, {"viscosity": 0.05}, ("velocity-x", "velocity-y")),
    "incompressible-navier-stokes": (
        moving_taylor_green,
        {"viscosity": 0.01},
        ("velocity-x", "velocity-y", "tracer"),
    ),
    "vorticity": (taylor_green_vorticity, {"viscosity": 0.01}, ("vorticity",)),
}


@pytest.mark.parametrize("name", PERIODIC)
def test_a_closed_form_leaves_a_residual_of_second_order_in_the_interval(name: str) -> None:
    solution, coefficients, fields = PERIODIC[name]
    physics = bound(name, 64, coefficients, fields)
    found = [residual(physics, solution, dt) for dt in (0.04, 0.02, 0.01)]
    for part in found[0]:
        errors = [scores[part] for scores in found]
        assert errors[0] < 0.05
        # The last order of three is within a tenth of 2: terms of fourth order are a hundredth.
        assert orders(errors)[-1] == pytest.approx(2.0, abs=0.1), errors


@pytest.mark.parametrize("name", PERIODIC)
def test_of_wrong_coefficients_the_residual_is_large(name: str) -> None:
    solution, coefficients, fields = PERIODIC[name]
    wrong = {key: 2.0 * value for key, value in coefficients.items()}
    right, doubled = (
        residual(bound(name, 64, values, fields), solution, 0.02)
        for values in (coefficients, wrong)
    )
    assert all(doubled[part] > 10.0 * right[part] for part in right), (right, doubled)


def test_the_spectral_residual_falls_faster_than_any_order_with_the_spacing() -> None:
    """An interval so short that the grid is what is left; exp(sin) has infinitely many modes."""
    errors = [
        residual(
            bound("advection", n, PERIODIC["advection"][1], ("concentration",)), advection, 1e-4
        )
        for n in (8, 16, 32)
    ]
    assert errors[0]["residual"] > 1e-3
    assert min(orders([e["residual"] for e in errors[:2]])) > 6.0
    assert errors[2]["residual"] < 1e-6  # what the interval leaves: (2 pi 0.7 dt)^2/12 and above


def test_the_wave_equation_is_of_fourth_order_in_the_interval_and_second_in_space() -> None:
    fields = ("displacement",)

    def one_mode(x: Tensor, y: Tensor, t: float) -> dict[str, Tensor]:
        """A wave of the discrete operator, whose frequency is that of the grid of 32 points."""
        frequency = 2.0 * 32 * math.sin(math.pi / 32)
        return {"displacement": math.cos(frequency * t) * torch.sin(TAU * x)}

    errors = [
        residual(bound("wave", 32, {}, fields), one_mode, dt)["residual"]
        for dt in (0.08, 0.04, 0.02)
    ]
    assert orders(errors)[-1] == pytest.approx(4.0, abs=0.1)
    in_space = [
        residual(bound("wave", n, {}, fields), wave, 1e-3)["residual"] for n in (64, 128, 256)
    ]
    assert orders(in_space)[-1] == pytest.approx(2.0, abs=0.05)


def test_a_wave_in_a_medium_of_varying_speed() -> None:
    """u = cos(w t) f(x) solves u_tt = c^2 u_xx with c^2 = -w^2 f/f'' wherever that is positive."""

    def medium(x: Tensor, y: Tensor, t: float) -> dict[str, Tensor]:
        shape = torch.sin(TAU * x) + torch.sin(2 * TAU * x) / 9.0
        bend = TAU**2 * (torch.sin(TAU * x) + 4.0 * torch.sin(2 * TAU * x) / 9.0)
        # Both vanish at 0 and 1/2, where the limit of the ratio is that of their slopes.
        ratio = (1.0 + 2.0 * torch.cos(TAU * x) / 9.0) / (1.0 + 8.0 * torch.cos(TAU * x) / 9.0)
        assert torch.allclose(ratio * bend, TAU**2 * shape, atol=1e-9)
        return {"displacement": math.cos(9.0 * t) * shape, "speed": 9.0 / TAU * ratio.sqrt()}

    fields = ("displacement", "speed")
    errors = [
        residual(bound("wave", n, {}, fields), medium, 1e-3, cells=True)["residual"]
        for n in (64, 128, 256)
    ]
    assert orders(errors)[-1] == pytest.approx(2.0, abs=0.05)
    constant = bound("wave", 256, {"speed": 9.0 / TAU}, ("displacement",))
    assert residual(constant, medium, 1e-3, cells=True)["residual"] > 100 * errors[-1]


def test_closed_boundaries_are_of_second_order() -> None:
    """cos(pi x) cos(2 pi y) has no flux through the sides of the unit square."""
    d = 0.02

    def closed(x: Tensor, y: Tensor, t: float) -> dict[str, Tensor]:
        decay = math.exp(-5 * math.pi**2 * d * t)
        return {"temperature": decay * torch.cos(math.pi * x) * torch.cos(TAU * y)}

    errors = [
        residual(
            bound("heat", n, {"diffusivity": d}, ("temperature",), "no flux"),
            closed,
            1e-3,
            cells=True,
        )["residual"]
        for n in (16, 32, 64)
    ]
    assert orders(errors) == pytest.approx([2.0, 2.0], abs=0.05)


def test_the_limit_cycle_of_fitzhugh_nagumo_without_diffusion_in_space() -> None:
    """Homogeneous states obey two ordinary equations, solved here by 10,000 small steps."""

    def slope(u: float, v: float) -> tuple[float, float]:
        return u - u**3 - 0.005 - v, u - v

    def at(x: Tensor, y: Tensor, t: float) -> dict[str, Tensor]:
        u, v, steps = 0.9, -0.4, 10_000
        h = t / steps
        for _ in range(steps):
            a, b = slope(u, v)
            c, d = slope(u + 0.5 * h * a, v + 0.5 * h * b)
            u, v = u + h * c, v + h * d
        return {"activator": torch.full_like(x, u), "inhibitor": torch.full_like(x, v)}

    names = ("activator_diffusivity", "inhibitor_diffusivity", "activator_loss")
    values = dict(zip(names, (1e-3, 5e-3, 5e-3), strict=True))
    physics = bound("fitzhugh-nagumo", 4, values, ("activator", "inhibitor"), "no flux")
    # Intervals share their start, so that the order is off by a term that halves with them: 0.25
    # and 0.14 for one part at 0.1 and 0.05.
    found = [residual(physics, at, dt, start=0.5) for dt in (0.05, 0.025, 0.0125, 0.00625)]
    for part in found[0]:
        assert orders([scores[part] for scores in found])[-1] == pytest.approx(2.0, abs=0.1)


def moving_density(x: Tensor, y: Tensor, t: float) -> dict[str, Tensor]:
    """Density carried along at pressure and velocity that are the same everywhere: of Euler's
    equations an exact solution, of which every balance but that of pressure moves."""
    one = torch.ones_like(x)
    density = 1.0 + 0.3 * torch.sin(TAU * (x - 0.6 * t)) * torch.cos(TAU * (y - 0.2 * t))
    return {"density": density, "velocity-x": 0.6 * one, "velocity-y": 0.2 * one, "pressure": one}


def test_euler_and_shallow_water_balances_hold_in_volumes() -> None:
    fields = ("density", "velocity-x", "velocity-y", "pressure")
    coarse, fine = (
        residual(
            bound("compressible-euler", n, {"gamma": 1.4}, fields), moving_density, 1e-3, cells=True
        )
        for n in (64, 128)
    )
    for part in ("mass", "momentum", "energy"):
        # Limiters clip extrema, which costs some of the second order; volumes keep most of it.
        assert orders([coarse[part], fine[part]])[0] > 1.6
    wrong = residual(
        bound("compressible-euler", 128, {"gamma": 1.4}, fields),
        lambda x, y, t: moving_density(x, y, 2.0 * t),
        1e-3,
        cells=True,
    )
    assert wrong["mass"] == pytest.approx(0.5, abs=0.02)  # half of what happens is explained


def stream_velocity(n: int) -> Tensor:
    """(-psi_y, psi_x) of a stream function of modes up to 5, at the nodes, [1, 2, y, x]."""
    draw = torch.Generator().manual_seed(3)
    position = torch.arange(n, dtype=torch.float64) / n
    y, x = torch.meshgrid(position, position, indexing="ij")
    u, v = torch.zeros_like(x), torch.zeros_like(x)
    for i in range(6):
        for j in range(-5, 6):
            a, b = torch.randn(2, generator=draw, dtype=torch.float64).tolist()
            phase = TAU * (i * x + j * y)
            slope = -a * torch.sin(phase) + b * torch.cos(phase)
            u, v = u - TAU * j * slope, v + TAU * i * slope
    return torch.stack((u, v))[None]


def test_the_divergence_of_a_stream_function_is_zero_to_rounding() -> None:
    physics = bound("divergence-free", 32, {}, ("velocity-x", "velocity-y"))
    velocity = stream_velocity(32)
    assert float(physics.constraints(velocity, velocity, [0])["divergence"]) < 1e-14
    gradient = torch.stack((velocity[:, 1], -velocity[:, 0]), dim=1)  # turned: all divergence
    share = float(physics.constraints(gradient, gradient, [0])["divergence"])
    assert share == pytest.approx(1.0, abs=1e-12)


def test_a_velocity_with_divergence_added_shows_in_the_constraint_alone() -> None:
    """A gradient field is taken out by the pressure; of the same field at both times no residual."""
    physics = bound(
        "incompressible-navier-stokes",
        64,
        {"viscosity": 0.01},
        ("velocity-x", "velocity-y", "tracer"),
    )
    frames = sampled(physics, moving_taylor_green, [0.1])[:, 0]
    assert float(physics.constraints(frames, frames, [0])["divergence"]) < 1e-12
    off = frames.clone()
    off[:, 0] += 0.1 * torch.sin(TAU * torch.arange(64) / 64)
    assert float(physics.constraints(off, frames, [0])["divergence"]) > 0.03


def test_conserved_totals_drift_by_what_is_added() -> None:
    fields = ("density", "velocity-x", "velocity-y", "pressure")
    physics = bound("compressible-euler", 16, {"gamma": 1.4}, fields)
    initial = sampled(physics, moving_density, [0.0])[:, 0]
    drifts = physics.drifts(initial, initial, [0])
    assert all(float(value) == 0.0 for value in drifts.values())
    heavier = initial.clone()
    heavier[:, 0] *= 1.01
    assert float(physics.drifts(heavier, initial, [0])["mass"]) == pytest.approx(0.01, rel=1e-9)


@pytest.mark.parametrize("extent", [(1.0, 1.0), (2.0, 3.0)])
def test_steady_problems_at_closed_forms(extent: tuple[float, float]) -> None:
    """u = sin(pi x/Lx) sin(pi y/Ly): exact by sines, of second order by finite volumes; a solution
    that is wrong by a tenth leaves a tenth."""
    tall, wide = extent
    rate = math.pi**2 * (1.0 / tall**2 + 1.0 / wide**2)

    def mode(x: Tensor, y: Tensor, t: float) -> dict[str, Tensor]:
        u = torch.sin(math.pi * x / wide) * torch.sin(math.pi * y / tall)
        return {
            "solution": u,
            "source": rate * u,
            "coefficient": torch.ones_like(u),
            "boundary-value": torch.zeros_like(u),
        }

    fields = ("source", "solution")
    poisson = bound("poisson", 16, {}, fields, "dirichlet", extent)
    assert residual(poisson, mode, 1.0, cells=True)["residual"] < 1e-12
    frames = sampled(poisson, mode, [0.0], cells=True)
    off = frames.clone()
    off[:, :, poisson.channels["solution"]] *= 1.1
    off[:, :, poisson.channels["source"]] = 0.0  # given: taken from the data whatever is forecast
    wrong = float(poisson.residuals(off, frames, 1.0, [0])["residual"])
    assert wrong == pytest.approx(0.1, rel=1e-9)
    names = ("solution", "coefficient", "boundary-value")
    errors = [
        residual(
            bound("helmholtz", n, {"omega": math.sqrt(rate)}, names, "dirichlet", extent),
            mode,
            1.0,
            cells=True,
        )["residual"]
        for n in (32, 64, 128)
    ]
    # At the boundary, where the flux takes half a cell, the differences are of first order in a
    # strip of one cell: 1.5 in the norm, and here 2, as the second derivatives vanish there.
    assert orders(errors)[-1] == pytest.approx(2.0, abs=0.1)
