"""Families of incompressible and compressible flow.

Those of Poseidon (Herde et al., arXiv 2405.19101, appendix B): six for pretraining and the fluid
problems among the downstream tasks. Choices that could not be checked against the paper are marked where
they are made, in `initial_states` and `downstream_flows`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pelagos.data_pipelines.generate import downstream_flows, euler, initial_states, navier_stokes
from pelagos.data_pipelines.generate.family import (
    POSEIDON_LOADER,
    Array,
    Family,
    InitialState,
    Solve,
    block_means,
    published,
    truncate,
)

_NS_EQUATION = "u_t + div(u u) + grad p = D u, div u = 0, D spectral viscosity"
_CE_EQUATION = (
    "rho_t + div(rho u) = 0, (rho u)_t + div(rho u u) + grad p = 0, E_t + div((E+p)u) = 0"
)

BRIDGE_LEAD_TIME = 0.5


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


def _solve_brownian_bridge(states: Tensor, times: Sequence[float], cfl: float) -> Tensor:
    """NS-BB is recorded after the flow has run for half a unit of time."""
    return _solve_incompressible(states, [times[0] - BRIDGE_LEAD_TIME, *times], cfl)[:, 1:]


def _solve_forced(states: Tensor, times: Sequence[float], cfl: float) -> Tensor:
    """FNS-KF: the third channel accelerates velocity-x and is handed through unchanged."""
    force = states[:, 2]
    frames = navier_stokes.solve_navier_stokes(
        states[:, :2],
        times,
        spectral_viscosity=navier_stokes.poseidon_spectral_viscosity(states.shape[-1]),
        forcing=torch.stack((force, torch.zeros_like(force)), dim=1),
        cfl=cfl,
    )
    still = force[:, None, None].expand(-1, len(times), 1, -1, -1)
    return torch.cat((frames, still), dim=2)


def _solve_gravity(states: Tensor, times: Sequence[float], cfl: float) -> Tensor:
    """GCE-RT: gas that a potential, the fifth channel, would hold at rest without its jump.

    At rest p = phi^2/(4 K) and rho = -phi/(2 K) of the polytrope p = K rho^2; K is read off the
    first cell, as p/phi^2 is the same everywhere.
    """
    potential, pressure = states[:, 4], states[:, 3]
    constant = (potential[:, :1, :1] ** 2) / (4.0 * pressure[:, :1, :1])
    still = torch.zeros_like(potential)
    rest = torch.stack((potential / (-2.0 * constant), still, still, pressure), dim=1)
    frames = euler.solve_euler(
        states[:, :4],
        times,
        gamma=downstream_flows.POLYTROPE_GAMMA,
        cfl=cfl,
        gravity=euler.Gravity(potential, rest),
    )
    steady = potential[:, None, None].expand(-1, len(times), 1, -1, -1)
    return torch.cat((frames, steady), dim=2)


def _cell_means(frames: Tensor, resolution: int) -> Tensor:
    """Means of the conserved quantities over blocks of cells, as primitive fields."""
    if frames.shape[-1] == resolution:
        return frames
    return euler.to_primitive(block_means(euler.to_conserved(frames), resolution))


def _cell_means_with_potential(frames: Tensor, resolution: int) -> Tensor:
    if frames.shape[-1] == resolution:
        return frames
    gamma = downstream_flows.POLYTROPE_GAMMA
    conserved = block_means(euler.to_conserved(frames[:, :4], gamma), resolution)
    potential = block_means(frames[:, 4:], resolution)
    return torch.cat((euler.to_primitive(conserved, gamma), potential), dim=1)


def _published(pressure_offset: float | None, *, tracer: bool = False) -> dict[str, Any]:
    """Constants of Poseidon's published data loader, applied as (field - offset - mean) / std."""
    mean = {"density": 0.8, "velocity-x": 0.0, "velocity-y": 0.0, "pressure": 0.0}
    std = {"density": 0.31, "velocity-x": 0.391, "velocity-y": 0.356, "pressure": 0.185}
    if tracer:
        mean["tracer"], std["tracer"] = 0.19586183, 0.37
    offset = {} if pressure_offset is None else {"pressure": pressure_offset}
    return {
        "source": POSEIDON_LOADER,
        "mean": mean,
        "std": std,
        "offset": offset,
        "lead_steps_per_unit": 20,
    }


