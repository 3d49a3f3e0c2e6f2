"""Reading through obstore: every scheme, the credentials botocore finds, hedging, forks."""

from __future__ import annotations

import multiprocessing
import pickle
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from static_server import serve_directory

from pelagos.data_pipelines.store import DatasetError, open_dataset
from pelagos.data_pipelines.store.object_store import open_store
from pelagos.infra.storage.failures import http_status, is_refused, summary
from pelagos.infra.storage.hedging import FIRST_DELAY_SECONDS, LATE_SECONDS, Hedger
from pelagos.infra.storage.obstore_remote import ObstoreStore
from pelagos.infra.storage.remote import RemoteStore

CONTENT = bytes(range(200))


def test_a_dataset_behind_plain_http(make_dataset: Any, tmp_path: Path) -> None:
    dataset, data = make_dataset()
    with serve_directory(tmp_path) as address:
        remote = open_dataset(f"{address}/{Path(dataset.uri).name}")
        assert isinstance(remote.store, ObstoreStore)
        for trajectory in range(dataset.num_trajectories):
            np.testing.assert_array_equal(remote.window(trajectory, 1, 3), data[trajectory, 1:4])
        np.testing.assert_array_equal(remote.read_frames(2, [4, 0]), data[2, [4, 0]])
        again = pickle.loads(pickle.dumps(remote))
        np.testing.assert_array_equal(again.window(0, 0, 1), data[0, :1])
        (tmp_path / Path(dataset.uri).name / remote.manifest.shards[1].key).unlink()
        with pytest.raises(DatasetError, match="data/c/1/0/0/0/0 is missing"):
            open_dataset(remote.uri)


@pytest.mark.parametrize("scheme", ["gs", "az"])
def test_google_and_azure_addresses(scheme: str, tmp_path: Path) -> None:
    place = tmp_path / "bucket" / ("folder%2Fkey" if scheme == "gs" else "folder/key")
    with serve_directory(tmp_path) as address:
        if scheme == "gs":  # its client escapes the slash; the server here unescapes it
            place = tmp_path / "bucket" / "folder" / "key"
            account = '{"gcs_base_url": "%s", "disable_oauth": true, "client_email": "", '
            account += '"private_key": "", "private_key_id": ""}'
            options = {"service_account_key": account % address, "skip_signature": True}
        else:
            options = {"endpoint": address, "account_name": "account", "skip_signature": True}
        place.parent.mkdir(parents=True)
        place.write_bytes(CONTENT)
        store = open_store(f"{scheme}://bucket/folder", options)
        found = store.read_ranges("key", [(10, 5), (100, 50)])
        assert [bytes(part) for part in found] == [CONTENT[10:15], CONTENT[100:150]]
        assert store.read("key") == CONTENT
        assert store.counters.requests == 3
        with pytest.raises(DatasetError, match="does not exist"):
            store.read("other")


@pytest.mark.s3
def test_profile_and_changed_credentials_are_found(
    s3_server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "credentials"
    good = (
        f"aws_access_key_id={s3_server.access_key}\naws_secret_access_key={s3_server.secret_key}\n"
    )
    file.write_text(f"[lab]\n{good}")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(file))
    monkeypatch.setenv("AWS_PROFILE", "lab")
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server.endpoint)
    for backend in ("obstore", "fsspec"):
        file.write_text(f"[lab]\n{good}")
        store = open_store(s3_server.new_uri(), {"pelagos": {"backend": backend}})
        store.write("key", CONTENT)
        assert bytes(store.read_ranges("key", [(3, 4)])[0]) == CONTENT[3:7]
        # A key that has ended: one error, at once, that shows no more than its first characters.
        file.write_text("[lab]\naws_access_key_id=AKIAENDEDLONGAGO\naws_secret_access_key=x\n")
        ended = open_store(store.uri, {"pelagos": {"backend": backend}})
        with pytest.raises(DatasetError, match="profile AWS_PROFILE=lab") as caught:
            ended.read_ranges("key", [(3, 4)])
        assert ended.counters.requests == 1
        assert "LONGAGO" not in str(caught.value)
        # Its successor in the file is found without a new store.
        file.write_text(f"[lab]\n{good}")
        assert bytes(ended.read_ranges("key", [(3, 4)])[0]) == CONTENT[3:7]


