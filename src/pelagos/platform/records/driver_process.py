"""The process that drives a run: which one it is, and whether it lives. status.json names it."""

import os
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from pelagos.infra.processes import start_time

DRIVER = "driver"


@dataclass(frozen=True)
class DriverProcess:
    """A process of some machine. Numbers are given out again, so its start tells it from others.

    Attributes:
        started: in clock ticks since the machine's start; None where that cannot be seen.
        takes_signals: whether a signal asks the run to save and stop. In a thread, as in a notebook,
            it would end the process unsaved.
    """

    host: str
    pid: int
    started: str | None
    takes_signals: bool

    @classmethod
    def of(cls, status: Mapping[str, Any]) -> "DriverProcess | None":
        """Return the process that a run's status names, which others may have written."""
        found = status.get(DRIVER)
        if not isinstance(found, dict):
            return None
        host, pid, started = found.get("host"), found.get("pid"), found.get("started")
        if not isinstance(host, str) or not isinstance(pid, int) or not 1 < pid < 2**31:
            return None
        started = started if isinstance(started, str) else None
        return cls(host, pid, started, found.get("takes_signals") is True)

    @property
    def is_here(self) -> bool:
        """Whether it is, or was, a process of this machine."""
        return self.host == os.uname().nodename

    @property
    def is_alive(self) -> bool | None:
        """Whether it lives; None: that cannot be seen from here."""
        if not self.is_here or self.started is None:
            return None
        return start_time(self.pid) == self.started

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


def this_process() -> dict[str, Any]:
    """Return this process, as a run's status names it."""
    in_main = threading.current_thread() is threading.main_thread()
    pid = os.getpid()
    return asdict(DriverProcess(os.uname().nodename, pid, start_time(pid), in_main))
