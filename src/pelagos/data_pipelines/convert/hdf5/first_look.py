"""A first look at an HDF5 file, by a process that may hang or crash in place of this one.

Damaged bytes can lead the HDF5 library into a loop that never ends. It runs in C and lets no other
thread of the process run, so that nothing in Python ends it. A process of its own therefore touches
first what readers touch. There is one for all files; it is started anew after a file that ended it. A
file that was looked at is looked at again only when it has changed.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import signal
import stat
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from pelagos.data_pipelines.convert.extras import require
from pelagos.data_pipelines.convert.hdf5.look_process import WAITING_FACTOR
from pelagos.data_pipelines.convert.source import SourceError
from pelagos.infra.memory_budget import memory_budget

VARIABLE = "PELAGOS_FIRST_LOOK_SECONDS"
# Of computing, without getting any further: steps of sound files take milliseconds. Waiting for a slow
# disk may take longer (WAITING_FACTOR).
DEFAULT_SECONDS, LEAST_SECONDS, MOST_SECONDS = 30.0, 0.1, 86_400.0
# Metadata is small; a damaged file's claims may not be.
SPARE_BYTES = 2**30
PROGRAM = Path(__file__).with_name("look_process.py")
MOST_LINE_BYTES = 2**16
ENDING_SECONDS = 10.0
# Signals by which a process ends itself; others come from somebody, or from the system.
CRASHES = (signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGFPE, signal.SIGILL)


class DamagedFileError(SourceError):
    """The HDF5 library does not come back from a file, or does not survive it."""


def require_answering(file: str | Path, key: str = "") -> None:
    """Have a local HDF5 file looked at, unless it was before.

    Args:
        key: an array or group that is going to be read. It is looked at by itself where the file has
            too many to look at all.

    Raises:
        DamagedFileError: the library is caught in it, crashes, or takes memory without end.
        SourceError: it is a pipe or a device, PELAGOS_FIRST_LOOK_SECONDS is no number, or no process
            could be started.
    """
    seconds = _seconds()
    try:
        status = Path(file).stat()
    except (OSError, ValueError):
        return  # reported by the code that opens it
    if not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):
        raise SourceError(
            f"{file} is not a regular file: expected an HDF5 file. Pelagos read nothing from it"
        )
    if not seconds:
        return
    version = (status.st_size, status.st_mtime_ns)
    looker().require(str(file), key, (status.st_dev, status.st_ino), version, seconds)


def _seconds() -> float:
    given = os.environ.get(VARIABLE, "")
    if not given:
        return DEFAULT_SECONDS
    with contextlib.suppress(ValueError):
        seconds = float(given)
        if seconds == 0 or LEAST_SECONDS <= seconds <= MOST_SECONDS:
            return seconds
    raise SourceError(
        f"{VARIABLE} is {given!r}; expected a number of seconds from {LEAST_SECONDS:g} to "
        f"{MOST_SECONDS:g}, such as {DEFAULT_SECONDS:g}, or 0 for no first look"
    )


class _Seen:
    """The known facts about one version of a file."""

    def __init__(self, version: tuple[int, int], is_complete: bool) -> None:
        self.version, self.is_complete, self.fault = version, is_complete, ""
        self.keys: set[str] = set()


class Looker:
    """The process, and the files it has seen. `num_started` counts its starts."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.process: subprocess.Popen[bytes] | None = None
        self.seen: dict[tuple[int, int], _Seen] = {}
        self.num_started = 0

    def require(
        self, file: str, key: str, place: tuple[int, int], version: tuple[int, int], seconds: float
    ) -> None:
        """Raise DamagedFileError where the file has a fault that was found now or before."""
        with self.lock:
            known = self.seen.get(place)
            if known is None or known.version != version:
                known = self.seen[place] = _Seen(version, not _is_hdf5(file))
            if not (known.fault or known.is_complete or key in known.keys):
                answer = self._ask(file, key, seconds)
                known.fault = str(answer.get("fault", ""))
                known.is_complete = not key and answer.get("complete") is True
                known.keys.add(key)
        if known.fault:
            raise DamagedFileError(
                f"{file} is damaged: it {known.fault}. Copy or download it again. `h5dump -H "
                f"{file}` shows how far other programs get, and `h5repack` may save the intact "
                "parts"
            )

    def _ask(self, file: str, key: str, seconds: float) -> dict[str, Any]:
        """The process's report on a file; if the file ended it twice, the fault.

        Raises:
            SourceError: somebody or the system ended it twice.
        """
        for _ in range(2):
            answer, at = self._answer(file, key, seconds)
            if answer is not None:
                return answer
            code = self._status()
            if fault := _fault(code, at, seconds):
                return {"fault": fault}
        raise SourceError(
            f"the process that checks {file} before reading was killed twice, in {at} "
            f"({_name(code)}): is memory short? {VARIABLE}=0 reads without the check, but a damaged "
            "file may then take forever"
        )

    def _answer(self, file: str, key: str, seconds: float) -> tuple[dict[str, Any] | None, str]:
        """The last message of the process, None if it ended; and its place at that time."""
        process = self.process or self._started()
        order = {"file": os.path.abspath(file), "key": key, "seconds": seconds}
        order["bytes"] = memory_budget() + SPARE_BYTES
        at = "its beginning"
        try:
            _send(process, order)
            while (said := _heard(process)) is not None:
                if "at" not in said:
                    return said, at
                at = repr(str(said["at"]))
        except BaseException:  # its answer would be taken for that to the next question
            self.end()
            raise
        return None, at

    def _started(self) -> subprocess.Popen[bytes]:
        path = os.pathsep.join(place for place in sys.path if place)
        environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
        environment["OPENBLAS_NUM_THREADS"] = "1"
        why = ""
        try:
            self.process = subprocess.Popen(
                [sys.executable, "-P", str(PROGRAM)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=environment,
                start_new_session=True,  # Ctrl-C is for this process, which ends that one
            )
            said = _heard(self.process)
            why = str((said or {}).get("failed", ""))
            if said and not why:
                self.num_started += 1
                return self.process
            why = why or f"it ended with status {self._status()}"
        except OSError as error:
            why = str(error)
        self.end()
        raise SourceError(
            f"cannot start the process that checks HDF5 files before reading ({why}). {VARIABLE}=0 "
            "reads without the check, but a damaged file may then take forever"
        )

    def _status(self) -> int:
        """How the process ended, which says nothing any more; negative for a signal."""
        assert self.process is not None
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(ENDING_SECONDS)
        process = self.process
        self.end()
        return process.wait()

    def end(self) -> None:
        """End the process."""
        process, self.process = self.process, None
        if process is None:
            return
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            with contextlib.suppress(OSError):
                assert pipe is not None
                pipe.close()


def _is_hdf5(file: str) -> bool:
    """Whether a file has the signature; nothing behind it is read."""
    return bool(require("h5py", f"reading {file}").is_hdf5(file))


def _send(process: subprocess.Popen[bytes], order: dict[str, Any]) -> None:
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError):  # then nothing is heard
        process.stdin.write(json.dumps(order).encode() + b"\n")
        process.stdin.flush()


