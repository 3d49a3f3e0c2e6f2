"""What a header or a compressed chunk claims is compared with what there is, before memory is taken."""

from __future__ import annotations

import gzip
import io
import tracemalloc
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numcodecs
import numpy as np
import pytest
import zarr
import zarr.codecs
from PIL import Image

from pelagos.data_pipelines.convert import ConvertOptions, SourceError, open_source
from pelagos.data_pipelines.convert.pictures import Picture
from pelagos.data_pipelines.convert.source import StoredArray
from pelagos.data_pipelines.convert.verification.second_files import open_second
from pelagos.data_pipelines.foreign import open_foreign
from pelagos.data_pipelines.foreign.bounded_codecs import zstd_claim
from pelagos.data_pipelines.store import DatasetError
from pelagos.infra.memory_budget import memory_budget, require_affordable
from pelagos.jobs import convert

SHAPE = (2, 3, 8, 8)
NAMES = ["trajectory", "time", "y", "x"]
NUMBERS = np.random.default_rng(1).normal(size=SHAPE).astype("f4")
BOMB_BYTES = 2**28
MOST_BYTES = 2**25  # far below the bomb, above what reading takes


@contextmanager
def little_memory() -> Iterator[None]:
    tracemalloc.start()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < MOST_BYTES, f"{peak:,} bytes"


V2 = {
    "gzip": numcodecs.GZip(1),
    "zlib": numcodecs.Zlib(1),
    "bz2": numcodecs.BZ2(1),
    "lzma": numcodecs.LZMA(preset=1),
    "zstd": numcodecs.Zstd(1),
    "blosc": numcodecs.Blosc("zstd", 1),
    "lz4": numcodecs.LZ4(),
}
V3 = {
    "gzip": zarr.codecs.GzipCodec(level=1),
    "zstd": zarr.codecs.ZstdCodec(level=1),
    "blosc": zarr.codecs.BloscCodec(cname="zstd"),
}
CASES = [("v2", name) for name in V2] + [(v, name) for v in ("v3", "sharded") for name in V3]


def write(path: Path, version: str, name: str) -> None:
    options: dict[str, Any] = {"shape": SHAPE, "dtype": "f4", "chunks": (1, 3, 8, 8)}
    if version == "v2":
        array = zarr.create_array(path, zarr_format=2, compressors=V2[name], **options)
        array.attrs["_ARRAY_DIMENSIONS"] = NAMES
    else:
        if version == "sharded":
            options["shards"] = SHAPE
        array = zarr.create_array(path, compressors=V3[name], dimension_names=NAMES, **options)
    array[...] = NUMBERS


def bomb(name: str) -> bytes:
    """A few bytes or a megabyte that unpack to a quarter of a gigabyte of zeros."""
    zeros = bytes(BOMB_BYTES)
    if name == "gzip":
        return gzip.compress(zeros, 9)
    if name == "zlib":
        return zlib.compress(zeros, 9)
    codec: Any = V2[name]
    return bytes(codec.encode(np.frombuffer(zeros, np.uint8)))


BOMBS = {name: bomb(name) for name in V2}


@pytest.mark.parametrize(("version", "name"), CASES)
def test_numbers_come_through_every_codec(tmp_path: Path, version: str, name: str) -> None:
    write(tmp_path / "a.zarr", version, name)
    dataset = open_foreign(str(tmp_path / "a.zarr"))
    for trajectory in range(2):
        np.testing.assert_array_equal(
            dataset.read_frames(trajectory, [0, 1, 2])[:, 0], NUMBERS[trajectory]
        )


@pytest.mark.parametrize(("version", "name"), [c for c in CASES if c[0] != "sharded"])
def test_a_chunk_that_unpacks_to_more_is_refused_without_the_memory(
    tmp_path: Path, version: str, name: str
) -> None:
    """A chunk of a megabyte took seven gigabytes."""
    write(tmp_path / "a.zarr", version, name)
    key = "1.0.0.0" if version == "v2" else "c/1/0/0/0"
    (tmp_path / "a.zarr" / key).write_bytes(BOMBS[name])
    dataset = open_foreign(str(tmp_path / "a.zarr"))
    dataset.read_frames(0, [0])  # what is needed once is loaded
    with little_memory(), pytest.raises(DatasetError, match="a compressed chunk holds"):
        dataset.read_frames(1, [0])
    with pytest.raises(DatasetError, match="trajectory 1"):
        dataset.read_frames(1, [0])


