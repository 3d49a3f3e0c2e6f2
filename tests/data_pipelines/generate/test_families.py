"""Families: finite trajectories, bits that depend on nothing but their key, second chances."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from pelagos.data_pipelines.generate import (
    FAMILIES,
    GenerationError,
    find_family,
    generate_trajectories,
    initial_states,
    trajectory_generator,
)
from pelagos.data_pipelines.generate.euler import to_conserved

SHORT = {"resolution": 32, "num_frames": 3, "final_time": 0.1}
NAMES = list(FAMILIES)
OFFSET_PRESSURE = {"CE-RP", "CE-CRP", "CE-KH", "CE-Gauss", "CE-RPUI"}


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("name", NAMES)
def test_every_family_gives_finite_frames_and_says_what_they_are(name: str) -> None:
    family = FAMILIES[name]
    data, parameters = generate_trajectories(
        name, [0, 5], seed=3, resolution=32, num_frames=6, final_time=0.25
    )
    assert family.name == name
    assert data.shape == (2, 6, len(family.fields), 32, 32)
    assert data.dtype == np.float32
    assert np.isfinite(data).all()
    assert tuple(parameters) == family.parameter_names
    assert all(values.shape == (2,) for values in parameters.values())
    assert parameters["cfl"].tolist() == [family.cfl] * 2
    assert np.abs(data[0] - data[1]).max() > 0.01
    assert np.abs(data[:, -1] - data[:, 0]).max() > 0.001
    for field in ("density", "pressure"):
        if field in family.fields:
            assert data[:, :, family.fields.index(field)].min() > 0.0
    constants = family.published_normalization
    if constants:
        assert set(constants["mean"]) == set(constants["std"])
        assert set(family.fields) <= set(constants["mean"])
        assert ("pressure" in constants["offset"]) == (name in OFFSET_PRESSURE)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [*((name, "float32") for name in NAMES), ("NS-Gauss", "float64"), ("CE-RP", "float64")],
)
def test_bits_do_not_depend_on_batch_or_order(name: str, dtype: str) -> None:
    settings = {"resolution": 32, "num_frames": 3, "final_time": 0.04, "seed": 1, "dtype": dtype}
    alone = [generate_trajectories(name, [i], **settings)[0][0] for i in range(3)]
    together = generate_trajectories(name, [2, 0, 1], **settings)[0]
    for row, i in enumerate((2, 0, 1)):
        assert alone[i].tobytes() == together[row].tobytes(), (name, i)


# MKL's FFT rounds by the number of transforms per call up to 64 points; odd sizes leave tails.
# Five trajectories of 64 x 64 are enough for torch to share an operation among threads.
@pytest.mark.parametrize("resolution", [12, 36, 64])
@pytest.mark.parametrize("name", ["NS-Tracer-PwC", "NS-Gauss", "CE-CRP", "Darcy"])
def test_bits_do_not_depend_on_batch_or_threads_at_other_sizes(
    name: str, resolution: int, threads: None
) -> None:
    torch.set_num_threads(2)
    settings = {"resolution": resolution, "num_frames": 2, "final_time": 0.01, "seed": 5}
    together = generate_trajectories(name, range(5), **settings)[0]
    torch.set_num_threads(1)
    for i in range(5):
        assert generate_trajectories(name, [i], **settings)[0][0].tobytes() == together[i].tobytes()


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_compiled_steps_differ_by_rounding_alone_and_not_with_the_batch() -> None:
    settings = {"resolution": 32, "num_frames": 2, "final_time": 0.05, "seed": 5}
    plain = generate_trajectories("CE-RP", range(3), **settings)[0]
    together = generate_trajectories("CE-RP", range(3), compiled=True, **settings)[0]
    for i in range(3):
        alone = generate_trajectories("CE-RP", [i], compiled=True, **settings)[0][0]
        assert alone.tobytes() == together[i].tobytes()
    # About 20 steps of float32, 1e-7 each, some amplification at the shocks.
    assert np.abs(together - plain).max() < 1e-4
    assert not np.array_equal(together, plain)


def test_a_trajectory_is_keyed_by_seed_family_and_index() -> None:
    def draw(seed: int, family: str, index: int) -> float:
        return float(trajectory_generator(seed, family, index).uniform())

    base = draw(0, "CE-RP", 4)
    assert base == draw(0, "CE-RP", 4)
    others = [draw(1, "CE-RP", 4), draw(0, "CE-CRP", 4), draw(0, "CE-RP", 5), draw(4, "CE-RP", 0)]
    assert len({base, *others}) == 5


def test_the_same_flow_on_every_grid() -> None:
    """Random numbers do not depend on the resolution: coarse nodes are a subset of fine ones."""
    for draw in (
        initial_states.sines_velocity,
        lambda rng, n: initial_states.gaussian_velocity(rng, initial_states.nodes(n)),
    ):
        coarse = draw(trajectory_generator(0, "NS", 1), 64)
        fine = draw(trajectory_generator(0, "NS", 1), 128)[:, ::2, ::2]
        # Sines are exact; Gaussians of width 0.01 are not resolved by 64 points.
        assert np.abs(coarse - fine).max() < 0.05 * np.abs(fine).max()


def test_sines_match_their_formula_at_a_point() -> None:
    rng = trajectory_generator(0, "NS-Sines", 0)
    a, b, c = (
        rng.uniform(lo, hi, (10, 10)) for lo, hi in ((-1, 1), (0, 2 * np.pi), (0, 2 * np.pi))
    )
    x, y, total = 3 / 16, 5 / 16, 0.0
    for i in range(1, 11):
        for j in range(1, 11):
            wave = np.cos(2 * np.pi * i * x + b[i - 1, j - 1])
            wave *= np.cos(2 * np.pi * j * y + c[i - 1, j - 1])
            total += a[i - 1, j - 1] / np.sqrt(2 * np.pi * (i + j)) * wave
    field = initial_states.sines_velocity(trajectory_generator(0, "NS-Sines", 0), 16)
    assert field[1, 5, 3] == pytest.approx(total, abs=1e-13)


def test_riemann_quadrants_are_constant_and_within_their_ranges() -> None:
    state = initial_states.riemann_state(trajectory_generator(0, "CE-RP", 0), 16)
    for rows in (slice(0, 8), slice(8, 16)):
        for columns in (slice(0, 8), slice(8, 16)):
            block = state[:, rows, columns].reshape(4, -1)
            assert (block == block[:, :1]).all()
    assert state[[0, 3]].min() >= 0.1
    assert np.abs(state).max() <= 1.0


def test_kelvin_helmholtz_borders_stay_within_their_amplitude() -> None:
    state = initial_states.kelvin_helmholtz_state(trajectory_generator(0, "CE-KH", 2), 128)
    y = initial_states.cell_centres(128)
    surely_inside = (y > 0.3) & (y < 0.7)
    assert (state[0][surely_inside] == 2.0).all()
    assert (state[0][(y < 0.2) | (y > 0.8)] == 1.0).all()
    assert (state[3] == 2.5).all()
    assert len(np.unique((state[0] == 2.0).sum(axis=0))) > 3


def test_solving_finer_gives_means_of_the_conserved_quantities() -> None:
    settings = {"seed": 2, "num_frames": 2, "final_time": 0.05, "dtype": "float64"}
    fine = generate_trajectories("CE-RP", [1], resolution=32, **settings)[0][0]
    coarse = generate_trajectories("CE-RP", [1], resolution=16, solver_resolution=32, **settings)[
        0
    ][0]
    conserved = to_conserved(torch.from_numpy(fine).double())
    means = conserved.reshape(2, 4, 16, 2, 16, 2).mean(dim=(3, 5))
    # Both results were rounded to float32 on the way.
    torch.testing.assert_close(
        to_conserved(torch.from_numpy(coarse).double()), means, rtol=1e-6, atol=1e-6
    )


@pytest.mark.parametrize(("name", "cfl"), [("CE-KH", 4.0), ("NS-Gauss", 6.0)])
def test_failing_trajectories_are_solved_again_at_half_the_step(name: str, cfl: float) -> None:
    """The first Courant number is far beyond stability: these runs do blow up."""
    settings = {"seed": 0, "resolution": 32, "num_frames": 3, "final_time": 0.3}
    reckless = dataclasses.replace(FAMILIES[name], cfl=cfl)
    data, parameters = generate_trajectories(reckless, [0, 1], **settings)
    assert np.isfinite(data).all()
    for i, used in enumerate(parameters["cfl"]):
        assert used in (cfl / 2, cfl / 4, cfl / 8)
        careful = dataclasses.replace(FAMILIES[name], cfl=used)
        again = generate_trajectories(careful, [i], **settings)[0][0]
        assert again.tobytes() == data[i].tobytes()


def test_only_the_failing_trajectory_is_solved_again() -> None:
    family = FAMILIES["NS-Gauss"]

    def fails_once(states: Tensor, times: Sequence[float], cfl: float) -> Tensor:
        frames = family.solve(states, times, cfl)
        if cfl == family.cfl:
            frames[1, -1, 0, 0, 0] = torch.nan
        return frames

    injected = dataclasses.replace(family, solve=fails_once)
    data, parameters = generate_trajectories(injected, [0, 1, 2], seed=0, **SHORT)
    clean, _ = generate_trajectories("NS-Gauss", [0, 1, 2], seed=0, **SHORT)
    assert parameters["cfl"].tolist() == [0.8, 0.4, 0.8]
    assert np.isfinite(data).all()
    assert [data[i].tobytes() == clean[i].tobytes() for i in range(3)] == [True, False, True]


@pytest.mark.parametrize(
    ("device", "resolution", "expected"),
    [("cpu", 64, [5]), ("cpu", 128, [2, 2, 1]), ("cpu", 256, [1] * 5), ("meta", 256, [5])],
)
def test_a_cpu_solves_together_what_stays_in_cache_and_a_device_everything(
    device: str, resolution: int, expected: list[int]
) -> None:
    """32,768 points: two of 128 x 128. `meta` stands for a GPU; nothing is computed."""
    together: list[int] = []

    def noting(states: Tensor, times: Sequence[float], cfl: float) -> Tensor:
        assert states.device.type == device
        together.append(len(states))
        return torch.zeros(len(states), len(times), *states.shape[1:])

    family = dataclasses.replace(FAMILIES["NS-Gauss"], solve=noting)
    settings = {"resolution": resolution, "solver_resolution": resolution, "num_frames": 2}
    generate_trajectories(family, range(5), seed=0, final_time=0.1, device=device, **settings)
    assert together == expected


def test_trajectories_that_never_work_are_named() -> None:
    hopeless = dataclasses.replace(FAMILIES["CE-RP"], cfl=1000.0)
    told = r"CE-RP, seed 9: trajectories \[7, 2\] .*up to time 0\.1 on a 32 x 32 grid in float32, "
    told += r"at Courant numbers from 1000\.0 down to 125\.0\."  # halved three times
    with pytest.raises(GenerationError, match=told):
        generate_trajectories(hopeless, [7, 2], seed=9, **SHORT)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"resolution": 15}, "even number"),
        ({"resolution": 16, "solver_resolution": 24}, "24 % 16 = 8"),
        ({"num_frames": 0}, "at least one frame"),
        ({"dtype": "float16"}, "float16"),
    ],
)
def test_wrong_settings_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        generate_trajectories("CE-RP", [0], seed=0, **change)  # type: ignore[arg-type]


def test_an_unknown_family_lists_the_known_ones() -> None:
    assert find_family("ns-sines") is FAMILIES["NS-Sines"]
    with pytest.raises(ValueError, match='mean "ns-sines".*Known families are NS-Sines, NS-Gauss'):
        generate_trajectories("NS-Sine", [0], seed=0)
