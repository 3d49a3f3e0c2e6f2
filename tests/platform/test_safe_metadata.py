"""Which names the record of a checkpoint may load, and which claims about its files are believed."""

from __future__ import annotations

import dataclasses
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint import FileSystemWriter
from torch.distributed.checkpoint.state_dict_saver import save as save_tensors

from pelagos.platform.checkpoint.safe_metadata import METADATA_FILE, SafeReader, read_metadata_file

OF_RECORDS = "torch.distributed.checkpoint.metadata"


def naming(tmp_path: Path, module: str, name: str) -> Path:
    """A pickle of one name (protocol 0: c, module, name, stop), which loading would look up."""
    path = tmp_path / METADATA_FILE
    path.write_bytes(f"c{module}\n{name}\n.".encode())
    return path


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("torch", "Size"),
        ("torch", "float32"),
        ("torch", "bfloat16"),
        (OF_RECORDS, "MetadataIndex"),
        ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
        ("torch.serialization", "_get_layout"),
        ("pathlib", "PosixPath"),
        ("collections", "OrderedDict"),
    ],
)
def test_names_of_records_are_looked_up(tmp_path: Path, module: str, name: str) -> None:
    path = naming(tmp_path, module, name)
    with pytest.raises(ValueError, match=r"is not checkpoint metadata: it holds "):
        read_metadata_file(path)


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("os", "system"),
        ("builtins", "eval"),
        ("torch", "load"),
        ("torch", "Tensor"),
        ("torch", "hub"),
        ("torch", "no such name"),
        ("planted", "Size"),  # as torch has it, of a module that importing would run
        ("planted", "float32"),
        ("torch.serialization", "load"),
        (OF_RECORDS, "os"),
        ("collections", "Counter"),
        ("torch.distributed.checkpoint.filesystem", "FileSystemWriter"),
    ],
)
def test_every_other_name_is_refused_and_nothing_is_imported(
    tmp_path: Path, module: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "path"
    place.mkdir()
    (place / "planted.py").write_text("raise SystemExit('was imported')\n")
    monkeypatch.syspath_prepend(place)
    path = naming(tmp_path, module, name)
    with pytest.raises(
        ValueError, match=f"asks to load {module}.{name}. .* could run code; nothing was run"
    ):
        read_metadata_file(path)


@pytest.mark.parametrize("content", [b"", b"\x80", b"garbage", b"\x80\x05N", b"(lp0\nK\x01"])
def test_what_pytorch_did_not_write_is_damaged(tmp_path: Path, content: bytes) -> None:
    (tmp_path / METADATA_FILE).write_bytes(content)
    with pytest.raises(ValueError, match=f"{METADATA_FILE} is damaged: "):
        read_metadata_file(tmp_path / METADATA_FILE)


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    tensors = {"a": torch.arange(6.0), "b": torch.ones(4, dtype=torch.bfloat16)}
    save_tensors(tensors, storage_writer=FileSystemWriter(tmp_path / "s"), no_dist=True)
    return tmp_path / "s"


def changed(directory: Path, change: Callable[[Any], None]) -> Path:
    path = directory / METADATA_FILE
    metadata = pickle.loads(path.read_bytes())
    change(metadata)
    path.write_bytes(pickle.dumps(metadata))
    return path


def with_info(**values: Any) -> Callable[[Any], None]:
    """Other facts about the piece of `a`; a function is given the fact before."""

    def change(metadata: Any) -> None:
        for index, info in metadata.storage_data.items():
            if index.fqn == "a":
                found = {k: v(getattr(info, k)) if callable(v) else v for k, v in values.items()}
                metadata.storage_data[index] = dataclasses.replace(info, **found)

    return change


def test_what_was_written_is_believed(stored: Path) -> None:
    metadata = read_metadata_file(stored / METADATA_FILE)
    assert set(metadata.state_dict_metadata) == {"a", "b"}
    reader = SafeReader(stored)
    assert reader.read_metadata().storage_meta.load_id == reader.load_id
    changed(stored, lambda m: setattr(m, "storage_meta", None))
    reader = SafeReader(stored)
    assert reader.read_metadata().storage_meta.load_id == reader.load_id


def test_a_piece_lies_inside_its_file(stored: Path) -> None:
    (file,) = stored.glob("*.distcp")
    size = file.stat().st_size
    to_the_end = with_info(length=lambda _: size - 100, offset=100)
    read_metadata_file(changed(stored, to_the_end))
    for offset, length in ((100, size - 99), (-1, 50), (0, -1), (size + 1, 0)):
        path = changed(stored, with_info(offset=offset, length=length))
        told = (
            f"a should be at bytes {offset} to {offset + length} of {file.name}, which has {size}"
        )
        with pytest.raises(ValueError, match=told):
            read_metadata_file(path)
    read_metadata_file(changed(stored, with_info(offset=0, length=size)))
    file.rename(stored / "elsewhere")  # is brought when it is needed
    read_metadata_file(changed(stored, with_info(offset=7, length=10 * size)))


def test_a_tensor_is_no_larger_than_its_pieces(stored: Path) -> None:
    def grown(count: int) -> Callable[[Any], None]:
        return lambda m: setattr(m.state_dict_metadata["a"], "size", torch.Size([count]))

    held = pickle.loads((stored / METADATA_FILE).read_bytes())
    (length,) = [info.length for index, info in held.storage_data.items() if index.fqn == "a"]
    read_metadata_file(changed(stored, grown(length // 4)))  # 4 bytes each
    more = length // 4 + 1
    told = f"a should have {4 * more:,} bytes, but its files hold {length:,}$"
    with pytest.raises(ValueError, match=told):
        read_metadata_file(changed(stored, grown(more)))


@pytest.mark.parametrize("name", ["/etc/passwd", "../other", "folder/file", 3])
def test_a_piece_is_in_the_directory(stored: Path, name: Any) -> None:
    path = changed(stored, with_info(relative_path=name))
    with pytest.raises(ValueError, match=f"names the file {name!r}, which is not in its directory"):
        read_metadata_file(path)


def test_compressed_pieces_are_refused(stored: Path) -> None:
    path = changed(stored, with_info(transform_descriptors=["zstd"]))
    with pytest.raises(ValueError, match="the pieces in .* are compressed; Pelagos does not read"):
        read_metadata_file(path)
