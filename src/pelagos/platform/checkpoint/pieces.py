"""Writing and reading a rank's tensors through `torch.distributed.checkpoint`, with checksums."""

import io
import os
import pickle
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import MetadataIndex, TensorStorageMetadata
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner
from torch.distributed.checkpoint.state_dict_loader import load as load_tensors
from torch.distributed.checkpoint.state_dict_saver import save as save_tensors
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

from pelagos.infra.storage.files import open_regular
from pelagos.platform.checkpoint.manifest import (
    CheckpointError,
    Manifest,
    PieceRecord,
    TensorRecord,
    tensor_crc32c,
)
from pelagos.platform.checkpoint.safe_metadata import SafeReader
from pelagos.platform.tensor_layout import FlatShard, local_part, with_local_part, written_part


class HostCopy:
    """This rank's part of a training state in host memory; its buffers are used for every save."""

    def __init__(self) -> None:
        self._buffers: dict[str, Tensor] = {}

    def take(self, tensors: dict[str, Tensor], rank: int, world_size: int) -> dict[str, Tensor]:
        """Copy this rank's share; return it as `FlatShard`s. Waits for the device."""
        copy: dict[str, Tensor] = {}
        for name, tensor in tensors.items():
            part = written_part(tensor, rank, world_size)
            buffer = self._buffers.get(name)
            if buffer is None or buffer.shape != part.local.shape or buffer.dtype != part.dtype:
                buffer = torch.empty(
                    part.local.shape, dtype=part.dtype, pin_memory=part.local.is_cuda
                )
                self._buffers[name] = buffer
            buffer.copy_(part.local, non_blocking=True)
            copy[name] = with_local_part(part, buffer)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return copy


class RecordingWriter(FileSystemWriter):
    """Remembers where this rank's pieces went, so that they can be read again."""

    written: list[WriteResult]

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        future = super().write_data(plan, planner)
        self.written = future.value()
        return future


