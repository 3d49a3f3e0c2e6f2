"""Objects as files below one folder: those of datasets, read by ranges, and small ones, read whole.

Both look at where a path leads before they touch it, and both write under another name first: a reader
sees the old file or the new one, never a part.
"""

from __future__ import annotations

import contextlib
import os
import stat
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from pelagos.infra.storage.files import (
    files_below,
    open_regular,
    read_opened,
    read_regular,
    replace_durably,
    sync_directory,
)
from pelagos.infra.storage.read_policy import ReadCounters
from pelagos.infra.storage.remote import (
    Bytes,
    Range,
    RemoteStore,
    StorageError,
    StorageMissingError,
    is_remote,
    storage_options,
)

TEMPORARY_MARK = ".pelagos-partial-"
MAX_OPEN_FILES = 128  # per store; further files are opened for each read


class ObjectStore(Protocol):
    """Whole objects by key. `create` is the one operation that two callers cannot both win."""

    uri: str

    def create(self, key: str, content: bytes) -> bool:
        """Write an object unless one of that key exists; return whether this call wrote it."""

    def write(self, key: str, content: bytes) -> None:
        """Write or replace an object."""

    def read(self, key: str) -> bytes:
        """Return an object's content. Raises `StorageMissingError`."""

    def sizes(self, prefix: str = "") -> dict[str, int]:
        """Return the size of every object whose key starts with the folder `prefix`."""

    def delete(self, keys: Sequence[str]) -> None:
        """Remove objects; one that does not exist is no error."""


class _Folder:
    """Files below one folder, by key.

    Attributes:
        looks_once: whether each folder is looked at once for links that lead out, as is enough where
            nobody else writes, or at every access.
    """

    looks_once = False

    def __init__(self, path: str | Path, error: type[Exception]) -> None:
        self.root = Path(path).expanduser().absolute()
        self._error = error
        self._inside: set[Path] = set()  # folders that no link leads out of

    def path(self, key: str) -> Path:
        """Return the file of a key.

        Raises:
            the store's error: the key, or a link, leads out of the folder.
        """
        inner = Path(os.path.normpath(key))  # alone, as the root may hold `..`
        path = self.root / inner
        if inner.is_absolute() or inner.parts[:1] == ("..",) or "\0" in key:
            raise self._error(
                f"{key!r} leads out of {self.root}; Pelagos neither reads nor writes there"
            )
        if path != self.root and path.parent not in self._inside:
            require_inside(self.root, path.parent, self._error)
            if self.looks_once:
                self._inside.add(path.parent)
        return path

    def _create(self, key: str, content: bytes) -> bool:
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


class DirectoryStore(_Folder):
    """Small objects in a directory that others write too: no link among them is followed.

    Raises:
        StorageError: from every method, where the directory cannot be read or written.
        StorageMissingError: from `read`, where there is no such file.
    """

    def __init__(self, uri: str) -> None:
        super().__init__(uri.removeprefix("file://"), StorageError)
        self.uri = str(self.root)

    def create(self, key: str, content: bytes) -> bool:
        with _explained(self.path(key)):
            return self._create(key, content)

    def write(self, key: str, content: bytes, mode: int = 0o666) -> None:
        path = self.path(key)
        with _explained(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            replace_durably(path, content, mode)

    def read(self, key: str) -> bytes:
        path = self.path(key)
        with _explained(path):
            return read_regular(path)

    def sizes(self, prefix: str = "") -> dict[str, int]:
        found = {}
        for path in sorted(files_below(self.path(prefix))):
            if path.name.endswith(".tmp") or TEMPORARY_MARK in path.name:
                continue
            with contextlib.suppress(FileNotFoundError):  # removed since it was listed
                status = path.lstat()
                if stat.S_ISREG(status.st_mode):  # `read` rejects others: they are no objects
                    found[str(path.relative_to(self.root))] = status.st_size
        return found

    def delete(self, keys: Sequence[str]) -> None:
        for key in keys:
            path = self.path(key)
            with _explained(path):
                path.unlink(missing_ok=True)


class LocalStore(_Folder):
    """The files of a dataset, also over links within its folder. Reads with `preadv` from open files.

    Args:
        error: raised where a path leads out of the folder, or a file is cut short.
        missing: raised where a file does not exist.
    """

    looks_once = True
    coalesce_gap_bytes = 32 * 2**10

    def __init__(
        self,
        path: str | Path,
        error: type[Exception] = StorageError,
        missing: type[Exception] = StorageMissingError,
    ) -> None:
        super().__init__(path, error)
        self.uri = str(path)
        self.counters = ReadCounters()
        self._missing_error = missing
        self._lock = threading.Lock()
        self._descriptors: dict[str, int] = {}

    def address(self, key: str) -> str:
        return str(self.root / key)

    def _open(self, key: str) -> int:
        """A descriptor that reads the file of a key, also over a link to another file of the folder."""
        path = self.path(key)
        is_link = path.is_symlink()
        if is_link:
            require_inside(self.root, path, self._error)
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
        return self._create(key, content)

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
                raise self._error(
                    f"{self.address(key)} ends at byte {offset + done}, but bytes up to "
                    f"{offset + length} are needed: the file is cut short"
                )
            done += count

    def _missing(self, key: str) -> Exception:
        return self._missing_error(f"{self.address(key)} does not exist")


def require_inside(root: Path, path: Path, error: type[Exception] = StorageError) -> None:
    """Raise an error where a link leads out of a folder.

    The folder itself may be a link: that is the choice of the user who names it.
    """
    found, place = os.path.realpath(path), os.path.realpath(root)
    if found != place and not found.startswith(f"{place.rstrip(os.sep)}{os.sep}"):
        raise error(
            f"{path} leads out of {root} over a link, to {found}; Pelagos neither reads nor writes "
            f"there. Put the file itself into {root}, or make that folder as a whole a link"
        )


def _link(source: Path, target: Path) -> None:
    os.link(source, target)
    source.unlink()


def open_store(uri: str, endpoint_url: str | None = None, region: str | None = None) -> ObjectStore:
    """Return the objects under a directory or an object-store prefix."""
    if is_remote(uri):
        return RemoteStore(uri, storage_options(uri, endpoint_url, region))
    return DirectoryStore(uri)


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise StorageMissingError(f"{path} does not exist") from error
    except OSError as error:
        raise StorageError(
            f"{path}: {error.strerror}. Check that the directory exists and is writable"
        ) from error
