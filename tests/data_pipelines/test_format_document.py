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
    index = np.frombuffer(checked(content[-(n * num_frames * 16 + 4) :]), "<u8")
    offset, length = index.reshape(n, num_frames, 2)[row, frame].tolist()
    payload = checked(content[offset : offset + length])
    if spec["compression"] != "none":
        payload = numcodecs.Blosc().decode(payload)
    return np.frombuffer(payload, "<f4").reshape(len(spec["fields"]), *spec["grid_shape"])


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
