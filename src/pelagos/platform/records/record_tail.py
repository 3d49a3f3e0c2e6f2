"""Following a file of records as it grows: each line is read and parsed once, in pieces.

A resume replaces metrics.jsonl by a shorter file. The follower sees this by its number and length, and
begins again.
"""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from pelagos.infra.memory_budget import memory_budget
from pelagos.infra.storage.files import open_regular
from pelagos.platform.records.run_files import parsed_record

# A line is one step's values, some kilobytes; one that is longer than a piece is skipped.
PIECE_BYTES = 4 * 2**20

Record = dict[str, Any]


class Mark(NamedTuple):
    """A place in a file: its number (inode) and the byte after the last whole line read."""

    file: int = 0
    offset: int = 0


class RecordTail:
    """Yields the whole lines of a file that were not read before, as records.

    Attributes:
        mark: the place read up to; set it back to read again from there.
        restarts: how often the file turned out to be another one, or shorter.
    """

    def __init__(self, path: Path, accepts: Callable[[Record], bool] = lambda record: True) -> None:
        self.path, self.accepts = path, accepts
        self.mark = Mark()
        self.restarts = 0

    def read(self) -> list[Record]:
        """Return the next records, of at most one piece; empty if none have arrived.

        A last line without its end is left for the next call. Lines that hold no record are skipped,
        as is a file that is absent, no regular file, or longer than the memory that one may take.
        """
        while True:
            content, is_last = self._next_lines()
            records = [r for line in content.splitlines() if (r := parsed_record(line)) is not None]
            accepted = [record for record in records if self.accepts(record)]
            if accepted or is_last:
                return accepted

    def pieces(self) -> Iterator[list[Record]]:
        """Yield all that there is now, piece by piece."""
        while records := self.read():
            yield records

    def _next_lines(self) -> tuple[bytes, bool]:
        """Return the next whole lines, and whether they are the last ones for now."""
        try:
            descriptor = open_regular(self.path)
        except OSError:
            return b"", True
        with os.fdopen(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            if status.st_size - self.mark.offset > memory_budget():
                return b"", True  # none of ours: a sparse file can claim terabytes
            if self.mark.file != status.st_ino or status.st_size < self.mark.offset:
                self.restarts += self.mark.offset > 0
                self.mark = Mark(status.st_ino, 0)
            file.seek(self.mark.offset)
            content = file.read(PIECE_BYTES)
            end = content.rfind(b"\n") + 1
            if not end and len(content) >= PIECE_BYTES:
                end = len(content)  # no line of ours; what follows of it holds no record either
            self.mark = Mark(status.st_ino, self.mark.offset + end)
            return content[:end], self.mark.offset >= status.st_size or not end
