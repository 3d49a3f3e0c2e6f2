"""`pelagos plot`: curves of any length in bounded memory, drawn and listed."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from pelagos.cli.main import app
from pelagos.cli.plot import bars
from pelagos.jobs import plot_runs
from pelagos.platform.config import PretrainJob
from pelagos.platform.records.runs import RunDirectory

MakeJob = Callable[..., PretrainJob]


@pytest.mark.parametrize("count", [1, 2, 1999, 2000, 2001, 4001, 50_000])
def test_a_long_curve_is_averaged_over_neighbours(count: int) -> None:
    values = np.random.default_rng(0).normal(size=count)
    averaged = plot_runs.Averaged()
    most = 0
    for step, value in enumerate(values, start=1):
        averaged.add(step, float(value))
        most = max(most, len(averaged.points))
    steps, means = averaged.curve
    assert most <= 2 * plot_runs.MOST_POINTS + 1
    assert steps[-1] == count
    begins = [0, *steps[:-1]]
    expected = [values[a:b].mean() for a, b in zip(begins, steps, strict=True)]
    np.testing.assert_allclose(means, expected, rtol=1e-9, atol=1e-12)
    widths = np.diff([0, *steps])
    assert (widths[:-1] == averaged.steps_each).all()  # all but the last point are alike


@pytest.fixture
def runs(make_job: MakeJob) -> str:
    """Two runs; the second ended after one step, and holds what others wrote."""
    job = make_job("one")
    one, two = RunDirectory.create(job), RunDirectory.create(make_job("two"))
    for step in range(1, 41):
        values = {"loss": 1 / step, "lr": 1e-3, "loss/ns": 2 / step, "gradient_norm": 0.5}
        one.append_metrics({"step": step, "time": float(step), **values})
    one.append_event("validation", step=20, validation_loss=0.3)
    one.append_event("validation", step=40, validation_loss=0.2)
    two.append_metrics(
        {"step": 1, "time": 1.0, "loss": 0.9, "lr": float("nan"), "gradient_norm": "x"}
    )
    return str(job.runs_dir)


def test_curves_are_the_records(runs: str, tmp_path: Path) -> None:
    found = plot_runs.run(
        {name: RunDirectory.open(runs, name) for name in ("one", "two")}, tmp_path / "c.png"
    )
    assert found["one"]["loss"] == (list(range(1, 41)), [1 / n for n in range(1, 41)])
    assert found["one"]["validation_loss"] == ([20, 40], [0.3, 0.2])
    assert set(found["one"]) == {"loss", "lr", "loss/ns", "gradient_norm", "validation_loss"}
    assert found["two"] == {"loss": ([1], [0.9])}
    with Image.open(tmp_path / "c.png") as picture:
        assert picture.size[0] > 1000
        assert np.asarray(picture.convert("L")).std() > 5  # not blank


def plot(*arguments: Any) -> Any:
    return CliRunner().invoke(app, ["plot", *map(str, arguments)], env={"COLUMNS": "80"})


def test_the_verb_lists_what_it_draws(runs: str, tmp_path: Path) -> None:
    picture = tmp_path / "deep" / "c.png"
    shown = plot("one", "two", "--runs-dir", runs, "-o", picture)
    assert shown.exit_code == 0, shown.output
    assert picture.exists()
    row = next(line for line in shown.output.splitlines() if "│ one │ loss " in line)
    assert [cell.strip() for cell in row.split("│")[3:6]] == ["1", "0.025", "0.025"]
    assert max(map(len, shown.output.splitlines()[:-1])) <= 80
    told = json.loads(plot("one", "--runs-dir", runs, "-o", picture, "--json").stdout)
    assert told["one"]["validation_loss"] == [[20, 40], [0.3, 0.2]]


def test_runs_without_steps_and_absent_ones_are_said(make_job: MakeJob, tmp_path: Path) -> None:
    job = make_job("idle")
    RunDirectory.create(job)
    for name, expected in {"idle": "idle took no step yet", "gone": "no run 'gone'"}.items():
        refused = plot(name, "--runs-dir", job.runs_dir, "-o", tmp_path / "c.png")
        assert refused.exit_code == 2
        assert expected in " ".join(refused.output.split())
    assert not (tmp_path / "c.png").exists()


def test_bars_follow_the_values() -> None:
    assert bars([0.0, 1.0]) == "▁█"
    assert bars([3.0] * 100) == "▁" * 16
    falling = bars([math.exp(-n / 20) for n in range(200)])
    assert len(falling) == 16
    assert list(falling) == sorted(falling, reverse=True)
