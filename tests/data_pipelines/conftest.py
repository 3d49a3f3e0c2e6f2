"""Small datasets on disk."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from pelagos.data_pipelines.store import Dataset, DatasetSpec, Field, create_dataset, open_dataset

MakeDataset = Callable[..., tuple[Dataset, npt.NDArray[np.float32]]]


def spec_of(**changes: Any) -> DatasetSpec:
    """A small spec: 7 trajectories in shards of 3, so that the last shard is not full."""
    values: dict[str, Any] = {
        "name": "small",
        "equation": "none",
        "fields": (Field("density", "density"), Field("pressure", "pressure", "Pa")),
        "num_trajectories": 7,
        "num_frames": 5,
        "grid_shape": (12, 16),
        "frame_interval": 0.05,
        "domain_extent": (1.0, 2.0),
        "boundary_conditions": {"x": "periodic", "y-low": "wall", "y-high": "wall"},
        "splits": {"train": (0, 5), "validation": (5, 6), "test": (6, 7)},
        "parameter_names": ("viscosity",),
        "trajectories_per_shard": 3,
    }
    return DatasetSpec(**{**values, **changes})


def data_of(spec: DatasetSpec, seed: int = 0) -> npt.NDArray[np.float32]:
    """Normal numbers, every frame different."""
    generator = np.random.default_rng(seed)
    return generator.normal(3.0, 2.0, spec.shape).astype(spec.value_dtype)


@pytest.fixture
def make_dataset(tmp_path: Path) -> MakeDataset:
    """`make_dataset(seed=0, **spec changes)` writes a dataset and opens it."""
    count = 0

    def make(seed: int = 0, **changes: Any) -> tuple[Dataset, npt.NDArray[np.float32]]:
        nonlocal count
        count += 1
        spec = spec_of(**changes)
        data = data_of(spec, seed)
        writer = create_dataset(str(tmp_path / f"dataset-{count}.zarr"), spec)
        for shard in writer.missing_shards():
            rows = writer.shard_trajectories(shard)
            parameters = {n: np.arange(rows.start, rows.stop) / 8 for n in spec.parameter_names}
            writer.write_shard(shard, data[rows.start : rows.stop], parameters)
        writer.finalize()
        return open_dataset(writer.uri), data

    return make
