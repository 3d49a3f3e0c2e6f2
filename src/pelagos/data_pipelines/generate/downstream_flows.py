"""Random initial states of Poseidon's downstream fluid problems, in NumPy.

As in `initial_states`: every random number is drawn first, in an order that does not depend on the
resolution; arrays are [channel, y, x], float64, incompressible at the nodes j/N and compressible at
the cell centres (j + 1/2)/N.

Source: Herde et al., Poseidon, arXiv 2405.19101, appendix B, read through a public digest of it.
Values that the paper leaves open, by the digest, are chosen here and marked "chosen".
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pelagos.data_pipelines.generate.initial_states import (
    between_curves,
    cell_centres,
    nodes,
    piecewise_constant_velocity,
    sum_of_products,
    velocity_of,
)

Array = npt.NDArray[np.float64]

NUM_BRIDGE_MODES = 42  # chosen: the modes that the 2/3 rule keeps of 128 points
NUM_SHEAR_MODES = (7, 12)  # smallest and largest
NUM_SHEET_MODES = 10
SHEET_WIDTH = 5.0 / 128.0
NUM_SHEET_POINTS = 2048  # chosen: eighty to a width of the kernel
FORCING_AMPLITUDE = 0.1
NUM_UNEVEN_MODES = 2  # chosen: p of CE-RPUI
NUM_FRONT_MODES = 10
FRONT_AMPLITUDE = 0.02  # chosen: epsilon of CE-RM
POLYTROPE_GAMMA = 2.0
GRAVITATIONAL_CONSTANT = 1.0


def brownian_bridge_velocity(rng: np.random.Generator, resolution: int) -> Array:
    """NS-BB before its half unit of flow: rough random Fourier series, [2, y, x].

    Each component is sum_mn |k|^(-3/2) (a cos cos + b cos sin + c sin cos + d sin sin) of 2 pi m x
    and 2 pi n y, k = (m, n), coefficients ~ U[-1, 1]. Chosen: m, n = 1 ... 42 without a further
    factor, which gives velocities of the size of the published standard deviation, 0.4. Modes at
    or beyond a grid's Nyquist number are left out there. The solver projects the field.
    """
    size = NUM_BRIDGE_MODES
    coefficients = rng.uniform(-1.0, 1.0, (2, 2, size, 2, size))  # component, (cos, sin) n, m
    number = np.arange(1, size + 1, dtype=np.float64)
    decay = (number[:, None] ** 2 + number[None, :] ** 2) ** -0.75
    kept = min(size, (resolution - 1) // 2)
    angle = 2.0 * np.pi * number[:kept, None] * nodes(resolution)[None, :]
    waves = np.concatenate((np.cos(angle), np.sin(angle)))  # [2 kept, position]
    weighted = coefficients * decay[None, None, :, None, :]
    tables = weighted[:, :, :kept, :, :kept].reshape(2, 2 * kept, 2 * kept)
    rows = [sum_of_products(waves, table.T) for table in tables]  # [wave in y, x]
    return np.stack([sum_of_products(row, waves) for row in rows])


def shear_layer_velocity(rng: np.random.Generator, resolution: int) -> Array:
    """NS-SL: two shear layers of opposite sign, perturbed; [2, y, x].

    u = tanh(2 pi (y' - 1/4)/rho) where y' <= 1/2, else tanh(2 pi (3/4 - y')/rho), v = 0, with
    y' = y + xi + 0.025 sum_k a_k sin(2 pi k x - b_k), k = 1 ... p; p ~ U{7 ... 12}, a ~ U[0, 1],
    b ~ U[0, 2 pi], rho ~ U[0.08, 0.12], xi ~ U[-1/16, 1/16]. In the digest the perturbation
    chooses the branch but does not enter tanh; both branches are 1 there to eleven digits, so that
    it would have no effect. It enters both here (chosen).
    """
    fewest, most = NUM_SHEAR_MODES
    count = int(rng.integers(fewest, most + 1))
    thickness = rng.uniform(0.08, 0.12)
    shift = rng.uniform(-0.0625, 0.0625)
    weight = rng.uniform(0.0, 1.0, most)[:count]
    phase = rng.uniform(0.0, 2.0 * np.pi, most)[:count]
    position = nodes(resolution)
    number = np.arange(1, count + 1, dtype=np.float64)
    waves = np.sin(2.0 * np.pi * number[:, None] * position[None, :] - phase[:, None])
    border = shift + 0.025 * (weight[:, None] * waves).sum(axis=0)
    y = (position[:, None] + border[None, :]) % 1.0
    layer = np.where(y <= 0.5, y - 0.25, 0.75 - y)
    u = np.tanh(2.0 * np.pi * layer / thickness)
    return np.stack((u, np.zeros_like(u)))


def vortex_sheet_velocity(rng: np.random.Generator, resolution: int) -> Array:
    """NS-SVS: velocity [2, y, x] of a vortex sheet along a perturbed sine, smoothed.

    The sheet is y = 1/2 + 0.2 sin(2 pi x) + sum_i a_i sin(2 pi (x + b_i)), i = 1 ... 10,
    a ~ U[0, 0.003125], b ~ U[0, 1], of unit strength per arc length; the mean vorticity is dropped.
    """
    amplitude = rng.uniform(0.0, 0.003125, NUM_SHEET_MODES)
    offset = rng.uniform(0.0, 1.0, NUM_SHEET_MODES)
    return velocity_of(sheet_vorticity(amplitude, offset, resolution))


def sheet_vorticity(amplitude: Array, offset: Array, resolution: int) -> Array:
    """Vorticity [y, x] of the sheet, smoothed; its integral is the length of the sheet.

    The kernel is w^-2 psi(|x|/w), w = 5/128, with the cubic spline psi(r) = 80/(7 pi) ((1 - r)^3 -
    4 (1/2 - r)_+^3) on r <= 1, of unit integral (the digest gives no kernel; this one is chosen,
    after the vortex sheets of Lanthaler, Mishra and Pares-Pulido, arXiv 1909.06615).
    """
    along = nodes(NUM_SHEET_POINTS)
    angle = 2.0 * np.pi * (along[None, :] + offset[:, None])
    height = 0.5 + 0.2 * np.sin(2.0 * np.pi * along)
    height += (amplitude[:, None] * np.sin(angle)).sum(axis=0)
    slope = 0.4 * np.pi * np.cos(2.0 * np.pi * along)
    slope += 2.0 * np.pi * (amplitude[:, None] * np.cos(angle)).sum(axis=0)
    length = np.sqrt(1.0 + slope**2) / NUM_SHEET_POINTS
    position = nodes(resolution)
    vorticity = np.empty((resolution, resolution))
    for column, x in enumerate(position):
        across = _around(along - x)
        near = np.flatnonzero(across < SHEET_WIDTH)
        up = _around(position[:, None] - height[None, near])
        radius = np.sqrt(across[None, near] ** 2 + up**2) / SHEET_WIDTH
        vorticity[:, column] = (_spline(radius) * length[None, near]).sum(axis=1)
    return vorticity / SHEET_WIDTH**2


def kolmogorov_state(rng: np.random.Generator, resolution: int) -> Array:
    """FNS-KF: the velocity of NS-PwC and the field f = 0.1 sin(2 pi (x + y)); [3, y, x].

    The paper gives one field and no direction. Chosen: it accelerates velocity-x (on both
    components it would be a gradient, which the pressure takes up). Velocities then have a standard
    deviation of 0.05; Poseidon's loader divides them by 0.22, so the released data is stronger.
    """
    position = nodes(resolution)
    forcing = np.sin(2.0 * np.pi * (position[None, :] + position[:, None])) * FORCING_AMPLITUDE
    return np.concatenate((piecewise_constant_velocity(rng, resolution), forcing[None]))


def uneven_riemann_state(rng: np.random.Generator, resolution: int) -> Array:
    """CE-RPUI: constant states on 2 x 2 regions with finely wavy borders, [4, y, x].

    A point belongs to the square that holds the fractional part of (x + s_x, y + s_y), with
    s = sum_ij a_ij sin(2 pi ((i + 2 p^2) x + (j + 2 p^2) y + b_ij)), i, j = 1 ... p,
    a ~ U[-0.01, 0.01], b ~ U[0, 1]; density ~ U[1, 3], velocities ~ U[-10, 10], pressure ~ U[5, 7].
    Chosen: p = 2, two regions per axis, and the factor 2 pi on all terms (so that the state is
    periodic). Poseidon's published loader subtracts 1.33 from this family's pressure and divides by
    0.185, which does not fit these ranges: the released data may have used others.
    """
    count = NUM_UNEVEN_MODES
    amplitude = rng.uniform(-0.01, 0.01, (2, count, count))
    phase = rng.uniform(0.0, 1.0, (2, count, count))
    density = rng.uniform(1.0, 3.0, (1, 2, 2))
    velocity = rng.uniform(-10.0, 10.0, (2, 2, 2))
    pressure = rng.uniform(5.0, 7.0, (1, 2, 2))
    states = np.concatenate((density, velocity, pressure))
    return between_curves(states, amplitude, phase, 2 * count**2 + 1, resolution)


def richtmyer_meshkov_state(rng: np.random.Generator, resolution: int) -> Array:
    """CE-RM: a blast inside a perturbed disk of heavy gas, at rest; [4, y, x].

    About the centre of the square, with r and theta: pressure 20 where r < 0.1, else 1; density 2
    where r < 1/4 + eps sum_j a_j sin(j theta + 2 pi b_j), else 1; j = 1 ... 10, a ~ U[0, 1] divided
    by their sum, b ~ U[0, 1]. The paper's notation of the front and its eps are not clear from the
    digest. A front in polar coordinates is chosen, as the published mean density, 1.196, is that of
    a disk: 1 + pi/16; eps = 0.02 is chosen.
    """
    weight = rng.uniform(0.0, 1.0, NUM_FRONT_MODES)
    phase = rng.uniform(0.0, 1.0, NUM_FRONT_MODES)
    radius, theta = _polar(resolution)
    front = np.full_like(radius, 0.25)
    for j in range(NUM_FRONT_MODES):
        wave = np.sin((j + 1) * theta + 2.0 * np.pi * phase[j])
        front += FRONT_AMPLITUDE * weight[j] / weight.sum() * wave
    state = np.zeros((4, resolution, resolution))
    state[0] = np.where(radius < front, 2.0, 1.0)
    state[3] = np.where(radius < 0.1, 20.0, 1.0)
    return state


def rayleigh_taylor_state(rng: np.random.Generator, resolution: int) -> Array:
    """GCE-RT: a star of heavy gas above light gas, at rest; [5, y, x] with the potential last.

    The polytrope of Kaeppeli and Mishra (J. Comput. Phys. 259, 2014), gamma = 2, about the centre
    of the square: s = sin(alpha r)/(alpha r), alpha = sqrt(2 pi G/K), K = p0/rho0^2, G = 1;
    pressure p0 s^2, potential -2 K rho0 s, density rho0 s, times (1 + A)/(1 - A) where
    r > (1 + a cos(theta + b))/4. rho0 and p0 ~ U[0.8, 1.2], A ~ U[0.04, 0.06], a ~ U[-1, 1],
    b ~ U[-pi, pi].
    """
    amplitude = rng.uniform(-1.0, 1.0)
    phase = rng.uniform(-np.pi, np.pi)
    density, pressure = rng.uniform(0.8, 1.2, 2)
    atwood = rng.uniform(0.04, 0.06)
    radius, theta = _polar(resolution)
    profile = _polytrope(radius, density, pressure)
    outside = radius >= 0.25 * (1.0 + amplitude * np.cos(theta + phase))
    state = np.zeros((5, resolution, resolution))
    state[0] = density * profile * np.where(outside, (1.0 + atwood) / (1.0 - atwood), 1.0)
    state[3] = pressure * profile**2
    state[4] = -2.0 * pressure / density * profile
    return state


def _polytrope(radius: Array, density: float, pressure: float) -> Array:
    """sin(alpha r)/(alpha r); r is never zero at cell centres of an even grid."""
    ratio = pressure / density**2
    angle = np.sqrt(2.0 * np.pi * GRAVITATIONAL_CONSTANT / ratio) * radius
    return np.asarray(np.sin(angle) / angle)


def _polar(resolution: int) -> tuple[Array, Array]:
    """Radius and angle of the cell centres about the middle of the unit square, each [y, x]."""
    offset = cell_centres(resolution) - 0.5
    x, y = np.broadcast_arrays(offset[None, :], offset[:, None])
    return np.sqrt(x * x + y * y), np.arctan2(y, x)


def _around(distance: Array) -> Array:
    """Distances on a circle of length 1, the short way."""
    distance = np.abs(distance) % 1.0
    return np.minimum(distance, 1.0 - distance)


def _spline(radius: Array) -> Array:
    """psi(r) of `sheet_vorticity`."""
    outer = np.clip(1.0 - radius, 0.0, None) ** 3
    inner = np.clip(0.5 - radius, 0.0, None) ** 3
    return np.asarray(80.0 / (7.0 * np.pi) * (outer - 4.0 * inner))