@pytest.mark.s3
def test_obstore_lists_what_s3fs_lists(s3_server: Any) -> None:
    store = open_store(s3_server.new_uri(), s3_server.storage_options)
    assert isinstance(store, ObstoreStore)
    for key in ("a/b", "a/c/d", "e"):
        store.write(key, CONTENT[: len(key)])
    assert store.sizes("a") == store._list("a") == {"a/b": 3, "a/c/d": 5}
    assert store.sizes() == store._list("")


def test_anonymous_reads_are_not_signed(tmp_path: Path) -> None:
    (tmp_path / "bucket" / "folder").mkdir(parents=True)
    (tmp_path / "bucket" / "folder" / "key").write_bytes(CONTENT)
    with serve_directory(tmp_path) as address:
        store = open_store("s3://bucket/folder", {"endpoint_url": address, "anon": True})
        assert bytes(store.read_ranges("key", [(5, 9)])[0]) == CONTENT[5:14]


def test_back_end_is_chosen_by_option_and_scheme() -> None:
    assert type(open_store("s3://b/p", {"pelagos": {"backend": "fsspec"}})) is RemoteStore
    assert type(open_store("s3://b/p", {"anon": True})) is ObstoreStore
    assert type(open_store("memory://p")) is RemoteStore
    with pytest.raises(ValueError, match="obstore does not support memory://"):
        open_store("memory://p", {"pelagos": {"backend": "obstore"}})
    with pytest.raises(ValueError, match="unknown keys"):
        open_store("s3://b/p", {"pelagos": {"patience": 3}})


def test_an_unknown_scheme_is_named_at_once() -> None:
    store = open_store("foo://bucket/folder")
    with pytest.raises(DatasetError, match="cannot open foo:// here"):
        store.read("key")
    assert store.counters.retries == 0


def test_what_an_error_of_obstore_says() -> None:
    error = OSError(
        "Generic S3 error: Error performing GET http://h/b in 4ms - Server returned non-2xx status "
        "code: 400 Bad Request: <Error><Code>ExpiredToken</Code><AWSAccessKeyId>AKIALONG</Error>"
    )
    assert http_status(error) == 400
    assert is_refused(error)
    assert summary(error).endswith("status code: 400 ExpiredToken")


def test_a_late_call_is_sent_twice_and_the_first_answer_counts() -> None:
    hedger, release, calls = Hedger(), threading.Event(), []

    def late() -> int:
        calls.append(len(calls))
        number = len(calls)
        if number == 1:
            release.wait(30)
        return number

    try:
        started = time.monotonic()
        assert hedger.call(late, 100) == 2
        assert time.monotonic() - started >= FIRST_DELAY_SECONDS
        assert (hedger.num_hedges, len(calls)) == (1, 2)
    finally:
        release.set()
    assert [hedger.call(lambda: 5, 100) for _ in range(200)] == [5] * 200
    assert hedger.num_hedges == 1

    def fail() -> None:
        raise KeyError("x")

    with pytest.raises(KeyError):
        hedger.call(fail, 100)


def test_calls_to_a_store_next_door_are_direct_until_one_is_late() -> None:
    hedger, callers = Hedger(), []

    def call(pause: float = 0.0) -> None:
        time.sleep(pause)
        callers.append(threading.current_thread())

    for _ in range(100):
        hedger.call(call, 100)
    assert callers[0] is not threading.current_thread()
    assert callers[-1] is threading.current_thread()
    hedger.call(lambda: call(1.1 * LATE_SECONDS), 100)
    hedger.call(call, 100)
    assert callers[-1] is not threading.current_thread()


def _open_in_child(address: str, answers: Any) -> None:
    store = open_store(f"{address}/folder")
    answers.put((type(store).__name__, bytes(store.read_ranges("key", [(5, 9)])[0])))


def test_a_fork_reads_through_fsspec(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "key").write_bytes(CONTENT)
    with serve_directory(tmp_path) as address:
        store = open_store(f"{address}/folder")
        assert isinstance(store, ObstoreStore)
        store.read("key")
        context = multiprocessing.get_context("fork")
        answers = context.Queue()
        child = context.Process(target=_open_in_child, args=(address, answers))
        child.start()
        try:
            assert answers.get(timeout=30) == ("RemoteStore", CONTENT[5:14])
        finally:
            child.join(10)
            child.kill()
