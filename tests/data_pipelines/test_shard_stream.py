"""A shard written as its frames come is the shard written at once."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import pytest

from pelagos.data_pipelines.store import Dataset, create_dataset
from pelagos.data_pipelines.store.field_statistics import shard_sums, trajectory_sums
from pelagos.data_pipelines.store.shard_stream import NonFiniteError
from pelagos.data_pipelines.store.shards import extended_crc32c

MakeDataset = Callable[..., tuple[Dataset, np.ndarray]]
LARGE = {"grid_shape": (300, 310), "num_frames": 4}  # 0.7 MB a frame


def snapshot(folder: str) -> dict[str, bytes]:
    root = Path(folder)
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


@pytest.mark.parametrize("compression", ["none", "lz4"])
@pytest.mark.parametrize("lengths", [[1], [3], [7, 1], [100]])
def test_the_pieces_do_not_show(
    make_dataset: MakeDataset, tmp_path: Path, lengths: list[int], compression: str
) -> None:
    """Bytes, checksums and statistics are those of `write_shard`, however the frames came."""
    whole, data = make_dataset(compression=compression, **LARGE)
    spec = whole.spec
    writer = create_dataset(str(tmp_path / "pieces.zarr"), spec)
    for shard in writer.missing_shards():
        rows = writer.shard_trajectories(shard)
        frames = data[rows.start : rows.stop].reshape(-1, *spec.frame_shape)
        starts, pieces = 0, []
        while starts < len(frames):
            length = lengths[len(pieces) % len(lengths)]
            pieces.append(frames[starts : starts + length])
            starts += length
        parameters = {"viscosity": np.arange(rows.start, rows.stop) / 8}
        writer.write_shard_frames(shard, iter(pieces), parameters)
    writer.finalize()
    assert snapshot(writer.uri) == snapshot(whole.uri)


def test_sums_do_not_depend_on_neighbours() -> None:
    """Nothing of one trajectory gets into the changes of the next."""
    data = np.random.default_rng(0).normal(size=(3, 4, 2, 200, 190)).astype(np.float32)
    sums = shard_sums(data, ("a", "b"))
    change = np.diff(data[1, :, 1].astype(np.float64), axis=0)
    assert sums["b"][1] == trajectory_sums(data[1, :, 1].copy())
    assert sums["b"][1]["delta_count"] == change.size
    assert sums["b"][1]["delta_sum"] == pytest.approx(change.sum(), abs=1e-8)
    assert sums["b"][1]["delta_min"] == change.min()
    assert sums["a"][2]["max"] == data[2, :, 0].max()


@pytest.mark.parametrize("count", [14, 16])
def test_too_few_or_too_many_frames_are_refused(
    make_dataset: MakeDataset, tmp_path: Path, count: int
) -> None:
    dataset, _ = make_dataset()
    writer = create_dataset(str(tmp_path / "new.zarr"), dataset.spec)
    frames = np.zeros((count, *dataset.spec.frame_shape), np.float32)
    with pytest.raises(ValueError, match=rf"got {count} frames, expected 3 x 5 = 15"):
        writer.write_shard_frames(0, [frames], {"viscosity": np.zeros(3)})
    with pytest.raises(ValueError, match=r"frames have shape \(2, 12, 15\), expected \(2, 12, 16"):
        writer.write_shard_frames(0, [frames[..., 1:]], {"viscosity": np.zeros(3)})
    assert writer.missing_shards() == [0, 1, 2]
    left = [p for p in Path(writer.uri).rglob("*") if "partial" in p.name or p.name == "0"]
    assert [p for p in left if "data" in p.parts] == []


def test_the_first_value_that_is_not_finite_is_named(
    make_dataset: MakeDataset, tmp_path: Path
) -> None:
    dataset, data = make_dataset(**LARGE)
    writer = create_dataset(str(tmp_path / "new.zarr"), dataset.spec)
    bad = data[:3].copy()
    bad[1, 2, 1, 299, 7], bad[2, 0, 0, 0, 0] = np.inf, np.nan
    with pytest.raises(NonFiniteError, match=r"trajectory 1, frame 2, .*index \(299, 7\)") as found:
        writer.write_shard(0, bad, {"viscosity": np.zeros(3)})
    sent: Any = pickle.loads(pickle.dumps(found.value))  # as it comes back from a worker
    assert (sent.trajectory, sent.frame, sent.channel, str(sent)) == (1, 2, 1, str(found.value))


def test_a_checksum_goes_on() -> None:
    whole = bytes(range(256)) * 40
    first = extended_crc32c(0, whole[:1000])
    assert extended_crc32c(first, memoryview(whole)[1000:]) == google_crc32c.value(whole)
