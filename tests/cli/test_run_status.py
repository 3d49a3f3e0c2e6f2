"""`pelagos status`: what it shows follows from the run's records."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from pelagos.cli.main import app
from pelagos.cli.words import span
from pelagos.platform.config import PretrainJob
from pelagos.platform.records.runs import RunDirectory
from pelagos.platform.records.states import State

MakeJob = Callable[..., PretrainJob]
LOSSES = 1.0 / np.arange(1, 31)  # of 30 steps


@pytest.fixture
def run(make_job: MakeJob) -> RunDirectory:
    """A run of 30 of 100 steps, 0.5 s each, whose last step ended an hour ago."""
    run = RunDirectory.create(make_job("watched", schedule__total_steps=100))
    run.append_event("launched", launch="a", num_workers=1)
    ended = time.time() - 3600
    for step, loss in enumerate(LOSSES, start=1):
        run.append_metrics(
            {
                "step": step,
                "time": ended - (30 - step) * 0.5,
                "loss": float(loss),
                "lr": 1e-3,
                "step_seconds": 0.5,
                "samples_per_second": 8.0,
                "memory_bytes": 3 * 2**29,
            }
        )
    for step, loss in ((10, 0.3), (20, 0.2), (30, 0.25)):
        run.append_event("validation", step=step, validation_loss=loss)
    run.append_event("checkpoint", step=30, uri=run.checkpoint_uri)
    return run


def shown(run: RunDirectory, *options: str) -> str:
    arguments = ["status", run.name, "--runs-dir", str(Path(run.path).parent), *options]
    result = CliRunner().invoke(app, arguments, env={"COLUMNS": "120"})
    assert result.exit_code == 0, result.output
    return result.stdout


def test_the_numbers_are_those_of_the_records(run: RunDirectory) -> None:
    told: dict[str, Any] = json.loads(shown(run, "--json"))
    assert told["smoothed_loss"] == pytest.approx(LOSSES[-20:].mean(), rel=1e-12)
    assert told["last_validation"] == {"step": 30, "loss": 0.25}
    assert told["best_validation"] == {"step": 20, "loss": 0.2}
    assert told["seconds_left"] == pytest.approx(70 * 0.5)
    assert told["last_step_at"] == pytest.approx(time.time() - 3600, abs=60)


def test_a_run_that_hangs_does_not_look_healthy(run: RunDirectory) -> None:
    with run.lock():
        run.set_status(State.RUNNING, launch="a")
        lines = [" ".join(line.split()) for line in shown(run).splitlines()]
    assert "state running" in lines
    assert {"last step 60 min ago", "last step 1 h ago"} & set(lines)
    assert "time left 35 s" in lines
    assert any(line.startswith("last sign ") and line.endswith(" s ago") for line in lines)


def test_lines_have_units_and_say_which_step(run: RunDirectory) -> None:
    text = " ".join(shown(run).split())
    assert "step 30 of 100 (30%)" in text
    mean = f"{LOSSES[-20:].mean():.4g}"
    assert f"loss 0.03333; mean of the last 20 steps {mean}" in text
    assert "validation 0.25 at step 30; best 0.2 at step 20" in text
    assert "rate 8.0 samples/s; a step takes 0.5 s (p50), 0.5 s (p90), 0.5 s (p99)" in text
    assert "memory 1.50 GiB" in text
    assert "learning rate 0.001" in text
    assert "time left" not in text  # nothing drives it
    assert "last checkpoint step 30" in text


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 10**400, "fast", None, True])
def test_values_of_others_break_nothing(run: RunDirectory, value: Any) -> None:
    run.append_metrics({"step": 31, "time": value, "loss": value, "step_seconds": value})
    run.append_event("validation", step=value, validation_loss=value)
    told = json.loads(shown(run, "--json"))
    assert told["best_validation"] == {"step": 20, "loss": 0.2}
    assert told["last_step_at"] is None or told["last_step_at"] < time.time()
    assert "watched" in shown(run)


def test_lengths_of_time() -> None:
    assert [span(s) for s in (0.2, 59.4, 60, 3599, 3700, 90_000)] == [
        *("0 s", "59 s", "1 min", "59 min 59 s", "1 h 1 min", "1 d 1 h")
    ]
    assert span(float("inf")) == "-"


LONG = "ns-and-ce-poseidon-nano-lr-0.0006-warmup-60-weight_decay-0.01-s0-34ba19"


@pytest.mark.parametrize("width", [30, 60, 80, 100, 200])
@pytest.mark.parametrize("name", ["short", LONG])
def test_a_list_fits_the_terminal_and_cuts_no_name(
    make_job: MakeJob, width: int, name: str
) -> None:
    job = make_job(name)
    RunDirectory.create(job)
    place = ["--runs-dir", str(job.runs_dir)]
    shown = CliRunner().invoke(app, ["list", *place], env={"COLUMNS": str(width)}).stdout
    assert name in shown
    assert "created" in shown
    needed = len(name) + len("created") + 7
    assert max(map(len, shown.splitlines()[:5])) <= max(width, needed)
    wide = CliRunner().invoke(app, ["list", *place, "--wide"], env={"COLUMNS": str(width)}).stdout
    header = wide.splitlines()[1]
    for column in ("run", "cluster", "state", "step", "loss", "samples/s", "last sign"):
        assert column in header
        assert column in shown.splitlines()[1] or f"{column}" in shown.partition("not shown: ")[2]
    assert name in wide


def test_a_step_is_a_sign_of_life_though_the_status_is_older(run: RunDirectory) -> None:
    status = run.path / "status.json"
    content = json.loads(status.read_text())
    arguments = ["list", "--json", "--runs-dir", str(run.path.parent)]
    last_step = json.loads(shown(run, "--json"))["last_step_at"]
    for written, expected in ((last_step - 7200, last_step), (last_step + 60, last_step + 60)):
        status.write_text(json.dumps({**content, "updated": written}))
        assert json.loads(shown(run, "--json"))["updated"] == pytest.approx(expected)
        listed = CliRunner().invoke(app, arguments)
        (row,) = json.loads(listed.stdout)
        assert row["updated"] == pytest.approx(expected)
