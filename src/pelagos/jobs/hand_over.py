"""Giving runs whose names are claimed to their cluster, and keeping what finds them there."""

import contextlib
from collections.abc import Iterator, Sequence
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
from pelagos.infra.directory_store import ObjectStore
from pelagos.platform.submission.record import RunRecord


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
            record.append("failed", cause=str(error), cause_kind="infrastructure")
        raise


def _record_start(record: RunRecord, handle: dict[str, Any], attempt: int) -> None:
    kind = "queued" if handle.get("is_queued") else "started"
    record.append(kind, handle=handle, attempt=attempt)


def _with_handles(cluster: Cluster, store: ObjectStore, submission: Submission) -> Submission:
    """Return the submission with what finds the runs it comes after on the same cluster."""

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


def submission_of(record: RunRecord, attempt: int, config: ClusterConfig) -> Submission:
    """Return the submission of a recorded run, for another attempt on a cluster.

    The code is what the record names: whoever starts it has to know that it is theirs.
    """
    first = record.first_event()
    return Submission(
        run=record.run,
        storage=record.store.uri,
        attempt=attempt,
        needs=Needs(**record.latest("needs")["needs"]),
        code=Code(**record.latest("code")["code"]),
        priority=first["priority"],
        after=tuple(first["after"]),
        after_ended=tuple(first.get("after_ended", ())),
        uses_ray=first.get("uses_ray", True),
        environment=environment_of(config),
    )


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
