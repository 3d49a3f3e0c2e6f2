"""Poisson, Helmholtz and Darcy: manufactured solutions, balances, an independent matrix."""

from __future__ import annotations

import itertools
import math
import re

import numpy as np
import pytest
import scipy.sparse
import scipy.sparse.linalg
import torch
from torch import Tensor

from pelagos.data_pipelines.generate import (
    FAMILIES,
    downstream_fields,
    generate_trajectories,
    trajectory_generator,
)
from pelagos.data_pipelines.generate.elliptic import apply_elliptic, solve_elliptic, solve_poisson

STEADY = ["Poisson-Gauss", "Helmholtz", "Darcy"]


def centres(n: int) -> tuple[Tensor, Tensor]:
    position = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    y, x = torch.meshgrid(position, position, indexing="ij")
    return x, y


def sparse_solution(k: np.ndarray, r: np.ndarray, f: np.ndarray, g: float) -> np.ndarray:
    """The same finite volumes, assembled cell by cell and solved by a sparse library."""
    n = k.shape[0]
    matrix, right = scipy.sparse.lil_matrix((n * n, n * n)), f.flatten().copy()
    for j in range(n):
        for i in range(n):
            row = j * n + i
            matrix[row, row] += r[j, i]
            for dj, di in ((0, 1), (0, -1), (1, 0), (-1, 0)):
                jj, ii = j + dj, i + di
                if 0 <= jj < n and 0 <= ii < n:
                    link = 2.0 / (1.0 / k[j, i] + 1.0 / k[jj, ii]) * n * n
                    matrix[row, jj * n + ii] -= link
                else:
                    link = 2.0 * k[j, i] * n * n
                    right[row] += link * g
                matrix[row, row] += link
    solution: np.ndarray = scipy.sparse.linalg.spsolve(matrix.tocsr(), right)
    return solution.reshape(n, n)


def test_poisson_is_exact_for_sines() -> None:
    x, y = centres(24)
    source, exact = torch.zeros_like(x), torch.zeros_like(x)
    for i, j, size in ((1, 1, 1.0), (3, 2, -0.5), (24, 5, 2.0), (7, 24, 0.3)):
        wave = size * torch.sin(math.pi * i * x) * torch.sin(math.pi * j * y)
        source = source + wave * (math.pi**2 * (i * i + j * j))
        exact = exact + wave
    solution = solve_poisson(source[None])[0]
    torch.testing.assert_close(solution, exact, rtol=0.0, atol=1e-13)


def test_poisson_by_sines_and_by_finite_volumes_agree_at_second_order() -> None:
    sizes, errors = [16, 32, 64], []
    for n in sizes:
        x, y = centres(n)
        source = torch.exp(-((x - 0.4) ** 2 + (y - 0.6) ** 2) / (2 * 0.1**2))[None]
        nothing = torch.zeros_like(source)
        volumes = solve_elliptic(torch.ones_like(source), nothing, source, torch.zeros(1))
        errors.append(float((volumes - solve_poisson(source)).abs().max()))
    slope = -np.polyfit(np.log(sizes), np.log(errors), 1)[0]
    assert 1.8 < slope < 2.3, (slope, errors)


@pytest.mark.parametrize("omega", [0.0, 2.5 * math.pi], ids=["elliptic", "helmholtz"])
def test_a_manufactured_solution_is_met_at_second_order(omega: float) -> None:
    """u = 0.3 + sin(pi x) sin(2 pi y), k = 1 + x y / 2, a = 1 - x^2 / 2."""
    sizes, errors = [16, 32, 64], []
    pi = math.pi
    for n in sizes:
        x, y = centres(n)
        sx, cx, sy, cy = (
            torch.sin(pi * x),
            torch.cos(pi * x),
            torch.sin(2 * pi * y),
            torch.cos(2 * pi * y),
        )
        k, exact = 1.0 + 0.5 * x * y, 0.3 + sx * sy
        reaction = -(omega**2) * (1.0 - 0.5 * x * x)
        flux = 0.5 * y * pi * cx * sy + 0.5 * x * 2 * pi * sx * cy - k * 5 * pi**2 * sx * sy
        source = reaction * exact - flux
        fields = (f[None] for f in (k, reaction, source))
        solution = solve_elliptic(*fields, torch.tensor([0.3], dtype=torch.float64))[0]
        errors.append(float((solution - exact).abs().max()))
    slope = -np.polyfit(np.log(sizes), np.log(errors), 1)[0]
    assert 1.8 < slope < 2.3, (slope, errors)


