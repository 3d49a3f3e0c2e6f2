"""The unit of work of generation: compute one shard of a dataset and write it.

Plain data in, plain data out, so that any launcher can run it in any process, twice if need be:
the same request gives the same shard, and the store replaces a shard whole or not at all.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch

import pelagos
from pelagos.data_pipelines.generate.families import find_family
from pelagos.data_pipelines.generate.trajectories import generate_trajectories
from pelagos.data_pipelines.store import DatasetSpec, DatasetWriter, Field
from pelagos.data_pipelines.store.splits import default_splits, split_ranges

# Far below the store's own choice: a killed run loses at most this much work per worker, and a
# small machine shows progress every few seconds.
SHARD_BYTES = 16 * 2**20
MIN_SHARDS = 32


@dataclass(frozen=True)
class GenerationRequest:
    """Everything that determines a dataset's numbers, and where to compute them.

    Attributes are those of `generate_trajectories`, which explains them.
    """

    family: str
    seed: int
    num_trajectories: int
    resolution: int = 128
    num_frames: int = 21
    final_time: float = 1.0
    solver_resolution: int | None = None
    dtype: str = "float32"
    device: str = "cpu"
    compiled: bool = False

    def generator(self) -> dict[str, Any]:
        """The record of how the data came to be; with the same one, the same data comes out."""
        versions = {"pelagos": pelagos.__version__, "torch": str(torch.__version__)}
        record = {"name": "pelagos generate", **asdict(self), "versions": versions}
        revision = find_family(self.family).revision
        return record if revision == 1 else {**record, "revision": revision}


@dataclass(frozen=True)
class ShardReport:
    """The outcome of one shard."""

    shard: int
    num_trajectories: int
    num_retried: int  # trajectories accepted at a smaller Courant number than the family's
    seconds: float


def dataset_spec(
    request: GenerationRequest,
    splits: dict[str, int] | None = None,
    *,
    compression: Literal["none", "lz4", "zstd"] = "lz4",
    trajectories_per_shard: int | None = None,
) -> DatasetSpec:
    """The dataset that a request makes.

    Args:
        splits: trajectories per split, in order from trajectory 0; None: 80 % / 10 % / 10 %.
        trajectories_per_shard: None: about `SHARD_BYTES`, but at least `MIN_SHARDS` shards.

    Raises:
        ValueError: an unknown family, or splits that do not add up.
    """
    family = find_family(request.family)
    frame_bytes = 4 * len(family.fields) * request.resolution**2
    by_size = max(1, SHARD_BYTES // (frame_bytes * request.num_frames))
    by_count = max(1, request.num_trajectories // MIN_SHARDS)
    return DatasetSpec(
        name=family.name,
        equation=family.equation,
        fields=tuple(Field(name, name) for name in family.fields),
        num_trajectories=request.num_trajectories,
        num_frames=request.num_frames,
        grid_shape=(request.resolution, request.resolution),
        frame_interval=request.final_time / max(1, request.num_frames - 1),
        domain_extent=family.domain_extent,
        boundary_conditions=family.boundary_conditions,
        splits=checked_splits(request.num_trajectories, splits),
        parameter_names=family.parameter_names,
        constant_fields=family.constant_fields,
        generator=request.generator(),
        published_normalization=family.published_normalization,
        compression=compression,
        trajectories_per_shard=trajectories_per_shard or min(by_size, by_count),
        grid_location=family.grid_location,
        physics=family.physics_record(
            request.solver_resolution or request.resolution * family.solver_refinement
        ),
        given_fields=family.given_fields if request.num_frames > 1 else (),
    )


def checked_splits(total: int, counts: dict[str, int] | None) -> dict[str, tuple[int, int]]:
    """The ranges of splits of these sizes, or of the default ones. Raises ValueError."""
    counts = default_splits(total) if counts is None else counts
    if sum(counts.values()) != total:
        parts = " + ".join(f"{name} {count}" for name, count in counts.items())
        raise ValueError(
            f"Got splits {parts} = {sum(counts.values())}, but num_trajectories is {total}; they "
            "must be equal."
        )
    return split_ranges(counts)


def make_shard(writer: DatasetWriter, request: GenerationRequest, shard: int) -> ShardReport:
    """Compute the trajectories of one shard and write them.

    Raises:
        GenerationError: trajectories that no step size makes finite; nothing is written.
    """
    started = time.perf_counter()
    trajectories = writer.shard_trajectories(shard)
    data, parameters = generate_trajectories(
        request.family,
        trajectories,
        seed=request.seed,
        resolution=request.resolution,
        num_frames=request.num_frames,
        final_time=request.final_time,
        dtype=request.dtype,
        device=request.device,
        solver_resolution=request.solver_resolution,
        compiled=request.compiled,
    )
    writer.write_shard(shard, data, parameters)
    retried = int((parameters["cfl"] < find_family(request.family).cfl).sum())
    return ShardReport(shard, len(trajectories), retried, time.perf_counter() - started)
