"""The specification that tests of the store begin with."""

from __future__ import annotations

from typing import Any

from pelagos.data_pipelines.store import DatasetSpec, Field


def spec_of(**changes: Any) -> DatasetSpec:
    """Five trajectories of three frames, 7 x 10 points, two to a shard; `changes` replace values."""
    values: dict[str, Any] = {
        "name": "parts",
        "equation": "none",
        "fields": (Field("u", "velocity-x", "m/s"), Field("p", "pressure", "Pa")),
        "num_trajectories": 5,
        "num_frames": 3,
        "grid_shape": (7, 10),
        "frame_interval": 0.5,
        "domain_extent": (1.0, 2.0),
        "boundary_conditions": {"x": "periodic", "y": "periodic"},
        "splits": {"train": (0, 4), "test": (4, 5)},
        "trajectories_per_shard": 2,
    }
    return DatasetSpec(**{**values, **changes})
