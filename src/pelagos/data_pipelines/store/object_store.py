"""Named bytes: the few operations on files or objects that a dataset needs, and local files.

`ObjectStore` is the protocol. `LocalStore` is here; `RemoteStore` (S3 and everything else that fsspec
knows) and `ObstoreStore`, which reads faster, are in `pelagos.infra`.
"""

from __future__ import annotations

import contextlib
import os
import threading
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from pelagos.data_pipelines.store.errors import DatasetError, ObjectMissingError
from pelagos.infra.storage.files import open_regular, read_opened, sync_directory
from pelagos.infra.storage.obstore_remote import open_remote
from pelagos.infra.storage.read_policy import ReadCounters
from pelagos.infra.storage.remote import Bytes, Range, RemoteStore

TEMPORARY_MARK = ".pelagos-partial-"
MAX_OPEN_FILES = 128  # per store; further files are opened for each read

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
        return LocalStore(uri)
    if scheme == "file":
        return LocalStore(rest)
    return open_remote(uri, storage_options, error=DatasetError, missing=ObjectMissingError)


class LocalStore:
    """Files under one folder. Reads with `preadv` from files kept open."""

    coalesce_gap_bytes = 32 * 2**10

    def __init__(self, path: str | Path) -> None:
        self.root = Path(path).expanduser().absolute()
        self.uri = str(path)
        self.counters = ReadCounters()
        self._lock = threading.Lock()
        self._descriptors: dict[str, int] = {}
        self._inside: set[Path] = set()  # folders that no link leads out of

    def address(self, key: str) -> str:
        return str(self.root / key)

    def path(self, key: str) -> Path:
        """The file of a key. Raises DatasetError: the key, or a link, leads out of the folder."""
        path = Path(os.path.normpath(self.root / key))
        if not path.is_relative_to(self.root) or "\0" in key:
            raise DatasetError(
                f"{key!r} leads out of {self.root}; Pelagos neither reads nor writes there"
            )
        if path != self.root and path.parent not in self._inside:
            require_inside(self.root, path.parent)
            self._inside.add(path.parent)
        return path

    def _open(self, key: str) -> int:
        """A descriptor that reads the file of a key, also over a link to another file of the folder."""
        path = self.path(key)
        is_link = path.is_symlink()
        if is_link:
            require_inside(self.root, path)
        return open_regular(path, follow_links=is_link)

    def read(self, key: str) -> bytes:
        try:
            return read_opened(self._open(key), self.path(key))
        except (FileNotFoundError, NotADirectoryError) as error:
            raise self._missing(key) from error

    def read_ranges(
        self, key: str, ranges: Sequence[Range], scratch: Bytes | None = None
    ) -> list[Bytes]:
        if scratch is None:
            scratch = np.empty(sum(length for _, length in ranges), np.uint8)
        descriptor, is_kept = self._descriptor(key)
        try:
            found = []
            for offset, length in ranges:
                buffer, scratch = scratch[:length], scratch[length:]
                self._read_range(descriptor, key, offset, buffer)
                found.append(buffer)
            return found
        finally:
            if not is_kept:
                os.close(descriptor)

    def write(self, key: str, content: bytes) -> None:
        self._put(key, content, os.replace)

    def create(self, key: str, content: bytes) -> bool:
        try:
            self._put(key, content, _link)  # unlike a rename, it fails where the name is taken
        except FileExistsError:
            return False
        return True

    def _put(self, key: str, content: bytes, place: Callable[[Path, Path], None]) -> None:
        path = self.path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f"{path.name}{TEMPORARY_MARK}{uuid.uuid4().hex}")
        try:
            with partial.open("xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            place(partial, path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
        sync_directory(path.parent)

    def sizes(self, prefix: str = "", expected: Sequence[str] = ()) -> dict[str, int]:
        found: dict[str, int] = {}
        for folder, _, files in os.walk(self.path(prefix)):
            for name in files:
                path = Path(folder) / name
                # removed since, or a link that leads nowhere
                with contextlib.suppress(FileNotFoundError):
                    found[path.relative_to(self.root).as_posix()] = path.stat().st_size
        return found

    def delete(self, keys: Sequence[str]) -> None:
        for key in keys:
            self.path(key).unlink(missing_ok=True)

    def close(self) -> None:
        with self._lock:
            for descriptor in self._descriptors.values():
                os.close(descriptor)
            self._descriptors.clear()

    def __del__(self) -> None:
        self.close()

    def _descriptor(self, key: str) -> tuple[int, bool]:
        """An open file, and whether it stays open."""
        known = self._descriptors.get(key)
        if known is not None:
            return known, True
        try:
            opened = self._open(key)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise self._missing(key) from error
        with self._lock:
            if key in self._descriptors:  # another thread was faster
                os.close(opened)
                return self._descriptors[key], True
            if len(self._descriptors) >= MAX_OPEN_FILES:
                return opened, False
            self._descriptors[key] = opened
            return opened, True

    def _read_range(self, descriptor: int, key: str, offset: int, buffer: Bytes) -> None:
        length = len(buffer)
        done = 0
        while done < length:
            count = os.preadv(descriptor, [buffer.data[done:]], offset + done)
            if count == 0:
                raise DatasetError(
                    f"{self.address(key)} ends at byte {offset + done}, but bytes up to "
                    f"{offset + length} are needed: the file is cut short"
                )
            done += count

    def _missing(self, key: str) -> ObjectMissingError:
        return ObjectMissingError(f"{self.address(key)} does not exist")


def require_inside(root: Path, path: Path) -> None:
    """Raise DatasetError where a link leads out of a dataset's folder.

    The folder itself may be a link: that is the choice of the user who names it.
    """
    found, place = os.path.realpath(path), os.path.realpath(root)
    if found != place and not found.startswith(f"{place.rstrip(os.sep)}{os.sep}"):
        raise DatasetError(
            f"{path} leads out of the dataset over a link, to {found}; Pelagos neither reads nor "
            "writes there. Put the file itself into the dataset, or make the dataset's folder as a "
            "whole a link"
        )


def _link(source: Path, target: Path) -> None:
    os.link(source, target)
    source.unlink()
