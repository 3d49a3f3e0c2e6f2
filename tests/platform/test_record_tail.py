"""A growing file of records: each line parsed once, in bounded memory, whatever happens to the file."""

import json
import os
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pelagos.platform.config.load import load_job
from pelagos.platform.config.schema import TrainingJob
from pelagos.platform.mlflow_records.tracker import Tracker
from pelagos.platform.records import record_tail, run_files
from pelagos.platform.records.goodput import RunTimes
from pelagos.platform.records.record_tail import RecordTail
from pelagos.platform.records.runs import RunDirectory

TRAINING = Path(__file__).parents[2] / "configs/quickstart/pretrain.yaml"


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Every line that is parsed."""
    found: list[bytes] = []
    parse = run_files.parsed_record

    def noted(line: bytes) -> dict[str, Any] | None:
        found.append(line)
        return parse(line)

    monkeypatch.setattr(record_tail, "parsed_record", noted)
    return found


def lines(first: int, last: int) -> str:
    return "".join(json.dumps({"step": n, "time": 1.0 * n}) + "\n" for n in range(first, last))


def steps(tail: RecordTail) -> list[int]:
    return [record["step"] for piece in tail.pieces() for record in piece]


def test_a_line_is_parsed_once_however_often_one_looks(tmp_path: Path, parsed: list[bytes]) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(lines(0, 1000))
    tail = RecordTail(path)
    assert steps(tail) == list(range(1000))
    for look in range(10):
        assert steps(tail) == []
        with path.open("a") as file:
            file.write(lines(1000 + look, 1001 + look))
        assert steps(tail) == [1000 + look]
    assert len(parsed) == 1010


def test_a_line_without_its_end_waits_for_it(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"st')
    tail = RecordTail(path)
    assert steps(tail) == [1]
    with path.open("a") as file:
        file.write('ep": 2}\n')
    assert steps(tail) == [2]


def test_a_file_that_was_replaced_is_read_from_its_beginning(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(lines(0, 10))
    tail = RecordTail(path)
    assert (steps(tail), tail.restarts) == (list(range(10)), 0)
    (tmp_path / "other").write_text(lines(0, 12))  # longer than before: its number tells
    os.replace(tmp_path / "other", path)
    assert (steps(tail), tail.restarts) == (list(range(12)), 1)
    with path.open("r+") as file:
        file.truncate(0)
        file.write(lines(0, 2))
    assert (steps(tail), tail.restarts) == ([0, 1], 2)


@given(st.lists(st.integers(1, 40), max_size=30), st.integers(60, 300))
@settings(max_examples=40, deadline=None)
def test_pieces_of_any_size_hold_every_line(lengths: list[int], piece: int) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as place, pytest.MonkeyPatch.context() as patch:
        patch.setattr(record_tail, "PIECE_BYTES", piece)
        path = Path(place) / "events.jsonl"
        records = [{"text": "x" * length} for length in lengths]
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
        assert [r for p in RecordTail(path).pieces() for r in p] == records


def test_lines_that_no_step_writes_hide_nothing_and_take_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b"[1]\n\xff\xfe\n" + b"x" * (20 * 2**20) + b"\n" + lines(0, 3).encode())
    tracemalloc.start()
    try:
        assert steps(RecordTail(path, run_files.is_step)) == [0, 1, 2]
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4 * record_tail.PIECE_BYTES


class _Store:
    """Stands in for MLflow's client: counts what it is given, and can be away."""

    def __init__(self) -> None:
        self.points: list[tuple[str, int]] = []
        self.is_away = False

    def log_batch(self, run_id: str, metrics: Any = (), tags: Any = ()) -> None:
        if self.is_away:
            raise ConnectionError("away")
        self.points += [(m.key, m.step) for m in metrics]


def tracker_of(tmp_path: Path, *overrides: str) -> tuple[Tracker, _Store]:
    job = load_job(TRAINING, [f"runs_dir={tmp_path}", "tracking.uri=https://mlflow", *overrides])
    assert isinstance(job, TrainingJob)
    tracker, store = Tracker(job, RunDirectory.create(job), []), _Store()
    tracker._client, tracker.recorded = store, object()  # type: ignore[assignment]
    tracker.last_step = tracker.last_event = tracker.last_dropped = 0
    tracker._name = lambda name: name  # type: ignore[method-assign]
    type(tracker).run_id = property(lambda self: "id")  # type: ignore[assignment]
    return tracker, store


