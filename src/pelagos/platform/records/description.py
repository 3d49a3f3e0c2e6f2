"""A run as `status` and `list` report it, local or submitted: the same keys, types and units."""

from typing import Any

from pydantic import BaseModel, ConfigDict

from pelagos.platform.config.schema import TrainingJob
from pelagos.platform.records.runs import RunDirectory
from pelagos.platform.records.states import State

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
    return RunSummary(
        run=run.name,
        state=status["state"],
        step=status["step"],
        total_steps=job.schedule.total_steps,
        cause=status.get("cause") or None,
        updated=status.get("updated"),
        metrics=_numbers(status["metrics"]),
    )


def description_of(run: RunDirectory) -> RunDescription:
    """Return everything that is known of a run in a directory here. Raises as `summary_of`."""
    job = run.job_as_written()
    summary = _summary(run, job)
    kinds = [event["kind"] for event in run.events()]
    return RunDescription(
        **{**dict(summary), **training_values(run, job), "checkpoints": run.checkpoint_uri_of(job)},
        job=job.job,
        directory=str(run.path),
        attempt=kinds.count("launched"),
        restarts=max(0, kinds.count("resumed") - max(0, kinds.count("launched") - 1)),
    )


def training_values(run: RunDirectory, job: TrainingJob) -> dict[str, Any]:
    """Return the state of a training from its records, by the names of `RunDescription`'s fields."""
    last = next(iter(run.last_metrics(1)), {})
    times = run.followed_times().now()
    saved = [event for event in run.events() if event["kind"] == "checkpoint"]
    return {
        "step": int(last.get("step", 0)),
        "total_steps": job.schedule.total_steps,
        "checkpoints": saved[-1].get("uri") if saved else None,
        "last_checkpoint": saved[-1]["step"] if saved else None,
        "goodput": times.goodput(),
        "tracking": job.tracking.uri,
        "metrics": _numbers({**last, **times.percentiles()}),
    }


def _numbers(values: dict[str, Any]) -> dict[str, float]:
    """Return the numbers of a step but for those that have a key of their own."""
    return {
        name: value
        for name, value in values.items()
        if name not in ("time", "step") and isinstance(value, int | float)
    }
