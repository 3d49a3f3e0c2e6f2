"""The same dataset through zarr itself, with one change: a missing chunk is an error.

Zarr's rule is that a chunk which is not there has the fill value. For a finished dataset it means
that a file was lost.
"""

from __future__ import annotations

import threading
from typing import Any

import zarr
from zarr.abc.store import ByteRequest, Store
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import FsspecStore, LocalStore, WrapperStore

from pelagos.data_pipelines.store.errors import DatasetError
from pelagos.data_pipelines.store.layout import SHARD_PREFIX
from pelagos.infra.addresses import reject_credentials, reject_empty_parts, reject_references
from pelagos.infra.object_store import S3_SCHEMES, s3_options
from pelagos.infra.read_policy import split_options

METADATA_NAMES = ("zarr.json", ".zgroup", ".zarray", ".zattrs", ".zmetadata")


class StrictStore(WrapperStore[Store]):
    """A store in which every chunk that is asked for must exist.

    Attributes:
        bytes_read: of chunks so far.
    """

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self.bytes_read = 0
        self._lock = threading.Lock()

    async def get(
        self,
        key: str,
        prototype: BufferPrototype,
        byte_range: ByteRequest | None = None,
    ) -> Buffer | None:
        found = await super().get(key, prototype, byte_range)
        if key.rpartition("/")[2] in METADATA_NAMES:
            return found
        if found is None:
            what = "shard" if key.startswith(SHARD_PREFIX + "/") else "chunk"
            raise DatasetError(f"{what} {key} of {self._store} is missing")
        with self._lock:
            self.bytes_read += len(found)
        return found


def open_store(uri: str, storage_options: dict[str, Any] | None = None) -> StrictStore:
    """The objects of a path or URI as Zarr sees them, read-only."""
    reject_references(uri, DatasetError)
    reject_credentials(uri, DatasetError)
    reject_empty_parts(uri, DatasetError, split_options(storage_options)[0].backend)
    scheme, separator, rest = uri.partition("://")
    inner: Store
    if not separator or scheme == "file":
        inner = LocalStore(rest if separator else uri, read_only=True)
    else:
        options = filesystem_options(scheme, storage_options)
        inner = FsspecStore.from_url(uri, storage_options=options, read_only=True)
    return StrictStore(inner)


def filesystem_options(scheme: str, storage_options: dict[str, Any] | None) -> dict[str, Any]:
    """What fsspec is given for a scheme."""
    policy, options = split_options(storage_options)
    if scheme in S3_SCHEMES:
        options = s3_options(options, policy)
    options["skip_instance_cache"] = True  # it would outlive a change of credentials
    return options


def open_group(uri: str, storage_options: dict[str, Any] | None = None) -> zarr.Group:
    """The group of a dataset, read-only."""
    return zarr.open_group(open_store(uri, storage_options), mode="r")
