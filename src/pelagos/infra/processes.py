"""Processes of this machine: which one a number means, as numbers are given out again."""

import contextlib
import os
import time
from pathlib import Path

# A process that has just become another program shows no arguments for a moment.
LOOKS, LOOK_SECONDS = 50, 0.01


def start_time(pid: int) -> str | None:
    """Return when a process started, in clock ticks since boot; None if there is none, or a zombie."""
    with contextlib.suppress(OSError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if fields[0] == "Z" else fields[19]
    return None


def command_line(pid: int) -> list[str]:
    """Return the arguments that a process was started with; empty if there is none, or it is foreign."""
    with contextlib.suppress(OSError):
        for _ in range(LOOKS):
            text = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
            if text:
                return text.removesuffix("\0").split("\0")
            time.sleep(LOOK_SECONDS)
    return []


def has_open(pid: int, path: Path) -> bool:
    """Return whether a process has this file open; False if that cannot be seen."""
    with contextlib.suppress(OSError):
        wanted = path.stat()
        for descriptor in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):  # closed since
                if os.path.samestat(descriptor.stat(), wanted):
                    return True
    return False