def test_several_members_of_gzip_count_together(tmp_path: Path) -> None:
    write(tmp_path / "a.zarr", "v3", "gzip")
    whole = NUMBERS[1].tobytes()
    half = len(whole) // 2
    members = gzip.compress(whole[:half]) + gzip.compress(whole[half:])
    (tmp_path / "a.zarr/c/1/0/0/0").write_bytes(members)
    dataset = open_foreign(str(tmp_path / "a.zarr"))
    np.testing.assert_array_equal(dataset.read_frames(1, [0, 1, 2])[:, 0], NUMBERS[1])
    bombs = gzip.compress(bytes(2**20)) * 300
    (tmp_path / "a.zarr/c/1/0/0/0").write_bytes(bombs)
    with little_memory(), pytest.raises(DatasetError, match="a compressed chunk holds"):
        dataset.read_frames(1, [0])


def test_frames_of_zstandard_that_say_no_size_are_counted_by_their_blocks() -> None:
    for size in (0, 1, 1000, 300_000, 2**20):
        content = np.random.default_rng(0).integers(0, 4, size, np.uint8)
        claimed = zstd_claim(memoryview(numcodecs.Zstd(3).encode(content)))
        assert claimed == size
    # RFC 8878: magic, no size and no checksum, a window, one block of a repeated byte
    block = (2**17 << 3 | 1 << 1 | 0).to_bytes(3, "little") + b"\0"
    last = (2**17 << 3 | 1 << 1 | 1).to_bytes(3, "little") + b"\0"
    frame = (0xFD2FB528).to_bytes(4, "little") + bytes([0, 0x58]) + block * 999 + last
    assert zstd_claim(memoryview(frame)) == 1000 * 2**17
    assert zstd_claim(memoryview(frame * 2)) == 2000 * 2**17


def test_chunks_beyond_the_budget_are_refused_when_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    zarr.create_array(
        tmp_path / "a.zarr",
        shape=(1, 1, 2**20, 2**20),
        dtype="f4",
        chunks=(1, 1, 2**20, 2**20),
        dimension_names=NAMES,
    )
    with pytest.raises(DatasetError, match=r"takes 4,398,046,511,104 bytes at once"):
        open_foreign(str(tmp_path / "a.zarr"))
    monkeypatch.setenv("PELAGOS_MEMORY_BUDGET", "1000")
    assert memory_budget() == 1000
    require_affordable(1000, "here")
    with pytest.raises(ValueError, match="here declares that it takes 1,001 bytes"):
        require_affordable(1001, "here")


def options(folder: Path, file: str) -> ConvertOptions:
    mapping = folder / "mapping.yaml"
    key = "" if file.endswith(".npy") else "key: u, "
    mapping.write_text(f"fields: [{{{key}axes: [n, t, y, x], names: [u]}}]\n")
    return ConvertOptions(mapping=str(mapping))


def test_hdf5_claims(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with h5py.File(tmp_path / "chunk.h5", "w") as file:
        file.create_dataset("u", (1, 1, 2**16, 2**15), "f4", chunks=(1, 1, 2**15, 2**14))
        file["u"].id.write_direct_chunk((0, 0, 0, 0), b"x")
    with h5py.File(tmp_path / "many.h5", "w") as file:
        file.create_dataset("u", (2, 2**14, 2**10, 2**10), "f4", chunks=(1, 1, 1, 1))
        file["u"][0, 0, 0, 0] = 1
    monkeypatch.setenv("PELAGOS_MEMORY_BUDGET", str(2**24))
    for name, told in (("chunk.h5", "bytes at once"), ("many.h5", "chunks")):
        with little_memory(), pytest.raises(SourceError, match=told):
            convert.run(str(tmp_path / name), str(tmp_path / "out"), options(tmp_path, name))


def npy(shape: tuple[int, ...], content: bytes) -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        stream, {"descr": "<f4", "fortran_order": False, "shape": shape}
    )
    return stream.getvalue() + content


