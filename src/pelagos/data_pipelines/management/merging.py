"""Several datasets of equal schema as one."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from pelagos.data_pipelines.management.schemas import recorded_meaning, require_equal_schemas
from pelagos.data_pipelines.store import (
    DatasetError,
    DatasetSpec,
    create_dataset,
    open_dataset,
    resume_dataset,
)
from pelagos.data_pipelines.store.readable import ReadableDataset

Place = tuple[int, int]  # number of the dataset, trajectory in it


def merge(
    sources: Sequence[ReadableDataset],
    destination: str | os.PathLike[str],
    *,
    name: str | None = None,
    storage_options: dict[str, Any] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> DatasetSpec:
    """Write one dataset that has the trajectories of all; returns its specification.

    Splits are joined by name: the training split of the result is those of the sources, one after
    the other, and so on; trajectories of no split come last. Type and compression are those of the
    first source. An interrupted merge continues where it stopped.

    Args:
        destination: a path or URI at which there is nothing, or this merge unfinished.
        progress: called as `progress(shards done, shards in all)`.

    Raises:
        ValueError: the schemas differ.
        FileExistsError: something else is there.
        DatasetError: a source cannot be read.
    """
    first, *others = (source.spec for source in sources)
    require_equal_schemas(first, others)
    order, splits = _order([source.spec for source in sources])
    spec = replace(
        first,
        name=name or first.name,
        num_trajectories=len(order),
        splits=splits,
        generator={
            **recorded_meaning(first),
            "merged_from": [{"name": s.spec.name, "fingerprint": s.fingerprint} for s in sources],
        },
        trajectories_per_shard=None,
    )
    try:
        writer = create_dataset(destination, spec, storage_options=storage_options)
    except FileExistsError as taken:
        try:
            open_dataset(destination, storage_options).close()
        except DatasetError:  # unfinished: perhaps this very merge
            pass
        else:
            raise taken
        try:
            writer = resume_dataset(destination, spec, storage_options)
        except ValueError as error:
            raise FileExistsError(str(error)) from error
    missing = writer.missing_shards()
    for done, shard in enumerate(missing, writer.num_shards - len(missing) + 1):
        places = [order[i] for i in writer.shard_trajectories(shard)]
        frames = range(spec.num_frames)
        data = (sources[d].read_frames(i, frames) for d, i in places)  # one at a time in memory
        parameters = {
            key: np.array([sources[d].parameters[key][i] for d, i in places])
            for key in spec.parameter_names
        }
        writer.write_shard_frames(shard, data, parameters)
        if progress is not None:
            progress(done, writer.num_shards)
    writer.finalize()
    return spec


def _order(specs: Sequence[DatasetSpec]) -> tuple[list[Place], dict[str, tuple[int, int]]]:
    """Every trajectory of every source, split by split, and where the splits are then."""
    order: list[Place] = []
    splits = {}
    for name in dict.fromkeys(name for spec in specs for name in spec.splits):
        start = len(order)
        for number, spec in enumerate(specs):
            order += [(number, i) for i in range(*spec.splits.get(name, (0, 0)))]
        splits[name] = (start, len(order))
    taken = set(order)
    order += [
        (number, i)
        for number, spec in enumerate(specs)
        for i in range(spec.num_trajectories)
        if (number, i) not in taken
    ]
    return order, splits
