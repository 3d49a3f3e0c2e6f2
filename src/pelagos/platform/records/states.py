"""How a run is, in one vocabulary: local and submitted runs, launches, trials, and MLflow's words."""

from enum import StrEnum


class State(StrEnum):
    """A word for where a run is. It prints and stores as the word itself.

    A run *ends* when it goes no further by itself. One that was preempted is started again by its
    scheduler, one that is lost by `pelagos resume` or `recover`.
    """

    WAITING = "waiting"
    """A trial of a sweep that has not begun."""
    CREATED = "created"
    """Its directory is there, nothing has been launched."""
    SUBMITTED = "submitted"
    QUEUED = "queued"
    STARTING = "starting"
    RUNNING = "running"
    FINISHED = "finished"
    """Every step is done."""
    STOPPED = "stopped"
    """Somebody asked it to stop; it continues from its checkpoint."""
    STOPPED_EARLY = "stopped early"
    """A sweep gave the trial up, as others were better."""
    FAILED = "failed"
    CANCELLED = "cancelled"
    """It never began, because it was stopped before, or because what it waits for did not finish."""
    PREEMPTED = "preempted"
    """Its cluster ended it, after a checkpoint."""
    LOST = "lost"
    """Its process ended without a word."""
    UNKNOWN = "unknown"
    """A directory that says nothing of it."""

    @property
    def has_ended(self) -> bool:
        """Whether the run goes no further by itself."""
        return self in ENDED


def state_of(word: object) -> State:
    """Return the state that a file names, which others may have written.

    >>> state_of("lost"), state_of(3)
    (<State.LOST: 'lost'>, <State.UNKNOWN: 'unknown'>)
    """
    return State(word) if isinstance(word, str) and word in set(State) else State.UNKNOWN


ENDED = (
    State.FINISHED,
    State.FAILED,
    State.STOPPED,
    State.CANCELLED,
    State.STOPPED_EARLY,
)
UNDER_WAY = (State.STARTING, State.RUNNING)
# MLflow's names for the outcomes of a launch.
MLFLOW_STATUS = {
    State.FINISHED: "FINISHED",
    State.STOPPED: "KILLED",
    State.FAILED: "FAILED",
}