@pytest.mark.parametrize("omega", [0.0, 2.5 * math.pi, 40.0])
def test_it_solves_the_matrix_that_a_sparse_library_solves(omega: float) -> None:
    rng = np.random.default_rng(5)
    k, f = np.exp(rng.standard_normal((20, 20))), rng.standard_normal((20, 20))
    r = -(omega**2) * rng.uniform(0.5, 1.0, (20, 20))
    expected = sparse_solution(k, r, f, 0.7)
    fields = (torch.from_numpy(a)[None] for a in (k, r, f))
    solution = solve_elliptic(*fields, torch.tensor([0.7], dtype=torch.float64))[0].numpy()
    # Condition numbers of 1e4 to 1e5, round-off 1e-16.
    assert np.abs(solution - expected).max() < 1e-10 * np.abs(expected).max()


def test_wrong_elliptic_problems_are_refused() -> None:
    good = torch.ones(1, 4, 4)
    with pytest.raises(ValueError, match="positive"):
        solve_elliptic(good * 0.0, good, good, torch.zeros(1))
    for wrong in ((good, good[0], good), (good, good, good[..., :3]), (good[0], good[0], good[0])):
        told = ".*".join(re.escape(str(tuple(field.shape))) for field in wrong)
        with pytest.raises(ValueError, match=rf"{told}; all must be \[batch, y, x\]"):
            solve_elliptic(*wrong, torch.zeros(1))
    for boundary in (torch.zeros(2), torch.zeros(1, 1), torch.tensor(0.0)):
        told = re.escape(f"Got boundary of shape {tuple(boundary.shape)} for 1 problems")
        with pytest.raises(ValueError, match=told):
            solve_elliptic(good, good, good, boundary)


@pytest.mark.parametrize("extent", [(1.0, 1.0), (2.0, 0.5)])
def test_differences_of_any_field_are_those_of_its_fluxes(extent: tuple[float, float]) -> None:
    """Flux by flux: k grad u through each face, half a cell away from the boundary's value."""
    rng = np.random.default_rng(7)
    k, r, u = (
        np.exp(rng.normal(size=(2, 3, 5))),
        rng.normal(size=(2, 3, 5)),
        rng.normal(size=(2, 3, 5)),
    )
    g = np.array([0.7, -0.2])
    found = apply_elliptic(*(torch.from_numpy(a) for a in (k, r, u, g)), extent).numpy()
    for n, j, i in itertools.product(range(2), range(3), range(5)):
        total = r[n, j, i] * u[n, j, i]
        for dj, di, width in ((0, 1, extent[1] / 5), (1, 0, extent[0] / 3)):
            for side in (-1, 1):
                jj, ii = j + side * dj, i + side * di
                if 0 <= jj < 3 and 0 <= ii < 5:
                    face = 2.0 / (1.0 / k[n, j, i] + 1.0 / k[n, jj, ii])
                    total += face * (u[n, j, i] - u[n, jj, ii]) / width**2
                else:
                    total += k[n, j, i] * (u[n, j, i] - g[n]) / (width / 2) / width
        assert found[n, j, i] == pytest.approx(total, rel=1e-12, abs=1e-12)


def test_what_is_solved_for_is_found_again_of_every_problem_of_a_batch() -> None:
    rng = np.random.default_rng(8)
    k, r, f = (torch.from_numpy(rng.uniform(0.5, 2.0, (3, 6, 6))) for _ in range(3))
    g = torch.tensor([0.0, 1.0, -2.0], dtype=torch.float64)
    solution = solve_elliptic(k.float(), r, f, g)
    assert solution.dtype == torch.float64
    torch.testing.assert_close(apply_elliptic(k.float().double(), r, solution, g), f)


@pytest.mark.parametrize("name", STEADY)
def test_two_frames_hold_the_input_and_the_solution(name: str) -> None:
    settings = {"seed": 4, "resolution": 16, "num_frames": 2, "final_time": 1.0}
    data, _ = generate_trajectories(name, [0, 1, 2], **settings)
    assert data.shape[:2] == (3, 2)
    assert not data[:, 0, -1].any()
    assert np.array_equal(data[:, 0, :-1], data[:, 1, :-1])
    assert (np.abs(data[:, 1, -1]).max(axis=(1, 2)) > 1e-4).all()
    for i in range(3):
        alone = generate_trajectories(name, [i], **settings)[0][0]
        assert alone.tobytes() == data[i].tobytes()


def solved(name: str, resolution: int, count: int) -> Tensor:
    """States with their solutions in double precision, [count, channel, y, x]."""
    family = FAMILIES[name]
    draws = [
        family.initial_state(trajectory_generator(0, name, i), resolution) for i in range(count)
    ]
    return family.solve(torch.from_numpy(np.stack(draws)), [0.0, 1.0], family.cfl)[:, 1]


