"""Writing a dataset: create it, write its shards in any order from any process, finalize.

    writer = create_dataset("flow.zarr", spec)
    for shard in writer.missing_shards():
        writer.write_shard(shard, data, parameters)      # [n, time, channel, y, x]
    writer.finalize()

A shard is written whole or not at all, and a manifest is written last, so a dataset is complete or
refuses to open. `resume_dataset` continues where a killed run stopped.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import uuid
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pelagos.data_pipelines.store import staging
from pelagos.data_pipelines.store.coordinates import coordinate_contents
from pelagos.data_pipelines.store.errors import DatasetError, ObjectMissingError
from pelagos.data_pipelines.store.field_statistics import dataset_statistics, default_split
from pelagos.data_pipelines.store.layout import (
    GROUP_KEY,
    MANIFEST_KEY,
    SPEC_KEY,
    array_documents,
    dumps,
    root_document,
    shard_key,
    sidecar_key,
)
from pelagos.data_pipelines.store.manifest import Manifest, ShardRecord, written_shards
from pelagos.data_pipelines.store.object_store import LocalStore, ObjectStore, open_store
from pelagos.data_pipelines.store.schema import DatasetSpec
from pelagos.data_pipelines.store.shard_stream import object_file, stream_shard
from pelagos.data_pipelines.store.shards import (
    checksum_bytes,
    crc32c,
    decode_index,
    index_bytes_length,
)
from pelagos.data_pipelines.store.stored_documents import read_begun
from pelagos.infra.json_text import parse_json

_METADATA_THREADS = 16


def create_dataset(
    uri: str | os.PathLike[str],
    spec: DatasetSpec,
    *,
    overwrite: bool = False,
    storage_options: dict[str, Any] | None = None,
) -> DatasetWriter:
    """Begin a new dataset.

    Args:
        overwrite: replace a dataset that is there. On a local disk the old one stays readable
            until the new one is complete. On an object store, which cannot rename, it is deleted
            now.

    Raises:
        FileExistsError: a dataset, finished or not, or something else is there.
    """
    uri = os.fspath(uri)
    root_uri = staging.prepare(uri, overwrite, storage_options)
    store = open_store(root_uri, storage_options)
    # First: it makes the rest resumable, and of several who begin at once one alone gets it.
    token = uuid.uuid4().hex
    if not store.create(SPEC_KEY, dumps({"spec": spec.to_json(), "writer": token})):
        raise FileExistsError(
            f"another process has just begun a dataset at {uri}: wait until it finishes, or use "
            "another uri"
        )
    _write_metadata(store, spec)
    return DatasetWriter(uri, spec, root_uri, storage_options, token)


def resume_dataset(
    uri: str | os.PathLike[str],
    spec: DatasetSpec,
    storage_options: dict[str, Any] | None = None,
) -> DatasetWriter:
    """Continue an unfinished dataset.

    Raises:
        ValueError: nothing was begun there, or with another spec (the differences are listed).
    """
    uri = os.fspath(uri)
    root_uri = staging.unfinished_root(uri, storage_options)
    store = open_store(root_uri, storage_options)
    begun = read_begun(store.read(SPEC_KEY))
    found = DatasetSpec.from_json(begun["spec"])
    differences = spec.differences(found)
    if differences:
        raise ValueError(
            f"dataset {uri} was begun with another spec:\n  " + "\n  ".join(differences) + "\n"
            "use the same spec, another uri, or overwrite"
        )
    _write_metadata(store, spec)  # the first run may have been killed before it had
    return DatasetWriter(uri, spec, root_uri, storage_options, begun.get("writer", ""))


@dataclass(frozen=True)
class DatasetWriter:
    """Writes the shards of one dataset. Plain data: pickle it and use it in any process.

    Attributes:
        uri: where the dataset will be.
        root_uri: where it is being written; another place than `uri` while it replaces a dataset.
        token: whose dataset it is; a dataset begun anew in its place has another.
    """

    uri: str
    spec: DatasetSpec
    root_uri: str
    storage_options: dict[str, Any] | None = None
    token: str = ""

    @property
    def num_shards(self) -> int:
        return self.spec.num_shards

    def shard_trajectories(self, shard: int) -> range:
        """The trajectories that `write_shard(shard, …)` wants."""
        return self.spec.trajectories_of_shard(shard)

    def missing_shards(self) -> list[int]:
        """Shards still to be written, in order."""
        done = written_shards(open_store(self.root_uri, self.storage_options), self.spec)
        return [shard for shard in range(self.num_shards) if shard not in done]

    def abandon(self) -> None:
        """Remove a dataset that this writer began and of which no shard was written.

        So that a failed attempt does not block another with other settings. A dataset
        with a shard, or that another process has begun anew, stays.
        """
        store = open_store(self.root_uri, self.storage_options)
        with contextlib.suppress(DatasetError):
            self._check_ownership(store)
            if len(self.missing_shards()) < self.num_shards:
                return
            if isinstance(store, LocalStore):
                shutil.rmtree(store.root, ignore_errors=True)
            else:
                store.delete(sorted(store.sizes()))

    def write_shard(
        self,
        shard: int,
        data: npt.NDArray[np.floating],
        parameters: Mapping[str, npt.NDArray[np.floating]] | None = None,
    ) -> None:
        """Write one shard, whole or not at all. Writing it again replaces it.

        Args:
            data: `[n, time, channel, y, x]` for the n trajectories of the shard.
            parameters: `[n]` for each name in `spec.parameter_names`.

        Raises:
            ValueError: a shape or the parameters' names are wrong, or a value is not finite (the
                trajectory, frame, field and grid index of the first one are named).
            DatasetError: another process has begun the dataset anew.
        """
        trajectories = self.shard_trajectories(shard)
        wanted = (len(trajectories), *self.spec.shape[1:])
        if data.shape != wanted:
            raise ValueError(
                f"data for trajectories {trajectories.start}..{trajectories.stop - 1} has shape "
                f"{data.shape}, expected {wanted} = (trajectory, time, channel, "
                f"{', '.join(self.spec.axis_names)})"
            )
        self.write_shard_frames(shard, iter(data), parameters)

    def write_shard_frames(
        self,
        shard: int,
        blocks: Iterable[npt.NDArray[np.floating]],
        parameters: Mapping[str, npt.NDArray[np.floating]] | None = None,
    ) -> None:
        """Write one shard from its frames as they come, in memory that does not grow with it.

        The bytes are those that `write_shard` writes.

        Args:
            blocks: all frames of the shard's trajectories, in the order of trajectory and time,
                in pieces `[frame, channel, y, x]` of any length, which must not be changed later.
            parameters: as for `write_shard`.

        Raises:
            NonFiniteError: a value is not finite; nothing is written.
            ValueError: as `write_shard`, or the number of frames is wrong; nothing is written.
        """
        trajectories = self.shard_trajectories(shard)
        values = self._checked_parameters(parameters or {}, trajectories)
        key = shard_key(self.spec, shard)
        store = open_store(self.root_uri, self.storage_options)
        with object_file(store, key) as file:
            streamed = stream_shard(self.spec, trajectories, blocks, file)
            self._check_ownership(store)  # before the shard takes its place
        record = ShardRecord(key, streamed.size, streamed.crc32c, streamed.index_crc32c)
        sidecar = {
            "shard": shard,
            "trajectories": [trajectories.start, trajectories.stop],
            "record": asdict(record),
            "parameters": {name: vector.tolist() for name, vector in values.items()},
            "sums": streamed.sums,
        }
        store.write(sidecar_key(shard), dumps(sidecar))

    def finalize(self) -> None:
        """Pool statistics, write parameters, attributes and, last, the manifest.

        Raises:
            DatasetError: shards are missing, or differ from the written ones, or another process
                has begun the dataset anew.
        """
        self._check_ownership(open_store(self.root_uri, self.storage_options))
        missing = self.missing_shards()
        if missing:
            shown = ", ".join(map(str, missing[:10])) + (", …" if len(missing) > 10 else "")
            raise DatasetError(
                f"cannot finish dataset {self.uri}: {len(missing)} of {self.num_shards} shards are "
                f"not written ({shown})"
            )
        store = open_store(self.root_uri, self.storage_options)
        with ThreadPoolExecutor(_METADATA_THREADS) as pool:
            sidecars = list(
                pool.map(
                    lambda shard: _checked_sidecar(store, self.spec, shard), range(self.num_shards)
                )
            )
        manifest = self._manifest(store, sidecars)
        extra = {
            "statistics": manifest.statistics[default_split(manifest.statistics)],
            "statistics_split": default_split(manifest.statistics),
            "fingerprint": manifest.fingerprint,
        }
        store.write(GROUP_KEY, dumps(root_document(self.spec, extra)))
        # Without the token: the same data are the same bytes from every writer.
        store.write(SPEC_KEY, dumps({"spec": self.spec.to_json()}))
        store.write(MANIFEST_KEY, manifest.to_bytes())
        staging.finish(self.uri, self.root_uri)

    def _check_ownership(self, store: ObjectStore) -> None:
        """Raises DatasetError where the dataset that was begun is no longer this writer's."""
        try:
            token = parse_json(store.read(SPEC_KEY)).get("writer", "")
        except ObjectMissingError:
            token = None
        if token != self.token:
            raise DatasetError(
                f"another process finished, overwrote or deleted dataset {self.uri}, so this one "
                "stops. Let one process at a time create a dataset"
            )

    def _manifest(self, store: ObjectStore, sidecars: list[dict[str, Any]]) -> Manifest:
        sums = {
            name: [row for sidecar in sidecars for row in sidecar["sums"][name]]
            for name in self.spec.field_names
        }
        checksums = {}
        for name in self.spec.parameter_names:
            values = [value for sidecar in sidecars for value in sidecar["parameters"][name]]
            checksums[name] = write_vector(store, f"parameters/{name}", np.array(values))
        return Manifest(
            self.spec,
            tuple(ShardRecord(**sidecar["record"]) for sidecar in sidecars),
            dataset_statistics(sums, self.spec.splits),
            checksums,
        )

    def _checked_parameters(
        self, parameters: Mapping[str, npt.NDArray[np.floating]], trajectories: range
    ) -> dict[str, npt.NDArray[np.float64]]:
        """`parameters` as float64, after their names and values are checked. Raises ValueError."""
        if set(parameters) != set(self.spec.parameter_names):
            raise ValueError(
                f"got the parameters {sorted(parameters)}, but the spec has "
                f"{sorted(self.spec.parameter_names)}"
            )
        checked = {}
        for name in self.spec.parameter_names:
            values = np.asarray(parameters[name], dtype=np.float64)
            if values.shape != (len(trajectories),) or not np.isfinite(values).all():
                raise ValueError(
                    f"parameter {name!r} must be {len(trajectories)} finite numbers, one per "
                    f"trajectory of the shard, got {values!r}"
                )
            checked[name] = values
        return checked


