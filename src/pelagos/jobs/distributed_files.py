"""Reading `torch.distributed.checkpoint` directories of others, without running their code.

The tensors in them are read by PyTorch's restricted unpickler, but PyTorch unpickles `.metadata`
without restriction; here it may name only what that file consists of.
"""

import importlib
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import (
    Metadata,
    StorageMeta,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.state_dict_loader import load as load_tensors

METADATA_FILE = ".metadata"
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


class _Reader(FileSystemReader):
    """PyTorch's reader with the metadata already read."""

    def __init__(self, directory: Path, metadata: Metadata) -> None:
        super().__init__(directory)
        self._metadata = metadata

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        if self._metadata.storage_meta is None:
            self._metadata.storage_meta = StorageMeta()
        self._metadata.storage_meta.load_id = self.load_id
        return self._metadata


def read_distributed(directory: Path, prefix_of: Callable[[list[str]], str]) -> dict[str, Tensor]:
    """Return the tensors under a prefix, without it, read whole in this one process.

    `prefix_of` chooses the prefix from the names of all tensors.

    Raises:
        ValueError: `.metadata` is damaged or asks for more than records, or a file is missing.
    """
    metadata = _read_metadata(directory / METADATA_FILE)
    stored = {
        name: entry
        for name, entry in metadata.state_dict_metadata.items()
        if isinstance(entry, TensorStorageMetadata)
    }
    start = prefix_of(list(stored))
    tensors = {
        name: torch.empty(entry.size, dtype=entry.properties.dtype)
        for name, entry in stored.items()
        if name.startswith(start)
    }
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", category=UserWarning)  # one process is what we want
            load_tensors(dict(tensors), storage_reader=_Reader(directory, metadata), no_dist=True)
    except CheckpointException as error:
        cause = next(iter(error.failures.values()))[0]
        raise ValueError(f"{directory} is not complete: {cause}") from error
    return {name.removeprefix(start): tensor for name, tensor in tensors.items()}


def _read_metadata(path: Path) -> Metadata:
    try:
        with path.open("rb") as file:
            metadata = _Unpickler(file).load()
    except pickle.UnpicklingError as error:
        message = str(error)
        if message.startswith("GLOBAL "):
            raise ValueError(
                f"{path} asks to load {message.removeprefix('GLOBAL ')}, which a checkpoint's "
                f"metadata does not need and which could run code; nothing was run"
            ) from error
        raise ValueError(f"{path} is damaged: {message}") from error
    except (EOFError, AttributeError, TypeError, IndexError, KeyError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    if not isinstance(metadata, Metadata):
        raise ValueError(f"{path} is no checkpoint metadata: it holds {type(metadata).__name__}")
    return metadata
