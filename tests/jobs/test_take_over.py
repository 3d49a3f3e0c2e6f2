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

from pelagos.jobs import take_over as take_over_module
from pelagos.jobs import training
from pelagos.jobs.parts import build_parts
from pelagos.jobs.take_over import take_over
from pelagos.platform.checkpoint import CheckpointError, CheckpointStore, copy_checkpoint
from pelagos.platform.config import ConfigError, PretrainJob
from pelagos.platform.runs import RunDirectory, RunError
from pelagos.platform.trainer import train

MakeJob = Callable[..., PretrainJob]
LR = "optimizer.lr"
WARMUP = "schedule.warmup_steps"


def trained(job: PretrainJob, until_step: int | None = None) -> RunDirectory:
    run = RunDirectory(f"{job.runs_dir}/{job.name}")
    if not run.path.exists():
        run = RunDirectory.create(job)
    train(job, run, build_parts, {}, until_step=until_step)
    return run


def contents(path: Path) -> dict[str, bytes]:
    files = [p for p in path.rglob("*") if p.is_file() and not p.name.endswith(".lock")]
    return {str(p.relative_to(path)): p.read_bytes() for p in files}


def state_of(run: RunDirectory, step: int) -> dict[str, torch.Tensor]:
    return CheckpointStore(run.checkpoint_uri).load_named(step, "")


def steps_in(uri: str) -> list[int]:
    return [info.step for info in CheckpointStore(uri).complete()]


def test_a_run_goes_on_exactly_as_the_other_would_have_with_these_settings(
    make_job: MakeJob, tmp_path: Path
) -> None:
    console = Console(file=io.StringIO())
    job = make_job("lagging", optimizer__lr=1e-6, ema_decay=0.9)
    training.start(job, console, until_step=4)
    lagging = RunDirectory.open(job.runs_dir, "lagging")
    best = trained(make_job("best", optimizer__lr=0.01, ema_decay=0.9), until_step=4)
    assert (lagging.last_step(), steps_in(lagging.checkpoint_uri)) == (4, [3, 4])
    own = {name: contents(lagging.path)[name] for name in ("metrics.jsonl", "job.yaml")}
    given_up = contents(lagging.path / "checkpoints" / "step-00000004")
    before = contents(best.path)

    record = take_over(lagging, best, 4, {LR: 0.005, WARMUP: 2})
    assert record["settings"] == {LR: [1e-6, 0.005]}  # the other has not changed
    events = lagging.events()
    assert take_over(lagging, best, 4, {LR: 0.005, WARMUP: 2}) == record
    assert lagging.events() == events
    told = [e for e in events if e["kind"] == "taken_over"]
    assert [(e["step"], e["source"], e["settings"]) for e in told] == [
        (4, "best", {LR: [1e-6, 0.005]})
    ]
    assert contents(best.path) == before
    assert contents(lagging.path)["metrics.jsonl"] == own["metrics.jsonl"]
    assert contents(lagging.path)["job-1.yaml"] == own["job.yaml"]
    assert contents(lagging.path / "checkpoints" / "step-00000004") == given_up

    # what resuming the other's checkpoint with these settings gives
    reference = RunDirectory(shutil.copytree(best.path, best.path.with_name("reference")))
    changed = make_job("reference", optimizer__lr=0.005, ema_decay=0.9)
    reference.replace_job(changed)
    trained(changed)
    ended = training.resume(job.runs_dir, "lagging", console)
    assert ended.outcome.kind == "finished"
    ours, expected = state_of(lagging, 8), state_of(reference, 8)
    assert ours.keys() == expected.keys()
    assert [n for n in ours if not torch.equal(ours[n], expected[n])] == []
    losses = [{m["step"]: m["loss"] for m in run.metrics()} for run in (lagging, reference)]
    assert [losses[0][s] for s in range(5, 9)] == [losses[1][s] for s in range(5, 9)]
    assert losses[0][4] != losses[1][4]  # its own, from before

    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    tracked = json.loads((lagging.path / "tracking.json").read_text())["run_id"]
    tag = client.get_run(tracked).data.tags["pelagos.take_over.4"]
    assert json.loads(tag)["source"] == "best"
    history = client.get_metric_history(tracked, f"setting.{LR}")
    assert [(m.step, m.value) for m in history] == [(4, 0.005)]


def test_a_second_take_over_goes_on_from_the_first(make_job: MakeJob) -> None:
    jobs = {n: make_job(n, optimizer__lr=lr) for n, lr in (("one", 0.001), ("two", 0.01))}
    runs = {name: trained(job, until_step=2) for name, job in jobs.items()}
    take_over(runs["one"], runs["two"], 2, {LR: 0.02})
    for run in runs.values():
        train(run.job(), run, build_parts, {}, until_step=4)
    take_over(runs["two"], runs["one"], 4, {LR: 0.03})
    take_over(runs["one"], runs["two"], 2, {LR: 0.5})  # long done
    assert [r.job().optimizer.lr for r in runs.values()] == [0.02, 0.03]
    assert runs["one"].checkpoint_uri.endswith("checkpoints/take-over-1")
    same = [state_of(run, 4) for run in runs.values()]
    assert all(torch.equal(same[0][name], same[1][name]) for name in same[0])
    train(runs["one"].job(), runs["one"], build_parts, {}, until_step=6)
    assert steps_in(runs["one"].checkpoint_uri)[-1] == 6
    assert steps_in(runs["one"].checkpoint_uri_after(0)) == [2]


def test_a_take_over_that_was_cut_off_is_completed(
    make_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    lagging = trained(make_job("lagging", optimizer__lr=1e-6), until_step=1)
    best = trained(make_job("best"), until_step=1)

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    for target, name in ((take_over_module, "copy_checkpoint"), (RunDirectory, "replace_job")):
        with monkeypatch.context() as patch:
            patch.setattr(target, name, killed)
            with pytest.raises(KeyboardInterrupt):
                take_over(lagging, best, 1, {LR: 0.005})
    record = take_over(lagging, best, 1, {LR: 0.005})
    assert record["settings"] == {LR: [1e-6, 0.005]}
    assert lagging.take_overs() == [record]
    assert lagging.job().optimizer.lr == 0.005
    assert [e["kind"] for e in lagging.events()].count("taken_over") == 1


def test_what_cannot_be_taken_over_changes_nothing(make_job: MakeJob) -> None:
    lagging = trained(make_job("lagging"), until_step=3)
    best = trained(make_job("best"), until_step=3)
    before = contents(lagging.path)
    with pytest.raises(RunError, match="has gone on to step 3: .* step 2 of best would undo"):
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
    make_job: MakeJob, s3_server: Any, tmp_path: Path
) -> None:
    run = trained(make_job(), until_step=1)
    here = CheckpointStore(run.checkpoint_uri)
    remote = CheckpointStore(s3_server.new_uri("/runs"), s3_server.storage_options)
    beside = CheckpointStore(remote.uri + "/take-over-1", s3_server.storage_options)
    back = CheckpointStore(str(tmp_path / "back"))
    for source, target in ((here, remote), (remote, beside), (beside, back)):
        copy_checkpoint(source, 1, target)
        copy_checkpoint(source, 1, target)
        assert [info.step for info in target.complete()] == [1]
    step = "step-00000001"
    assert contents(tmp_path / "back" / step) == contents(run.path / "checkpoints" / step)
    with pytest.raises(CheckpointError, match="no complete checkpoint; there are: 1"):
        copy_checkpoint(remote, 2, back)