def _heard(process: subprocess.Popen[bytes]) -> dict[str, Any] | None:
    """Its next message; None: it has ended."""
    assert process.stdout is not None
    line = process.stdout.readline(MOST_LINE_BYTES)
    try:
        said = json.loads(line)
    except ValueError:
        return None
    return said if isinstance(said, dict) else None


def _fault(code: int, at: str, seconds: float) -> str:
    """The fault of a file that ended the process; empty where something else ended it."""
    if -code == signal.SIGALRM:
        return (
            f"keeps the HDF5 library waiting (in {at}, for {WAITING_FACTOR * seconds:g} s): it may name "
            f"a pipe, or lie on a disk that does not answer; {VARIABLE} sets how long"
        )
    if -code == signal.SIGPROF:
        return (
            f"keeps the HDF5 library busy without end (it computed for {seconds:g} s in {at} and "
            f"made no progress; {VARIABLE} sets how long)"
        )
    return f"makes the HDF5 library crash (in {at}: {_name(code)})" if -code in CRASHES else ""


def _name(code: int) -> str:
    """`SIGKILL` for -9, `status 1` for 1."""
    return next((s.name for s in signal.Signals if s == -code), f"status {code}")


_LOOKERS = [Looker()]


def looker() -> Looker:
    """The one of this process."""
    return _LOOKERS[0]


def _forked() -> None:
    _LOOKERS[0] = Looker()  # the other's process answers the other


os.register_at_fork(after_in_child=_forked)
atexit.register(lambda: looker().end())
