"""A dataset's description and completeness: `pelagos data inspect` and `pelagos data verify`."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from pelagos.data_pipelines.foreign import Description, ForeignDataset, open_readable
from pelagos.data_pipelines.foreign.opening import OPENERS, require_stored
from pelagos.data_pipelines.foreign.overview import ForeignOverview, overview
from pelagos.data_pipelines.management.plugin_description import PluginDescription, describe_opened
from pelagos.data_pipelines.store import DatasetError, DatasetSpec, open_dataset
from pelagos.data_pipelines.store.chunk_grid import TouchedChunk, touched_chunks
from pelagos.data_pipelines.store.coordinates import coordinate_contents, is_coordinate
from pelagos.data_pipelines.store.field_statistics import (
    TrajectorySums,
    dataset_statistics,
    default_split,
    shard_sums,
)
from pelagos.data_pipelines.store.half_precision import as_read
from pelagos.data_pipelines.store.layout import (
    GROUP_KEY,
    array_documents,
    decoded_attributes,
    is_earlier,
)
from pelagos.data_pipelines.store.manifest import Manifest, Statistics, load_manifest
from pelagos.data_pipelines.store.object_store import Bytes, ObjectStore, open_store
from pelagos.data_pipelines.store.shards import (
    ABSENT,
    CHECKSUM_BYTES,
    ChecksumError,
    FrameCodec,
    check,
    crc32c,
    decode_index,
    index_bytes_length,
)
from pelagos.infra.json_text import parse_json

# Pooled float64 statistics recomputed from the same values differ only if numpy sums in another
# order, in another version or on another processor: by far less than this.
STATISTICS_RELATIVE_TOLERANCE = 1e-9
_THREADS = min(4, os.cpu_count() or 1)  # each holds a shard


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
    """One part that differs from what was written; None: unknown or not applicable."""

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
    """The scope and the findings of `verify`."""

    uri: str
    num_shards: int = 0
    num_chunks: int = 0
    num_bytes: int = 0
    damage: list[Damage] = field(default_factory=list)

    def add(self, other: VerifyReport) -> None:
        """Add the findings in another part of the dataset."""
        self.num_shards += other.num_shards
        self.num_chunks += other.num_chunks
        self.num_bytes += other.num_bytes
        self.damage += other.damage

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


def describe_readable(
    uri: str,
    storage_options: dict[str, Any] | None = None,
    description: Description | None = None,
) -> DatasetDescription | ForeignOverview | PluginDescription:
    """Open a dataset of any writer and describe it, without reading its data.

    Args:
        description: properties that a foreign array lacks.

    Raises:
        DatasetError: it does not open.
    """
    dataset = open_readable(uri, storage_options, description)
    if isinstance(dataset, ForeignDataset):
        return overview(dataset)
    try:
        if (scheme := uri.partition("://")[0]) in OPENERS:
            return describe_opened(dataset, OPENERS.origin(scheme))
    finally:
        dataset.close()
    return describe(uri, storage_options)


def describe(uri: str, storage_options: dict[str, Any] | None = None) -> DatasetDescription:
    """Open a Pelagos dataset and describe it, without reading its data.

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
    every value is finite, parameters and coordinates, the Zarr metadata and attributes, and the
    statistics, computed again. It continues after damage and lists all of it. Shards are checked in
    threads, each of which holds one in memory.

    Args:
        progress: called as `progress(shards done, shards in all)`.

    Raises:
        DatasetError: there is no finished dataset, or its manifest is damaged.
    """
    require_stored(uri)
    store = open_store(uri, storage_options)
    manifest = load_manifest(store)
    spec = manifest.spec
    report = VerifyReport(uri)
    sums: dict[str, list[TrajectorySums]] = {name: [] for name in spec.field_names}
    with ThreadPoolExecutor(_THREADS) as pool:
        found = pool.map(
            lambda shard: _verify_shard(store, manifest, shard), range(spec.num_shards)
        )
        for shard, (part, rows_by_name) in enumerate(found):
            report.add(part)
            for name, rows in rows_by_name.items():
                sums[name].extend(rows)
            if progress is not None:
                progress(shard + 1, spec.num_shards)
    if report.is_whole:  # sums of damaged trajectories would only repeat the damage
        recomputed = dataset_statistics(sums, spec.splits)
        report.damage.extend(_compare_statistics(manifest.statistics, recomputed))
    _verify_vectors(store, manifest, report)
    _verify_metadata(store, manifest, report)
    return report


def _verify_shard(
    store: ObjectStore, manifest: Manifest, shard: int
) -> tuple[VerifyReport, dict[str, list[TrajectorySums]]]:
    """Check one shard; also returns the sums of its trajectories."""
    spec, record = manifest.spec, manifest.shards[shard]
    report = VerifyReport(store.uri, num_shards=1)
    try:
        content: Bytes = np.frombuffer(store.read(record.key), np.uint8)
    except (DatasetError, OSError) as error:
        report.damage.append(Damage(record.key, str(error)))
        return report, {}
    report.num_bytes = len(content)
    if spec.is_last_shard_partial and shard == spec.num_shards - 1:
        content = content[: record.size]  # longer, where more is being appended
    before = len(report.damage)
    if len(content) != record.size:
        sizes = f"has {len(content)} bytes, {record.size} were written"
        report.damage.append(Damage(record.key, sizes))
    try:
        index, checksum = decode_index(spec, content[-index_bytes_length(spec) :].data)
    except ChecksumError as error:
        report.damage.append(Damage(record.key, f"index: {error}"))
        return report, {}
    if checksum != record.index_crc32c:
        report.damage.append(Damage(record.key, "index: not the one that the manifest describes"))
        return report, {}
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
        for name, rows in shard_sums(data, spec.field_names, spec.mask_channels).items():
            sums[name].extend(rows)
    if len(report.damage) == before and crc32c(content.data) != record.crc32c:
        report.damage.append(Damage(record.key, "bytes between the frames were changed"))
    return report, sums


def _decode_problem(
    codec: FrameCodec,
    content: Bytes,
    byte_range: npt.NDArray[np.uint64],
    chunk: npt.NDArray[Any],
    part: TouchedChunk,
    spec: DatasetSpec,
) -> str | None:
    """Decode one chunk, `part` of a frame, into `chunk`; return its fault, or None."""
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
        for found in [recomputed[split][name].get(key, math.nan)]
        if not _is_close(value, found, scale=row.get("rms", row["std"]))
    ]


def _is_close(stored: float, found: float, scale: float) -> bool:
    tolerance = STATISTICS_RELATIVE_TOLERANCE
    return math.isclose(stored, found, rel_tol=tolerance, abs_tol=tolerance * scale)


def _verify_vectors(store: ObjectStore, manifest: Manifest, report: VerifyReport) -> None:
    """Check coordinates, which other readers go by, and parameters."""
    spec = manifest.spec
    documents = array_documents(spec, earlier=_is_earlier(store))
    for name in (name for name in coordinate_contents(spec) if name in documents):
        key = f"{name}/c/0"
        try:
            payload = _checked_payload(store, key)
        except (DatasetError, ValueError, OSError) as error:
            report.damage.append(Damage(key, str(error)))
            continue
        if not is_coordinate(spec, name, payload):
            report.damage.append(Damage(key, "is not the coordinate that the manifest describes"))
    for name in spec.parameter_names:
        key = f"parameters/{name}/c/0"
        try:
            # a longer one is being appended to
            payload = _checked_payload(store, key)[: 8 * spec.num_trajectories]
        except (DatasetError, ValueError, OSError) as error:
            report.damage.append(Damage(key, str(error)))
            continue
        if crc32c(payload) != manifest.parameters_crc32c[name]:
            report.damage.append(Damage(key, "is not the parameter that the manifest describes"))


def _is_earlier(store: ObjectStore) -> bool:
    """Whether the dataset is of an earlier format; False if its group is unreadable (reported)."""
    try:
        return is_earlier(parse_json(store.read(GROUP_KEY)))
    except (DatasetError, ValueError, OSError, AttributeError):
        return False


def _checked_payload(store: ObjectStore, key: str) -> bytes:
    content = store.read(key)
    check(content[:-CHECKSUM_BYTES], content[-CHECKSUM_BYTES:])
    return content[:-CHECKSUM_BYTES]


def _verify_metadata(store: ObjectStore, manifest: Manifest, report: VerifyReport) -> None:
    """Check the `zarr.json` files, which other readers go by."""
    documents = array_documents(manifest.spec, earlier=_is_earlier(store))
    wanted = {f"{path}/zarr.json": document for path, document in documents.items()}
    for key in (GROUP_KEY, *wanted):
        try:
            document = parse_json(store.read(key))
            if not isinstance(document, dict):
                raise ValueError("it is no JSON object")
        except (DatasetError, ValueError, OSError) as error:
            report.damage.append(Damage(key, str(error)))
            continue
        if key != GROUP_KEY:
            is_same = document == wanted[key]
        else:
            consolidated, attributes = (
                found if isinstance(found := document.get(name), dict) else {}
                for name in ("consolidated_metadata", "attributes")
            )
            is_same = consolidated.get("metadata") == documents
            differing = _differing_attributes(attributes, manifest)
            if differing:
                sentence = f"attributes {', '.join(differing)} are not those of the manifest"
                report.damage.append(Damage(key, sentence))
        if not is_same:
            report.damage.append(Damage(key, "is not the metadata that was written"))


def _differing_attributes(found: dict[str, Any], manifest: Manifest) -> list[str]:
    split = default_split(manifest.statistics)
    wanted = {
        **manifest.spec.to_json(),
        "statistics": manifest.statistics[split],
        "statistics_split": split,
        "fingerprint": manifest.fingerprint,
    }
    try:
        found = decoded_attributes(found)
    except ValueError as error:
        return [f"of JSON text ({error})"]
    return [key for key, value in wanted.items() if found.get(key) != value]
