"""The parts of the store one by one, against numpy, torch and the specification of Zarr."""

from __future__ import annotations

import json
import struct
from typing import Any

import google_crc32c
import numpy as np
import pytest
import torch
import zarr
from tests.data_pipelines.small_spec import spec_of
from zarr.core.buffer import cpu, default_buffer_prototype
from zarr.core.sync import sync
from zarr.storage import MemoryStore

from pelagos.data_pipelines.store.chunk_grid import frame_chunks, parts_by_number, touched_chunks
from pelagos.data_pipelines.store.half_precision import as_read, from_bfloat16, to_bfloat16
from pelagos.data_pipelines.store.layout import (
    array_documents,
    data_metadata,
    decoded_attributes,
    dumps,
    frame_codecs,
    is_earlier,
    root_document,
    shard_key,
    sidecar_key,
)
from pelagos.data_pipelines.store.shards import (
    ChecksumError,
    FrameCodec,
    check,
    crc32c,
    decode_index,
    extend_shard,
    extended_crc32c,
    index_bytes_length,
    shard_index,
)

# -- chunks ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunks", [(3, 4), (7, 10), (2, 5), (7, 3), (1, 10)])
@pytest.mark.parametrize("region", [None, ((0, 7), (0, 10)), ((2, 5), (3, 9)), ((6, 7), (0, 1))])
def test_chunks_of_a_frame_put_together_are_the_region(
    chunks: tuple[int, int], region: Any
) -> None:
    spec = spec_of(chunk_shape=chunks)
    frames = np.random.default_rng(0).normal(size=(2, 2, 7, 10)).astype(np.float32)
    found = list(frame_chunks(spec, frames))
    padded = np.zeros((2, 2, -(-7 // chunks[0]) * chunks[0], -(-10 // chunks[1]) * chunks[1]))
    padded[:, :, :7, :10] = frames
    expected = [
        frame[:, y : y + chunks[0], x : x + chunks[1]]
        for frame in padded
        for y in range(0, 7, chunks[0])
        for x in range(0, 10, chunks[1])
    ]
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    (top, bottom), (left, right) = region or ((0, 7), (0, 10))
    wanted = frames[0, :, top:bottom, left:right]
    put = np.full(wanted.shape, np.nan, np.float32)
    parts = touched_chunks(spec, region)
    for part in parts:
        put[part.target] = found[part.number][part.source]
    np.testing.assert_array_equal(put, wanted)
    # and no chunk is read that holds nothing of it
    rows = range(top // chunks[0], (bottom - 1) // chunks[0] + 1)
    columns = range(left // chunks[1], (right - 1) // chunks[1] + 1)
    per_row = -(-10 // chunks[1])
    assert [p.number for p in parts] == [y * per_row + x for y in rows for x in columns]
    assert list(parts_by_number(spec, region)) == [p.number for p in parts]


def test_a_whole_frame_is_handed_on_without_a_copy() -> None:
    frames = np.zeros((2, 2, 7, 10), np.float32)
    for chunks in (None, (7, 10)):
        found = list(frame_chunks(spec_of(chunk_shape=chunks), frames))
        assert len(found) == 2
        assert all(np.shares_memory(chunk, frames) for chunk in found)
    # one chunk that reaches beyond the grid is no whole frame
    (wide, _) = frame_chunks(spec_of(chunk_shape=(8, 10)), frames + 1)
    assert wide.shape == (2, 8, 10)
    assert (wide[:, 7].max(), wide[:, :7].min()) == (0, 1)


# -- bfloat16 ----------------------------------------------------------------------------------------


def test_bfloat16_is_torchs() -> None:
    rng = np.random.default_rng(1)
    bits = rng.integers(0, 2**32, 20000, dtype=np.uint64).astype(np.uint32)
    ties = (rng.integers(0, 2**16, 2000).astype(np.uint32) << 16) | 0x8000
    values = np.concatenate([bits, ties]).view(np.float32)
    values = values[~np.isnan(values)]
    there = torch.from_numpy(values.copy()).to(torch.bfloat16)
    np.testing.assert_array_equal(
        to_bfloat16(values), there.view(torch.int16).numpy().view(np.uint16)
    )
    stored = to_bfloat16(values)
    np.testing.assert_array_equal(from_bfloat16(stored), there.float().numpy())
    out = np.empty(stored.shape, np.float32)
    assert from_bfloat16(stored, out) is out
    np.testing.assert_array_equal(out, there.float().numpy())


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_only_bfloat16_is_read_as_another_type(dtype: Any) -> None:
    stored = np.arange(3).astype(dtype)
    assert as_read(spec_of(dtype=dtype), stored) is stored
    halves = np.array([0x3F80, 0xC000], np.uint16)
    assert as_read(spec_of(dtype="bfloat16"), halves).tolist() == [1.0, -2.0]


# -- shards ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("compression", ["none", "lz4", "zstd"])
def test_a_frame_is_its_bytes_and_their_checksum(compression: Any) -> None:
    spec = spec_of(compression=compression, chunk_shape=(7, 10))
    codec = FrameCodec(spec)
    frame = np.random.default_rng(2).normal(size=(2, 7, 10)).astype(np.float32)
    payload, checksum = codec.encode(frame[:, ::-1])  # not contiguous
    whole = bytes(payload) + checksum
    assert checksum == struct.pack("<I", google_crc32c.value(bytes(payload)))
    if compression == "none":
        assert bytes(payload) == frame[:, ::-1].tobytes()
    out = np.empty((2, 7, 10), np.float32)
    codec.decode(whole, out)
    np.testing.assert_array_equal(out, frame[:, ::-1])
    for place in (0, len(whole) - 1):
        broken = bytearray(whole)
        broken[place] ^= 1
        with pytest.raises(ChecksumError, match="crc32c is"):
            codec.decode(broken, out)
    for lines in (6, 8):  # whole, but of another size
        other = FrameCodec(spec_of(compression=compression, grid_shape=(lines, 10)))
        content, end = other.encode(np.zeros((2, lines, 10), np.float32))
        with pytest.raises(ChecksumError, match="bytes, expected 560"):
            codec.decode(bytes(content) + end, out)


@pytest.mark.parametrize("compression", ["none", "lz4", "zstd"])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_a_frame_is_what_zarr_writes_by_the_metadata(compression: Any, dtype: Any) -> None:
    """Level, filter and block size are those that the metadata promises to other writers."""
    spec = spec_of(compression=compression, dtype=dtype, grid_shape=(64, 1000))
    frame = np.random.default_rng(7).integers(0, 9, (2, 64, 1000)).astype(spec.stored_dtype)
    document = {**data_metadata(spec), "shape": [2, 64, 1000], "codecs": frame_codecs(spec)}
    document["chunk_grid"] = {"name": "regular", "configuration": {"chunk_shape": [2, 64, 1000]}}
    document["dimension_names"] = ["channel", "y", "x"]
    store = MemoryStore()
    sync(store.set("zarr.json", cpu.Buffer.from_bytes(json.dumps(document).encode())))
    zarr.open_array(store, mode="r+")[:] = frame
    written = sync(store.get("c/0/0/0", default_buffer_prototype()))
    assert written is not None
    payload, checksum = FrameCodec(spec).encode(frame)
    assert bytes(payload) + checksum == written.to_bytes()


def test_checksums_go_on() -> None:
    first, second = b"some bytes", b"and others"
    assert crc32c(first) == google_crc32c.value(first)
    assert extended_crc32c(crc32c(first), second) == crc32c(first + second)
    check(first, struct.pack("<I", crc32c(first)))
    with pytest.raises(ChecksumError, match=f"{crc32c(first):08x}, but 00000001 was stored"):
        check(first, struct.pack("<I", 1))


def test_an_index_is_that_of_the_specification() -> None:
    """Offset and length as little-endian uint64, 2^64 - 1 for what is absent, then crc32c."""
    spec = spec_of(chunk_shape=(7, 5))  # two chunks a frame, six a trajectory
    lengths = [10, 20, 30, 40, 50, 60, 70]
    ends = np.cumsum(lengths)
    rows = [(int(end) - n, n) for end, n in zip(ends, lengths, strict=True)]
    rows += [(2**64 - 1, 2**64 - 1)] * 5
    expected = b"".join(struct.pack("<QQ", *row) for row in rows)
    index = shard_index(spec, lengths)
    assert index == expected
    assert index_bytes_length(spec) == 2 * 6 * 16 + 4
    tail = index + struct.pack("<I", google_crc32c.value(index))
    found, checksum = decode_index(spec, tail)
    assert found.shape == (2, 6, 2)
    assert found.reshape(-1, 2).tolist() == [list(row) for row in rows]
    assert checksum == google_crc32c.value(index)
    with pytest.raises(ChecksumError, match="index of 195 bytes, expected 196"):
        decode_index(spec, tail[1:])
    with pytest.raises(ChecksumError, match="crc32c is"):
        decode_index(spec, tail[:-1] + bytes([tail[-1] ^ 1]))


def test_a_longer_shard_begins_with_the_old_one() -> None:
    spec = spec_of()
    chunks = [bytes([n]) * (n + 1) for n in range(6)]

    def shard(parts: list[bytes]) -> bytes:
        index = shard_index(spec, [len(part) for part in parts])
        return b"".join(parts) + index + struct.pack("<I", google_crc32c.value(index))

    old, added = shard(chunks[:3]), shard(chunks[3:])
    found = extend_shard(spec, old, 1, added, 1)
    assert found.content.startswith(old)
    index, checksum = decode_index(spec, found.content[-index_bytes_length(spec) :])
    parts = [found.content[int(at) : int(at + n)] for at, n in index.reshape(-1, 2)]
    assert parts == chunks
    assert (found.crc32c, found.index_crc32c) == (google_crc32c.value(found.content), checksum)


# -- layout ------------------------------------------------------------------------------------------


def test_keys_and_metadata_are_as_zarr_wants_them() -> None:
    spec = spec_of(chunk_shape=(3, 4), compression="zstd", dtype="float32")
    assert shard_key(spec, 12) == "data/c/12/0/0/0/0"
    assert (
        shard_key(
            spec_of(grid_shape=(8,), domain_extent=(1.0,), boundary_conditions={"x": "periodic"}), 3
        )
        == "data/c/3/0/0/0"
    )
    assert sidecar_key(7) == ".pelagos/shards/7.json"
    data = data_metadata(spec)
    (sharding,) = data["codecs"]
    inner = sharding["configuration"]
    assert inner["chunk_shape"] == [1, 1, 2, 3, 4]
    assert [codec["name"] for codec in inner["codecs"]] == ["bytes", "blosc", "crc32c"]
    assert inner["codecs"][1]["configuration"] == {
        **{"typesize": 4, "cname": "zstd", "clevel": 3, "shuffle": "shuffle", "blocksize": 0}
    }
    assert [codec["name"] for codec in inner["index_codecs"]] == ["bytes", "crc32c"]
    assert inner["index_location"] == "end"
    # whole chunks: 3 x 3 lines cover 7, 3 x 4 columns cover 10
    assert data["chunk_grid"]["configuration"]["chunk_shape"] == [2, 3, 2, 9, 12]
    assert data["shape"] == [5, 3, 2, 7, 10]
    assert data["dimension_names"] == ["trajectory", "time", "channel", "y", "x"]
    assert data["attributes"]["channel_units"] == ["m/s", "Pa"]
    assert "bfloat16" not in data["attributes"]
    assert data["fill_value"] == "NaN"
    assert [c["name"] for c in frame_codecs(spec_of(compression="none"))] == ["bytes", "crc32c"]
    assert frame_codecs(spec_of(compression="lz4"))[1]["configuration"]["clevel"] == 5


def test_half_precision_says_what_its_numbers_are() -> None:
    spec = spec_of(dtype="bfloat16")
    data = data_metadata(spec)
    assert (data["data_type"], data["fill_value"]) == ("uint16", 0x7FC0)  # bfloat16's NaN
    assert data["attributes"]["bfloat16"] == 1
    assert data["attributes"]["bfloat16"] is not True
    assert data_metadata(spec, earlier=True)["attributes"]["bfloat16"] is True


def test_parameters_are_arrays_and_nested_attributes_are_text() -> None:
    plain, spec = spec_of(), spec_of(parameter_names=("viscosity", "speed"))
    added = array_documents(spec).keys() - array_documents(plain).keys()
    assert added == {"parameters", "parameters/viscosity", "parameters/speed"}
    assert array_documents(spec)["parameters/speed"]["shape"] == [5]
    root = root_document(spec, {"statistics": {"all": {}}})
    attributes = root["attributes"]
    assert json.loads(attributes["splits"]) == {"train": [0, 4], "test": [4, 5]}
    assert json.loads(attributes["statistics"]) == {"all": {}}
    assert (attributes["num_frames"], attributes["name"]) == (3, "parts")
    decoded = decoded_attributes({**attributes, "note": '["text"]', "physics": {"a": 1}})
    assert decoded["splits"] == {"train": [0, 4], "test": [4, 5]}
    assert decoded["note"] == '["text"]'  # somebody's own text stays text
    assert decoded["physics"] == {"a": 1}  # and what is no text is left
    consolidated = root["consolidated_metadata"]
    assert (consolidated["kind"], consolidated["must_understand"]) == ("inline", False)
    assert consolidated["metadata"] == array_documents(spec)
    assert not is_earlier(root)
    assert is_earlier({"consolidated_metadata": {"metadata": array_documents(spec, earlier=True)}})
    assert not is_earlier({})


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_no_number_is_stored_that_json_lacks(value: float) -> None:
    with pytest.raises(ValueError, match="Out of range float"):
        dumps({"a": value})
    with pytest.raises(ValueError, match="Out of range float"):
        root_document(spec_of(), {"statistics": {"a": value}})
    assert json.loads(dumps({"a": 1.5})) == {"a": 1.5}
