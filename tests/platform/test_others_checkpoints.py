"""A checkpoint that somebody else wrote names files of its own directory, and claims what it holds."""

import dataclasses
import json
import math
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch.distributed.checkpoint import FileSystemWriter
from torch.distributed.checkpoint.state_dict_saver import save as save_tensors

from pelagos.infra.storage.remote import RemoteStore
from pelagos.jobs.weights.distributed_files import read_distributed
from pelagos.models.pretrained import INDEX_FILE, read_weights
from pelagos.platform.checkpoint.manifest import (
    FORMAT,
    MANIFEST,
    CheckpointError,
    Manifest,
    directory_name,
    manifest_text,
    parse_manifest,
    record_file,
)
from pelagos.platform.checkpoint.places import RemotePlace
from pelagos.platform.checkpoint.safe_metadata import METADATA_FILE, read_metadata_file


@pytest.mark.parametrize("kind", ["absolute", "parent"])
def test_fetching_a_checkpoint_writes_into_its_copy_alone(tmp_path: Path, kind: str) -> None:
    """The names of a manifest's files became paths of this machine."""
    place = RemotePlace(f"memory://{tmp_path.name}-{kind}", {})
    target = tmp_path / "target"
    name = {"absolute": str(target), "parent": "../target"}[kind]
    file = {"name": name, "num_bytes": 7, "crc32c": "00000000"}
    manifest = {"format": FORMAT, "version": 2, "step": 3, "files": [file], "tensors": {}}
    store: RemoteStore = place.store
    store.write(f"{directory_name(3)}/{MANIFEST}", json.dumps(manifest).encode())
    store.write(f"{directory_name(3)}/{name.lstrip('/')}", b"planted")
    with pytest.raises(CheckpointError, match=r"files\.0\.name"):
        place.fetch(3)
    assert not target.exists()


ODD = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=9),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)


@settings(max_examples=200, deadline=None)
@given(
    changes=st.dictionaries(
        st.sampled_from(["format", "version", "step", "files", "tensors"]), ODD, max_size=2
    )
)
def test_any_manifest_is_read_or_refused(changes: dict[str, Any]) -> None:
    content = {"format": FORMAT, "version": 2, "step": 3, "files": [], "tensors": {}, **changes}
    try:
        found = parse_manifest(json.dumps(content), "here")
    except CheckpointError:
        return
    assert all(Path(file.name).name == file.name for file in found.files)


def test_a_manifest_of_this_version_is_read_as_it_was_written(tmp_path: Path) -> None:
    (tmp_path / ".metadata").write_bytes(b"x")
    (tmp_path / "__0_0.distcp").write_bytes(b"yy")
    files = tuple(record_file(p) for p in sorted(tmp_path.iterdir()))
    manifest = Manifest(5, files, {})
    assert parse_manifest(manifest_text(manifest), "here") == manifest
    with pytest.raises(CheckpointError, match="not a checkpoint manifest"):
        parse_manifest("[" * 100_000, "here")


@pytest.fixture
def stored(tmp_path: Path) -> Callable[[Callable[[Any], None]], Path]:
    """A directory of torch.distributed.checkpoint whose metadata somebody changed."""

    def make(change: Callable[[Any], None]) -> Path:
        directory = tmp_path / "stored"
        tensors = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(4, dtype=torch.bfloat16)}
        save_tensors(tensors, storage_writer=FileSystemWriter(directory), no_dist=True)
        metadata = pickle.loads((directory / METADATA_FILE).read_bytes())
        change(metadata)
        (directory / METADATA_FILE).write_bytes(pickle.dumps(metadata))
        return directory

    return make


def elsewhere(path: str) -> Callable[[Any], None]:
    def change(metadata: Any) -> None:
        for index, info in metadata.storage_data.items():
            metadata.storage_data[index] = dataclasses.replace(info, relative_path=path)

    return change


def larger(metadata: Any) -> None:
    """A terabyte, by a header of a kilobyte."""
    metadata.state_dict_metadata["a"].size = torch.Size([2**20, 2**18])


def longer(metadata: Any) -> None:
    larger(metadata)
    for index, info in metadata.storage_data.items():
        metadata.storage_data[index] = dataclasses.replace(info, length=2**42)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (elsewhere("/etc/passwd"), "not in its directory"),
        (elsewhere("../secret"), "not in its directory"),
        (larger, "a should have 1,099,511,627,776 bytes"),
        (longer, "should be at bytes"),
    ],
)
def test_metadata_names_own_files_and_what_they_hold(
    stored: Callable[[Callable[[Any], None]], Path], change: Callable[[Any], None], told: str
) -> None:
    directory = stored(change)
    with pytest.raises(ValueError, match=told):
        read_metadata_file(directory / METADATA_FILE)
    with pytest.raises(ValueError, match=told):
        read_distributed(directory, lambda names: "")


def test_metadata_as_pytorch_writes_it_is_read(
    stored: Callable[[Callable[[Any], None]], Path],
) -> None:
    found = read_distributed(stored(lambda metadata: None), lambda names: "")
    torch.testing.assert_close(found["a"], torch.arange(6.0).reshape(2, 3))
    assert math.prod(found["b"].shape) == 4


@pytest.mark.parametrize("name", ["../other/model.safetensors", "{absolute}"])
def test_an_index_of_weights_names_files_beside_it(tmp_path: Path, name: str) -> None:
    other = tmp_path / "other"
    other.mkdir()
    save_file({"secret": torch.ones(2)}, other / "model.safetensors")
    here = tmp_path / "here"
    here.mkdir()
    name = name.format(absolute=other / "model.safetensors")
    (here / INDEX_FILE).write_text(json.dumps({"weight_map": {"secret": name}}))
    with pytest.raises(ValueError, match="lists files outside its directory"):
        read_weights(here)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(content=ODD)
def test_any_index_of_weights_is_read_or_refused(tmp_path: Path, content: Any) -> None:
    (tmp_path / INDEX_FILE).write_text(json.dumps({"weight_map": content}))
    with pytest.raises(ValueError, match="."):
        read_weights(tmp_path)
