"""Datasets on a real S3-compatible server: round trip, credentials, endpoint, lost objects."""

from __future__ import annotations

import multiprocessing
import pickle
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import torch
import xarray

from pelagos.data_pipelines.store import (
    DatasetError,
    DatasetSpec,
    Field,
    create_dataset,
    open_dataset,
)
from pelagos.data_pipelines.store.errors import ObjectMissingError
from pelagos.data_pipelines.streaming.loader import StreamLoader
from pelagos.data_pipelines.streaming.mixtures.mixture import Mixture
from pelagos.data_pipelines.streaming.mixtures.mixture_entry import MixtureEntry
from pelagos.data_pipelines.streaming.sampler import Sampler
from pelagos.infra.storage.read_policy import ReadPolicy
from pelagos.infra.storage.remote import RemoteStore

pytestmark = pytest.mark.s3

SPEC = DatasetSpec(
    name="small",
    equation="none",
    fields=(Field("density", "density"), Field("pressure", "pressure")),
    num_trajectories=5,
    num_frames=4,
    grid_shape=(16, 16),
    frame_interval=0.05,
    domain_extent=(1.0, 1.0),
    boundary_conditions={"x": "periodic", "y": "periodic"},
    splits={"train": (0, 4), "test": (4, 5)},
    parameter_names=("viscosity",),
    trajectories_per_shard=2,
)
DATA = np.random.default_rng(0).normal(size=SPEC.shape).astype(np.float32)


def write(uri: str, options: dict[str, Any] | None, *, overwrite: bool = False) -> None:
    writer = create_dataset(uri, SPEC, overwrite=overwrite, storage_options=options)
    for shard in writer.missing_shards():
        rows = writer.shard_trajectories(shard)
        values = np.arange(rows.start, rows.stop) / 8
        writer.write_shard(shard, DATA[rows.start : rows.stop], {"viscosity": values})
    writer.finalize()


def test_round_trip_through_pelagos_zarr_and_xarray(s3_server: Any) -> None:
    uri, options = s3_server.new_uri("/small.zarr"), s3_server.storage_options
    write(uri, options)
    dataset = open_dataset(uri, options)
    for trajectory in range(SPEC.num_trajectories):
        np.testing.assert_array_equal(dataset.window(trajectory, 1, 2), DATA[trajectory, 1:3])
    np.testing.assert_array_equal(dataset.read_frames(3, [3, 0]), DATA[3, [3, 0]])
    np.testing.assert_array_equal(dataset.data[:], DATA)
    np.testing.assert_array_equal(dataset.parameters["viscosity"], np.arange(5) / 8)
    plain = xarray.open_zarr(uri, storage_options=options)
    np.testing.assert_array_equal(plain["data"].values, DATA)
    assert pickle.loads(pickle.dumps(dataset)).fingerprint == dataset.fingerprint


