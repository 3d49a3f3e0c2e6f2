"""What somebody else wrote into a shared storage is shown, and never acted on."""

import contextlib
import http.server
import json
import os
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from pelagos.cli.main import app
from pelagos.infra import processes
from pelagos.infra.clusters import ClusterError, open_cluster
from pelagos.infra.clusters.schema import LocalConfig, RayConfig, SlurmConfig
from pelagos.infra.signatures import digest_of
from pelagos.infra.storage.local import DirectoryStore, open_store
from pelagos.jobs import submit
from pelagos.jobs.submission import following, start_again
from pelagos.jobs.submission.records import own_runs
from pelagos.jobs.submission.records.record import RunRecord
from pelagos.platform.records.runs import RunError

Clusters = Callable[..., None]
JOB = """\
job: generate
name: theirs
datasets: [{uri: out.zarr, family: ns-sines, num_trajectories: 1, resolution: 16}]
"""
DIGEST = "0" * 64


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


def forge(store: DirectoryStore, run: str = "theirs", **changes: Any) -> RunRecord:
    """A record as anybody with access to the storage can write it."""
    wheel = BytesIO()
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("pelagos/__init__.py", "")
        archive.writestr("pelagos/jobs/__init__.py", "")
        canary = Path(store.root.parent / "executed")
        archive.writestr(
            "pelagos/jobs/submission/driver.py", f"open({str(canary)!r}, 'w').write('code ran')"
        )
    store.write("code/x/pelagos.whl", wheel.getvalue())
    event = {
        "id": "a",
        "time": 1.0,
        "kind": "submitted",
        "by": os.environ.get("USER", "root"),
        "host": os.uname().nodename,
        "job": JOB,
        "cluster": "here",
        "cluster_config": {"kind": "local", "storage": store.uri},
        "priority": 0,
        "retries": 5,
        "after": [],
        "needs": {},
        "code": {
            "wheel_uri": f"{store.uri}/code/x/pelagos.whl",
            "wheel_sha256": DIGEST,
            "files_uri": f"{store.uri}/code/x/pelagos.whl",
            "files_sha256": DIGEST,
        },
        **changes,
    }
    store.write(f"records/{run}/events/00000000.json", json.dumps(event).encode())
    return RunRecord(store, run)


def write(record: RunRecord, number: int, **event: Any) -> None:
    key = f"records/{record.run}/events/{number:08d}.json"
    record.store.write(key, json.dumps({"id": "b", "time": 2.0, **event}).encode())


