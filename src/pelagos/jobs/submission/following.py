"""Following submitted runs, wherever they run: state, logs, stop, resume, wait, clone, diff.

Records are written by everyone with access to the storage. How a cluster is reached, and with which
secret, comes from the reader's own clusters.yaml alone; a record's own entry is shown where it
differs. Looking at runs starts and writes nothing; `start_again` starts.
"""

import contextlib
import hashlib
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from pelagos.infra.clusters import (
    Cluster,
    ClusterConfig,
    ClusterError,
    open_cluster,
)
from pelagos.infra.private_directory import cache_directory
from pelagos.infra.storage.files import read_regular
from pelagos.infra.storage.local import ObjectStore, open_store
from pelagos.infra.storage.remote import StorageError, StorageMissingError, is_remote
from pelagos.jobs.submission.others_jobs import require_own_places
from pelagos.jobs.submission.planning import Options, SubmissionPlan, plan
from pelagos.jobs.submission.records import own_runs
from pelagos.jobs.submission.records.record import (
    RECORDS,
    RecordError,
    RunRecord,
    RunState,
    list_records,
    num_events_by_run,
)
from pelagos.jobs.submission.shipping.mirror import PART_BYTES, Mirror
from pelagos.platform.config.clusters import find_cluster, load_clusters
from pelagos.platform.config.load import parse_job, resolve_yaml
from pelagos.platform.config.schema import TrainingJob
from pelagos.platform.records.description import RunDescription, training_values
from pelagos.platform.records.known_runs import known_runs
from pelagos.platform.records.runs import RunDirectory, RunError, list_runs
from pelagos.platform.records.states import UNDER_WAY, State

POLL_SECONDS = 1.0
SEARCHED_FIRST = "runs"


Claimed = tuple[str, Callable[[], "SubmittedRun"]]
"""A storage that has a run of some name, and how to open that."""

# Keys of a cluster's configuration that locate it: a record that differs is pointed out.
PLACE_KEYS = ("kind", "address", "context", "namespace", "storage", "endpoint_url")


@dataclass(frozen=True)
class SubmittedRun:
    """A run found by name: its record, and the cluster of one's own that it was last given to.

    Attributes:
        cluster: None: clusters.yaml has none of that name with this storage.
        remark: entries of the record that clusters.yaml lacks.
    """

    record: RunRecord
    cluster: Cluster | None
    remark: str = ""

    @property
    def store(self) -> ObjectStore:
        """Where the run's storage is."""
        return self.record.store

    @cached_property
    def copy(self) -> Mirror:
        """The run's files in a bucket, brought here by `pull`; it fetches the news alone."""
        place = hashlib.sha256(self.store.uri.encode()).hexdigest()[:12]
        directory = cache_directory() / "views" / place / self.record.run
        return Mirror(self.store, f"runs/{self.record.run}", directory)

    def own_cluster(self) -> Cluster:
        """Return the cluster. Raises `ClusterError` where clusters.yaml has none for this run."""
        if self.cluster is None:
            raise ClusterError(f"run {self.record.run!r}: {self.remark}")
        return self.cluster

    def handle(self, state: RunState) -> dict[str, Any]:
        """Return the run's handle on its cluster. Raises `ClusterError`: it is forged."""
        cluster = self.own_cluster()
        return cluster.checked_handle(state.run, self.store.uri, state.handle)


def find(run: str, cluster: str | None = None) -> SubmittedRun:
    """Return a submitted run, looked for on one cluster or on all of clusters.yaml.

    Raises:
        RecordError, RunError: there is no such run, or several clusters have one.
    """
    if cluster is not None:
        return _open(run, find_cluster(cluster), load_clusters())
    found, unread = search(run)
    if not found:
        raise not_submitted(run, unread)
    if len(found) > 1:
        raise several(run, [(f"{name}/{run}", uri) for name, (uri, _) in found.items()])
    return next(open_run() for _, open_run in found.values())


def search(run: str, within_seconds: float | None = None) -> tuple[dict[str, Claimed], list[str]]:
    """Return where a name is claimed, by cluster, and a message for each place that is not readable.

    All are asked at the same time, with one listing each. A storage that several clusters share is
    asked once. `within_seconds` bounds the time that one may take to answer.
    """
    configs = load_clusters()
    records: dict[str, RunRecord] = {}
    for name, config in configs.items():
        record = RunRecord(storage_of(config), run)
        if record.store.uri not in [other.store.uri for other in records.values()]:
            records[name] = record
    answers: dict[str, bool | StorageError] = {}

    def ask(name: str) -> None:
        try:
            answers[name] = records[name].exists()
        except StorageError as error:
            answers[name] = error

    # threads that end with the process, also where a storage never answers
    threads = {name: threading.Thread(target=ask, args=(name,), daemon=True) for name in records}
    for thread in threads.values():
        thread.start()
    deadline = None if within_seconds is None else time.monotonic() + within_seconds
    found: dict[str, Claimed] = {}
    unread: list[str] = []
    for name, record in records.items():
        threads[name].join(None if deadline is None else max(0.0, deadline - time.monotonic()))
        answer = answers.get(name)
        if answer is None:
            unread.append(f"{name} has not answered within {within_seconds:g} s")
        elif isinstance(answer, StorageError):
            unread.append(f"{name} could not be read: {answer}")
        elif answer:
            found[name] = (record.store.uri, partial(_open, run, configs[name], configs))
    return found, unread


