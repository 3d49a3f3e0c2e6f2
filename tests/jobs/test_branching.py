"""A branch of a run: the same steps until its checkpoint, other settings from there on, all kept."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from rich.console import Console

from pelagos.data_pipelines.store import open_dataset
from pelagos.jobs import pretrain
from pelagos.jobs import resume as resume_job
from pelagos.jobs.training.branching import branch
from pelagos.platform.checkpoint import CheckpointError, CheckpointStore
from pelagos.platform.config import ConfigError, PretrainJob
from pelagos.platform.optimization.schedules import lr_factor
from pelagos.platform.records.runs import RunDirectory, RunError

MakeJob = Callable[..., PretrainJob]
QUIET = Console(quiet=True)


def values(run: RunDirectory, name: str) -> list[tuple[int, float]]:
    return [(m["step"], m[name]) for m in run.metrics()]


def resume(job: PretrainJob, *overrides: str, **options: Any) -> Any:
    return resume_job.resume(job.runs_dir, job.name, QUIET, overrides, **options)


def test_a_branch_has_other_settings_from_its_step_on_and_everything_is_kept(
    make_job: MakeJob, tmp_path: Path
) -> None:
    job = make_job(checkpoint__every_steps=2, checkpoint__keep_last=9)
    pretrain.run(job, QUIET)
    run = RunDirectory.open(job.runs_dir, job.name)
    before, first = values(run, "loss"), run.metrics()
    result = resume(job, "optimizer.lr=1e-4", "schedule.total_steps=10", from_step="4")
    assert result.outcome.kind == "finished"
    assert result.outcome.step == 10
    # the steps before are the ones that were, those after have the new rate and schedule
    now = run.metrics()
    assert now[:4] == first[:4]
    schedule = job.schedule.model_copy(update={"total_steps": 10})
    expected = [1e-4 * lr_factor(step, schedule) for step in range(4, 10)]
    assert [m["lr"] for m in now[4:]] == pytest.approx(expected, rel=1e-12)
    assert now[4]["loss"] == before[4][1]  # of the weights of step 4
    assert now[5]["loss"] != before[5][1]
    # what was done is kept
    assert [m["step"] for m in run.redone_metrics()] == [5, 6, 7, 8]
    assert run.redone_metrics() == first[4:]
    old = CheckpointStore(run.checkpoint_uri_after(0))
    assert [info.step for info in old.complete()] == [2, 4, 6, 8]
    (event,) = [e for e in run.events() if e["kind"] == "branched"]
    assert event["step"] == 4
    assert event["settings"] == {"optimizer.lr": [0.003, 1e-4], "schedule.total_steps": [8, 10]}
    assert "lr: 0.003" in (run.path / "job-1.yaml").read_text()
    # in MLflow the branch is a run of its own, whole, and the earlier one is as it was
    client = MlflowClient(tracking_uri=job.tracking.uri)
    record = json.loads((run.path / "tracking.json").read_text())
    histories = []
    for run_id in (record["earlier"][0]["run_id"], record["run_id"]):
        points = client.get_metric_history(run_id, "train/loss")
        histories.append(sorted((p.step, p.value) for p in points))
        validated = client.get_metric_history(run_id, "validation/loss")
        assert len({p.step for p in validated}) == len(validated)
    assert histories == [before, values(run, "loss")]
    assert (
        client.get_run(record["run_id"]).data.tags["pelagos.earlier_run"]
        == (record["earlier"][0]["run_id"])
    )


def test_a_branch_without_changes_continues_bit_for_bit(make_job: MakeJob) -> None:
    job = make_job(checkpoint__every_steps=2, checkpoint__keep_last=9, tracking__uri="null")
    pretrain.run(job, QUIET)
    run = RunDirectory.open(job.runs_dir, job.name)
    before = [values(run, name) for name in ("loss", "gradient_norm")]
    resume(job, from_step="4")
    assert [values(run, name) for name in ("loss", "gradient_norm")] == before


def test_a_branch_that_was_cut_off_or_asked_for_twice_is_made_once(make_job: MakeJob) -> None:
    job = make_job(checkpoint__every_steps=2, tracking__uri="null")
    pretrain.run(job, QUIET, until_step=6)
    run = RunDirectory.open(job.runs_dir, job.name)
    for _ in range(2):
        branch(run, "last", ["optimizer.lr=1e-4"], request="the same")
    assert len(run.take_overs()) == 1
    assert len([e for e in run.events() if e["kind"] == "branched"]) == 1
    # a second branch may go back behind the first
    assert resume(job, "optimizer.lr=1e-5", from_step="4").outcome.kind == "finished"
    assert [t["step"] for t in run.take_overs()] == [6, 4]


@pytest.mark.parametrize("file", ["take-overs.json", "job.yaml"])
def test_a_branch_that_was_cut_off_leaves_nothing_to_the_next(
    file: str, make_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make_job(checkpoint__every_steps=2, tracking__uri="null")
    pretrain.run(job, QUIET, until_step=6)
    run = RunDirectory.open(job.runs_dir, job.name)
    replace = RunDirectory.replace

    def killed(self: RunDirectory, name: str, text: str) -> None:
        if name == file:
            raise KeyboardInterrupt
        replace(self, name, text)

    with monkeypatch.context() as patch:
        patch.setattr(RunDirectory, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            branch(run, "6", ["optimizer.lr=1e-4"], request="first")
    if file == "job.yaml":  # recorded already: asked for again, it is made whole
        branch(run, "6", ["optimizer.lr=1e-4"], request="first")
        assert run.job().optimizer.lr == 1e-4
        assert [e["step"] for e in run.events() if e["kind"] == "branched"] == [6]
        assert len(run.take_overs()) == 1
    resume(job, "optimizer.lr=1e-5", from_step="2")
    # from the checkpoint of step 2, not from one that the first attempt had copied
    assert [m["step"] for m in run.metrics()] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert [e["step"] for e in run.events() if e["kind"] == "resumed"] == [2]


@pytest.mark.parametrize("file", ["tracking.json", "job.yaml", "status.json"])
def test_a_plain_resume_finishes_a_branch_that_was_cut_off(
    file: str,
    make_job: MakeJob,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Recorded, but not yet the run's: the steps to come must not be those of the old settings."""
    job = make_job(checkpoint__every_steps=2, tracking__uri="null")
    pretrain.run(job, QUIET, until_step=6)
    run = RunDirectory.open(job.runs_dir, job.name)
    run.replace("tracking.json", json.dumps({"uri": "sqlite:///x.db", "run_id": "before"}))
    replace = RunDirectory.replace

    def killed(self: RunDirectory, name: str, text: str) -> None:
        if name == file and run.take_overs():
            raise KeyboardInterrupt
        replace(self, name, text)

    settings = ["optimizer.lr=1e-4", "optimizer.groups=[{pattern: '[.]bias$|a: b', lr: 1.0e-5}]"]
    with monkeypatch.context() as patch:
        patch.setattr(RunDirectory, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            branch(run, "4", settings)
    assert resume(job, until_step=5).outcome.step == 5
    assert ("interrupted (optimizer" in caplog.text) == (file != "status.json")
    assert run.job().optimizer.lr == 1e-4
    assert run.job().optimizer.groups[0].pattern == "[.]bias$|a: b"
    assert [m["step"] for m in run.metrics()] == [1, 2, 3, 4, 5]
    assert run.metrics()[4]["lr"] == pytest.approx(1e-4 * lr_factor(4, job.schedule), rel=1e-12)
    assert [e["step"] for e in run.events() if e["kind"] == "branched"] == [4]
    record = json.loads((run.path / "tracking.json").read_text())
    assert record == {"earlier": [{"uri": "sqlite:///x.db", "run_id": "before"}]}
    caplog.clear()
    # once is enough: the next launch continues the branch
    assert resume(job).outcome.kind == "finished"
    assert [m["step"] for m in run.metrics()] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert "completed the branch" not in caplog.text


def test_the_same_branch_asked_for_again_begins_anew(
    make_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make_job(checkpoint__every_steps=2, checkpoint__keep_last=9, tracking__uri="null")
    pretrain.run(job, QUIET, until_step=6)
    run = RunDirectory.open(job.runs_dir, job.name)
    for _ in range(3):  # the second and third change nothing, and are alike
        branch(run, "4", ["optimizer.lr=1e-4"])
    make_whole = "pelagos.jobs.training.branching._make_effective"
    with monkeypatch.context() as patch:
        patch.setattr(make_whole, lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            branch(run, "4", [])
    branch(run, "2", ["optimizer.lr=1e-5"])
    steps = [e["step"] for e in run.events() if e["kind"] == "branched"]
    assert steps == [4, 4, 4, 4, 2] == [record["step"] for record in run.take_overs()]


def test_what_a_branch_cannot_change_or_begin_from_is_refused(make_job: MakeJob) -> None:
    job = make_job(checkpoint__every_steps=2, tracking__uri="null")
    pretrain.run(job, QUIET, until_step=4)
    run = RunDirectory.open(job.runs_dir, job.name)
    files = {p: p.read_bytes() for p in run.path.glob("*.json*")}
    for overrides, step, words in (
        (["optimizer.lr=1e-4"], None, r"optimizer\.lr can change .* add --from STEP"),
        (["model.name=fno-nano"], "4", r"cannot change model\.name"),
        (["seed=3"], "last", "cannot change seed"),
        (["schedule.total_steps=4"], "4", "nothing is left to train"),
        ([], "3", "no checkpoint of step 3; available steps: 2, 4"),
        (["optimizer.lr=-1"], "4", "greater than 0"),
        (["optimizer.groups=[{pattern: nothing, lr: 1}]"], "4", "nothing matches none"),
    ):
        with pytest.raises((RunError, CheckpointError, ConfigError), match=words):
            resume(job, *overrides, from_step=step)
    assert {p: p.read_bytes() for p in run.path.glob("*.json*")} == files


def test_divergence_advises_a_command_that_works(make_job: MakeJob) -> None:
    job = make_job(
        checkpoint__every_steps=2,
        optimizer__lr=1e25,
        optimizer__clip_norm="null",
        schedule__warmup_steps=0,
        tracking__uri="null",
        schedule__total_steps=6,
    )
    failed = pretrain.run(job, QUIET).outcome
    assert failed.kind == "failed"
    assert "Start a new run with a lower optimizer.lr" in failed.cause
    good = make_job("good", checkpoint__every_steps=2, tracking__uri="null")
    pretrain.run(good, QUIET, until_step=4)
    branched = ["optimizer.lr=1e25", "optimizer.clip_norm=null"]
    failed = resume(good, *branched, from_step="last").outcome
    assert "the checkpoint of step 4 is the last good one" in failed.cause
    command = failed.cause.partition("`pelagos resume good ")[2].partition("`")[0].split()
    assert command[:2] == ["--from", "4"]
    result = resume(good, "optimizer.lr=1e-4", "optimizer.clip_norm=1", from_step=command[1])
    assert result.outcome.kind == "finished"


def test_data_that_moved_resume_and_other_data_do_not(
    make_job: MakeJob, datasets: tuple[str, str], tmp_path: Path
) -> None:
    job = make_job(tracking__uri="null")
    pretrain.run(job, QUIET, until_step=3)
    moved = tmp_path / "moved.zarr"
    shutil.copytree(datasets[0], moved)
    run = RunDirectory.open(job.runs_dir, job.name)
    with pytest.raises(RunError, match="the data changed since the checkpoint was written"):
        resume(job, f"data.mixture.0.uri={datasets[1]}")
    with pytest.raises(RunError, match="version 2 of the order of samples"):
        resume(job, "data.order_version=1")
    assert run.job() == job  # what was refused does not stay with the run
    assert resume(job, until_step=4).outcome.step == 4
    assert resume(job, f"data.mixture.0.uri={moved}").outcome.kind == "finished"
    with pytest.raises(RunError, match=r"cannot change data\.mixture\.0\.weight"):
        resume(job, "data.mixture.0.weight=3")


def test_other_data_are_named_with_both_fingerprints_however_many_there_are(
    make_job: MakeJob, datasets: tuple[str, str]
) -> None:
    entries = [{"uri": datasets[1]}] * 8  # more than a checkpoint lists for the order of samples
    job = make_job(data__mixture=json.dumps(entries), tracking__uri="null")
    pretrain.run(job, QUIET, until_step=3)
    old, new = (open_dataset(uri).fingerprint[:16] for uri in reversed(datasets))
    told = f"data.mixture.5.uri: {datasets[0]} has fingerprint {new}, .* {old} .{datasets[1]}."
    with pytest.raises(RunError, match=told):
        resume(job, f"data.mixture.5.uri={datasets[0]}")
