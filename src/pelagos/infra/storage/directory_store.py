"""Small objects in a directory, with the operations that `RemoteStore` has for an object store."""

import contextlib
import os
import stat
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from pelagos.infra.storage.files import files_below, read_regular, replace_durably, sync_directory
from pelagos.infra.storage.remote import (
    RemoteStore,
    StorageError,
    StorageMissingError,
    is_remote,
    storage_options,
)


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


class DirectoryStore:
    """Objects as files under a directory that all their users see.

    Raises:
        StorageError: from every method, where the directory cannot be read or written.
        StorageMissingError: from `read`, where there is no such file.
    """

    def __init__(self, uri: str) -> None:
        self.root = Path(uri.removeprefix("file://")).expanduser().absolute()
        self.uri = str(self.root)

    def create(self, key: str, content: bytes) -> bool:
        path = self._path(key)
        temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
        with _explained(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                with temporary.open("xb") as file:
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
                # unlike a rename, a link fails where the name is taken, also over NFS
                os.link(temporary, path)
            except FileExistsError:
                return False
            finally:
                temporary.unlink(missing_ok=True)
            sync_directory(path.parent)
        return True

    def write(self, key: str, content: bytes, mode: int = 0o666) -> None:
        path = self._path(key)
        with _explained(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            replace_durably(path, content, mode)

    def read(self, key: str) -> bytes:
        path = self._path(key)
        with _explained(path):
            return read_regular(path)

    def sizes(self, prefix: str = "") -> dict[str, int]:
        found = {}
        for path in sorted(files_below(self._path(prefix))):
            with contextlib.suppress(FileNotFoundError):  # removed since it was listed
                status = path.lstat()  # files that `read` rejects, such as links, are no objects
                if not path.name.endswith(".tmp") and stat.S_ISREG(status.st_mode):
                    found[str(path.relative_to(self.root))] = status.st_size
        return found

    def delete(self, keys: Sequence[str]) -> None:
        for key in keys:
            path = self._path(key)
            with _explained(path):
                path.unlink(missing_ok=True)

    def _path(self, key: str) -> Path:
        path = Path(os.path.normpath(self.root / key))
        if not path.is_relative_to(self.root):
            raise StorageError(f"{key!r} leads out of {self.root}")
        found = path if path == self.root else path.parent
        if not found.resolve().is_relative_to(self.root.resolve()):
            raise StorageError(
                f"{found} leads out of {self.root} over a link, to {found.resolve()}; Pelagos "
                "neither reads nor writes there. The storage as a whole may be a link, but its "
                "folders may not"
            )
        return path


def open_store(uri: str, endpoint_url: str | None = None, region: str | None = None) -> ObjectStore:
    """Return the objects under a directory or an object-store prefix."""
    if is_remote(uri):
        return RemoteStore(uri, storage_options(uri, endpoint_url, region))
    return DirectoryStore(uri)


@contextlib.contextmanager
def _explained(path: Path) -> Any:
    try:
        yield
    except FileNotFoundError as error:
        raise StorageMissingError(f"{path} does not exist") from error
    except OSError as error:
        raise StorageError(
            f"{path}: {error.strerror}. Check that the directory exists and is writable"
        ) from error
