"""What others append to a run's record, or write into its directory, is not obeyed when it goes on."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pelagos.infra.signatures import digest_of, is_signed, signature_with, signed_text
from pelagos.infra.storage.local import DirectoryStore
from pelagos.jobs import resume as resume_job
from pelagos.jobs.pretrain import PretrainResult
from pelagos.jobs.submission.as_submitted import changes_to_own
from pelagos.jobs.submission.driver import Driver
from pelagos.jobs.submission.ray_queue import process as run_queue
from pelagos.jobs.submission.records.record import RecordError, RunRecord
from pelagos.platform.config.load import load_job, resolve_yaml
from pelagos.platform.config.schema import TrainingJob
from pelagos.platform.records.runs import Outcome, RunDirectory, RunError

TRAINING = Path(__file__).parents[2] / "configs/quickstart/pretrain.yaml"
TOKEN = "0123456789abcdef" * 4
SUBMITTED = {"cluster": "lab", "priority": 0, "after": [], "retries": 0}


def job_of(directory: Path, *overrides: str) -> TrainingJob:
    runs = f"runs_dir={directory / 'runs'}"
    job = load_job(TRAINING, ["name=r", runs, "tracking.uri=https://own", *overrides])
    assert isinstance(job, TrainingJob)
    return job


@pytest.fixture
def record(tmp_path: Path) -> RunRecord:
    """Of a run that has begun."""
    job = job_of(tmp_path)
    RunDirectory.create(job)
    found = RunRecord(DirectoryStore(str(tmp_path)), "r")
    found.claim(resolve_yaml(job), **SUBMITTED)
    return found


@pytest.fixture
def resumed(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What runs go on with: overrides, the step that they branch from."""
    found: list[Any] = []

    def resume(
        runs_dir: str, name: str, console: Any, overrides: list[str], watcher: Any, **further: Any
    ) -> Any:
        job = RunDirectory.open(runs_dir, name).revised_job(overrides, ("optimizer", "schedule"))
        found.append((job, further["from_step"]))
        return PretrainResult("r", Outcome("finished", 1), {})

    monkeypatch.setattr(resume_job, "resume", resume)
    return found


def drive(record: RunRecord, digest: str | None = None) -> int:
    store = record.store
    return Driver(store, "r", 2, digest or digest_of(record.submitting_event())).drive()


def write(record: RunRecord, number: int, **event: Any) -> None:
    """Write an event as anybody with access to the storage can."""
    key = f"records/{record.run}/events/{number:08d}.json"
    record.store.write(key, json.dumps({"id": "b", "time": 2.0, **event}).encode())


@pytest.mark.parametrize("kind", ["retried", "resubmitted", "running", "submitted"])
@pytest.mark.parametrize(
    "setting", ["tracking.uri=https://evil.example", "optimizer.lr=1", "parallel.strategy=zero3"]
)
def test_an_appended_event_changes_nothing_that_is_run(
    record: RunRecord, resumed: list[Any], tmp_path: Path, kind: str, setting: str
) -> None:
    digest = digest_of(record.submitting_event())
    evil = resolve_yaml(job_of(tmp_path, setting))
    write(
        record, 1, **SUBMITTED, kind=kind, by="m", host="h", job=evil, overrides=[setting],
        from_step="best", handle={}, code=None,
    )  # fmt: skip
    assert drive(record, digest) == 0
    ((job, from_step),) = resumed
    assert (job, from_step) == (job_of(tmp_path), None)


def test_a_first_event_that_was_exchanged_is_not_run(
    record: RunRecord, resumed: list[Any], tmp_path: Path
) -> None:
    first = record.submitting_event()
    digest = digest_of(first)
    write(record, 0, **{**first, "job": resolve_yaml(job_of(tmp_path, "seed=7"))})
    with pytest.raises(
        RecordError, match="does not match the submission that started this process"
    ):
        drive(record, digest)
    assert resumed == []


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("https://own", "https://evil.example"),
        ("strategy: ddp", "strategy: fsdp"),
        ("every_steps: 500", "every_steps: 501"),
        ("endpoint_url: null", "endpoint_url: https://evil.example"),
    ],
)
def test_a_changed_job_file_is_put_right(
    record: RunRecord, resumed: list[Any], tmp_path: Path, old: str, new: str
) -> None:
    path = tmp_path / "runs/r/job.yaml"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    assert drive(record) == 0
    assert resumed[0][0] == job_of(tmp_path)


def test_a_job_file_that_was_changed_in_what_a_run_is_is_refused(
    record: RunRecord, resumed: list[Any], tmp_path: Path
) -> None:
    path = tmp_path / "runs/r/job.yaml"
    seed = job_of(tmp_path).seed
    path.write_text(path.read_text().replace(f"seed: {seed}", f"seed: {seed + 1}"))
    assert drive(record) == 1
    assert resumed == []
    assert f"seed: now {seed + 1}, submitted {seed}" in record.state().cause


def test_micro_batches_that_a_run_has_shrunk_stay_so(record: RunRecord, resumed: list[Any]) -> None:
    record.append("retried", micro_batch_size=2)
    assert drive(record) == 0
    assert resumed[0][0].parallel.micro_batch_size == 2


