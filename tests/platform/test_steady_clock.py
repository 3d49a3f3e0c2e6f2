"""A wall clock that is set while a run goes on, or between its launches, changes no figure."""

import time
from collections.abc import Callable
from typing import Any

import pytest

from pelagos.jobs import pretrain, resume
from pelagos.platform.config import PretrainJob
from pelagos.platform.records.runs import RunDirectory
from pelagos.platform.records.steady_clock import SteadyClock

MakeJob = Callable[..., PretrainJob]
HOUR = 3600.0


def times(run: RunDirectory) -> list[float]:
    """All times in the order of writing: of one process, steps and events lie between each other."""
    steps = {m["step"]: m["time"] for m in run.metrics()}
    found: list[float] = []
    done = 0
    for event in run.events():
        upto = event.get("step", done) if event["kind"] != "resumed" else done
        found += [steps[s] for s in range(done + 1, upto + 1) if s in steps]
        done = max(done, upto)
        found.append(event["time"])
    return found


@pytest.fixture
def wall(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    real = time.time

    def set_by(seconds: float) -> None:
        monkeypatch.setattr(time, "time", lambda: real() + seconds)

    return set_by


@pytest.mark.parametrize("jump", [-HOUR, HOUR])
def test_records_do_not_jump_with_the_clock(
    make_job: MakeJob, wall: Callable[[float], None], jump: float
) -> None:
    begin, outside = time.time(), time.monotonic()
    job = make_job(schedule__total_steps=6, tracking__uri="null")
    run = RunDirectory(f"{job.runs_dir}/{job.name}")
    seen: list[int] = []

    def watcher() -> None:
        if not seen and run.last_step() >= 2:
            seen.append(run.last_step())
            wall(jump)

    pretrain.run(job, watcher=watcher, until_step=4)
    resume.resume(job.runs_dir, job.name)
    elapsed = time.monotonic() - outside
    found = times(run)
    assert found == sorted(found)
    if jump < 0:  # set ahead between two launches, the second's own time is the wall's
        assert begin <= found[0]
        assert found[-1] <= begin + elapsed + 1.0
    share = run.followed_times().now().goodput()
    kept = sum(m["step_seconds"] for m in run.metrics())
    assert share is not None
    assert kept / elapsed <= share < 1.0  # launches lasted no longer than the test


def test_a_clock_goes_on_from_earlier_records(wall: Callable[[float], None]) -> None:
    ahead = time.time() + HOUR
    assert ahead <= SteadyClock.after(ahead).now() <= ahead + 60
    wall(-HOUR)
    clock = SteadyClock()
    first = clock.now()
    wall(HOUR)
    assert first <= clock.now() <= first + 60


def test_times_that_a_record_brings_are_kept(tmp_path: Any) -> None:
    run = RunDirectory(tmp_path)
    run.append_metrics({"step": 1, "time": 5.0})
    run.append_metrics({"step": 2})
    assert [m["time"] == 5.0 for m in run.metrics()] == [True, False]
