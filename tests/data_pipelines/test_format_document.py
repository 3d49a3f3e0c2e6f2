"""The format's page is exact: a reader written from `docs/dataset-format.md` alone, no Zarr."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import google_crc32c
import numcodecs
import numpy as np
import numpy.typing as npt
import pytest


def checked(content: bytes) -> bytes:
    """Content without its checksum, once that was found right."""
    payload, checksum = content[:-4], content[-4:]
    assert google_crc32c.value(payload) == int.from_bytes(checksum, "little")
    return payload


def read_frame(root: Path, trajectory: int, frame: int) -> npt.NDArray[np.float32]:
    spec = json.loads((root / "manifest.json").read_text())["spec"]
    n, num_frames = spec["trajectories_per_shard"], spec["num_frames"]
    shard, row = divmod(trajectory, n)
    content = (root / f"data/c/{shard}/0/0/0/0").read_bytes()
    grid, chunk = spec["grid_shape"], spec.get("chunk_shape", spec["grid_shape"])
    down, across = -(-grid[0] // chunk[0]), -(-grid[1] // chunk[1])
    entries = num_frames * down * across
    index = np.frombuffer(checked(content[-(n * entries * 16 + 4) :]), "<u8")
    index = index.reshape(n, num_frames, down, across, 2)
    found = np.zeros((len(spec["fields"]), down * chunk[0], across * chunk[1]), np.float32)
    for i, j in np.ndindex(down, across):
        offset, length = index[row, frame, i, j].tolist()
        payload = checked(content[offset : offset + length])
        if spec["compression"] != "none":
            payload = numcodecs.Blosc().decode(payload)
        if spec["dtype"] == "bfloat16":
            values = (np.frombuffer(payload, "<u2").astype("<u4") << 16).view("<f4")
        else:
            values = np.frombuffer(payload, "<f4" if spec["dtype"] == "float32" else "<f2")
        y, x = i * chunk[0], j * chunk[1]
        found[:, y : y + chunk[0], x : x + chunk[1]] = values.reshape(-1, *chunk)
    return found[:, : grid[0], : grid[1]]


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("chunk_shape", [None, (5, 8)])  # 5 does not divide the 12 points
def test_the_page_holds_for_types_and_chunks_in_space(
    make_dataset: Any, dtype: str, chunk_shape: tuple[int, int] | None
) -> None:
    dataset, _ = make_dataset(dtype=dtype, chunk_shape=chunk_shape)
    for trajectory, frame in ((0, 0), (4, 3), (6, 4)):
        wanted = dataset.read_frames(trajectory, [frame])[0]
        found = read_frame(Path(dataset.uri), trajectory, frame)
        np.testing.assert_array_equal(found, wanted.astype(np.float32))
    version = json.loads((Path(dataset.uri) / "manifest.json").read_text())["format_version"]
    assert version == (1 if dtype != "bfloat16" and chunk_shape is None else 2)


@pytest.mark.parametrize("compression", ["none", "lz4", "zstd"])
def test_a_reader_written_from_the_page(make_dataset: Any, compression: str) -> None:
    dataset, data = make_dataset(compression=compression)
    root = Path(dataset.uri)
    for trajectory in range(7):
        for frame in range(5):
            np.testing.assert_array_equal(
                read_frame(root, trajectory, frame), data[trajectory, frame]
            )
    viscosity = checked((root / "parameters/viscosity/c/0").read_bytes())
    np.testing.assert_array_equal(np.frombuffer(viscosity, "<f8"), np.arange(7) / 8)
    manifest = json.loads((root / "manifest.json").read_text())
    fingerprint = manifest.pop("fingerprint")
    canonical = json.dumps(manifest, sort_keys=True, separators=(",", ":"))
    assert hashlib.sha256(canonical.encode()).hexdigest() == fingerprint
    for shard in manifest["shards"]:
        content = (root / shard["key"]).read_bytes()
        assert len(content) == shard["size"]
        assert google_crc32c.value(content) == shard["crc32c"]
        assert content[-4:] == shard["index_crc32c"].to_bytes(4, "little")
