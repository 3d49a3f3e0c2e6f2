"""Evaluations of trained runs, from the command line: side by side, stepped for long, as ensembles."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pelagos.jobs.parts import build_parts
from pelagos.platform.cli.main import app
from pelagos.platform.config import PretrainJob
from pelagos.platform.config.load import parse_job
from pelagos.platform.runs import RunDirectory
from pelagos.platform.trainer import train


@pytest.fixture(scope="module")
def two_runs(
    datasets: tuple[str, str],
    tiny_job_text: Callable[[tuple[str, str], Path, str], str],
    tmp_path_factory: pytest.TempPathFactory,
) -> str:
    """Runs `short` and `long`, of one and of eight steps; returns their directory."""
    directory = tmp_path_factory.mktemp("compared")
    for name, steps in (("short", 1), ("long", 8)):
        changes = [f"schedule.total_steps={steps}", "schedule.warmup_steps=0", "tracking.uri=null"]
        job = parse_job(tiny_job_text(datasets, directory, name), name, changes)
        assert isinstance(job, PretrainJob)
        train(job, RunDirectory.create(job), build_parts, {})
    return str(directory / "runs")


def evaluate(*arguments: str) -> dict[str, object]:
    done = CliRunner().invoke(app, ["evaluate", *arguments, "--json"])
    assert done.exit_code == 0, done.output
    told: dict[str, object] = json.loads(done.stdout)
    return told


def test_two_runs_side_by_side(two_runs: str) -> None:
    told = evaluate("short", "long", "--compare", f"runs_dir={two_runs}", "max_trajectories=3")
    datasets = told["datasets"]
    assert isinstance(datasets, list)
    assert len(datasets) == 2
    assert {row["run"] for row in datasets[0]["runs"]} == {"short", "long"}
    ranks = [row["mean_rank"] for row in datasets[0]["runs"]]
    assert ranks == sorted(ranks)
    assert datasets[0]["best"] == [None] * len(datasets[0]["lead_times"])  # of 3 trajectories
    assert "short-vs-long" in str(told["report"])
    done = CliRunner().invoke(
        app, ["evaluate", "short", "long", "--compare", f"runs_dir={two_runs}", "split=validation"]
    )
    assert done.exit_code == 0, done.output
    assert "mean rank" in done.output
    assert "relative L1 / VRMSE" in done.output
    assert "cannot be told from persistence" in done.output


def test_a_long_rollout_and_an_ensemble_are_told_of(two_runs: str) -> None:
    told = evaluate(
        *("long", f"runs_dir={two_runs}", "max_trajectories=2", "stability_steps=9"),
        *("ensemble_size=3", "rollout_windows=[[2, 3]]"),
    )
    stability, datasets = told["stability"], told["datasets"]
    assert isinstance(stability, list)
    assert isinstance(datasets, list)
    assert [len(part["times"]) for part in stability] == [9, 9]
    assert stability[0]["first_non_finite_step"] == [None, None]
    assert "ensemble" in datasets[0]["scores"]
    (window,) = datasets[0]["rollout_windows"]
    assert (window["first"], window["last"], window["num_steps"]) == (2, 3, 2)
    methods = {"direct", "autoregressive", "ensemble"}
    assert set(window["vrmse"]) == methods | {"persistence", "mean"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["short", "long"], "with --compare it puts several side by side"),
        (["short", "--compare"], "takes two or more different runs, got short"),
        (["short", "rollout_windows=[[3, 2]]"], "a window ends before it begins: [3, 2]"),
        (["short", "short", "--compare"], "takes two or more different runs, got short, short"),
        (["short", "nobody", "--compare"], "nobody"),
    ],
)
def test_what_cannot_be_compared_is_refused(
    two_runs: str, arguments: list[str], message: str
) -> None:
    done = CliRunner().invoke(app, ["evaluate", *arguments, f"runs_dir={two_runs}"])
    assert done.exit_code == 2
    assert message in done.output.replace("\n", " ")
