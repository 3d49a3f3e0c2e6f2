"""PyTorch's record of a checkpoint's tensors, read without running code that it may name.

The tensors themselves are read by PyTorch's restricted unpickler, but PyTorch unpickles `.metadata`
without restriction; here it may name only what that file consists of.
"""

import importlib
import io
import math
import pickle
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta, TensorStorageMetadata

from pelagos.infra.storage.files import CappedReader, open_regular

METADATA_FILE = ".metadata"
# Errors that the unpickler raises for bytes that PyTorch did not write.
_DAMAGE = (EOFError, AttributeError, TypeError, IndexError, KeyError, OverflowError, MemoryError)
# The plain records of PyTorch's own writer, and the functions that restore a layout and a path.
_ALLOWED = {
    "torch.distributed.checkpoint.metadata": {
        *("Metadata", "StorageMeta", "MetadataIndex", "TensorProperties", "_MEM_FORMAT_ENCODING"),
        *("TensorStorageMetadata", "BytesStorageMetadata", "ChunkStorageMetadata"),
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo", "StorageMeta"},
    "torch.serialization": {"_get_layout"},
    "pathlib": {"PosixPath", "PurePosixPath", "Path"},
    "collections": {"OrderedDict"},
}


class _Unpickler(pickle.Unpickler):
    """Resolves the allowed names only; a refused one is neither imported nor called."""

    def find_class(self, module: str, name: str) -> Any:
        if name in _ALLOWED.get(module, ()):
            return getattr(importlib.import_module(module), name)
        if module == "torch" and (name == "Size" or isinstance(_of_torch(name), torch.dtype)):
            return _of_torch(name)
        raise pickle.UnpicklingError(f"GLOBAL {module}.{name}")


def _of_torch(name: str) -> Any:
    return vars(torch).get(name)


class SafeReader(FileSystemReader):
    """PyTorch's reader, with the metadata read here. Raises `ValueError` as `read_metadata_file`."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.metadata = read_metadata_file(directory / METADATA_FILE)

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        if self.metadata.storage_meta is None:
            self.metadata.storage_meta = StorageMeta()
        self.metadata.storage_meta.load_id = self.load_id
        return self.metadata


def read_metadata_file(path: Path) -> Metadata:
    """Return the record of a checkpoint's contents.

    Raises:
        ValueError: it is damaged, or asks for more than records; nothing was run.
        OSError: it cannot be read, or is a pipe or a device.
    """
    try:
        with CappedReader(io.FileIO(open_regular(path, follow_links=True))) as file:
            metadata = _Unpickler(file).load()
    except pickle.UnpicklingError as error:
        message = str(error)
        if message.startswith("GLOBAL "):
            raise ValueError(
                f"{path} asks to load {message.removeprefix('GLOBAL ')}. A checkpoint's metadata "
                "does not need it, and it could run code; nothing was run"
            ) from error
        raise ValueError(f"{path} is damaged: {message}") from error
    except _DAMAGE as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    if not isinstance(metadata, Metadata):
        raise ValueError(f"{path} is not checkpoint metadata: it holds {type(metadata).__name__}")
    try:
        _require_plausible(metadata, path)
    except (AttributeError, TypeError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    return metadata


def _require_plausible(metadata: Metadata, path: Path) -> None:
    """Raise ValueError if a checkpoint names files outside its directory, or claims impossible tensors.

    Its files must be able to hold the tensors: memory is allocated by these claims.
    """
    held: dict[str, int] = {}
    sizes: dict[str, int | None] = {}
    for index, info in (metadata.storage_data or {}).items():
        name = info.relative_path
        if not isinstance(name, str) or Path(name).name != name:
            raise ValueError(f"{path} names the file {name!r}, which is not in its directory")
        if getattr(info, "transform_descriptors", None):
            raise ValueError(
                f"{path}: the pieces in {name} are compressed; Pelagos does not read those"
            )
        if name not in sizes:
            place = path.parent / name
            sizes[name] = place.stat().st_size if place.is_file() else None
        size = sizes[name]  # None: it is elsewhere, and brought when it is needed
        if (
            info.offset < 0
            or info.length < 0
            or (size is not None and info.offset + info.length > size)
        ):
            raise ValueError(
                f"{path}: {index.fqn} should be at bytes {info.offset} to "
                f"{info.offset + info.length} of {name}, which has {size}"
            )
        held[index.fqn] = held.get(index.fqn, 0) + info.length
    for name, entry in metadata.state_dict_metadata.items():
        if isinstance(entry, TensorStorageMetadata):
            claimed = math.prod(entry.size) * entry.properties.dtype.itemsize
            if claimed > held.get(name, 0):
                raise ValueError(
                    f"{path}: {name} should have {claimed:,} bytes, but its files hold "
                    f"{held.get(name, 0):,}"
                )
