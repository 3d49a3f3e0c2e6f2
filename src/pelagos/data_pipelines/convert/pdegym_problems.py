"""The problems of Poseidon's PDEgym: variables of the files, published splits and constants.

All facts are from `scOT/problems/` of https://github.com/camlab-ethz/poseidon (Herde et al., arXiv
2405.19101).
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any

LOADER = "Poseidon's data loader (arXiv 2405.19101)"
FLUID = ("density", "velocity-x", "velocity-y", "pressure")
INCOMPRESSIBLE = "u_t + div(u u) + grad p = D u, div u = 0"
COMPRESSIBLE = "Euler equations of an ideal gas: density, momentum and energy are conserved"


@dataclass(frozen=True)
class Variable:
    """A variable of a file.

    `axes` name it with the trajectory's `n`, and are matched with or without axes of length one.
    `optional` fields are there if the axis `c` is long enough.
    """

    key: str
    axes: str
    fields: tuple[str, ...]
    first_index: int = 0
    start_frame: int = 0
    optional: tuple[str, ...] = ()


@dataclass(frozen=True)
class Problem:
    """One published problem: its variables, splits and constants."""

    equation: str
    variables: tuple[Variable, ...]
    num_validation: int
    num_test: int
    mean: dict[str, float]
    std: dict[str, float]
    offset: dict[str, float] = field(default_factory=dict)
    lead_steps: int | None = 20  # None: a steady problem
    constant_fields: dict[str, float] = field(default_factory=dict)
    boundary: str = "periodic"
    # Equations to test forecasts against (`pelagos.data_pipelines.physics`), where the loader's unit of
    # time and all coefficients are known: arXiv 2405.19101, appendix B.
    physics: dict[str, Any] = field(default_factory=dict)


def _physics(equation: str, **coefficients: float) -> dict[str, Any]:
    return {"equation": equation, "coefficients": coefficients}


def _flow(axes: str = "ntcyx") -> Problem:
    return Problem(
        INCOMPRESSIBLE,
        (Variable("velocity", axes, ("velocity-x", "velocity-y"), optional=("tracer",)),),
        120,
        240,
        {**dict(zip(FLUID, (0.8, 0.0, 0.0, 0.0), strict=True)), "tracer": 0.19586183},
        {**dict(zip(FLUID, (0.31, 0.391, 0.356, 0.185), strict=True)), "tracer": 0.37},
        constant_fields={"density": 1.0},
        physics=_physics(
            "incompressible-navier-stokes",
            spectral_viscosity=0.05 / 128,
            spectral_viscosity_cutoff=128.0,
        ),
    )


def _gas(pressure_offset: float) -> Problem:
    return Problem(
        COMPRESSIBLE,
        (Variable("data", "ntcyx", FLUID),),  # index 4, the energy, is not used
        120,
        240,
        dict(zip(FLUID, (0.8, 0.0, 0.0, 0.0), strict=True)),
        dict(zip(FLUID, (0.31, 0.391, 0.356, 0.185), strict=True)),
        {"pressure": pressure_offset},
        physics=_physics("compressible-euler", gamma=1.4),
    )


def _wave(mean: tuple[float, float], std: tuple[float, float], lead_steps: int) -> Problem:
    names = ("displacement", "speed")
    return Problem(
        "u_tt = c^2 Laplace(u)",
        (Variable("solution", "ntyx", names[:1]), Variable("c", "nyx", names[1:])),
        60,
        240,
        dict(zip(names, mean, strict=True)),
        dict(zip(names, std, strict=True)),
        lead_steps=lead_steps,
        boundary="absorbing",
    )


_RT_FIELDS = (*FLUID, "potential")

PROBLEMS: dict[str, Problem] = {
    "NS-Sines": _flow(),
    "NS-Gauss": _flow(),
    "NS-PwC": _flow(),
    "NS-SVS": _flow(),
    "NS-BB": _flow(),
    "NS-SL": _flow("ntcxy"),
    "FNS-KF": dataclasses.replace(
        _flow(),
        equation="u_t + div(u u) + grad p = D u + f, div u = 0, f = 0.1 sin(2 pi (x + y))",
        variables=(
            Variable("solution", "ntcyx", ("velocity-x", "velocity-y")),
            Variable("", "yx", ("forcing",)),
        ),
        mean={
            **dict(zip(FLUID, (0.8, -2.2424793e-13, 4.1510376e-12, 0.0), strict=True)),
            "forcing": -1.2996679288335145e-09,
        },
        std={
            **dict(zip(FLUID, (0.31, 0.22017328, 0.22078253, 0.185), strict=True)),
            "forcing": 0.0707106739282608,
        },
        physics=_physics("divergence-free"),  # the loader does not say which way the force points
    ),
    "CE-RP": _gas(0.215),
    "CE-CRP": _gas(0.553),
    "CE-KH": _gas(1.0),
    "CE-Gauss": _gas(2.513),
    "CE-RPUI": _gas(1.33),
    "CE-RM": Problem(
        COMPRESSIBLE,
        (Variable("solution", "ntcyx", FLUID),),
        100,
        130,
        dict(zip(FLUID, (1.1964245, -7.164812e-06, 2.8968952e-06, 1.5648036), strict=True)),
        dict(zip(FLUID, (0.5543239, 0.24304213, 0.2430597, 0.89639103), strict=True)),
    ),
    "GCE-RT": Problem(
        COMPRESSIBLE + ", under gravity",
        (
            Variable("solution", "ntcyx", FLUID),
            Variable("solution", "ntcyx", ("potential",), first_index=5),
        ),
        100,
        130,
        dict(
            zip(
                _RT_FIELDS,
                (0.8970493, 4.0316996e-13, -1.3858967e-13, 0.7133829, -1.7055787),
                strict=True,
            )
        ),
        dict(
            zip(
                _RT_FIELDS,
                (0.12857835, 0.014896976, 0.014896975, 0.21293919, 0.40131348),
                strict=True,
            )
        ),
        lead_steps=10,
        boundary="not stored",
    ),
    "Wave-Layer": _wave(
        (0.03467443221585092, 3498.5644380917424), (0.10442421752963911, 647.843958567462), 20
    ),
    "Wave-Gauss": _wave((0.0334376316, 2618.4593933), (0.1171879068, 601.51658913), 15),
    "ACE": Problem(
        "Allen-Cahn: u_t = Laplace(u) - eps^2 u (u^2 - 1)",
        (Variable("solution", "ntyx", ("phase",)),),
        60,
        240,
        {"phase": 0.002484262},
        {"phase": 0.65351176},
        lead_steps=19,
        # Time is in units of the final one, 2e-4: diffusivity 1 and reaction 220^2 of the paper.
        physics=_physics("allen-cahn", diffusivity=2e-4, reaction_rate=220.0**2 * 2e-4),
    ),
    "SE-AF": Problem(
        "steady compressible Euler flow around an airfoil",
        (
            Variable("solution", "ncyx", ("mask",)),
            Variable("solution", "ncyx", ("density",), first_index=1, start_frame=1),
        ),
        120,
        240,
        {"mask": 0.0, "density": 0.92984116},
        {"mask": 1.0, "density": 0.10864315},
        lead_steps=None,
        boundary="not stored",
    ),
    "Poisson-Gauss": Problem(
        "-Laplace(u) = f, u = 0 on the boundary",
        (
            Variable("source", "nyx", ("source",)),
            Variable("solution", "nyx", ("solution",), start_frame=1),
        ),
        120,
        240,
        {"source": 0.014822142414492256, "solution": 0.0005603458434937093},
        {"source": 4.755138816607612, "solution": 0.02401226126952699},
        lead_steps=None,
        boundary="dirichlet",
        physics=_physics("poisson"),
    ),
    "Helmholtz": Problem(
        "-Laplace(u) - omega^2 a u = 0, u = b on the boundary",
        (
            Variable("a", "yx", ("coefficient",)),
            Variable("bc", "", ("boundary-value",)),
            Variable("u", "yx", ("solution",), start_frame=1),
        ),
        128,
        512,
        {"coefficient": 1.0, "boundary-value": 0.0, "solution": 0.11523915668552},
        {"coefficient": 1.0, "boundary-value": 1.0, "solution": 0.8279975746000605},
        lead_steps=None,
        boundary="dirichlet",
        physics=_physics("helmholtz", omega=2.5 * math.pi),
    ),
}