def not_submitted(run: str, unread: Sequence[str] = (), here: str = SEARCHED_FIRST) -> RunError:
    """Return the error of a name that is neither here nor on any cluster: what was searched."""
    configs = load_clusters()
    known = [found.name for found in list_runs(here)]
    here = here if here.startswith(("/", ".", "~")) else f"./{here}"
    for config in configs.values():
        with contextlib.suppress(StorageError):
            known += num_events_by_run(storage_of(config).sizes(RECORDS))
    more = "".join(f"; {text}" for text in (*unread, known_runs(run, known)))
    if not configs:
        return RunError(
            f"run {run!r} is not in {here}, and there is no clusters.yaml that "
            f"names other places{more}"
        )
    searched = ", ".join(f"{name} ({c.storage})" for name, c in configs.items())
    return RunError(f"run {run!r} is neither in {here} nor submitted to {searched}{more}")


def several(run: str, places: Sequence[tuple[str, str]]) -> RunError:
    """Return the error of a name that several places have: each, as PLACE/RUN and where that is."""
    told = ", ".join(f"{address} ({where})" for address, where in places)
    return RunError(f"run {run!r} exists in {len(places)} places. Say which: {told}")


def find_all(cluster: str | None = None) -> tuple[list[SubmittedRun], list[str]]:
    """Return every submitted run, and a message for each place that could not be read."""
    configs = load_clusters()
    searched = {cluster: find_cluster(cluster)} if cluster else configs
    found: dict[tuple[str, str], SubmittedRun] = {}
    problems = []
    for name, config in searched.items():
        try:
            store = storage_of(config)
            for record in list_records(store):
                try:
                    found.setdefault((store.uri, record.run), with_cluster(record, configs))
                except RecordError as error:
                    problems.append(f"{name}: run {record.run}: {error}")
        except StorageError as error:
            problems.append(f"{name}: {error}")
    return list(found.values()), list(dict.fromkeys(problems))


def current_state(found: SubmittedRun) -> tuple[RunState, str]:
    """Return a run's state, and the cluster's report of it; nothing is written.

    The state of a run whose process ended without a word is `lost`: `recover` sees to it.
    """
    state = found.record.state()
    if state.has_ended or not state.handle:
        return state, found.remark
    try:
        cluster, handle = found.own_cluster(), found.handle(state)
        seen = cluster.state(handle)
    except ClusterError as error:
        return state, str(error)
    is_silent = seen.state == "ended" and state.state in (*UNDER_WAY, State.QUEUED)
    if is_silent and not cluster.has_queue:
        # the process writes its end before it leaves: read again before judging
        state = found.record.state()
        if not state.has_ended and state.state != State.PREEMPTED:
            reason = f"its process ended without a word; `pelagos recover {state.run}`"
            state = replace(state, state=State.LOST, reason=reason)
    return state, "; ".join(filter(None, [seen.detail, found.remark]))


def describe(found: SubmittedRun) -> RunDescription:
    """Return everything `status` shows of a submitted run."""
    state, scheduler = current_state(found)
    job = parse_job(found.record.job_yaml(), f"run {state.run}")
    values: dict[str, Any] = {}
    if isinstance(job, TrainingJob):
        directory = run_directory(found)
        values = training_values(directory, job, directory.events())
    return RunDescription(
        run=state.run,
        job=job.job,
        state=state.state,
        reason=state.reason or None,
        cause=f"{state.cause_kind}: {state.cause}" if state.cause else None,
        cluster=f"{state.cluster} ({_kind(found)})",
        scheduler=scheduler or None,
        where=state.where or None,
        attempt=state.attempt,
        restarts=state.restarts,
        after=state.after,
        priority=state.priority,
        submitted_by=state.submitted_by,
        submitted_at=state.submitted_at,
        updated=state.updated_at,
        storage=found.store.uri,
        **values,
    )


def run_directory(found: SubmittedRun) -> RunDirectory:
    """Return the run's directory: itself on a shared disk, else a copy of the pushed files."""
    run = found.record.run
    if not is_remote(found.store.uri):
        return RunDirectory(Path(found.store.uri) / "runs" / run)
    found.copy.pull()
    return RunDirectory(found.copy.directory)