def test_environment_gives_endpoint_and_credentials(
    s3_server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    uri = s3_server.new_uri("/env.zarr")
    write(uri, None)
    np.testing.assert_array_equal(open_dataset(uri).window(0, 0, 4), DATA[0])


def test_existing_dataset_is_kept_unless_overwritten(s3_server: Any) -> None:
    uri, options = s3_server.new_uri("/kept.zarr"), s3_server.storage_options
    write(uri, options)
    with pytest.raises(FileExistsError, match="finished dataset"):
        create_dataset(uri, SPEC, storage_options=options)
    assert open_dataset(uri, options).num_trajectories == 5
    write(uri, options, overwrite=True)
    np.testing.assert_array_equal(open_dataset(uri, options).window(4, 0, 4), DATA[4])


@pytest.mark.parametrize(
    ("changed", "source"),
    [({"secret": "wrong"}, "storage_options"), ({"key": "nobody"}, "storage_options")],
)
def test_wrong_credentials_are_refused_at_once(
    s3_server: Any, changed: dict[str, str], source: str
) -> None:
    uri = s3_server.new_uri("/secret.zarr")
    write(uri, s3_server.storage_options)
    started = time.monotonic()
    with pytest.raises(DatasetError) as caught:
        open_dataset(uri, {**s3_server.storage_options, **changed})
    message = str(caught.value)
    for part in ("access refused", "manifest.json", s3_server.bucket, s3_server.endpoint, source):
        assert part in message
    assert (
        time.monotonic() - started < ReadPolicy().first_answer_deadline_seconds
    )  # not tried again


def test_unreachable_endpoint_is_named_before_long(unused_endpoint: str) -> None:
    options = {"endpoint_url": unused_endpoint, "key": "a", "secret": "b"}
    started = time.monotonic()
    with pytest.raises(DatasetError, match=r"no success in \d+ attempts") as caught:
        open_dataset("s3://bucket/none.zarr", options)
    assert unused_endpoint in str(caught.value)
    # The deadline, plus one attempt's connection time-out (a bound on hanging, not on speed).
    assert time.monotonic() - started < ReadPolicy().first_answer_deadline_seconds + 10


def test_missing_dataset_and_lost_shard(s3_server: Any) -> None:
    uri, options = s3_server.new_uri("/lost.zarr"), s3_server.storage_options
    with pytest.raises(DatasetError, match="no dataset at"):
        open_dataset(uri, options)
    write(uri, options)
    dataset = open_dataset(uri, options)
    fsspec.filesystem("s3", **options).rm(f"{uri}/data/c/1/0/0/0/0")
    with pytest.raises(DatasetError, match=r"data/c/1/0/0/0/0 is missing"):
        open_dataset(uri, options)
    with pytest.raises(DatasetError, match=r"data/c/1/0/0/0/0"):  # already open: not zeros either
        dataset.window(2, 0, 4)


def test_unfinished_dataset_says_how_far_it_got(s3_server: Any) -> None:
    uri, options = s3_server.new_uri("/half.zarr"), s3_server.storage_options
    writer = create_dataset(uri, SPEC, storage_options=options)
    writer.write_shard(0, DATA[:2], {"viscosity": np.zeros(2)})
    with pytest.raises(DatasetError, match="1 of 3 shards are written"):
        open_dataset(uri, options)


def test_transient_failures_are_tried_again(
    s3_server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri, options = s3_server.new_uri(), s3_server.storage_options
    store = RemoteStore(uri, options, error=DatasetError, missing=ObjectMissingError)
    store.write("a", b"0123456789")
    real: Callable[..., bytes] = store.filesystem.cat_file
    failures = [ConnectionResetError("reset"), TimeoutError("stalled")]

    def flaky(*args: Any, **kwargs: Any) -> bytes:
        if failures:
            raise failures.pop()
        return real(*args, **kwargs)

    monkeypatch.setattr(store.filesystem, "cat_file", flaky)
    (found,) = store.read_ranges("a", [(2, 3)])
    assert bytes(found) == b"234"
    assert not failures
    with pytest.raises(DatasetError, match="cut short"):
        store.read_ranges("a", [(8, 5)])


def _read_in_child(dataset: Any, answers: Any) -> None:
    try:
        dataset.window(0, 0, 1)
    except DatasetError as error:
        answers.put(str(error))


def test_fork_is_refused_and_does_not_hang(s3_server: Any) -> None:
    uri, options = s3_server.new_uri("/fork.zarr"), s3_server.storage_options
    write(uri, options)
    dataset = open_dataset(uri, options)
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    child = context.Process(target=_read_in_child, args=(dataset, answers))
    child.start()
    try:
        assert "forked child" in answers.get(timeout=20)
    finally:
        child.join(10)
        if child.is_alive():
            child.kill()


@pytest.fixture
def unused_endpoint() -> str:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{sock.getsockname()[1]}"


def test_many_threads_stream_the_same_batches_as_from_disk(s3_server: Any, tmp_path: Path) -> None:
    remote_uri, local_uri = s3_server.new_uri("/stream.zarr"), str(tmp_path / "stream.zarr")
    write(remote_uri, s3_server.storage_options)
    write(local_uri, None)
    streams = []
    for uri, options in ((remote_uri, s3_server.storage_options), (local_uri, None)):
        entry = MixtureEntry(open_dataset(uri, options), split="all")
        mixture = Mixture([entry], SPEC.field_names, lambda n: ((0, n - 1), (1, 2)))
        loader = StreamLoader(
            mixture,
            Sampler(mixture, seed=0),
            global_batch_size=8,
            num_threads=16,
            prefetch_steps=4,
            stop_step=10,
        )
        with loader:
            streams.append([batch.frames for batch in loader])
    assert len(streams[0]) == 10
    for remote, local in zip(*streams, strict=True):
        assert torch.equal(remote, local)
