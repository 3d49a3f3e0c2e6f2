"""An overview of another writer's Zarr array, without reading its data."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

from pelagos.data_pipelines.foreign.dataset import ForeignDataset
from pelagos.data_pipelines.foreign.identity import object_sizes
from pelagos.data_pipelines.store.schema import DatasetSpec


@dataclass(frozen=True)
class ArrayOverview:
    """How one array is stored.

    Attributes:
        path: in the hierarchy; `/` is the root.
        roles: the role of each of its axes.
        shards: None where chunks are objects of their own.
    """

    path: str
    dtype: str
    roles: tuple[str, ...]
    shape: tuple[int, ...]
    chunks: tuple[int, ...]
    shards: tuple[int, ...] | None
    zarr_format: int


@dataclass(frozen=True)
class ForeignOverview:
    """Everything about a foreign array that a person asks for.

    Attributes:
        shape: `[trajectory, time, channel, y, x]`, as it is read.
        raw_bytes: as it is read, float32.
        stored_bytes: of all chunks that are there.
        assumed: a sentence for each thing that neither the array nor a description says.
        parameter_ranges: smallest and largest value of each vector along the trajectories.
        notes: further facts for the user, a sentence each.
        hint: how to convert it to Pelagos' own format.
    """

    uri: str
    spec: DatasetSpec
    fingerprint: str
    shape: tuple[int, ...]
    raw_bytes: int
    stored_bytes: int
    num_objects: int
    arrays: tuple[ArrayOverview, ...]
    parameter_ranges: dict[str, tuple[float, float]]
    assumed: tuple[str, ...]
    notes: tuple[str, ...]
    hint: str

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, for programs."""
        values = {name: getattr(self, name) for name in self.__dataclass_fields__}
        values["spec"] = self.spec.to_json()
        values["arrays"] = [asdict(array) for array in self.arrays]
        return dict(json.loads(json.dumps(values)))


def overview(dataset: ForeignDataset) -> ForeignOverview:
    """Describe a foreign array. Costs a listing; values are not read, so it has no statistics."""
    spec = dataset.spec
    sizes = object_sizes(dataset.uri, dataset.storage_options, dataset.arrays)
    return ForeignOverview(
        uri=dataset.uri,
        spec=spec,
        fingerprint=dataset.fingerprint,
        shape=spec.shape,
        raw_bytes=spec.frame_bytes * spec.num_frames * spec.num_trajectories,
        stored_bytes=sum(sizes),
        num_objects=len(sizes),
        arrays=tuple(
            ArrayOverview(
                path=source.path or "/",
                dtype=str(source.array.dtype),
                roles=source.roles,
                shape=source.array.shape,
                chunks=source.array.chunks,
                shards=getattr(source.array, "shards", None),
                zarr_format=source.array.metadata.zarr_format,
            )
            for source in dataset.arrays
        ),
        parameter_ranges={
            name: (float(values.min()), float(values.max()))
            for name, values in dataset.parameters.items()
        },
        assumed=tuple(dataset.assumed),
        notes=tuple(dataset.notes),
        hint=f"pelagos convert {dataset.uri} NEW.zarr",
    )
