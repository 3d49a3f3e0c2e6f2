"""The compressible solver: order, conservation, symmetry, positivity."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from pelagos.data_pipelines.generate import euler, solve_euler
from pelagos.data_pipelines.generate.euler import to_conserved, to_primitive

TAU = 2.0 * math.pi


def wave(n: int, time: float) -> Tensor:
    """Cell means of a density wave carried by a uniform flow, an exact solution; [1, 4, n, n]."""
    edges = torch.arange(n + 1, dtype=torch.float64) / n
    along_x, along_y = edges - 1.0 * time, edges - 0.5 * time
    # Means of sin(2 pi (x + y)): differences of its second antiderivative.
    total = -torch.sin(TAU * (along_x[None, :] + along_y[:, None])) / TAU**2
    mean = (total[1:, 1:] - total[1:, :-1] - total[:-1, 1:] + total[:-1, :-1]) * n * n
    constant = torch.ones_like(mean)
    return torch.stack((1.0 + 0.2 * mean, constant, 0.5 * constant, constant))[None]


def smooth_state(n: int, seed: int = 0) -> Tensor:
    """A smooth periodic state with all fields varying."""
    rng = np.random.default_rng(seed)
    x = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    fields = []
    for base, size in ((1.0, 0.3), (0.2, 0.5), (-0.1, 0.5), (1.0, 0.3)):
        phase = torch.from_numpy(rng.uniform(0.0, TAU, 2))
        pattern = torch.sin(TAU * x[None, :] + phase[0]) * torch.cos(TAU * x[:, None] + phase[1])
        fields.append(base + size * pattern)
    return torch.stack(fields)[None]


def rough_state(n: int, seed: int) -> Tensor:
    """Independent cells: density over 3 decades, pressure over 6, speeds up to Mach 1000."""
    state = torch.rand(2, 4, n, n, generator=torch.Generator().manual_seed(seed)).double()
    state[:, 0] = 10.0 ** (-3.0 * state[:, 0])
    state[:, 3] = 10.0 ** (-6.0 * state[:, 3])
    state[:, 1:3] = (state[:, 1:3] - 0.5) * 20.0
    return state


def test_second_order_on_a_smooth_density_wave() -> None:
    sizes = [24, 48, 96]
    errors = []
    for n in sizes:
        final = solve_euler(wave(n, 0.0), [0.0, 0.1])[:, 1]
        errors.append(float((final - wave(n, 0.1))[:, 0].abs().mean()))
    slope = -np.polyfit(np.log(sizes), np.log(errors), 1)[0]
    # The limiter flattens extrema, which costs a little of the second order in the mean norm.
    assert 1.8 < slope < 2.5, (slope, errors)


def test_second_order_in_time() -> None:
    """Against the same grid at a tiny step, so that the error in space drops out."""
    start = smooth_state(16)
    reference = solve_euler(start, [0.0, 0.05], max_step=0.05 / 320)[:, 1]
    counts = [10, 20, 40]
    errors = []
    for count in counts:
        final = solve_euler(start, [0.0, 0.05], max_step=0.05 / count, cfl=1e9)[:, 1]
        errors.append(float((final - reference).abs().mean()))
    slope = -np.polyfit(np.log(counts), np.log(errors), 1)[0]
    assert 1.8 < slope < 2.4, (slope, errors)


@pytest.mark.parametrize("state", [smooth_state(24), rough_state(24, 7)], ids=["smooth", "rough"])
def test_mass_momentum_and_energy_are_conserved(state: Tensor) -> None:
    frames = solve_euler(state, [0.0, 0.02, 0.05])
    scale = to_conserved(state).abs().sum(dim=(-2, -1))
    before = to_conserved(state).sum(dim=(-2, -1))
    for k in (1, 2):
        after = to_conserved(frames[:, k]).sum(dim=(-2, -1))
        # Fluxes cancel in pairs; what is left is the rounding of some hundred steps.
        assert bool(((after - before).abs() <= 1e-13 * scale).all())


@pytest.mark.parametrize("seed", [0, 1])
def test_density_and_pressure_stay_positive_where_second_order_fails(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    fallbacks = []
    runge_kutta = euler._Scheme._runge_kutta

    def counted(
        self: euler._Scheme, state: Tensor, primitive: Tensor, dt: Tensor, *, second_order: bool
    ) -> Tensor:
        if not second_order:
            fallbacks.append(len(state))
        return runge_kutta(self, state, primitive, dt, second_order=second_order)

    monkeypatch.setattr(euler._Scheme, "_runge_kutta", counted)
    frames = solve_euler(rough_state(24, seed), [0.0, 0.02, 0.1])
    assert fallbacks, "the case is too easy to test the first-order step"
    assert bool(torch.isfinite(frames).all())
    assert float(frames[:, :, [0, 3]].min()) > 0.0


def test_transposition_is_bitwise_and_reflection_is_round_off() -> None:
    start, times = smooth_state(24, seed=3), [0.0, 0.1, 0.2]
    frames = solve_euler(start, times)
    turned = solve_euler(start[:, [0, 2, 1, 3]].transpose(-1, -2).contiguous(), times)
    assert torch.equal(turned[:, :, [0, 2, 1, 3]].transpose(-1, -2), frames)
    sign = torch.tensor([1.0, -1.0, 1.0, 1.0]).double().view(4, 1, 1)
    mirrored = solve_euler((start * sign).flip(-1), times)
    # Left and right states change places in the flux: the same sums in another order.
    torch.testing.assert_close((mirrored * sign).flip(-1), frames, rtol=0.0, atol=1e-12)


def test_shifting_a_periodic_state_shifts_the_solution_bit_for_bit() -> None:
    start = smooth_state(24, seed=4)
    frames = solve_euler(start, [0.0, 0.1])
    moved = solve_euler(start.roll((7, 3), (-2, -1)), [0.0, 0.1])
    assert torch.equal(moved.roll((-7, -3), (-2, -1)), frames)


def test_uniform_flow_stays_uniform() -> None:
    state = torch.tensor([0.7, 0.3, -0.2, 1.3]).double().view(1, 4, 1, 1).expand(1, 4, 8, 8)
    frames = solve_euler(state.contiguous(), [0.0, 1.0])
    torch.testing.assert_close(frames[:, 1], state, rtol=1e-13, atol=1e-13)


def test_a_pulse_leaves_through_outflow_and_comes_back_through_periodic() -> None:
    n = 32
    x = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    pulse = torch.exp(-200.0 * (x - 0.5) ** 2)
    state = torch.ones(1, 4, 4, n, dtype=torch.float64)
    state[0, 0] = 1.0 + 0.1 * pulse
    state[0, 1], state[0, 2] = 2.0, 0.0
    gone = solve_euler(state, [0.0, 1.0], boundary_x="outflow", extent=(0.125, 1.0))[0, 1, 0]
    back = solve_euler(state, [0.0, 1.0], extent=(0.125, 1.0))[0, 1, 0]
    assert float((gone - 1.0).abs().max()) < 1e-6
    assert float(back.max()) > 1.03


def test_primitive_and_conserved_are_inverse() -> None:
    state = smooth_state(8)
    torch.testing.assert_close(to_primitive(to_conserved(state)), state, rtol=1e-14, atol=1e-15)


def test_wrong_input_is_refused() -> None:
    good = smooth_state(8)
    with pytest.raises(ValueError, match="state of shape"):
        solve_euler(good[0], [0.0, 1.0])
    with pytest.raises(ValueError, match="trajectories \\[0\\]"):
        solve_euler(good * torch.tensor([1.0, 1.0, 1.0, -1.0]).view(4, 1, 1), [0.0, 1.0])
    with pytest.raises(ValueError, match="boundary_x"):
        solve_euler(good, [0.0, 1.0], boundary_x="wall")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="gamma"):
        solve_euler(good, [0.0, 1.0], gamma=1.0)
    with pytest.raises(ValueError, match="cfl"):
        solve_euler(good, [0.0, 1.0], cfl=0.0)
