"""A run as `status` and `list` report it, local or submitted: the same keys, types and units."""

import contextlib
import math
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict

from pelagos.platform.config.schema import TrainingJob
from pelagos.platform.records.driver_process import DriverProcess
from pelagos.platform.records.goodput import FollowedTimes
from pelagos.platform.records.runs import RunDirectory
from pelagos.platform.records.states import UNDER_WAY, State

SMOOTHED_STEPS = 20
# the values of a step that a list shows
LISTED_METRICS = ("loss", "samples_per_second")


class RunSummary(BaseModel):
    """A row of `pelagos list`. Unknown values are null."""

    model_config = ConfigDict(frozen=True)

    run: str
    state: State
    step: int | None = None
    """Steps done; of jobs that train nothing, null, as `total_steps` is."""
    total_steps: int | None = None
    cause: str | None = None
    """Why it failed."""
    reason: str | None = None
    """Why it waits, or ended as it did."""
    cluster: str | None = None
    submitted_by: str | None = None
    updated: float | None = None
    """When it last gave a sign, in seconds since 1970."""
    storage: str | None = None
    """Of a submitted run: the storage of its record."""
    metrics: dict[str, float] = {}
    """Values of the last step."""


class ValidationAt(BaseModel):
    """A validation's loss, and after which step it was measured."""

    model_config = ConfigDict(frozen=True)

    step: int
    loss: float


class RunDescription(RunSummary):
    """The report of `pelagos status`."""

    job: str
    """Kind of the job."""
    directory: str | None = None
    """Of a local run."""
    tracking: str | None = None
    """MLflow tracking store or server."""
    checkpoints: str | None = None
    """Directory or prefix of its checkpoints."""
    last_checkpoint: int | None = None
    """Step of the newest checkpoint."""
    smoothed_loss: float | None = None
    """Mean over the last `SMOOTHED_STEPS` steps."""
    last_validation: ValidationAt | None = None
    best_validation: ValidationAt | None = None
    last_step_at: float | None = None
    """When the last step ended, in seconds since 1970: a hang does not move it, unlike `updated`."""
    seconds_left: float | None = None
    """For the steps to come at the pace of the last ones; of a run that is under way."""
    goodput: float | None = None
    """Share of the time since the first launch that went into steps that count, 0 to 1."""
    attempt: int = 1
    """How often it was launched or submitted."""
    restarts: int = 0
    """How often it continued by itself after a failure."""
    scheduler: str | None = None
    """What the cluster says of it."""
    where: str | None = None
    """Host and process."""
    after: tuple[str, ...] = ()
    """Runs that it waits for."""
    priority: int | None = None
    submitted_at: float | None = None


def summary_of(run: RunDirectory) -> RunSummary:
    """Return the row of a run in a directory here. Raises as `RunDirectory.job_as_written`."""
    return _summary(run, run.job_as_written())


def _summary(run: RunDirectory, job: TrainingJob) -> RunSummary:
    status = run.status()
    # the driver writes its status when that changes: while it trains, steps are the signs
    signs = [
        t for t in (status.get("updated"), _number(status["metrics"], "time")) if t is not None
    ]
    return RunSummary(
        run=run.name,
        state=status["state"],
        step=status["step"],
        total_steps=job.schedule.total_steps,
        cause=status.get("cause") or None,
        updated=max(signs, default=None),
        metrics=_numbers(status["metrics"]),
    )


class FollowedRun:
    """A run in a directory here, whose records are read once, however often it is described."""

    def __init__(self, run: RunDirectory) -> None:
        self.run = run
        self.times = run.followed_times()
        self._tail = run.tail_of_events()
        self._events: list[dict[str, Any]] = []

    def events(self) -> list[dict[str, Any]]:
        """Return every event, in order."""
        for piece in self._tail.pieces():
            self._events += piece
        return self._events


def description_of(run: RunDirectory, followed: FollowedRun | None = None) -> RunDescription:
    """Return everything that is known of a run in a directory here. Raises as `summary_of`."""
    followed = followed or FollowedRun(run)
    job = run.job_as_written()
    summary = _summary(run, job)
    events = followed.events()
    kinds = [event["kind"] for event in events]
    values = training_values(run, job, events, followed.times)
    driver = DriverProcess.of(run.status_file()) if summary.state in UNDER_WAY else None
    return RunDescription(
        **{**dict(summary), **values, "checkpoints": run.checkpoint_uri_of(job)},
        job=job.job,
        directory=str(run.path),
        where=None if driver is None else str(driver),
        attempt=kinds.count("launched"),
        restarts=max(0, kinds.count("resumed") - max(0, kinds.count("launched") - 1)),
    )


def training_values(
    run: RunDirectory,
    job: TrainingJob,
    events: Sequence[dict[str, Any]],
    followed_times: FollowedTimes | None = None,
) -> dict[str, Any]:
    """Return the state of a training from its records, by the names of `RunDescription`'s fields.

    `events` are the run's, as `run.events()` returns them. `followed_times` spare reading again the
    records that they have seen.
    """
    latest = run.last_metrics(SMOOTHED_STEPS)
    last = latest[-1] if latest else {}
    times = (followed_times or run.followed_times()).now()
    saved = [event for event in events if event["kind"] == "checkpoint"]
    validations = [found for event in events if (found := _validation(event)) is not None]
    pace = _mean(latest, "step_seconds")
    left = job.schedule.total_steps - int(last.get("step", 0))
    return {
        "smoothed_loss": _mean(latest, "loss"),
        "last_validation": validations[-1] if validations else None,
        "best_validation": min(validations, key=lambda v: v.loss) if validations else None,
        "last_step_at": _number(last, "time"),
        "seconds_left": None if pace is None else pace * left,
        "step": int(last.get("step", 0)),
        "total_steps": job.schedule.total_steps,
        "checkpoints": saved[-1].get("uri") if saved else None,
        "last_checkpoint": saved[-1]["step"] if saved else None,
        "goodput": times.goodput(),
        "tracking": job.tracking.uri,
        "metrics": _numbers({**last, **times.percentiles()}),
    }


def _validation(event: dict[str, Any]) -> ValidationAt | None:
    loss = _number(event, "validation_loss")
    if event["kind"] != "validation" or loss is None or not isinstance(event.get("step"), int):
        return None
    return ValidationAt(step=event["step"], loss=loss)


def _mean(records: list[dict[str, Any]], key: str) -> float | None:
    """Return the mean of a value over steps that have it."""
    numbers = [number for record in records if (number := _number(record, key)) is not None]
    return sum(numbers) / len(numbers) if numbers else None


def _number(record: dict[str, Any], key: str) -> float | None:
    """Return a finite number of a record; others may have written there."""
    value = record.get(key)
    if not isinstance(value, int | float) or isinstance(value, bool):
        return None
    with contextlib.suppress(OverflowError):  # a whole number that no float holds
        return float(value) if math.isfinite(value) else None
    return None


def _numbers(values: dict[str, Any]) -> dict[str, float]:
    """Return the numbers of a step but for those that have a key of their own."""
    return {
        name: value
        for name, value in values.items()
        if name not in ("time", "step") and isinstance(value, int | float)
    }
