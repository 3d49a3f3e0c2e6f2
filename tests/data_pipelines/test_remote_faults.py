"""Every way in which a store fails while a dataset is read or written, by both back ends.

A proxy spoils answers of a real S3 server. Either the right frames arrive and the trouble is counted, or
one error names the bucket, the key, the bytes, the trajectory and the frames. Nothing is silent.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fault_proxy import Fault, FaultProxy

from pelagos.data_pipelines.store import (
    CacheSettings,
    Dataset,
    DatasetError,
    DatasetSpec,
    Field,
    create_dataset,
    open_dataset,
    resume_dataset,
)
from pelagos.data_pipelines.streaming.loader import StreamLoader
from pelagos.data_pipelines.streaming.mixtures.mixture import Mixture
from pelagos.data_pipelines.streaming.mixtures.mixture_entry import MixtureEntry
from pelagos.data_pipelines.streaming.sampler import Sampler
from pelagos.infra.storage.read_policy import ReadPolicy
from pelagos.infra.storage.remote import MAX_BACKOFF_SECONDS, TOLD_RETRY_SECONDS

pytestmark = pytest.mark.s3

SPEC = DatasetSpec(
    name="small",
    equation="none",
    fields=(Field("density", "density"), Field("pressure", "pressure")),
    num_trajectories=4,
    num_frames=4,
    grid_shape=(16, 16),
    frame_interval=0.05,
    domain_extent=(1.0, 1.0),
    boundary_conditions={"x": "periodic", "y": "periodic"},
    splits={"train": (0, 4)},
    trajectories_per_shard=2,
    compression="none",
)
DATA = np.random.default_rng(0).normal(size=SPEC.shape).astype(np.float32)
FRAME_BYTES = 2 * 16 * 16 * 4
SHARD = "data/c/0/0/0/0/0"
PATIENCE = {
    "connect_seconds": 0.5,
    "attempt_seconds": 0.3,
    "first_answer_deadline_seconds": 1.5,
    "deadline_seconds": 1.5,
    "hedge": False,
}


def write_dataset(uri: str, options: dict[str, Any] | None, **kwargs: Any) -> None:
    writer = create_dataset(uri, SPEC, storage_options=options, **kwargs)
    for shard in range(writer.num_shards):
        rows = writer.shard_trajectories(shard)
        writer.write_shard(shard, DATA[rows.start : rows.stop])
    writer.finalize()


@pytest.fixture(scope="module")
def written(s3_server: Any) -> str:
    uri: str = s3_server.new_uri("/faults.zarr")
    write_dataset(uri, s3_server.storage_options)
    return uri


@dataclass
class Remote:
    """A dataset behind the proxy."""

    proxy: Any
    uri: str
    server: Any
    backend: str

    def open(self, cache: CacheSettings | None = None, **policy: Any) -> Dataset:
        options = {
            **self.server.storage_options,
            "endpoint_url": self.proxy.endpoint,
            "pelagos": {"backend": self.backend, **PATIENCE, **policy},
        }
        return open_dataset(self.uri, options, cache)

    def spoil(self, kind: int | str, count: int = 1, **which: Any) -> None:
        """Spoil reads of frames, unless told otherwise."""
        which = which or {"least_bytes": 2 * FRAME_BYTES, "most_bytes": 4 * FRAME_BYTES + 64}
        self.proxy.faults.append(Fault(kind, count, **which))


@pytest.fixture(params=["obstore", "fsspec"])
def remote(request: pytest.FixtureRequest, s3_server: Any, written: str) -> Iterator[Remote]:
    proxy = FaultProxy(s3_server.endpoint)
    try:
        yield Remote(proxy, written, s3_server, request.param)
    finally:
        proxy.close()


@pytest.mark.parametrize(
    ("kind", "count"),
    [
        (500, 2),
        (503, 3),
        (429, 2),
        ("reset", 2),
        ("reset_body", 1),
        ("cut_body", 1),
        ("stall", 1),
        ("stall_body", 1),
        ("short", 1),
    ],
)
def test_passing_trouble_costs_time_and_is_counted(
    remote: Remote, kind: int | str, count: int
) -> None:
    dataset = remote.open()
    dataset.shard_index(0)
    remote.spoil(kind, count)
    np.testing.assert_array_equal(dataset.window(1, 1, 2), DATA[1, 1:3])
    assert remote.proxy.num_faults == count
    # aiohttp sends a request of its own again, once, when a kept connection turns out broken
    resent = int(remote.backend == "fsspec" and kind == "reset")
    assert count - resent <= dataset.counters.retries <= count


@pytest.mark.parametrize("where", ["frame", "index"])
def test_wrong_bytes_on_the_way_are_read_again(
    remote: Remote, where: str, caplog: pytest.LogCaptureFixture
) -> None:
    dataset = remote.open()
    if where == "frame":
        dataset.shard_index(0)
        remote.spoil("wrong")
    else:
        remote.spoil("wrong", path=SHARD)
    np.testing.assert_array_equal(dataset.window(1, 1, 2), DATA[1, 1:3])
    assert remote.proxy.num_faults == 1
    assert dataset.counters.damaged_reads == 1
    (told,) = [r.getMessage() for r in caplog.records if "Read once more" in r.getMessage()]
    assert f"{remote.server.bucket}/" in told
    assert f"/{SHARD}, bytes " in told
    assert ("trajectory 1, frame " if where == "frame" else "its index") in told


def test_short_bytes_are_told_with_their_place(
    remote: Remote, caplog: pytest.LogCaptureFixture
) -> None:
    dataset = remote.open()
    dataset.shard_index(0)
    remote.spoil("short")
    np.testing.assert_array_equal(dataset.window(1, 1, 2), DATA[1, 1:3])
    (told,) = [r.getMessage() for r in caplog.records if "once more" in r.getMessage()]
    (planned,) = dataset.plan(0, 1, (1, 2))
    for part in (remote.server.bucket, SHARD, f"from byte {planned.byte_range[0]},"):
        assert part in told
    np.testing.assert_array_equal(dataset.window(1, 2, 2), DATA[1, 2:4])
    assert sum("once more" in r.getMessage() for r in caplog.records) == 1  # no fault, no word


def check_names(message: str, remote: Remote, frames: bool = True) -> None:
    """What every error must say."""
    parts = [remote.server.bucket, SHARD, "bytes "]
    if frames:
        parts += ["trajectory 1", "frames 1, 2"]
    for part in parts:
        assert part in message, f"{part!r} is not in: {message}"
    assert remote.server.secret_key not in message


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (503, "no success in"),
        ("reset", "no success in"),
        ("stall_body", "no success in"),
        ("short", "cut short"),
        (400, "access refused"),
        (403, "access refused"),
        (404, "is gone now"),
    ],
)
def test_trouble_that_stays_is_one_error(remote: Remote, kind: int | str, words: str) -> None:
    dataset = remote.open()
    dataset.shard_index(0)
    remote.spoil(kind, 1000)
    with pytest.raises(DatasetError, match=words) as caught:
        dataset.window(1, 1, 2)
    check_names(str(caught.value), remote)
    if kind in (400, 403, 404):
        assert remote.proxy.num_faults == 1  # asking again cannot help
    remote.proxy.faults.clear()
    np.testing.assert_array_equal(dataset.window(1, 1, 2), DATA[1, 1:3])


@pytest.mark.parametrize("kind", ["wrong", "short", 403, 404])
def test_damage_that_stays_is_one_error(remote: Remote, kind: int | str) -> None:
    dataset = remote.open()
    remote.spoil(kind, 1000, path=SHARD)
    with pytest.raises(DatasetError) as caught:  # the index comes first
        dataset.window(1, 1, 2)
    message = str(caught.value)
    assert SHARD in message
    assert "index" in message or "bytes " in message
    remote.proxy.faults.clear()
    dataset.shard_index(0)
    remote.spoil("wrong", 1000, path=SHARD)
    with pytest.raises(DatasetError, match=r"trajectory 1, frame \d .*is damaged, read twice"):
        dataset.window(1, 1, 2)


@pytest.mark.parametrize("kind", ["wrong", "short", 403, 404])
def test_a_spoilt_manifest_does_not_open(remote: Remote, kind: int | str) -> None:
    remote.spoil(kind, 1000, path="manifest.json")
    with pytest.raises(DatasetError, match=r"manifest\.json|zarr"):
        remote.open()


def test_the_loader_stops_with_the_error_of_the_store(remote: Remote) -> None:
    dataset = remote.open()
    mixture = Mixture([MixtureEntry(dataset)], SPEC.field_names, lambda n: ((1, 2),))
    remote.spoil(403, 1000)
    loader = StreamLoader(mixture, Sampler(mixture, 0), global_batch_size=4, num_threads=4)
    with loader, pytest.raises(DatasetError, match="access refused"):
        next(loader)


def test_an_endpoint_that_comes_back(remote: Remote, caplog: pytest.LogCaptureFixture) -> None:
    dataset = remote.open(deadline_seconds=30.0)
    remote.proxy.stop()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(dataset.window, 1, 1, 2)
        while dataset.counters.retries == 0:
            assert not waiting.done()
            time.sleep(0.02)
        time.sleep(TOLD_RETRY_SECONDS)
        remote.proxy.start()
        np.testing.assert_array_equal(waiting.result(60), DATA[1, 1:3])
    assert dataset.counters.retry_seconds > TOLD_RETRY_SECONDS
    (told,) = [r.getMessage() for r in caplog.records if "until an answer" in r.getMessage()]
    assert SHARD in told
    assert remote.server.bucket in told


def test_patience_outlasts_a_minute() -> None:
    policy = ReadPolicy()
    longest_pause = policy.connect_seconds + MAX_BACKOFF_SECONDS
    assert policy.deadline_seconds > 60 + policy.attempt_seconds + longest_pause


@pytest.mark.parametrize("remote", ["obstore"], indirect=True)
def test_a_stall_is_answered_by_a_second_request(remote: Remote) -> None:
    dataset = remote.open(hedge=True, attempt_seconds=20.0, deadline_seconds=40.0)
    dataset.shard_index(0)
    remote.spoil("stall_body")
    np.testing.assert_array_equal(dataset.window(1, 1, 2), DATA[1, 1:3])
    assert dataset.counters.hedges == 1
    assert dataset.counters.retries == 0


def test_faults_while_a_cache_fills(remote: Remote, tmp_path: Path) -> None:
    dataset = remote.open(CacheSettings(str(tmp_path), 10**7))
    dataset.shard_index(0)
    blocks = {"least_bytes": 4 * FRAME_BYTES}
    for kind in ("wrong", 503, "reset_body"):
        remote.spoil(kind, **blocks)
    np.testing.assert_array_equal(dataset.window(1, 1, 2), DATA[1, 1:3])
    assert remote.proxy.num_faults == 3
    assert (dataset.counters.cache_drops, dataset.counters.damaged_reads) == (1, 1)
    remote.spoil(403, 1000, **blocks)
    with pytest.raises(DatasetError, match="access refused") as caught:
        dataset.window(0, 1, 2)
    assert "trajectory 0" in str(caught.value)
    np.testing.assert_array_equal(dataset.window(1, 2, 2), DATA[1, 2:4])  # cached
    remote.proxy.faults.clear()
    np.testing.assert_array_equal(dataset.window(0, 1, 2), DATA[0, 1:3])


def test_credentials_of_a_process_end_and_are_renewed(
    remote: Remote, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, keys = tmp_path / "config", tmp_path / "keys.json"
    config.write_text(f"[profile lab]\ncredential_process = cat {keys}\n")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(config))
    monkeypatch.setenv("AWS_PROFILE", "lab")
    monkeypatch.setenv("AWS_ENDPOINT_URL", remote.proxy.endpoint)

    def issue(key: str, secret: str) -> None:
        soon = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 3600))
        values = {"AccessKeyId": key, "SecretAccessKey": secret, "Expiration": soon}
        keys.write_text(json.dumps({"Version": 1, **values}))

    policy = {"pelagos": {"backend": remote.backend, **PATIENCE}}
    issue(remote.server.access_key, remote.server.secret_key)
    dataset = open_dataset(remote.uri, policy)
    issue("AKIAENDEDLONGAGO", "ended")
    ended = open_dataset_error(remote.uri, policy)
    assert "access refused" in ended
    assert "LONGAGO" not in ended
    np.testing.assert_array_equal(dataset.window(1, 1, 2), DATA[1, 1:3])  # still holds its keys


def open_dataset_error(uri: str, options: dict[str, Any]) -> str:
    with pytest.raises(DatasetError) as caught:
        open_dataset(uri, options)
    return str(caught.value)


@pytest.mark.parametrize("place", ["disk", "s3"])
def test_of_several_writers_one_wins(place: str, s3_server: Any, tmp_path: Path) -> None:
    uri = str(tmp_path / "one.zarr") if place == "disk" else s3_server.new_uri("/one.zarr")
    options = None if place == "disk" else s3_server.storage_options
    barrier = threading.Barrier(6)

    def begin(_: int) -> Any:
        barrier.wait()
        try:
            return create_dataset(uri, SPEC, storage_options=options)
        except FileExistsError as error:
            return str(error)

    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(begin, range(6)))
    winners = [writer for writer in found if not isinstance(writer, str)]
    assert len(winners) == 1
    assert all(uri in told for told in found if isinstance(told, str))
    again = create_dataset(uri, SPEC, storage_options=options, overwrite=True)
    with pytest.raises(DatasetError, match="another process finished"):
        winners[0].write_shard(0, DATA[:2])
    for writer in (again, resume_dataset(uri, SPEC, options)):
        writer.write_shard(0, DATA[:2])
    with pytest.raises(DatasetError, match="another process finished"):
        replace(again, token="other").finalize()


WRITE_SLOWLY = """
import sys, json, time
import numpy as np
from pelagos.data_pipelines.store import DatasetSpec, create_dataset
spec = DatasetSpec.from_json(json.loads(sys.argv[2]))
writer = create_dataset(sys.argv[1], spec)
data = np.load(sys.argv[3])
writer.write_shard(0, data[:2])
print("one shard", flush=True)
while True:
    writer.write_shard(1, data[2:])
"""


def test_a_kill_while_writing_leaves_an_unfinished_dataset(s3_server: Any, tmp_path: Path) -> None:
    uri, options = s3_server.new_uri("/killed.zarr"), s3_server.storage_options
    np.save(tmp_path / "data.npy", DATA)
    arguments = [uri, json.dumps(SPEC.to_json()), str(tmp_path / "data.npy")]
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITE_SLOWLY, *arguments],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **s3_server.environment},
    )
    assert writer.stdout is not None
    assert writer.stdout.readline() == "one shard\n"
    writer.send_signal(signal.SIGKILL)
    writer.wait(10)
    with pytest.raises(DatasetError, match=r"[12] of 2 shards are written"):
        open_dataset(uri, options)
    resumed = resume_dataset(uri, SPEC, options)
    for shard in resumed.missing_shards():
        resumed.write_shard(shard, DATA[2 * shard : 2 * shard + 2])
    resumed.finalize()
    np.testing.assert_array_equal(open_dataset(uri, options).data[:], DATA)