def _incompressible(
    name: str,
    description: str,
    initial: InitialState,
    *,
    tracer: bool = False,
    solve: Solve = _solve_incompressible,
) -> Family:
    return Family(
        name=name,
        description=description,
        equation=_NS_EQUATION + (", c_t + div(u c) = D c" if tracer else ""),
        fields=("velocity-x", "velocity-y", *(("tracer",) if tracer else ())),
        initial_state=initial,
        solve=solve,
        solve_compiled=solve,  # bound by its FFTs
        coarsen=truncate,
        cfl=navier_stokes.DEFAULT_CFL,
        grid_location="node",
        parameters=lambda n: {"spectral_viscosity": navier_stokes.poseidon_spectral_viscosity(n)},
        constant_fields={"density": 1.0},
        published_normalization=_published(None, tracer=tracer),
        physics="incompressible-navier-stokes",
        coefficients=lambda n: {"spectral_viscosity_cutoff": float(n)},
    )


def _compressible(
    name: str,
    description: str,
    initial: InitialState,
    normalization: dict[str, Any],
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
        published_normalization=normalization,
        physics="compressible-euler",
    )


def _forced() -> Family:
    constants = _published(None)
    constants["mean"]["forcing"], constants["std"]["forcing"] = 0.0, 0.0707106739
    constants["std"] |= {"velocity-x": 0.22017328, "velocity-y": 0.22078253}
    return dataclasses.replace(
        _incompressible(
            "FNS-KF",
            "NS-PwC under Kolmogorov forcing",
            downstream_flows.kolmogorov_state,
            solve=_solve_forced,
        ),
        equation="u_t + div(u u) + grad p = D u + (f, 0), div u = 0, f = 0.1 sin(2 pi (x + y))",
        fields=("velocity-x", "velocity-y", "forcing"),
        given_fields=("forcing",),
        published_normalization=constants,
    )


def _published_shock() -> dict[str, Any]:
    names = ("density", "velocity-x", "velocity-y", "pressure")
    mean = (1.1964245, -7.164812e-06, 2.8968952e-06, 1.5648036)
    std = (0.5543239, 0.24304213, 0.2430597, 0.89639103)
    return published(dict(zip(names, mean, strict=True)), dict(zip(names, std, strict=True)), 20)


def _gravitating() -> Family:
    names = ("density", "velocity-x", "velocity-y", "pressure", "potential")
    mean = (0.8970493, 4.03e-13, -1.39e-13, 0.7133829, -1.7055787)
    std = (0.12857835, 0.014896976, 0.014896975, 0.21293919, 0.40131348)
    family = _compressible(
        "GCE-RT",
        "Rayleigh-Taylor instability of a polytropic star",
        downstream_flows.rayleigh_taylor_state,
        published(dict(zip(names, mean, strict=True)), dict(zip(names, std, strict=True)), 10),
    )
    return dataclasses.replace(
        family,
        equation="rho_t + div(rho u) = 0, (rho u)_t + div(rho u u) + grad p = -rho grad phi, "
        "E_t + div((E+p)u) = -rho u . grad phi",
        fields=names,
        given_fields=("potential",),
        solve=_solve_gravity,
        solve_compiled=_solve_gravity,
        coarsen=_cell_means_with_potential,
        parameters=lambda _: {"gamma": downstream_flows.POLYTROPE_GAMMA},
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
        "CE-RP", "four-quadrant Riemann problem", initial_states.riemann_state, _published(0.215)
    ),
    "CE-CRP": _compressible(
        "CE-CRP",
        "Riemann problem with curved borders",
        initial_states.curved_riemann_state,
        _published(0.553),
    ),
    "CE-KH": _compressible(
        "CE-KH",
        "Kelvin-Helmholtz shear layers with perturbed borders",
        initial_states.kelvin_helmholtz_state,
        _published(1.0),
    ),
    "CE-Gauss": _compressible(
        "CE-Gauss",
        "100 Gaussian vortices in a light, hot gas",
        initial_states.gaussian_state,
        _published(2.513),
    ),
    "NS-BB": _incompressible(
        "NS-BB",
        "rough random Fourier series (Brownian bridge) after half a unit of time",
        downstream_flows.brownian_bridge_velocity,
        solve=_solve_brownian_bridge,
    ),
    "NS-SL": _incompressible(
        "NS-SL", "two perturbed shear layers", downstream_flows.shear_layer_velocity
    ),
    "NS-SVS": _incompressible(
        "NS-SVS", "sinusoidal vortex sheet", downstream_flows.vortex_sheet_velocity
    ),
    "FNS-KF": _forced(),
    "CE-RPUI": _compressible(
        "CE-RPUI",
        "strong Riemann problem with finely wavy borders",
        downstream_flows.uneven_riemann_state,
        _published(1.33),
    ),
    "CE-RM": _compressible(
        "CE-RM",
        "Richtmyer-Meshkov instability: a blast behind a perturbed front",
        downstream_flows.richtmyer_meshkov_state,
        _published_shock(),
    ),
    "GCE-RT": _gravitating(),
}
