"""Ctrl-C, SIGTERM and a closed terminal: before the first step, after it, and a second time."""

import os
import pty
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from tests.jobs.test_kills import (
    CLI,
    WAIT_SECONDS,
    MakeJob,
    running,
    steps_done,
    wait_until,
    write_job,
)

from pelagos.platform.checkpoint import CheckpointStore
from pelagos.platform.records.runs import RunDirectory

ALONE = {"resources__launcher": "none", "resources__num_workers": 1}
WITH_RAY = {"resources__launcher": "ray", "resources__num_workers": 1}
ENDLESS = {"schedule__total_steps": 100_000, "checkpoint__every_steps": 100_000}


def launched(run: RunDirectory) -> bool:
    return any(event["kind"] == "launched" for event in run.events())


def state_of(run: RunDirectory) -> tuple[str, str]:
    return run.status()["state"], run.status()["cause"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_after_a_step_each_saves_and_stops(
    make_job: MakeJob, tmp_path: Path, number: signal.Signals
) -> None:
    job, run = write_job(make_job, tmp_path, "asked", **ENDLESS, **ALONE)
    log = tmp_path / "log.txt"
    with running(["pretrain", job], log) as process:
        wait_until(lambda: steps_done(run) >= 3, process, log)
        process.send_signal(number)
        assert process.wait(WAIT_SECONDS) == 130
    done = steps_done(run)
    assert CheckpointStore(run.checkpoint_uri).latest_step() == done
    assert state_of(run) == ("stopped", "stop requested")
    assert f"{number.name}: saving after this step" in log.read_text()
    assert f"saved at step {done}" in log.read_text()


def exit_of_a_run_that_ignored(
    number: signal.Signals, job: str, run: RunDirectory, log: Path
) -> int:
    """Start a run with a signal ignored, send it that after three steps; return the exit status."""
    before = signal.signal(number, signal.SIG_IGN)  # children inherit it
    try:
        with running(["pretrain", job], log) as process:
            wait_until(lambda: steps_done(run) >= 3, process, log)
            process.send_signal(number)
            return process.wait(WAIT_SECONDS)
    finally:
        signal.signal(number, before)


def test_a_signal_that_is_ignored_as_nohup_does_stays_so(make_job: MakeJob, tmp_path: Path) -> None:
    job, run = write_job(make_job, tmp_path, "nohup", schedule__total_steps=30, **ALONE)
    assert exit_of_a_run_that_ignored(signal.SIGHUP, job, run, tmp_path / "log.txt") == 0
    assert run.status()["state"] == "finished"


def test_a_background_job_of_a_shell_stops_on_sigint(make_job: MakeJob, tmp_path: Path) -> None:
    # shells start `pelagos … &` with SIGINT ignored
    job, run = write_job(make_job, tmp_path, "background", **ENDLESS, **ALONE)
    assert exit_of_a_run_that_ignored(signal.SIGINT, job, run, tmp_path / "log.txt") == 130
    assert run.status()["state"] == "stopped"


SLOW_SAVE = """
import sys, time
from pelagos.platform.trainer import TrainingLoop
TrainingLoop.save = lambda self, step, is_last: time.sleep(600)
sys.argv = ["pelagos", *sys.argv[1:]]
from pelagos.cli.main import main
main()
"""


def test_a_second_one_ends_at_once_and_says_what_is_lost(make_job: MakeJob, tmp_path: Path) -> None:
    job, run = write_job(make_job, tmp_path, "twice", **ENDLESS, **ALONE)
    log = tmp_path / "log.txt"
    program = [CLI[0], "-c", SLOW_SAVE]
    with running(["pretrain", job], log, program) as process:
        wait_until(lambda: steps_done(run) >= 3, process, log)
        process.send_signal(signal.SIGTERM)
        wait_until(run.stop_requested, process, log)
        time.sleep(1.0)  # it is in the save that never ends
        process.send_signal(signal.SIGTERM)
        assert process.wait(WAIT_SECONDS) == 130
    told = "SIGTERM again: ended at once, without the steps since the last checkpoint"
    assert state_of(run) == ("stopped", told)
    assert told in " ".join(log.read_text().split())


def test_while_a_verb_imports_it_ends_without_a_traceback(
    make_job: MakeJob, tmp_path: Path
) -> None:
    job, run = write_job(make_job, tmp_path, "early", **ENDLESS, **ALONE)
    log = tmp_path / "log.txt"
    program = [CLI[0], "-c", SLOW_IMPORT]
    with running(["pretrain", job], log, program) as process:
        wait_until((tmp_path / "importing").exists, process, log)
        process.send_signal(signal.SIGTERM)
        assert process.wait(WAIT_SECONDS) == 130
    told = "interrupted by SIGTERM: before the first step, with nothing to save"
    said, last = log.read_text().strip().splitlines()
    assert said.startswith("early: ")  # the first line, before torch is imported
    assert last == told
    assert not Path(run.path).exists()


SLOW_IMPORT = """
import pathlib, sys, time
from pelagos.cli import main as program
class Slow:
    def find_spec(self, name, path=None, target=None):
        if name == "pelagos.jobs.pretrain":
            pathlib.Path(sys.argv[-1]).parent.joinpath("importing").touch()
            time.sleep(600)
sys.meta_path.insert(0, Slow())
sys.argv = ["pelagos", *sys.argv[1:]]
program.main()
"""


def descendants(pid: int) -> list[psutil.Process]:
    return psutil.Process(pid).children(recursive=True)


def are_gone(family: list[psutil.Process]) -> bool:
    _, alive = psutil.wait_procs(family, timeout=20)
    return not [p for p in alive if p.status() != psutil.STATUS_ZOMBIE]


@pytest.mark.ray
def test_before_the_first_step_with_ray_nothing_is_saved_and_nothing_is_left(
    make_job: MakeJob, tmp_path: Path
) -> None:
    job, run = write_job(make_job, tmp_path, "starting", **ENDLESS, **WITH_RAY)
    log = tmp_path / "log.txt"
    with running(["pretrain", job], log) as process:
        wait_until(lambda: launched(run) and len(descendants(process.pid)) > 2, process, log)
        family = descendants(process.pid)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 130
        assert are_gone(family)
    told = "SIGTERM before the first step: there was nothing to save"
    assert state_of(run) == ("stopped", told)
    text = " ".join(log.read_text().split())
    assert f"stopped starting: {told} continue: pelagos resume starting" in text
    assert "@ 0x" not in text
    assert "stack trace" not in text.lower()
    assert not (Path(run.path) / "checkpoints").exists()


@pytest.mark.ray
def test_a_terminal_that_closes_saves_the_run_of_ray_workers(
    make_job: MakeJob, tmp_path: Path
) -> None:
    job, run = write_job(make_job, tmp_path, "closed", **ENDLESS, **WITH_RAY)
    process = InTerminal([*CLI, "pretrain", job])
    try:
        wait_for(lambda: steps_done(run) >= 3)
        family = descendants(process.pid)
        process.close_terminal()
        assert process.wait() == 130
        assert are_gone(family)
    finally:
        process.kill()
    assert state_of(run) == ("stopped", "stop requested")
    assert CheckpointStore(run.checkpoint_uri).latest_step() == steps_done(run)


class InTerminal:
    """A program in a terminal of its own, which can close."""

    def __init__(self, command: list[str]) -> None:
        self.pid, self.terminal = pty.fork()
        if self.pid == 0:
            os.environ["OMP_NUM_THREADS"] = "1"
            os.execv(command[0], command)
        self.status: int | None = None

    def close_terminal(self) -> None:
        os.close(self.terminal)

    def wait(self) -> int:
        wait_for(self._has_ended)
        assert self.status is not None
        return os.waitstatus_to_exitcode(self.status)

    def kill(self) -> None:
        if self.status is None and not self._has_ended():
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)

    def _has_ended(self) -> bool:
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        if pid:
            self.status = status
        return bool(pid)


def wait_for(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)
