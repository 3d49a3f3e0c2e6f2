"""Random initial states and coefficients of the downstream problems that are no flows of a gas.

As in `initial_states`: random numbers come first, in an order that does not depend on the
resolution (but for `noise_state`, which is one number to a cell); arrays are [channel, y, x],
float64, at the cell centres (j + 1/2)/N unless nodes are named.

Sources: Poseidon (Herde et al., arXiv 2405.19101, appendix B, read through a public digest of it),
PDEBench (Takamoto et al., arXiv 2210.07182), and for Darcy flow Li et al. (arXiv 2010.08895). Values
that could not be read are marked "chosen".
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pelagos.data_pipelines.generate.initial_states import cell_centres, nodes, sum_of_products

Array = npt.NDArray[np.float64]

MAX_SOURCES = 6
ANCHORS = ((0.25, 0.25), (0.25, 0.75), (0.75, 0.25), (0.75, 0.75))
MAX_LAYERS = 6
NUM_LAYER_MODES = 10
MAX_PHASE_MODES = 32
NUM_BURGERS_MODES = 4  # chosen
MAX_WELLS = 7
NUM_WELL_POINTS = 513  # per axis, for the extremes of a medium
NUM_DARCY_MODES = 64  # chosen
DARCY_VALUES = (3.0, 12.0)


def gaussian_medium(rng: np.random.Generator, resolution: int) -> Array:
    """Wave-Gauss: displacement, and a smooth speed in m/s; [2, y, x].

    c = c_0 + sum_i v_i exp(-|x - x_i - d_i|^2 / (2 s_i^2)) over four anchors x_i at a quarter and
    three quarters; c_0 ~ U[1500, 2500], v ~ U[1000, 2500], d ~ U[-0.3125, 0.3125]^2,
    s ~ U[1/12, 1/6]. These give a mean speed of 2,500; the published data has 2,618.
    """
    displacement = _sources(rng, resolution)
    base = rng.uniform(1500.0, 2500.0)
    shift = rng.uniform(-0.3125, 0.3125, (2, len(ANCHORS)))
    height = rng.uniform(1000.0, 2500.0, len(ANCHORS))
    width = rng.uniform(1.0 / 12.0, 1.0 / 6.0, len(ANCHORS))
    centre = np.array(ANCHORS).T + shift
    speed = base + _bells(cell_centres(resolution), height, centre[0], centre[1], width)
    return np.stack((displacement, speed))


def layered_medium(rng: np.random.Generator, resolution: int) -> Array:
    """Wave-Layer: displacement, and a speed in m/s that is constant in layers; [2, y, x].

    3 to 6 layers, one above the other, speeds ~ U[2000, 5000]. Border i of n layers is
    i/n + 0.4/n sum_k a_k sin(2 pi (k x + b_k)) / sum_k a_k, k = 1 ... 10, a, b ~ U[0, 1]: the paper
    scales the borders so that they do not cross; these do not (the scaling is chosen).
    """
    displacement = _sources(rng, resolution)
    count = int(rng.integers(3, MAX_LAYERS + 1))
    speeds = rng.uniform(2000.0, 5000.0, MAX_LAYERS)
    weight = rng.uniform(0.0, 1.0, (MAX_LAYERS, NUM_LAYER_MODES))
    phase = rng.uniform(0.0, 1.0, (MAX_LAYERS, NUM_LAYER_MODES))
    centres = cell_centres(resolution)
    number = np.arange(1, NUM_LAYER_MODES + 1, dtype=np.float64)
    layer = np.zeros((resolution, resolution), dtype=np.int64)
    for i in range(1, count):
        waves = np.sin(2.0 * np.pi * (number[:, None] * centres[None, :] + phase[i, :, None]))
        wave = (weight[i, :, None] * waves).sum(axis=0) / weight[i].sum()
        layer += centres[:, None] > (i + 0.4 * wave[None, :]) / count
    return np.stack((displacement, speeds[layer]))


def phase_field(rng: np.random.Generator, resolution: int) -> Array:
    """ACE: random sines at the nodes, [1, y, x].

    K^-2 sum_ij a_ij (i^2 + j^2)^-r sin(pi i x) sin(pi j y), i, j = 1 ... K; K ~ U{16 ... 32},
    r ~ U[0.7, 1], a ~ U[-1, 1]. Odd sines have a kink where the square is continued periodically.
    """
    count = int(rng.integers(16, MAX_PHASE_MODES + 1))
    decay = rng.uniform(0.7, 1.0)
    table = rng.uniform(-1.0, 1.0, (MAX_PHASE_MODES, MAX_PHASE_MODES))[:count, :count]  # [j, i]
    number = np.arange(1, count + 1, dtype=np.float64)
    table = table * (number[:, None] ** 2 + number[None, :] ** 2) ** -decay / count**2
    waves = np.sin(np.pi * number[:, None] * nodes(resolution)[None, :])
    return sum_of_products(sum_of_products(waves, table.T), waves)[None]


def noise_state(rng: np.random.Generator, resolution: int) -> Array:
    """Reaction-diffusion: activator and inhibitor, each cell an independent N(0, 1); [2, y, x].

    The only state that is not the same on every grid: the noise is as fine as the grid.
    """
    return rng.standard_normal((2, resolution, resolution))


def dam_state(rng: np.random.Generator, resolution: int) -> Array:
    """Shallow water: height 2 within a radius ~ U[0.3, 0.7] of the centre, 1 outside; [3, y, x].

    Lengths are those of PDEBench's domain, 5 on a side; the water is at rest.
    """
    radius = rng.uniform(0.3, 0.7)
    offset = 5.0 * (cell_centres(resolution) - 0.5)
    state = np.zeros((3, resolution, resolution))
    square = offset[None, :] ** 2 + offset[:, None] ** 2
    state[0] = np.where(square < radius * radius, 2.0, 1.0)
    return state


def burgers_velocity(rng: np.random.Generator, resolution: int) -> Array:
    """Burgers: random waves of velocity at the nodes, at most 1 in size; [2, y, x].

    Each component is sum_ij a_ij sin(2 pi (i x + j y) + b_ij) / sum_ij |a_ij| over i = 0 ... 4 and
    j = -4 ... 4 without (0, 0), a ~ U[-1, 1] / (i^2 + j^2), b ~ U[0, 2 pi]. All of it is chosen:
    no published data set of this problem is imitated.
    """
    size = NUM_BURGERS_MODES
    shape = (2, size + 1, 2 * size + 1)
    amplitude, phase = rng.uniform(-1.0, 1.0, shape), rng.uniform(0.0, 2.0 * np.pi, shape)
    position = nodes(resolution)
    velocity = np.zeros((2, resolution, resolution))
    total = np.zeros(2)
    for i in range(size + 1):
        for j in range(-size, size + 1):
            if i == 0 and j == 0:
                continue
            turns = 2.0 * np.pi * (i * position[None, :] + j * position[:, None])
            weight = amplitude[:, i, j + size] / (i * i + j * j)
            velocity += weight[:, None, None] * np.sin(turns + phase[:, i, j + size, None, None])
            total += np.abs(weight)
    return velocity / total[:, None, None]


def poisson_source(rng: np.random.Generator, resolution: int) -> Array:
    """Poisson-Gauss: source and a solution of zeros, [2, y, x].

    The source is sum_i exp(-|x - m_i|^2 / (2 s_i^2)) of a number ~ Geom(0.4) of Gaussians,
    m ~ U[0, 1]^2, s ~ U[0.025, 0.1]. The standard deviation in Poseidon's loader, 4.76, does not
    fit a unit amplitude: the released sources are scaled in a way that the text does not give.
    """
    count = int(rng.geometric(0.4))
    centre, width = rng.uniform(0.0, 1.0, (2, count)), rng.uniform(0.025, 0.1, count)
    source = _bells(cell_centres(resolution), np.ones(count), centre[0], centre[1], width)
    return np.stack((source, np.zeros_like(source)))


def helmholtz_medium(rng: np.random.Generator, resolution: int) -> Array:
    """Helmholtz: coefficient, boundary value and a solution of zeros, [3, y, x].

    The coefficient is -sum_i A_i exp(-|x - x_i|^2 / (2 s_i^2)), brought to [0, 1] by its smallest
    and largest value on a grid of 513 x 513 points with the boundary, whatever `resolution` is: one
    number is one medium on every grid. 2 to 7 wells, A ~ U[0.5, 10], s ~ U[0.05, 0.1],
    x ~ U[0.2, 0.8]^2; boundary value ~ U[0.25, 0.5]. Now and then a medium comes near a resonance:
    of 150, five had solutions above 10, one of 125. The published standard deviation is 0.83 and
    the number of samples odd, 19,675, so such samples may have been left out there; none is here.
    """
    boundary = rng.uniform(0.25, 0.5)
    count = int(rng.integers(2, MAX_WELLS + 1))
    depth = rng.uniform(0.5, 10.0, MAX_WELLS)[:count]
    width = rng.uniform(0.05, 0.1, MAX_WELLS)[:count]
    centre = rng.uniform(0.2, 0.8, (2, MAX_WELLS))[:, :count]
    wells = -_bells(cell_centres(resolution), depth, centre[0], centre[1], width)
    everywhere = np.linspace(0.0, 1.0, NUM_WELL_POINTS)
    finest = -_bells(everywhere, depth, centre[0], centre[1], width)
    coefficient = (wells - finest.min()) / (finest.max() - finest.min())
    border = np.full_like(coefficient, boundary)
    return np.stack((coefficient, border, np.zeros_like(coefficient)))


def darcy_medium(rng: np.random.Generator, resolution: int) -> Array:
    """Darcy: permeability 12 or 3 by the sign of a Gaussian field, and zeros; [2, y, x].

    The field has covariance (-Laplace + 9)^-2 with zero normal derivative on the boundary (Li et
    al., arXiv 2010.08895): sum_ij g_ij cos(pi i x) cos(pi j y) / (pi^2 (i^2 + j^2) + 9), g ~ N(0, 1)
    times sqrt(2) for each index that is not 0, without (0, 0); i, j < 64 (chosen).
    """
    size = NUM_DARCY_MODES
    table = rng.standard_normal((size, size))  # [j, i]
    number = np.arange(size, dtype=np.float64)
    norm = np.where(number > 0, np.sqrt(2.0), 1.0)
    table *= norm[:, None] * norm[None, :]
    table /= np.pi**2 * (number[:, None] ** 2 + number[None, :] ** 2) + 9.0
    table[0, 0] = 0.0
    waves = np.cos(np.pi * number[:, None] * cell_centres(resolution)[None, :])
    field = sum_of_products(sum_of_products(waves, table.T), waves)
    low, high = DARCY_VALUES
    return np.stack((np.where(field >= 0.0, high, low), np.zeros_like(field)))


def _sources(rng: np.random.Generator, resolution: int) -> Array:
    """Initial displacement of both wave families: 2 to 6 Gaussians of height 1, [y, x].

    Centres ~ U[1/6, 5/6]^2, widths ~ U[0.039, 0.156]. The paper keeps them apart by a distance that
    the digest does not give; here they may overlap (chosen).
    """
    count = int(rng.integers(2, MAX_SOURCES + 1))
    centre = rng.uniform(1.0 / 6.0, 5.0 / 6.0, (2, MAX_SOURCES))[:, :count]
    width = rng.uniform(0.039, 0.156, MAX_SOURCES)[:count]
    return _bells(cell_centres(resolution), np.ones(count), centre[0], centre[1], width)


def _bells(position: Array, height: Array, centre_x: Array, centre_y: Array, width: Array) -> Array:
    """sum_i height exp(-((x - x_i)^2 + (y - y_i)^2) / (2 width^2)), [y, x]."""
    across = np.exp(-0.5 * ((position[None, :] - centre_x[:, None]) / width[:, None]) ** 2)
    up = np.exp(-0.5 * ((position[None, :] - centre_y[:, None]) / width[:, None]) ** 2)
    return sum_of_products(height[:, None] * across, up)
