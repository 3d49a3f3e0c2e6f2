"""What the schema says of its keys is true: a job trained once per key that says how, where or what is
recorded has the same losses with another value of it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import s3fs
import yaml

from pelagos import plugins
from pelagos.jobs import pretrain
from pelagos.jobs.sweeping import one_trial
from pelagos.jobs.sweeping.trials import Trial, trials_of
from pelagos.jobs.training.blueprint import build_parts
from pelagos.platform.config import PretrainJob, SweepJob, TrainingJob, resolve_yaml
from pelagos.platform.config.differences import is_among
from pelagos.platform.config.load import parse_job
from pelagos.platform.config.marks import Meaning, Trait
from pelagos.platform.config.meanings import Key, training_keys
from pelagos.platform.config.overrides import override
from pelagos.platform.records.runs import RunDirectory
from pelagos.platform.trainer import train

STEPS = 4
# Sums in another order round differently, by 6e-8 of a value in fp32; see test_strategies_agree.py.
ROUNDING = 1e-6
EXACT = 0.0
WATCHER = """
from pelagos.platform.callbacks import Callback


class Watcher(Callback):
    def __init__(self, note):
        self.note = note

    def on_step(self, step, values):
        return {"note": self.note}
"""

# Each trains with other values of the keys named, in this process.
HERE: dict[str, dict[str, Any]] = {
    "reading": {"data.num_threads": 1, "data.prefetch_steps": 5},
    "home": {"name": "elsewhere", "runs_dir": "other-runs", "checkpoint.uri": "checkpoints"},
    "single": {"parallel.strategy": "single"},
    "fsdp": {
        "parallel.strategy": "fsdp",
        "parallel.fsdp.reshard_after_forward": False,
        "parallel.fsdp.cpu_offload": True,
    },
    "hsdp": {"parallel.strategy": "hsdp", "parallel.fsdp.shard_group_size": 1},
    "recompute": {"parallel.activation_checkpointing": "selective"},
    "every-second": {"parallel.activation_checkpointing.every_n": 2},
    "budget": {"parallel.activation_checkpointing.memory_budget_bytes": 10**9},
    "saving": {
        "checkpoint.asynchronous": False,
        "checkpoint.new_parameters": ["head"],
        "checkpoint.give_up_after_steps": 1,
        "checkpoint.give_up_after_minutes": 1.0,
    },
    "health": {
        "health.max_failures": 0,
        "health.collective_timeout_seconds": 60,
        "health.shrink_micro_batch": True,
    },
    "ray": {"resources.ray_address": "127.0.0.1:1"},
    "plugin": {"plugins": ["watching"]},
    "record": {
        "checkpoint.every_steps": 1,
        "checkpoint.keep_last": 1,
        "checkpoint.keep_best": False,
        "validation.every_steps": 1,
        "tracking.uri": "sqlite:///other.db",
        "tracking.experiment": "another",
        "tracking.log_every_steps": 2,
        "tracking.max_points": 2,
        "tracking.register_as": "another",
        "tracking.tags": {"of": "a test"},
        "plugins": ["watching"],
        "callbacks": [{"name": "watching:Watcher", "config": {"note": 1}, "on_error": "log"}],
    },
}
# The same in object storage, with a cache on this node.
REMOTE: dict[str, dict[str, Any]] = {
    "cache": {
        "data.cache.directory": "cache",
        "data.cache.max_bytes": 10**8,
        "storage.region": "eu-north-1",
    },
    "backend": {"storage.backend": "fsspec", "storage.anonymous": False},
}
# Each trains in as many processes of their own, to this relative difference of the losses.
IN_RANKS: dict[str, tuple[int, float, dict[str, Any]]] = {
    "two": (2, ROUNDING, {"resources.num_workers": 2}),
    "threads": (1, ROUNDING, {"resources.cpus_per_worker": 2}),
    "zero1": (
        1,
        EXACT,
        {"parallel.strategy": "zero1", "parallel.zero.offload_optimizer": "cpu"},
    ),
    "zero3": (
        1,
        EXACT,
        {"parallel.strategy": "zero3", "parallel.zero.offload_parameters": "cpu"},
    ),
}
NOT_HERE = {
    "parallel.compile": "a minute of compiling; test_every_family.py trains compiled",
    "parallel.zero.nvme_path": "needs an NVMe disk",
    "parallel.zero.hpz_partition_size": "needs several nodes",
    "resources.launcher": "test_training.py and test_kills.py train with Ray",
    "resources.gpus_per_worker": "needs a GPU",
    "storage.endpoint_url": "there is one server: what is remote is read from it",
}

Make = Callable[[str, dict[str, Any]], PretrainJob]


@pytest.fixture
def make(
    tiny_job_text: Callable[..., str],
    datasets: tuple[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Make]:
    """Return a job of a few steps with other values of dotted keys; relative paths are the test's."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "watching.py").write_text(WATCHER)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PELAGOS_PLUGINS", "")  # so that what is loaded here is not later
    text = tiny_job_text(datasets, tmp_path, "plain")
    yield lambda name, values: job_with(text, {"name": name, **values})
    sys.modules.pop("watching", None)


