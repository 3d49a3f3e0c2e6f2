"""Saving and loading training state, by all ranks together, while training continues.

Order of a save: every rank copies its part to host memory (training waits for that alone); in a
thread, it writes its tensor files, checksums them, and reads them back; rank 0 gathers the lists
and writes the trainer's JSON, then the manifest; a rename (or the manifest object) makes the
checkpoint appear. A crash before that leaves only an unfinished directory that nothing lists.
"""

import contextlib
import functools
import json
import re
import shutil
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException

from pelagos.infra.json_text import parse_json
from pelagos.infra.storage.files import read_regular, replace_durably
from pelagos.infra.storage.remote import is_remote
from pelagos.platform.checkpoint.group import CheckpointGroup
from pelagos.platform.checkpoint.manifest import (
    MANIFEST,
    TRAINER_STATE,
    CheckpointError,
    CheckpointInfo,
    FileRecord,
    Manifest,
    PieceRecord,
    Unreadable,
    damaged_error,
    damaged_files,
    manifest_text,
    parse_manifest,
    record_file,
)
from pelagos.platform.checkpoint.matching import match_tensors
from pelagos.platform.checkpoint.node_copy import SharedCopy, raise_together, shared_copy
from pelagos.platform.checkpoint.pieces import (
    HostCopy,
    StoredTensors,
    damaged_pieces,
    piece_records,
    read_pieces,
    tensor_records,
    write_pieces,
)
from pelagos.platform.checkpoint.places import LocalPlace, Place, RemotePlace
from pelagos.platform.checkpoint.trainer_state import checked_state

COLLECTIVE_TIMEOUT_SECONDS = 600
# What disks and object stores say when they are full.
NO_ROOM = re.compile(
    r"No space left|Disk quota exceeded|QuotaExceeded|StorageFull|Insufficient ?Storage"
)


@dataclass(frozen=True)
class SaveReport:
    """The cost of a save."""

    step: int
    num_bytes: int
    stall_seconds: float
    """What training waited: for an earlier save, and for the copy to host memory."""
    background_seconds: float
    """Writing, reading back, uploading and committing, beside the training."""

    @property
    def bytes_per_second(self) -> float:
        """Bandwidth of the background work, all ranks together."""
        return self.num_bytes / max(self.background_seconds, 1e-9)


@dataclass(frozen=True)
class LoadReport:
    """The result of a load: the trainer's JSON, and the known differences from the model."""

    trainer_state: dict[str, Any]
    kept_initial: tuple[str, ...] = ()
    """Tensors that the checkpoint lacks and that were allowed to be missing."""
    not_taken: tuple[str, ...] = ()
    """Optimizer state of parameters that are frozen now."""


OnComplete = Callable[[SaveReport], None]


@dataclass
class _Save:
    """A save on its way."""

    thread: threading.Thread | None = None
    error: Exception | None = None
    on_complete: OnComplete = field(default=lambda _: None)


