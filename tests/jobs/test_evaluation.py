"""Evaluations of trained runs, from the command line: side by side, stepped for long, as ensembles."""

from __future__ import annotations

import io
import json
import math
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from typer.testing import CliRunner

from pelagos.cli.main import app
from pelagos.jobs import compare_runs
from pelagos.jobs import evaluate as evaluate_job
from pelagos.jobs.training.blueprint import build_parts
from pelagos.platform.config import EvaluateJob, PretrainJob
from pelagos.platform.config.load import parse_job
from pelagos.platform.records.runs import RunDirectory
from pelagos.platform.trainer import train


@pytest.fixture(scope="module")
def two_runs(
    datasets: tuple[str, str],
    tiny_job_text: Callable[[tuple[str, str], Path, str], str],
    tmp_path_factory: pytest.TempPathFactory,
) -> str:
    """Runs `short` and `long`, of one and of eight steps, the latter with averaged weights; returns
    their directory."""
    directory = tmp_path_factory.mktemp("compared")
    for name, steps in (("short", 1), ("long", 8)):
        changes = [f"schedule.total_steps={steps}", "schedule.warmup_steps=0", "tracking.uri=null"]
        changes += ["ema_decay=0.5"] if name == "long" else []
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
    told = evaluate("short", "long", "--compare", f"--runs-dir={two_runs}", "max_trajectories=3")
    datasets = told["datasets"]
    assert isinstance(datasets, list)
    assert len(datasets) == 2
    assert {row["run"] for row in datasets[0]["runs"]} == {"short", "long"}
    ranks = [row["mean_rank"] for row in datasets[0]["runs"]]
    assert ranks == sorted(ranks)
    assert datasets[0]["best"] == [None] * len(datasets[0]["lead_times"])  # of 3 trajectories
    assert "short-vs-long" in str(told["report"])
    weights = {row["run"]: row["weights"] for row in datasets[0]["runs"]}
    assert weights == {"short": "model", "long": "ema"}
    assert Path(str(told["report"])).read_text().count("averaged (ema)") == 1
    done = CliRunner().invoke(
        app,
        ["compare", "short", "long", f"--runs-dir={two_runs}", "split=validation"],
        env={"COLUMNS": "200"},
    )
    assert done.exit_code == 0, done.output
    assert done.output.count(", averaged") == 2  # a column of each dataset's table
    assert "mean rank" in done.output
    assert "relative L1 / VRMSE" in done.output
    assert "cannot be distinguished from persistence" in done.output


def numbers_in(text: str) -> Counter[str]:
    """The numbers in the rows of printed tables, without lead times."""
    rows = [line.split("│")[2:] for line in text.splitlines() if line.startswith("│")]
    return Counter(n for cells in rows for cell in cells for n in re.findall(r"\d+\.\d+%?", cell))


def both(l1: float, vrmse: float) -> list[str]:
    return [f"{l1:.2%}", f"{vrmse:.2f}"]


@pytest.mark.parametrize("width", [60, 80, 200])
def test_no_number_is_split_in_narrow_terminals(two_runs: str, width: int) -> None:
    job = {"runs_dir": two_runs, "split": "all", "max_trajectories": 6, "physics": False}
    console = Console(record=True, width=width, file=io.StringIO())
    told = evaluate_job.run(
        EvaluateJob(run="short", ensemble_size=2, tracking=False, **job), console
    )
    methods = ("direct", "autoregressive", "ensemble", "persistence", "mean")
    expected = [
        number
        for dataset in told.metrics["datasets"]
        for row in dataset["summary"]
        for method in methods
        for number in both(row[method], row["vrmse"][method])
    ]
    shown = console.export_text()
    assert numbers_in(shown) == Counter(expected)
    tables = [line for line in shown.splitlines() if line[:1] in "┏┃┡│└"]
    assert max(map(len, tables)) <= width
    assert f"report: {told.report}" in shown.splitlines()  # to be copied
    compared = compare_runs.run([EvaluateJob(run=r, **job) for r in ("short", "long")], console)
    expected = [
        number
        for dataset in compared.metrics["datasets"]
        for errors in [
            *(run["errors"] for run in dataset["runs"]),
            dataset["persistence"],
            dataset["mean"],
        ]
        for pair in zip(errors["relative_l1"], errors["vrmse"], strict=True)
        for number in both(*pair)
    ]
    assert numbers_in(console.export_text()) == Counter(expected)


def test_datasets_of_one_name_keep_their_own_verdicts(
    write_waves: Callable[..., None],
    tiny_job_text: Callable[[tuple[str, str], Path, str], str],
    tmp_path: Path,
) -> None:
    uris = str(tmp_path / "a" / "same.zarr"), str(tmp_path / "b" / "same.zarr")
    for seed, uri in enumerate(uris):
        write_waves(uri, ("velocity-x", "velocity-y"), seed)
    changes = ["schedule.total_steps=1", "schedule.warmup_steps=0", "tracking.uri=null"]
    changes += ["data.fields=[velocity-x,velocity-y]"]
    job = parse_job(tiny_job_text(uris, tmp_path, "twins"), "twins", changes)
    assert isinstance(job, PretrainJob)
    train(job, RunDirectory.create(job), build_parts, {})
    told = evaluate(
        "twins",
        f"--runs-dir={tmp_path}/runs",
        "max_trajectories=2",
        "physics=false",
        "stability_steps=2",
    )
    datasets = told["datasets"]
    assert isinstance(datasets, list)
    assert [d["name"] for d in datasets] == ["same-1", "same-2"]
    stabilities = told["stability"]
    assert isinstance(stabilities, list)
    assert [s["dataset"] for s in stabilities] == ["same-1", "same-2"]
    measured, _ = evaluate_job.measure(EvaluateJob(run="twins", runs_dir=f"{tmp_path}/runs"))
    names = [name for name, *_ in evaluate_job.evaluation_metrics(measured)]
    steps = len(measured[0].lead_steps)
    assert max(names.count(name) for name in names) == steps  # one value for each lead


