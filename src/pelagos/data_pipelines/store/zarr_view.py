"""The same dataset through zarr itself, with one change: a missing chunk is an error.

Zarr's rule is that a chunk which is not there has the fill value. For a finished dataset it means
that a file was lost.
"""

from __future__ import annotations

from typing import Any

import zarr
from zarr.abc.store import ByteRequest, Store
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import FsspecStore, LocalStore, WrapperStore

from pelagos.data_pipelines.store.errors import DatasetError
from pelagos.data_pipelines.store.layout import SHARD_PREFIX
from pelagos.infra.object_store import S3_SCHEMES, s3_options
from pelagos.infra.read_policy import split_options


class StrictStore(WrapperStore[Store]):
    """A store in which the shards of `data` must exist."""

    async def get(
        self,
        key: str,
        prototype: BufferPrototype,
        byte_range: ByteRequest | None = None,
    ) -> Buffer | None:
        found = await super().get(key, prototype, byte_range)
        if found is None and key.startswith(SHARD_PREFIX + "/"):
            raise DatasetError(f"shard {key} of {self._store} is missing")
        return found


def open_group(uri: str, storage_options: dict[str, Any] | None = None) -> zarr.Group:
    """The group of a dataset, read-only."""
    scheme, separator, rest = uri.partition("://")
    inner: Store
    if not separator or scheme == "file":
        inner = LocalStore(rest if separator else uri, read_only=True)
    else:
        policy, options = split_options(storage_options)
        if scheme in S3_SCHEMES:
            options = s3_options(options, policy)
        options["skip_instance_cache"] = True  # it would outlive a change of credentials
        inner = FsspecStore.from_url(uri, storage_options=options, read_only=True)
    return zarr.open_group(StrictStore(inner), mode="r")
