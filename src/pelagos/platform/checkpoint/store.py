"""Saving and loading training state through `torch.distributed.checkpoint`, by every rank together.

Order of a save: every rank writes its tensor files (flushed) and checksums them; rank 0 gathers
the list, writes the trainer's JSON, then the manifest; a rename (or the manifest object) makes the
checkpoint appear. A crash before that leaves only an unfinished directory that nothing lists.
"""

import contextlib
import json
import shutil
import time
import warnings
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load as load_tensors
from torch.distributed.checkpoint.state_dict_saver import save as save_tensors

from pelagos.infra.files import replace_durably
from pelagos.infra.object_store import is_remote
from pelagos.platform.checkpoint.manifest import (
    MANIFEST,
    TRAINER_STATE,
    CheckpointError,
    CheckpointInfo,
    FileRecord,
    manifest_text,
    parse_manifest,
    record_file,
    verify_files,
)
from pelagos.platform.checkpoint.places import LocalPlace, Place, RemotePlace

SHOWN_DIFFERENCES = 10


@dataclass(frozen=True)
class SaveReport:
    """What a save took."""

    step: int
    num_bytes: int
    seconds: float


class CheckpointStore:
    """The checkpoints of one run, in a local directory or under an object-store prefix."""

    def __init__(self, uri: str, options: dict[str, Any] | None = None) -> None:
        self.uri = uri
        self.place: Place = RemotePlace(uri, options or {}) if is_remote(uri) else LocalPlace(uri)

    def complete(self) -> list[CheckpointInfo]:
        """Return the complete checkpoints, oldest first."""
        return self.place.complete()

    def latest_step(self) -> int | None:
        """Return the step of the newest complete checkpoint, or None."""
        complete = self.complete()
        return complete[-1].step if complete else None

    def save(
        self, step: int, tensors: dict[str, Tensor], trainer_state: dict[str, Any]
    ) -> SaveReport:
        """Write a checkpoint; every rank calls this with its part of the same state.

        Raises:
            CheckpointError: it could not be written; earlier checkpoints are untouched.
        """
        start = time.monotonic()
        rank, _ = _rank_and_world()
        with contextlib.suppress(OSError):
            if rank == 0 and isinstance(self.place, LocalPlace):
                self.place.discard(step, self.place.staging(step))
        _barrier()
        try:
            staging = self.place.staging(step)
            _write_tensors(tensors, staging)
            mine = self._own_files(staging, rank, trainer_state)
            self.place.upload(step, staging, [f.name for f in mine])
            failure = None
        except (Exception, CheckpointException) as error:  # the latter is a BaseException
            mine, failure = [], f"rank {rank}: {_root_cause(error)}"
        gathered = _gather((mine, failure))
        failures = [f for _, f in gathered if f]
        files = [f for part, _ in gathered for f in part]
        if not failures and rank == 0:
            try:
                self.place.commit(step, staging, manifest_text(step, files))
            except Exception as error:
                failures = [f"rank 0: {_root_cause(error)}"]
        failures = _from_rank_0(failures)
        if failures:
            with contextlib.suppress(Exception):
                self.place.discard(step, staging)
            raise CheckpointError(
                f"{self.uri}: the checkpoint of step {step} could not be written "
                f"({'; '.join(failures)}). Earlier checkpoints are intact. Free space or permit "
                "writing there, then resume the run."
            )
        if rank != 0 and is_remote(self.uri):
            self.place.discard(step, staging)
        return SaveReport(step, sum(f.num_bytes for f in files), time.monotonic() - start)

    def _own_files(
        self, staging: Path, rank: int, trainer_state: dict[str, Any]
    ) -> list[FileRecord]:
        """Checksum the files that this rank wrote (rank 0: the metadata and the JSON too)."""
        paths = sorted(staging.glob(f"__{rank}_*"))
        if rank == 0:
            replace_durably(staging / TRAINER_STATE, json.dumps(trainer_state, indent=1).encode())
            paths += [staging / ".metadata", staging / TRAINER_STATE]
        return [record_file(p) for p in paths]

    def trainer_state(self, step: int) -> dict[str, Any]:
        """Return the JSON of a checkpoint without reading its tensors."""
        with self._directory(step, verify=False, names=(TRAINER_STATE,)) as directory:
            state: dict[str, Any] = json.loads((directory / TRAINER_STATE).read_text())
            return state

    def load(self, step: int, tensors: dict[str, Tensor]) -> dict[str, Any]:
        """Fill `tensors` in place from a checkpoint; return the trainer's JSON.

        Raises:
            CheckpointError: damaged files, or names and shapes of another architecture; nothing
                is loaded then.
        """
        with self._directory(step, verify=True) as directory:
            reader = FileSystemReader(directory)
            _check_shapes(reader, tensors, f"{self.uri} step {step}")
            _read_tensors(tensors, reader, no_dist=not _distributed())
            state: dict[str, Any] = json.loads((directory / TRAINER_STATE).read_text())
            return state

    def load_named(self, step: int, prefix: str) -> dict[str, Tensor]:
        """Return the tensors whose names start with `prefix`, in one process, verified."""
        with self._directory(step, verify=True) as directory:
            reader = FileSystemReader(directory)
            tensors = {
                name: torch.empty(entry.size, dtype=entry.properties.dtype)
                for name, entry in reader.read_metadata().state_dict_metadata.items()
                if name.startswith(prefix) and isinstance(entry, TensorStorageMetadata)
            }
            _read_tensors(tensors, reader, no_dist=True)
            return tensors

    def prune(self, keep_last: int, keep: set[int]) -> list[int]:
        """Delete all but the newest `keep_last` and the steps in `keep`; return what went."""
        steps = [info.step for info in self.complete()]
        doomed = [s for s in steps[: max(0, len(steps) - keep_last)] if s not in keep]
        for step in doomed:
            self.place.delete(step)
        return doomed

    @contextlib.contextmanager
    def _directory(
        self, step: int, verify: bool, names: Collection[str] | None = None
    ) -> Iterator[Path]:
        directory, temporary = self.place.fetch(step, names)
        try:
            uri = f"{self.uri} step {step}"
            manifest = directory / MANIFEST
            if not manifest.exists():
                steps = ", ".join(str(info.step) for info in self.complete()) or "none"
                raise CheckpointError(f"{uri}: no complete checkpoint; there are: {steps}")
            files = parse_manifest(manifest.read_text(), uri)
            if verify:
                verify_files(directory, files, uri)
            yield directory
        finally:
            if temporary:
                shutil.rmtree(directory, ignore_errors=True)