def test_models_of_one_and_of_several_frames_forecast_the_same_frames(
    two_runs: str,
    datasets: tuple[str, str],
    tiny_job_text: Callable[[tuple[str, str], Path, str], str],
) -> None:
    directory = Path(two_runs).parent
    changes = ["schedule.total_steps=1", "schedule.warmup_steps=0", "tracking.uri=null"]
    changes += [
        "model.name=dpot-nano",
        "objective={name: autoregressive, config: {num_input_frames: 2}}",
    ]
    changes += ["model.config={img_size: 16, patch_size: 4, embed_dim: 8, depth: 1, n_blocks: 2, "]
    changes[-1] += "in_timesteps: 2}"
    job = parse_job(tiny_job_text(datasets, directory, "several"), "several", changes)
    assert isinstance(job, PretrainJob)
    train(job, RunDirectory.create(job), build_parts, {})
    of_run = [EvaluateJob(run=name, runs_dir=two_runs) for name in ("short", "several")]
    (one, *_), (several, *_) = (evaluate_job.measure(job, 1)[0] for job in of_run)
    for baseline in ("persistence", "mean"):  # which depend on the frames alone
        np.testing.assert_allclose(
            one.scores[baseline]["vrmse"], several.scores[baseline]["vrmse"], rtol=1e-5
        )
    told = evaluate("short", "several", "--compare", f"--runs-dir={two_runs}")
    found = told["datasets"]
    assert isinstance(found, list)
    # frames 2, 3 and 4 from frame 1, the second that the model of two frames takes
    assert found[0]["lead_times"] == pytest.approx([0.05, 0.1, 0.15])


def test_a_run_that_learnt_nothing_is_told_so_first(two_runs: str) -> None:
    job = EvaluateJob(run="short", runs_dir=two_runs, split="validation", tracking=False)
    console = Console(record=True, width=150)
    result = evaluate_job.run(job, console)
    shown = console.export_text()
    for dataset in result.metrics["datasets"]:
        told = dataset["verdict"]
        assert "beats" not in told["sentence"]
        assert shown.index(told["warning"]) < shown.index("relative L1 / VRMSE")
        assert told["sentence"] in shown
        rows = [row for row in dataset["summary"] if row["vrmse"]["direct"] is not None]
        first = rows[0]
        assert f"{first['direct']:.2%} / {first['vrmse']['direct']:.2f}" in shown
        assert first["mean"] is not None
    assert shown.count("relative L1 / VRMSE, medians over") == 2


def test_what_is_tracked_has_both_errors_of_the_model_and_the_baselines(two_runs: str) -> None:
    job = EvaluateJob(run="short", runs_dir=two_runs, split="all", max_trajectories=6)
    evaluations, _ = evaluate_job.measure(job)
    metrics = evaluate_job.evaluation_metrics(evaluations)
    assert all(math.isfinite(value) for _, _, value in metrics)
    values = {(name, lead): value for name, lead, value in metrics}
    for evaluation in evaluations:
        lead = evaluation.lead_steps[0]
        for method in ("direct", "autoregressive", "one_step", "persistence", "mean"):
            for metric in ("relative_l1", "vrmse"):
                scores = evaluation.scores[method][metric][:, 0]
                expected = np.median(scores, axis=0).mean()
                name = f"evaluation/{evaluation.data.name}/{method}/{metric}"
                assert values[name, lead] == pytest.approx(expected)
        over = [n for n, step in values if n.endswith("/over_mean") and step == lead]
        assert any(evaluation.data.name in name for name in over)


def test_a_long_rollout_and_an_ensemble_are_told_of(two_runs: str) -> None:
    told = evaluate(
        *("long", f"--runs-dir={two_runs}", "max_trajectories=2", "stability_steps=9"),
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
        (["short", "long"], "`pelagos compare RUN RUN` puts several side by side"),
        (["short", "--compare"], "needs at least two different runs, got short"),
        (["short", "rollout_windows=[[3, 2]]"], "a window ends before it begins: [3, 2]"),
        (["short", "short", "--compare"], "needs at least two different runs, got short, short"),
        (["short", "nobody", "--compare"], "nobody"),
    ],
)
def test_what_cannot_be_compared_is_refused(
    two_runs: str, arguments: list[str], message: str
) -> None:
    done = CliRunner().invoke(app, ["evaluate", *arguments, f"--runs-dir={two_runs}"])
    assert done.exit_code == 2
    assert message in done.output.replace("\n", " ")