def _write_metadata(store: ObjectStore, spec: DatasetSpec) -> None:
    """Everything that plain Zarr needs, except the shards and the parameters' values."""
    for path, document in array_documents(spec).items():
        store.write(f"{path}/zarr.json", dumps(document))
    write_coordinates(store, spec)
    store.write(GROUP_KEY, dumps(root_document(spec, {})))


def write_coordinates(store: ObjectStore, spec: DatasetSpec) -> None:
    """Write the values of the coordinates."""
    for name, content in coordinate_contents(spec).items():
        _write_chunk(store, name, content)


def write_vector(store: ObjectStore, path: str, values: npt.NDArray[np.float64]) -> int:
    """Write a float64 vector as the single chunk of its array; returns its crc32c."""
    return _write_chunk(store, path, values.astype("<f8").tobytes())


def _write_chunk(store: ObjectStore, path: str, content: bytes) -> int:
    store.write(f"{path}/c/0", content + checksum_bytes(content))
    return crc32c(content)


def _checked_sidecar(store: ObjectStore, spec: DatasetSpec, shard: int) -> dict[str, Any]:
    """A shard's sidecar, once the shard's index was found to be the one it describes."""
    sidecar: dict[str, Any] = parse_json(store.read(sidecar_key(shard)))
    record = ShardRecord(**sidecar["record"])
    length = index_bytes_length(spec)
    try:
        (tail,) = store.read_ranges(record.key, [(record.size - length, length)])
        found = decode_index(spec, tail.data)[1]
    except ValueError as error:
        raise DatasetError(
            f"{store.address(record.key)} is damaged ({error}): write shard {shard} again"
        ) from error
    if found != record.index_crc32c:
        raise DatasetError(
            f"{store.address(record.key)} does not match its description {sidecar_key(shard)}: "
            f"write shard {shard} again"
        )
    return sidecar
