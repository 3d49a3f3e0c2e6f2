"""More trajectories for a finished dataset, without rewriting those it has.

Full shards stay as they are. A last shard that is not full is written again, once, with its old
bytes as its beginning, so that the old manifest describes it still. The manifest is written last:
until then the dataset is the old one, and a call that was killed is simply made again.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import asdict, replace

import numpy as np

from pelagos.data_pipelines.management.exclusive import revising
from pelagos.data_pipelines.management.revising import write_manifest
from pelagos.data_pipelines.management.schemas import require_equal_schemas
from pelagos.data_pipelines.management.trajectory_table import trajectory_sums_of
from pelagos.data_pipelines.store import Dataset, DatasetSpec
from pelagos.data_pipelines.store.layout import dumps, shard_key, sidecar_key
from pelagos.data_pipelines.store.manifest import Manifest, ShardRecord
from pelagos.data_pipelines.store.readable import ReadableDataset
from pelagos.data_pipelines.store.shard_stream import stream_shard
from pelagos.data_pipelines.store.shards import EncodedShard, extend_shard
from pelagos.data_pipelines.store.writer import write_vector

Progress = Callable[[int, int], None]


def append(
    dataset: Dataset,
    source: ReadableDataset,
    *,
    extend_split: str | None = None,
    progress: Progress | None = None,
) -> Manifest:
    """Append every trajectory of `source` to `dataset`, which stays open as it was.

    Of two calls at once one is refused. Runs that were begun with the dataset as it was are not
    resumed with the longer one: its fingerprint is another.

    Args:
        dataset: open; open it again to read the appended trajectories.
        source: of the same fields, frames and grid.
        extend_split: the split that the new trajectories join; it must be the last one. None
            leaves them in no split (`all` has them).
        progress: called as `progress(shards done, shards to do)`.

    Raises:
        ValueError: the schemas differ, the split is not the last one, or a value is not finite.
        DatasetError: something cannot be read or written, or another process revises the dataset.
    """
    require_equal_schemas(dataset.spec, [source.spec])
    with revising(dataset):
        return _append(dataset, source, extend_split, progress)


def _append(
    dataset: Dataset, source: ReadableDataset, extend_split: str | None, progress: Progress | None
) -> Manifest:
    old = dataset.spec
    spec = replace(
        old,
        num_trajectories=old.num_trajectories + source.num_trajectories,
        splits=_splits(old, source.num_trajectories, extend_split),
        trajectories_per_shard=old.shard_trajectories,
        chunk_shape=old.frame_chunk_shape,
    )
    sums = trajectory_sums_of(dataset)
    parameters = {
        name: np.concatenate([dataset.parameters[name], source.parameters[name]])
        for name in spec.parameter_names
    }
    first = old.num_trajectories // old.shard_trajectories
    records = list(dataset.manifest.shards[:first])
    for shard in range(first, spec.num_shards):
        record, added = _write_shard(dataset, source, spec, shard)
        records.append(record)
        rows = spec.trajectories_of_shard(shard)
        for name in spec.field_names:
            sums[name].extend(added[name])
        sidecar = {
            "shard": shard,
            "trajectories": [rows.start, rows.stop],
            "record": asdict(record),
            "parameters": {n: v[rows.start : rows.stop].tolist() for n, v in parameters.items()},
            "sums": {n: sums[n][rows.start : rows.stop] for n in spec.field_names},
        }
        dataset.store.write(sidecar_key(shard), dumps(sidecar))
        if progress is not None:
            progress(shard + 1 - first, spec.num_shards - first)
    checksums = {
        name: write_vector(dataset.store, f"parameters/{name}", values)
        for name, values in parameters.items()
    }
    return write_manifest(dataset.store, spec, tuple(records), sums, checksums)


def _write_shard(
    dataset: Dataset, source: ReadableDataset, spec: DatasetSpec, shard: int
) -> tuple[ShardRecord, dict[str, list[dict[str, float]]]]:
    """Write one shard that has new trajectories; returns their sums too."""
    num_old = dataset.num_trajectories
    rows = spec.trajectories_of_shard(shard)
    new = range(max(rows.start, num_old), rows.stop)
    frames = range(spec.num_frames)
    given = (source.read_frames(i - num_old, frames) for i in new)  # one at a time in memory
    file = io.BytesIO()
    streamed = stream_shard(spec, new, given, file)
    encoded = EncodedShard(file.getvalue(), streamed.crc32c, streamed.index_crc32c)
    if new.start > rows.start:
        before = dataset.manifest.shards[shard]
        (old,) = dataset.store.read_ranges(before.key, [(0, before.size)])
        num_present = new.start - rows.start
        encoded = extend_shard(spec, old.tobytes(), num_present, encoded.content, len(new))
    key = shard_key(spec, shard)
    dataset.store.write(key, encoded.content)
    record = ShardRecord(key, len(encoded.content), encoded.crc32c, encoded.index_crc32c)
    return record, streamed.sums


def _splits(old: DatasetSpec, num_new: int, extended: str | None) -> dict[str, tuple[int, int]]:
    splits = dict(old.splits)
    if extended is None:
        return splits
    start, stop = splits.get(extended, (old.num_trajectories, old.num_trajectories))
    if stop != old.num_trajectories:
        raise ValueError(
            f"split {extended!r} of {old.name} is [{start}, {stop}) of {old.num_trajectories} "
            "trajectories. Only a split that ends with the last trajectory can be extended. Append "
            "without a split, then change the splits"
        )
    splits[extended] = (start, stop + num_new)
    return splits
