"""The same dataset through zarr itself, with one change: a missing chunk is an error.

Zarr's rule is that an absent chunk has the fill value. For a finished dataset it means
that a file was lost.
"""

from __future__ import annotations

import contextlib
import stat
import threading
from pathlib import Path
from typing import Any

import zarr
from zarr.abc.store import ByteRequest, Store
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import FsspecStore, LocalStore, WrapperStore

from pelagos.data_pipelines.store.errors import DatasetError
from pelagos.data_pipelines.store.layout import SHARD_PREFIX
from pelagos.infra.storage.addresses import (
    reject_credentials,
    reject_empty_parts,
    reject_references,
)
from pelagos.infra.storage.local import require_inside
from pelagos.infra.storage.read_policy import split_options
from pelagos.infra.storage.remote import S3_SCHEMES, s3_options

METADATA_NAMES = ("zarr.json", ".zgroup", ".zarray", ".zattrs", ".zmetadata")


class StrictStore(WrapperStore[Store]):
    """A store in which every chunk that is asked for must exist.

    Attributes:
        bytes_read: of chunks so far.
        folder: where its files are; None: elsewhere. No pipe or device among them is read.
        is_closed: no link out of the folder is followed.
    """

    def __init__(
        self, store: Store, folder: Path | None = None, *, is_closed: bool = False
    ) -> None:
        super().__init__(store)
        self.folder, self.is_closed = folder, is_closed
        self.bytes_read = 0
        self._lock = threading.Lock()

    async def get(
        self,
        key: str,
        prototype: BufferPrototype,
        byte_range: ByteRequest | None = None,
    ) -> Buffer | None:
        self._require_file(key)
        found = await super().get(key, prototype, byte_range)
        if key.rpartition("/")[2] in METADATA_NAMES:
            return found
        if found is None:
            what = "shard" if key.startswith(SHARD_PREFIX + "/") else "chunk"
            raise DatasetError(f"{what} {key} of {self._store} is missing")
        with self._lock:
            self.bytes_read += len(found)
        return found

    def _require_file(self, key: str) -> None:
        """Raise DatasetError if a local file is a pipe or a device, or lies elsewhere.

        Reading a pipe or a device would never end.
        """
        if self.folder is None:
            return
        path = self.folder / key
        with contextlib.suppress(OSError):  # absent: reported by the code that needs it
            if not stat.S_ISREG(path.stat().st_mode) and not path.is_dir():
                raise DatasetError(f"{path} is no regular file")
            if self.is_closed:
                require_inside(self.folder, path, DatasetError)


def open_store(
    uri: str, storage_options: dict[str, Any] | None = None, *, is_closed: bool = False
) -> StrictStore:
    """The objects of a path or URI as Zarr sees them, read-only.

    Args:
        is_closed: no link out of a local folder is followed.
    """
    reject_references(uri, DatasetError)
    reject_credentials(uri, DatasetError)
    reject_empty_parts(uri, DatasetError, split_options(storage_options)[0].backend)
    scheme, separator, rest = uri.partition("://")
    if not separator or scheme == "file":
        folder = Path(rest if separator else uri)
        return StrictStore(LocalStore(folder, read_only=True), folder, is_closed=is_closed)
    options = filesystem_options(scheme, storage_options)
    return StrictStore(FsspecStore.from_url(uri, storage_options=options, read_only=True))


def filesystem_options(scheme: str, storage_options: dict[str, Any] | None) -> dict[str, Any]:
    """The options that fsspec gets for a scheme."""
    policy, options = split_options(storage_options)
    if scheme in S3_SCHEMES:
        options = s3_options(options, policy)
    options["skip_instance_cache"] = True  # it would outlive a change of credentials
    return options


def open_group(uri: str, storage_options: dict[str, Any] | None = None) -> zarr.Group:
    """The group of a dataset, read-only."""
    return zarr.open_group(open_store(uri, storage_options, is_closed=True), mode="r")
