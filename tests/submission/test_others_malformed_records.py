"""A record, a run's directory or a log that is malformed, or no file at all, stops nobody else."""

import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from pelagos.cli.main import app
from pelagos.infra.clusters.storage_check import check_store
from pelagos.infra.storage.local import DirectoryStore
from pelagos.infra.storage.remote import StorageError
from pelagos.jobs.submission.ray_queue import process as run_queue
from pelagos.jobs.submission.records.record import RunRecord

Clusters = Callable[..., None]
JOB = """\
job: generate
name: theirs
datasets: [{uri: out.zarr, family: ns-sines, num_trajectories: 1, resolution: 16}]
"""
TRAINING = (Path(__file__).parents[2] / "configs/quickstart/pretrain.yaml").read_text()
STEP = {"step": 3, "time": 5.0, "loss": 0.5, "samples_per_second": 1.0, "step_seconds": 0.1}


@pytest.fixture(autouse=True)
def no_hang() -> Iterator[None]:
    def give_up(*_: Any) -> None:
        pytest.fail("it hangs")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(30)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture
def storage(tmp_path: Path, clusters: Clusters, monkeypatch: pytest.MonkeyPatch) -> DirectoryStore:
    place = tmp_path / "storage"
    place.mkdir()
    clusters(
        here={"kind": "local", "storage": str(place)},
        lab={"kind": "ray", "storage": str(place), "address": "http://127.0.0.1:9"},
    )
    monkeypatch.chdir(tmp_path)
    return DirectoryStore(str(place))


def submitted(store: DirectoryStore, cluster: str, **changes: Any) -> dict[str, Any]:
    config = {"kind": "local", "storage": store.uri}
    if cluster == "lab":
        config = {"kind": "ray", "storage": store.uri, "address": "http://127.0.0.1:9"}
    code = {"wheel_uri": "w", "files_uri": "f", "wheel_sha256": "0" * 64, "files_sha256": "0" * 64}
    event = {
        "id": "a",
        "time": 1.0,
        "kind": "submitted",
        "by": "somebody",
        "host": "h",
        "job": JOB,
        "cluster": cluster,
        "cluster_config": config,
        "needs": {"num_workers": 1, "cpus_per_worker": 1, "gpus_per_worker": 0},
        "code": code,
        "priority": 0,
        "retries": 0,
        "after": [],
    }
    return {key: value for key, value in (event | changes).items() if value != "absent"}


def write(store: DirectoryStore, run: str, *events: dict[str, Any]) -> None:
    for number, event in enumerate(events):
        key = f"records/{run}/events/{number:08d}.json"
        store.write(key, json.dumps({"time": 2.0, **event}).encode())


def malformed(store: DirectoryStore, cluster: str) -> None:
    """Records of which each stopped `list` and the queue with a KeyError, StopIteration or TypeError."""
    first = submitted(store, cluster)
    write(store, "no-config", submitted(store, cluster, cluster_config="absent"))
    write(store, "no-kind", submitted(store, cluster, cluster_config={}))
    write(store, "no-needs", submitted(store, cluster, needs="absent"))
    write(store, "no-code", submitted(store, cluster, code=None))
    write(store, "no-now", first, {"kind": "stop_requested"})
    write(store, "no-attempt", first, {"kind": "running"})
    write(
        store, "config-alone", first, {"kind": "resubmitted", "cluster_config": {"kind": "local"}}
    )
    handle = {"host": os.uname().nodename, "pid": 2**22 - 1, "attempt": 1}
    write(store, "no-start", first, {"kind": "started", "handle": handle})
    write(store, "deep", first, {"kind": "x", "other": json.loads("[" * 500 + "]" * 500)})
    pipe = store.root / "records" / "pipe" / "events"
    pipe.mkdir(parents=True)
    os.mkfifo(pipe / "00000000.json")
    link = store.root / "records" / "link" / "events"
    link.mkdir(parents=True)
    (link / "00000000.json").symlink_to("/dev/zero")


VERBS = (["status"], ["logs"], ["wait", "--timeout", "0"], ["recover"], ["resume"], ["stop"])


def test_malformed_records_hide_no_other_run_and_are_errors_by_name(
    storage: DirectoryStore,
) -> None:
    malformed(storage, "here")
    write(storage, "whole", submitted(storage, "here"))
    listed = CliRunner().invoke(app, ["list", "--json"])
    assert listed.exit_code == 0
    assert "whole" in {row["run"] for row in json.loads(listed.stdout)}
    assert "no-config" in listed.output  # said to be left out
    for run in sorted(path.name for path in (storage.root / "records").iterdir()):
        for verb, *options in VERBS:
            shown = CliRunner().invoke(app, [verb, run, *options])
            assert shown.exception is None or isinstance(shown.exception, SystemExit), (verb, run)


