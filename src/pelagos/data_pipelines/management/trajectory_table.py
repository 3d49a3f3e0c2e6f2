"""Sums of every trajectory of a finished dataset, from which all its statistics follow."""

from __future__ import annotations

from dataclasses import asdict

from pelagos.data_pipelines.store import Dataset
from pelagos.data_pipelines.store.errors import ObjectMissingError
from pelagos.data_pipelines.store.field_statistics import TrajectorySums, shard_sums
from pelagos.data_pipelines.store.layout import sidecar_key
from pelagos.infra.json_text import parse_json

SumsOfFields = dict[str, list[TrajectorySums]]


def trajectory_sums_of(dataset: Dataset) -> SumsOfFields:
    """Sums per field and trajectory: the writer's notes, or the data read again where they lack."""
    spec = dataset.spec
    sums: SumsOfFields = {name: [] for name in spec.field_names}
    for shard in range(spec.num_shards):
        found = _noted(dataset, shard)
        for trajectory in spec.trajectories_of_shard(shard) if found is None else ():
            data = dataset.read_frames(trajectory, range(spec.num_frames))
            for name, rows in shard_sums(data[None], spec.field_names, spec.mask_channels).items():
                sums[name].extend(rows)
        for name, rows in (found or {}).items():
            sums[name].extend(rows)
    return sums


def _noted(dataset: Dataset, shard: int) -> SumsOfFields | None:
    """The sums in a shard's sidecar, if it describes the shard that the manifest names."""
    try:
        sidecar = parse_json(dataset.store.read(sidecar_key(shard)))
    except (ObjectMissingError, ValueError):
        return None
    if not isinstance(sidecar, dict) or not _are_sums(sidecar.get("sums")):
        return None
    count = len(dataset.spec.trajectories_of_shard(shard))
    sums: SumsOfFields = sidecar["sums"]
    is_whole = {len(rows) for rows in sums.values()} == {count}
    is_same = sidecar.get("record") == asdict(dataset.manifest.shards[shard])
    return sums if is_same and is_whole and [*sums] == [*dataset.field_names] else None


def _are_sums(found: object) -> bool:
    """Whether a sidecar, which anybody may have written, has rows of numbers by field."""
    return isinstance(found, dict) and all(
        isinstance(rows, list)
        and all(
            isinstance(row, dict) and all(isinstance(v, int | float) for v in row.values())
            for row in rows
        )
        for rows in found.values()
    )
