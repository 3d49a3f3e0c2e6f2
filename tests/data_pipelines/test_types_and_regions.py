"""Half-precision numbers, and frames cut into chunks in space of which a region reads a part."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray
import zarr

from pelagos.data_pipelines.management.inspection import verify
from pelagos.data_pipelines.store import DatasetSpec, Field, create_dataset, open_dataset
from pelagos.data_pipelines.store.chunk_grid import touched_chunks
from pelagos.data_pipelines.store.half_precision import from_bfloat16, to_bfloat16


def test_bfloat16_rounds_as_torch_does() -> None:
    bits = np.random.default_rng(0).integers(0, 2**32, 200_000, dtype=np.uint32)
    values = bits.view(np.float32)
    values = values[np.isfinite(values)]
    values = np.concatenate([values, np.float32([0.0, -0.0, 1 + 2**-8, 1 + 3 * 2**-8])])  # ties
    wanted = torch.from_numpy(values).to(torch.bfloat16)
    found = torch.from_numpy(from_bfloat16(to_bfloat16(values)))
    assert torch.equal(found, wanted.float())


def test_bfloat16_is_readable_by_anyone(make_dataset: Any) -> None:
    dataset, data = make_dataset(dtype="bfloat16")
    wanted = torch.from_numpy(data).to(torch.bfloat16).float().numpy()
    assert dataset.read_frames(3, [1, 2]).dtype == np.float32
    np.testing.assert_array_equal(dataset.window(6, 0, 5), wanted[6])
    plain = xarray.open_zarr(dataset.uri)["data"]
    assert plain.dtype == np.uint16
    assert plain.attrs["bfloat16"] == 1
    np.testing.assert_array_equal((plain.values.astype("u4") << 16).view("f4"), wanted)
    # the statistics are those of what is read, not of what was given
    mean = dataset.manifest.statistics["all"]["pressure"]["mean"]
    assert mean == pytest.approx(wanted[:, :, 1].astype(np.float64).mean(), rel=1e-12)
    assert verify(dataset.uri).is_whole
    spec = dataset.spec
    writer = create_dataset(dataset.uri + "-too-large", spec)
    with pytest.raises(ValueError, match="is not finite as bfloat16"):
        writer.write_shard(0, np.full((3, *spec.shape[1:]), 3.4e38), {"viscosity": np.ones(3)})


@pytest.mark.parametrize("compression", ["none", "lz4"])
@pytest.mark.parametrize(("grid", "chunk"), [((12, 16), (4, 8)), ((13, 16), (5, 7))])
def test_any_region_of_frames_in_chunks(
    make_dataset: Any, compression: str, grid: tuple[int, int], chunk: tuple[int, int]
) -> None:
    dataset, data = make_dataset(compression=compression, grid_shape=grid, chunk_shape=chunk)
    generator = np.random.default_rng(0)
    np.testing.assert_array_equal(dataset.read_frames(6, [4, 0]), data[6, [4, 0]])
    np.testing.assert_array_equal(zarr.open_group(dataset.uri, mode="r")["data"][:], data)
    for _ in range(40):
        ends = [np.sort(generator.choice(n + 1, 2, replace=False)).tolist() for n in grid]
        region = tuple((a, b) for a, b in ends)
        frames = generator.integers(0, 5, 2).tolist()
        trajectory = int(generator.integers(7))
        (top, bottom), (left, right) = region
        np.testing.assert_array_equal(
            dataset.read_frames(trajectory, frames, region=region),
            data[trajectory, frames][..., top:bottom, left:right],
        )
    with pytest.raises(IndexError, match="region"):
        dataset.read_frames(0, [0], region=((0, 20), (0, 4)))
    assert verify(dataset.uri).is_whole


def test_a_region_of_three_dimensions_reads_only_what_it_touches(make_dataset: Any) -> None:
    dataset, data = make_dataset(
        grid_shape=(8, 8, 8),
        domain_extent=(1.0, 1.0, 1.0),
        boundary_conditions={},
        chunk_shape=(4, 4, 4),
        compression="none",
    )
    dataset.read_frames(0, [0])  # the index is kept
    dataset.store.coalesce_gap_bytes = 0  # else small chunks between are cheaper to read
    before = dataset.bytes_read
    region = ((0, 4), (2, 6), (4, 8))  # 1 * 2 * 1 chunks
    found = dataset.read_frames(0, [2, 3], region=region)
    np.testing.assert_array_equal(found, data[0, 2:4, :, 0:4, 2:6, 4:8])
    assert dataset.bytes_read - before == 2 * 2 * (2 * 4**3 * 4 + 4)
    assert [part.number for part in touched_chunks(dataset.spec, region)] == [1, 3]


def test_large_frames_are_cut_and_others_are_as_they_were(tmp_path: Path) -> None:
    def spec(grid: tuple[int, ...], channels: int = 4) -> DatasetSpec:
        return DatasetSpec(
            name="large",
            equation="none",
            fields=tuple(Field(f"f{i}", "tracer") for i in range(channels)),
            num_trajectories=1,
            num_frames=1,
            grid_shape=grid,
            frame_interval=1.0,
            domain_extent=(1.0,) * len(grid),
            boundary_conditions={},
            splits={"train": (0, 1)},
        )

    assert spec((512, 512)).chunks_per_frame == 1  # 4 MiB
    assert "chunk_shape" not in spec((512, 512)).to_json()
    assert spec((1024, 1024)).frame_chunk_shape == (256, 512)
    assert spec((128, 128, 128)).frame_chunk_shape == (32, 64, 64)
    assert spec((513, 1025)).frame_chunk_shape == (257, 257)
    large = spec((1024, 1024))
    assert DatasetSpec.from_json(json.loads(json.dumps(large.to_json()))).differences(large) == []
    # a dataset of version 1 with such frames has them whole, and stays what it was
    old = {k: v for k, v in large.to_json().items() if k != "chunk_shape"}
    assert DatasetSpec.from_json(old).chunks_per_frame == 1
    assert DatasetSpec.from_json(old).to_json() == old
    writer = create_dataset(str(tmp_path / "large.zarr"), large)
    data = np.random.default_rng(0).random(large.shape, np.float32)
    writer.write_shard(0, data)
    writer.finalize()
    dataset = open_dataset(writer.uri)
    region = ((500, 564), (100, 164))
    crop = dataset.read_frames(0, [0], region=region)
    np.testing.assert_array_equal(crop[0], data[0, 0, :, 500:564, 100:164])
    assert dataset.bytes_read < 0.3 * dataset.manifest.shards[0].size  # 2 of 8 chunks
