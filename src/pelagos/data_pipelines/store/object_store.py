"""Named bytes: the few operations on files or objects that a dataset needs.

`ObjectStore` is the protocol. `LocalStore`, `RemoteStore` (S3 and everything else that fsspec knows) and
`ObstoreStore`, which reads faster, are in `pelagos.infra.storage`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from pelagos.data_pipelines.store.errors import DatasetError, ObjectMissingError
from pelagos.infra.storage.local import LocalStore
from pelagos.infra.storage.obstore_remote import open_remote
from pelagos.infra.storage.read_policy import ReadCounters
from pelagos.infra.storage.remote import Bytes, Range, RemoteStore

__all__ = ["Bytes", "LocalStore", "ObjectStore", "Range", "RemoteStore", "open_store"]


class ObjectStore(Protocol):
    """A folder of objects named by keys such as `data/c/0/0/0/0/0`. Safe to use from threads."""

    uri: str
    coalesce_gap_bytes: int  # reading this many unneeded bytes is cheaper than another request
    counters: ReadCounters

    def address(self, key: str) -> str:
        """The full address of an object, for messages."""
        ...

    def read(self, key: str) -> bytes:
        """A whole object. Raises ObjectMissingError, or DatasetError when it cannot be had."""
        ...

    def read_ranges(
        self, key: str, ranges: Sequence[Range], scratch: Bytes | None = None
    ) -> list[Bytes]:
        """Byte ranges of one object; a range that ends past the object's end is an error.

        `scratch`, as long as all ranges together, may hold the result: reusing memory saves the
        page faults of a fresh allocation, which cost as much as the reading itself.
        """
        ...

    def write(self, key: str, content: bytes) -> None:
        """Put an object there whole: a reader sees the old one or the new one, never a part."""
        ...

    def create(self, key: str, content: bytes) -> bool:
        """Write an object unless one of that key exists; return whether this call wrote it.

        Contents must differ between callers: where an answer was lost, they identify the caller.
        """
        ...

    def sizes(self, prefix: str = "", expected: Sequence[str] = ()) -> dict[str, int]:
        """Size in bytes of every object whose key starts with the folder `prefix`.

        A store that cannot list (plain HTTP) looks for the `expected` keys alone.
        """
        ...

    def delete(self, keys: Sequence[str]) -> None:
        """Remove objects; an absent one is no error."""
        ...

    def close(self) -> None: ...


def open_store(uri: str, storage_options: dict[str, Any] | None = None) -> ObjectStore:
    """The store for a path, a `file://` URI, or any other scheme that fsspec knows (`s3://`)."""
    scheme, separator, rest = uri.partition("://")
    if not separator:
        return LocalStore(uri, error=DatasetError, missing=ObjectMissingError)
    if scheme == "file":
        return LocalStore(rest, error=DatasetError, missing=ObjectMissingError)
    return open_remote(uri, storage_options, error=DatasetError, missing=ObjectMissingError)
