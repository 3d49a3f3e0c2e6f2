"""A run goes on from another's checkpoint with other settings: to the bit, and nothing is lost."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from mlflow import MlflowClient
from rich.console import Console

from pelagos.jobs import resume
from pelagos.jobs.training import take_over as take_over_module
from pelagos.jobs.training.blueprint import build_parts
from pelagos.jobs.training.take_over import take_over
from pelagos.platform.checkpoint import CheckpointError, CheckpointStore, copy_checkpoint
from pelagos.platform.config import ConfigError, PretrainJob
from pelagos.platform.config.load import load_job, parse_job, resolve_yaml
from pelagos.platform.records.runs import RunDirectory, RunError
from pelagos.platform.trainer import train

LR = "optimizer.lr"
WARMUP = "schedule.warmup_steps"
STEP = 3


@pytest.fixture(scope="module")
def trained(
    datasets: tuple[str, str],
    tiny_job_text: Callable[[tuple[str, str], Path, str], str],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """The directory of two runs, `lagging` and `best`, that differ in their rate, after 3 steps."""
    directory = tmp_path_factory.mktemp("trained")
    for name, lr in (("lagging", 1e-6), ("best", 0.01)):
        changes = [f"{LR}={lr}", "schedule.total_steps=6", "ema_decay=0.9", f"name={name}"]
        changes += ["data.global_batch_size=2", "checkpoint.every_steps=2"]
        job = parse_job(tiny_job_text(datasets, directory, name), "tiny.yaml", changes)
        assert isinstance(job, PretrainJob)
        train(job, RunDirectory.create(job), build_parts, {}, until_step=STEP)
    return directory


@pytest.fixture
def runs(trained: Path, tmp_path: Path) -> tuple[RunDirectory, RunDirectory]:
    """Copies of these runs, which the test may change."""
    copied = shutil.copytree(trained / "runs", tmp_path / "runs")
    found = RunDirectory(copied / "lagging"), RunDirectory(copied / "best")
    for run in found:
        overrides = [f"runs_dir={copied}", f"tracking.uri=sqlite:///{tmp_path}/mlflow.db"]
        run.replace("job.yaml", resolve_yaml(load_job(run.path / "job.yaml", overrides)))
    return found


def contents(path: Path) -> dict[str, bytes]:
    files = [p for p in path.rglob("*") if p.is_file() and not p.name.endswith(".lock")]
    return {str(p.relative_to(path)): p.read_bytes() for p in files}


def state_of(run: RunDirectory, step: int) -> dict[str, torch.Tensor]:
    return CheckpointStore(run.checkpoint_uri).load_named(step, "")


def steps_in(uri: str) -> list[int]:
    return [info.step for info in CheckpointStore(uri).complete()]


def test_a_run_goes_on_exactly_as_the_other_would_have_with_these_settings(
    runs: tuple[RunDirectory, RunDirectory], tmp_path: Path
) -> None:
    lagging, best = runs
    assert (lagging.last_step(), steps_in(lagging.checkpoint_uri)) == (STEP, [2, STEP])
    own = {name: contents(lagging.path)[name] for name in ("metrics.jsonl", "job.yaml")}
    given_up = contents(lagging.path / "checkpoints" / "step-00000003")
    before = contents(best.path)

    record = take_over(lagging, best, STEP, {LR: 0.005, WARMUP: 2})
    assert record["settings"] == {LR: [1e-6, 0.005]}  # the other has not changed
    events = lagging.events()
    assert take_over(lagging, best, STEP, {LR: 0.005, WARMUP: 2}) == record
    assert lagging.events() == events
    told = [e for e in events if e["kind"] == "taken_over"]
    assert [(e["step"], e["source"], e["settings"]) for e in told] == [
        (STEP, "best", {LR: [1e-6, 0.005]})
    ]
    assert contents(best.path) == before
    assert contents(lagging.path)["metrics.jsonl"] == own["metrics.jsonl"]
    assert contents(lagging.path)["job-1.yaml"] == own["job.yaml"]
    assert contents(lagging.path / "checkpoints" / "step-00000003") == given_up

    # what resuming the other's checkpoint with these settings gives
    reference = RunDirectory(shutil.copytree(best.path, best.path.with_name("reference")))
    changed = load_job(reference.path / "job.yaml", [f"{LR}=0.005"])
    assert isinstance(changed, PretrainJob)
    train(changed, reference, build_parts, {})
    ended = resume.resume(str(best.path.parent), "lagging", Console(file=io.StringIO()))
    assert ended.outcome.kind == "finished"
    ours, expected = state_of(lagging, 6), state_of(reference, 6)
    assert ours.keys() == expected.keys()
    assert [n for n in ours if not torch.equal(ours[n], expected[n])] == []
    losses = [{m["step"]: m["loss"] for m in run.metrics()} for run in (lagging, reference)]
    assert [losses[0][s] for s in (4, 5, 6)] == [losses[1][s] for s in (4, 5, 6)]
    assert losses[0][STEP] != losses[1][STEP]  # its own, from before

    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    tracked = json.loads((lagging.path / "tracking.json").read_text())["run_id"]
    tag = client.get_run(tracked).data.tags["pelagos.take_over.3"]
    assert json.loads(tag)["source"] == "best"
    history = client.get_metric_history(tracked, f"train/setting/{LR}")
    assert [(m.step, m.value) for m in history] == [(STEP, 0.005)]


def test_a_second_take_over_goes_on_from_the_first(
    runs: tuple[RunDirectory, RunDirectory],
) -> None:
    one, two = runs
    take_over(one, two, STEP, {LR: 0.02})
    for run in runs:
        train(run.job(), run, build_parts, {}, until_step=4)
    take_over(two, one, 4, {LR: 0.03})
    take_over(two, one, 4, {LR: 0.7})  # made already
    take_over(one, two, STEP, {LR: 0.5})
    assert [run.job().optimizer.lr for run in runs] == [0.02, 0.03]
    assert one.checkpoint_uri.endswith("checkpoints/take-over-1")
    same = [state_of(run, 4) for run in runs]
    assert all(torch.equal(same[0][name], same[1][name]) for name in same[0])
    assert steps_in(one.checkpoint_uri) == [STEP, 4]
    assert steps_in(one.checkpoint_uri_after(0)) == [STEP]  # what was given up


def test_a_take_over_that_was_cut_off_is_completed(
    runs: tuple[RunDirectory, RunDirectory], monkeypatch: pytest.MonkeyPatch
) -> None:
    lagging, best = runs

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    for target, name in ((take_over_module, "copy_checkpoint"), (RunDirectory, "replace_job")):
        with monkeypatch.context() as patch:
            patch.setattr(target, name, killed)
            with pytest.raises(KeyboardInterrupt):
                take_over(lagging, best, STEP, {LR: 0.005})
    record = take_over(lagging, best, STEP, {LR: 0.005})
    assert record["settings"] == {LR: [1e-6, 0.005]}
    assert lagging.take_overs() == [record]
    assert lagging.job().optimizer.lr == 0.005
    assert [e["kind"] for e in lagging.events()].count("taken_over") == 1


def test_what_cannot_be_taken_over_changes_nothing(
    runs: tuple[RunDirectory, RunDirectory],
) -> None:
    lagging, best = runs
    before = contents(lagging.path)
    with pytest.raises(RunError, match="has continued to step 3: .* step 2 of best would undo"):
        take_over(lagging, best, 2, {LR: 0.1})
    with pytest.raises(ConfigError, match="optimizer.lr: got"):
        take_over(lagging, best, 3, {LR: -1})
    with lagging.lock(), pytest.raises(RunError, match="in use by another process"):
        take_over(lagging, best, 3, {LR: 0.1})
    (file, *_) = sorted((best.path / "checkpoints" / "step-00000003").glob("*.distcp"))
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"step 3 is damaged: .*crc32c"):
        take_over(lagging, best, 3, {LR: 0.1})
    assert contents(lagging.path) == before


@pytest.mark.s3
def test_checkpoints_are_copied_between_disks_and_object_stores(
    runs: tuple[RunDirectory, RunDirectory], s3_server: Any, tmp_path: Path
) -> None:
    run = runs[0]
    here = CheckpointStore(run.checkpoint_uri)
    remote = CheckpointStore(s3_server.new_uri("/runs"), s3_server.storage_options)
    beside = CheckpointStore(remote.uri + "/take-over-1", s3_server.storage_options)
    back = CheckpointStore(str(tmp_path / "back"))
    for source, target in ((here, remote), (remote, beside), (beside, back)):
        copy_checkpoint(source, STEP, target)
        copy_checkpoint(source, STEP, target)
        assert [info.step for info in target.complete()] == [STEP]
    step = "step-00000003"
    assert contents(tmp_path / "back" / step) == contents(run.path / "checkpoints" / step)
    with pytest.raises(CheckpointError, match="no complete checkpoint; found: 3"):
        copy_checkpoint(remote, 2, back)
