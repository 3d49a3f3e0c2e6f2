"""Families of steady problems, as trajectories of two frames: the input, then input and solution.

Poisson-Gauss and Helmholtz of Poseidon (Herde et al., arXiv 2405.19101, appendix B) and Darcy flow
(Li et al., arXiv 2010.08895, whose problem PDEBench varies). Ask for `num_frames: 2` and
`final_time: 1`; further frames repeat the solution.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from pelagos.data_pipelines.generate import downstream_fields, elliptic
from pelagos.data_pipelines.generate.family import (
    Family,
    InitialState,
    block_means,
    both_axes,
    published,
)
from pelagos.data_pipelines.generate.stepping import check_times

HELMHOLTZ_FREQUENCY = 2.5 * math.pi
DARCY_SOURCE = 1.0

Solution = Callable[[Tensor], Tensor]  # states [n, channel, y, x] -> solution [n, y, x]


def _steady(
    name: str,
    description: str,
    equation: str,
    inputs: tuple[str, ...],
    initial_state: InitialState,
    solution: Solution,
    parameters: dict[str, float],
    boundary: str,
    normalization: dict[str, Any] | None = None,
    *,
    physics: str,
    revision: int = 1,
) -> Family:
    def solve(states: Tensor, times: Sequence[float], _cfl: float) -> Tensor:
        check_times(times)
        solved = torch.cat((states[:, :-1], solution(states).unsqueeze(1).to(states)), dim=1)
        return torch.stack([states, *[solved] * (len(times) - 1)], dim=1)

    return Family(
        name=name,
        description=description,
        equation=equation,
        fields=(*inputs, "solution"),
        given_fields=inputs,
        initial_state=initial_state,
        solve=solve,
        solve_compiled=solve,
        coarsen=block_means,
        cfl=1.0,
        grid_location="cell",
        parameters=lambda _: dict(parameters),
        boundary_conditions=both_axes(boundary),
        published_normalization=normalization or {},
        physics=physics,
        revision=revision,
    )


def _poisson(states: Tensor) -> Tensor:
    return elliptic.solve_poisson(states[:, 0])


def _helmholtz(states: Tensor) -> Tensor:
    coefficient, boundary = states[:, 0], states[:, 1, 0, 0]
    ones = torch.ones_like(coefficient)
    reaction = coefficient * (-(HELMHOLTZ_FREQUENCY**2))
    return elliptic.solve_elliptic(ones, reaction, torch.zeros_like(ones), boundary)


def _darcy(states: Tensor) -> Tensor:
    permeability = states[:, 0]
    source = torch.full_like(permeability, DARCY_SOURCE)
    nothing = torch.zeros_like(permeability)
    return elliptic.solve_elliptic(permeability, nothing, source, nothing[:, 0, 0])


_FAMILIES: tuple[Family, ...] = (
    _steady(
        "Poisson-Gauss",
        "Poisson's equation with a sum of Gaussians for a source",
        "-Laplace(u) = f, u = 0 on the boundary",
        ("source",),
        downstream_fields.poisson_source,
        _poisson,
        {},
        "dirichlet",
        published(
            {"source": 0.0148221424, "solution": 0.00056034584},
            {"source": 4.7551388166, "solution": 0.02401226127},
        ),
        physics="poisson",
    ),
    _steady(
        "Helmholtz",
        "Helmholtz equation with Gaussian wells in the coefficient and a boundary value",
        "-Laplace(u) - omega^2 a u = 0, u = b on the boundary, omega = 5 pi/2",
        ("coefficient", "boundary-value"),
        downstream_fields.helmholtz_medium,
        _helmholtz,
        {"omega": HELMHOLTZ_FREQUENCY},
        "dirichlet",
        published(
            {"coefficient": 1.0, "boundary-value": 0.0, "solution": 0.1152391567},
            {"coefficient": 1.0, "boundary-value": 1.0, "solution": 0.8279975746},
        ),
        physics="helmholtz",
        revision=2,  # 1 scaled the medium by its extremes on the grid
    ),
    _steady(
        "Darcy",
        "flow through a medium of two permeabilities",
        "-div(a grad u) = 1, u = 0 on the boundary",
        ("permeability",),
        downstream_fields.darcy_medium,
        _darcy,
        {"source": DARCY_SOURCE},
        "dirichlet",
        physics="darcy",
    ),
)

FAMILIES: dict[str, Family] = {family.name: family for family in _FAMILIES}
