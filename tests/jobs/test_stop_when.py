"""`schedule.stop_when`: a training ends at a target, or when validations no longer improve."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from pelagos.jobs import pretrain
from pelagos.jobs import resume as resume_job
from pelagos.platform.checkpoint import CheckpointStore
from pelagos.platform.config import ConfigError, PretrainJob
from pelagos.platform.config.stopping import StopWhenConfig
from pelagos.platform.records.runs import RunDirectory
from pelagos.platform.validation_history import ValidationHistory

MakeJob = Callable[..., PretrainJob]
QUIET = Console(quiet=True)
LOSSES = st.lists(st.floats(0.01, 10, allow_nan=False), min_size=1, max_size=30)


def end_of(losses: list[float], target: float, patience: int, min_delta: float) -> int | None:
    """Return the number of validations until the rule holds, from its definition alone."""
    best, best_at = losses[0], 0
    for at, loss in enumerate(losses):
        if loss < best - min_delta:
            best, best_at = loss, at
        if loss <= target or at - best_at >= patience:
            return at + 1
    return None


@given(LOSSES, st.floats(0.01, 10), st.integers(1, 6), st.floats(0, 1), st.integers(0, 30))
def test_the_rule_is_its_definition_with_a_restart_anywhere(
    losses: list[float], target: float, patience: int, min_delta: float, restart: int
) -> None:
    rule = StopWhenConfig(target=target, patience=patience, min_delta=min_delta)
    history, ended = ValidationHistory(rule), None
    for number, loss in enumerate(losses, start=1):
        history.add(number, loss, {})
        if number == restart:
            kept = json.loads(json.dumps(history.state()))
            history = ValidationHistory(rule)
            history.load(kept)
        if history.reason_to_stop:
            ended = number
            break
    assert ended == end_of(losses, target, patience, min_delta)


def test_one_dataset_may_decide(make_job: MakeJob) -> None:
    history = ValidationHistory(StopWhenConfig(target=0.5, dataset="b"))
    history.add(1, 0.1, {"a": 0.1, "b": 0.6})
    assert not history.reason_to_stop
    history.add(2, 0.9, {"a": 0.9})  # no sample of b
    assert not history.reason_to_stop
    history.add(3, 0.9, {"a": 0.9, "b": 0.5})
    assert history.reason_to_stop == (
        "schedule.stop_when: validation loss of b 0.5 reached the target 0.5"
    )


def validations(run: RunDirectory) -> list[tuple[int, float]]:
    events = [e for e in run.events() if e["kind"] == "validation"]
    return [(e["step"], e["validation_loss"]) for e in events]


def test_a_run_ends_at_its_target_saved_and_finished(make_job: MakeJob) -> None:
    common: dict[str, Any] = {"tracking__uri": "null", "validation__every_steps": 1}
    common |= {"checkpoint__every_steps": 100, "schedule__total_steps": 8}
    whole = make_job(name="whole", **common)
    pretrain.run(whole, QUIET)
    seen = validations(RunDirectory.open(whole.runs_dir, "whole"))
    assert len(seen) == 8
    target = min(loss for step, loss in seen if step <= 4)
    expected = next(step for step, loss in seen if loss <= target)
    job = make_job(name="early", **common, schedule__stop_when=f"{{target: {target!r}}}")
    result = pretrain.run(job, QUIET)
    assert (result.outcome.kind, result.outcome.step) == ("finished", expected)
    assert result.outcome.cause.startswith("schedule.stop_when: validation loss")
    run = RunDirectory.open(job.runs_dir, "early")
    # the same steps: the learning rate follows total_steps, and the end is a checkpoint
    assert validations(run) == seen[:expected]
    assert CheckpointStore(run.checkpoint_uri).latest_step() == expected
    assert run.status()["cause"] == result.outcome.cause
    # it stays finished, unless the rule is lifted: then it goes on bit for bit
    assert resume_job.resume(job.runs_dir, "early", QUIET).outcome.step == expected
    again = resume_job.resume(job.runs_dir, "early", QUIET, ["schedule.stop_when=null"])
    assert (again.outcome.kind, again.outcome.step, again.outcome.cause) == ("finished", 8, "")
    assert validations(run) == seen


def test_patience_goes_on_counting_after_a_pause(make_job: MakeJob) -> None:
    # a decrease of 100 is no progress ever: the first validation stays the best
    job = make_job(
        tracking__uri="null",
        validation__every_steps=1,
        schedule__total_steps=8,
        schedule__stop_when="{patience: 4, min_delta: 100.0}",
    )
    assert pretrain.run(job, QUIET, until_step=3).outcome.kind == "stopped"
    result = resume_job.resume(job.runs_dir, job.name, QUIET)
    assert (result.outcome.kind, result.outcome.step) == ("finished", 5)
    first = validations(RunDirectory.open(job.runs_dir, job.name))[0][1]
    assert result.outcome.cause == (
        "schedule.stop_when: validation loss did not fall by more than 100 in 4 validations; "
        f"best {first:.4g} at step 1"
    )


@pytest.mark.parametrize(
    ("rule", "key", "said"),
    [
        ("{min_delta: 0.1}", ("schedule", "stop_when"), "a `target`, or a `patience`, or both"),
        ("{target: 0.1, dataset: nowhere}", ("schedule", "stop_when", "dataset"), "are named: "),
    ],
)
def test_a_rule_that_cannot_hold_is_refused(
    make_job: MakeJob, rule: str, key: tuple[str, ...], said: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError) as caught:
        pretrain.run(make_job(schedule__stop_when=rule), QUIET)
    (problem,) = caught.value.problems
    assert problem.key == key
    assert said in problem.message
