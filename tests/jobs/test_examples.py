"""The examples do what they say, on data small enough for a test."""

from __future__ import annotations

import re
import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pelagos.data_pipelines.store import open_dataset
from pelagos.jobs import resume
from pelagos.jobs.training.blueprint import build_parts
from pelagos.platform.config import PretrainJob, TrainingJob, load_job
from pelagos.platform.records.runs import RunDirectory
from pelagos.platform.trainer import train

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
RunExample = Callable[..., str]


@pytest.fixture
def run_example(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> RunExample:
    """Run an example as a program, with arguments, in this process; return what it printed."""

    def run(name: str, *arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        return capsys.readouterr().out

    return run


def test_forecasting_with_a_run(
    run_example: RunExample, make_job: Callable[..., PretrainJob]
) -> None:
    job = make_job("waves", schedule__total_steps=3)
    train(job, RunDirectory.create(job), build_parts, {})
    output = run_example("forecast.py", "waves", "--runs-dir", job.runs_dir)
    assert output.startswith("waves after 3 steps")
    # frames 0.05 apart: leads 1, 3 and 4 of 4; "ns" stores velocity alone, "ce" all fields
    assert re.findall(r"velocity +lead time ([\d.]+)", output) == ["0.050", "0.150", "0.200"] * 2
    assert len(re.findall(r"pressure +lead time", output)) == 3
    errors = [float(x) for x in re.findall(r"(?:model|persistence) +([\d.]+)%", output)]
    # three leads times velocity (ns), density, velocity and pressure (ce), two methods each
    assert len(errors) == 3 * 4 * 2
    assert all(0 < e < 1000 for e in errors)


def test_the_jobs_on_digits_train_on_what_the_example_writes(
    run_example: RunExample, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run_example("digits.py", "vision/digits.zarr")
    dataset = open_dataset("vision/digits.zarr")
    assert dataset.spec.shape == (1797, 1, 2, 8, 8)
    assert set(dataset.parameters["label"]) == set(range(10))
    short = ["schedule.total_steps=2", "schedule.warmup_steps=0", "validation.num_samples=8"]
    for name in ("masked", "classify", "segment"):
        job = load_job(EXAMPLES.parent / "configs" / "vision" / f"{name}.yaml", short)
        assert isinstance(job, TrainingJob)
        assert resume.start(job).outcome.kind == "finished"
