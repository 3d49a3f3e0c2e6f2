"""Programs of Debian's packages that tests run for real: Slurm, a browser."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence


def install(programs: Sequence[str], packages: Sequence[str]) -> str:
    """Install packages if one of the programs is not there; return why that failed, or nothing."""
    if all(map(shutil.which, programs)):
        return ""
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        return f"needs {' and '.join(programs)}: as root, apt-get install {' '.join(packages)}"
    for command in (
        ["apt-get", "update"],
        ["apt-get", "install", "--yes", "--no-install-recommends", *packages],
    ):
        done = subprocess.run(
            command,
            env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"},
            capture_output=True,
            text=True,
            timeout=600,
        )
    missing = [program for program in programs if shutil.which(program) is None]
    named = " ".join(packages)
    return f"apt-get install {named} failed: {done.stderr.strip()[-300:]}" if missing else ""
