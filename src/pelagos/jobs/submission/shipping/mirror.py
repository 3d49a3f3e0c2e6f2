"""Keeping a directory in object storage, for clusters without a disk that everyone sees.

STORAGE/runs/RUN/files/PATH          a file, whole
STORAGE/runs/RUN/parts/PATH/00000    a growing file (records, logs) in parts of 1 MiB, so that each
                                     push sends only its end
"""

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from itertools import takewhile
from pathlib import Path

from pelagos.infra.memory_budget import require_affordable
from pelagos.infra.storage.files import below, files_below, read_regular, replace_durably
from pelagos.infra.storage.local import ObjectStore
from pelagos.infra.storage.remote import StorageError
from pelagos.platform.kept_output import BEFORE, OUTPUT

PART_BYTES = 2**20
GROWING_SUFFIXES = (".jsonl", ".log")
# checkpoints and the output have places of their own in storage; Ray's records belong to one launch
LEFT_OUT = ("checkpoints", "ray", OUTPUT, BEFORE)

Signature = tuple[int, int, int]  # inode, size, time of change


class Mirror:
    """Pushes the changes of a directory to `prefix` in storage; `pull` brings all of it back."""

    def __init__(self, store: ObjectStore, prefix: str, directory: Path) -> None:
        self.store, self.prefix, self.directory = store, prefix, directory
        self._pushed: dict[str, Signature] = {}
        self._full: set[str] = set()  # keys of parts that were pulled full: these never change

    def push(self, folder: str = "") -> int:
        """Send the changes since the last push; return the bytes sent. Raises `StorageError`.

        Args:
            folder: the part of the directory to send; default: all of it.
        """
        sent = 0
        for name, path in _files(self.directory):
            if folder and not name.startswith(f"{folder}/"):
                continue
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

        Called again, it does not fetch the full parts of growing files again.

        Raises:
            StorageError: a key there leads out of the directory.
        """
        sizes = self.store.sizes(self.prefix)
        where = f"{self.store.uri}/{self.prefix}"
        require_affordable(sum(sizes.values()), where, StorageError)
        self._full &= {key for key, size in sizes.items() if size == PART_BYTES}
        start = len(self.prefix) + 1
        keys: dict[str, list[str]] = {}
        for key in sorted(sizes):
            kind, _, rest = key[start:].partition("/")
            name = rest if kind == "files" else rest.rpartition("/")[0]
            if not name.rpartition("/")[2].startswith("."):  # none is ever sent
                keys.setdefault(name, []).append(key)
        try:
            paths = {name: below(self.directory, name) for name in keys}
        except ValueError as error:
            raise StorageError(f"{where}: {error}") from error
        contents = {name: self._content(keys[name], paths[name], sizes) for name in keys}
        for name, content in contents.items():
            path = paths[name]
            path.parent.mkdir(parents=True, exist_ok=True)
            replace_durably(path, content)
        return bool(contents)

    def _content(self, keys: Sequence[str], path: Path, sizes: Mapping[str, int]) -> bytes:
        """Return the content of a file; what an earlier pull brought here whole is read here."""
        known = list(takewhile(lambda key: key in self._full, keys))
        content = b""
        with contextlib.suppress(OSError):
            content = read_regular(path)[: len(known) * PART_BYTES] if known else b""
        if len(content) < len(known) * PART_BYTES:
            known, content = [], b""
        parts = [self.store.read(key) for key in keys[len(known) :]]
        self._full |= {key for key in keys if "/parts/" in key and sizes[key] == PART_BYTES}
        return b"".join([content, *parts])

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