@pytest.fixture(scope="module")
def plain(
    tiny_job_text: Callable[..., str],
    datasets: tuple[str, str],
    tmp_path_factory: pytest.TempPathFactory,
) -> list[float]:
    """The losses of the job as it is."""
    found = losses(job_with(tiny_job_text(datasets, tmp_path_factory.mktemp("plain"), "plain"), {}))
    assert len(found) == STEPS
    return found


def job_with(text: str, values: dict[str, Any]) -> PretrainJob:
    usual = {"schedule.total_steps": STEPS, "tracking.uri": None}
    job = parse_job(text, "job", [override(k, v) for k, v in {**usual, **values}.items()])
    assert isinstance(job, PretrainJob)
    return job


def losses(job: TrainingJob) -> list[float]:
    plugins.load_for(job)
    assert pretrain.run(job).outcome.kind == "finished"
    return losses_of(job)


def losses_of(job: TrainingJob) -> list[float]:
    return [record["loss"] for record in RunDirectory(f"{job.runs_dir}/{job.name}").metrics()]


def train_here(text: str) -> str:
    """Take part in a run as one rank; return how it ended."""
    job = job_with(text, {})
    return train(job, RunDirectory(f"{job.runs_dir}/{job.name}"), build_parts, {}).kind


@pytest.mark.parametrize("case", HERE)
def test_losses_are_the_same_whatever_a_key_says_that_decides_no_step(
    case: str, make: Make, plain: list[float]
) -> None:
    assert losses(make(case, HERE[case])) == plain


def test_losses_are_the_same_of_the_same_data_elsewhere(
    make: Make,
    plain: list[float],
    datasets: tuple[str, str],
    s3_server: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    bucket, files = s3_server.new_uri(), s3fs.S3FileSystem(**s3_server.storage_options)
    moved = {}
    for index, uri in enumerate(datasets):
        moved[f"data.mixture.{index}.uri"] = f"{bucket}/{Path(uri).name}"
        files.put(uri, f"{bucket}/{Path(uri).name}".removeprefix("s3://"), recursive=True)
    for case, values in REMOTE.items():
        assert losses(make(case, {**moved, **values})) == plain, case


@pytest.mark.parametrize("case", IN_RANKS)
def test_losses_are_the_same_in_processes_of_their_own(
    case: str, make: Make, plain: list[float], rank_pool: Any, tmp_path: Path
) -> None:
    world_size, tolerance, values = IN_RANKS[case]
    job = make(case, values)
    RunDirectory.create(job)
    text = (Path(job.runs_dir) / case / "job.yaml").read_text()
    ended = rank_pool.call(world_size, __file__, "train_here", text=text)
    assert ended == ["finished"] * world_size
    assert losses_of(job) == pytest.approx(plain, rel=tolerance, abs=0)


def test_a_trial_goes_on_as_the_job_computes_its_steps_now(make: Make, tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(resolve_yaml(make("tiny", {})))

    def the_trial(**values: Any) -> Trial:
        entry = {"file": str(tmp_path / "tiny.yaml"), "set": values}
        tree = {"job": "sweep", "name": "s", "jobs": {"a": entry}, "tracking": {"uri": None}}
        sweep = parse_job(yaml.safe_dump(tree), "sweep")
        assert isinstance(sweep, SweepJob)
        return trials_of(sweep)[0]

    one_trial.train(the_trial(), lambda: None, until_step=1)
    cache = {"directory": str(tmp_path / "cache"), "max_bytes": 10**8}
    now = the_trial(**{"data.num_threads": 1, "data.cache": cache})
    assert one_trial.train(now, lambda: None).outcome.kind == "finished"
    run = RunDirectory(now.path)
    assert run.job().data == now.job.data
    (changed,) = [event for event in run.events() if event["kind"] == "job_changed"]
    assert changed["keys"] == ["data.cache", "data.num_threads"]
    assert [record["step"] for record in run.metrics()] == [1, 2, 3, 4]


def test_every_key_that_decides_no_step_is_turned_above() -> None:
    turned = {key for values in (*HERE.values(), *REMOTE.values()) for key in values}
    turned |= {key for _, _, values in IN_RANKS.values() for key in values}

    def is_turned(key: Key) -> bool:
        return any(is_among(name, [key.name]) or is_among(key.name, [name]) for name in turned)

    decides_none = [
        key
        for key in training_keys().values()
        if key.meaning is not Meaning.STEPS and Trait.ACCURACY not in key.traits
    ]
    assert {key.name for key in decides_none if not is_turned(key)} == set(NOT_HERE)
