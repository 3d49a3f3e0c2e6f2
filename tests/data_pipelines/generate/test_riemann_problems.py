"""The compressible solver against exact solutions of one-dimensional Riemann problems."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pytest
import torch
from scipy.optimize import brentq

from pelagos.data_pipelines.generate import solve_euler

GAMMA = 1.4
Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class State:
    rho: float
    u: float
    p: float

    @property
    def sound(self) -> float:
        return math.sqrt(GAMMA * self.p / self.rho)


class ExactRiemann:
    """Exact self-similar solution, Toro (2009), chapter 4."""

    def __init__(self, left: State, right: State) -> None:
        self.left, self.right = left, right

        def residual(p: float) -> float:
            return self._change(p, left) + self._change(p, right) + right.u - left.u

        self.p = brentq(residual, 1e-12, 100.0 * max(left.p, right.p), xtol=1e-14)
        change = self._change(self.p, right) - self._change(self.p, left)
        self.u = 0.5 * (left.u + right.u + change)

    @staticmethod
    def _change(p: float, side: State) -> float:
        """Velocity change across the wave between `side` and pressure p."""
        if p > side.p:
            a, b = 2.0 / ((GAMMA + 1) * side.rho), (GAMMA - 1) / (GAMMA + 1) * side.p
            return (p - side.p) * math.sqrt(a / (p + b))
        power = (p / side.p) ** ((GAMMA - 1) / (2 * GAMMA))
        return 2.0 * side.sound / (GAMMA - 1) * (power - 1.0)

    def shock_speed(self, side: State, sign: float) -> float:
        ratio = (GAMMA + 1) / (2 * GAMMA) * self.p / side.p + (GAMMA - 1) / (2 * GAMMA)
        return side.u + sign * side.sound * math.sqrt(ratio)

    def at(self, speed: float) -> tuple[float, float, float]:
        """(rho, u, p) on the ray x/t = speed."""
        sign = -1.0 if speed < self.u else 1.0
        side = self.left if speed < self.u else self.right
        mirrored = sign * speed
        u_side, u_star = sign * side.u, sign * self.u
        g = (GAMMA - 1) / (GAMMA + 1)
        if self.p > side.p:
            if mirrored > sign * self.shock_speed(side, sign):
                return side.rho, side.u, side.p
            ratio = self.p / side.p
            return side.rho * (ratio + g) / (g * ratio + 1.0), self.u, self.p
        inner = side.sound * (self.p / side.p) ** ((GAMMA - 1) / (2 * GAMMA))
        if mirrored > u_side + side.sound:
            return side.rho, side.u, side.p
        if mirrored < u_star + inner:
            return side.rho * (self.p / side.p) ** (1.0 / GAMMA), self.u, self.p
        u = (2.0 / (GAMMA + 1)) * (-side.sound + (GAMMA - 1) / 2 * u_side + mirrored)
        c = mirrored - u
        rho = side.rho * (c / side.sound) ** (2.0 / (GAMMA - 1))
        return rho, sign * u, side.p * (rho / side.rho) ** GAMMA


def run(left: State, right: State, cells: int, time: float, *, along_y: bool = False) -> Array:
    """Numerical (rho, u, p) [3, cells] on [0, 1] with the diaphragm at 1/2."""
    state = torch.zeros(1, 4, 2, cells, dtype=torch.float64)
    for side, part in ((left, slice(0, cells // 2)), (right, slice(cells // 2, cells))):
        state[0, 0, :, part], state[0, 1, :, part], state[0, 3, :, part] = side.rho, side.u, side.p
    # Two rows as high as they are wide: their periodic neighbours are themselves.
    if along_y:
        state = state[:, [0, 2, 1, 3]].transpose(-1, -2).contiguous()
        frames = solve_euler(state, [0.0, time], boundary_y="outflow", extent=(1.0, 2.0 / cells))
        final = frames[0, 1][[0, 2, 1, 3]].transpose(-1, -2)
    else:
        frames = solve_euler(state, [0.0, time], boundary_x="outflow", extent=(2.0 / cells, 1.0))
        final = frames[0, 1]
    assert torch.equal(final[:, 0], final[:, 1])
    assert not bool(final[2].any())
    return np.asarray(final[[0, 1, 3], 0].numpy())


def exact(problem: ExactRiemann, cells: int, time: float) -> Array:
    """Cell means of the exact solution, by 16 points in each cell."""
    points = (np.arange(cells * 16) + 0.5) / (cells * 16)
    values = np.array([problem.at((x - 0.5) / time) for x in points])
    return np.asarray(values.reshape(cells, 16, 3).mean(axis=1).T)


SOD = (State(1.0, 0.0, 1.0), State(0.125, 0.0, 0.1))
LAX = (State(0.445, 0.698, 3.528), State(0.5, 0.0, 0.571))
DOUBLE_RAREFACTION = (State(1.0, -2.0, 0.4), State(1.0, 2.0, 0.4))


def test_the_exact_solver_gives_the_textbook_star_states() -> None:
    """Toro (2009), table 4.2: pressures and velocities of tests 1 and 2."""
    sod, rarefaction = ExactRiemann(*SOD), ExactRiemann(*DOUBLE_RAREFACTION)
    assert (sod.p, sod.u) == pytest.approx((0.30313, 0.92745), abs=5e-6)
    assert (rarefaction.p, rarefaction.u) == pytest.approx((0.00189, 0.0), abs=6e-6)


# L1 bars, as (mean density error) * cells. A discontinuity smeared linearly over n cells errs by
# jump * n / 4 cells. Sod: contact 0.161 over 6 cells, shock 0.141 over 2, and about 0.25 for the
# corners of the rarefaction: 0.56. Lax: contact 0.96 over 6 cells, shock 0.80 over 2: 1.84.
@pytest.mark.parametrize(
    ("sides", "time", "bar"), [(SOD, 0.2, 0.6), (LAX, 0.14, 2.0)], ids=["sod", "lax"]
)
def test_shock_tubes_match_the_exact_solution(
    sides: tuple[State, State], time: float, bar: float
) -> None:
    cells = 200
    problem = ExactRiemann(*sides)
    computed, truth = run(*sides, cells, time), exact(problem, cells, time)
    assert np.abs(computed[0] - truth[0]).sum() < bar
    # The shock: where pressure crosses the middle of its jump, within one cell.
    middle = 0.5 * (problem.p + sides[1].p)
    last = int(np.nonzero(computed[2] > middle)[0].max())
    position = 0.5 + problem.shock_speed(sides[1], 1.0) * time
    assert abs((last + 1) / cells - position) < 1.0 / cells


def test_shock_tube_error_falls_at_first_order() -> None:
    sizes = [50, 100, 200]
    errors = []
    for cells in sizes:
        truth = exact(ExactRiemann(*SOD), cells, 0.2)
        errors.append(np.abs(run(*SOD, cells, 0.2)[0] - truth[0]).mean())
    slope = -np.polyfit(np.log(sizes), np.log(errors), 1)[0]
    # Contacts smear like h^(2/3) and shocks like h with a second-order scheme.
    assert 0.7 < slope < 1.2, (slope, errors)


def test_double_rarefaction_keeps_density_and_pressure_positive() -> None:
    """Toro's test 2: a near vacuum in the middle, where linearised solvers fail."""
    cells, time = 200, 0.15
    computed = run(*DOUBLE_RAREFACTION, cells, time)
    truth = exact(ExactRiemann(*DOUBLE_RAREFACTION), cells, time)
    assert computed[0].min() > 0.0
    assert computed[2].min() > 0.0
    # Two rarefactions with 3 corners each; a corner is rounded over about sqrt(N) = 14 cells, by
    # its slope (0.02 per cell) times a quarter of a cell: 0.4 in sum, doubled for the vacuum's tail.
    assert np.abs(computed[0] - truth[0]).sum() < 0.8
    assert np.abs(computed[2] - truth[2]).sum() < 0.8


def test_both_axes_are_the_same_bits() -> None:
    assert np.array_equal(run(*SOD, 64, 0.1), run(*SOD, 64, 0.1, along_y=True))


def test_a_resting_contact_stays_put_exactly() -> None:
    contact = (State(1.0, 0.0, 1.0), State(0.125, 0.0, 1.0))
    computed = run(*contact, 32, 0.5)
    assert set(computed[0]) == {1.0, 0.125}
    assert set(computed[1]) == {0.0}