class CheckpointStore:
    """The checkpoints of one run, in a local directory or under an object-store prefix."""

    def __init__(
        self,
        uri: str,
        options: dict[str, Any] | None = None,
        timeout_seconds: int = COLLECTIVE_TIMEOUT_SECONDS,
    ) -> None:
        self.uri = uri
        self.timeout_seconds = timeout_seconds
        self.place: Place = RemotePlace(uri, options or {}) if is_remote(uri) else LocalPlace(uri)
        self._copy = HostCopy()
        self._group: CheckpointGroup | None = None
        self._save: _Save | None = None

    def complete(self) -> list[CheckpointInfo]:
        """Return the complete checkpoints, oldest first."""
        return self.place.complete()

    def latest_step(self) -> int | None:
        """Return the step of the newest complete checkpoint, or None."""
        complete = self.complete()
        return complete[-1].step if complete else None

    def all_ranks(self) -> CheckpointGroup:
        """Return the group of all ranks; the first call creates it collectively."""
        if self._group is None:
            self._group = CheckpointGroup(self.timeout_seconds)
        return self._group

    # -- saving -----------------------------------------------------------------------------------

    def save(
        self,
        step: int,
        tensors: dict[str, Tensor],
        trainer_state: dict[str, Any],
        *,
        asynchronous: bool = False,
        on_complete: OnComplete = lambda _: None,
    ) -> None:
        """Write a checkpoint; every rank calls this with its part of the same state.

        With `asynchronous` it returns once the state is copied, and `wait`, or the next save,
        raises its error. `on_complete` is called on every rank when the checkpoint is there,
        in the thread that wrote it.

        Raises:
            CheckpointError: this or the save before could not be written; earlier checkpoints are
                untouched.
        """
        begin = time.monotonic()
        self.wait()
        group = self.all_ranks()
        copy = self._copy.take(tensors, group.rank, group.world_size)
        save = _Save(on_complete=on_complete)
        stall = time.monotonic() - begin
        self._save = save
        if not asynchronous:
            self._run(save, group, step, copy, trainer_state, stall)
            self.wait()
            return
        save.thread = threading.Thread(
            target=self._run,
            args=(save, group, step, copy, trainer_state, stall),
            name=f"pelagos-checkpoint-{step}",
            daemon=True,
        )
        save.thread.start()

    def wait(self) -> None:
        """Wait for the save on its way, if any.

        Raises:
            CheckpointError: it could not be written.
            RuntimeError: another rank died meanwhile.
        """
        save, self._save = self._save, None
        if save is None:
            return
        if save.thread is not None:
            save.thread.join()
        if save.error is not None:
            raise save.error

    @property
    def is_saving(self) -> bool:
        """Whether a save was begun and not waited for."""
        return self._save is not None

    @property
    def has_failed(self) -> bool:
        """Whether the save on its way ended without a checkpoint, as `wait` will raise."""
        error = self._save.error if self._save is not None else None
        return isinstance(error, CheckpointError) and error.is_unwritten

    def _run(
        self,
        save: _Save,
        group: CheckpointGroup,
        step: int,
        copy: dict[str, Tensor],
        trainer_state: dict[str, Any],
        stall_seconds: float,
    ) -> None:
        begin = time.monotonic()
        try:
            num_bytes = self._write(group, step, copy, trainer_state)
            seconds = time.monotonic() - begin
            save.on_complete(SaveReport(step, num_bytes, stall_seconds, seconds))
        except Exception as error:  # for `wait`; other than CheckpointError: a peer died
            save.error = error

    def _write(
        self,
        group: CheckpointGroup,
        step: int,
        copy: dict[str, Tensor],
        trainer_state: dict[str, Any],
    ) -> int:
        """Write, verify and commit; return the bytes that all ranks wrote."""
        if failures := group.from_rank_0(self._make_way(step) if group.rank == 0 else []):
            raise self._failed(step, failures)
        files: list[FileRecord] = []
        pieces: list[PieceRecord] = []
        staging, failure = Path(), ""
        try:
            staging = self.place.staging(step)
            files, pieces = self._write_own(group, staging, copy, trainer_state)
            self.place.upload(step, staging, [f.name for f in files])
        except (Exception, CheckpointException) as error:  # the latter is a BaseException
            failure = f"rank {group.rank}: {_root_cause(error)}"
        gathered = group.gather((files, pieces, failure))
        failures = [f for _, _, f in gathered if f]
        all_files = [f for part, _, _ in gathered for f in part]
        if not failures and group.rank == 0:
            all_pieces = [p for _, part, _ in gathered for p in part]
            manifest = Manifest(step, tuple(all_files), tensor_records(copy, all_pieces))
            try:
                self.place.commit(step, staging, manifest_text(manifest))
            except Exception as error:
                failures = [f"rank 0: {_root_cause(error)}"]
        failures = group.from_rank_0(failures)
        if failures:
            with contextlib.suppress(Exception):
                self.place.discard(step, staging)
            raise self._failed(step, failures)
        if group.rank != 0 and is_remote(self.uri):
            shutil.rmtree(staging, ignore_errors=True)
        return sum(f.num_bytes for f in all_files)

    def _make_way(self, step: int) -> list[str]:
        """Take away what an earlier save of the step left; return why that is impossible, if so."""
        try:
            if isinstance(self.place, LocalPlace):
                shutil.rmtree(self.place.staging(step), ignore_errors=True)
            self.place.make_way(step)
            return []
        except Exception as error:
            return [f"rank 0: {_root_cause(error)}"]

    def _write_own(
        self,
        group: CheckpointGroup,
        staging: Path,
        copy: dict[str, Tensor],
        trainer_state: dict[str, Any],
    ) -> tuple[list[FileRecord], list[PieceRecord]]:
        """Write this rank's files and read them back; return their contents."""
        pieces = piece_records(copy)
        written = write_pieces(copy, staging, group.process_group)
        damage = damaged_pieces(staging, written, pieces)
        if damage:
            raise CheckpointError(f"the written bytes differ from those in memory: {damage[0]}")
        paths = sorted(staging.glob(f"__{group.rank}_*"))
        if group.rank == 0:
            replace_durably(staging / TRAINER_STATE, json.dumps(trainer_state, indent=1).encode())
            paths += [staging / ".metadata", staging / TRAINER_STATE]
        return [record_file(p) for p in paths], pieces

    def _failed(self, step: int, failures: Sequence[str]) -> CheckpointError:
        causes = "; ".join(failures)
        error = CheckpointError(
            f"{self.uri}: could not write the checkpoint of step {step} ({causes}). "
            "Earlier checkpoints are intact. Free space or permit writing there, then resume the "
            "run."
        )
        error.is_unwritten, error.needs_room = True, NO_ROOM.search(causes) is not None
        return error

    # -- loading ----------------------------------------------------------------------------------

    def trainer_state(self, step: int) -> dict[str, Any]:
        """Return the JSON of a checkpoint without reading its tensors."""
        with self.opened(step, names=(TRAINER_STATE,)) as (directory, _):
            return self._state_in(directory, step)

    def _state_in(self, directory: Path, step: int) -> dict[str, Any]:
        try:
            state = parse_json(read_regular(directory / TRAINER_STATE, follow_links=True))
        except ValueError as error:
            raise CheckpointError(f"{self.uri} step {step}: {TRAINER_STATE} is not JSON") from error
        return checked_state(state, f"{self.uri} step {step}")

    def load(
        self,
        step: int,
        tensors: dict[str, Tensor],
        may_lack: Sequence[str] | Callable[[dict[str, Any]], Sequence[str]] = (),
    ) -> LoadReport:
        """Fill `tensors`, of any layout, in place from a checkpoint.

        From an object store each node fetches it once, into a temporary directory that is removed
        at the end. On a disk it is read where it is.

        Args:
            step: which one.
            tensors: the state to fill; every rank gives its part.
            may_lack: regular expressions of parameters that the checkpoint may lack, or a function
                of the trainer's JSON that returns them.

        Raises:
            CheckpointError: damaged files, or names and shapes of another architecture; nothing
                is loaded then.
            StorageError: the object store cannot be read; on every rank, whichever met it.
        """
        group = self.all_ranks()
        with self._opened_by_all(step, group) as copy:
            uri = f"{self.uri} step {step}"
            manifest = self._manifest_of_all(copy.directory, step, group)
            self._verify(copy, manifest, uri, group)
            state = self._state_in(copy.directory, step)
            lacking = may_lack(state) if callable(may_lack) else may_lack
            stored = StoredTensors(copy.directory, manifest)
            wanted, report = match_tensors(stored.shapes(), tensors, lacking, uri)
            read_pieces(wanted, stored.reader, dist.group.WORLD if group.is_distributed else None)
            return LoadReport(state, *report)

    def load_named(self, step: int, prefix: str | tuple[str, ...]) -> dict[str, Tensor]:
        """Return the tensors whose names start with `prefix`, or a single one, verified.

        Works in one process.
        """
        with self.opened(step) as (directory, manifest):
            _reject_damage(damaged_files(directory, manifest.files), f"{self.uri} step {step}")
            stored = StoredTensors(directory, manifest)
            return {n: stored.read(n) for n in stored.names() if n.startswith(prefix)}

    def prune(self, keep_last: int, keep: set[int]) -> list[int]:
        """Delete all but the newest `keep_last` and the steps in `keep`; return the deleted ones.

        Nothing is deleted unless the newest one can be read: its manifest, and files of the sizes
        that it lists. (Their bytes were read back before the manifest was written.)
        """
        steps = [info.step for info in self.complete()]
        doomed = [s for s in steps[: max(0, len(steps) - keep_last)] if s not in keep]
        if not doomed or not self._is_whole(steps[-1]):
            return []
        for step in doomed:
            self.place.delete(step)
        return doomed

    def _is_whole(self, step: int) -> bool:
        try:
            with self.opened(step, names=()) as (_, manifest):
                sizes = self.place.sizes(step)
                return all(sizes.get(f.name) == f.num_bytes for f in manifest.files)
        except (CheckpointError, OSError):
            return False

    @contextlib.contextmanager
    def opened(
        self, step: int, names: Collection[str] | None = None
    ) -> Iterator[tuple[Path, Manifest]]:
        """Yield a local directory with a complete checkpoint, and its manifest.

        Raises:
            CheckpointError: there is none of that step, or its manifest cannot be read.
        """
        directory, temporary = self.place.fetch(step, names)
        try:
            yield directory, self._manifest_in(directory, step)
        finally:
            if temporary:
                shutil.rmtree(directory, ignore_errors=True)

    @contextlib.contextmanager
    def _opened_by_all(self, step: int, group: CheckpointGroup) -> Iterator[SharedCopy]:
        """Yield the directory with a checkpoint that this rank reads, and who reads it too."""
        if isinstance(self.place, RemotePlace):
            fetch = functools.partial(self.place.download, step)
            with shared_copy(fetch, group) as copy:
                yield copy
        else:
            directory, _ = self.place.fetch(step)
            yield SharedCopy(directory, group.rank, group.world_size)

    def _manifest_in(self, directory: Path, step: int) -> Manifest:
        uri = f"{self.uri} step {step}"
        path = directory / MANIFEST
        if not path.exists():
            steps = ", ".join(str(info.step) for info in self.complete()) or "none"
            raise CheckpointError(f"{uri}: no complete checkpoint; found: {steps}")
        text = read_regular(path, follow_links=True).decode(errors="replace")
        return parse_manifest(text, uri)

    def _manifest_of_all(self, directory: Path, step: int, group: CheckpointGroup) -> Manifest:
        """Return the manifest, or raise on every rank why one cannot read it."""
        failure: Exception | None = None
        try:
            manifest = self._manifest_in(directory, step)
        except (CheckpointError, OSError) as error:
            failure = error
        raise_together(failure, group)
        return manifest

    def _verify(
        self, copy: SharedCopy, manifest: Manifest, uri: str, group: CheckpointGroup
    ) -> None:
        """Re-read every file; the ranks that read one directory share that work.

        Raises:
            CheckpointError: names each file that is missing, short or changed; on every rank.
        """
        own = manifest.files[copy.reader :: copy.num_readers]
        found = group.gather(damaged_files(copy.directory, own))
        _reject_damage(sorted({sentence for part in found for sentence in part}), uri)


def _reject_damage(damage: Sequence[str], uri: str) -> None:
    if damage:
        told = "; ".join(damage)
        is_proven = any(not isinstance(sentence, Unreadable) for sentence in damage)
        raise damaged_error(
            f"{uri} is damaged: {told}. Nothing was loaded, and no other checkpoint was taken in "
            "its place: name another. `pelagos resume` continues from the newest that is whole.",
            told if is_proven else "",
        )


def _root_cause(error: BaseException) -> str:
    if isinstance(error, CheckpointException):
        inner = [failure[0] for failure in error.failures.values()]
        error = inner[0] if inner else error
    return f"{type(error).__name__}: {error}"
