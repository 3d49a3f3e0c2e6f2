"""A dataset opens if its manifest is its own and its shards have the sizes that it names."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from pelagos.data_pipelines.store import (
    DatasetError,
    DatasetSpec,
    Field,
    create_dataset,
    open_dataset,
)
from pelagos.data_pipelines.store.stored_documents import read_begun, read_head, read_manifest


def spec_of(trajectories: int, per_shard: int) -> DatasetSpec:
    return DatasetSpec(
        name="manifest",
        equation="none",
        fields=(Field("u", "velocity-x", "m/s"),),
        num_trajectories=trajectories,
        num_frames=2,
        grid_shape=(3, 4),
        frame_interval=0.5,
        domain_extent=(1.0, 2.0),
        boundary_conditions={"x": "periodic", "y": "periodic"},
        splits={"train": (0, trajectories)},
        trajectories_per_shard=per_shard,
    )


def written(root: Path, trajectories: int = 5, per_shard: int = 2, until: int = 99) -> list[Path]:
    """A dataset of that many trajectories; return the paths of its shards."""
    writer = create_dataset(str(root), spec_of(trajectories, per_shard))
    data = np.random.default_rng(0).normal(size=writer.spec.shape).astype(np.float32)
    for shard in writer.missing_shards()[:until]:
        writer.write_shard(shard, data[list(writer.shard_trajectories(shard))])
    if until == 99:
        writer.finalize()
    return [root / f"data/c/{n}/0/0/0/0" for n in range(writer.num_shards)]


def longer(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"more")


def shorter(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize(
    ("trajectories", "shard", "change", "opens"),
    [
        (5, 2, longer, True),  # the last one has room, and may be appended to at the moment
        (5, 2, shorter, False),
        (5, 2, Path.unlink, False),
        (5, 1, longer, False),
        (5, 0, shorter, False),
        (6, 2, longer, False),  # is full
    ],
)
def test_only_a_last_shard_with_room_may_be_longer(
    tmp_path: Path, trajectories: int, shard: int, change: Callable[[Path], None], opens: bool
) -> None:
    shards = written(tmp_path / "d.zarr", trajectories)
    size = shards[shard].stat().st_size
    change(shards[shard])
    if opens:
        assert open_dataset(str(tmp_path / "d.zarr")).num_trajectories == trajectories
        return
    key = f"data/c/{shard}/0/0/0/0"
    told = f"{key} is missing"
    if shards[shard].exists():
        told = f"{key} has {shards[shard].stat().st_size} bytes, but {size} were written"
    with pytest.raises(DatasetError, match=f"1 of 3 shards are missing or cut short:\n  {told}\n"):
        open_dataset(str(tmp_path / "d.zarr"))


@pytest.mark.parametrize("count", [5, 6])
def test_of_many_damaged_shards_five_are_named(tmp_path: Path, count: int) -> None:
    for path in written(tmp_path / "d.zarr", 8, 1)[:count]:
        path.unlink()
    with pytest.raises(DatasetError, match=f"damaged: {count} of 8 shards") as caught:
        open_dataset(str(tmp_path / "d.zarr"))
    assert str(caught.value).count(" is missing") == 5
    assert ("…" in str(caught.value)) == (count > 5)


def changed(root: Path, change: Callable[[dict[str, Any]], None]) -> str:
    path = root / "manifest.json"
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))
    return str(root)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda m: m["shards"].pop(), "shards: got 2, but the spec makes 3"),
        (
            lambda m: m["shards"][1].update(key="data/c/7"),
            r"shards\.1\.key: 'data/c/7', expected 'data/c/1/0/0/0/0' from the layout",
        ),
        (
            lambda m: m["shards"][2].update(size=67),
            r"shards\.2\.size: 67, but its index alone takes 68",
        ),
        (lambda m: m["shards"][2].update(size=68), "was changed after it was written"),
        (lambda m: m.update(fingerprint="0" * 64), "but it records 0000000000000000…"),
        (lambda m: m.update(format_version=3), "has version 3 of the format; .* up to 2. Upgrade"),
        (
            lambda m: m.update(format="another"),
            "has the format 'another', expected 'pelagos-dataset'",
        ),
        (lambda m: m.pop("shards"), "is damaged"),
        (lambda m: m["statistics"].pop("train"), "is damaged .*statistics"),
    ],
)
def test_a_manifest_is_its_datasets_own(tmp_path: Path, change: Any, told: str) -> None:
    """Of an index: two trajectories of two frames, 16 bytes each, and 4 of its checksum."""
    written(tmp_path / "d.zarr")
    with pytest.raises(DatasetError, match=told):
        open_dataset(changed(tmp_path / "d.zarr", change))


def test_a_place_without_a_manifest_says_what_it_is(tmp_path: Path) -> None:
    written(tmp_path / "begun", until=2)
    told = (
        "is unfinished: 2 of 3 shards are written, .* missing.* the 1 missing shards and finishes"
    )
    with pytest.raises(DatasetError, match=told):
        open_dataset(str(tmp_path / "begun"))
    (tmp_path / "begun/.pelagos/shards/0.json").unlink()  # of a shard that is written second
    with pytest.raises(DatasetError, match="1 of 3 shards are written, .* writes the 2 missing"):
        open_dataset(str(tmp_path / "begun"))
    (tmp_path / "begun/.pelagos/spec.json").write_text("{}")
    with pytest.raises(DatasetError, match=r"spec\.json is damaged .*: write the dataset anew"):
        open_dataset(str(tmp_path / "begun"))
    zarr.open_group(tmp_path / "group", mode="w")
    with pytest.raises(DatasetError, match=r"is a Zarr group but not a Pelagos dataset"):
        open_dataset(str(tmp_path / "group"))
    with pytest.raises(DatasetError, match="no dataset at .*nowhere: check the path"):
        open_dataset(str(tmp_path / "nowhere"))


def test_a_fingerprint_is_of_the_content_alone(tmp_path: Path) -> None:
    written(tmp_path / "one")
    written(tmp_path / "two")
    one, two = (open_dataset(str(tmp_path / name)) for name in ("one", "two"))
    assert one.fingerprint == two.fingerprint
    assert len(one.fingerprint) == 64
    written(tmp_path / "three", 6)
    assert open_dataset(str(tmp_path / "three")).fingerprint != one.fingerprint


# -- sizes that documents may claim --------------------------------------------------------------------


def begun(**changes: Any) -> bytes:
    spec = {**spec_of(5, 2).to_json(), **changes}
    return json.dumps({"spec": spec}).encode()


@pytest.mark.parametrize(
    ("key", "least", "most"),
    [
        ("num_trajectories", 1, 10**9),
        ("trajectories_per_shard", 1, 10**9),
        ("num_frames", 1, 10**7),
    ],
)
def test_counts_have_bounds(key: str, least: int, most: int) -> None:
    for value in (least, most):
        assert read_begun(begun(**{key: value}))["spec"][key] == value
    for value in (least - 1, most + 1, str(least), 1.5):
        with pytest.raises(ValueError, match=f"spec.{key}"):
            read_begun(begun(**{key: value}))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"grid_shape": []}, "spec.grid_shape"),
        ({"grid_shape": [1, 2, 3, 4]}, "spec.grid_shape"),
        ({"domain_extent": [1.0, 2.0, 3.0, 4.0]}, "spec.domain_extent"),
        ({"domain_extent": []}, "spec.domain_extent"),
        ({"fields": []}, "spec.fields"),
        ({"fields": [{"name": "u"}]}, "spec.fields.0.kind"),
        ({"splits": {"train": [0, 1, 2]}}, "spec.splits.train"),
        ({"boundary_conditions": {"x": 1}}, "spec.boundary_conditions.x"),
        ({"constant_fields": {"a": "1"}}, "spec.constant_fields.a"),
        ({"name": 3}, "spec.name"),
    ],
)
def test_a_document_of_another_kind_names_the_key(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        read_begun(begun(**changes))


def test_checksums_and_names_have_bounds(tmp_path: Path) -> None:
    written(tmp_path / "d.zarr")
    values = json.loads((tmp_path / "d.zarr/manifest.json").read_text())

    def with_record(key: str, value: int) -> bytes:
        return json.dumps({**values, "shards": [{**values["shards"][0], key: value}]}).encode()

    for key, most in (("crc32c", 2**32 - 1), ("index_crc32c", 2**32 - 1), ("size", 2**63 - 1)):
        for value in (0, most):
            assert read_manifest(with_record(key, value))["shards"][0][key] == value
        for value in (-1, most + 1):
            with pytest.raises(ValueError, match=f"shards.0.{key}"):
                read_manifest(with_record(key, value))
    for name in ("n" * 200, "n", "ν of water"):
        assert read_begun(begun(parameter_names=[name]))["spec"]["parameter_names"] == [name]
    for name in ("n" * 201, "", "a/b", "a\\b", "a\x00", "a\x1f", "a\x7f"):
        with pytest.raises(ValueError, match="spec.parameter_names.0"):
            read_begun(begun(parameter_names=[name]))
    for version, is_right in ((0, True), (10**6, True), (-1, False), (10**6 + 1, False)):
        content = json.dumps({"format": "any", "format_version": version}).encode()
        if is_right:
            assert read_head(content) == ("any", version)
        else:
            with pytest.raises(ValueError, match="format_version"):
                read_head(content)
    for text in ("f" * 64, "0123456789abcdef" * 4):
        assert read_manifest(json.dumps({**values, "fingerprint": text}).encode())
    for text in ("f" * 63, "f" * 65, "F" * 64, "g" * 64):
        with pytest.raises(ValueError, match="fingerprint"):
            read_manifest(json.dumps({**values, "fingerprint": text}).encode())
