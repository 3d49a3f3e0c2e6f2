"""PDE solvers that make training data, and the families of problems they are applied to."""

from pelagos.data_pipelines.generate.euler import solve_euler
from pelagos.data_pipelines.generate.families import (
    FAMILIES,
    find_family,
    trajectory_generator,
)
from pelagos.data_pipelines.generate.family import Family, GenerationError
from pelagos.data_pipelines.generate.navier_stokes import solve_navier_stokes
from pelagos.data_pipelines.generate.trajectories import generate_trajectories

__all__ = [
    "FAMILIES",
    "Family",
    "GenerationError",
    "find_family",
    "generate_trajectories",
    "solve_euler",
    "solve_navier_stokes",
    "trajectory_generator",
]
