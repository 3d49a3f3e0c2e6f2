"""One copy of a remote checkpoint on each node: one rank fetches it, the others read its files.

The flow, by all ranks together:
    1. each makes a private temporary directory and names it to the others
    2. each chooses the first of these directories that it can enter: on one node, that of one rank
    3. the ranks whose directory was chosen fetch into it; every few seconds all ranks hear whether
       any still does, so that no collective waits for longer than that
    4. an error on one rank is an error on every rank
    5. all have read before any directory is removed
"""

import contextlib
import os
import pickle
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pelagos.platform.checkpoint.group import CheckpointGroup
from pelagos.platform.checkpoint.manifest import CheckpointError

PREFIX = "pelagos-checkpoint-"
SECONDS_BETWEEN_WORDS = 5.0

Fetch = Callable[[Path], None]


@dataclass(frozen=True)
class SharedCopy:
    """A directory that `num_readers` ranks read together, of which this one is number `reader`."""

    directory: Path
    reader: int
    num_readers: int


@contextlib.contextmanager
def shared_copy(fetch: Fetch, group: CheckpointGroup) -> Iterator[SharedCopy]:
    """Fetch once per node; every rank calls this, and is given the directory that it shares.

    Which ranks share a node is tried, not looked up: containers of one machine may share its name
    and no file, and each launcher counts its ranks in its own way.

    Args:
        fetch: brings the files into an empty directory; called on one rank of each node.
        group: all ranks.

    Raises:
        Exception: the error of the first rank that failed, on every rank.
    """
    own, error = _private_directory()
    try:
        directories = group.gather(own)
        chosen = next((r for r, path in enumerate(directories) if _can_enter(path)), None)
        choices = group.gather(chosen)
        fetching = _Fetching(fetch, Path(own)) if group.rank in choices else None
        _wait_for_all(fetching, None if chosen is not None else error, group)
        assert chosen is not None
        readers = [rank for rank, choice in enumerate(choices) if choice == chosen]
        yield SharedCopy(Path(directories[chosen]), readers.index(group.rank), len(readers))
        group.barrier()
    finally:
        if own:
            shutil.rmtree(own, ignore_errors=True)


class _Fetching:
    """A fetch in a thread."""

    def __init__(self, fetch: Fetch, directory: Path) -> None:
        self.error: Exception | None = None
        self._thread = threading.Thread(
            target=self._run, args=(fetch, directory), name="pelagos-fetch", daemon=True
        )
        self._thread.start()

    def goes_on_after(self, seconds: float) -> bool:
        """Wait for the end so long; return whether it is still to come."""
        self._thread.join(seconds)
        return self._thread.is_alive()

    def _run(self, fetch: Fetch, directory: Path) -> None:
        try:
            fetch(directory)
        except Exception as error:  # for every rank
            self.error = error


def _wait_for_all(
    fetching: _Fetching | None, error: Exception | None, group: CheckpointGroup
) -> None:
    """Wait until no rank fetches any more.

    Raises:
        Exception: the error of the first rank that has one.
    """
    seconds = min(SECONDS_BETWEEN_WORDS, group.timeout_seconds / 4)
    goes_on = True
    while goes_on:
        is_busy = fetching is not None and fetching.goes_on_after(seconds)
        error = fetching.error if fetching is not None else error
        found = group.gather((is_busy, _portable(error)))
        goes_on = any(busy for busy, _ in found)
    _raise_first([failure for _, failure in found], error, group)


def raise_together(error: Exception | None, group: CheckpointGroup) -> None:
    """Raise the error of the first rank that has one, on every rank; all ranks call this."""
    _raise_first(group.gather(_portable(error)), error, group)


def _raise_first(
    failures: Sequence[Exception | None], own: Exception | None, group: CheckpointGroup
) -> None:
    for rank, failure in enumerate(failures):
        if failure is not None:
            raise own if rank == group.rank and own is not None else failure


def _private_directory() -> tuple[str, Exception | None]:
    """Return a new directory, or "" and why there is none."""
    try:
        return tempfile.mkdtemp(prefix=PREFIX), None
    except OSError as error:
        return "", error


def _can_enter(directory: str) -> bool:
    return os.path.isdir(directory) and os.access(directory, os.R_OK | os.X_OK)


def _portable(error: Exception | None) -> Exception | None:
    """Return the error if it stays the same on the way to another rank, else one of its words."""
    if error is None:
        return None
    try:
        copy = pickle.loads(pickle.dumps(error))
        if type(copy) is type(error) and str(copy) == str(error):
            return error
    except Exception:  # an exception of a library that cannot be made from its own arguments
        pass
    return CheckpointError(f"{type(error).__name__}: {error}")
