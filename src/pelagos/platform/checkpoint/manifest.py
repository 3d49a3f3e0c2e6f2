"""The manifest: the files of a checkpoint with sizes and checksums, written last.

A directory `step-00000500` holds `torch.distributed.checkpoint` files, `trainer.json` and
`manifest.json`. Without a manifest there is no checkpoint.
"""

import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import google_crc32c
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from pelagos.infra.json_text import first_problem
from pelagos.infra.permanent_error import PermanentError
from pelagos.infra.storage.files import open_regular

FORMAT = "pelagos-checkpoint"
FORMAT_VERSION = 2  # 1 had no checksums of tensors
MANIFEST = "manifest.json"
TRAINER_STATE = "trainer.json"
READ_BYTES = 16 * 2**20


# One component of a path: a file of a checkpoint is in its directory.
FileName = Annotated[str, Field(pattern=r"^\.?[A-Za-z0-9_-][A-Za-z0-9._-]{0,200}$")]
Count = Annotated[int, Field(ge=0, lt=2**62)]
Checksum = Annotated[str, Field(pattern=r"^[0-9a-f]{8}$")]


class _Part(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")


class _File(_Part):
    name: FileName
    num_bytes: Count
    crc32c: Checksum


class _Tensor(_Part):
    shape: list[Count]
    dtype: Annotated[str, Field(pattern=r"^[a-z0-9_]{1,40}$")]
    pieces: list[tuple[list[Count], list[Count], Checksum]]


class _Head(BaseModel):
    model_config = ConfigDict(strict=True)

    format: str
    version: Annotated[int, Field(ge=1, le=10**6)]
    step: Count


class _Stored(_Head):
    """The permitted contents of a manifest of this version, whatever its origin."""

    files: list[_File]
    tensors: dict[str, _Tensor] = {}


class CheckpointError(PermanentError, ValueError):
    """A checkpoint that cannot be written, or must not be loaded; gives the reason and the remedy.

    Attributes:
        damage: what of it is not as it was written; empty: it is whole, or nobody can tell.
        is_unwritten: a save failed, which every rank knows.
        needs_room: it could not be written because its disk or bucket is full.
    """

    damage = ""
    is_unwritten = False
    needs_room = False


class Unreadable(str):
    """The sentence for a file that the disk did not give: no proof that it changed."""


def damaged_error(message: str, damage: str) -> CheckpointError:
    """Return the error of a checkpoint whose bytes are not those that were written."""
    error = CheckpointError(message)
    error.damage = damage
    return error


@dataclass(frozen=True)
class FileRecord:
    """One file of a checkpoint."""

    name: str
    num_bytes: int
    crc32c: str


@dataclass(frozen=True)
class PieceRecord:
    """A box of one tensor, as one rank wrote it."""

    name: str
    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    crc32c: str
    """Of the elements' bytes, little-endian, row-major, as they were in memory."""


@dataclass(frozen=True)
class TensorRecord:
    """One tensor of a checkpoint: its whole shape, and the pieces it was written in."""

    shape: tuple[int, ...]
    dtype: str
    pieces: tuple[PieceRecord, ...]


@dataclass(frozen=True)
class Manifest:
    """The contents of a checkpoint. Version 1 lists no tensors."""

    step: int
    files: tuple[FileRecord, ...]
    tensors: dict[str, TensorRecord]
    version: int = FORMAT_VERSION


@dataclass(frozen=True)
class CheckpointInfo:
    """A complete checkpoint: its step and its place."""

    step: int
    uri: str


def directory_name(step: int) -> str:
    """Return the directory name of a step; it sorts by step."""
    return f"step-{step:08d}"


def step_of(name: str) -> int | None:
    """Return the step that a directory name encodes, or None."""
    prefix, _, digits = name.partition("-")
    return int(digits) if prefix == "step" and digits.isdigit() else None


def record_file(path: Path) -> FileRecord:
    """Return name, size and checksum of a file, read in pieces.

    Raises:
        OSError: it cannot be read, or is a pipe or a device, which would never end.
    """
    checksum = google_crc32c.Checksum()
    with os.fdopen(open_regular(path, follow_links=True), "rb") as file:
        while piece := file.read(READ_BYTES):
            checksum.update(piece)
    return FileRecord(path.name, path.stat().st_size, checksum.hexdigest().decode())


def tensor_crc32c(tensor: Tensor) -> str:
    """Return the checksum of a CPU tensor's elements."""
    flat = tensor.detach().contiguous().reshape(-1)
    if flat.stride(0) != 1:  # torch calls a single element contiguous, whatever its stride
        flat = flat.clone(memory_format=torch.contiguous_format)
    data = flat.view(torch.uint8).numpy()
    data.flags.writeable = False  # as the checksum requires
    checksum = google_crc32c.Checksum()
    for start in range(0, data.size, READ_BYTES):
        checksum.update(data[start : start + READ_BYTES])
    digest: str = checksum.hexdigest().decode()
    return digest


def manifest_text(manifest: Manifest) -> str:
    """Return the manifest of a checkpoint as JSON."""
    tensors = {
        name: {
            "shape": record.shape,
            "dtype": record.dtype,
            "pieces": [[p.offsets, p.sizes, p.crc32c] for p in record.pieces],
        }
        for name, record in sorted(manifest.tensors.items())
    }
    content = {
        "format": FORMAT,
        "version": manifest.version,
        "step": manifest.step,
        "files": [asdict(f) for f in sorted(manifest.files, key=lambda f: f.name)],
        "tensors": tensors,
    }
    return json.dumps(content, separators=(",", ":"))


def parse_manifest(text: str, uri: str) -> Manifest:
    """Return the content of a manifest.

    Raises:
        CheckpointError: it is not a manifest, or of a newer format than this version reads.
    """
    try:
        head = _Head.model_validate_json(text)
        if head.format != FORMAT:
            raise ValueError(f"format: got {head.format!r}, expected {FORMAT!r}")
        if head.version > FORMAT_VERSION:
            raise CheckpointError(
                f"{uri}: format version {head.version}; this Pelagos reads versions up to "
                f"{FORMAT_VERSION}. Upgrade Pelagos"
            )
        _Stored.model_validate_json(text)
        content = json.loads(text)
        files = tuple(FileRecord(**f) for f in content["files"])
        tensors = {n: _tensor_record(n, t) for n, t in content.get("tensors", {}).items()}
        return Manifest(head.step, files, tensors, head.version)
    except CheckpointError:
        raise
    except ValidationError as error:
        raise _no_manifest(uri, first_problem(error, "the file")) from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise _no_manifest(uri, str(error)) from error


def _no_manifest(uri: str, problem: str) -> CheckpointError:
    problem = f"not a checkpoint manifest ({problem})"
    return damaged_error(f"{uri}/{MANIFEST}: {problem}", f"{MANIFEST}: {problem}")


def _tensor_record(name: str, content: dict[str, Any]) -> TensorRecord:
    pieces = tuple(
        PieceRecord(name, tuple(offsets), tuple(sizes), crc)
        for offsets, sizes, crc in content["pieces"]
    )
    return TensorRecord(tuple(content["shape"]), content["dtype"], pieces)


def damaged_files(directory: Path, files: Iterable[FileRecord]) -> list[str]:
    """Re-read files; return a sentence for each that is missing, short or changed.

    One for a file that cannot be read is `Unreadable`.
    """
    damage: list[str] = []
    for expected in files:
        path = directory / expected.name
        if not path.exists():
            damage.append(f"{expected.name}: missing")
            continue
        try:
            actual = record_file(path)
        except OSError as error:
            damage.append(Unreadable(f"{expected.name}: {error.strerror}"))
            continue
        if actual.num_bytes != expected.num_bytes:
            damage.append(
                f"{expected.name}: got {actual.num_bytes} bytes, expected {expected.num_bytes}"
            )
        elif actual.crc32c != expected.crc32c:
            damage.append(
                f"{expected.name}: got crc32c {actual.crc32c}, expected {expected.crc32c}"
            )
    return damage
