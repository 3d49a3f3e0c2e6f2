"""What a dataset is and whether it is whole: `pelagos data inspect` and `pelagos data verify`."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from pelagos.data_pipelines.store import Dataset, DatasetError, DatasetSpec, open_dataset
from pelagos.data_pipelines.store.chunk_grid import TouchedChunk, touched_chunks
from pelagos.data_pipelines.store.field_statistics import (
    TrajectorySums,
    dataset_statistics,
    shard_sums,
)
from pelagos.data_pipelines.store.half_precision import as_read
from pelagos.data_pipelines.store.layout import GROUP_KEY, array_documents
from pelagos.data_pipelines.store.manifest import Statistics, load_manifest
from pelagos.data_pipelines.store.object_store import Bytes, ObjectStore, open_store
from pelagos.data_pipelines.store.shards import (
    ABSENT,
    ChecksumError,
    FrameCodec,
    crc32c,
    decode_index,
    index_bytes_length,
)

# Pooled float64 statistics recomputed from the same values differ only if numpy sums in another
# order, in another version or on another processor: by far less than this.
STATISTICS_RELATIVE_TOLERANCE = 1e-9


@dataclass(frozen=True)
class DatasetDescription:
    """Everything about a dataset that a person asks for.

    Attributes:
        compression_ratio: raw bytes over stored bytes.
        inner_chunk_shape: one frame or a part of it, `(1, 1, channel, y, x)`.
        shard_shape: `(trajectory, time, channel, y, x)` of a full shard.
        statistics: by split (and `all`), field and name.
        parameter_ranges: smallest and largest value of each parameter.
    """

    uri: str
    spec: DatasetSpec
    fingerprint: str
    shape: tuple[int, ...]
    raw_bytes: int
    stored_bytes: int
    compression_ratio: float
    num_shards: int
    shard_shape: tuple[int, ...]
    inner_chunk_shape: tuple[int, ...]
    inner_chunk_bytes: int
    smallest_shard_bytes: int
    largest_shard_bytes: int
    statistics: Statistics
    parameter_ranges: dict[str, tuple[float, float]]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, for programs."""
        values = {name: getattr(self, name) for name in self.__dataclass_fields__}
        values["spec"] = self.spec.to_json()
        return dict(json.loads(json.dumps(values)))


@dataclass(frozen=True)
class Damage:
    """One thing that is not as it was written; what is None is not known or does not apply."""

    key: str
    problem: str
    trajectory: int | None = None
    frame: int | None = None

    def __str__(self) -> str:
        place = self.key
        if self.trajectory is not None:
            place += f", trajectory {self.trajectory}"
        if self.frame is not None:
            place += f", frame {self.frame}"
        return f"{place}: {self.problem}"


