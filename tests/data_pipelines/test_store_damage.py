"""Damage is never silent: any changed bit, cut or lost file is an error that names its place."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from pelagos.data_pipelines.store import DatasetError, open_dataset

SHARD = "data/c/1/0/0/0/0"


def flip(path: Path, position: int, bit: int = 0) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1 << bit
    path.write_bytes(content)


@pytest.mark.parametrize("compression", ["none", "lz4", "zstd"])
def test_a_flipped_bit_anywhere_is_found(make_dataset: Any, compression: str) -> None:
    """Every chunk of the shard, at its first, middle and last byte and inside its checksum."""
    dataset, data = make_dataset(compression=compression)
    path = Path(dataset.uri) / SHARD
    intact = path.read_bytes()
    index = dataset.shard_index(1)
    for row in range(3):
        for frame in range(5):
            offset, length = map(int, index[row, frame])
            for position in (
                offset,
                offset + length // 2,
                offset + length - 5,
                offset + length - 1,
            ):
                flip(path, position, bit=(row + frame) % 8)
                damaged = open_dataset(dataset.uri)
                with pytest.raises(DatasetError) as caught:
                    damaged.window(3 + row, 0, 5)
                message = str(caught.value)
                for part in (dataset.uri, SHARD, f"trajectory {3 + row}, frame {frame} "):
                    assert part in message
                others = [t for t in range(7) if t != 3 + row]
                np.testing.assert_array_equal(damaged.window(others[0], 0, 5), data[others[0]])
                path.write_bytes(intact)


def test_a_flipped_bit_in_the_index_is_found(make_dataset: Any) -> None:
    dataset, _ = make_dataset()
    path = Path(dataset.uri) / SHARD
    intact = path.read_bytes()
    for position in range(len(intact) - (3 * 5 * 16 + 4), len(intact)):
        flip(path, position, bit=position % 8)
        with pytest.raises(DatasetError, match=f"index of shard {SHARD} is damaged"):
            open_dataset(dataset.uri).window(3, 0, 1)
        path.write_bytes(intact)


def test_an_index_of_another_shard_is_found(make_dataset: Any) -> None:
    """Whole and valid, but not the one that was written there."""
    dataset, _ = make_dataset(compression="lz4")
    other, _ = make_dataset(seed=3, compression="lz4")
    size = (Path(dataset.uri) / SHARD).stat().st_size
    content = (Path(other.uri) / SHARD).read_bytes()
    padded = content[:-244].ljust(size - 244, b"\0")[: size - 244] + content[-244:]
    (Path(dataset.uri) / SHARD).write_bytes(padded)
    with pytest.raises(DatasetError, match="differs from the index that the manifest describes"):
        open_dataset(dataset.uri).window(3, 0, 1)


@pytest.mark.parametrize("change", ["cut", "longer", "missing", "empty"])
def test_a_shard_of_another_size_is_found_when_opening(make_dataset: Any, change: str) -> None:
    dataset, _ = make_dataset()
    path = Path(dataset.uri) / SHARD
    content = path.read_bytes()
    if change == "missing":
        path.unlink()
    else:
        path.write_bytes({"cut": content[:-1], "longer": content + b"\0", "empty": b""}[change])
    with pytest.raises(DatasetError, match="1 of 3 shards are missing or cut short") as caught:
        open_dataset(dataset.uri)
    assert SHARD in str(caught.value)


def test_a_shard_lost_or_cut_after_opening_is_found(make_dataset: Any) -> None:
    dataset, _ = make_dataset()
    path = Path(dataset.uri) / SHARD
    fresh = open_dataset(dataset.uri)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(DatasetError, match="cut short"):
        fresh.window(3, 0, 5)
    path.unlink()
    fresh.close()  # else the open file would still be read, whole
    with pytest.raises(DatasetError, match="is gone now"):
        fresh.window(3, 0, 5)
    with pytest.raises(DatasetError, match=f"shard {SHARD}.* is missing"):
        fresh.data[3]  # through zarr, where it would be fill values


def test_a_frame_that_was_never_written_is_an_error(make_dataset: Any) -> None:
    dataset, _ = make_dataset()
    with pytest.raises(DatasetError, match="never written"):
        dataset.plan(2, 1, [0])  # the last shard holds one trajectory of three


def test_a_damaged_manifest_is_refused(make_dataset: Any) -> None:
    dataset, _ = make_dataset()
    path = Path(dataset.uri) / "manifest.json"
    intact = path.read_bytes()
    path.write_bytes(intact[: len(intact) // 2])
    with pytest.raises(DatasetError, match=r"manifest\.json is damaged"):
        open_dataset(dataset.uri)
    path.write_bytes(
        intact.replace(b'"mean": 3', b'"mean": 4', 1).replace(b'"mean": 2', b'"mean": 1')
    )
    assert path.read_bytes() != intact
    with pytest.raises(DatasetError, match="changed after it was written"):
        open_dataset(dataset.uri)
    path.write_bytes(intact.replace(b'"format_version": 1', b'"format_version": 3'))
    with pytest.raises(DatasetError, match="reads versions up to 2"):
        open_dataset(dataset.uri)


def test_damaged_notes_of_an_unfinished_dataset_are_named(make_dataset: Any) -> None:
    dataset, _ = make_dataset()
    (Path(dataset.uri) / "manifest.json").unlink()
    for content in ("{", "[]", "{}"):
        (Path(dataset.uri) / ".pelagos/spec.json").write_text(content)
        with pytest.raises(DatasetError, match=r"spec\.json is damaged"):
            open_dataset(dataset.uri)


def test_damaged_parameters_are_refused(make_dataset: Any) -> None:
    dataset, _ = make_dataset()
    flip(Path(dataset.uri) / "parameters/viscosity/c/0", 3)
    with pytest.raises(DatasetError, match="parameters/viscosity/c/0 is damaged"):
        _ = open_dataset(dataset.uri).parameters


def test_what_is_not_a_dataset_says_what_it_is(tmp_path: Path, make_dataset: Any) -> None:
    with pytest.raises(DatasetError, match="no dataset at"):
        open_dataset(str(tmp_path / "nothing.zarr"))
    dataset, _ = make_dataset()
    plain = tmp_path / "plain.zarr"
    shutil.copytree(dataset.uri, plain)
    (plain / "manifest.json").unlink()
    shutil.rmtree(plain / ".pelagos")
    with pytest.raises(DatasetError, match="a Zarr group but not a Pelagos dataset"):
        open_dataset(str(plain))


def test_foreign_readers_see_nan_and_not_zeros_for_a_lost_shard(make_dataset: Any) -> None:
    dataset, _ = make_dataset()
    (Path(dataset.uri) / SHARD).unlink()
    found = zarr.open_group(dataset.uri, mode="r")["data"]
    assert np.isnan(found[3]).all()
