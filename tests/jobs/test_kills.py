"""kill -9 of everything, of a worker, of the driver: the resumed run equals one never killed.

Real processes, real Ray, real signals. What is compared: every logged loss, gradient norm and
learning rate, and every tensor of the last checkpoint (weights, both Adam moments, step counts).
"""

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from glob import glob
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import yaml

from pelagos.platform.checkpoint import CheckpointStore
from pelagos.platform.config import PretrainJob, resolve_yaml
from pelagos.platform.records.runs import RunDirectory

MakeJob = Callable[..., PretrainJob]
WAIT_SECONDS = 240.0
CLI = [sys.executable, "-m", "pelagos.cli.main"]
STEPS = 24


def start(arguments: list[str], log: Path, program: list[str] = CLI) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PELAGOS_LOG": "1"}
    with log.open("ab") as out:
        return subprocess.Popen(
            [*program, *arguments],
            stdout=out,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )


@contextlib.contextmanager
def running(
    arguments: list[str], log: Path, program: list[str] = CLI
) -> Iterator[subprocess.Popen[bytes]]:
    process = start(arguments, log, program)
    try:
        yield process
    finally:
        kill_everything(process)


def kill_everything(process: subprocess.Popen[bytes]) -> None:
    family: list[psutil.Process] = []
    with contextlib.suppress(psutil.NoSuchProcess):
        family = psutil.Process(process.pid).children(recursive=True)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    for member in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            member.kill()
    process.wait()
    psutil.wait_procs(family, timeout=20)


def wait_until(
    condition: Callable[[], Any], process: subprocess.Popen[bytes], log: Path, pause: float = 0.005
) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while not condition():
        if process.poll() is not None or time.monotonic() > deadline:
            raise AssertionError(f"exit {process.poll()}:\n{log.read_text()[-4000:]}")
        time.sleep(pause)


def finish(arguments: list[str], log: Path, program: list[str] = CLI) -> None:
    with running(arguments, log, program) as process:
        status = process.wait(WAIT_SECONDS)
    assert status == 0, log.read_text()[-4000:]


def steps_done(run: RunDirectory) -> int:
    last = run.last_metrics(1)
    return int(last[0]["step"]) if last else 0


def deterministic(run: RunDirectory) -> list[dict[str, Any]]:
    keys = ("step", "loss", "gradient_norm", "lr", "loss/ns", "loss/ce")
    return [{k: m.get(k) for k in keys} for m in run.metrics()]


def assert_same_run(a: RunDirectory, b: RunDirectory) -> None:
    assert deterministic(a) == deterministic(b)
    one = CheckpointStore(a.checkpoint_uri).load_named(STEPS, "")
    two = CheckpointStore(b.checkpoint_uri).load_named(STEPS, "")
    assert one.keys() == two.keys()
    assert [name for name in one if not torch.equal(one[name], two[name])] == []


def write_job(
    make_job: MakeJob, tmp_path: Path, name: str, **overrides: Any
) -> tuple[str, RunDirectory]:
    settings = {
        "schedule__total_steps": STEPS,
        "checkpoint__every_steps": 4,
        "tracking__uri": "null",  # tracking has tests of its own
    }
    job = make_job(name, **{**settings, **overrides})
    path = tmp_path / f"{name}-job.yaml"
    path.write_text(resolve_yaml(job))
    return str(path), RunDirectory(f"{job.runs_dir}/{name}")


def test_killing_everything_at_any_moment_changes_nothing(
    make_job: MakeJob, tmp_path: Path
) -> None:
    whole_job, whole = write_job(make_job, tmp_path, "whole")
    log = tmp_path / "log.txt"
    finish(["pretrain", whole_job], log)
    job, run = write_job(make_job, tmp_path, "killed")
    choose = random.Random(0)
    unfinished = run.path / "checkpoints"
    moments: list[Callable[[], Any]] = [
        lambda: steps_done(run) >= choose.randint(1, 3),  # before the first checkpoint
        # inside a save; unlike Path.glob, this bears a folder that is renamed meanwhile
        lambda: glob(f"{unfinished}/.unfinished-*/__0_*"),
        lambda: steps_done(run) >= 13 + choose.randint(0, 4),
    ]
    command = ["pretrain", job]
    for moment in moments:
        with running(command, log) as process:
            wait_until(moment, process, log, pause=0.0005)
            kill_everything(process)
        command = ["resume", "killed", "--runs-dir", str(run.path.parent)]
        assert run.status()["state"] in ("lost", "created")
    finish(command, log)
    assert sum(e["kind"] == "launched" for e in run.events()) >= 3
    assert_same_run(run, whole)
    assert not list(unfinished.glob(".unfinished-*"))


def test_ctrl_c_saves_says_how_to_go_on_and_exits_130(make_job: MakeJob, tmp_path: Path) -> None:
    job, run = write_job(make_job, tmp_path, "interrupted", schedule__total_steps=2000)
    log = tmp_path / "log.txt"
    with running(["pretrain", job], log) as process:
        wait_until(lambda: steps_done(run) >= 5, process, log)
        os.kill(process.pid, signal.SIGINT)
        assert process.wait(WAIT_SECONDS) == 130
    stopped = steps_done(run)
    assert CheckpointStore(run.checkpoint_uri).latest_step() == stopped
    assert f"saved at step {stopped}" in log.read_text()
    assert "pelagos resume interrupted" in log.read_text()
    assert run.status()["state"] == "stopped"