@pytest.fixture(autouse=True)
def _run_id() -> Any:
    before = Tracker.run_id
    yield
    Tracker.run_id = before  # type: ignore[method-assign]


def append(tracker: Tracker, first: int, last: int, loss: float = 1.0) -> None:
    for step in range(first, last):
        tracker.run.append_metrics({"step": step, "time": 1.0, "loss": loss})


def test_the_tracker_parses_each_step_once(tmp_path: Path, parsed: list[bytes]) -> None:
    tracker, store = tracker_of(tmp_path, "schedule.total_steps=5000", "schedule.warmup_steps=0")
    append(tracker, 1, 1001)
    tracker._send_metrics()
    before = len(parsed)
    for look in range(20):
        append(tracker, 1001 + look, 1002 + look)
        tracker._send_metrics()
    assert len(parsed) - before == 20
    assert store.points == [("train/loss", step) for step in range(1, 1021)]


def test_what_could_not_be_sent_is_sent_later(tmp_path: Path) -> None:
    tracker, store = tracker_of(tmp_path)
    append(tracker, 1, 5)
    store.is_away = True
    with pytest.raises(ConnectionError):
        tracker._send_metrics()
    append(tracker, 5, 8)
    store.is_away = False
    tracker._send_metrics()
    assert store.points == [("train/loss", step) for step in range(1, 8)]


def test_a_long_run_is_thinned_for_mlflow_and_not_in_its_file(tmp_path: Path) -> None:
    tracker, store = tracker_of(tmp_path, "schedule.total_steps=1000", "tracking.max_points=100")
    append(tracker, 1, 1001)
    tracker._send_metrics()
    assert [step for _, step in store.points] == list(range(10, 1001, 10))
    assert len(tracker.run.metrics()) == 1000


@pytest.mark.parametrize("is_same", [True, False])
def test_steps_that_were_redone_are_sent_again_where_they_differ(
    tmp_path: Path, is_same: bool
) -> None:
    tracker, store = tracker_of(tmp_path)
    append(tracker, 1, 9)
    tracker._send_metrics()
    tracker.run.keep_metrics_until(4)
    tracker._send_metrics()
    append(tracker, 5, 7)
    append(tracker, 7, 10, loss=1.0 if is_same else 2.0)
    tracker._send_metrics()
    again = [9] if is_same else [7, 8, 9]
    expected = [*range(1, 9), *([9] if is_same else [9, 7, 8, 9])]
    assert [step for _, step in store.points][-len(again) :] == again
    assert [step for _, step in store.points] == expected


def test_sums_of_time_are_those_of_all_records(tmp_path: Path) -> None:
    """The formula, written out over the whole lists."""
    tracker, _ = tracker_of(tmp_path)
    run = tracker.run
    events = [
        {"kind": "launched", "time": 10.0},
        {"kind": "checkpoint", "time": 14.0, "step": 2},
        {"kind": "launched", "time": 20.0},
        {"kind": "finished", "time": 27.0},
    ]
    for event in events:
        run.events_path.open("a").write(json.dumps(event) + "\n")
    seconds = [1.0, 1.5, 2.0, 0.5]
    for step, value in enumerate(seconds, start=1):
        run.append_metrics({"step": step, "time": 10.0 + 4 * step, "step_seconds": value})
    # launches last from 10 to 18 (the second step) and from 20 to 27
    share = sum(seconds) / ((18 - 10) + (27 - 20))
    assert run.followed_times().now().goodput() == pytest.approx(share)
    times = RunTimes()
    for event in events:
        times.add_event(event)
    for values in run.metrics():
        times.add_step(values)
    assert times.goodput() == pytest.approx(share)
    assert times.percentiles()["step_seconds_p50"] == pytest.approx(1.25)
    followed = run.followed_times()
    assert followed.now().goodput() == pytest.approx(share)
    run.keep_metrics_until(2)
    assert followed.now().num_steps == 2