def write_pieces(
    tensors: dict[str, Tensor], directory: Path, group: dist.ProcessGroup | None
) -> list[WriteResult]:
    """Write `FlatShard`s, every rank its own files; return where each piece of this rank went."""
    writer = RecordingWriter(directory, single_file_per_rank=True, overwrite=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", category=UserWarning)  # "no_dist": one process is fine
        save_tensors(tensors, storage_writer=writer, process_group=group, no_dist=group is None)
    return writer.written


def piece_records(tensors: dict[str, Tensor]) -> list[PieceRecord]:
    """Checksum the pieces of this rank's `FlatShard`s, as they are in memory."""
    records = []
    for name, shard in tensors.items():
        assert isinstance(shard, FlatShard)
        for offsets, sizes in shard.boxes():
            records.append(PieceRecord(name, offsets, sizes, tensor_crc32c(shard.box(offsets))))
    return records


def damaged_pieces(
    directory: Path, written: Iterable[WriteResult], records: Iterable[PieceRecord]
) -> list[str]:
    """Read written pieces back; return a sentence for each that differs."""
    expected = {(r.name, r.offsets): r.crc32c for r in records}
    damage = []
    for result in written:
        offsets = tuple(result.index.offset or ())
        tensor = _read_piece(directory, result.storage_data)
        if tensor_crc32c(tensor) != expected.get((result.index.fqn, offsets)):
            damage.append(
                f"{result.index.fqn} at {list(offsets)}: the bytes differ from those in memory"
            )
    return damage


class StoredTensors:
    """The tensors of a checkpoint directory, read one by one; never the whole model."""

    def __init__(self, directory: Path, manifest: Manifest) -> None:
        self.directory = directory
        self.manifest = manifest
        self.reader = SafeReader(directory)
        self.metadata = self.reader.metadata
        self._pieces: dict[str, list[tuple[MetadataIndex, Any]]] = {}
        for index, info in self.metadata.storage_data.items():
            self._pieces.setdefault(index.fqn, []).append((index, info))
        self._layouts = {**_without_elements(manifest), **dict(self._entries())}

    def names(self) -> list[str]:
        """Return the names of all tensors, sorted."""
        return sorted(self.shapes())

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the whole shape of every tensor."""
        return {name: shape for name, (shape, _) in self._layouts.items()}

    def dtype(self, name: str) -> torch.dtype:
        """Return the type of a tensor's elements."""
        return self._layouts[name][1]

    def read(self, name: str) -> Tensor:
        """Return one tensor whole."""
        shape, dtype = self._layouts[name]
        tensor = torch.empty(shape, dtype=dtype)
        for index, info in self._pieces.get(name, ()):
            piece = _read_piece(self.directory, info)
            offsets = tuple(index.offset or ())
            box = tuple(slice(o, o + n) for o, n in zip(offsets, piece.shape, strict=True))
            tensor[box].copy_(piece)
        return tensor

    def damaged(self, name: str) -> list[str]:
        """Read the pieces of a tensor.

        Return a sentence for each whose bytes are not the ones that were in memory when it was
        saved. Version 1 has no such checksums: nothing to say then.
        """
        record = self.manifest.tensors.get(name)
        damage = []
        for piece in record.pieces if record else ():
            try:
                stored = _read_piece(self.directory, self._storage(name, piece.offsets))
            except (CheckpointError, OSError, KeyError, RuntimeError, EOFError) as error:
                damage.append(f"{name} at {list(piece.offsets)}: cannot read it ({error})")
                continue
            if tensor_crc32c(stored) != piece.crc32c:
                damage.append(
                    f"{name} at {list(piece.offsets)}: the bytes do not match crc32c {piece.crc32c}"
                )
        return damage

    def ranks(self) -> int:
        """Return how many ranks wrote files."""
        names = {info.relative_path.split("_")[2] for info in self.metadata.storage_data.values()}
        return len(names)

    def _entries(self) -> Iterator[tuple[str, tuple[tuple[int, ...], torch.dtype]]]:
        for name, entry in self.metadata.state_dict_metadata.items():
            if isinstance(entry, TensorStorageMetadata):
                yield name, (tuple(entry.size), entry.properties.dtype)

    def _storage(self, name: str, offsets: tuple[int, ...]) -> Any:
        for index, info in self._pieces.get(name, ()):
            if tuple(index.offset or ()) == offsets:
                return info
        raise KeyError(f"the checkpoint has no piece of {name} at {offsets}")


def read_pieces(
    tensors: dict[str, Tensor], reader: FileSystemReader, group: dist.ProcessGroup | None
) -> None:
    """Fill tensors of any layout from a checkpoint."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", category=UserWarning)  # "no_dist": one process is fine
        load_tensors(tensors, storage_reader=reader, process_group=group, no_dist=group is None)


def tensor_records(
    tensors: dict[str, Tensor], pieces: Iterable[PieceRecord]
) -> dict[str, TensorRecord]:
    """Put together the pieces that all ranks wrote; a tensor without elements has none."""
    by_name: dict[str, list[PieceRecord]] = {name: [] for name in tensors}
    for piece in pieces:
        by_name[piece.name].append(piece)
    return {
        name: TensorRecord(
            tuple(tensors[name].shape),
            str(local_part(tensors[name]).dtype).removeprefix("torch."),
            tuple(sorted(found, key=lambda p: p.offsets)),
        )
        for name, found in by_name.items()
    }


def _without_elements(manifest: Manifest) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """Shape and type of each tensor that has no elements.

    PyTorch's metadata names only tensors of which some rank wrote a piece; the manifest names all.
    """
    found = {}
    for name, record in manifest.tensors.items():
        dtype = getattr(torch, record.dtype, None)
        if 0 in record.shape and isinstance(dtype, torch.dtype):
            found[name] = (record.shape, dtype)
    return found


def _read_piece(directory: Path, info: Any) -> Tensor:
    with os.fdopen(open_regular(directory / info.relative_path, follow_links=True), "rb") as file:
        file.seek(info.offset)
        content = io.BytesIO(file.read(info.length))
    try:
        tensor: Tensor = torch.load(content, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{directory / info.relative_path}: bytes {info.offset} to {info.offset + info.length} "
            "are not a tensor. Loading them would run code, so nothing was run. Take another "
            "checkpoint"
        ) from error
    return tensor
