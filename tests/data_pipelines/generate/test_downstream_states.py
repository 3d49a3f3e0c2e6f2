"""Initial states and coefficients of the downstream problems, point by point from their formulas
(named in `downstream_fields` and
`downstream_flows`), with the random numbers of the same generator."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from pelagos.data_pipelines.generate import (
    downstream_fields,
    downstream_flows,
    initial_states,
    trajectory_generator,
)

COUNT = 12
SEEDS = range(4)


def generator(seed: int) -> np.random.Generator:
    return trajectory_generator(seed, "a family", 1)


def centre_of(row: int, column: int) -> tuple[float, float]:
    """(x, y) of a cell."""
    return (column + 0.5) / COUNT, (row + 0.5) / COUNT


def cells() -> list[tuple[int, int]]:
    return [(row, column) for row in range(COUNT) for column in range(COUNT)]


def bell(x: float, y: float, at: tuple[float, float], width: float) -> float:
    return math.exp(-((x - at[0]) ** 2 + (y - at[1]) ** 2) / (2.0 * width**2))


def sources(rng: np.random.Generator) -> list[tuple[tuple[float, float], float]]:
    count = int(rng.integers(2, 7))
    centre = rng.uniform(1.0 / 6.0, 5.0 / 6.0, (2, 6))
    width = rng.uniform(0.039, 0.156, 6)
    return [((centre[0, n], centre[1, n]), width[n]) for n in range(count)]


@pytest.mark.parametrize("seed", SEEDS)
def test_sources_in_a_medium_of_four_bumps(seed: int) -> None:
    rng = generator(seed)
    sounds = sources(rng)
    base, shift = rng.uniform(1500.0, 2500.0), rng.uniform(-0.3125, 0.3125, (2, 4))
    height, width = rng.uniform(1000.0, 2500.0, 4), rng.uniform(1.0 / 12.0, 1.0 / 6.0, 4)
    anchors = [(0.25, 0.25), (0.25, 0.75), (0.75, 0.25), (0.75, 0.75)]
    places = [(x + shift[0, n], y + shift[1, n]) for n, (x, y) in enumerate(anchors)]
    found = downstream_fields.gaussian_medium(generator(seed), COUNT)
    assert found.shape == (2, COUNT, COUNT)
    for row, column in cells():
        x, y = centre_of(row, column)
        displacement = sum(bell(x, y, at, size) for at, size in sounds)
        speed = base + sum(height[n] * bell(x, y, places[n], width[n]) for n in range(4))
        assert found[:, row, column] == pytest.approx([displacement, speed], rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("seed", SEEDS)
def test_sources_above_layers(seed: int) -> None:
    rng = generator(seed)
    sounds = sources(rng)
    count = int(rng.integers(3, 7))
    speeds = rng.uniform(2000.0, 5000.0, 6)
    weight, phase = rng.uniform(0.0, 1.0, (6, 10)), rng.uniform(0.0, 1.0, (6, 10))
    found = downstream_fields.layered_medium(generator(seed), COUNT)
    for row, column in cells():
        x, y = centre_of(row, column)
        layer = 0
        for i in range(1, count):
            waves = [
                weight[i, k - 1] * math.sin(2 * math.pi * (k * x + phase[i, k - 1]))
                for k in range(1, 11)
            ]
            layer += y > i / count + 0.4 / count * sum(waves) / weight[i].sum()
        assert found[1, row, column] == speeds[layer]
        displacement = sum(bell(x, y, at, size) for at, size in sounds)
        assert found[0, row, column] == pytest.approx(displacement, rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("seed", SEEDS)
def test_phases_are_sums_of_odd_sines(seed: int) -> None:
    rng = generator(seed)
    count, decay = int(rng.integers(16, 33)), rng.uniform(0.7, 1.0)
    table = rng.uniform(-1.0, 1.0, (32, 32))
    found = downstream_fields.phase_field(generator(seed), COUNT)
    assert found.shape == (1, COUNT, COUNT)
    for row, column in ((0, 5), (3, 0), (5, 7), (11, 2)):
        x, y = column / COUNT, row / COUNT
        total = sum(
            table[j - 1, i - 1]
            * (i * i + j * j) ** -decay
            * math.sin(math.pi * i * x)
            * math.sin(math.pi * j * y)
            for i in range(1, count + 1)
            for j in range(1, count + 1)
        )
        assert found[0, row, column] == pytest.approx(total / count**2, rel=1e-11, abs=1e-15)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_dam_is_a_disk_of_water_at_rest(seed: int) -> None:
    radius = generator(seed).uniform(0.3, 0.7)
    found = downstream_fields.dam_state(generator(seed), COUNT)
    assert found.shape == (3, COUNT, COUNT)
    assert not found[1:].any()
    for row, column in cells():
        x, y = centre_of(row, column)
        inside = math.hypot(5.0 * (x - 0.5), 5.0 * (y - 0.5)) < radius
        assert found[0, row, column] == (2.0 if inside else 1.0)


@pytest.mark.parametrize("seed", SEEDS)
def test_waves_of_velocity(seed: int) -> None:
    rng = generator(seed)
    amplitude, phase = rng.uniform(-1.0, 1.0, (2, 5, 9)), rng.uniform(0.0, 2 * math.pi, (2, 5, 9))
    found = downstream_fields.burgers_velocity(generator(seed), COUNT)
    assert np.abs(found).max() <= 1.0
    for row, column in ((0, 0), (3, 7), (11, 4)):
        x, y = column / COUNT, row / COUNT
        for part in range(2):
            wave, total = 0.0, 0.0
            for i in range(5):
                for j in range(-4, 5):
                    if (i, j) != (0, 0):
                        size = amplitude[part, i, j + 4] / (i * i + j * j)
                        angle = 2 * math.pi * (i * x + j * y) + phase[part, i, j + 4]
                        wave, total = wave + size * math.sin(angle), total + abs(size)
            assert found[part, row, column] == pytest.approx(wave / total, abs=1e-13)


@pytest.mark.parametrize("seed", SEEDS)
def test_sources_of_a_poisson_problem(seed: int) -> None:
    rng = generator(seed)
    count = int(rng.geometric(0.4))
    centre, width = rng.uniform(0.0, 1.0, (2, count)), rng.uniform(0.025, 0.1, count)
    found = downstream_fields.poisson_source(generator(seed), COUNT)
    assert not found[1].any()
    for row, column in cells():
        x, y = centre_of(row, column)
        total = sum(bell(x, y, (centre[0, n], centre[1, n]), width[n]) for n in range(count))
        assert found[0, row, column] == pytest.approx(total, rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("seed", SEEDS)
def test_wells_of_a_helmholtz_problem(seed: int) -> None:
    """Brought to [0, 1] by the extremes on 513 x 513 points, corners and edges among them."""
    rng = generator(seed)
    boundary, count = rng.uniform(0.25, 0.5), int(rng.integers(2, 8))
    depth, width = rng.uniform(0.5, 10.0, 7)[:count], rng.uniform(0.05, 0.1, 7)[:count]
    at = rng.uniform(0.2, 0.8, (2, 7))[:, :count]

    def wells(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        square = (x - at[0]) ** 2 + (y - at[1]) ** 2
        return -(depth * np.exp(-square / (2.0 * width**2))).sum(axis=-1)

    fine = np.linspace(0.0, 1.0, 513)
    everywhere = wells(fine[None, :, None], fine[:, None, None])
    found = downstream_fields.helmholtz_medium(generator(seed), COUNT)
    assert (found[1] == boundary).all()
    assert not found[2].any()
    places = (np.arange(COUNT) + 0.5) / COUNT
    low, high = everywhere.min(), everywhere.max()
    expected = (wells(places[None, :, None], places[:, None, None]) - low) / (high - low)
    np.testing.assert_allclose(found[0], expected, atol=1e-12)
    assert found[0].min() >= 0.0


def test_noise_is_one_number_to_a_cell() -> None:
    found = downstream_fields.noise_state(generator(0), 64)
    assert found.shape == (2, 64, 64)
    np.testing.assert_array_equal(found, generator(0).standard_normal((2, 64, 64)))


# -- flows ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", SEEDS)
def test_shear_layers(seed: int) -> None:
    rng = generator(seed)
    count = int(rng.integers(7, 13))
    thickness, shift = rng.uniform(0.08, 0.12), rng.uniform(-1.0 / 16.0, 1.0 / 16.0)
    weight, phase = rng.uniform(0.0, 1.0, 12), rng.uniform(0.0, 2 * math.pi, 12)
    found = downstream_flows.shear_layer_velocity(generator(seed), COUNT)
    assert not found[1].any()
    for row, column in cells():
        x, y = column / COUNT, row / COUNT
        waves = [
            weight[k - 1] * math.sin(2 * math.pi * k * x - phase[k - 1])
            for k in range(1, count + 1)
        ]
        moved = (y + shift + 0.025 * sum(waves)) % 1.0
        layer = moved - 0.25 if moved <= 0.5 else 0.75 - moved
        expected = math.tanh(2 * math.pi * layer / thickness)
        assert found[0, row, column] == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_vortex_sheet_is_the_one_that_was_drawn(seed: int) -> None:
    rng = generator(seed)
    amplitude, offset = rng.uniform(0.0, 0.003125, 10), rng.uniform(0.0, 1.0, 10)
    count = 64
    sheet = downstream_flows.sheet_vorticity(amplitude, offset, count)
    velocity = downstream_flows.vortex_sheet_velocity(generator(seed), count)
    k = np.fft.fftfreq(count, 1.0 / count)
    k[count // 2] = 0.0
    u, v = np.fft.fft2(velocity)
    curl = np.fft.ifft2(2j * math.pi * (k[None, :] * v - k[:, None] * u)).real
    spectrum = np.fft.fft2(sheet)
    spectrum[0, 0] = spectrum[count // 2] = spectrum[:, count // 2] = 0.0
    np.testing.assert_allclose(curl, np.fft.ifft2(spectrum).real, atol=1e-11)
    # and lies where it should: the vorticity's centre of each column is the sheet's height
    places = np.arange(count) / count
    for column in (0, 9, 40):
        height = 0.5 + 0.2 * math.sin(2 * math.pi * places[column])
        height += sum(
            a * math.sin(2 * math.pi * (places[column] + b))
            for a, b in zip(amplitude, offset, strict=True)
        )
        centre = (sheet[:, column] * places).sum() / sheet[:, column].sum()
        assert centre == pytest.approx(height, abs=0.005)  # bent within the kernel's 5/128


@pytest.mark.parametrize("seed", SEEDS)
def test_four_gases_behind_fine_waves(seed: int) -> None:
    rng = generator(seed)
    amplitude, phase = rng.uniform(-0.01, 0.01, (2, 2, 2)), rng.uniform(0.0, 1.0, (2, 2, 2))
    density, velocity = rng.uniform(1.0, 3.0, (2, 2)), rng.uniform(-10.0, 10.0, (2, 2, 2))
    states = np.stack((density, velocity[0], velocity[1], rng.uniform(5.0, 7.0, (2, 2))))
    found = downstream_flows.uneven_riemann_state(generator(seed), COUNT)
    for row, column in cells():
        x, y = centre_of(row, column)
        part = []
        for axis, position in enumerate((x, y)):
            shift = sum(
                amplitude[axis, i - 1, j - 1]
                * math.sin(2 * math.pi * ((i + 8) * x + (j + 8) * y + phase[axis, i - 1, j - 1]))
                for i in (1, 2)
                for j in (1, 2)
            )
            part.append(int(2 * ((position + shift) % 1.0)))
        np.testing.assert_array_equal(found[:, row, column], states[:, part[1], part[0]])


@pytest.mark.parametrize("seed", SEEDS)
def test_a_blast_in_a_perturbed_disk(seed: int) -> None:
    rng = generator(seed)
    weight, phase = rng.uniform(0.0, 1.0, 10), rng.uniform(0.0, 1.0, 10)
    count = 32
    found = downstream_flows.richtmyer_meshkov_state(generator(seed), count)
    assert not found[1:3].any()
    for row, column in itertools.product(range(count), range(count)):
        x, y = (column + 0.5) / count - 0.5, (row + 0.5) / count - 0.5
        radius, theta = math.hypot(x, y), math.atan2(y, x)
        waves = [
            weight[j - 1] * math.sin(j * theta + 2 * math.pi * phase[j - 1]) for j in range(1, 11)
        ]
        front = 0.25 + 0.02 * sum(waves) / weight.sum()
        assert found[0, row, column] == (2.0 if radius < front else 1.0)
        assert found[3, row, column] == (20.0 if radius < 0.1 else 1.0)


@pytest.mark.parametrize("seed", SEEDS)
def test_heavy_gas_around_a_star(seed: int) -> None:
    rng = generator(seed)
    bend, turn = rng.uniform(-1.0, 1.0), rng.uniform(-math.pi, math.pi)
    (density, pressure), atwood = rng.uniform(0.8, 1.2, 2), rng.uniform(0.04, 0.06)
    found = downstream_flows.rayleigh_taylor_state(generator(seed), COUNT)
    assert not found[1:3].any()
    for row, column in cells():
        x, y = (c - 0.5 for c in centre_of(row, column))
        radius, theta = math.hypot(x, y), math.atan2(y, x)
        ratio = pressure / density**2
        angle = math.sqrt(2 * math.pi / ratio) * radius
        profile = math.sin(angle) / angle
        outside = radius >= (1.0 + bend * math.cos(theta + turn)) / 4.0
        heavier = (1.0 + atwood) / (1.0 - atwood) if outside else 1.0
        expected = [
            density * profile * heavier,
            pressure * profile**2,
            -2 * ratio * density * profile,
        ]
        assert found[[0, 3, 4], row, column].tolist() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_field_that_pushes_diagonally(seed: int) -> None:
    found = downstream_flows.kolmogorov_state(generator(seed), COUNT)
    flow = initial_states.piecewise_constant_velocity(generator(seed), COUNT)
    np.testing.assert_array_equal(found[:2], flow)
    for row, column in cells():
        expected = 0.1 * math.sin(2 * math.pi * (column + row) / COUNT)
        assert found[2, row, column] == pytest.approx(expected, abs=1e-14)
