"""Families of waves, reactions and shallow water: Poseidon's downstream tasks, PDEBench's problems.

Poseidon: Herde et al., arXiv 2405.19101, appendix B. PDEBench: Takamoto et al., arXiv 2210.07182.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from pelagos.data_pipelines.generate import (
    downstream_fields,
    reaction_diffusion,
    semilinear,
    shallow_water,
    wave_equation,
)
from pelagos.data_pipelines.generate.family import (
    Coarsen,
    Family,
    InitialState,
    Solve,
    block_means,
    both_axes,
    published,
    truncate,
)

# Speeds are stored in m/s, as published; the size of the published domain is not known. Chosen:
# 2,000 m and seconds, so that waves cross the square about once or twice in a unit of time.
WAVE_DOMAIN_METRES = 2000.0
# Differences of second order disperse the narrowest pulses, 5 cells wide on 128 points: 2 to 8 % of
# relative L1 error there, below 1 % with three solver cells per stored cell (docs/simulated-data.md).
WAVE_REFINEMENT = 3

# Allen-Cahn in units of the published final time, 2e-4: diffusivity 1 and reaction 220^2.
PHASE_TIME_UNIT = 2e-4
PHASE_DIFFUSIVITY = PHASE_TIME_UNIT
PHASE_RATE = 220.0**2 * PHASE_TIME_UNIT

BURGERS_VISCOSITY = 0.01  # chosen: shocks of speed 1 are about 4 of 128 cells wide
DAM_EXTENT = (5.0, 5.0)
DAM_GRAVITY = 1.0
REACTION_EXTENT = (2.0, 2.0)


def _family(
    name: str,
    description: str,
    equation: str,
    fields: tuple[str, ...],
    initial_state: InitialState,
    solve: Solve,
    cfl: float,
    parameters: dict[str, float],
    *,
    boundary: str,
    grid_location: Literal["node", "cell"] = "cell",
    coarsen: Coarsen = block_means,
    extent: tuple[float, float] = (1.0, 1.0),
    normalization: dict[str, Any] | None = None,
    physics: str = "",
    given_fields: tuple[str, ...] = (),
    solver_refinement: int = 1,
    revision: int = 1,
) -> Family:
    return Family(
        name=name,
        description=description,
        equation=equation,
        fields=fields,
        initial_state=initial_state,
        solve=solve,
        solve_compiled=solve,
        coarsen=coarsen,
        cfl=cfl,
        grid_location=grid_location,
        parameters=lambda _: dict(parameters),
        boundary_conditions=both_axes(boundary),
        published_normalization=normalization or {},
        domain_extent=extent,
        physics=physics,
        given_fields=given_fields,
        solver_refinement=solver_refinement,
        revision=revision,
    )


def _solve_wave(states: Tensor, times: Sequence[float], cfl: float) -> Tensor:
    """Displacement and, unchanged, speed in m/s."""
    speed = states[:, 1]
    frames = wave_equation.solve_wave(
        states[:, 0], speed * (1.0 / WAVE_DOMAIN_METRES), times, cfl=cfl
    )
    still = speed[:, None, None].expand(-1, len(times), 1, -1, -1)
    return torch.cat((frames[:, :, :1], still), dim=2)


def _wave_family(
    name: str,
    description: str,
    initial: InitialState,
    mean: dict[str, float],
    std: dict[str, float],
    lead_steps: int,
) -> Family:
    return _family(
        name,
        description,
        "u_tt = (c/L)^2 Laplace(u), c in m/s, L = 2000 m",
        ("displacement", "speed"),
        initial,
        _solve_wave,
        wave_equation.DEFAULT_CFL,
        {"domain_metres": WAVE_DOMAIN_METRES},
        boundary="absorbing",
        normalization=published(mean, std, lead_steps),
        physics="wave",
        given_fields=("speed",),
        solver_refinement=WAVE_REFINEMENT,
        revision=2,  # 1 solved on the stored grid
    )


def _solve_phase(states: Tensor, times: Sequence[float], cfl: float) -> Tensor:
    reaction = semilinear.AllenCahn(PHASE_RATE)
    return semilinear.solve_semilinear(
        states, times, reaction, diffusivity=PHASE_DIFFUSIVITY, cfl=cfl
    )


def _solve_burgers(states: Tensor, times: Sequence[float], cfl: float) -> Tensor:
    return semilinear.solve_semilinear(
        states, times, semilinear.Burgers(), diffusivity=BURGERS_VISCOSITY, cfl=cfl
    )


def _solve_reaction(states: Tensor, times: Sequence[float], cfl: float) -> Tensor:
    return reaction_diffusion.solve_reaction_diffusion(
        states, times, extent=REACTION_EXTENT, cfl=cfl
    )


def _solve_dam(states: Tensor, times: Sequence[float], cfl: float) -> Tensor:
    return shallow_water.solve_shallow_water(
        states, times, gravity=DAM_GRAVITY, extent=DAM_EXTENT, cfl=cfl
    )


def _water_means(frames: Tensor, resolution: int) -> Tensor:
    """Means of height and momenta over blocks of cells, as height and velocities."""
    if frames.shape[-1] == resolution:
        return frames
    means = block_means(shallow_water.to_momenta(frames), resolution)
    return shallow_water.to_velocities(means)


_FAMILIES: tuple[Family, ...] = (
    _wave_family(
        "Wave-Gauss",
        "Gaussian pulses in a smooth medium",
        downstream_fields.gaussian_medium,
        {"displacement": 0.0334376316, "speed": 2618.4593933},
        {"displacement": 0.1171879068, "speed": 601.51658913},
        15,
    ),
    _wave_family(
        "Wave-Layer",
        "Gaussian pulses in a layered medium",
        downstream_fields.layered_medium,
        {"displacement": 0.034674432, "speed": 3498.56444},
        {"displacement": 0.1044242175, "speed": 647.843959},
        20,
    ),
    _family(
        "ACE",
        "Allen-Cahn phase separation from random sines",
        "u_t = D Laplace(u) - R u (u^2 - 1), D = 2e-4, R = 9.68: u_t = Laplace(u) - 220^2 u (u^2 - "
        "1) with time in units of 2e-4",
        ("phase",),
        downstream_fields.phase_field,
        _solve_phase,
        semilinear.ALLEN_CAHN_CFL,
        {"diffusivity": PHASE_DIFFUSIVITY, "reaction_rate": PHASE_RATE},
        boundary="periodic",
        grid_location="node",
        coarsen=truncate,
        normalization=published({"phase": 0.002484262}, {"phase": 0.65351176}, 19),
        physics="allen-cahn",
    ),
    _family(
        "Reaction-Diffusion",
        "FitzHugh-Nagumo pattern formation from noise (PDEBench)",
        "u_t = D_u Laplace(u) + u - u^3 - k - v, v_t = D_v Laplace(v) + u - v",
        ("activator", "inhibitor"),
        downstream_fields.noise_state,
        _solve_reaction,
        reaction_diffusion.DEFAULT_CFL,
        {
            "activator_diffusivity": reaction_diffusion.ACTIVATOR_DIFFUSIVITY,
            "inhibitor_diffusivity": reaction_diffusion.INHIBITOR_DIFFUSIVITY,
            "activator_loss": reaction_diffusion.ACTIVATOR_LOSS,
        },
        boundary="no flux",
        extent=REACTION_EXTENT,
        physics="fitzhugh-nagumo",
    ),
    _family(
        "Shallow-Water",
        "radial dam break (PDEBench)",
        "h_t + div(h u) = 0, (h u)_t + div(h u u) + g grad(h^2)/2 = 0",
        ("height", "velocity-x", "velocity-y"),
        downstream_fields.dam_state,
        _solve_dam,
        shallow_water.DEFAULT_CFL,
        {"gravity": DAM_GRAVITY},
        boundary="outflow",
        coarsen=_water_means,
        extent=DAM_EXTENT,
        physics="shallow-water",
    ),
    _family(
        "Burgers",
        "viscous Burgers equation of a random velocity",
        "u_t + (u . grad) u = nu Laplace(u)",
        ("velocity-x", "velocity-y"),
        downstream_fields.burgers_velocity,
        _solve_burgers,
        semilinear.BURGERS_CFL,
        {"viscosity": BURGERS_VISCOSITY},
        boundary="periodic",
        grid_location="node",
        coarsen=truncate,
        physics="burgers",
    ),
)

FAMILIES: dict[str, Family] = {family.name: family for family in _FAMILIES}
