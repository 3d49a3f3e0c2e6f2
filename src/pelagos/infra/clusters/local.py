"""This machine as a cluster: a process of its own, with a Ray of its own."""

import contextlib
import os
import shlex
import signal
import subprocess
from pathlib import Path
from typing import Any

from pelagos.infra.clusters.base import Cluster, SchedulerState, Submission, local_command
from pelagos.infra.doctor import Check, examine


class LocalCluster(Cluster):
    """Starts a run as a detached process, which outlives the terminal it was started from."""

    makes_runs_wait = False

    def check(self) -> list[Check]:
        return examine(self.config.storage if "://" not in self.config.storage else "runs")

    def render(self, submission: Submission) -> dict[str, str]:
        environment = "".join(f"{k}={v}\n" for k, v in sorted(submission.environment.items()))
        return {"command": shlex.join(local_command(submission)), "environment": environment}

    def start(self, submission: Submission) -> dict[str, Any]:
        log = _logs_directory() / f"{submission.run}-{submission.attempt}.log"
        with log.open("ab") as output:
            process = subprocess.Popen(
                local_command(submission),
                env={**os.environ, **submission.environment},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        return {
            "host": os.uname().nodename,
            "pid": process.pid,
            "started": _start_time(process.pid),
            "log": str(log),
        }

    def state(self, handle: dict[str, Any]) -> SchedulerState:
        if handle["host"] != os.uname().nodename:
            return SchedulerState("unknown", f"it runs on {handle['host']}; ask there")
        # a number is given out again: the same process has the same start time
        alive = _start_time(handle["pid"]) == handle["started"]
        detail = f"process {handle['pid']} on {handle['host']}"
        return SchedulerState("running" if alive else "ended", detail)

    def logs(self, handle: dict[str, Any]) -> str:
        with contextlib.suppress(OSError):
            return Path(handle["log"]).read_text(errors="replace")
        return ""

    def cancel(self, handle: dict[str, Any]) -> None:
        if self.state(handle).state != "running":
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(handle["pid"], signal.SIGKILL)


def _logs_directory() -> Path:
    home = Path(os.environ.get("PELAGOS_CACHE") or Path.home() / ".cache" / "pelagos")
    directory = home / "local-logs"
    directory.mkdir(parents=True, exist_ok=True)
    return directory


def _start_time(pid: int) -> str | None:
    """Return when a process started, in clock ticks since boot; None if there is none, or a zombie."""
    with contextlib.suppress(OSError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if fields[0] == "Z" else fields[19]
    return None