def stop(found: SubmittedRun, now: bool) -> RunState:
    """Ask a run to save and stop; or end it at once, losing the steps after its last checkpoint."""
    state, _ = current_state(found)
    if state.has_ended:
        return state
    if not (state.stop == "save" and not now):
        found.record.append("stop_requested", now=now)
    begun = state.state in UNDER_WAY
    if state.handle and (now or not begun):
        found.own_cluster().cancel(found.handle(state))
    if now or not begun:
        kind = State.STOPPED if begun else State.CANCELLED
        if not found.record.state().has_ended:
            found.record.append(
                kind, reason="stopped at once" if begun else "stopped before it began"
            )
    return found.record.state()


def clone(
    found: SubmittedRun, name: str, cluster: str | None, overrides: Sequence[str], options: Options
) -> SubmissionPlan:
    """Plan a new run with the job of another.

    Raises:
        RunError: it is somebody else's, and says where this user's secrets would be sent.
    """
    run = found.record.run
    own = own_runs.own_events(found.record)
    # read once: somebody may add events, and remove them, meanwhile
    text = (own[-1] if own else found.record.submitting_event())["job"]
    job = parse_job(text, f"run {run}")
    target = cluster or found.record.state().cluster
    if not own:
        changed = parse_job(text, f"run {run}", overrides)
        require_own_places(changed, run, overrides, find_cluster(target))
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "job.yaml"
        path.write_text(resolve_yaml(job))
        return plan(
            [str(path)],
            target,
            [f"name={name}", *overrides],
            options,
        )


def wait(found: SubmittedRun, timeout_seconds: float | None = None) -> RunState:
    """Wait until a run has ended; return how. Raises `TimeoutError`."""
    deadline = None if timeout_seconds is None else time.monotonic() + timeout_seconds
    while True:
        state, _ = current_state(found)
        if state.has_ended or state.state == State.LOST:
            return state
        if deadline is not None and time.monotonic() >= deadline:
            raise TimeoutError(
                f"run {state.run!r} is still {state.state} after {timeout_seconds:g} s"
            )
        time.sleep(POLL_SECONDS)


def follow_logs(found: SubmittedRun, follow: bool) -> Iterator[str]:
    """Yield the run's output, from the first line; with `follow`, until it ends.

    It is read from storage, not over a connection that could be lost: where the storage cannot be
    reached for a while, reading later continues from the same byte.
    """
    position = 0
    while True:
        state, _ = current_state(found)
        has_ended = state.has_ended or state.state == State.LOST
        text = b""
        with contextlib.suppress(StorageError):
            text = _log_from(found, position)
        position += len(text)
        if text:
            yield text.decode(errors="replace")
        if has_ended or not follow:
            break
        time.sleep(POLL_SECONDS)
    if position == 0 and state.handle:
        with contextlib.suppress(ClusterError):
            yield found.own_cluster().logs(found.handle(state))


def _log_from(found: SubmittedRun, position: int) -> bytes:
    run = found.record.run
    if not is_remote(found.store.uri):
        with contextlib.suppress(FileNotFoundError):
            return read_regular(Path(found.store.uri) / "logs" / run / "output.log", position)
        return b""
    text = b""
    number, start = divmod(position, PART_BYTES)
    while True:
        try:
            part = found.store.read(f"logs/{run}/parts/output.log/{number:05d}")
        except StorageMissingError:
            return text
        text += part[start:]
        if len(part) < PART_BYTES:
            return text
        number, start = number + 1, 0


def _open(run: str, config: ClusterConfig, configs: dict[str, ClusterConfig]) -> SubmittedRun:
    record = RunRecord(storage_of(config), run)
    record.state()  # raises, listing the existing runs
    return with_cluster(record, configs)


def with_cluster(record: RunRecord, configs: dict[str, ClusterConfig]) -> SubmittedRun:
    """Return a record with the cluster of one's own that it was last given to."""
    event = record.submitting_event()
    name, recorded = event["cluster"], event.get("cluster_config", {})
    own = configs.get(name)
    if own is None:
        remark = f"your clusters.yaml has no cluster {name!r}, so only the record describes it"
        return SubmittedRun(record, None, remark)
    if storage_of(own).uri != record.store.uri:
        remark = (
            f"the record names cluster {name!r}, whose storage in clusters.yaml is {own.storage}"
        )
        return SubmittedRun(record, None, remark)
    mine = own.model_dump(mode="json")
    differing = [k for k in PLACE_KEYS if k != "storage" and recorded.get(k) != mine.get(k)]
    told = ", ".join(f"{k} {recorded.get(k)!r} (yours: {mine.get(k)!r})" for k in differing)
    remark = f"the record's cluster {name!r} differs: {told}; yours is used" if differing else ""
    return SubmittedRun(record, open_cluster(name, own), remark)


def _kind(found: SubmittedRun) -> str:
    return found.cluster.config.kind if found.cluster is not None else "not in your clusters.yaml"


def storage_of(config: ClusterConfig) -> ObjectStore:
    """Open a cluster's storage."""
    return open_store(config.storage, config.endpoint_url, config.region)
