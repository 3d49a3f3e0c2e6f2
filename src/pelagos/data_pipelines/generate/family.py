"""The record of one problem family, and the shared parts of all equations' records."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from torch import Tensor

from pelagos.data_pipelines.generate import spectral

Array = npt.NDArray[np.float64]
FloatArray = npt.NDArray[np.float32]
InitialState = Callable[[np.random.Generator, int], Array]
Solve = Callable[[Tensor, Sequence[float], float], Tensor]
Coarsen = Callable[[Tensor, int], Tensor]

POSEIDON_LOADER = "Poseidon's data loader (arXiv 2405.19101)"

_PERIODIC = {"x": "periodic", "y": "periodic"}


class GenerationError(ValueError):
    """Trajectories that stay non-finite at every step size tried."""


@dataclass(frozen=True)
class Family:
    """One problem family: the contents of its trajectories and how one is made.

    A steady problem is a trajectory too: frame 0 holds its input and a solution of zeros, every
    later frame the input and the solution. It has no time step, and its `cfl` means nothing.

    `solver_refinement`: solver cells per stored cell and axis, unless a request says otherwise;
    `revision`: counts changes of the numbers that a request gives, so that a dataset begun before
    one is not finished after it.
    """

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
    given_fields: tuple[str, ...] = ()  # of `fields`: the input, the same in every frame
    boundary_conditions: dict[str, str] = field(default_factory=lambda: dict(_PERIODIC))
    published_normalization: dict[str, Any] = field(default_factory=dict)
    domain_extent: tuple[float, float] = (1.0, 1.0)  # lengths (y, x)
    # The equation of `pelagos.data_pipelines.physics` that frames are checked against, with
    # coefficients that are no parameters: the solver resolution -> numbers.
    physics: str = ""
    coefficients: Callable[[int], dict[str, float]] = field(default=lambda _: {})
    solver_refinement: int = 1
    revision: int = 1

    @property
    def parameter_names(self) -> tuple[str, ...]:
        """Per-trajectory scalars that `generate_trajectories` returns."""
        return (*self.parameters(4), "cfl")

    def physics_record(self, solver_resolution: int) -> dict[str, Any]:
        """A dataset's record of its equation; nothing where no equation is named."""
        if not self.physics:
            return {}
        # Parameters go by their names, so that datasets of different ones can be merged.
        named = {name: name for name in self.parameters(solver_resolution)}
        return {
            "equation": self.physics,
            "coefficients": {**named, **self.coefficients(solver_resolution)},
        }


def both_axes(condition: str) -> dict[str, str]:
    """The same boundary condition on all four sides."""
    return {"x": condition, "y": condition}


def truncate(frames: Tensor, resolution: int) -> Tensor:
    """Frames [m, channel, y, x] at fewer nodes, by Fourier truncation."""
    return spectral.resample(frames, (resolution, resolution))


def block_means(frames: Tensor, resolution: int) -> Tensor:
    """Means of frames [m, channel, y, x] over square blocks of cells, summed in a fixed order."""
    ratio = frames.shape[-1] // resolution
    if ratio == 1:
        return frames
    blocks = frames.reshape(*frames.shape[:2], resolution, ratio, resolution, ratio)
    total = sum(blocks[..., i, :, j] for i in range(ratio) for j in range(ratio))
    assert isinstance(total, Tensor)
    return total * (1.0 / (ratio * ratio))


def published(
    mean: dict[str, float], std: dict[str, float], lead_steps_per_unit: float | None = None
) -> dict[str, Any]:
    """Constants of Poseidon's data loader for a family without an offset of the pressure."""
    constants = {"source": POSEIDON_LOADER, "mean": mean, "std": std, "offset": {}}
    if lead_steps_per_unit is None:
        return constants
    return {**constants, "lead_steps_per_unit": lead_steps_per_unit}
