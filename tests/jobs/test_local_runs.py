"""stop, wait, watch, logs, clone, diff of runs that were started here: real processes, real signals."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.jobs.test_kills import (
    CLI,
    MakeJob,
    kill_everything,
    running,
    start,
    steps_done,
    wait_until,
    write_job,
)
from tests.jobs.test_signals import ALONE, ENDLESS, InTerminal
from typer.testing import CliRunner

from pelagos.cli.main import app
from pelagos.infra.processes import start_time
from pelagos.jobs.run_access import local_run
from pelagos.platform import kept_output
from pelagos.platform.checkpoint import CheckpointStore
from pelagos.platform.config.load import load_job
from pelagos.platform.kept_output import KeptOutput
from pelagos.platform.records import run_files
from pelagos.platform.records.description import FollowedRun, description_of
from pelagos.platform.records.runs import RunDirectory
from pelagos.platform.records.states import State

LOST, STOPPED, BAD_INPUT, TIMED_OUT = 1, 130, 2, 124
WAIT_SECONDS = 60


def call(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(a) for a in arguments], env={"COLUMNS": "200"})


@contextlib.contextmanager
def followers(
    *commands: tuple[str, ...], logs: Path, program: list[str] = CLI
) -> Iterator[list[tuple[subprocess.Popen[bytes], Path]]]:
    """Verbs that run beside the test, each with a file of its output."""
    with contextlib.ExitStack() as stack:
        found = []
        for number, command in enumerate(commands):
            log = logs / f"follower-{number}.txt"
            process = start(list(command), log, program)
            stack.callback(kill_everything, process)
            found.append((process, log))
        yield found


@pytest.fixture
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No cluster is known."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.delenv("PELAGOS_CLUSTERS", raising=False)


pytestmark = pytest.mark.usefixtures("alone")


def test_a_run_is_watched_and_stopped_from_elsewhere_and_keeps_a_checkpoint(
    make_job: MakeJob, tmp_path: Path
) -> None:
    job, run = write_job(make_job, tmp_path, "asked", **ENDLESS, **ALONE)
    where = ("--runs-dir", str(run.path.parent))
    log = tmp_path / "log.txt"
    verbs = (
        ("watch", "asked", *where, "--every", "0.2"),
        ("logs", "-f", "asked", *where),
        ("wait", "asked", *where, "--json"),
    )
    with running(["pretrain", job], log) as process:
        wait_until(lambda: steps_done(run) >= 3, process, log)
        with followers(*verbs, logs=tmp_path) as found:
            (watching, seen), (logging, printed), (_, ended) = found
            wait_until(lambda: "step " in seen.read_text(), watching, seen)
            wait_until(lambda: "workers" in printed.read_text(), logging, printed)
            assert call("wait", "asked", *where, "--timeout", 0).exit_code == TIMED_OUT
            assert f"process {process.pid} on" in call("status", "asked", *where).output
            asked = call("stop", "asked", *where, "--json")
            assert json.loads(asked.stdout)["stop"] == "save"
            assert process.wait(WAIT_SECONDS) == STOPPED
            assert [each.wait(WAIT_SECONDS) for each, _ in found] == [STOPPED, 0, STOPPED]
    done = steps_done(run)
    assert CheckpointStore(run.checkpoint_uri).latest_step() == done
    assert run.status()["state"] == "stopped"
    assert json.loads(ended.read_text())["cause"] == "stop requested"
    lines = seen.read_text().splitlines()
    assert lines[-1] == "asked: stopped stop requested"
    assert re.match(r"\d\d:\d\d:\d\d  running  step \d+/100000  loss .* left$", lines[0])
    assert len({line[8:] for line in lines}) == len(lines)  # a line for each change
    assert f"step {done}/100000" in lines[-2]
    text = printed.read_text()
    for part in ("data", "model", "SIGTERM: saving after this step", f"stopped after step {done}"):
        assert part in text, part
    assert call("logs", "asked", *where).stdout == text
    for verb in ("stop", "wait"):
        again = call(verb, "asked", *where)
        assert "stopped" in again.output
        assert again.exit_code == (0 if verb == "stop" else STOPPED)


def test_a_killed_driver_is_noticed(make_job: MakeJob, tmp_path: Path) -> None:
    job, run = write_job(make_job, tmp_path, "killed", **ENDLESS, **ALONE)
    where = ("--runs-dir", str(run.path.parent))
    log = tmp_path / "log.txt"
    with running(["pretrain", job], log) as process:
        wait_until(lambda: steps_done(run) >= 2, process, log)
        with followers(("wait", "killed", "--timeout", "30", *where), logs=tmp_path) as [
            (waiting, told)
        ]:
            process.kill()
            process.wait()
            assert waiting.wait(WAIT_SECONDS) == LOST
    assert "killed: lost its process ended without a word" in told.read_text()
    for verb, status in {"stop": 0, "watch": LOST}.items():
        shown = call(verb, "killed", *where)
        assert (shown.exit_code, "lost" in shown.output) == (status, True), shown.output
    assert not run.stop_requested()  # or its next launch would stop at once


def test_now_ends_it_at_once_also_where_it_does_not_answer(
    make_job: MakeJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_run, "END_SECONDS", 1.0)
    job, run = write_job(make_job, tmp_path, "frozen", **ENDLESS, **ALONE)
    log = tmp_path / "log.txt"
    with running(["pretrain", job], log) as process:
        wait_until(lambda: steps_done(run) >= 2, process, log)
        process.send_signal(signal.SIGSTOP)
        shown = call("stop", "frozen", "--now", "--runs-dir", run.path.parent)
        assert process.wait(WAIT_SECONDS) == -signal.SIGKILL
    assert shown.output == "frozen is stopped\n"
    status = run.status()
    assert (status["state"], status["cause"]) == ("stopped", "killed: it did not end by itself")


HOLDING = """
import fcntl, sys
for path in sys.argv[1:]:
    lock = open(path, "a")
    fcntl.flock(lock, fcntl.LOCK_EX)