class _Ray:
    """Stands in for Ray's Jobs API: notes what is started."""

    def __init__(self) -> None:
        self.started: list[str] = []

    def submit_job(self, *, metadata: dict[str, str], **_: Any) -> str:
        self.started.append(metadata["pelagos_run"])
        return "id"

    def get_job_info(self, submission_id: str) -> Any:
        return SimpleNamespace(status="RUNNING", message="")


def test_malformed_records_do_not_stop_the_queue_of_everybody(
    storage: DirectoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    malformed(storage, "lab")
    write(storage, "whole", submitted(storage, "lab"))
    write(storage, "later", submitted(storage, "lab", after=["no-config"]))
    client = _Ray()
    queue = run_queue.Queue(storage, "lab", client)
    free = [run_queue.NodeResources(100, 0)]
    monkeypatch.setattr(run_queue.Queue, "_free", lambda self, running: free)
    queue.step()
    queue.step()
    assert "whole" in client.started
    assert "no-config" not in client.started
    # what comes after a run that cannot be read waits: it is neither started nor cancelled
    assert RunRecord(storage, "later").state().state in ("submitted", "queued")


def test_an_object_of_a_shared_directory_is_a_regular_file(storage: DirectoryStore) -> None:
    outside = storage.root.parent / "outside"
    outside.write_text("not in the storage")
    (storage.root / "link").symlink_to(outside)
    os.mkfifo(storage.root / "pipe")
    for key in ("link", "pipe"):
        with pytest.raises(StorageError):
            storage.read(key)
        assert key not in storage.sizes()


def _pipe(path: Path) -> None:
    path.unlink(missing_ok=True)
    os.mkfifo(path)


def _endless(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.symlink_to("/dev/zero")


def _deep(path: Path) -> None:
    path.write_text("[" * 100_000 + "]" * 100_000)


def _other_json(path: Path) -> None:
    path.write_text('{"kind": ["checkpoint"], "step": "x", "time": {}, "state": [], "run": 1}\n')


def _list(path: Path) -> None:
    path.write_text("[1]\n")


def _huge(path: Path) -> None:
    path.touch()
    os.truncate(path, 2**42)  # sparse: it claims 4 TB


FILES = (
    *("job.yaml", "status.json", "metrics.jsonl", "events.jsonl", "identity.json"),
    *("take-overs.json", "tracking.json", ".driver.lock"),
)


@pytest.mark.parametrize("spoil", [_pipe, _endless, _deep, _other_json, _list, _huge])
def test_files_of_others_runs_do_not_hang_nor_hide_the_other_runs(
    storage: DirectoryStore, spoil: Callable[[Path], None]
) -> None:
    runs = storage.root / "runs"
    for file in ("nothing", *FILES):
        directory = runs / file.strip(".").replace(".", "-")
        directory.mkdir(parents=True)
        name = directory.name
        (directory / "job.yaml").write_text(TRAINING.replace("name: quickstart", f"name: {name}"))
        (directory / "metrics.jsonl").write_text(json.dumps(STEP) + "\n")
        (directory / "status.json").write_text(json.dumps({"state": "finished", "updated": 1.0}))
        if file != "nothing":
            spoil(directory / file)
    listed = CliRunner().invoke(app, ["list", "--runs-dir", str(runs), "--json"])
    assert listed.exit_code == 0, listed.output
    rows = {row["run"]: row for row in json.loads(listed.stdout)}
    assert rows["nothing"]["state"] == "finished"
    assert rows["nothing"]["step"] == 3
    for directory in runs.iterdir():
        for arguments in (["status", directory.name], ["checkpoint", "inspect", directory.name]):
            shown = CliRunner().invoke(app, [*arguments, "--runs-dir", str(runs)])
            assert shown.exception is None or isinstance(shown.exception, SystemExit), arguments


def test_no_folder_of_a_storage_leads_elsewhere_over_a_link(tmp_path: Path) -> None:
    """Also `doctor` and `submit` write where somebody else may have made the folders first."""
    storage, victim = tmp_path / "storage", tmp_path / "victim"
    storage.mkdir()
    victim.mkdir()
    (victim / "secret").write_text("mine")
    store = DirectoryStore(str(storage))
    for folder in ("checks", "records", "code"):
        (storage / folder).symlink_to(victim)
        for attempt in (
            lambda key: store.create(key, b"planted"),
            lambda key: store.write(key, b"planted"),
            store.read,
            lambda key: store.delete([key]),
        ):
            with pytest.raises(StorageError, match="over a link"):
                attempt(f"{folder}/secret")
    check = check_store(store)
    assert not check.ok
    assert "over a link" in check.seen
    assert {path.name: path.read_text() for path in victim.iterdir()} == {"secret": "mine"}
    whole = tmp_path / "by-another-name"
    whole.symlink_to(storage)
    assert DirectoryStore(str(whole)).create("plain/key", b"x")