@pytest.mark.parametrize("shape", [SHAPE, (2**40, 2**40, 8, 8), (2**15, 2**15, 8, 8)])
def test_npz_and_npy_claims(tmp_path: Path, shape: tuple[int, ...]) -> None:
    """Members that unpack to more than their header says, and headers that say more than there is."""
    content = bytes(BOMB_BYTES) if shape == SHAPE else NUMBERS.tobytes()
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("u.npy", npy(shape, content))
    with little_memory(), pytest.raises(SourceError, match=r"a\.npz"):
        convert.run(str(tmp_path / "a.npz"), str(tmp_path / "out"), options(tmp_path, "a.npz"))
    if shape != SHAPE:
        (tmp_path / "a.npy").write_bytes(npy(shape, content))
        with little_memory(), pytest.raises(SourceError, match=r"a\.npy"):
            open_source(str(tmp_path / "a.npy"), options(tmp_path, "a.npy"))


def test_npy_claims_of_its_header(tmp_path: Path) -> None:
    """Its length in version 2, of which as many bytes were allocated: four gigabytes."""
    file = tmp_path / "a.npy"
    content = npy(SHAPE, NUMBERS.tobytes())
    file.write_bytes(content[:6] + b"\2\0" + (2**32 - 256).to_bytes(4, "little") + content[10:])
    for chosen in (options(tmp_path, "a.npy"), ConvertOptions()):
        with little_memory(), pytest.raises(SourceError, match=r"a\.npy"):
            open_source(str(file), chosen)


def test_nifti_claims(tmp_path: Path) -> None:
    """A header that says more than the file holds, and a file that unpacks to more than it says."""
    nibabel = pytest.importorskip("nibabel")
    folder = tmp_path / "images"
    folder.mkdir()
    image = nibabel.Nifti1Image(NUMBERS[0], np.eye(4))
    nibabel.save(image, folder / "a.nii")
    header = bytearray((folder / "a.nii").read_bytes())
    large = bytearray(header)
    large[40:48] = np.array([3, 30000, 30000, 30000], "<i2").tobytes()
    for name, content in (
        ("a.nii", bytes(large)),
        ("a.nii.gz", gzip.compress(bytes(large))),
        ("a.nii.gz", gzip.compress(bytes(header) + bytes(BOMB_BYTES))),
    ):
        for path in folder.iterdir():
            path.unlink()
        (folder / name).write_bytes(content)
        with little_memory(), pytest.raises(SourceError, match=r"a\.nii"):
            convert.run(str(folder), str(tmp_path / "out"), ConvertOptions())


def test_lengths_in_an_archives_directory_are_claims_when_it_is_verified(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "a.npz", u=NUMBERS)
    content = bytearray((tmp_path / "a.npz").read_bytes())
    size = content.index(b"PK\1\2") + 20  # of the compressed member
    content[size + 3] = 0x40  # a gigabyte more
    (tmp_path / "a.npz").write_bytes(content)
    chosen = options(tmp_path, "a.npz")
    with little_memory():
        convert.run(str(tmp_path / "a.npz"), str(tmp_path / "out"), chosen, verify=True)


@pytest.mark.parametrize("reader", ["first", "second"])
def test_png_claims(tmp_path: Path, reader: str) -> None:
    """The length of a piece of a picture, of which as many bytes were allocated: four gigabytes."""
    file = tmp_path / "a.png"
    values = np.arange(64, dtype="u1").reshape(8, 8)
    Image.fromarray(values).save(file)
    content = bytearray(file.read_bytes())
    content[content.index(b"IDAT") - 4] = 0xFF
    file.write_bytes(content)
    address = f"{file}?side=0&mode=L"
    with little_memory():
        if reader == "first":
            read = Picture(address).array("")[...]
        else:
            array = StoredArray("picture", address, "", "yxc", 0)
            read = open_second("picture", address).array(array).read((slice(None),) * 3)
    np.testing.assert_array_equal(read[..., 0], values)
