"""Evaluations spread over Ray workers: the numbers of one process, bit for bit."""

from __future__ import annotations

import io
import itertools
import json
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from rich.console import Console
from torch import Tensor
from typer.testing import CliRunner

from pelagos.cli.main import app
from pelagos.evaluation.measures.metrics import METRICS
from pelagos.infra.clusters import Needs
from pelagos.infra.ray_cluster import ray_cluster
from pelagos.infra.ray_workers import spread
from pelagos.jobs import evaluate
from pelagos.jobs.measuring import spreading
from pelagos.jobs.measuring.trained import load_run
from pelagos.jobs.measuring.workers import Workers, repeatable, workers_of
from pelagos.jobs.submission.kinds import kind_of
from pelagos.jobs.sweeping import one_trial
from pelagos.jobs.sweeping.trials import trials_of
from pelagos.jobs.training.blueprint import build_parts
from pelagos.jobs.weights.forecaster import Forecaster
from pelagos.platform.config import ConfigError, EvaluateJob, PretrainJob, SweepJob
from pelagos.platform.config.load import parse_job
from pelagos.platform.config.measure import EvaluateResources
from pelagos.platform.config.schema import ResourcesConfig
from pelagos.platform.records.runs import RunDirectory
from pelagos.platform.trainer import train

JobText = Callable[[tuple[str, str], Path, str], str]


@pytest.fixture(scope="module")
def runs(
    datasets: tuple[str, str], tiny_job_text: JobText, tmp_path_factory: pytest.TempPathFactory
) -> str:
    """The directory of a run `trained`, which has averaged weights."""
    directory = tmp_path_factory.mktemp("spread")
    changes = ["schedule.total_steps=3", "tracking.uri=null", "ema_decay=0.5"]
    job = parse_job(tiny_job_text(datasets, directory, "trained"), "trained", changes)
    assert isinstance(job, PretrainJob)
    train(job, RunDirectory.create(job), build_parts, {})
    return str(directory / "runs")


@pytest.fixture(scope="module")
def two_workers() -> Iterator[None]:
    """One cluster for all tests here; a job joins the cluster it finds."""
    with ray_cluster(None, num_cpus=4):
        yield


@pytest.fixture
def shipped_by_value() -> Iterator[None]:
    """Workers get what is defined here by value: they do not import the folder of a driver."""
    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    yield
    cloudpickle.unregister_pickle_by_value(sys.modules[__name__])


def sharpness(forecast: Tensor, truth: Tensor, num_dimensions: int = 2) -> Tensor:
    return (forecast - truth).double().square().amax(tuple(range(-num_dimensions - 1, 0)))


def numbers(runs: str, output: Path, **resources: Any) -> dict[str, Any]:
    """Evaluate 11 trajectories of two datasets, in batches of 2 and one of 1: 6 of each."""
    job = EvaluateJob(
        run="trained",
        runs_dir=runs,
        split="all",
        max_trajectories=11,
        batch_size=2,
        ensemble_size=3,
        stability_steps=6,
        tracking=False,
        output_dir=str(output),
        resources=EvaluateResources(**resources),
    )
    found = evaluate.run(job, Console(file=io.StringIO())).metrics
    assert json.loads((output / "metrics.json").read_text()) == found
    return found


