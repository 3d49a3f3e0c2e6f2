"""Random initial states of Poseidon's fluid families on the unit torus, in NumPy.

Each function draws every random number first, in an order that does not depend on the resolution,
and then evaluates the state: the same generator gives the same flow on any grid. Arrays are
[channel, y, x], float64. Incompressible states live at the nodes j/N, compressible ones at the cell
centres (j + 1/2)/N.

Source: Herde et al., Poseidon, arXiv 2405.19101, appendix B. That appendix itself could not be read
here; formulas were taken from a public digest of it, and what the digest says the paper leaves open
is chosen here and marked "chosen".
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from pelagos.data_pipelines.generate.spectral import velocity_from_vorticity

Array = npt.NDArray[np.float64]

NUM_SINES = 10
NUM_GAUSSIANS = 100
NUM_VORTICITY_CELLS = 10
NUM_QUADRANTS = 2
NUM_CURVE_MODES = 3  # chosen
NUM_INTERFACE_MODES = 10  # chosen
INTERFACE_AMPLITUDE = 0.05


def nodes(resolution: int) -> Array:
    """j/N, j = 0 … N-1."""
    return np.arange(resolution, dtype=np.float64) / resolution


def cell_centres(resolution: int) -> Array:
    """(j + 1/2)/N, j = 0 … N-1."""
    return (np.arange(resolution, dtype=np.float64) + 0.5) / resolution


def sines_velocity(rng: np.random.Generator, resolution: int) -> Array:
    """NS-Sines: random Fourier modes up to 10 per axis, [2, y, x].

    u = sum_ij a_ij / sqrt(2 pi (i + j)) sin(2 pi i x + b_ij) sin(2 pi j y + c_ij), v with cosines
    and the same coefficients; a ~ U[-1, 1], b, c ~ U[0, 2 pi]. The field is not divergence-free;
    the solver projects it.
    """
    shape = (NUM_SINES, NUM_SINES)
    amplitude = rng.uniform(-1.0, 1.0, shape)
    phase_x = rng.uniform(0.0, 2.0 * np.pi, shape)
    phase_y = rng.uniform(0.0, 2.0 * np.pi, shape)
    number = np.arange(1, NUM_SINES + 1, dtype=np.float64)
    amplitude = amplitude / np.sqrt(2.0 * np.pi * (number[:, None] + number[None, :]))
    angle = 2.0 * np.pi * number[:, None] * nodes(resolution)[None, :]
    across = angle[:, None, :] + phase_x[:, :, None]  # [i, j, x]
    up = angle[None, :, :] + phase_y[:, :, None]  # [i, j, y]
    u = sum_of_products(amplitude[:, :, None] * np.sin(across), np.sin(up))
    v = sum_of_products(amplitude[:, :, None] * np.cos(across), np.cos(up))
    return np.stack((u, v))


def gaussian_velocity(rng: np.random.Generator, positions: Array) -> Array:
    """NS-Gauss, CE-Gauss: velocity [2, y, x] of 100 Gaussian vortices.

    omega = sum_i a_i/s_i exp(-|x - x_i|^2 / (2 s_i^2)), a ~ U[-1, 1], s ~ U[0.01, 0.1],
    x_i ~ U[0, 1]^2. Distances are taken around the torus (chosen: shortest way); the mean vorticity,
    which no periodic flow can have, is dropped.
    """
    strength = rng.uniform(-1.0, 1.0, NUM_GAUSSIANS)
    width = rng.uniform(0.01, 0.1, NUM_GAUSSIANS)
    centre_x = rng.uniform(0.0, 1.0, NUM_GAUSSIANS)
    centre_y = rng.uniform(0.0, 1.0, NUM_GAUSSIANS)

    def bell(centre: Array) -> Array:
        distance = np.abs(positions[None, :] - centre[:, None])
        distance = np.minimum(distance, 1.0 - distance)
        return np.asarray(np.exp(-0.5 * (distance / width[:, None]) ** 2))

    vorticity = sum_of_products((strength / width)[:, None] * bell(centre_x), bell(centre_y))
    return velocity_of(vorticity)


def piecewise_constant_velocity(rng: np.random.Generator, resolution: int) -> Array:
    """NS-PwC: velocity [2, y, x] of a vorticity constant on 10 x 10 squares, values U[-1, 1]."""
    values = rng.uniform(-1.0, 1.0, (NUM_VORTICITY_CELLS, NUM_VORTICITY_CELLS))
    index = np.minimum(
        (nodes(resolution) * NUM_VORTICITY_CELLS).astype(np.int64), NUM_VORTICITY_CELLS - 1
    )
    return velocity_of(values[index][:, index])


def disk_tracer(resolution: int) -> Array:
    """NS-Tracer-PwC: 1 inside the disk of radius 1/4 about (1/2, 1/2), else 0; [1, y, x]."""
    distance = (nodes(resolution) - 0.5) ** 2
    return np.asarray((distance[:, None] + distance[None, :] < 0.0625)[None], dtype=np.float64)


def riemann_state(rng: np.random.Generator, resolution: int) -> Array:
    """CE-RP: constant states on 2 x 2 squares, [4, y, x].

    density ~ U[0.1, 1], velocities ~ U[-1, 1], pressure ~ U[0.1, 1].
    """
    states = _random_states(rng)
    index = (cell_centres(resolution) * NUM_QUADRANTS).astype(np.int64)
    return states[:, index[:, None], index[None, :]]


def curved_riemann_state(rng: np.random.Generator, resolution: int) -> Array:
    """CE-CRP: constant states on 2 x 2 regions with curved borders, [4, y, x].

    A point (x, y) belongs to the square that holds the fractional part of (x + s_x, y + s_y), with
    s = sum_ij a_ij sin(2 pi (i x + j y + b_ij)), a ~ U[-0.1, 0.1], b ~ U[0, 1]; states as CE-RP.
    The factor 2 pi on j y and on b, the two regions per axis and the three modes per axis are chosen
    (the first so that the state is periodic; the paper gives no numbers for the other two).
    """
    shape = (2, NUM_CURVE_MODES, NUM_CURVE_MODES)
    amplitude = rng.uniform(-0.1, 0.1, shape)
    phase = rng.uniform(0.0, 1.0, shape)
    states = _random_states(rng)
    return between_curves(states, amplitude, phase, 1, resolution)


def between_curves(
    states: Array, amplitude: Array, phase: Array, lowest: int, resolution: int
) -> Array:
    """Constant states [field, 2, 2] on regions with curved borders, [field, y, x].

    A point (x, y) belongs to the square that holds the fractional part of (x + s_x, y + s_y), with
    s = sum_ij a_ij sin(2 pi (i x + j y + b_ij)), i and j from `lowest` on; a = `amplitude` and
    b = `phase` are [2, i, j].
    """
    _, num_i, num_j = amplitude.shape
    centres = cell_centres(resolution)
    shift = np.zeros((2, resolution, resolution))
    for i in range(num_i):
        for j in range(num_j):
            turns = (i + lowest) * centres[None, :] + (j + lowest) * centres[:, None]
            for axis in range(2):
                angle = 2.0 * np.pi * (turns + phase[axis, i, j])
                shift[axis] += amplitude[axis, i, j] * np.sin(angle)
    column = part_of_circle(centres[None, :] + shift[0])
    row = part_of_circle(centres[:, None] + shift[1])
    return states[:, row, column]


def kelvin_helmholtz_state(rng: np.random.Generator, resolution: int) -> Array:
    """CE-KH: a dense layer moving against its surroundings, borders perturbed; [4, y, x].

    (density, u, v, p) = (1, 0.5, 0, 2.5) where y < 0.25 + s_0(x) or y > 0.75 + s_1(x), else
    (2, -0.5, 0, 2.5); s_i(x) = 0.05 sum_j a_ij cos(2 pi j (x + b_ij)) / sum_j a_ij, a, b ~ U[0, 1],
    j = 1 … 10 (the number of modes is chosen; the paper gives none). Poseidon's published loader
    subtracts 1.0 from this family's pressure, which does not fit a pressure of 2.5: the released
    data may have used another value than the text.
    """
    weight = rng.uniform(0.0, 1.0, (2, NUM_INTERFACE_MODES))
    phase = rng.uniform(0.0, 1.0, (2, NUM_INTERFACE_MODES))
    centres = cell_centres(resolution)
    number = np.arange(1, NUM_INTERFACE_MODES + 1, dtype=np.float64)
    angle = 2.0 * np.pi * number[None, :, None] * (centres[None, None, :] + phase[:, :, None])
    border = (weight[:, :, None] * np.cos(angle)).sum(axis=1) / weight.sum(axis=1)[:, None]
    border *= INTERFACE_AMPLITUDE
    y = centres[:, None]
    outside = (y < 0.25 + border[0][None, :]) | (y > 0.75 + border[1][None, :])
    state = np.zeros((4, resolution, resolution))
    state[0] = np.where(outside, 1.0, 2.0)
    state[1] = np.where(outside, 0.5, -0.5)
    state[3] = 2.5
    return state


def gaussian_state(rng: np.random.Generator, resolution: int) -> Array:
    """CE-Gauss: density 0.1, pressure 2.5 and the velocity of 100 Gaussian vortices; [4, y, x]."""
    state = np.empty((4, resolution, resolution))
    state[0] = 0.1
    state[1:3] = gaussian_velocity(rng, cell_centres(resolution))
    state[3] = 2.5
    return state


def _random_states(rng: np.random.Generator) -> Array:
    """[4, row, column] of independent constant states."""
    shape = (NUM_QUADRANTS, NUM_QUADRANTS)
    density = rng.uniform(0.1, 1.0, shape)
    velocity = rng.uniform(-1.0, 1.0, (2, *shape))
    pressure = rng.uniform(0.1, 1.0, shape)
    return np.concatenate((density[None], velocity, pressure[None]))


def part_of_circle(coordinate: Array) -> npt.NDArray[np.int64]:
    """Number of the part of the circle, cut in `NUM_QUADRANTS`, that holds a coordinate."""
    part = ((coordinate % 1.0) * NUM_QUADRANTS).astype(np.int64)
    return np.minimum(part, NUM_QUADRANTS - 1)


def sum_of_products(across: Array, up: Array) -> Array:
    """sum_k across[k, x] up[k, y] as [y, x], in a fixed order (no BLAS, whose bits vary)."""
    across, up = across.reshape(-1, across.shape[-1]), up.reshape(-1, up.shape[-1])
    total = np.zeros((up.shape[1], across.shape[1]))
    for row, column in zip(across, up, strict=True):
        total += column[:, None] * row[None, :]
    return total


def velocity_of(vorticity: Array) -> Array:
    """Divergence-free velocity [2, y, x] of a vorticity [y, x], whose mean is dropped."""
    velocity: Array = velocity_from_vorticity(torch.from_numpy(vorticity)[None])[0].numpy()
    return velocity
