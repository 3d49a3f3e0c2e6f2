"""The equations whose residuals are known, by the name that datasets record."""

from __future__ import annotations

from pelagos.data_pipelines.physics.burgers import Burgers
from pelagos.data_pipelines.physics.compressible import Euler, ShallowWater
from pelagos.data_pipelines.physics.equation import Equation
from pelagos.data_pipelines.physics.incompressible import DivergenceFree, NavierStokes, Vorticity
from pelagos.data_pipelines.physics.reactions import AllenCahn, FitzHughNagumo
from pelagos.data_pipelines.physics.steady import Darcy, Helmholtz, Poisson
from pelagos.data_pipelines.physics.transport import Advection, Heat
from pelagos.data_pipelines.physics.waves import Wave

EQUATIONS: dict[str, Equation] = {
    "heat": Heat(),
    "advection": Advection(),
    "wave": Wave(),
    "allen-cahn": AllenCahn(),
    "fitzhugh-nagumo": FitzHughNagumo(),
    "burgers": Burgers(),
    "divergence-free": DivergenceFree(),
    "incompressible-navier-stokes": NavierStokes(),
    "vorticity": Vorticity(),
    "compressible-euler": Euler(),
    "shallow-water": ShallowWater(),
    "poisson": Poisson(),
    "helmholtz": Helmholtz(),
    "darcy": Darcy(),
}
