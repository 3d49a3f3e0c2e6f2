"""The named problem families whose trajectories Pelagos can generate, and their generation.

The families are those of Poseidon (Herde et al., arXiv 2405.19101), six for pretraining and its
downstream tasks but for the flow around airfoils, and problems of PDEBench (Takamoto et al., arXiv
2210.07182). Choices that could not be checked against a paper are marked where they are made, in
`pelagos.data_pipelines.generate`: `initial_states`, `downstream_flows` and `downstream_fields`.

Trajectory *i* of a family is a pure function of (seed, family, i, resolution, solver resolution,
frames, time, dtype): its random numbers come from a generator keyed by the first three, and its bits
do not depend on which other trajectories are computed with it. They do depend on the machine's
vector width and library versions, as floating point does everywhere.
"""

from __future__ import annotations

import difflib
import zlib

import numpy as np

from pelagos.data_pipelines.generate import (
    families_evolution,
    families_fluids,
    families_steady,
)
from pelagos.data_pipelines.generate.family import Family
from pelagos.registry import Registry

NUM_ATTEMPTS = 4  # the Courant number is halved after each failure
CELLS_PER_BATCH = 32_768  # trajectories solved together on a CPU: this many stay in cache

FAMILIES: Registry[Family] = Registry(
    "family",
    {**families_fluids.FAMILIES, **families_evolution.FAMILIES, **families_steady.FAMILIES},
)


def find_family(name: str) -> Family:
    """The family of that name, upper or lower case; ValueError naming the known ones otherwise."""
    for known, family in FAMILIES.items():
        if name.lower() == known.lower():
            return family
    close = difflib.get_close_matches(name.lower(), [known.lower() for known in FAMILIES], n=1)
    hint = f'; did you mean "{close[0]}"?' if close else "."
    raise ValueError(f'Got family "{name}"{hint} Known families are {FAMILIES.listed()}.')


def trajectory_generator(seed: int, family: str, index: int) -> np.random.Generator:
    """The random generator of one trajectory: Philox keyed by (seed, family name, index)."""
    if seed < 0 or index < 0:
        raise ValueError(f"Got seed={seed}, trajectory index={index}; neither may be negative.")
    key = np.random.SeedSequence([seed, zlib.crc32(family.encode()), index])
    return np.random.Generator(np.random.Philox(key))
