"""The named problem families whose trajectories Pelagos can generate, and their generation.

The families are those of Poseidon (Herde et al., arXiv 2405.19101): six for pretraining and two
downstream ones that are fully described. What could not be checked against the paper is said where
it is chosen, in `pelagos.data_pipelines.generate.initial_states`.

Trajectory *i* of a family is a pure function of (seed, family, i, resolution, solver resolution,
frames, time, dtype): its random numbers come from a generator keyed by the first three, and its bits
do not depend on which other trajectories are computed with it. They do depend on the machine's
vector width and library versions, as floating point does everywhere.
"""

from __future__ import annotations

import difflib
import functools
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from torch import Tensor

from pelagos.data_pipelines.generate import euler, initial_states, navier_stokes, spectral

Array = npt.NDArray[np.float64]
FloatArray = npt.NDArray[np.float32]
InitialState = Callable[[np.random.Generator, int], Array]
Solve = Callable[[Tensor, Sequence[float], float], Tensor]
Coarsen = Callable[[Tensor, int], Tensor]

NUM_ATTEMPTS = 4  # the Courant number is halved after each failure
CELLS_PER_BATCH = 32_768  # trajectories solved together on a CPU: what stays in cache

_NS_EQUATION = "u_t + div(u u) + grad p = D u, div u = 0, D spectral viscosity"
_CE_EQUATION = (
    "rho_t + div(rho u) = 0, (rho u)_t + div(rho u u) + grad p = 0, E_t + div((E+p)u) = 0"
)
_PERIODIC = {"x": "periodic", "y": "periodic"}


class GenerationError(ValueError):
    """Trajectories that stay non-finite at every step size tried."""


@dataclass(frozen=True)
class Family:
    """One problem family: what its trajectories hold and how one is made."""

    name: str
    description: str
    equation: str
    fields: tuple[str, ...]
    initial_state: InitialState  # (generator, resolution) -> [channel, y, x]
    solve: Solve  # (states [n, channel, y, x], times, cfl) -> [n, time, channel, y, x]
    solve_compiled: Solve  # the same with `torch.compile`, where that helps
    coarsen: Coarsen  # (frames [m, channel, y, x], resolution) -> frames
    cfl: float
    grid_location: Literal["node", "cell"]
    parameters: Callable[[int], dict[str, float]]  # solver resolution -> constants of the PDE
    constant_fields: dict[str, float] = field(default_factory=dict)
    boundary_conditions: dict[str, str] = field(default_factory=lambda: dict(_PERIODIC))
    published_normalization: dict[str, Any] = field(default_factory=dict)

    @property
    def parameter_names(self) -> tuple[str, ...]:
        """Per-trajectory scalars that `generate_trajectories` returns."""
        return (*self.parameters(4), "cfl")


def _solve_incompressible(states: Tensor, times: Sequence[float], cfl: float) -> Tensor:
    return navier_stokes.solve_navier_stokes(
        states[:, :2],
        times,
        spectral_viscosity=navier_stokes.poseidon_spectral_viscosity(states.shape[-1]),
        tracer=states[:, 2:] if states.shape[1] == 3 else None,
        cfl=cfl,
    )


def _solve_compressible(
    states: Tensor, times: Sequence[float], cfl: float, *, compiled: bool = False
) -> Tensor:
    return euler.solve_euler(states, times, cfl=cfl, compiled=compiled)


def _truncate(frames: Tensor, resolution: int) -> Tensor:
    return spectral.resample(frames, (resolution, resolution))


def _cell_means(frames: Tensor, resolution: int) -> Tensor:
    """Means of the conserved quantities over blocks of cells, as primitive fields."""
    ratio = frames.shape[-1] // resolution
    if ratio == 1:
        return frames
    blocks = euler.to_conserved(frames).reshape(-1, 4, resolution, ratio, resolution, ratio)
    total = sum(blocks[..., i, :, j] for i in range(ratio) for j in range(ratio))
    assert isinstance(total, Tensor)
    return euler.to_primitive(total * (1.0 / (ratio * ratio)))


def _published(pressure_offset: float | None, *, tracer: bool = False) -> dict[str, Any]:
    """Constants of Poseidon's published data loader, applied as (field - offset - mean) / std."""
    mean = {"density": 0.8, "velocity-x": 0.0, "velocity-y": 0.0, "pressure": 0.0}
    std = {"density": 0.31, "velocity-x": 0.391, "velocity-y": 0.356, "pressure": 0.185}
    if tracer:
        mean["tracer"], std["tracer"] = 0.19586183, 0.37
    offset = {} if pressure_offset is None else {"pressure": pressure_offset}
    return {
        "source": "Poseidon's data loader (arXiv 2405.19101)",
        "mean": mean,
        "std": std,
        "offset": offset,
        "lead_steps_per_unit": 20,
    }


