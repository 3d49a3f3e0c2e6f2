"""The node's cache: same data, fewer requests, and nothing wrong is ever read from it."""

from __future__ import annotations

import json
import logging
import os
import pickle
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from static_server import serve_directory

from pelagos.data_pipelines.store import CacheSettings, Dataset, DatasetError, open_dataset
from pelagos.data_pipelines.store.cache import CachedStore, row_blocks
from pelagos.data_pipelines.store.node_cache import (
    BLOCK,
    PARTIAL,
    ROOT,
    DamagedBlockError,
    NodeCache,
    OpenBlock,
    file_bytes,
)
from pelagos.infra.storage.read_policy import ReadCounters

MEGABYTE = 10**6


@dataclass
class Origin:
    """A dataset behind HTTP, its numbers, and what was asked of the server."""

    uri: str
    path: Path
    data: np.ndarray
    requests: list[str] = field(default_factory=list)

    def open(self, cache: Path, max_bytes: int = 100 * MEGABYTE) -> Dataset:
        return open_dataset(self.uri, None, CacheSettings(str(cache), max_bytes))

    def num_ranges(self) -> int:
        """Range requests for frames: those of a shard beyond its index."""
        return sum("/data/c/" in r and "whole" not in r for r in self.requests)

    def check(self, dataset: Dataset) -> None:
        """Every window of two frames is what was written."""
        for trajectory in range(dataset.num_trajectories):
            for start in range(dataset.num_frames - 1):
                np.testing.assert_array_equal(
                    dataset.window(trajectory, start, 2), self.data[trajectory, start : start + 2]
                )


@pytest.fixture
def origin(make_dataset: Any, tmp_path: Path) -> Iterator[Origin]:
    dataset, data = make_dataset(compression="none")
    requests: list[str] = []
    with serve_directory(tmp_path, requests) as address:
        path = Path(dataset.uri)
        yield Origin(f"{address}/{path.name}", path, data, requests)


def blocks_in(cache: Path) -> list[Path]:
    return sorted((cache / ROOT).glob(f"*/*{BLOCK}"))


