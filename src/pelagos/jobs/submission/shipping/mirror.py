"""Keeping a directory in object storage, for clusters without a disk that everyone sees.

STORAGE/runs/RUN/files/PATH          a file, whole
STORAGE/runs/RUN/parts/PATH/00000    a growing file (records, logs) in parts of 1 MiB, so that each
                                     push sends only its end
"""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from pelagos.infra.memory_budget import require_affordable
from pelagos.infra.storage.files import below, files_below, replace_durably
from pelagos.infra.storage.local import ObjectStore
from pelagos.infra.storage.remote import StorageError

PART_BYTES = 2**20
GROWING_SUFFIXES = (".jsonl", ".log")
# checkpoints have a place of their own in storage; Ray's records belong to one launch
LEFT_OUT = ("checkpoints", "ray")

Signature = tuple[int, int, int]  # inode, size, time of change


class Mirror:
    """Pushes the changes of a directory to `prefix` in storage; `pull` brings all of it back."""

    def __init__(self, store: ObjectStore, prefix: str, directory: Path) -> None:
        self.store, self.prefix, self.directory = store, prefix, directory
        self._pushed: dict[str, Signature] = {}

    def push(self) -> int:
        """Send the changes since the last push; return the bytes sent. Raises `StorageError`."""
        sent = 0
        for name, path in _files(self.directory):
            with contextlib.suppress(FileNotFoundError):  # replaced meanwhile: next time
                status = path.stat()
                signature = (status.st_ino, status.st_size, status.st_mtime_ns)
                before = self._pushed.get(name)
                if signature != before:
                    sent += self._push(name, path, before)
                    self._pushed[name] = signature
        return sent

    def try_push(self) -> str:
        """Push, and return the error that prevented it, or nothing."""
        try:
            self.push()
        except StorageError as error:
            return str(error)
        return ""

    def pull(self) -> bool:
        """Write everything in storage into the directory; return whether there was anything.

        Raises:
            StorageError: a key there leads out of the directory.
        """
        sizes = self.store.sizes(self.prefix)
        where = f"{self.store.uri}/{self.prefix}"
        require_affordable(sum(sizes.values()), where, StorageError)
        keys = sorted(sizes)
        start = len(self.prefix) + 1
        contents: dict[str, bytearray] = {}
        for key in keys:
            kind, _, rest = key[start:].partition("/")
            name = rest if kind == "files" else rest.rpartition("/")[0]
            contents.setdefault(name, bytearray()).extend(self.store.read(key))
        try:
            paths = {name: below(self.directory, name) for name in contents}
        except ValueError as error:
            raise StorageError(f"{where}: {error}") from error
        for name, content in contents.items():
            path = paths[name]
            path.parent.mkdir(parents=True, exist_ok=True)
            replace_durably(path, bytes(content))
        return bool(contents)

    def _push(self, name: str, path: Path, before: Signature | None) -> int:
        if path.suffix not in GROWING_SUFFIXES:
            content = path.read_bytes()
            self.store.write(f"{self.prefix}/files/{name}", content)
            return len(content)
        # a file that was replaced, or got shorter, is sent from its start
        with path.open("rb") as file:
            inode, size = os.fstat(file.fileno()).st_ino, os.fstat(file.fileno()).st_size
            grew = before is not None and before[0] == inode and before[1] <= size
            first = before[1] // PART_BYTES if grew and before is not None else 0
            file.seek(first * PART_BYTES)
            number, sent = first, 0
            while (part := file.read(PART_BYTES)) or number == first:
                self.store.write(self._part(name, number), part)
                number, sent = number + 1, sent + len(part)
        if not grew:
            self._delete_parts_from(name, number)
        return sent

    def _delete_parts_from(self, name: str, number: int) -> None:
        found = self.store.sizes(f"{self.prefix}/parts/{name}")
        self.store.delete([key for key in found if key >= self._part(name, number)])

    def _part(self, name: str, number: int) -> str:
        return f"{self.prefix}/parts/{name}/{number:05d}"


def _files(directory: Path) -> Iterator[tuple[str, Path]]:
    def is_sent(path: Path) -> bool:
        parts = path.relative_to(directory).parts
        return parts[0] not in LEFT_OUT and not path.name.startswith(".")

    for path in sorted(files_below(directory, is_sent)):
        yield str(path.relative_to(directory)), path
