"""Submitted runs in `pelagos list`: one listing of a storage, one small object per run.

Runs that have not ended are examined more closely: their events, and the cluster's report.
"""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

from pelagos.infra.clusters import ClusterConfig
from pelagos.infra.storage.local import ObjectStore
from pelagos.infra.storage.remote import StorageError
from pelagos.jobs.submission.following import current_state, storage_of, with_cluster
from pelagos.jobs.submission.records.record import (
    RECORDS,
    RunRecord,
    num_events_by_run,
)
from pelagos.jobs.submission.records.summary import Progress, Summary, row_of
from pelagos.platform.config.clusters import find_cluster, load_clusters
from pelagos.platform.records.description import RunSummary
from pelagos.platform.records.states import state_of

READERS = 16


def listed_runs(cluster: str | None = None) -> tuple[list[RunSummary], list[str]]:
    """Return a row for each submitted run, and a message for each place that could not be read."""
    configs = load_clusters()
    searched = {cluster: find_cluster(cluster)} if cluster else configs
    rows: list[RunSummary] = []
    problems, seen = [], set()
    for name, config in searched.items():
        try:
            store = storage_of(config)
            if store.uri in seen:
                continue
            seen.add(store.uri)
            counts = num_events_by_run(store.sizes(RECORDS))
        except StorageError as error:
            problems.append(f"{name}: {error}")
            continue
        for row in _rows(store, counts, configs):
            if isinstance(row, str):
                problems.append(f"{name}: {row}")
            else:
                rows.append(row)
    return rows, list(dict.fromkeys(problems))


def _rows(
    store: ObjectStore, counts: Mapping[str, int], configs: Mapping[str, ClusterConfig]
) -> list[RunSummary | str]:
    with ThreadPoolExecutor(READERS) as readers:
        waiting = [
            readers.submit(_row, store, run, num_events, configs)
            for run, num_events in sorted(counts.items())
        ]
        return [row.result() for row in waiting]


def _row(
    store: ObjectStore, run: str, num_events: int, configs: Mapping[str, ClusterConfig]
) -> RunSummary | str:
    """Return a run's row, or why there is none."""
    try:
        record = RunRecord(store, run)
        summary = record.summary()
        if (
            summary is not None
            and summary.num_events == num_events
            and state_of(summary.state).has_ended
        ):
            return row_of(run, store.uri, summary)
        progress = summary.progress if summary is not None else Progress()
        return _looked_at(record, progress, dict(configs))
    except (ValueError, OSError) as error:
        return f"run {run}: {error}"


def _looked_at(
    record: RunRecord, progress: Progress, configs: dict[str, ClusterConfig]
) -> RunSummary:
    state, _ = current_state(with_cluster(record, configs))
    keys = ("state", "cluster", "submitted_by", "submitted_at", "updated_at", "reason", "cause")
    values = {key: getattr(state, key) for key in keys}
    summary = Summary(num_events=len(record.seen()), **values, progress=progress)
    return row_of(record.run, record.store.uri, summary)