@dataclass
class VerifyReport:
    """What `verify` looked at and what it found."""

    uri: str
    num_shards: int = 0
    num_chunks: int = 0
    num_bytes: int = 0
    damage: list[Damage] = field(default_factory=list)

    @property
    def is_whole(self) -> bool:
        return not self.damage

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, for programs."""
        return {
            "uri": self.uri,
            "is_whole": self.is_whole,
            "num_shards": self.num_shards,
            "num_chunks": self.num_chunks,
            "num_bytes": self.num_bytes,
            "damage": [vars(damage) for damage in self.damage],
        }


def describe(uri: str, storage_options: dict[str, Any] | None = None) -> DatasetDescription:
    """Open a dataset and say what it is, without reading its data.

    Raises:
        DatasetError: it does not open.
    """
    dataset = open_dataset(uri, storage_options)
    spec, shards = dataset.spec, dataset.manifest.shards
    codec = FrameCodec(spec)
    raw_bytes = spec.frame_bytes * spec.num_frames * spec.num_trajectories
    stored_bytes = sum(shard.size for shard in shards)
    return DatasetDescription(
        uri=uri,
        spec=spec,
        fingerprint=dataset.fingerprint,
        shape=spec.shape,
        raw_bytes=raw_bytes,
        stored_bytes=stored_bytes,
        compression_ratio=raw_bytes / stored_bytes,
        num_shards=len(shards),
        shard_shape=(spec.shard_trajectories, *spec.shape[1:]),
        inner_chunk_shape=(1, 1, *codec.chunk_shape),
        inner_chunk_bytes=codec.chunk_bytes,
        smallest_shard_bytes=min(shard.size for shard in shards),
        largest_shard_bytes=max(shard.size for shard in shards),
        statistics=dataset.manifest.statistics,
        parameter_ranges={
            name: (float(values.min()), float(values.max()))
            for name, values in dataset.parameters.items()
        },
    )


def verify(
    uri: str,
    storage_options: dict[str, Any] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> VerifyReport:
    """Read everything and compare it with what was written.

    Checked: the size and checksum of every shard, its index, the checksum of every frame, that
    every value is finite, the checksums of the parameters, the Zarr metadata, and the statistics,
    computed again. It goes on after damage and lists all of it.

    Args:
        progress: called as `progress(shards done, shards in all)`.

    Raises:
        DatasetError: there is no finished dataset, or its manifest is damaged.
    """
    store = open_store(uri, storage_options)
    manifest = load_manifest(store)
    spec = manifest.spec
    report = VerifyReport(uri)
    sums: dict[str, list[TrajectorySums]] = {name: [] for name in spec.field_names}
    for shard in range(spec.num_shards):
        found = _verify_shard(store, manifest.shards[shard], spec, shard, report)
        for name, rows in found.items():
            sums[name].extend(rows)
        if progress is not None:
            progress(shard + 1, spec.num_shards)
    if report.is_whole:  # sums of damaged trajectories would only repeat the damage
        recomputed = dataset_statistics(sums, spec.splits)
        report.damage.extend(_compare_statistics(manifest.statistics, recomputed))
    _verify_parameters(uri, storage_options, report)
    _verify_metadata(store, spec, report)
    return report


def _verify_shard(
    store: ObjectStore, record: Any, spec: DatasetSpec, shard: int, report: VerifyReport
) -> dict[str, list[TrajectorySums]]:
    """Check one shard; returns the sums of its trajectories that are whole."""
    report.num_shards += 1
    try:
        content: Bytes = np.frombuffer(store.read(record.key), np.uint8)
    except DatasetError as error:
        report.damage.append(Damage(record.key, str(error)))
        return {}
    report.num_bytes += len(content)
    before = len(report.damage)
    if len(content) != record.size:
        sizes = f"has {len(content)} bytes, {record.size} were written"
        report.damage.append(Damage(record.key, sizes))
    try:
        index, checksum = decode_index(spec, content[-index_bytes_length(spec) :].data)
    except ChecksumError as error:
        report.damage.append(Damage(record.key, f"index: {error}"))
        return {}
    if checksum != record.index_crc32c:
        report.damage.append(Damage(record.key, "index: not the one that the manifest describes"))
        return {}
    codec = FrameCodec(spec)
    sums: dict[str, list[TrajectorySums]] = {name: [] for name in spec.field_names}
    data = np.empty((1, spec.num_frames, *spec.frame_shape), spec.value_dtype)
    chunk = np.empty(codec.chunk_shape, codec.dtype)
    touched = touched_chunks(spec)
    for row, trajectory in enumerate(spec.trajectories_of_shard(shard)):
        for entry, place in enumerate(index[row]):
            report.num_chunks += 1
            frame, part = divmod(entry, spec.chunks_per_frame)
            problem = _decode_problem(codec, content, place, chunk, touched[part], spec)
            if problem:
                report.damage.append(Damage(record.key, problem, trajectory, frame))
            data[0, frame][touched[part].target] = as_read(spec, chunk)[touched[part].source]
        for name, rows in shard_sums(data, spec.field_names).items():
            sums[name].extend(rows)
    if len(report.damage) == before and crc32c(content.data) != record.crc32c:
        report.damage.append(Damage(record.key, "bytes between the frames were changed"))
    return sums


def _decode_problem(
    codec: FrameCodec,
    content: Bytes,
    byte_range: npt.NDArray[np.uint64],
    chunk: npt.NDArray[Any],
    part: TouchedChunk,
    spec: DatasetSpec,
) -> str | None:
    """Decode one chunk, `part` of a frame, into `chunk`; says what is wrong with it, or None."""
    if byte_range[0] == ABSENT:
        return "was never written"
    offset, length = int(byte_range[0]), int(byte_range[1])
    try:
        codec.decode(content[offset : offset + length].data, chunk)
    except (ChecksumError, RuntimeError) as error:
        chunk[...] = 0
        return str(error)
    values = as_read(spec, chunk)[part.source]
    if not np.isfinite(values).all():
        channel, *inside = map(int, np.argwhere(~np.isfinite(values))[0])
        point = (at + slice_.start for at, slice_ in zip(inside, part.target[1:], strict=True))
        return f"field {spec.field_names[channel]!r} is not finite at grid index {tuple(point)}"
    return None


def _compare_statistics(stored: Statistics, recomputed: Statistics) -> list[Damage]:
    return [
        Damage("manifest.json", f"{split}: {name} {key} is {value}, the data has {found}")
        for split, fields in stored.items()
        for name, row in fields.items()
        for key, value in row.items()
        if not _is_close(value, found := recomputed[split][name][key], scale=row["rms"])
    ]


def _is_close(stored: float, found: float, scale: float) -> bool:
    tolerance = STATISTICS_RELATIVE_TOLERANCE
    return math.isclose(stored, found, rel_tol=tolerance, abs_tol=tolerance * scale)


def _verify_parameters(
    uri: str, storage_options: dict[str, Any] | None, report: VerifyReport
) -> None:
    try:
        dataset: Dataset = open_dataset(uri, storage_options)
        _ = dataset.parameters
    except DatasetError as error:
        if report.is_whole:  # else it repeats what is listed
            report.damage.append(Damage("parameters", str(error)))


def _verify_metadata(store: ObjectStore, spec: DatasetSpec, report: VerifyReport) -> None:
    """Check the `zarr.json` files, which other readers go by."""
    wanted = {f"{path}/zarr.json": document for path, document in array_documents(spec).items()}
    for key in (GROUP_KEY, *wanted):
        try:
            document = json.loads(store.read(key))
        except (DatasetError, ValueError) as error:
            report.damage.append(Damage(key, str(error)))
            continue
        if key == GROUP_KEY:
            inline = document.get("consolidated_metadata", {}).get("metadata")
            is_same = inline == array_documents(spec)
        else:
            is_same = document == wanted[key]
        if not is_same:
            report.damage.append(Damage(key, "is not the metadata that was written"))
