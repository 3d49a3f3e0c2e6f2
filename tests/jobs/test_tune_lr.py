"""The range test of the learning rate: its curve, what is read off it, that it repeats itself."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter1d
from typer.testing import CliRunner

from pelagos.cli.main import app
from pelagos.jobs import tune_lr
from pelagos.platform.config import PretrainJob, resolve_yaml
from pelagos.platform.records.runs import RunDirectory

MakeJob = Callable[..., PretrainJob]


@pytest.mark.parametrize("where", [1e-4, 1e-3, 1e-2])
def test_the_suggestion_is_where_a_known_curve_falls_fastest(where: float) -> None:
    rates = np.geomspace(1e-6, 1.0, 200)
    fall = 1.0 / (1.0 + np.exp(-(np.log10(rates / where)) / 0.3))  # steepest at `where`
    found = tune_lr.read_off(rates, 1.0 - 0.7 * fall + np.where(rates > 0.3, 10.0, 0.0))
    assert found.suggested == pytest.approx(where, rel=0.1)
    assert found.exploded == pytest.approx(0.3, rel=0.1)
    assert found.lowest > found.suggested
    assert max(found.rates) < 0.3


def test_the_average_is_gaussian_and_moves_nothing() -> None:
    values = np.random.default_rng(0).normal(size=120)
    mine, scipys = tune_lr.smooth(values, 3.0), gaussian_filter1d(values, 3.0)
    np.testing.assert_allclose(mine[12:-12], scipys[12:-12], atol=1e-4)  # it cuts at 4 widths
    line = np.linspace(2.0, -1.0, 50)
    np.testing.assert_allclose(tune_lr.smooth(line, 3.0), line, atol=1e-12)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 5.0])
def test_nothing_is_read_off_behind_an_explosion(bad: float) -> None:
    rates, losses = np.geomspace(1e-6, 1.0, 100), np.linspace(1.0, 0.5, 100)
    losses[60] = bad
    losses[61:] = 0.1
    found = tune_lr.read_off(rates, losses)
    assert found.exploded == rates[60]
    assert len(found.rates) == len(found.losses) == len(found.smoothed) == 60


def test_a_loss_that_never_falls_is_said() -> None:
    rates = np.geomspace(1e-6, 1.0, 60)
    with pytest.raises(ValueError, match="the loss falls at no rate from"):
        tune_lr.read_off(rates, np.linspace(1.0, 1.5, 60))
    with pytest.raises(ValueError, match="exploded after 3 steps"):
        tune_lr.read_off(rates, np.where(np.arange(60) < 3, 1.0, 9.0))


def test_a_job_is_tested_and_gives_the_same_again(make_job: MakeJob, tmp_path: Path) -> None:
    job = make_job("found", data__global_batch_size=4)
    low, high, steps = 1e-5, 1.0, 40
    result = tune_lr.run(job, low, high, steps)
    expected = low * (high / low) ** (np.arange(steps) / steps)
    run = RunDirectory.open(job.runs_dir, "found-lr-range")
    np.testing.assert_allclose([r["lr"] for r in run.metrics()], expected, rtol=1e-9)
    assert len({r["step"] for r in run.metrics()}) == steps
    record = json.loads(result.record.read_text())
    assert record["suggested"] in expected.round(12) or record["suggested"] in record["rates"]
    assert record["losses"] == [r["loss"] for r in run.metrics()][: len(record["losses"])]
    with Image.open(result.picture) as picture:
        assert min(picture.size) > 300

    again = tune_lr.run(job, low, high, steps)  # replaces the earlier test
    assert again.found == result.found
    assert not (Path(job.runs_dir) / "found").exists()


def test_the_verb_says_what_to_try(make_job: MakeJob, tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(resolve_yaml(make_job("verb")))
    done = CliRunner().invoke(app, ["tune-lr", str(path), "--low", "1e-5", "--steps", "30"])
    assert done.exit_code == 0, done.output
    assert "the loss falls fastest at" in done.output
    assert "try optimizer.lr=" in done.output
    for options, expected in {
        ("--low", "1", "--high", "0.1"): "the rates must rise",
        ("--steps", "3"): "needs 20 steps or more",
    }.items():
        refused = CliRunner().invoke(app, ["tune-lr", str(path), *options])
        assert refused.exit_code == 2
        assert expected in " ".join(refused.output.split())


def test_a_run_of_that_name_that_is_no_range_test_is_kept(make_job: MakeJob) -> None:
    job = make_job("mine")
    RunDirectory.create(job.model_copy(update={"name": "mine-lr-range"}))
    with pytest.raises(ValueError, match="mine-lr-range"):
        tune_lr.run(job, steps=20)
    assert (Path(job.runs_dir) / "mine-lr-range" / "job.yaml").exists()
