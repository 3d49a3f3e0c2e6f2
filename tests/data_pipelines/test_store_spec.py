"""What follows from a dataset's specification: chunks, shards, positions; and every rule for it."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from tests.data_pipelines import small_spec

from pelagos.data_pipelines.store import DatasetSpec, Field

MIB = 2**20


def spec_of(**changes: Any) -> DatasetSpec:
    by_default = {"trajectories_per_shard": DatasetSpec.trajectories_per_shard}
    return small_spec.spec_of(**{"name": "spec", **by_default, **changes})


def one_field(*grid: int, **changes: Any) -> DatasetSpec:
    names = {1: "x", 2: "yx", 3: "zyx"}[len(grid)]
    return spec_of(
        fields=(Field("u", "velocity-x"),),
        grid_shape=grid,
        domain_extent=(1.0,) * len(grid),
        boundary_conditions=dict.fromkeys(names, "periodic"),
        **changes,
    )


@pytest.mark.parametrize(
    ("spec", "chunk", "counts"),
    [
        (one_field(1024, 1024), (1024, 1024), (1, 1)),  # 4 MiB
        (one_field(1024, 1025), (512, 513), (2, 2)),  # beyond: 2.0 MiB and a bit, so both axes
        (one_field(2048, 512, dtype="float16"), (2048, 512), (1, 1)),
        (one_field(2048, 1024, dtype="bfloat16"), (2048, 1024), (1, 1)),
        (one_field(4096, 1024, dtype="float16"), (1024, 1024), (4, 1)),
        (one_field(256, 128, 64), (64, 128, 64), (4, 1, 1)),  # the first of the longest
        (one_field(2 * MIB), (MIB // 2,), (4,)),
        (one_field(8, 12, chunk_shape=(3, 5)), (3, 5), (3, 3)),
    ],
)
def test_frames_are_whole_up_to_four_mebibytes_and_then_halved_to_two(
    spec: DatasetSpec, chunk: tuple[int, ...], counts: tuple[int, ...]
) -> None:
    assert spec.frame_chunk_shape == chunk
    assert spec.chunk_counts == counts
    assert spec.chunks_per_frame == np.prod(counts)
    if spec.chunk_shape is None and spec.chunks_per_frame > 1:
        assert np.prod(chunk) * spec.stored_dtype.itemsize <= 2 * MIB


def test_versions_are_the_lowest_that_hold_the_data() -> None:
    assert spec_of().format_version == 1
    assert spec_of(dtype="float16").format_version == 1
    assert spec_of(dtype="bfloat16").format_version == 2
    assert spec_of(chunk_shape=(7, 9)).format_version == 2
    assert spec_of(chunk_shape=(8, 12)).format_version == 1  # all in one


@pytest.mark.parametrize(
    ("dtype", "stored", "read", "size"),
    [("float32", "f4", "f4", 4), ("float16", "f2", "f2", 2), ("bfloat16", "u2", "f4", 2)],
)
def test_types_of_numbers(dtype: Any, stored: str, read: str, size: int) -> None:
    spec = spec_of(dtype=dtype)
    assert (spec.stored_dtype, spec.value_dtype) == (np.dtype(stored), np.dtype(read))
    assert spec.frame_bytes == 2 * 7 * 10 * size
    assert (spec.shape, spec.frame_shape) == ((5, 3, 2, 7, 10), (2, 7, 10))


@pytest.mark.parametrize(
    ("frames", "trajectories", "expected"),
    [(16, 100, 8), (16, 5, 5), (512, 100, 1), (17, 100, 8), (21, 100, 6), (23, 100, 6)],
)
def test_a_shard_holds_about_128_mebibytes(frames: int, trajectories: int, expected: int) -> None:
    """Frames of one mebibyte each."""
    splits = {"train": (0, trajectories)}
    spec = one_field(512, 512, num_frames=frames, num_trajectories=trajectories, splits=splits)
    assert spec.shard_trajectories == expected
    assert spec.num_shards == -(-trajectories // expected)


def test_the_last_shard_may_hold_fewer() -> None:
    spec = spec_of(trajectories_per_shard=2)
    assert [spec.trajectories_of_shard(n) for n in range(3)] == [range(2), range(2, 4), range(4, 5)]
    assert spec.is_last_shard_partial
    assert not spec_of(trajectories_per_shard=5).is_last_shard_partial
    for shard in (-1, 3):
        with pytest.raises(ValueError, match=f"shard {shard} does not exist: the shards are 0..2"):
            spec.trajectories_of_shard(shard)


def test_positions_of_cells_and_of_nodes() -> None:
    cells = spec_of().coordinates()
    assert list(cells) == ["time", "y", "x"]
    assert cells["time"].tolist() == [0.0, 0.5, 1.0]
    np.testing.assert_allclose(cells["x"], [0.1 + 0.2 * n for n in range(10)], rtol=1e-14)
    nodes = spec_of(grid_location="node").coordinates()
    np.testing.assert_allclose(nodes["y"], [n / 7 for n in range(7)], rtol=1e-14)


def test_a_spec_survives_json_and_older_specs_are_read() -> None:
    full = spec_of(
        physics={"equation": "burgers"},
        given_fields=("p",),
        masks={"u": "p"},
        chunk_shape=(3, 4),
        parameter_names=("nu",),
        trajectories_per_shard=2,
    )
    told = json.loads(json.dumps(full.to_json()))
    assert DatasetSpec.from_json(told) == full
    assert DatasetSpec.from_json({**told, "of a later version": 1}) == full
    plain = json.loads(json.dumps(spec_of(trajectories_per_shard=2).to_json()))
    assert not {"physics", "given_fields", "masks", "chunk_shape"} & set(plain)
    again = DatasetSpec.from_json(plain)
    assert (again.chunk_shape, again.chunks_per_frame, again.to_json()) == ((7, 10), 1, plain)
    assert full.mask_channels == {0: 1}


def test_differences_are_told_and_given_fields_only_where_both_name_some() -> None:
    spec = spec_of()
    assert spec.differences(spec_of(given_fields=("p",))) == []
    assert spec_of(given_fields=("u",)).differences(spec_of(given_fields=("p",))) == [
        "given_fields: ['u'] here, ['p'] there"
    ]
    assert spec.differences(spec_of(num_frames=4, physics={"equation": "e"})) == [
        "num_frames: 3 here, 4 there",
        "physics: None here, {'equation': 'e'} there",
    ]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"fields": ()}, "fields must be non-empty and distinct, got []"),
        ({"fields": (Field("u", "u"), Field("u", "v"))}, "distinct, got ['u', 'u']"),
        ({"num_trajectories": 0}, "num_trajectories must be at least 1, got 0"),
        ({"num_frames": 0}, "num_frames must be at least 1, got 0"),
        ({"grid_shape": (7, 0)}, "grid_shape must be 1 to 3 positive sizes, got (7, 0)"),
        ({"domain_extent": (1.0,)}, "must have one length per axis of grid_shape (7, 10)"),
        ({"domain_extent": (1.0, 0.0)}, "domain_extent must be positive lengths"),
        ({"domain_extent": (1.0, float("inf"))}, "domain_extent must be positive lengths"),
        ({"parameter_names": ("a", "a")}, "parameter_names must be distinct, got ['a', 'a']"),
        ({"parameter_names": ("",)}, "parameter name '' must be non-empty"),
        ({"parameter_names": ("a/b",)}, "parameter name 'a/b' must be"),
        ({"parameter_names": (".a",)}, "parameter name '.a' must be"),
        ({"frame_interval": 0.0}, "frame_interval must be positive, got 0.0"),
        ({"frame_interval": float("nan")}, "frame_interval must be positive, got nan"),
        ({"dtype": "float64"}, "got 'float64'"),
        ({"compression": "gzip"}, "got 'gzip'"),
        ({"grid_location": "face"}, "grid_location must be 'cell' or 'node', got 'face'"),
        ({"trajectories_per_shard": 0}, "trajectories_per_shard must be at least 1, got 0"),
        ({"chunk_shape": (3,)}, "chunk_shape (3,) must have one positive size per axis"),
        ({"chunk_shape": (3, 0)}, "chunk_shape (3, 0) must have one positive size per axis"),
        ({"physics": {"name": "burgers"}}, "physics must name its equation"),
        ({"constant_fields": {"u": 1.0}}, "['u'] are both stored and constant"),
        ({"given_fields": ("x",)}, "given_fields must be some of the stored ['u', 'p']"),
        ({"given_fields": ("u", "p")}, "given_fields must be some of the stored"),
        ({"masks": {"u": "x"}}, "masks must name stored fields of ['u', 'p']"),
        ({"masks": {"x": "p"}}, "masks must name stored fields of"),
        ({"masks": {"u": "p", "p": "u"}}, "no mask may itself be masked"),
    ],
)
def test_every_rule(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match="dataset spec 'spec':") as caught:
        spec_of(**changes)
    assert told in str(caught.value)


def test_the_least_that_every_rule_allows() -> None:
    one_field(1, num_trajectories=1, num_frames=1, splits={"train": (0, 1)}, chunk_shape=(1,))
    spec_of(trajectories_per_shard=1, parameter_names=("a", "b"), grid_location="node")