def _write_tensors(tensors: dict[str, Tensor], staging: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", category=UserWarning)  # "no_dist": one process is fine
        save_tensors(
            tensors,
            storage_writer=FileSystemWriter(staging, single_file_per_rank=True, overwrite=True),
            no_dist=not _distributed(),
        )


def _root_cause(error: BaseException) -> str:
    if isinstance(error, CheckpointException):
        inner = [failure[0] for failure in error.failures.values()]
        error = inner[0] if inner else error
    return f"{type(error).__name__}: {error}"


def _read_tensors(tensors: dict[str, Tensor], reader: FileSystemReader, no_dist: bool) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", category=UserWarning)  # "no_dist": one process is fine
        load_tensors(tensors, storage_reader=reader, no_dist=no_dist)


def _check_shapes(reader: FileSystemReader, tensors: dict[str, Tensor], uri: str) -> None:
    stored = {
        name: tuple(entry.size)
        for name, entry in reader.read_metadata().state_dict_metadata.items()
        if isinstance(entry, TensorStorageMetadata)
    }
    wanted = {name: tuple(t.shape) for name, t in tensors.items()}
    differences = [f"{n}: not in the checkpoint" for n in wanted if n not in stored]
    differences += [f"{n}: not in the model" for n in stored if n not in wanted]
    differences += [
        f"{n}: {list(stored[n])} in the checkpoint, {list(wanted[n])} in the model"
        for n in wanted
        if n in stored and stored[n] != wanted[n]
    ]
    if differences:
        shown = "; ".join(differences[:SHOWN_DIFFERENCES])
        raise CheckpointError(
            f"{uri} is of another architecture: {len(differences)} differences, e.g. {shown}. "
            "Use the model configuration that the checkpoint was made with."
        )


def _distributed() -> bool:
    return dist.is_available() and dist.is_initialized()


def _rank_and_world() -> tuple[int, int]:
    return (dist.get_rank(), dist.get_world_size()) if _distributed() else (0, 1)


def _barrier() -> None:
    if _distributed():
        dist.barrier()


def _gather(item: Any) -> list[Any]:
    if not _distributed():
        return [item]
    gathered: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, item)
    return gathered


def _from_rank_0(item: Any) -> Any:
    if not _distributed():
        return item
    box = [item]
    dist.broadcast_object_list(box, src=0)
    return box[0]