LIMITED = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
sys.argv = ["pelagos", *sys.argv[1:]]
from pelagos.cli.main import main
main()
"""


def test_a_disk_that_is_full_fails_the_run_and_loses_nothing(
    make_job: MakeJob, tmp_path: Path
) -> None:
    job, run = write_job(make_job, tmp_path, "full")
    log = tmp_path / "log.txt"
    with running(["pretrain", job], log) as process:
        wait_until(lambda: steps_done(run) >= 9, process, log)
        kill_everything(process)
    store = CheckpointStore(run.checkpoint_uri)
    before = store.latest_step()
    assert before is not None
    # the kernel refuses larger files, as a full disk does: the next checkpoint cannot be written
    limited = [sys.executable, "-c", LIMITED]
    command = ["resume", "full", "--runs-dir", str(run.path.parent)]
    with running(command, log, limited) as process:
        assert process.wait(WAIT_SECONDS) == 1
    text = " ".join(log.read_text().split())
    assert f"could not write the checkpoint of step {before + 4}" in text
    assert "Earlier checkpoints are intact" in text
    assert run.status()["state"] == "failed"
    assert store.latest_step() == before
    finish(command, log)  # with space again, it goes on
    assert store.latest_step() == STEPS


def torchrun(workers: int) -> list[str]:
    return [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        f"--nproc-per-node={workers}",
        "-m",
        "pelagos.cli.main",
    ]


def test_a_run_that_is_being_driven_is_not_started_twice(make_job: MakeJob, tmp_path: Path) -> None:
    job, run = write_job(make_job, tmp_path, "busy", schedule__total_steps=2000)
    log, other = tmp_path / "log.txt", tmp_path / "other.txt"
    with running(["pretrain", job], log) as process:
        wait_until(lambda: steps_done(run) >= 1, process, log)
        with running(["resume", "busy", "--runs-dir", str(run.path.parent)], other) as second:
            assert second.wait(WAIT_SECONDS) == 2
        assert "in use by another process" in other.read_text()
        assert process.poll() is None


@pytest.mark.matrix
def test_three_ranks_resume_to_the_bit(make_job: MakeJob, tmp_path: Path) -> None:
    # with two ranks any order of summing gives the same bits; with three it does not
    log = tmp_path / "log.txt"
    three = {"resources__num_workers": 3, "data__global_batch_size": 6}
    whole_job, whole = write_job(make_job, tmp_path, "whole", **three)
    finish(["pretrain", whole_job], log, torchrun(3))
    job, run = write_job(make_job, tmp_path, "killed", **three)
    with running(["pretrain", job], log, torchrun(3)) as process:
        wait_until(lambda: steps_done(run) >= 10, process, log)
    assert run.status()["state"] == "lost"
    finish(["resume", "killed", "--runs-dir", str(run.path.parent)], log, torchrun(3))
    assert_same_run(run, whole)


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_ray_workers_and_driver_may_die(make_job: MakeJob, tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    # at ten times this rate the tiny model's training is chaotic: rounding grows tenfold in 5 steps
    rate = {"optimizer__lr": 3e-4}
    two = {"resources__num_workers": 2, **rate}
    single_job, single = write_job(make_job, tmp_path, "single", **rate)
    finish(["pretrain", single_job], log)
    reference_job, reference = write_job(make_job, tmp_path, "torchrun", **two)
    finish(["pretrain", reference_job], log, torchrun(2))
    # two ranks sum in another order than one process: fp32 rounding over the steps of Adam
    assert len(reference.metrics()) == len(single.metrics()) == STEPS
    for a, b in zip(reference.metrics()[:20], single.metrics()[:20], strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-5)

    job, run = write_job(make_job, tmp_path, "ray", resources__launcher="ray", **two)
    with running(["pretrain", job], log) as process:
        saved = run.path / "checkpoints"  # written beside the steps: wait for a complete one
        wait_until(lambda: steps_done(run) >= 6 and any(saved.glob("step-*")), process, log)
        train_worker(process).kill()
        wait_until(lambda: any(e["kind"] == "resumed" for e in run.events()), process, log)
        wait_until(lambda: steps_done(run) >= 13, process, log)
        family = psutil.Process(process.pid).children(recursive=True)
        worker = train_worker(process)
        process.kill()
        process.wait()
        assert psutil.wait_procs([worker], timeout=60)[1] == []  # nobody writes on
        for member in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                member.kill()
    assert run.status()["state"] == "lost"
    finish(["resume", "ray", "--runs-dir", str(run.path.parent)], log)
    assert run.status()["state"] == "finished"
    assert_same_run(run, reference)
    assert yaml.safe_load((run.path / "job.yaml").read_text())["name"] == "ray"


def train_worker(driver: subprocess.Popen[bytes]) -> psutil.Process:
    for child in psutil.Process(driver.pid).children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if any("TrainWorker" in part for part in child.cmdline()):
                return child
    raise AssertionError("no Ray Train worker found")
