"""A compressed chunk of HDF5 that unpacks to more than a chunk has is refused before it does."""

from __future__ import annotations

import bz2
import zlib
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin
import numcodecs
import numpy as np
import pytest

from pelagos.data_pipelines.convert import SourceError
from pelagos.data_pipelines.convert.formats import child
from pelagos.data_pipelines.convert.hdf5 import Hdf5File
from pelagos.data_pipelines.convert.hdf5.bounded_chunks import UnprovenChunks

SHAPE, CHUNKS = (3, 3, 4, 5), (2, 3, 4, 5)
NUMBERS = np.random.default_rng(3).normal(size=SHAPE).astype("f4")
BOMB_BYTES = 2**26
BUDGET_BYTES = 2**24

ZEROS = bytes(BOMB_BYTES)
KINDS: dict[str, tuple[dict[str, Any], bytes]] = {
    "gzip": ({"compression": "gzip"}, zlib.compress(ZEROS, 9)),
    "shuffled": ({"compression": "gzip", "shuffle": True}, zlib.compress(ZEROS, 9)),
    "bzip2": (dict(hdf5plugin.BZip2()), bz2.compress(ZEROS)),
    "zstd": (dict(hdf5plugin.Zstd()), bytes(numcodecs.Zstd(1).encode(ZEROS))),
    "blosc": (dict(hdf5plugin.Blosc()), bytes(numcodecs.Blosc("lz4").encode(ZEROS))),
    "lz4": (dict(hdf5plugin.LZ4()), (2**40).to_bytes(8, "big") + bytes(8)),
}


@pytest.fixture(autouse=True)
def budget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PELAGOS_MEMORY_BUDGET", str(BUDGET_BYTES))


def write(path: Path, bomb: bytes | None, **options: Any) -> Hdf5File:
    with h5py.File(path, "w") as file:
        file.create_dataset("u", data=NUMBERS, chunks=CHUNKS, **options)
        if bomb is not None:
            file["u"].id.write_direct_chunk((2, 0, 0, 0), bomb)
    return Hdf5File(str(path))


@pytest.mark.parametrize("kind", KINDS)
def test_a_bomb_is_refused_and_its_neighbours_are_read(tmp_path: Path, kind: str) -> None:
    options, bomb = KINDS[kind]
    opened = write(tmp_path / "a.h5", bomb, **options)
    np.testing.assert_array_equal(opened.array("u")[:2], NUMBERS[:2])
    for _ in range(2):
        with pytest.raises(SourceError, match=r"a\.h5: u: chunk at index \(2, 0, 0, 0\): .*memory"):
            opened.array("u")[2:, :1]
    with pytest.raises(SourceError, match="to exhaust memory"):
        opened.array("u").read_direct(np.empty(SHAPE, "f4"), np.s_[...], np.s_[...])
    opened.close()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fletcher32", [False, True])
def test_sound_chunks_are_tried_and_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, fletcher32: bool
) -> None:
    monkeypatch.setenv("PELAGOS_MEMORY_BUDGET", "10000")
    options = KINDS[kind][0]
    opened = write(tmp_path / "a.h5", None, fletcher32=fletcher32, **options)
    array = opened.array("u")
    unproven = UnprovenChunks(array.dataset, "here")
    assert len(unproven.masks) == 2
    unproven.try_in(array.dataset, tuple((0, size) for size in SHAPE))
    assert not unproven.masks
    np.testing.assert_array_equal(array[...], NUMBERS)
    opened.close()


def test_coordinates_that_formats_read_whole_are_tried(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        for name in "xt":
            file.create_dataset(name, data=np.arange(8.0), chunks=(8,), compression="gzip")
        file["t"].id.write_direct_chunk((0,), KINDS["gzip"][1])
    with h5py.File(tmp_path / "a.h5") as file:
        assert child(file, "x", "positions").shape == (8,)
        with pytest.raises(SourceError, match=r"a\.h5: /t: chunk at index \(0,\): .*memory"):
            child(file, "t", "times")
