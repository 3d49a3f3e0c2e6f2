"""Initial states and coefficients of the downstream problems, point by point from their formulas
(named in `downstream_fields`), with the random numbers of the same generator."""

from __future__ import annotations

import math

import numpy as np
import pytest

from pelagos.data_pipelines.generate import downstream_fields, trajectory_generator

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
