"""Giving runs whose names are claimed to their cluster, and keeping their handles there."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from pelagos.infra.clusters import (
    Cluster,
    ClusterConfig,
    ClusterError,
    Code,
    Needs,
    Submission,
)
from pelagos.infra.signatures import digest_of
from pelagos.infra.storage.local import ObjectStore
from pelagos.jobs.submission.records.record import RecordError, RunRecord
from pelagos.platform.records.states import State


def hand_over(cluster: Cluster, record: RunRecord, submission: Submission) -> None:
    """Give a claimed run to its cluster, and record how it is found there."""
    with _failure_recorded([record]):
        handle = cluster.start(_with_handles(cluster, record.store, submission))
    _record_start(record, handle, submission.attempt)


def hand_over_array(
    cluster: Cluster, records: Sequence[RunRecord], submissions: Sequence[Submission], at_once: int
) -> None:
    """Give claimed runs, which all come after the same others, to their cluster together."""
    first = _with_handles(cluster, records[0].store, submissions[0])
    submissions = [
        replace(s, after_handles=first.after_handles, ended_handles=first.ended_handles)
        for s in submissions
    ]
    with _failure_recorded(records):
        found = cluster.start_array(submissions, at_once)
    for record, handle in zip(records, found, strict=True):
        _record_start(record, handle, attempt=1)


@contextlib.contextmanager
def _failure_recorded(records: Sequence[RunRecord]) -> Iterator[None]:
    try:
        yield
    except ClusterError as error:
        for record in records:
            record.append(State.FAILED, cause=str(error), cause_kind="infrastructure")
        raise


def _record_start(record: RunRecord, handle: dict[str, Any], attempt: int) -> None:
    kind = State.QUEUED if handle.get("is_queued") else "started"
    record.append(kind, handle=handle, attempt=attempt)


def _with_handles(cluster: Cluster, store: ObjectStore, submission: Submission) -> Submission:
    """Return the submission with the handles of its predecessors on the same cluster."""

    def handles(names: tuple[str, ...]) -> tuple[dict[str, Any], ...]:
        states = [RunRecord(store, name).state() for name in names]
        return tuple(
            cluster.checked_handle(s.run, store.uri, s.handle)
            for s in states
            if s.cluster == cluster.name and s.handle
        )

    return replace(
        submission,
        after_handles=handles(submission.after),
        ended_handles=handles(submission.after_ended),
    )


def submission_of(
    record: RunRecord, event: Mapping[str, Any], attempt: int, config: ClusterConfig
) -> Submission:
    """Return the submission of a recorded run, for another attempt on a cluster.

    Args:
        event: the event that submits it, which names the code: the starter has to know that it
            was written by somebody who may have it started here.

    Raises:
        RecordError: it lacks keys that every submission has.
    """
    if missing := [key for key in ("needs", "code") if event.get(key) is None]:
        raise RecordError(
            f"the record of run {record.run!r} in {record.store.uri} has no {' and no '.join(missing)}, "
            f"which every submission has: it was not written by `pelagos submit`, and nothing can be "
            f"done with it"
        )
    return Submission(
        run=record.run,
        storage=record.store.uri,
        attempt=attempt,
        needs=Needs(**event["needs"]),
        code=Code(**event["code"]),
        priority=event["priority"],
        after=tuple(event["after"]),
        after_ended=tuple(event.get("after_ended", ())),
        uses_ray=event.get("uses_ray", True),
        environment=environment_of(config),
        event=digest_of(event),
    )


def details_of(
    submission: Submission, cluster: Cluster, retries: int, **details: Any
) -> dict[str, Any]:
    """Return the contents of a run's submitting event other than its job."""
    return {
        "cluster": cluster.name,
        "cluster_config": cluster.config.model_dump(mode="json"),
        "priority": submission.priority,
        "after": list(submission.after),
        "after_ended": list(submission.after_ended),
        "retries": retries,
        "code": vars(submission.code),
        "needs": vars(submission.needs),
        "uses_ray": submission.uses_ray,
        **details,
    }


def environment_of(config: ClusterConfig) -> dict[str, str]:
    """Return the environment that every run on a cluster gets; never a secret."""
    environment = dict(config.environment)
    if config.endpoint_url:
        environment["PELAGOS_STORAGE_ENDPOINT"] = config.endpoint_url
    if config.region:
        environment["AWS_REGION"] = config.region
    if config.secrets_file:
        environment["PELAGOS_SECRETS_FILE"] = config.secrets_file
    return environment
