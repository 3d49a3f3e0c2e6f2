"""The durable record: one wins a name, events keep one order, the state follows from them."""

import json
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pelagos.infra.storage.local import DirectoryStore, ObjectStore, open_store
from pelagos.infra.storage.remote import StorageError, StorageMissingError
from pelagos.jobs.submission.records.record import RecordError, RunRecord, list_records, replay
from pelagos.jobs.submission.silent_ends import record_silent_end

DETAILS = {"cluster": "lab", "priority": 0, "after": [], "retries": 3}


@pytest.fixture(params=["directory", pytest.param("s3", marks=pytest.mark.s3)])
def store(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> ObjectStore:
    if request.param == "directory":
        return open_store(str(tmp_path / "storage"))
    server = request.getfixturevalue("s3_server")
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    return open_store(server.new_uri())


def test_of_many_who_claim_a_name_at_once_one_wins(store: ObjectStore) -> None:
    results: list[str] = []
    start = threading.Barrier(6)

    def claim(number: int) -> None:
        start.wait()
        try:
            RunRecord(store, "popular").claim(f"job: {number}", **DETAILS)
            results.append("won")
        except RecordError as error:
            results.append(str(error))

    threads = [threading.Thread(target=claim, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results.count("won") == 1
    losers = [r for r in results if r != "won"]
    assert len(losers) == 5
    assert all("exists already: submitted by" in r for r in losers)


def test_events_written_at_once_are_all_kept_in_one_order(store: ObjectStore) -> None:
    RunRecord(store, "run").claim("job", **DETAILS)

    def write(writer: int) -> None:
        record = RunRecord(store, "run")  # each has its own view
        for number in range(4):
            record.append("note", writer=writer, number=number)

    threads = [threading.Thread(target=write, args=(n,)) for n in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    events = RunRecord(store, "run").events()
    assert len(events) == 13
    for writer in range(3):
        assert [e["number"] for e in events if e.get("writer") == writer] == [0, 1, 2, 3]


def test_a_write_that_depends_on_what_was_seen_happens_once(store: ObjectStore) -> None:
    record = RunRecord(store, "run")
    record.claim("job", **DETAILS)
    assert record.append_if(1, "started", handle={"id": 1}, attempt=1)
    assert not RunRecord(store, "run").append_if(1, "started", handle={"id": 2}, attempt=1)
    assert record.state().handle == {"id": 1}


def test_a_record_outlives_whoever_wrote_it(store: ObjectStore) -> None:
    record = RunRecord(store, "run")
    record.claim("job: pretrain", **DETAILS)
    record.append("running", where="node-3", attempt=1)
    again = RunRecord(open_store(store.uri), "run")
    assert again.job_yaml() == "job: pretrain"
    assert (again.state().state, again.state().where) == ("running", "node-3")
    assert [r.run for r in list_records(open_store(store.uri))] == ["run"]


def test_a_run_that_was_never_submitted_is_named_with_those_that_were(store: ObjectStore) -> None:
    RunRecord(store, "known").claim("job", **DETAILS)
    with pytest.raises(RecordError, match="no submitted run 'unknown'.*there are: known"):
        RunRecord(store, "unknown").state()


EVENTS = {
    "submitted": {"by": "ada", "time": 1.0, **DETAILS},
    "queued": {"reason": "behind other"},
    "waits": {"kind": "queued", "handle": {"is_queued": True}, "attempt": 1},
    "started": {"handle": {"job_id": "7"}, "attempt": 1},
    "running": {"where": "node-1", "attempt": 1},
    "retried": {"cause": "node died", "cause_kind": "out of memory", "micro_batch_size": 4},
    "stop_requested": {"now": False},
    "failed": {"cause": "ValueError: no", "cause_kind": "user error"},
    "preempted": {"cause": "time limit", "cause_kind": "preempted"},
    "resubmitted": {**DETAILS, "cluster": "hpc", "attempt": 2, "handle": {}},
    "finished": {"step": 9},
}


@pytest.mark.parametrize(
    ("kinds", "expected"),
    [
        ("submitted", "submitted"),
        ("submitted queued", "queued"),
        ("submitted started", "starting"),
        ("submitted started running", "running"),
        ("submitted running started", "running"),  # the run was quicker than who started it
        ("submitted running finished started", "finished"),
        ("submitted started waits", "starting"),  # the queue was quicker than who submitted it
        ("submitted started running retried", "queued"),
        ("submitted started running retried running finished", "finished"),
        ("submitted started running failed", "failed"),
        ("submitted started running stop_requested", "running"),
        ("submitted started running preempted", "preempted"),
        ("submitted started running failed resubmitted", "submitted"),
    ],
)
def test_the_state_follows_from_the_events(kinds: str, expected: str) -> None:
    assert _replayed(kinds).state == expected


def test_what_a_new_try_forgets_and_what_it_keeps() -> None:
    state = _replayed("submitted started running stop_requested failed resubmitted")
    assert (state.stop, state.cause, state.cluster, state.attempt) == ("", "", "hpc", 2)
    state = _replayed("submitted started running retried running")
    assert (state.restarts, state.micro_batch_size) == (1, 4)
    assert _replayed("submitted running retried failed resubmitted").micro_batch_size is None


def _replayed(kinds: str):  # type: ignore[no-untyped-def]
    return replay("run", [{"time": 2.0, "kind": k, **EVENTS[k]} for k in kinds.split()])


def test_a_run_that_the_queue_has_started_is_still_found_there() -> None:
    assert _replayed("submitted started waits").handle == {"job_id": "7"}
    assert _replayed("submitted waits").handle == {"is_queued": True}


@given(st.text(max_size=120))
def test_no_name_leads_out_of_the_storage(name: str) -> None:
    store = DirectoryStore("/nonexistent/storage")
    try:
        record = RunRecord(store, name)
    except RecordError:
        return
    key = record._key(0)
    assert key.split("/")[1] == name
    assert ".." not in Path(key).parts
    assert store.path(key).is_relative_to("/nonexistent/storage/records")


@pytest.mark.parametrize("key", ["../outside", "a/../../outside", "/etc/passwd"])
def test_no_key_leads_out_of_the_directory(tmp_path: Path, key: str) -> None:
    with pytest.raises(StorageError, match="leads out of"):
        DirectoryStore(str(tmp_path / "storage")).write(key, b"")


def test_the_directory_store_never_shows_half_an_object(tmp_path: Path) -> None:
    store = DirectoryStore(str(tmp_path))
    content = json.dumps({"values": list(range(100_000))}).encode()
    seen: list[bytes] = []
    done = threading.Event()

    def read() -> None:
        while not done.is_set():
            try:
                seen.append(store.read("object"))
            except StorageMissingError:
                continue

    thread = threading.Thread(target=read)
    thread.start()
    assert store.create("object", content)
    store.write("object", content)
    done.set()
    thread.join()
    assert all(value == content for value in seen)
    assert list(store.sizes()) == ["object"]


@pytest.mark.parametrize(
    ("detail", "output", "kind", "state"),
    [
        ("process 7 on a", "step 3/8 loss 0.4", "node lost", "queued"),
        ("process 7 on a", "ValueError: job.yaml: 1 problem", "user error", "failed"),
        ("exit code 3", "cannot fetch the wheel: connection reset", "infrastructure", "queued"),
        ("State=OUT_OF_MEMORY error:", "oom-kill: out of memory", "out of memory", "failed"),
    ],
)
def test_a_process_that_ended_without_a_word_is_tried_again_where_that_can_help(
    tmp_path: Path, detail: str, output: str, kind: str, state: str
) -> None:
    record = RunRecord(open_store(str(tmp_path)), "run")
    record.claim("job", **DETAILS)
    record.append("running", attempt=1)
    again = record_silent_end(record, detail, output, 2)
    assert again == (state == "queued")
    event = record.events()[-1]
    assert (event["cause_kind"], record.state().state) == (kind, state)
    # a second watcher that saw the same has nothing left to do
    assert not record_silent_end(record, detail, output, 2)
    assert len(record.events()) == 3


def test_a_run_stopped_at_once_did_not_fail(tmp_path: Path) -> None:
    record = RunRecord(open_store(str(tmp_path)), "run")
    record.claim("job", **DETAILS)
    record.append("running", attempt=1)
    record.append("stop_requested", now=True)
    assert not record_silent_end(record, "process 7 on a", "", 3)
    assert record.state().state == "stopped"