def everything(root: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def call(*arguments: str) -> Any:
    return CliRunner().invoke(app, arguments)


ONCE = (
    ("list",),
    ("list", "--json"),
    ("status", "theirs"),
    ("logs", "theirs"),
    ("wait", "theirs", "--timeout", "0"),
    ("diff", "theirs", "theirs"),
)
READING = (*ONCE, ("logs", "-f", "theirs"))


def test_looking_at_a_forged_dead_run_starts_and_writes_nothing(
    storage: DirectoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before, `list` started its archive here, with this user's environment."""
    record = forge(storage)
    write(
        record,
        1,
        kind="started",
        attempt=1,
        handle={"host": os.uname().nodename, "pid": 2**22 - 1, "started": "1", "attempt": 1},
    )
    started: list[Any] = []
    monkeypatch.setattr(subprocess, "Popen", lambda *a, **k: started.append(a))
    before = everything(storage.root)
    for arguments in READING:
        shown = call(*arguments)
        assert shown.exception is None or isinstance(shown.exception, SystemExit), arguments
    assert "lost" in call("list").output
    assert "pelagos recover theirs" in call("status", "theirs").output
    for verb in (("recover", "theirs"), ("resume", "theirs")):
        shown = call(*verb)
        assert shown.exit_code == 2
        assert (
            "This user's list of submissions here does not have that as the last one"
            in shown.output
        )
    assert call("recover").exit_code == 0  # all of one's own: none
    assert everything(storage.root) == before
    assert started == []
    assert not (storage.root.parent / "executed").exists()


@pytest.fixture
def listener() -> Iterator[tuple[str, list[Any]]]:
    """An address that writes down what it is asked, and with which headers."""
    seen: list[Any] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append(dict(self.headers))
            self.send_response(200)
            self.end_headers()

        do_POST = do_GET

        def log_message(self, *_: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", seen
    server.shutdown()


def test_no_secret_goes_to_an_address_in_a_record(
    storage: DirectoryStore,
    listener: tuple[str, list[Any]],
    monkeypatch: pytest.MonkeyPatch,
    clusters: Clusters,
    tmp_path: Path,
) -> None:
    address, seen = listener
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "planted")
    secret = tmp_path / "secret"
    secret.touch(mode=0o600)
    secret.write_text("planted too")
    for number, name in enumerate(("lab", "here", "nowhere")):
        for token in ({"token_env": "AWS_SECRET_ACCESS_KEY"}, {"token_file": str(secret)}):
            config = {"kind": "ray", "storage": storage.uri, "address": address, **token}
            record = forge(storage, cluster=name, cluster_config=config)
            write(
                record,
                1,
                kind="started",
                attempt=1,
                handle={"submission_id": f"pelagos-theirs-{number}"},
            )
            for arguments in (*ONCE, ("stop", "theirs", "--now"), ("recover", "theirs")):
                call(*arguments)
            storage.delete(list(storage.sizes("records/theirs")))
    assert seen == []
    # what differs is shown
    record = forge(
        storage,
        cluster="lab",
        cluster_config={"kind": "ray", "storage": storage.uri, "address": address},
    )
    assert "yours is used" in following.find("theirs").remark
    assert address in following.find("theirs").remark
    # a cluster of the same name with another storage is another cluster
    clusters(
        near={"kind": "ray", "storage": storage.uri, "address": "http://127.0.0.1:9"},
        lab={"kind": "ray", "storage": str(tmp_path / "other"), "address": address},
    )
    write(record, 1, kind="started", attempt=1, handle={"submission_id": "pelagos-theirs-1"})
    assert following.find("theirs").cluster is None
    assert "lab" in call("status", "theirs").output
    assert seen == []


def test_a_forged_process_is_not_ended(storage: DirectoryStore) -> None:
    """`stop --now` killed whatever process the record named."""
    record = forge(storage)
    with contextlib.ExitStack() as stack:
        victim = stack.enter_context(
            subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
        )
        started = Path(f"/proc/{victim.pid}/stat").read_text().rpartition(")")[2].split()[19]
        handle = {
            "host": os.uname().nodename,
            "pid": victim.pid,
            "started": started,
            "attempt": 1,
            "log": "/etc/passwd",
        }
        write(record, 1, kind="started", attempt=1, handle=handle)
        shown = call("stop", "theirs", "--now")
        assert shown.exit_code == 2
        assert "somebody else wrote it" in shown.output
        assert victim.poll() is None
        assert "root:" not in call("logs", "theirs").output
        victim.kill()


def test_a_process_of_ones_own_is_known_before_and_after_it_becomes_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """bootstrap.py replaces itself by the run, whose command line is another."""
    from pelagos.infra.clusters import local

    place = str(tmp_path)
    cluster = open_cluster("here", LocalConfig(kind="local", storage=place))
    for name in ("bootstrap.py", "pelagos.jobs.submission.driver", "other.py"):
        program = tmp_path / name
        program.write_text("input()")
        monkeypatch.setattr(local, "BOOTSTRAP", tmp_path / "bootstrap.py")
        module = name if name.startswith("pelagos") else str(program)
        command = [sys.executable, "-c", "input()", module, "--", place, "mine", "1", "0" * 64]
        with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
            started = processes.start_time(process.pid)
            handle = {
                "host": os.uname().nodename,
                "pid": process.pid,
                "started": started,
                "attempt": 1,
            }
            if name == "other.py":
                with pytest.raises(ClusterError, match="this cluster never gives that name"):
                    cluster.checked_handle("mine", place, handle)
            else:
                assert cluster.checked_handle("mine", place, handle)["pid"] == process.pid
                for run, attempt in (("other", 1), ("mine", 2)):
                    with pytest.raises(ClusterError, match="this cluster never gives that name"):
                        cluster.checked_handle(run, place, {**handle, "attempt": attempt})
            process.kill()


def test_handles_lead_to_the_run_itself_or_nowhere(tmp_path: Path) -> None:
    place = str(tmp_path)
    slurm = open_cluster("hpc", SlurmConfig(kind="slurm", storage=place))
    log = tmp_path / "scheduler" / "a-12_1.log"
    log.parent.mkdir()
    log.write_text("printed")
    found = slurm.checked_handle("b", place, {"job_id": "12_1", "array_id": "12"})
    assert slurm.logs(found) == "printed"
    (tmp_path / "scheduler" / "b-7.log").symlink_to("/etc/passwd")
    assert slurm.logs(slurm.checked_handle("b", place, {"job_id": "7"})) == ""
    os.mkfifo(tmp_path / "scheduler" / "b-8.log")
    assert slurm.logs(slurm.checked_handle("b", place, {"job_id": "8"})) == ""
    ray = open_cluster("lab", RayConfig(kind="ray", storage=place, address="http://a:1"))
    assert ray.checked_handle("b", place, {"submission_id": "pelagos-b-3"})
    local = open_cluster("here", LocalConfig(kind="local", storage=place))
    forged: list[tuple[Any, dict[str, Any]]] = [
        (slurm, {"job_id": "--user=root"}),
        (slurm, {"job_id": "7\nscancel 8"}),
        (slurm, {"job_id": "7", "array_id": "9"}),
        (slurm, {"log": "/etc/passwd"}),
        (ray, {"submission_id": "pelagos-other-3"}),
        (ray, {"submission_id": "../../x"}),
        (local, {"host": "a", "pid": -1}),
        (local, {"host": "a", "pid": "1"}),
        (local, {"pid": 1}),
    ]
    for cluster, handle in forged:
        with pytest.raises(ClusterError, match="this cluster never gives that name"):
            cluster.checked_handle("b", place, handle)


def test_code_that_somebody_put_into_a_record_of_ones_own_is_not_started(
    storage: DirectoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = RunRecord(storage, "mine")
    code = {
        "wheel_uri": "w",
        "wheel_sha256": DIGEST,
        "files_uri": "f",
        "files_sha256": DIGEST,
    }
    details = {
        "cluster": "here",
        "cluster_config": {"kind": "local", "storage": storage.uri},
        "priority": 0,
        "after": [],
        "retries": 1,
        "needs": {},
    }
    first = record.claim(JOB.replace("theirs", "mine"), code=code, **details)
    own_runs.remember(record, first)
    assert own_runs.is_own(record)
    record.append("failed", cause="x")
    evil = {**code, "wheel_sha256": "1" * 64}
    forged = {**first, **details, "code": evil, "kind": "resubmitted", "by": "mallory"}
    write(record, 2, **forged, attempt=1, handle={})
    record.append("failed", cause="x")
    assert not own_runs.is_own(record)
    found = following.find("mine")
    with pytest.raises(RunError, match="mallory submitted it last, .* This user's list"):
        start_again.resume(found, None, (), submit.Options())
    # taken over: with code of one's own
    handed: list[Any] = []
    monkeypatch.setattr(
        start_again, "hand_over", lambda cluster, record, submission: handed.append(submission)
    )
    start_again.resume(found, None, (), submit.Options(), take_over=True)
    (submission,) = handed
    assert submission.code.wheel_sha256 not in (DIGEST, "1" * 64)
    *_, own = own_runs.own_events(RunRecord(storage, "mine"))
    assert own["code"] == vars(submission.code)
    assert submission.event == digest_of(own)
    # what somebody exchanges is no longer one's own; what one submitted last still is
    forge(storage, "mine")
    assert own_runs.own_events(RunRecord(storage, "mine")) == [own]
    write(record, 4, **{**own, "job": JOB})
    assert not own_runs.is_own(RunRecord(storage, "mine"))


def test_the_list_of_ones_own_runs_is_private(storage: DirectoryStore) -> None:
    record = RunRecord(storage, "mine")
    first = record.claim("job", cluster="here", priority=0, after=[], retries=0)
    own_runs.remember(record, first)
    (path,) = Path(os.environ["XDG_STATE_HOME"]).rglob("mine.json")
    assert path.stat().st_mode & 0o777 == 0o600


ODD = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=8,
)
KEYS = (
    *("id", "time", "kind", "by", "host", "job", "cluster", "cluster_config", "priority"),
    *("retries", "after", "needs", "code", "handle", "where", "cause", "attempt", "overrides"),
)


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    changes=st.dictionaries(st.sampled_from(KEYS), ODD, max_size=3),
    second=st.dictionaries(st.sampled_from(KEYS), ODD, max_size=4) | st.binary(max_size=40),
)
def test_no_record_keeps_others_from_being_listed(
    storage: DirectoryStore, changes: dict[str, Any], second: Any
) -> None:
    """Whatever is written, the verbs show it or say what is wrong with it."""
    forge(storage, "good", time=3.0)
    record = forge(storage, **changes)
    content = second if isinstance(second, bytes) else json.dumps(second).encode()
    storage.write(f"records/{record.run}/events/00000001.json", content)
    for arguments in (("list",), ("status", "theirs"), ("logs", "theirs"), ("stop", "theirs")):
        shown = call(*arguments)
        assert shown.exit_code in (0, 2), (arguments, shown.output)
        assert shown.exception is None or isinstance(shown.exception, SystemExit)
        assert "good" in shown.output or arguments != ("list",)


def test_what_a_record_says_does_not_command_the_terminal(storage: DirectoryStore) -> None:
    record = forge(storage, by="\x1b]0;owned\x07eve [bold]x[/bold]")
    write(record, 1, kind="failed", cause="\x1b[2J[red]gone[/red]")
    shown = call("status", "theirs").output
    assert "\x1b" not in shown
    assert "[bold]x[/bold]" in shown
    assert "[red]gone[/red]" in shown


def test_large_and_deep_events_are_refused(storage: DirectoryStore) -> None:
    record = forge(storage)
    for content, message in (
        (b" " * (2**20 + 1), "1,048,577 bytes; an event has at most 1,048,576"),
        (b"[" * 100_000, "not an event of a record"),
        (b'{"time": NaN}', "NaN is not a JSON number"),
    ):
        storage.write("records/theirs/events/00000001.json", content)
        with pytest.raises(ValueError, match=message):
            RunRecord(open_store(storage.uri), record.run).state()
