"""This machine as a cluster: a process of its own, with a Ray of its own."""

import contextlib
import os
import shlex
import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeGuard

from pelagos.infra.clusters.base import (
    BOOTSTRAP,
    Cluster,
    SchedulerState,
    Submission,
    local_command,
)
from pelagos.infra.doctor import Check, examine
from pelagos.infra.private_directory import cache_directory
from pelagos.infra.processes import command_line, start_time
from pelagos.infra.storage.files import read_regular

RUN_MODULE = "pelagos.jobs.submission.driver"


class LocalCluster(Cluster):
    """Starts a run as a detached process, which outlives the terminal it was started from."""

    makes_runs_wait = False

    def check(self) -> list[Check]:
        place = "runs" if "://" in self.config.storage else self.config.storage
        return examine(place, imports=False)  # `pelagos doctor` imports them

    def render(self, submission: Submission) -> dict[str, str]:
        environment = "".join(f"{k}={v}\n" for k, v in sorted(submission.environment.items()))
        return {"command": shlex.join(local_command(submission)), "environment": environment}

    def start(self, submission: Submission) -> dict[str, Any]:
        log = _log(submission.run, submission.attempt)
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
            "started": start_time(process.pid),
            "attempt": submission.attempt,
        }

    def checked_handle(self, run: str, storage: str, handle: Mapping[str, Any]) -> dict[str, Any]:
        pid, attempt = handle.get("pid"), handle.get("attempt", 1)
        if not (isinstance(handle.get("host"), str) and _is_count(pid) and _is_count(attempt)):
            raise self.not_its_handle(run, dict(handle))
        is_here = handle["host"] == os.uname().nodename
        if is_here and start_time(pid) == handle.get("started"):
            command = command_line(pid)
            # first bootstrap.py, which then becomes the run itself
            is_start = {str(BOOTSTRAP), RUN_MODULE} & set(command)
            if not is_start or command[-4:-1] != [storage, run, str(attempt)]:
                raise self.not_its_handle(run, f"process {pid}")
        return {"started": None, **handle, "log": str(_log(run, attempt))}

    def state(self, handle: dict[str, Any]) -> SchedulerState:
        if handle["host"] != os.uname().nodename:
            return SchedulerState("unknown", f"it runs on {handle['host']}; ask there")
        # a number is given out again: the same process has the same start time
        started = start_time(handle["pid"])
        alive = started is not None and started == handle["started"]
        detail = f"process {handle['pid']} on {handle['host']}"
        return SchedulerState("running" if alive else "ended", detail)

    def logs(self, handle: dict[str, Any]) -> str:
        with contextlib.suppress(OSError):
            return read_regular(Path(handle["log"])).decode(errors="replace")
        return ""

    def cancel(self, handle: dict[str, Any]) -> None:
        if self.state(handle).state != "running":
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(handle["pid"], signal.SIGKILL)


def _is_count(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value < 2**31


def _log(run: str, attempt: int) -> Path:
    return _logs_directory() / f"{run}-{attempt}.log"


def _logs_directory() -> Path:
    directory = cache_directory() / "local-logs"
    directory.mkdir(parents=True, exist_ok=True)
    return directory
