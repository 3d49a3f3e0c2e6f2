"""A dataset from one place to another, byte by byte, every checksum compared on the way."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from pelagos.data_pipelines.store import Dataset, DatasetError
from pelagos.data_pipelines.store.errors import ObjectMissingError
from pelagos.data_pipelines.store.layout import (
    GROUP_KEY,
    MANIFEST_KEY,
    SIDECAR_PREFIX,
    SPEC_KEY,
    array_documents,
    dumps,
    is_earlier,
)
from pelagos.data_pipelines.store.manifest import ShardRecord, load_manifest
from pelagos.data_pipelines.store.object_store import ObjectStore, open_store
from pelagos.data_pipelines.store.shards import CHECKSUM_BYTES, crc32c, index_bytes_length
from pelagos.infra.json_text import parse_json

MARKER_KEY = ".pelagos/copy.json"  # describes the copy under way here
_THREADS = 3  # each holds a shard


def copy(
    dataset: Dataset,
    destination: str,
    storage_options: dict[str, Any] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> int:
    """Copy a dataset; returns the number of shards that this call wrote.

    An interrupted copy continues with the missing shards. The manifest is written
    last, so the copy is complete or does not open. It has the fingerprint of the original.

    Args:
        destination: a path or URI at which there is nothing, or an unfinished copy of the same.
        storage_options: of the destination.
        progress: called as `progress(shards done, shards in all)`.

    Raises:
        ValueError: one place lies inside the other.
        FileExistsError: something else is there.
        DatasetError: a shard of the original, or of the copy, does not have its checksum.
    """
    _refuse_inside(dataset.uri, destination)
    target = open_store(destination, storage_options)
    if _is_done(target, dataset, destination):
        return 0
    present = target.sizes()
    shards = dataset.manifest.shards
    missing = [shard for shard in shards if not _is_there(target, dataset, shard, present)]
    done = len(shards) - len(missing)
    with ThreadPoolExecutor(_THREADS) as pool:
        for _ in pool.map(lambda shard: _copy_shard(dataset, target, shard), missing):
            done += 1
            if progress is not None:
                progress(done, len(shards))
    for key in _small_keys(dataset):
        target.write(key, dataset.store.read(key))
    target.write(MANIFEST_KEY, dataset.manifest.to_bytes())
    target.delete([MARKER_KEY])
    return len(missing)


def _refuse_inside(source: str, destination: str) -> None:
    """A dataset in another's folder would be taken for a part of it."""
    places = [_place(source), _place(destination)]
    for inner, outer in (places, places[::-1]):
        if inner != outer and inner.startswith(outer.rstrip("/") + "/"):
            raise ValueError(
                f"cannot copy {source} to {destination}: one lies inside the other; choose a "
                f"destination next to it"
            )


def _place(uri: str) -> str:
    scheme, separator, rest = uri.partition("://")
    if separator and scheme != "file":
        return uri.rstrip("/")
    return Path(rest if separator else uri).expanduser().resolve().as_posix()


def _is_done(target: ObjectStore, dataset: Dataset, destination: str) -> bool:
    """Whether the copy is there; marks the destination as one if nothing is."""
    try:
        manifest = load_manifest(target)
    except DatasetError as error:
        if not isinstance(error.__cause__, ObjectMissingError):
            raise FileExistsError(f"{destination} holds a damaged dataset ({error})") from error
    else:
        if manifest.fingerprint != dataset.fingerprint:
            raise FileExistsError(f"{destination} holds another dataset: choose another place")
        return True
    wanted = {"fingerprint": dataset.fingerprint}
    try:
        found = parse_json(target.read(MARKER_KEY))
    except ObjectMissingError:
        if target.sizes():
            raise FileExistsError(
                f"{destination} holds something other than an unfinished copy: choose another place"
            ) from None
        target.write(MARKER_KEY, dumps(wanted))
        return False
    if found != wanted:
        raise FileExistsError(
            f"{destination} holds an unfinished copy of another dataset: remove it, or choose "
            f"another place"
        )
    return False


def _is_there(
    target: ObjectStore, dataset: Dataset, shard: ShardRecord, sizes: dict[str, int]
) -> bool:
    """Whether a shard was copied whole: of its size, and with its index (a put is all or nothing)."""
    return sizes.get(shard.key) == shard.size and _index_is_right(target, dataset, shard)


def _index_is_right(target: ObjectStore, dataset: Dataset, shard: ShardRecord) -> bool:
    length = index_bytes_length(dataset.spec)
    (tail,) = target.read_ranges(shard.key, [(shard.size - length, length)])
    return crc32c(tail[:-CHECKSUM_BYTES].data) == shard.index_crc32c


def _copy_shard(dataset: Dataset, target: ObjectStore, shard: ShardRecord) -> None:
    (found,) = dataset.store.read_ranges(shard.key, [(0, shard.size)])
    content = found.tobytes()
    if crc32c(content) != shard.crc32c:
        raise DatasetError(
            f"dataset {dataset.uri}: {shard.key} is damaged: its checksum differs from the "
            "manifest's. The copy is unfinished; `pelagos data verify` lists all damage"
        )
    target.write(shard.key, content)
    if not _index_is_right(target, dataset, shard):
        raise DatasetError(
            f"{target.address(shard.key)} differs from the bytes written there: copy again"
        )


def _small_keys(dataset: Dataset) -> list[str]:
    """Everything but shards and manifest: metadata, vectors, and the writer's notes if there are any."""
    try:
        earlier = is_earlier(parse_json(dataset.store.read(GROUP_KEY)))
    except (ValueError, AttributeError) as error:
        address = dataset.store.address(GROUP_KEY)
        raise DatasetError(f"{address} is damaged ({error}), so nothing was copied") from error
    documents = array_documents(dataset.spec, earlier=earlier)
    keys = [GROUP_KEY, *(f"{path}/zarr.json" for path in documents)]
    keys += [f"{path}/c/0" for path in documents if path not in ("data", "parameters")]
    notes = dataset.store.sizes(SIDECAR_PREFIX)
    return [*keys, *sorted(notes), SPEC_KEY] if notes else keys