@pytest.mark.ray
@pytest.mark.usefixtures("two_workers")
def test_any_number_of_workers_gives_the_same_bits(
    runs: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # an error that this program registers, and no plugin that a worker would import
    monkeypatch.setattr(METRICS, "_parts", dict(METRICS._parts))
    monkeypatch.setattr(METRICS, "_origins", dict(METRICS._origins))
    METRICS.register("sharpness", sharpness)
    expected = numbers(runs, tmp_path / "here")
    assert len(expected["datasets"]) == 2
    assert expected["datasets"][0]["trajectories"] == list(range(11))
    for count in (1, 2):
        found = numbers(runs, tmp_path / str(count), num_workers=count, launcher="ray")
        assert found == expected  # every number of every trajectory, by value
    assert "sharpness" in json.dumps(expected)
    # the pictures too; how long it took differs
    pages = [(tmp_path / name / "report.html").read_text() for name in ("here", "2")]
    took = re.compile(r"[\d.,]+ s for 22 trajectories")
    assert all(len(took.findall(page)) == 1 for page in pages)
    assert took.sub("", pages[0]) == took.sub("", pages[1])


@pytest.mark.ray
@pytest.mark.usefixtures("two_workers")
def test_workers_are_asked_for_on_the_command_line(
    runs: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts: list[int] = []

    def counted(*arguments: Any, **options: Any) -> Any:
        counts.append(options["num_workers"])
        return spread(*arguments, **options)

    monkeypatch.setattr(spreading, "spread", counted)
    common = ["evaluate", "trained", f"--runs-dir={runs}", "tracking=false", "--json"]
    alone = CliRunner().invoke(app, [*common, f"output_dir={tmp_path}/1"])
    two = CliRunner().invoke(
        app, [*common, f"output_dir={tmp_path}/2", "--workers", "2", "--gpus-per-worker", "0"]
    )
    assert two.exit_code == alone.exit_code == 0, two.output
    assert counts == [2]
    assert json.loads(two.stdout)["datasets"] == json.loads(alone.stdout)["datasets"]


class Noting:
    """Work that returns the piece, the one that is to follow and the process; may die once."""

    def __init__(self, flag: str | None = None) -> None:
        self.flag = flag

    def __call__(self, item: int, following: int | None) -> tuple[int, int | None, int]:
        if item == 13:
            raise ValueError("13 is unlucky")
        if self.flag and item == 4 and not os.path.exists(self.flag):
            Path(self.flag).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return item, following, os.getpid()


@pytest.mark.ray
@pytest.mark.usefixtures("two_workers", "shipped_by_value")
def test_each_piece_is_worked_on_once_and_what_follows_does_follow(tmp_path: Path) -> None:
    found = list(spread(Noting(), range(9), num_workers=2, reads_ahead=True))
    assert sorted(item for item, _, _ in found) == list(range(9))
    by_process: dict[int, list[tuple[int, int | None]]] = {}
    for item, following, process in found:
        by_process.setdefault(process, []).append((item, following))
    for pieces in by_process.values():
        told = [f for _, f in pieces[:-1] if f is not None]
        assert told
        for (_, following), (item, _) in itertools.pairwise(pieces):
            assert following in (None, item)
    plain = list(spread(Noting(), range(9), num_workers=2))
    assert {following for _, following, _ in plain} == {None}
    with pytest.raises(ValueError, match="13 is unlucky"):
        list(spread(Noting(), range(12, 15), num_workers=2))
    flag = tmp_path / "died"
    again = list(spread(Noting(str(flag)), range(9), num_workers=2, reads_ahead=True))
    assert flag.exists()
    assert sorted(item for item, _, _ in again) == list(range(9))


class Threads:
    """A measurement of what it is measured by: threads and device."""

    num_batches = 3

    def __init__(self, forecaster: Forecaster, device: torch.device) -> None:
        self.told = (next(forecaster.model.parameters()).device.type, device.type)

    def read(self, batch: int) -> int:
        return batch

    def measure(self, batch: int, read: int) -> tuple[int, tuple[str, str], int]:
        return batch, self.told, torch.get_num_threads()

    def combine(self, parts: Sequence[tuple[int, tuple[str, str], int]]) -> Any:
        return parts


def threads(forecaster: Forecaster, device: torch.device, known: Any) -> list[Any]:
    return [Threads(forecaster, device)]


@pytest.mark.ray
@pytest.mark.usefixtures("two_workers", "shipped_by_value")
@pytest.mark.parametrize("in_ray", [False, True])
def test_workers_use_the_threads_and_the_device_that_they_are_given(
    runs: str, in_ray: bool
) -> None:
    trained = load_run(EvaluateJob(run="trained", runs_dir=runs))
    workers = Workers(in_ray, 2, cpus_per_worker=2, gpus_per_worker=0, ray_address=None)
    (found,) = spreading.measure_all(threads, lambda _: None, trained.forecaster, workers)
    assert found == [(batch, ("cpu", "cpu"), 2) for batch in range(3)]


TRAINED_ON = ResourcesConfig(cpus_per_worker=3)
needs_no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="of a machine without a GPU")


@needs_no_gpu
def test_the_device_is_the_one_that_is_there_or_asked_for() -> None:
    usual = workers_of(EvaluateResources(), TRAINED_ON)
    assert (usual.in_ray, usual.gpus_per_worker, usual.cpus_per_worker) == (False, 0, 3)
    assert usual.device == torch.device("cpu")
    with pytest.raises(ValueError, match=r"num_workers\(2\) x 1 = 2, but PyTorch finds 0"):
        workers_of(EvaluateResources(num_workers=2, gpus_per_worker=1), TRAINED_ON)
    there = {"ray_address": "auto", "gpus_per_worker": 1}
    assert workers_of(EvaluateResources(**there), TRAINED_ON).in_ray
    assert workers_of(EvaluateResources(num_workers=2), TRAINED_ON).in_ray


@needs_no_gpu
def test_a_gpu_that_is_not_there_is_refused_before_anything_is_read(
    runs: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"resources\.gpus_per_worker"):
        numbers(runs, tmp_path / "gpu", gpus_per_worker=1)
    assert not (tmp_path / "gpu").exists()


@needs_no_gpu
def test_a_trial_of_a_sweep_measures_on_the_device_that_it_trained_on(
    datasets: tuple[str, str], tiny_job_text: JobText, tmp_path: Path
) -> None:
    file = tmp_path / "tiny.yaml"
    file.write_text(tiny_job_text(datasets, tmp_path, "tiny"))
    tree = {
        "job": "sweep",
        "name": "tiny",
        "runs_dir": str(tmp_path / "runs"),
        "jobs": {"a": {"file": str(file)}},
        "tracking": {"uri": None},
        "evaluate": {"max_trajectories": 2},
    }
    sweep = parse_job(yaml.safe_dump(tree), "sweep.yaml")
    assert isinstance(sweep, SweepJob)
    (trial,) = trials_of(sweep)
    ended = one_trial.train(trial, lambda: None)
    assert one_trial._result(sweep, trial, ended, False).errors.keys() == {
        "direct",
        "autoregressive",
    }
    on_gpu = trial.job.resources.model_copy(update={"gpus_per_worker": 1})
    moved = replace(trial, job=trial.job.model_copy(update={"resources": on_gpu}))
    with pytest.raises(ValueError, match=r"num_workers\(1\) x 1 = 1, but PyTorch finds 0"):
        one_trial._result(sweep, moved, ended, False)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_gives_the_numbers_of_the_cpu_to_rounding(runs: str, tmp_path: Path) -> None:
    assert workers_of(EvaluateResources(), TRAINED_ON).device.type == "cuda"
    here = numbers(runs, tmp_path / "gpu")
    assert numbers(runs, tmp_path / "again") == here
    cpu = numbers(runs, tmp_path / "cpu", gpus_per_worker=0)
    for one, other in zip(here["datasets"], cpu["datasets"], strict=True):
        for a, b in zip(one["summary"], other["summary"], strict=True):
            assert a["direct"] == pytest.approx(b["direct"], rel=1e-4)


def test_threads_are_those_of_the_workers_meanwhile() -> None:
    before = torch.get_num_threads()
    with repeatable(before + 2, torch.device("cpu")):
        assert torch.get_num_threads() == before + 2
    assert torch.get_num_threads() == before


def test_one_process_for_several_workers_is_refused_with_its_line() -> None:
    text = "job: evaluate\nrun: a\nresources:\n  launcher: none\n  num_workers: 2\n"
    with pytest.raises(ConfigError, match=r"line 4: resources\.launcher.*num_workers is 2"):
        parse_job(text, "evaluate.yaml")


def test_a_submission_asks_for_the_workers_of_the_evaluation() -> None:
    resources = {"num_workers": 3, "cpus_per_worker": 2, "gpus_per_worker": 1}
    job = EvaluateJob(run="a", resources=resources)
    assert kind_of(job).needs(job) == Needs(3, 2, 1)
    plain = EvaluateJob(run="a")
    assert kind_of(plain).needs(plain) == Needs(1, 1, 0)
    as_in_training = EvaluateJob(run="a", resources=ResourcesConfig(num_workers=2))
    assert as_in_training.resources == EvaluateResources(num_workers=2)


def test_on_a_cluster_it_takes_no_gpu_that_it_did_not_ask_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PELAGOS_RAY_ADDRESS", "auto")
    job = EvaluateJob(run="a")
    placed = kind_of(job).on_cluster(job, "s3://bucket", tmp_path)
    assert placed.resources == EvaluateResources(gpus_per_worker=0, ray_address="auto")
    assert placed.runs_dir == str(tmp_path)
