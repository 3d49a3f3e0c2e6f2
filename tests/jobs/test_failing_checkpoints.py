"""Checkpoints that are damaged, or cannot be written: the run ends as the undisturbed one does."""

import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from pelagos.cli.main import app
from pelagos.jobs.training.blueprint import build_parts
from pelagos.platform import training_state
from pelagos.platform.checkpoint import CheckpointError, CheckpointStore, store
from pelagos.platform.config import PretrainJob
from pelagos.platform.records.runs import RunDirectory
from pelagos.platform.trainer import train

MakeJob = Callable[..., PretrainJob]
STEPS = 8


def run_of(make_job: MakeJob, name: str, **values: Any) -> tuple[PretrainJob, RunDirectory]:
    settings = {
        "schedule__total_steps": STEPS,
        "checkpoint__every_steps": 2,
        "validation__every_steps": 2,
        "tracking__uri": "null",
    }
    job = make_job(name, **{**settings, **values})
    return job, RunDirectory.create(job)


def trained(make_job: MakeJob, name: str, **values: Any) -> RunDirectory:
    job, run = run_of(make_job, name, **values)
    train(job, run, build_parts, {})
    return run


def events(run: RunDirectory, kind: str) -> list[dict[str, Any]]:
    return [event for event in run.events() if event["kind"] == kind]


def assert_same_end(a: RunDirectory, b: RunDirectory) -> None:
    one, two = (CheckpointStore(run.checkpoint_uri).load_named(STEPS, "") for run in (a, b))
    assert one.keys() == two.keys()
    assert [name for name in one if not torch.equal(one[name], two[name])] == []
    assert [m["loss"] for m in a.metrics()] == [m["loss"] for m in b.metrics()]


@pytest.mark.parametrize("overrides", [[], ["data.num_threads=1"]])
def test_a_resume_passes_over_damage_and_ends_with_the_same_bits(
    make_job: MakeJob, tmp_path: Path, overrides: list[str]
) -> None:
    whole = trained(make_job, "whole")
    job, run = run_of(make_job, "harmed")
    train(job, run, build_parts, {}, until_step=6)
    newest = Path(run.checkpoint_uri) / "step-00000006"
    if overrides:  # which are checked against a checkpoint first
        (newest / "trainer.json").write_bytes(b"{")
    else:
        part = next(newest.glob("__0_*"))
        part.write_bytes(part.read_bytes()[:-5])
    result = CliRunner().invoke(
        app, ["resume", "harmed", "--runs-dir", str(run.path.parent), *overrides]
    )
    assert result.exit_code == 0, result.output
    (aside,) = events(run, "checkpoint_set_aside")
    assert aside["step"] == 6
    assert Path(aside["where"]).is_dir()
    told = " ".join((run.path / "output.log").read_text().split())
    assert "warning: the checkpoint of step 6 is damaged" in told
    assert events(run, "resumed")[-1]["step"] == 4
    assert_same_end(run, whole)


def fail_while(monkeypatch: pytest.MonkeyPatch, fails: Callable[[], bool]) -> None:
    write = store.write_pieces

    def write_or_not(*arguments: Any) -> Any:
        if fails():
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(*arguments)

    monkeypatch.setattr(store, "write_pieces", write_or_not)


@pytest.mark.parametrize("asynchronous", [True, False])
def test_training_goes_on_while_a_checkpoint_cannot_be_written(
    make_job: MakeJob, monkeypatch: pytest.MonkeyPatch, asynchronous: bool
) -> None:
    whole = trained(make_job, "whole")
    calls: list[int] = []

    def fails() -> bool:
        calls.append(1)
        return len(calls) in (2, 3)

    fail_while(monkeypatch, fails)
    run = trained(make_job, "full", checkpoint__asynchronous=asynchronous)
    failed = events(run, "checkpoint_failed")
    assert len(failed) == 2
    assert failed[0]["step"] == 4
    assert "No space left" in failed[0]["cause"]
    assert len(events(run, "resumed")) == 0
    assert_same_end(run, whole)
    complete = [info.step for info in CheckpointStore(run.checkpoint_uri).complete()]
    best = CheckpointStore(run.checkpoint_uri).trainer_state(STEPS)["best"]
    assert best["step"] in complete


def test_a_limit_ends_the_run_and_keeps_what_stands(
    make_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    fail_while(monkeypatch, lambda: calls.append(1) or len(calls) > 1)  # type: ignore[func-returns-value]
    values = {"checkpoint__asynchronous": False, "checkpoint__give_up_after_steps": 1}
    job, run = run_of(make_job, "limited", **values)
    with pytest.raises(CheckpointError, match=r"No space left.*give_up_after_steps: 1"):
        train(job, run, build_parts, {})
    assert [e["step"] for e in events(run, "checkpoint_failed")] == [4, 5]
    assert CheckpointStore(run.checkpoint_uri).latest_step() == 2


def test_without_any_checkpoint_the_first_failure_ends_the_run(
    make_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_while(monkeypatch, lambda: True)
    job, run = run_of(make_job, "none")
    with pytest.raises(CheckpointError, match=r"step 2 .*No space left.*there is no other"):
        train(job, run, build_parts, {})


@pytest.mark.parametrize("tries", [2, 4])
def test_the_last_checkpoint_is_tried_a_few_times(
    make_job: MakeJob, monkeypatch: pytest.MonkeyPatch, tries: int
) -> None:
    monkeypatch.setattr(training_state, "LAST_PAUSES_SECONDS", (0.0, 0.0, 0.0))
    calls: list[int] = []

    def fails() -> bool:
        calls.append(1)
        return len(calls) <= tries

    fail_while(monkeypatch, fails)
    job, run = run_of(make_job, "last", checkpoint__every_steps=100)
    if tries == 4:
        with pytest.raises(CheckpointError, match="No space left"):
            train(job, run, build_parts, {})
        assert CheckpointStore(run.checkpoint_uri).latest_step() is None
    else:
        train(job, run, build_parts, {})
        assert CheckpointStore(run.checkpoint_uri).latest_step() == STEPS
    assert len(events(run, "checkpoint_failed")) == tries


def test_checkpoints_that_the_next_would_replace_are_given_up_for_room(
    make_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = trained(make_job, "whole")
    job, run = run_of(make_job, "small", checkpoint__keep_last=2, checkpoint__keep_best=False)

    def steps() -> list[int]:
        return [info.step for info in CheckpointStore(run.checkpoint_uri).complete()]

    # a disk for two checkpoints, of which one is being written
    seen: list[list[int]] = []
    fail_while(monkeypatch, lambda: seen.append(steps()) or len(seen[-1]) > 1)  # type: ignore[func-returns-value]
    train(job, run, build_parts, {})
    # with two there the third fails, the older one goes, and the next try succeeds
    assert seen == [[], [2], [2, 4], [4], [4, 7], [7]]
    assert [e["step"] for e in events(run, "checkpoint_failed")] == [6, 8]
    assert steps() == [7, 8]
    assert_same_end(run, whole)
