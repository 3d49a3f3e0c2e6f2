"""`manifest.json`: the parts of a finished dataset. It is written last, so it says "complete".

Opening a dataset is one read of the manifest and one listing of the shards. A shard that is
missing or has another size is found then, before it can be read as fill values.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from typing import Any

from pelagos.data_pipelines.store.errors import DatasetError, ObjectMissingError
from pelagos.data_pipelines.store.field_statistics import require_statistics
from pelagos.data_pipelines.store.layout import (
    GROUP_KEY,
    MANIFEST_KEY,
    SHARD_PREFIX,
    SIDECAR_PREFIX,
    SPEC_KEY,
    dumps,
    shard_key,
    sidecar_key,
)
from pelagos.data_pipelines.store.object_store import ObjectStore
from pelagos.data_pipelines.store.schema import FORMAT_NAME, FORMAT_VERSION, DatasetSpec
from pelagos.data_pipelines.store.shards import index_bytes_length
from pelagos.data_pipelines.store.staging import interrupted_replacement
from pelagos.data_pipelines.store.stored_documents import read_begun, read_head, read_manifest

Statistics = dict[str, dict[str, dict[str, float]]]  # split, field, statistic


@dataclass(frozen=True)
class ShardRecord:
    """One shard as it was written. The checksums are crc32c."""

    key: str
    size: int
    crc32c: int  # of the whole object
    index_crc32c: int  # of the index at its end


@dataclass(frozen=True)
class Manifest:
    """A finished dataset: its spec, its shards, its statistics and the parameters' checksums."""

    spec: DatasetSpec
    shards: tuple[ShardRecord, ...]
    statistics: Statistics
    parameters_crc32c: dict[str, int]

    @property
    def fingerprint(self) -> str:
        """SHA-256 over everything here, and through the checksums over every byte of data."""
        canonical = json.dumps(self._content(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()

    def to_bytes(self) -> bytes:
        return dumps({**self._content(), "fingerprint": self.fingerprint})

    def _content(self) -> dict[str, Any]:
        return {
            "format": FORMAT_NAME,
            "format_version": self.spec.format_version,
            "spec": self.spec.to_json(),
            "shards": [dataclasses.asdict(shard) for shard in self.shards],
            "statistics": self.statistics,
            "parameters_crc32c": self.parameters_crc32c,
        }


def load_manifest(store: ObjectStore) -> Manifest:
    """Read and check a manifest.

    Raises:
        DatasetError: there is no dataset, it is unfinished, it is of a later version of the
            format, or the manifest is damaged.
    """
    try:
        content = store.read(MANIFEST_KEY)
    except ObjectMissingError as error:
        raise DatasetError(_why_no_manifest(store)) from error
    try:
        name, version = read_head(content)
        if name != FORMAT_NAME:
            raise DatasetError(f"{store.uri} has the format {name!r}, expected {FORMAT_NAME!r}")
        if version > FORMAT_VERSION:
            raise DatasetError(
                f"{store.uri} has version {version} of the format; this Pelagos reads versions up "
                f"to {FORMAT_VERSION}. Upgrade Pelagos"
            )
        values = read_manifest(content)
        manifest = Manifest(
            DatasetSpec.from_json(values["spec"]),
            tuple(ShardRecord(**shard) for shard in values["shards"]),
            values["statistics"],
            values["parameters_crc32c"],
        )
        _require_own_shards(manifest)
        require_statistics(manifest.statistics, manifest.spec)
        stored_fingerprint = values["fingerprint"]
    except DatasetError:
        raise
    except (ValueError, KeyError, TypeError) as error:
        raise DatasetError(
            f"{store.address(MANIFEST_KEY)} is damaged ({type(error).__name__}: {error}): restore "
            f"it from a copy, or write the dataset again"
        ) from error
    if manifest.fingerprint != stored_fingerprint:
        raise DatasetError(
            f"{store.address(MANIFEST_KEY)} was changed after it was written: its fingerprint is "
            f"{manifest.fingerprint[:16]}…, but it records {stored_fingerprint[:16]}…"
        )
    return manifest


def _require_own_shards(manifest: Manifest) -> None:
    """Raise ValueError unless the shards are those that the layout gives the spec.

    A key of another kind would be a path of somebody else's choice.
    """
    spec, shards = manifest.spec, manifest.shards
    if len(shards) != spec.num_shards:
        raise ValueError(f"shards: got {len(shards)}, but the spec makes {spec.num_shards}")
    least = index_bytes_length(spec)
    for number, shard in enumerate(shards):
        if shard.key != shard_key(spec, number):
            raise ValueError(
                f"shards.{number}.key: {shard.key!r}, expected {shard_key(spec, number)!r} from the "
                "layout"
            )
        if shard.size < least:
            raise ValueError(
                f"shards.{number}.size: {shard.size}, but its index alone takes {least}"
            )


def check_shard_sizes(store: ObjectStore, manifest: Manifest) -> None:
    """Raises DatasetError naming the shards that are missing or have another size.

    A last shard that is not full may be longer: it is being appended to. Its first bytes are those
    that the manifest describes, and its index, which is among them, is checked when it is read.
    """
    growing = manifest.shards[-1].key if manifest.spec.is_last_shard_partial else None
    sizes = store.sizes(SHARD_PREFIX, [shard.key for shard in manifest.shards])
    problems = [
        f"{shard.key} is missing"
        if shard.key not in sizes
        else f"{shard.key} has {sizes[shard.key]} bytes, but {shard.size} were written"
        for shard in manifest.shards
        if sizes.get(shard.key) != shard.size
        and not (shard.key == growing and sizes.get(shard.key, -1) > shard.size)
    ]
    if problems:
        shown = problems[:5] + (["…"] if len(problems) > 5 else [])
        raise DatasetError(
            f"dataset {store.uri} is damaged: {len(problems)} of {len(manifest.shards)} shards are "
            f"missing or cut short:\n  " + "\n  ".join(shown) + "\nrestore them from a copy, or "
            "write the dataset again"
        )


def written_shards(store: ObjectStore, spec: DatasetSpec) -> set[int]:
    """Shards whose data and sidecar are both there (the sidecar is written second)."""
    sidecars = store.sizes(SIDECAR_PREFIX)
    shards = store.sizes(SHARD_PREFIX)
    return {
        shard
        for shard in range(spec.num_shards)
        if sidecar_key(shard) in sidecars and shard_key(spec, shard) in shards
    }


def _why_no_manifest(store: ObjectStore) -> str:
    """The contents of a place that has no manifest, and the remedy."""
    try:
        spec = DatasetSpec.from_json(read_begun(store.read(SPEC_KEY))["spec"])
    except ObjectMissingError:
        pass
    except (ValueError, KeyError, TypeError) as error:
        return (
            f"{store.address(SPEC_KEY)} is damaged ({error}), and the manifest is missing: write "
            "the dataset anew"
        )
    else:
        count = len(written_shards(store, spec))
        return (
            f"dataset {store.uri} is unfinished: {count} of {spec.num_shards} shards are written, "
            "and the manifest is missing. Run the job that makes it again: it writes the "
            f"{spec.num_shards - count} missing shards and finishes"
        )
    interrupted = interrupted_replacement(store)
    if interrupted:
        return interrupted
    try:
        store.read(GROUP_KEY)
    except ObjectMissingError:
        return f"no dataset at {store.uri}: check the path"
    return (
        f"{store.uri} is a Zarr group but not a Pelagos dataset (it has no {MANIFEST_KEY}): "
        f"convert it first"
    )
