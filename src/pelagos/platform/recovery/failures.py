"""A worker's failure as a record: which rank, where, in which step, and whether it can be mended."""

import contextlib
import os
import re
import socket
import sys
import traceback
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from pelagos.infra.permanent_error import PermanentError
from pelagos.registry import own_line

_STEP, _IS_TORN = "pelagos_step", "pelagos_group_is_gone"

# Of exceptions of every type, as torch, gloo and NCCL raise them when another rank is gone.
_OF_A_PEER = re.compile(
    r"gloo|nccl|process ?group|TCPStore|DistBackend|DistNetwork|DistStore|\bby peer\b|Broken pipe"
    r"|Watchdog|timed? ?out (waiting|after)",
    re.IGNORECASE,
)
_OF_MEMORY = re.compile(r"out of memory|can't allocate memory", re.IGNORECASE)


class OutOfMemory(PermanentError, MemoryError):
    """A step that needs more memory than the device, or this machine, has."""


@dataclass(frozen=True)
class WorkerFailure:
    """One worker's end.

    Attributes:
        host, node: the machine's name, and Ray's identity of the node ("" without Ray).
        step: the step under way, counted from 1; None: before the first.
        error, text: the exception's type and message.
        place: the user's own last line, or the last of Pelagos: `file:line in function`.
        traceback: file with the whole traceback, in the run's directory.
        is_permanent: trying again cannot help.
        is_of_a_peer: another rank was lost, and this one noticed.
    """

    rank: int
    host: str
    node: str
    step: int | None
    error: str
    text: str
    place: str
    traceback: str = ""
    is_permanent: bool = False
    is_of_a_peer: bool = False

    def sentence(self) -> str:
        """Return what failed and where; of a long text its first line."""
        lines = self.text.strip().splitlines()
        return f"{self.error}: {lines[0] if lines else ''} ({self.where()})"

    def where(self) -> str:
        """Return rank, host, step, place, and the file with the whole traceback."""
        when = "before the first step" if self.step is None else f"in step {self.step}"
        parts = [f"rank {self.rank} on {self.host}", when, f"at {self.place}" if self.place else ""]
        told = ", ".join(part for part in parts if part)
        return f"{told}; traceback: {self.traceback}" if self.traceback else told

    def is_like(self, other: "WorkerFailure") -> bool:
        """Whether it is the same error in the same step at the same place, on whatever rank."""
        return self._likeness() == other._likeness()

    def _likeness(self) -> tuple[Any, ...]:
        # addresses and ports differ between attempts; the line's number is in `place`
        return self.error, re.sub(r"0x[0-9a-f]+|\d+", "#", self.text), self.step, self.place

    @classmethod
    def of(cls, record: dict[str, Any]) -> "WorkerFailure | None":
        """Return the failure of an event, or None if somebody else wrote it otherwise."""
        with contextlib.suppress(TypeError, ValueError):
            step = record.get("step")
            texts = {k: str(record.get(k, "")) for k in ("host", "node", "error", "text", "place")}
            return cls(
                rank=int(record.get("rank", 0)),
                step=None if step is None else int(step),
                traceback=str(record.get("traceback", "")),
                is_permanent=record.get("is_permanent") is True,
                is_of_a_peer=record.get("is_of_a_peer") is True,
                **texts,
            )
        return None


def as_details(failure: WorkerFailure) -> dict[str, Any]:
    """Return a failure as an event's details."""
    return {key: value for key, value in asdict(failure).items() if value is not None}


def mark(error: BaseException, step: int | None, *, group_is_gone: bool) -> None:
    """Note on an exception in which step it was raised, and whether the process group was gone then."""
    error.__dict__.setdefault(_STEP, step)
    error.__dict__.setdefault(_IS_TORN, group_is_gone)


@contextlib.contextmanager
def with_known_causes() -> Iterator[None]:
    """Raise errors of libraries whose cause is known, and stays, as Pelagos's own.

    Raises:
        OutOfMemory: the device or the machine has too little memory.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if isinstance(error, OutOfMemory) or not _is_of_memory(error):
            raise
        told = OutOfMemory(
            f"{type(error).__name__}: {error}. Set a smaller parallel.micro_batch_size, or use more "
            "workers"
        )
        told.__dict__.update({k: v for k, v in error.__dict__.items() if k in (_STEP, _IS_TORN)})
        raise told from error


def _is_of_memory(error: Exception) -> bool:
    return isinstance(error, MemoryError) or bool(_OF_MEMORY.search(str(error)))


def is_permanent(error: BaseException) -> bool:
    """Whether workers that are started again would only meet this error again, as its class says.

    Nothing is that is raised while the process group is being torn down.
    """
    return isinstance(error, PermanentError) and not _is_torn(error)


def is_of_a_peer(error: BaseException) -> bool:
    """Whether an error says no more than that another rank, or the connection to it, is gone."""
    if _is_torn(error):
        return True
    if isinstance(error, PermanentError):
        return False
    if isinstance(error, ConnectionError):
        return True
    frames = traceback.extract_tb(error.__traceback__)
    is_within = bool(frames) and "/torch/distributed/" in frames[-1].filename
    return is_within or bool(_OF_A_PEER.search(f"{type(error).__name__}: {error}"))


def failure_of(error: BaseException, rank: int, node: str = "") -> WorkerFailure:
    """Return the record of an exception in a worker."""
    return WorkerFailure(
        rank=rank,
        host=socket.gethostname(),
        node=node,
        step=error.__dict__.get(_STEP),
        error=type(error).__name__,
        text=str(error),
        place=place_of(error),
        is_permanent=is_permanent(error),
        is_of_a_peer=is_of_a_peer(error),
    )


def place_of(error: BaseException) -> str:
    """Return the last line of a user's own code that an exception left, else of Pelagos's."""
    frames = traceback.extract_tb(error.__traceback__)
    own = own_line(error)
    chosen = [f for f in frames if own.startswith(f" ({f.filename}, line {f.lineno}:")]
    ours = f"{os.sep}pelagos{os.sep}"
    chosen = chosen or [f for f in frames if ours in f.filename] or frames
    if not chosen:
        return ""
    last = chosen[-1]
    return f"{_short(last.filename)}:{last.lineno} in {last.name}"


def _short(path: str) -> str:
    """Return a file's path from where it is imported, the same on every machine."""
    roots = sorted((p for p in sys.path if p and path.startswith(p + os.sep)), key=len)
    return path[len(roots[-1]) + 1 :] if roots else path


def whole_traceback(error: BaseException) -> str:
    """Return the traceback as Python prints it, with its causes."""
    return "".join(traceback.format_exception(error))


def _is_torn(error: BaseException) -> bool:
    return bool(error.__dict__.get(_IS_TORN))
