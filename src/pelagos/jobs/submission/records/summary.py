"""A submitted run's entry in a list: one small object next to its events.

STORAGE/records/RUN/summary.json   written after each event, and by the run's process with its progress

It repeats its events, so that a list needs neither them nor the run's files. It counts only as
long as its number of events is the current one; like them it is data that anybody may have written.
"""

import json
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pelagos.infra.json_text import parse_json
from pelagos.jobs.submission.records.events import Count, Name, Text, printable
from pelagos.platform.records.description import LISTED_METRICS, RunSummary
from pelagos.platform.records.states import state_of

MOST_BYTES = 2**16
Number = Annotated[float, Field(allow_inf_nan=True)]


class Progress(BaseModel):
    """How far a run is, as its process last said."""

    model_config = ConfigDict(strict=True, extra="forbid")

    step: Count = 0
    total_steps: Count | None = None
    loss: Number | None = None
    samples_per_second: Number | None = None


class Summary(BaseModel):
    """A run's state after `num_events` events."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)

    num_events: Annotated[int, Field(ge=1, le=10**9)]
    state: Annotated[str, Field(pattern=r"^[a-z]{1,40}$")]
    cluster: Name
    submitted_by: Text
    submitted_at: Annotated[float, Field(ge=0, le=1e11)]
    updated_at: Annotated[float, Field(ge=0, le=1e11)]
    reason: Text = ""
    cause: Text = ""
    progress: Progress = Progress()


def parse_summary(content: bytes) -> Summary | None:
    """Return a summary, or None where it is invalid: the events then decide."""
    if len(content) > MOST_BYTES:
        return None
    try:
        return Summary.model_validate(printable(parse_json(content)))
    except (ValueError, ValidationError):
        return None


def encoded(summary: Summary) -> bytes:
    """Return a summary as it is stored."""
    return json.dumps(summary.model_dump(mode="json")).encode()


def row_of(run: str, storage: str, summary: Summary) -> RunSummary:
    """Return a summary as a row of a list."""
    progress = summary.progress
    metrics = {name: getattr(progress, name) for name in LISTED_METRICS}
    return RunSummary(
        run=run,
        state=state_of(summary.state),
        reason=summary.reason or None,
        cause=summary.cause or None,
        cluster=summary.cluster,
        step=progress.step,
        total_steps=progress.total_steps,
        submitted_by=summary.submitted_by,
        updated=summary.updated_at,
        storage=storage,
        metrics={name: value for name, value in metrics.items() if value is not None},
    )
