"""What others do to a run's directory and record between two looks, or to files beside job.yaml."""

import contextlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.submission.test_others_events import (
    SUBMITTED,
    TOKEN,
    TRAINING,
    _Ray,
    details,
    drive,
    job_of,
    signer,
    write,
)

from pelagos.infra.signatures import digest_of
from pelagos.infra.storage.local import DirectoryStore
from pelagos.jobs import pretrain, submit
from pelagos.jobs.submission import driver, following, start_again
from pelagos.jobs.submission.as_submitted import changes_to_submitted
from pelagos.jobs.submission.kinds import training as kind_of_training
from pelagos.jobs.submission.ray_queue import process as run_queue
from pelagos.jobs.submission.records import own_runs
from pelagos.jobs.submission.records.record import RunRecord
from pelagos.jobs.training import branching
from pelagos.platform.config.load import load_job, resolve_yaml
from pelagos.platform.records.runs import TAKE_OVERS, RunDirectory, RunError

Clusters = Callable[..., None]


@pytest.fixture
def record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunRecord:
    """Of a run that has begun, and that must not train."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    job = job_of(tmp_path)
    RunDirectory.create(job)
    found = RunRecord(DirectoryStore(str(tmp_path)), "r")
    own_runs.remember(found, found.claim(resolve_yaml(job), **SUBMITTED))

    def train(job: Any) -> None:
        raise AssertionError(f"trains with {job.optimizer.lr}")

    monkeypatch.setattr(pretrain, "checked", train)
    return found


def take_over(**settings: Any) -> str:
    changes = {key.replace("__", "."): [None, value] for key, value in settings.items()}
    told = {"step": 0, "source": "r", "checkpoint": "x", "settings": changes}
    return json.dumps([told])


def test_a_take_over_that_somebody_writes_changes_no_job(record: RunRecord, tmp_path: Path) -> None:
    RunDirectory(tmp_path / "runs/r").replace(TAKE_OVERS, take_over(optimizer__lr=0.77))
    assert drive(record) == 1
    assert "take-overs.json, is not what was submitted (optimizer.lr: 0.77" in record.state().cause


def test_a_job_file_that_changes_after_it_was_looked_at_is_not_run(
    record: RunRecord, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def look_then_change(run: RunDirectory, *rest: Any, **more: Any) -> list[str]:
        found = changes_to_submitted(run, *rest, **more)
        run.path.joinpath("job.yaml").write_text(resolve_yaml(job_of(tmp_path, "seed=77")))
        return found

    monkeypatch.setattr(kind_of_training, "changes_to_submitted", look_then_change)
    assert drive(record) == 1
    assert "is not what was submitted (seed: 77" in record.state().cause


@pytest.mark.parametrize("setting", ["optimizer.lr=7", "schedule.warmup_steps=7"])
def test_a_changed_schedule_is_said_to_be_somebodys(
    record: RunRecord, tmp_path: Path, setting: str
) -> None:
    path = tmp_path / "runs/r/job.yaml"
    path.write_text(resolve_yaml(job_of(tmp_path, setting)))
    assert drive(record) == 1
    cause = record.state().cause
    assert f"({setting.replace('=', ': ')}" in cause
    assert "Put the submitted values back" in cause
    assert "--from" not in cause


def test_a_job_file_of_another_kind_is_named(record: RunRecord, tmp_path: Path) -> None:
    other = load_job(TRAINING.with_name("finetune.yaml"), ["name=r"])
    (tmp_path / "runs/r/job.yaml").write_text(resolve_yaml(other))
    assert drive(record) == 1
    assert "(job: 'finetune', submitted 'pretrain')" in record.state().cause


@pytest.mark.parametrize(
    "text",
    [
        "[{}]",
        '[{"step": "x", "source": "r", "checkpoint": "c", "settings": {}}]',
        '[{"step": 1, "source": "r", "checkpoint": "c", "settings": []}]',
        '[{"step": 1, "source": "r", "checkpoint": "c", "settings": {"a": 1}}]',
        '[{"step": 1, "source": "r", "checkpoint": "c", "settings": {}, "identities": 5}]',
    ],
)
def test_a_malformed_take_over_is_named(record: RunRecord, tmp_path: Path, text: str) -> None:
    run = RunDirectory(tmp_path / "runs/r")
    run.replace(TAKE_OVERS, text)
    with pytest.raises(RunError, match=r"take-overs\.json is no list of take-overs: expected is"):
        branching.finish_last(run)


def test_a_run_waits_and_is_tried_again_as_its_own_event_says(
    record: RunRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = digest_of(record.submitting_event())
    other = RunRecord(record.store, "other")
    other.claim("job", **SUBMITTED)
    other.append("failed")
    write(
        record, 1, **{**SUBMITTED, "after": ["other"], "retries": 9}, kind="resubmitted", by="m",
        host="h", job="",
    )  # fmt: skip
    calls: list[int] = []

    def lose_node(driver: Any, job: Any) -> Any:
        calls.append(1)
        raise ConnectionError("a node is lost")

    monkeypatch.setattr(driver.Driver, "_run_job", lose_node)
    assert drive(record, digest) == 1
    assert len(calls) == 1
    assert record.state().reason == "all 0 retries are used up"


def test_a_log_that_is_a_link_is_not_written_to(tmp_path: Path) -> None:
    precious, log = tmp_path / "precious", tmp_path / "logs/r/output.log"
    log.parent.mkdir(parents=True)
    log.symlink_to(precious)
    with pytest.raises(OSError, match="symbolic links"), driver._output_kept(log):
        pass
    assert not precious.exists()


def test_an_own_submission_that_somebody_brings_back_is_not_started(
    record: RunRecord, tmp_path: Path
) -> None:
    first = record.submitting_event()
    second = record.submit_again("newer", **SUBMITTED)
    own_runs.remember(record, second)
    assert own_runs.own_events(record) == [first, second]
    path = tmp_path / "records/r/events/00000001.json"
    path.unlink()
    again = RunRecord(record.store, "r")
    assert again.submitting_event() == first
    assert own_runs.own_events(again) == []


@pytest.mark.parametrize("shown", range(1, 6))
def test_events_that_come_and_go_give_no_job_to_a_clone(
    record: RunRecord,
    tmp_path: Path,
    clusters: Clusters,
    monkeypatch: pytest.MonkeyPatch,
    shown: int,
) -> None:
    """Whoever can remove events shows one at a single look of another."""
    clusters(lab={"kind": "local", "storage": str(tmp_path)})
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    evil = resolve_yaml(job_of(tmp_path, "tracking.uri=https://evil.example"))
    looks: list[int] = []
    found = following.find("r", "lab")
    of_record = type(found.record).events

    def flicker(self: RunRecord) -> list[dict[str, Any]]:
        looks.append(1)
        events = of_record(self)
        forged = {**events[0], "kind": "resubmitted", "job": evil, "time": 3.0}
        return [*events, forged] if len(looks) == shown else events

    planned: list[str] = []
    plan = lambda files, *rest: planned.append(Path(files[0]).read_text())  # noqa: E731
    monkeypatch.setattr(following, "plan", plan)
    monkeypatch.setattr(RunRecord, "events", flicker)
    with contextlib.suppress(RunError):
        following.clone(found, "new", None, (), submit.Options())
    assert "evil" not in "".join(planned)


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> _Ray:
    free = [run_queue.NodeResources(100, 0)]
    monkeypatch.setattr(run_queue.Queue, "_free", lambda self, running: free)
    return _Ray()


@pytest.mark.parametrize(
    "handle", ["pelagos-other-3", "../../api/version", 7, "pelagos-own-1/../x"]
)
def test_the_queue_asks_for_no_job_but_the_runs_own(
    tmp_path: Path, ray: _Ray, handle: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = DirectoryStore(str(tmp_path))
    record = RunRecord(store, "own")
    record.claim("job", signer(TOKEN), **details(store))
    write(record, 1, kind="started", handle={"submission_id": handle}, attempt=1)
    asked: list[str] = []
    monkeypatch.setattr(ray, "get_job_info", asked.append)
    run_queue.Queue(store, "lab", ray, TOKEN).step()
    assert asked == []


def test_events_that_appear_during_a_look_do_not_end_the_queue(
    tmp_path: Path, ray: _Ray, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = DirectoryStore(str(tmp_path))
    own = RunRecord(store, "own")
    own.claim("job", signer(TOKEN), **details(store))
    other = RunRecord(store, "other")
    other.claim("job", signer(TOKEN), **details(store))
    queue = run_queue.Queue(store, "lab", ray, TOKEN)
    states = queue._states

    def look_then_forge() -> Any:
        found = states()
        write(other, 1, kind="nonsense of nobody")
        return found

    monkeypatch.setattr(queue, "_states", look_then_forge)
    queue.step()
    (entry_point,) = ray.entry_points
    assert " own 1 " in entry_point


def test_a_resumption_takes_one_event_for_all_of_it(
    record: RunRecord, tmp_path: Path, clusters: Clusters, monkeypatch: pytest.MonkeyPatch
) -> None:
    clusters(lab={"kind": "local", "storage": str(tmp_path)})
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    store = DirectoryStore(str(tmp_path))
    fresh = RunRecord(store, "fresh")
    event = fresh.claim(resolve_yaml(job_of(tmp_path, "name=fresh")), **details(store))
    own_runs.remember(fresh, event)
    fresh.append("stopped")
    evil = resolve_yaml(job_of(tmp_path, "name=fresh", "seed=77"))
    forged = {**event, "kind": "resubmitted", "job": evil, "after": ["evil"], "time": 3.0}
    require_own = start_again.require_own

    def look_then_forge(found: Any) -> Any:
        own = require_own(found)
        write(fresh, 2, **forged)
        return own

    monkeypatch.setattr(start_again, "require_own", look_then_forge)
    monkeypatch.setattr(start_again, "hand_over", lambda *arguments: None)
    start_again.resume(following.find("fresh", "lab"), None, (), submit.Options())
    sent = RunRecord(store, "fresh").submitting_event()
    assert sent["by"] != "m"
    assert (sent["after"], "seed: 77" in sent["job"]) == ([], False)
    assert os.path.exists(tmp_path / "records/fresh/events/00000003.json")
