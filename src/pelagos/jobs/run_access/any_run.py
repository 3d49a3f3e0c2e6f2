"""What every run offers, in a directory here or submitted to a cluster."""

import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pelagos.platform.config.differences import changed_keys
from pelagos.platform.config.kinds import Job
from pelagos.platform.records.description import RunDescription
from pelagos.platform.records.runs import RunDirectory
from pelagos.platform.records.states import State

POLL_SECONDS = 1.0


@dataclass(frozen=True)
class Standing:
    """How a run is.

    Attributes:
        is_over: it goes no further unless somebody starts it again.
    """

    state: State
    is_over: bool
    cause: str = ""
    reason: str = ""


@dataclass(frozen=True)
class Stopping:
    """What was done to end a run.

    Attributes:
        asked: `save`, `now`, or nothing where it had ended already.
        note: what a person needs to know in addition.
    """

    state: State
    asked: str
    note: str = ""


class AnyRun(ABC):
    """A run, wherever it is.

    Attributes:
        name: of the run.
        address: PLACE/NAME, which names it among all runs.
        poll_seconds: how often it is worth looking.
    """

    name: str
    address: str
    poll_seconds = POLL_SECONDS

    @abstractmethod
    def standing(self) -> Standing:
        """Return how it is now; nothing is written."""

    @abstractmethod
    def describe(self) -> RunDescription:
        """Return everything that `status` shows."""

    @abstractmethod
    def output(self, follow: bool) -> Iterator[str]:
        """Yield what it has printed; with `follow`, until it has ended."""

    @abstractmethod
    def stop(self, now: bool) -> Stopping:
        """Ask it to save and stop, or end it at once.

        Raises:
            RunError: it cannot be reached from here.
        """

    @abstractmethod
    def job(self) -> Job:
        """Return its job, to be shown."""

    @abstractmethod
    def directory(self) -> RunDirectory:
        """Return its directory as this machine sees it: itself, or a copy of what is in a bucket.

        Raises:
            RunError: it trains nothing, or has not begun, so that there is none.
        """

    @property
    @abstractmethod
    def runs_dir(self) -> str:
        """The directory that holds `directory()`, for jobs that look for the run there."""

    @abstractmethod
    def send_back(self, folder: str) -> None:
        """Send a folder that was written into `directory()` to where the run is, if that is a copy."""


def wait(run: AnyRun, timeout_seconds: float | None = None) -> Standing:
    """Wait until a run is over; return how. Raises `TimeoutError`."""
    deadline = None if timeout_seconds is None else time.monotonic() + timeout_seconds
    while not (standing := run.standing()).is_over:
        if deadline is not None and time.monotonic() >= deadline:
            raise TimeoutError(
                f"run {run.name!r} is still {standing.state} after {timeout_seconds:g} s"
            )
        time.sleep(POLL_SECONDS)
    return standing


def diff(first: AnyRun, second: AnyRun) -> dict[str, tuple[Any, Any]]:
    """Return the job keys in which two runs differ, with both values."""
    jobs = [run.job().model_dump(mode="json") for run in (first, second)]
    keys = changed_keys(jobs[0], jobs[1])
    if keys == [""]:  # jobs of two kinds
        keys = sorted(key for key in {*jobs[0], *jobs[1]} if jobs[0].get(key) != jobs[1].get(key))
    return {key: (_value(jobs[0], key), _value(jobs[1], key)) for key in keys}


def _value(tree: Any, key: str) -> Any:
    for part in key.split("."):
        tree = tree[int(part)] if isinstance(tree, list) else tree.get(part)
    return tree