print("ready", flush=True)
input()
"""


@contextlib.contextmanager
def victim(*locks: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process of this user's, which holds these locks and would not stop as a run does."""
    command = [sys.executable, "-c", HOLDING, *map(str, locks)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process
        process.kill()


def driver(pid: int, **changes: Any) -> dict[str, Any]:
    named = {"host": os.uname().nodename, "pid": pid, "started": start_time(pid)}
    return {**named, "takes_signals": True, **changes}


@pytest.mark.parametrize(
    ("changes", "holds_lock"),
    [
        ({}, False),
        ({"started": "1"}, True),
        ({"started": None}, True),
        ({"host": "elsewhere"}, True),
        ({"takes_signals": False}, True),
    ],
    ids=["holds no lock", "other start", "cannot be seen", "other host", "in a notebook"],
)
def test_a_process_that_may_not_be_the_runs_is_left_alone(
    make_job: MakeJob, changes: dict[str, Any], holds_lock: bool
) -> None:
    """The request goes through the run's directory instead, and `--now` is refused."""
    run = RunDirectory.create(make_job("named"))
    where = ("--runs-dir", run.path.parent)
    with contextlib.ExitStack() as stack:
        if not holds_lock:
            stack.enter_context(run.lock())
        process = stack.enter_context(victim(*[run.lock_path] * holds_lock))
        run.set_status(State.RUNNING, driver=driver(process.pid, **changes))
        now = call("stop", "named", "--now", *where)
        assert not run.stop_requested()
        asked = call("stop", "named", *where)
        assert run.stop_requested()
        assert process.poll() is None
    assert now.exit_code == BAD_INPUT
    told = f"process {process.pid} on {changes.get('host', os.uname().nodename)}"
    assert f"is driven by {told}, which cannot be ended from here" in now.output
    assert f"{told} sees the request after its next step" in asked.output


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_the_process_of_another_users_file_is_left_alone(
    make_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunDirectory.create(make_job("named"))
    with victim(run.lock_path) as process:
        run.set_status(State.RUNNING, driver=driver(process.pid))
        uid = os.geteuid()
        monkeypatch.setattr(os, "geteuid", lambda: uid + 1)
        os.chown(run.path / "status.json", uid + 2, -1)
        call("stop", "named", "--runs-dir", run.path.parent)
        assert process.poll() is None
        monkeypatch.undo()
        os.chown(run.path / "status.json", uid, -1)
        call("stop", "named", "--runs-dir", run.path.parent)
        assert process.wait(WAIT_SECONDS) == -signal.SIGTERM  # it is the run's, as far as one sees


SLOW_CLAIM = """
import time
from pelagos.jobs import pretrain
pretrain.claim = lambda *_: time.sleep(600)
from pelagos.cli.main import main
main()
"""


def test_a_run_is_stopped_before_it_is_launched(make_job: MakeJob, tmp_path: Path) -> None:
    job, run = write_job(make_job, tmp_path, "early", **ENDLESS, **ALONE)
    where = ("--runs-dir", run.path.parent)
    log = tmp_path / "log.txt"
    with running(["pretrain", job], log, [CLI[0], "-c", SLOW_CLAIM]) as process:
        wait_until(lambda: run.status()["state"] == State.CREATED, process, log)
        assert call("wait", "early", "--timeout", 0, *where).exit_code == TIMED_OUT
        assert call("stop", "early", *where).exit_code == 0
        assert process.wait(WAIT_SECONDS) == STOPPED
    shown = call("wait", "early", "--timeout", 5, *where)
    assert shown.exit_code == STOPPED
    assert shown.output == "early: stopped SIGTERM before it was launched\n"


def test_a_run_that_was_never_launched_is_over(make_job: MakeJob, tmp_path: Path) -> None:
    run = RunDirectory.create(make_job("early"))
    where = ("--runs-dir", run.path.parent)
    assert call("wait", "early", "--timeout", 0, *where).exit_code == TIMED_OUT  # this process
    run.set_status(State.CREATED, driver=driver(os.getpid(), started="1"))
    assert call("wait", "early", "--timeout", 5, *where).exit_code == LOST
    run.set_status(State.CREATED, driver=None)
    shown = call("wait", "early", *where)
    assert shown.exit_code == LOST
    told = f"no process drives it; `pelagos resume {run.path}` starts it"
    assert told in shown.output


@pytest.mark.parametrize("verb", ["wait", "watch", "logs -f"])
def test_ctrl_c_of_a_verb_that_follows_ends_it_and_not_the_run(
    make_job: MakeJob, tmp_path: Path, verb: str
) -> None:
    run = RunDirectory.create(make_job("held"))
    with run.lock():
        run.set_status(State.RUNNING)
        run.append_metrics({"step": 1, "time": time.time(), "loss": 1.0})
        (run.path / kept_output.OUTPUT).write_text("printed\n")
        arguments = (*verb.split(), "held", "--runs-dir", str(run.path.parent))
        program = [CLI[0], "-c", f"print('begun', flush=True)\n{FOLLOWING}"]
        with followers(arguments, logs=tmp_path, program=program) as [(process, log)]:
            wait_until(lambda: "asked" in log.read_text(), process, log)
            process.send_signal(signal.SIGINT)
            assert process.wait(WAIT_SECONDS) == STOPPED
        assert not run.stop_requested()
    assert "Traceback" not in log.read_text()
    assert log.read_text().splitlines()[-1] == "interrupted by SIGINT"


FOLLOWING = """
import sys
from pelagos.cli.main import main
from pelagos.jobs.run_access.local_run import LocalRun
standing = LocalRun.standing
def say(run):
    print("asked", flush=True)
    return standing(run)
LocalRun.standing = say
main()
"""


def test_a_terminal_shows_a_view_that_is_renewed(make_job: MakeJob) -> None:
    run = RunDirectory.create(make_job("seen", schedule__total_steps=10))
    cause = "[bold]torn[/bold] [link=x]"
    with run.lock():
        run.set_status(State.RUNNING)
        run.append_metrics({"step": 3, "time": time.time(), "loss": 0.25, "step_seconds": 0.1})
        where = ["--runs-dir", str(run.path.parent)]
        watching = InTerminal([*CLI, "watch", "seen", "--every", "0.2", *where])
        seen = b""
        with contextlib.suppress(OSError):
            while b"3 of 10" not in seen:
                seen += os.read(watching.terminal, 65536)
            run.append_metrics({"step": 4, "time": time.time(), "loss": 0.125})
            while b"4 of 10" not in seen:
                seen += os.read(watching.terminal, 65536)
            run.set_status(State.FAILED, cause=cause)
            while True:
                seen += os.read(watching.terminal, 65536)
    assert watching.wait() == 1
    assert b"0.125" in seen
    assert b"\x1b[1A" in seen or b"\x1b[2K" in seen  # the lines are written over
    assert cause in seen.decode()


def test_each_look_reads_only_what_is_new(
    make_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunDirectory.create(make_job("long"))
    for step in range(1, 2001):
        run.append_metrics({"step": step, "time": float(step), "loss": 1.0})
    followed = FollowedRun(run)
    before = description_of(run, followed)
    parsed = []
    original = run_files.parsed_record
    for module in ("run_files", "record_tail"):
        path = f"pelagos.platform.records.{module}.parsed_record"
        monkeypatch.setattr(path, lambda line: (parsed.append(line), original(line))[1])
    run.append_metrics({"step": 2001, "time": 2001.0, "loss": 3.0})
    after = description_of(run, followed)
    assert (before.step, after.step) == (2000, 2001)
    assert after.smoothed_loss == pytest.approx((19 + 3) / 20)
    assert len(parsed) < 2 * 4096 * 22 / 50  # the ends of the files alone


@pytest.fixture
def finished_run(make_job: MakeJob, tmp_path: Path) -> RunDirectory:
    make_job("first", tracking__uri="null")
    result = call("pretrain", tmp_path / "first.yaml", "tracking.uri=null")
    assert result.exit_code == 0, result.output
    return RunDirectory(tmp_path / "runs" / "first")


def test_the_output_is_kept_without_colours_and_a_clone_differs_as_told(
    finished_run: RunDirectory,
) -> None:
    where = ("--runs-dir", finished_run.path.parent)
    text = call("logs", "first", *where).stdout
    assert "checkpoint of step 8" in text
    assert text.splitlines()[-1] == "finished after step 8"
    assert "\x1b" not in text
    cloned = call("clone", "first", "second", "optimizer.lr=0.001", *where)
    assert cloned.exit_code == 0, cloned.output
    assert "finished second at step 8" in cloned.output
    told = json.loads(call("diff", "first", "second", *where, "--json").stdout)
    assert told == {"name": ["first", "second"], "optimizer.lr": [0.003, 0.001]}
    shown = call("diff", "first", "second", *where).output
    assert "optimizer.lr" in shown
    second = RunDirectory(finished_run.path.parent / "second")
    assert load_job(second.path / "job.yaml") == second.job()
    assert second.metrics()[0]["loss"] == finished_run.metrics()[0]["loss"]  # before the first step
    assert second.metrics()[-1]["loss"] != finished_run.metrics()[-1]["loss"]
    taken = call("clone", "first", "second", *where)
    assert taken.exit_code == BAD_INPUT
    assert "run 'second' already exists" in taken.output


def test_what_is_kept_of_the_output_is_bounded_and_followed_across_files(
    make_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept_output, "MOST_BYTES", 1000)
    run = RunDirectory.create(make_job("chatty"))
    reader, read = KeptOutput(run), b""
    with kept_output.kept_output(run) as console:
        for number in range(200):
            console.print(f"line {number}")
            if number % 7 == 0:
                read += reader.news()
    read += reader.news()
    sizes = [path.stat().st_size for path in run.path.glob("output*.log")]
    assert len(sizes) == 2
    assert max(sizes) <= 1000
    assert read.decode().splitlines() == [f"line {n}" for n in range(200)]
    late = KeptOutput(run).news().decode().splitlines()
    assert late == [f"line {n}" for n in range(200 - len(late), 200)]
    assert len(late) > 50


def test_a_run_of_an_earlier_version_has_its_events(make_job: Callable[..., Any]) -> None:
    run = RunDirectory.create(make_job("old"))
    run.append_event("validation", step=4, validation_loss=0.5)
    run.append_event("finished", step=8)
    shown = call("logs", "old", "--runs-dir", run.path.parent).stdout
    assert "validation at step 4: loss 0.5000" in shown
    assert shown.splitlines()[-1].endswith("finished")
