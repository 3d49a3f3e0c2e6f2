"""How much memory an untrusted file may have allocated: a header's sizes are only claims."""

import os
from pathlib import Path

# Where the machine does not report its memory.
ASSUMED_BYTES = 8 * 2**30
# One array or chunk may take this part of the free memory.
SHARE = 0.5


def memory_budget() -> int:
    """Bytes that one array or chunk may take: PELAGOS_MEMORY_BUDGET, or half of the free memory."""
    given = os.environ.get("PELAGOS_MEMORY_BUDGET", "")
    if given.isdecimal():
        return int(given)
    return int(_available() * SHARE)


def require_affordable(num_bytes: int, where: str, error: type[ValueError] = ValueError) -> None:
    """Raise `error` where an array or chunk would take more than the budget, before it is allocated."""
    budget = memory_budget()
    if num_bytes > budget:
        raise error(
            f"{where} declares that it takes {num_bytes:,} bytes at once, more than the {budget:,} "
            "that one piece may take here. If that is right, write it in smaller chunks, or raise "
            "PELAGOS_MEMORY_BUDGET (bytes)"
        )


def _available() -> int:
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return ASSUMED_BYTES
