"""Initial states of the fluid families, point by point from the formulas of Herde et al.
(arXiv 2405.19101, appendix B), with the random numbers of the same generator."""

from __future__ import annotations

import numpy as np
import pytest

from pelagos.data_pipelines.generate import initial_states, trajectory_generator

TURN = 2.0 * np.pi


def generator(family: str = "a family") -> np.random.Generator:
    return trajectory_generator(3, family, 1)


def curl_and_divergence(velocity: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """dv/dx - du/dy and du/dx + dv/dy on the unit torus, without the modes that have no sign."""
    count = velocity.shape[-1]
    k = np.fft.fftfreq(count, 1.0 / count)
    k[count // 2] = 0.0
    u, v = np.fft.fft2(velocity)
    by_x, by_y = 1j * TURN * k[None, :], 1j * TURN * k[:, None]
    return np.fft.ifft2(by_x * v - by_y * u).real, np.fft.ifft2(by_x * u + by_y * v).real


def without_mean_and_nyquist(field: np.ndarray) -> np.ndarray:
    spectrum = np.fft.fft2(field)
    half = field.shape[0] // 2
    spectrum[0, 0] = spectrum[half] = spectrum[:, half] = 0.0
    return np.fft.ifft2(spectrum).real


def test_nodes_and_centres() -> None:
    assert initial_states.nodes(4).tolist() == [0.0, 0.25, 0.5, 0.75]
    assert initial_states.cell_centres(4).tolist() == [0.125, 0.375, 0.625, 0.875]


@pytest.mark.parametrize(("row", "column"), [(0, 0), (5, 3), (15, 8)])
def test_sines(row: int, column: int) -> None:
    rng = generator()
    a, b, c = (rng.uniform(low, high, (10, 10)) for low, high in ((-1, 1), (0, TURN), (0, TURN)))
    x, y = column / 16, row / 16
    u = v = 0.0
    for i in range(1, 11):
        for j in range(1, 11):
            size = a[i - 1, j - 1] / np.sqrt(TURN * (i + j))
            across, up = TURN * i * x + b[i - 1, j - 1], TURN * j * y + c[i - 1, j - 1]
            u += size * np.sin(across) * np.sin(up)
            v += size * np.cos(across) * np.cos(up)
    found = initial_states.sines_velocity(generator(), 16)
    assert found.shape == (2, 16, 16)
    assert found[:, row, column] == pytest.approx([u, v], abs=1e-13)


@pytest.mark.parametrize("offset", [0.0, 0.5])
def test_gaussian_vortices_are_the_curl_of_their_velocity(offset: float) -> None:
    """And lie on a torus: a vortex near one edge is seen beyond the other."""
    count = 256  # resolves widths of 0.01: exp(-(pi 256 0.01)^2 / 2) is 1e-14
    rng = generator()
    strength, width = rng.uniform(-1.0, 1.0, 100), rng.uniform(0.01, 0.1, 100)
    centre_x, centre_y = rng.uniform(0.0, 1.0, 100), rng.uniform(0.0, 1.0, 100)
    positions = (np.arange(count) + offset) / count
    expected = np.zeros((count, count))
    for n in range(100):
        dx, dy = positions - centre_x[n], positions - centre_y[n]
        dx, dy = dx - np.round(dx), dy - np.round(dy)
        square = dx[None, :] ** 2 + dy[:, None] ** 2
        expected += strength[n] / width[n] * np.exp(-square / (2.0 * width[n] ** 2))
    velocity = initial_states.gaussian_velocity(generator(), positions)
    curl, divergence = curl_and_divergence(velocity)
    # the shortest way round makes a kink of exp(-12) at half a turn, of the widest vortices
    np.testing.assert_allclose(curl, expected - expected.mean(), atol=1e-3 * np.abs(expected).max())
    np.testing.assert_allclose(divergence, 0.0, atol=1e-9)
    if offset:
        state = initial_states.gaussian_state(generator(), count)
        np.testing.assert_array_equal(state[1:3], velocity)
        assert (state[0] == 0.1).all()
        assert (state[3] == 2.5).all()


def test_vorticity_is_constant_on_ten_by_ten_squares() -> None:
    count = 60
    values = generator().uniform(-1.0, 1.0, (10, 10))
    expected = np.repeat(np.repeat(values, 6, axis=0), 6, axis=1)
    velocity = initial_states.piecewise_constant_velocity(generator(), count)
    curl, divergence = curl_and_divergence(velocity)
    np.testing.assert_allclose(curl, without_mean_and_nyquist(expected), atol=1e-12)
    np.testing.assert_allclose(divergence, 0.0, atol=1e-12)
    assert np.abs(velocity.mean(axis=(1, 2))).max() < 1e-15


def test_the_tracer_is_a_disk() -> None:
    found = initial_states.disk_tracer(16)
    assert found.shape == (1, 16, 16)
    for row in range(16):
        for column in range(16):
            inside = (row - 8) ** 2 + (column - 8) ** 2 < 16  # a quarter of 16 points
            assert found[0, row, column] == float(inside)


def random_states(rng: np.random.Generator) -> np.ndarray:
    density, velocity = rng.uniform(0.1, 1.0, (2, 2)), rng.uniform(-1.0, 1.0, (2, 2, 2))
    return np.stack((density, velocity[0], velocity[1], rng.uniform(0.1, 1.0, (2, 2))))


def test_riemann_problems_are_four_states() -> None:
    expected = np.repeat(np.repeat(random_states(generator()), 4, axis=1), 4, axis=2)
    np.testing.assert_array_equal(initial_states.riemann_state(generator(), 8), expected)


def test_curved_riemann_problems_are_four_states_behind_moved_borders() -> None:
    count = 24
    rng = generator()
    amplitude, phase = rng.uniform(-0.1, 0.1, (2, 3, 3)), rng.uniform(0.0, 1.0, (2, 3, 3))
    states = random_states(rng)
    found = initial_states.curved_riemann_state(generator(), count)
    for row in range(count):
        for column in range(count):
            x, y = (column + 0.5) / count, (row + 0.5) / count
            moved = []
            for axis, position in enumerate((x, y)):
                shift = sum(
                    amplitude[axis, i - 1, j - 1]
                    * np.sin(TURN * (i * x + j * y + phase[axis, i - 1, j - 1]))
                    for i in (1, 2, 3)
                    for j in (1, 2, 3)
                )
                moved.append(int(2 * ((position + shift) % 1.0)))
            np.testing.assert_array_equal(found[:, row, column], states[:, moved[1], moved[0]])
    lower = initial_states.between_curves(states, amplitude, phase, 0, count)
    assert not np.array_equal(lower, found)


def test_parts_of_a_circle() -> None:
    places = np.array([-0.6, -0.1, 0.0, 0.49, 0.5, 0.99, 1.0, 1.7, -1e-18])
    assert initial_states.part_of_circle(places).tolist() == [0, 1, 0, 0, 1, 1, 0, 1, 1]


def test_a_layer_between_two_perturbed_borders() -> None:
    count = 64
    rng = generator()
    weight, phase = rng.uniform(0.0, 1.0, (2, 10)), rng.uniform(0.0, 1.0, (2, 10))
    found = initial_states.kelvin_helmholtz_state(generator(), count)
    for column in range(count):
        x = (column + 0.5) / count
        border = [
            0.05
            * sum(weight[n, j - 1] * np.cos(TURN * j * (x + phase[n, j - 1])) for j in range(1, 11))
            / weight[n].sum()
            for n in (0, 1)
        ]
        for row in range(count):
            y = (row + 0.5) / count
            outside = y < 0.25 + border[0] or y > 0.75 + border[1]
            expected = [1.0, 0.5, 0.0, 2.5] if outside else [2.0, -0.5, 0.0, 2.5]
            assert found[:, row, column].tolist() == expected


def test_sums_of_products_are_numpys() -> None:
    draw = np.random.default_rng(0)
    across, up = draw.normal(size=(3, 2, 5)), draw.normal(size=(3, 2, 4))
    found = initial_states.sum_of_products(across, up)
    np.testing.assert_allclose(found, np.einsum("abx,aby->yx", across, up), rtol=1e-13, atol=1e-14)
    with pytest.raises(ValueError, match="argument 2 is shorter"):
        initial_states.sum_of_products(across, up[:2])
