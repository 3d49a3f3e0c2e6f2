"""A rank's view of its run, and the outcome of a launch."""

from dataclasses import dataclass
from typing import Any, Literal, Protocol

from pelagos.platform.records.states import State

WORKER_FAILED = "worker_failed"  # the event of `append_failure`
End = Literal[State.FINISHED, State.STOPPED, State.FAILED]


@dataclass(frozen=True)
class Outcome:
    """How a launch ended, as a value: finished, stopped on request, or failed with its cause.

    Attributes:
        step: the last completed step.
        is_saved: of one that was stopped: whether a checkpoint of that step was saved.
    """

    kind: End
    step: int
    cause: str = ""
    is_saved: bool = True


class RunRecords(Protocol):
    """A rank's view of its run, wherever the run's directory is."""

    @property
    def checkpoint_uri(self) -> str:
        """The place of the run's checkpoints."""

    @property
    def identities(self) -> tuple[str, ...]:
        """The run's own identity, then those of runs whose checkpoints it took over."""

    def append_metrics(self, record: dict[str, Any]) -> None:
        """Append one step's values."""

    def append_event(self, kind: str, **details: Any) -> None:
        """Append one event."""

    def append_failure(self, details: dict[str, Any], traceback: str) -> str:
        """Record a worker's failure and its traceback; return the traceback's file."""

    def keep_metrics_until(self, step: int) -> int:
        """Drop the values of steps after `step`; return how many."""

    def stop_requested(self) -> bool:
        """Return whether a stop was asked for."""

    def last_step(self) -> int:
        """Return the number of steps that have been logged."""

    def write_outcome(self, outcome: Outcome, launch: str) -> None:
        """Record how a launch ended."""

    def outcome(self, launch: str) -> Outcome | None:
        """Return how this launch ended, or None if it did not say."""
