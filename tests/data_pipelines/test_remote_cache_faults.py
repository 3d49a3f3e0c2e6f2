"""A node's cache in front of a store that fails: what `test_remote_faults.py` does, and the cache's own
misfortunes at the same time."""

from __future__ import annotations

import errno
import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pelagos.data_pipelines.store import CacheSettings

pytestmark = pytest.mark.s3


def _faults_module() -> Any:
    path = Path(__file__).with_name("test_remote_faults.py")
    spec = importlib.util.spec_from_file_location("remote_faults", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["remote_faults"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


faults = _faults_module()
remote, written = faults.remote, faults.written
DATA, FRAME_BYTES, PATIENCE = faults.DATA, faults.FRAME_BYTES, faults.PATIENCE

FILL_ALL = """
import json, sys
import numpy as np
from pelagos.data_pipelines.store import CacheSettings, open_dataset
options = json.loads(sys.argv[2])
dataset = open_dataset(sys.argv[1], options, CacheSettings(sys.argv[3], 10**7))
print("ready", flush=True)
sys.stdin.readline()
found = np.stack([dataset.window(i, start, 2) for i in range(4) for start in range(3)])
np.save(sys.argv[4], found)
print(int(dataset.counters.cache_misses), int(dataset.counters.retries), flush=True)
"""


def test_two_ranks_fill_one_cache_while_the_store_fails(remote: Any, tmp_path: Path) -> None:
    options = {
        **remote.server.storage_options,
        "endpoint_url": remote.proxy.endpoint,
        # on a busy machine an answer may take long, which is none of the faults that are counted
        "pelagos": {
            "backend": remote.backend,
            **PATIENCE,
            "connect_seconds": 20.0,
            "attempt_seconds": 60.0,
            "first_answer_deadline_seconds": 200.0,
            "deadline_seconds": 200.0,
        },
    }
    ranks = []
    for rank in range(2):
        places = [str(tmp_path / "cache"), str(tmp_path / f"found-{rank}.npy")]
        program = [sys.executable, "-c", FILL_ALL, remote.uri, json.dumps(options), *places]
        ranks.append(
            subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        )
    for process in ranks:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for kind in (503, "reset_body", "cut_body", 500):
        remote.spoil(kind)
    answers = [process.communicate("go\n", timeout=250)[0].split() for process in ranks]
    wanted = np.stack([DATA[i, start : start + 2] for i in range(4) for start in range(3)])
    for rank in range(2):
        np.testing.assert_array_equal(np.load(tmp_path / f"found-{rank}.npy"), wanted)
    assert sum(int(misses) for misses, _ in answers) == 4  # each trajectory once, on the node
    assert sum(int(retries) for _, retries in answers) == remote.proxy.num_faults == 4


def test_a_rank_killed_while_it_fetches_for_a_cache(remote: Any, tmp_path: Path) -> None:
    options = {
        **remote.server.storage_options,
        "endpoint_url": remote.proxy.endpoint,
        "pelagos": {"backend": remote.backend, **PATIENCE, "attempt_seconds": 60.0},
    }
    places = [str(tmp_path / "cache"), str(tmp_path / "found.npy")]
    program = [sys.executable, "-c", FILL_ALL, remote.uri, json.dumps(options), *places]
    rank = subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert rank.stdin is not None
    assert rank.stdout is not None
    assert rank.stdout.readline() == "ready\n"
    remote.spoil("stall_body", least_bytes=4 * FRAME_BYTES)
    rank.stdin.write("go\n")
    rank.stdin.flush()
    while remote.proxy.num_faults == 0:  # it holds the block's lock, half of the bytes are there
        assert rank.poll() is None
        time.sleep(0.02)
    rank.kill()
    rank.wait(10)
    dataset = remote.open(CacheSettings(places[0], 10**7))
    np.testing.assert_array_equal(dataset.window(0, 0, 2), DATA[0, :2])
    assert dataset.counters.cache_misses == 1
    assert not list((tmp_path / "cache").rglob("*.block-partial"))


def test_a_disk_that_fills_up_while_the_store_fails(
    remote: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    # what `pwrite` says on a full disk; test_cache.py fills a real one where it may mount it
    def full(*_: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    dataset = remote.open(CacheSettings(str(tmp_path / "cache"), 10**7))
    dataset.window(0, 0, 2)
    monkeypatch.setattr(os, "pwrite", full)
    remote.spoil(503, 2)
    for start in range(3):
        np.testing.assert_array_equal(dataset.window(1, start, 2), DATA[1, start : start + 2])
    assert remote.proxy.num_faults == dataset.counters.retries == 2
    assert caplog.text.count("takes no more") == 1
    np.testing.assert_array_equal(dataset.window(0, 1, 2), DATA[0, 1:3])
    assert dataset.counters.cache_hits == 1
