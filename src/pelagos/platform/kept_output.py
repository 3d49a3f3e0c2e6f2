"""What a training prints, kept in its run's directory, so that it can be read later and elsewhere.

runs/NAME/output.log          the newest of it, as lines without colours
          output-before.log   what came before, once output.log was full
"""

import contextlib
import io
import logging
import os
from collections.abc import Iterator
from pathlib import Path

from pelagos.infra.storage.files import open_regular
from pelagos.platform.console import HarmlessConsole
from pelagos.platform.records.runs import RunDirectory

OUTPUT, BEFORE = "output.log", "output-before.log"
# A line every ten seconds fills one in about six days. There are at most two.
MOST_BYTES = 4 * 2**20
_WIDTH = 160


class _BoundedLog(io.TextIOBase):
    """Appends to OUTPUT; when that is full it becomes BEFORE, and a new one begins."""

    def __init__(self, directory: Path) -> None:
        self.path, self.before = directory / OUTPUT, directory / BEFORE

    def write(self, text: str) -> int:
        content = text.encode(errors="replace")
        with contextlib.suppress(OSError):  # a full disk is for the training to report
            descriptor = self._opened(len(content))
            try:
                os.write(descriptor, content)
            finally:
                os.close(descriptor)
        return len(text)

    def _opened(self, num_bytes: int) -> int:
        # in a directory where others write, a link could lead to any file of this user's
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK
        descriptor = os.open(self.path, flags, 0o666)
        if os.fstat(descriptor).st_size + num_bytes <= MOST_BYTES:
            return descriptor
        os.close(descriptor)
        self.path.replace(self.before)
        return os.open(self.path, flags, 0o666)


class _Printed(logging.Handler):
    """Prints a log record as a line."""

    def __init__(self, console: HarmlessConsole) -> None:
        super().__init__(logging.INFO)
        self.console = console

    def emit(self, record: logging.LogRecord) -> None:
        self.console.print(f"{record.levelname:8} {self.format(record)}", soft_wrap=True)


@contextlib.contextmanager
def kept_output(run: RunDirectory) -> Iterator[HarmlessConsole]:
    """Return a console whose output stays in the run's directory, as do log records meanwhile."""
    console = HarmlessConsole(file=_BoundedLog(run.path), width=_WIDTH, color_system=None)
    root = logging.getLogger()
    handler = _Printed(console)
    is_set_up = bool(root.handlers)  # else ours would keep warnings from the terminal
    if is_set_up:
        root.addHandler(handler)
    try:
        yield console
    except Exception as error:
        console.print(f"{type(error).__name__}: {error}")
        raise
    finally:
        root.removeHandler(handler)


class KeptOutput:
    """Reads what a run has printed, from the beginning of what is kept."""

    def __init__(self, run: RunDirectory) -> None:
        self._path, self._before = run.path / OUTPUT, run.path / BEFORE
        self._file, self._position = 0, 0

    def news(self) -> bytes:
        """Return what was printed since the last call."""
        found = b""
        for path in (self._before, self._path):
            with contextlib.suppress(OSError):
                found += self._rest_of(path)
        return found

    def _rest_of(self, path: Path) -> bytes:
        descriptor = open_regular(path)
        with os.fdopen(descriptor, "rb") as file:
            number = os.fstat(descriptor).st_ino
            is_read = path == self._before and self._file not in (0, number)
            if is_read:
                return b""  # of the file before the one that is being read
            if number != self._file:
                self._file, self._position = number, 0
            file.seek(self._position)
            content = file.read(MOST_BYTES)
            self._position += len(content)
            return content
