"""What listing runs and a look of the queue cost, by requests: events are not read again, nor files."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from pelagos.cli.main import app
from pelagos.infra.signatures import digest_of
from pelagos.infra.storage.local import DirectoryStore
from pelagos.jobs.submission import listed_runs
from pelagos.jobs.submission.driver import Driver
from pelagos.jobs.submission.ray_queue import process as run_queue
from pelagos.jobs.submission.records.record import RunRecord
from pelagos.jobs.submission.records.summary import Progress, encoded

Clusters = Callable[..., None]
DETAILS: dict[str, Any] = {"cluster": "lab", "priority": 0, "after": [], "retries": 0}
NUM_RUNS = 30


class Counting(DirectoryStore):
    """A directory that counts what it is asked for."""

    def __init__(self, uri: str) -> None:
        super().__init__(uri)
        self.asked: Counter[str] = Counter()
        self.num_bytes = 0

    def read(self, key: str) -> bytes:
        self.asked["read"] += 1
        content = super().read(key)
        self.num_bytes += len(content)
        return content

    def sizes(self, prefix: str = "") -> dict[str, int]:
        self.asked["list"] += 1
        return super().sizes(prefix)


@pytest.fixture
def store(tmp_path: Path, clusters: Clusters, monkeypatch: pytest.MonkeyPatch) -> Counting:
    """With finished runs of several events, each with a directory of records."""
    place = tmp_path / "storage"
    place.mkdir()
    clusters(lab={"kind": "ray", "storage": str(place), "address": "http://127.0.0.1:9"})
    monkeypatch.chdir(tmp_path)
    counting = Counting(str(place))
    monkeypatch.setattr(listed_runs, "storage_of", lambda config: counting)
    for number in range(NUM_RUNS):
        finished_run(counting, f"run-{number:02d}")
    counting.asked.clear()
    counting.num_bytes = 0
    return counting


def finished_run(store: DirectoryStore, name: str) -> None:
    code = {"wheel_uri": "w", "files_uri": "f"}
    code |= {"wheel_sha256": "0" * 64, "files_sha256": "0" * 64}
    config = {"kind": "ray", "storage": store.uri, "address": "http://127.0.0.1:9"}
    record = RunRecord(store, name)
    record.claim("job", **DETAILS, code=code, needs={}, cluster_config=config)
    record.append("started", handle={"submission_id": f"pelagos-{name}-1"}, attempt=1)
    record.append("running", where="node", attempt=1)
    record.note_progress(Progress(step=7, total_steps=9, loss=0.5))
    record.append("finished", step=9)
    store.write(f"runs/{name}/parts/metrics.jsonl/00000", b"x" * 10_000)


def test_a_list_is_one_listing_and_one_small_object_for_each_run(store: Counting) -> None:
    shown = CliRunner().invoke(app, ["list", "--json"])
    assert shown.exit_code == 0, shown.output
    rows = json.loads(shown.stdout)
    assert [row["run"] for row in rows] == [f"run-{n:02d}" for n in range(NUM_RUNS)]
    assert {(row["state"], row["step"], row["total_steps"]) for row in rows} == {("finished", 7, 9)}
    assert {row["metrics"]["loss"] for row in rows} == {0.5}
    assert store.asked == {"list": 1, "read": NUM_RUNS}
    assert store.num_bytes < 600 * NUM_RUNS


@pytest.mark.parametrize("spoilt", ["older", "absent", "garbage", "of other events"])
def test_where_a_summary_does_not_fit_the_events_tell(store: Counting, spoilt: str) -> None:
    record = RunRecord(store, "run-03")
    record.append("resubmitted", **_again(record))
    record.append("failed", cause="ValueError: no", cause_kind="user error")
    key = "records/run-03/summary.json"
    summary = record.summary()
    assert summary is not None
    if spoilt == "absent":
        store.delete([key])
    elif spoilt == "garbage":
        store.write(key, b'{"num_events": [], "state": "\\u001b[2J"}')
    else:
        change = {"num_events": summary.num_events - 1, "state": "finished"}
        store.write(key, encoded(summary.model_copy(update=change)))
    row = next(r for r in listed_runs.listed_runs()[0] if r.run == "run-03")
    assert (row.state, row.cause) == ("failed", "ValueError: no")


def _again(record: RunRecord) -> dict[str, Any]:
    return {k: v for k, v in record.submitting_event().items() if k not in ("id", "time", "kind")}


def test_a_look_of_the_queue_is_one_listing_whatever_has_ended(
    store: Counting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_queue.Queue, "_free", lambda self, running: [])
    queue = run_queue.Queue(store, "lab", object())
    queue.step()
    first = dict(store.asked)
    assert first["list"] == 1
    for _ in range(5):
        queue.step()
    assert store.asked["list"] - first["list"] == 5
    assert store.asked["read"] == first["read"]  # each event was read once


def test_what_another_writes_between_is_seen_by_the_next_look(store: Counting) -> None:
    record, other = RunRecord(store, "run-00"), RunRecord(store, "run-00")
    record.events()
    other.append("resubmitted", **_again(other))
    assert record.seen_state().state == "finished"
    record.events()
    assert record.seen_state().state == "submitted"


def test_values_that_no_step_has_are_no_progress(store: Counting) -> None:
    """On a shared disk anybody can write a run's metrics.jsonl; its process must not fail by it."""
    record = RunRecord(store, "run-05")
    driver = Driver(store, "run-05", 1, digest_of(record.submitting_event()))
    path = driver.runs_dir / "run-05" / "metrics.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    for line in ('{"step": -5}', '{"step": 5, "loss": "x"}', '{"step": true}', "[]"):
        path.write_text(line + "\n")
        driver.push()
    assert record.summary() is not None