def test_each_trajectory_is_fetched_once(origin: Origin, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    dataset = origin.open(cache)
    origin.check(dataset)
    origin.check(dataset)
    assert dataset.counters.cache_misses == 7
    assert dataset.counters.cache_hits == 2 * 7 * 4 - 7
    assert origin.num_ranges() == 7 + 3  # trajectories, indices of shards
    other = pickle.loads(pickle.dumps(dataset))
    origin.check(other)
    assert other.counters.cache_misses == 0
    assert origin.num_ranges() == 7 + 3 + 3
    assert sum(p.stat().st_size for p in blocks_in(cache)) < 1.02 * origin.data.nbytes


def test_a_large_block_is_fetched_in_parts(
    origin: Origin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A trajectory and its checksums in two requests, as each may ask for three quarters of it."""
    most = "pelagos.data_pipelines.store.cache.MAX_REQUEST_BYTES"
    monkeypatch.setattr(most, origin.data[0].nbytes * 3 // 4)
    dataset = origin.open(tmp_path / "cache")
    origin.check(dataset)
    assert dataset.counters.cache_misses == 7
    assert origin.num_ranges() == 2 * 7 + 3


def test_what_does_not_fit_is_read_past_it(origin: Origin, tmp_path: Path) -> None:
    cache, budget = tmp_path / "cache", int(0.4 * origin.data.nbytes)
    dataset = origin.open(cache, budget)
    origin.check(dataset)
    assert dataset.counters.cache_misses == 2
    assert dataset.counters.cache_bypasses == 5 * 4
    assert sum(p.stat().st_size for p in blocks_in(cache)) <= budget
    before = [p.name for p in blocks_in(cache)]
    origin.check(dataset)
    assert [p.name for p in blocks_in(cache)] == before  # what is there stays


def test_a_budget_that_cannot_help_is_not_used(
    origin: Origin, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    dataset = origin.open(tmp_path / "cache", 100)
    assert not isinstance(dataset.store, CachedStore)
    assert "its 100 bytes are less than 5 % of" in caplog.text


@pytest.mark.parametrize("damage", ["flip", "cut", "trailer", "empty"])
def test_a_damaged_block_is_dropped_and_fetched_again(
    origin: Origin, tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    cache = tmp_path / "cache"
    origin.check(origin.open(cache))
    for path in blocks_in(cache)[:2]:
        content = bytearray(path.read_bytes())
        if damage == "flip":
            content[1000] ^= 4
        elif damage == "trailer":
            content[-6] ^= 4
        path.write_bytes({"cut": content[:-200], "empty": b""}.get(damage, content))
    dataset = origin.open(cache)
    origin.check(dataset)
    assert dataset.counters.cache_drops == dataset.counters.cache_misses == 2
    assert "dropped" in caplog.text


def test_own_checksums_find_a_flipped_bit_without_the_codec(tmp_path: Path) -> None:
    content = np.random.default_rng(0).integers(0, 256, 200_000, np.uint8)
    cache = NodeCache(CacheSettings(str(tmp_path), MEGABYTE), "a" * 64, 200_000, ReadCounters())
    assert cache.fill("x", len(content), lambda: content) is content
    (path,) = blocks_in(tmp_path)
    assert path.stat().st_size == file_bytes(len(content))
    for offset, length in ((0, 1), (65_530, 12), (131_000, 69_000)):
        buffer = np.empty(length, np.uint8)
        assert cache.read("x", len(content), [(offset, length)], [buffer], verify=True)
        np.testing.assert_array_equal(buffer, content[offset : offset + length])
    with path.open("r+b") as file:
        file.seek(70_000)
        file.write(bytes([content[70_000] ^ 1]))
    block = OpenBlock.open(path, len(content))
    block.read(140_000, np.empty(10, np.uint8), verify=True)  # another page is still good
    with pytest.raises(DamagedBlockError, match="65536"):
        block.read(80_000, np.empty(10, np.uint8), verify=True)
    os.close(block.descriptor)


def test_a_rewritten_dataset_never_meets_old_bytes(
    origin: Origin, make_dataset: Any, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    origin.check(origin.open(cache))
    newer, origin.data = make_dataset(seed=1, compression="none")
    shutil.rmtree(origin.path)
    Path(newer.uri).rename(origin.path)
    origin.check(origin.open(cache))
    assert len(blocks_in(cache)) == 14


def test_unused_datasets_make_room_and_foreign_files_stay(
    origin: Origin, make_dataset: Any, tmp_path: Path
) -> None:
    cache, budget = tmp_path / "cache", int(1.2 * origin.data.nbytes)
    first = origin.open(cache, budget)
    origin.check(first)
    foreign = [cache / "mine.txt", blocks_in(cache)[0].with_name("mine.txt")]
    for path in foreign:
        path.write_text("keep")
    newer, origin.data = make_dataset(seed=1, compression="none")
    shutil.rmtree(origin.path)
    Path(newer.uri).rename(origin.path)
    second = origin.open(cache, budget)  # the first is in use: nothing of it may go
    origin.check(second)
    assert second.counters.cache_bypasses > 0
    first.close()
    second.close()
    third = origin.open(cache, budget)
    origin.check(third)
    assert third.counters.cache_bypasses == 0
    assert len(blocks_in(cache)) == 7
    assert all(path.read_text() == "keep" for path in foreign)


def test_threads_share_one_fetch(origin: Origin, tmp_path: Path) -> None:
    dataset = origin.open(tmp_path / "cache")
    dataset.shard_index(0)
    before, barrier = origin.num_ranges(), threading.Barrier(8)

    def read(_: int) -> np.ndarray:
        barrier.wait()
        return dataset.window(1, 0, 2)

    with ThreadPoolExecutor(8) as pool:
        for found in pool.map(read, range(8)):
            np.testing.assert_array_equal(found, origin.data[1, :2])
    assert origin.num_ranges() - before == 1


READ_ALL = """
import sys
import numpy as np
from pelagos.data_pipelines.store import CacheSettings, open_dataset
dataset = open_dataset(sys.argv[1], None, CacheSettings(sys.argv[2], 10**8))
print("ready", flush=True)
sys.stdin.readline()
total = np.zeros(())
for trajectory in range(dataset.num_trajectories):
    for start in range(dataset.num_frames - 1):
        total = total + dataset.window(trajectory, start, 2).astype(np.float64).sum()
print(repr(float(total)), int(dataset.counters.cache_misses), flush=True)
"""


def _reader(origin: Origin, cache: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", READ_ALL, origin.uri, str(cache)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def test_two_processes_fill_one_cache_together(origin: Origin, tmp_path: Path) -> None:
    readers = [_reader(origin, tmp_path / "cache") for _ in range(2)]
    for reader in readers:
        assert reader.stdout is not None
        assert reader.stdout.readline() == "ready\n"
    answers = [reader.communicate("go\n", timeout=60)[0].split() for reader in readers]
    expected = sum(
        float(origin.data[t, s : s + 2].astype(np.float64).sum())
        for t in range(7)
        for s in range(4)
    )
    assert [float(total) for total, _ in answers] == pytest.approx([expected] * 2, rel=1e-12)
    assert sum(int(misses) for _, misses in answers) == 7
    assert len(blocks_in(tmp_path / "cache")) == 7


WRITE_HALF = """
import sys, time
import numpy as np
from pelagos.data_pipelines.store import node_cache
from pelagos.infra.storage.read_policy import ReadCounters
name, length = sys.argv[2], int(sys.argv[3])
settings = node_cache.CacheSettings(sys.argv[1], 10**8)
cache = node_cache.NodeCache(settings, sys.argv[4], length, ReadCounters())
def fetch():
    partial = cache.folder / (name + node_cache.PARTIAL)
    partial.write_bytes(b"x" * (length // 2))
    print("half", flush=True)
    time.sleep(600)
cache.fill(name, length, fetch)
"""


def test_a_kill_while_writing_leaves_nothing_that_is_read(origin: Origin, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    dataset = origin.open(cache)
    entries = dataset.shard_index(0)
    start, length = row_blocks(entries, 2**64 - 1)[1]
    name = f"{dataset.manifest.shards[0].key.replace('/', '_')}@{start}+{length}"
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITE_HALF, str(cache), name, str(length), dataset.fingerprint],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert writer.stdout is not None
    assert writer.stdout.readline() == "half\n"
    waiting = ThreadPoolExecutor(1).submit(dataset.window, 1, 0, 2)  # behind the writer's lock
    time.sleep(0.2)
    assert not waiting.done()
    writer.send_signal(signal.SIGKILL)
    writer.wait(10)
    np.testing.assert_array_equal(waiting.result(30), origin.data[1, :2])
    assert not list((cache / ROOT).glob(f"*/*{PARTIAL}"))
    origin.check(dataset)
    origin.check(origin.open(cache))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB, or a skip where this user may not mount one."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(place)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs the right to mount a file system")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=False)


def test_a_full_disk_is_said_once_and_reading_goes_on(
    make_dataset: Any, tmp_path: Path, small_disk: Path, caplog: pytest.LogCaptureFixture
) -> None:
    written, data = make_dataset(compression="none", grid_shape=(96, 128))
    with serve_directory(tmp_path) as address:
        uri = f"{address}/{Path(written.uri).name}"
        dataset = open_dataset(uri, None, CacheSettings(str(small_disk), 100 * MEGABYTE))
        with caplog.at_level(logging.WARNING):
            for trajectory in range(7):
                for start in range(4):
                    np.testing.assert_array_equal(
                        dataset.window(trajectory, start, 2), data[trajectory, start : start + 2]
                    )
        dataset.close()
    assert caplog.text.count("takes no more") == 1
    assert "No space left" in caplog.text
    assert dataset.counters.cache_bypasses > 0


def test_a_directory_that_cannot_be_used_is_an_error(origin: Origin, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DatasetError, match="cannot use"):
        origin.open(tmp_path / "file" / "cache")
    with pytest.raises(ValueError, match="positive"):
        CacheSettings(str(tmp_path), 0)


def test_rows_that_do_not_lie_together_are_not_blocks() -> None:
    together = np.array([[[0, 10], [10, 10]], [[20, 10], [30, 12]]], np.uint64)
    assert row_blocks(together, 2**64 - 1) == [(0, 20), (20, 22)]
    mixed = np.array([[[0, 10], [20, 10]], [[10, 10], [30, 12]]], np.uint64)
    assert row_blocks(mixed, 2**64 - 1) == []


def test_the_job_file_opens_datasets_with_its_cache(
    make_job: Any, s3_server: Any, write_waves: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    from pelagos.jobs.training.blueprint import Blueprint

    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    uri = s3_server.new_uri("/waves.zarr")
    write_waves(uri, ("density", "velocity-x", "velocity-y", "pressure"), 1)
    frames = []
    for cache in (None, {"directory": str(tmp_path / "cache"), "max_bytes": MEGABYTE}):
        job = make_job(data__mixture=json.dumps([{"uri": uri}]), data__cache=json.dumps(cache))
        with Blueprint(job).streams.open(0, 0, 1) as stream:
            frames.append([next(stream).frames.clone() for _ in range(6)])
            counts = stream.read_counts
    assert all(np.array_equal(a, b) for a, b in zip(*frames, strict=True))
    assert counts["cache_hits"] > 0
    assert counts["requests"] > 0