def test_poisson_solutions_are_positive_and_balance_their_source() -> None:
    for source, solution in solved("Poisson-Gauss", 64, 4):
        assert float(solution.min()) > 0.0
        second = -4.0 * solution
        padded = torch.nn.functional.pad(solution, (1, 1, 1, 1))
        second = (
            second + padded[:-2, 1:-1] + padded[2:, 1:-1] + padded[1:-1, :-2] + padded[1:-1, 2:]
        )
        inner = np.s_[2:-2, 2:-2]
        # The second difference's error, h^2 u''''/12 = (1/64)^2 * 3 f/(12 * 0.025^2) at worst.
        gap = (-second * 64**2 - source)[inner].abs().max()
        assert float(gap) < 0.1 * float(source.max())


def test_helmholtz_is_linear_in_its_boundary_and_constant_without_a_medium() -> None:
    family = FAMILIES["Helmholtz"]
    state = torch.from_numpy(
        family.initial_state(trajectory_generator(0, "Helmholtz", 1), 24)
    ).clone()[None]
    assert 0.0 <= float(state[:, 0].min()) < float(state[:, 0].max()) <= 1.0
    assert 0.25 <= float(state[0, 1, 0, 0]) <= 0.5
    once = family.solve(state, [0.0, 1.0], 1.0)[0, 1, 2]
    state[:, 1] *= 2.0
    twice = family.solve(state, [0.0, 1.0], 1.0)[0, 1, 2]
    torch.testing.assert_close(twice, 2.0 * once, rtol=1e-10, atol=1e-10)
    state[:, 0] = 0.0
    still = family.solve(state, [0.0, 1.0], 1.0)[0, 1]
    torch.testing.assert_close(still[2], still[1], rtol=1e-12, atol=0.0)


def test_helmholtz_media_are_the_same_on_every_grid() -> None:
    """Cell centres of 24 cells are every third of 72, in the middle."""
    family = FAMILIES["Helmholtz"]
    for number in range(4):
        coarse, fine = (
            family.initial_state(trajectory_generator(0, "Helmholtz", number), size)
            for size in (24, 72)
        )
        np.testing.assert_allclose(coarse, fine[:, 1::3, 1::3], rtol=0, atol=1e-12)


def test_darcy_lets_out_what_the_source_puts_in() -> None:
    for permeability, solution in solved("Darcy", 32, 3):
        assert set(permeability.unique().tolist()) == {3.0, 12.0}
        flux = 2.0 * permeability * solution  # through a face on the boundary, times its length
        out = flux[0].sum() + flux[-1].sum() + flux[:, 0].sum() + flux[:, -1].sum()
        assert float(out) == pytest.approx(1.0, rel=1e-10)
        assert float(solution.min()) > 0.0
        # Between the solutions of the uniform media, whose largest value is 0.0737 / a.
        assert 0.0737 / 12.0 * 0.9 < float(solution.max()) < 0.0737 / 3.0


def test_darcy_media_are_the_same_on_every_grid_and_half_and_half() -> None:
    coarse = downstream_fields.darcy_medium(trajectory_generator(0, "Darcy", 0), 32)
    fine = downstream_fields.darcy_medium(trajectory_generator(0, "Darcy", 0), 96)
    assert np.array_equal(coarse, fine[:, 1::3, 1::3])  # a coarse centre is a fine one
    draws = [
        downstream_fields.darcy_medium(trajectory_generator(0, "Darcy", i), 16)[0]
        for i in range(200)
    ]
    high = np.mean(np.stack(draws) == 12.0)
    # The field has no mean, and a sample's share scatters by 0.15: by 0.011 over 200.
    assert high == pytest.approx(0.5, abs=0.045)


def test_darcy_permeability_is_the_sign_of_its_series() -> None:
    table = trajectory_generator(0, "Darcy", 3).standard_normal((64, 64))
    medium = downstream_fields.darcy_medium(trajectory_generator(0, "Darcy", 3), 16)[0]
    number = np.arange(64)
    weight = np.where(number > 0, math.sqrt(2.0), 1.0)
    scale = weight[:, None] * weight / (math.pi**2 * (number[:, None] ** 2 + number**2) + 9.0)
    scale[0, 0] = 0.0
    for j in range(16):
        for i in range(16):
            waves_y, waves_x = (np.cos(math.pi * number * (m + 0.5) / 16) for m in (j, i))
            value = (table * scale * waves_y[:, None] * waves_x).sum()
            assert medium[j, i] == (12.0 if value >= 0.0 else 3.0)