def test_a_resumption_asks_for_what_neither_submission_nor_user_says(tmp_path: Path) -> None:
    job = job_of(tmp_path)
    run = RunDirectory.create(job)
    assert changes_to_own(run, [job], ()) == []
    run.replace_job(job_of(tmp_path, "optimizer.lr=1", "parallel.micro_batch_size=1"))
    with pytest.raises(RunError, match=r"optimizer.lr: now 1.0, submitted .*KEY=VALUE"):
        changes_to_own(run, [job], ("parallel.strategy=fsdp",))
    assert changes_to_own(run, [job], ("optimizer.lr=0.1",)) == []


def test_a_resumption_that_never_began_is_gone_on_with(tmp_path: Path) -> None:
    """Its job is the newest that was submitted; the run's file is still the one before."""
    job, newest = job_of(tmp_path), job_of(tmp_path, "parallel.strategy=fsdp")
    run = RunDirectory.create(job)
    assert changes_to_own(run, [job, newest], ()) == ["parallel.strategy=fsdp"]
    assert changes_to_own(run, [job, newest], ("parallel.strategy=ddp",)) == []
    run.replace_job(job_of(tmp_path, "health.max_failures=9"))
    with pytest.raises(RunError, match=r"health.max_failures: now 9, submitted"):
        changes_to_own(run, [job, newest], ())


class _Ray:
    """Stands in for Ray's Jobs API: notes what is started."""

    def __init__(self) -> None:
        self.entry_points: list[str] = []

    def submit_job(self, *, entrypoint: str, **_: Any) -> str:
        self.entry_points.append(entrypoint)
        return "id"

    def get_job_info(self, submission_id: str) -> Any:
        return SimpleNamespace(status="RUNNING", message="")


def signer(token: str) -> Callable[[bytes], str]:
    return lambda text: signature_with(token, text)


def details(store: DirectoryStore, wheel: str = "0") -> dict[str, Any]:
    code = {"wheel_uri": "w", "files_uri": "f"}
    code |= {"wheel_sha256": wheel * 64, "files_sha256": "0" * 64}
    config = {"kind": "ray", "storage": store.uri, "address": "http://127.0.0.1:9"}
    return {**SUBMITTED, "code": code, "needs": {"num_workers": 1}, "cluster_config": config}


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> _Ray:
    free = [run_queue.NodeResources(100, 0)]
    monkeypatch.setattr(run_queue.Queue, "_free", lambda self, running: free)
    return _Ray()


def test_the_queue_starts_what_holders_of_the_token_submitted_alone(
    tmp_path: Path, ray: _Ray
) -> None:
    store = DirectoryStore(str(tmp_path))
    own = RunRecord(store, "own").claim("job", signer(TOKEN), **details(store))
    for run, sign in (("none", lambda text: ""), ("other", signer("another"))):
        RunRecord(store, run).claim("job", sign, **details(store))
    for run, event in {
        "copied": own,  # signed, for another name
        "changed": {**own, "code": {**own["code"], "wheel_sha256": "1" * 64}},
    }.items():
        write(RunRecord(store, run), 0, **event)
    RunRecord(store, "forged").claim("job", signer(TOKEN), **details(store))
    evil = {**own, **details(store, "2"), "kind": "resubmitted"}
    write(RunRecord(store, "forged"), 1, **evil)
    queue = run_queue.Queue(store, "lab", ray, TOKEN)
    queue.step()
    queue.step()
    (entry_point,) = ray.entry_points
    assert f"{store.uri} own 1 {digest_of(own)}" in entry_point
    for run in ("none", "other", "copied", "changed", "forged"):
        record = RunRecord(store, run)
        assert record.state().reason.startswith("not started: it was submitted without the token")
        assert [e["kind"] for e in record.events()].count("queued") == 1  # said once


def test_an_event_that_appears_while_the_queue_looks_is_not_started(
    tmp_path: Path, ray: _Ray, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = DirectoryStore(str(tmp_path))
    record = RunRecord(store, "own")
    own = record.claim("job", signer(TOKEN), **details(store))
    queue = run_queue.Queue(store, "lab", ray, TOKEN)
    start = queue._start

    def forge_then_start(found: RunRecord) -> None:
        write(record, 1, **{**own, **details(store, "2"), "kind": "resubmitted"})
        start(found)

    monkeypatch.setattr(queue, "_start", forge_then_start)
    queue.step()
    assert ray.entry_points == []


def test_a_submission_that_is_copied_submits_nothing_again(tmp_path: Path) -> None:
    record = RunRecord(DirectoryStore(str(tmp_path)), "own")
    first = record.claim("first", signer(TOKEN), **SUBMITTED)
    second = record.submit_again("second", signer(TOKEN), **SUBMITTED)
    record.store.write("records/own/events/00000002.json", json.dumps(first).encode())
    assert record.submitting_event() == second
    assert record.job_yaml() == "second"


def test_a_signature_counts_for_its_event_run_storage_and_token() -> None:
    event = {"kind": "submitted", "job": "x", "time": 1.5}
    signature = signature_with(TOKEN, signed_text("s3://b/p", "run", event))
    signed = {**event, "signature": signature}
    assert is_signed(TOKEN, "s3://b/p", "run", signed)
    for token, storage, run, changed in (
        ("other", "s3://b/p", "run", {}),
        (TOKEN, "s3://b/q", "run", {}),
        (TOKEN, "s3://b/p", "ran", {}),
        (TOKEN, "s3://b/p", "run", {"job": "y"}),
        (TOKEN, "s3://b/p", "run", {"more": 1}),
        (TOKEN, "s3://b/p", "run", {"signature": ""}),
    ):
        assert not is_signed(token, storage, run, signed | changed)