def _incompressible(
    name: str, description: str, initial: InitialState, *, tracer: bool = False
) -> Family:
    return Family(
        name=name,
        description=description,
        equation=_NS_EQUATION + (", c_t + div(u c) = D c" if tracer else ""),
        fields=("velocity-x", "velocity-y", *(("tracer",) if tracer else ())),
        initial_state=initial,
        solve=_solve_incompressible,
        solve_compiled=_solve_incompressible,  # bound by its FFTs
        coarsen=_truncate,
        cfl=navier_stokes.DEFAULT_CFL,
        grid_location="node",
        parameters=lambda n: {"spectral_viscosity": navier_stokes.poseidon_spectral_viscosity(n)},
        constant_fields={"density": 1.0},
        published_normalization=_published(None, tracer=tracer),
    )


def _compressible(
    name: str, description: str, initial: InitialState, pressure_offset: float
) -> Family:
    return Family(
        name=name,
        description=description,
        equation=_CE_EQUATION,
        fields=("density", "velocity-x", "velocity-y", "pressure"),
        initial_state=initial,
        solve=_solve_compressible,
        solve_compiled=functools.partial(_solve_compressible, compiled=True),
        coarsen=_cell_means,
        cfl=euler.DEFAULT_CFL,
        grid_location="cell",
        parameters=lambda _: {"gamma": euler.GAMMA},
        published_normalization=_published(pressure_offset),
    )


def _gaussian_nodes(rng: np.random.Generator, resolution: int) -> Array:
    return initial_states.gaussian_velocity(rng, initial_states.nodes(resolution))


def _tracer_state(rng: np.random.Generator, resolution: int) -> Array:
    velocity = initial_states.piecewise_constant_velocity(rng, resolution)
    return np.concatenate((velocity, initial_states.disk_tracer(resolution)))


FAMILIES: dict[str, Family] = {
    "NS-Sines": _incompressible(
        "NS-Sines", "random Fourier modes of velocity", initial_states.sines_velocity
    ),
    "NS-Gauss": _incompressible("NS-Gauss", "100 Gaussian vortices", _gaussian_nodes),
    "NS-PwC": _incompressible(
        "NS-PwC",
        "piecewise constant vorticity on 10 x 10 squares",
        initial_states.piecewise_constant_velocity,
    ),
    "NS-Tracer-PwC": _incompressible(
        "NS-Tracer-PwC", "NS-PwC carrying a disk of tracer", _tracer_state, tracer=True
    ),
    "CE-RP": _compressible(
        "CE-RP", "four-quadrant Riemann problem", initial_states.riemann_state, 0.215
    ),
    "CE-CRP": _compressible(
        "CE-CRP",
        "Riemann problem with curved borders",
        initial_states.curved_riemann_state,
        0.553,
    ),
    "CE-KH": _compressible(
        "CE-KH",
        "Kelvin-Helmholtz shear layers with perturbed borders",
        initial_states.kelvin_helmholtz_state,
        1.0,
    ),
    "CE-Gauss": _compressible(
        "CE-Gauss",
        "100 Gaussian vortices in a light, hot gas",
        initial_states.gaussian_state,
        2.513,
    ),
}


def find_family(name: str) -> Family:
    """The family of that name, upper or lower case; ValueError naming the known ones otherwise."""
    for known, family in FAMILIES.items():
        if name.lower() == known.lower():
            return family
    close = difflib.get_close_matches(name.lower(), [known.lower() for known in FAMILIES], n=1)
    hint = f'; did you mean "{close[0]}"?' if close else "."
    raise ValueError(f'Got family "{name}"{hint} Known families are {", ".join(FAMILIES)}.')


def trajectory_generator(seed: int, family: str, index: int) -> np.random.Generator:
    """The random generator of one trajectory: Philox keyed by (seed, family name, index)."""
    if seed < 0 or index < 0:
        raise ValueError(f"Got seed={seed}, trajectory index={index}; neither may be negative.")
    key = np.random.SeedSequence([seed, zlib.crc32(family.encode()), index])
    return np.random.Generator(np.random.Philox(key))
