"""Following submitted runs, wherever they run: state, logs, stop, resume, wait, clone, diff."""

import contextlib
import hashlib
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pelagos.infra.clusters import (
    Cluster,
    ClusterConfig,
    ClusterError,
    open_cluster,
    recorded_config,
)
from pelagos.infra.directory_store import ObjectStore, open_store
from pelagos.infra.object_store import StorageError, StorageMissingError, is_remote
from pelagos.jobs.hand_over import hand_over, submission_of
from pelagos.jobs.silent_ends import record_silent_end
from pelagos.jobs.submission_job import needs_of
from pelagos.jobs.submit import Options, SubmissionPlan, plan
from pelagos.platform.config.clusters import find_cluster, load_clusters
from pelagos.platform.config.load import parse_job, resolve_yaml
from pelagos.platform.config.schema import TrainingJob
from pelagos.platform.config.sweep import SweepJob
from pelagos.platform.goodput import goodput
from pelagos.platform.runs import CHANGEABLE_IN_A_BRANCH, RunDirectory, RunError, changed_keys
from pelagos.platform.submission.mirror import PART_BYTES, Mirror
from pelagos.platform.submission.record import RunRecord, RunState, list_records

POLL_SECONDS = 1.0
UNDER_WAY = ("starting", "running")
SEARCHED_FIRST = "runs"


@dataclass(frozen=True)
class SubmittedRun:
    """A run found by name: its record, and the cluster it was last given to."""

    record: RunRecord
    cluster: Cluster

    @property
    def store(self) -> ObjectStore:
        """Where the run's storage is."""
        return self.record.store


def find(run: str, cluster: str | None = None) -> SubmittedRun:
    """Return a submitted run, looked for on one cluster or on all of clusters.yaml.

    Raises:
        RecordError, RunError: there is no such run, or several clusters have one.
    """
    if cluster is not None:
        return _open(run, find_cluster(cluster))
    configs = load_clusters()
    found: dict[str, SubmittedRun] = {}
    for config in configs.values():
        with contextlib.suppress(StorageError):
            candidate = RunRecord(_store(config), run)
            if candidate.store.uri not in found and candidate.exists():
                found[candidate.store.uri] = _open(run, config)
    if not found:
        searched = ", ".join(f"{name} ({c.storage})" for name, c in configs.items()) or "no cluster"
        raise RunError(f"no run {run!r} in ./{SEARCHED_FIRST}, nor submitted to {searched}")
    if len(found) > 1:
        places = ", ".join(found)
        raise RunError(
            f"run {run!r} exists in several storages: {places}; say which: --cluster NAME"
        )
    return next(iter(found.values()))


def find_all(cluster: str | None = None) -> tuple[list[SubmittedRun], list[str]]:
    """Return every submitted run, and what could not be reached."""
    configs = {cluster: find_cluster(cluster)} if cluster else load_clusters()
    found: dict[tuple[str, str], SubmittedRun] = {}
    problems = []
    for name, config in configs.items():
        try:
            store = _store(config)
            for record in list_records(store):
                found.setdefault((store.uri, record.run), _with_cluster(record))
        except StorageError as error:
            problems.append(f"{name}: {error}")
    return list(found.values()), problems


def current_state(found: SubmittedRun) -> tuple[RunState, str]:
    """Return a run's state, mended if its process ended without a word, and what the cluster says."""
    state = found.record.state()
    if state.has_ended or not state.handle:
        return state, ""
    try:
        seen = found.cluster.state(state.handle)
    except ClusterError as error:
        return state, str(error)
    is_silent = seen.state == "ended" and state.state in (*UNDER_WAY, "queued")
    if is_silent and not found.cluster.has_queue:
        # the process writes its end before it leaves: read again before judging
        num_events, state = len(found.record.events()), found.record.state()
        if not state.has_ended and state.state != "preempted":
            _see_to_silent_end(found, state, seen.detail, num_events)
            state = found.record.state()
    return state, seen.detail


def describe(found: SubmittedRun) -> dict[str, Any]:
    """Return everything `status` shows of a submitted run."""
    state, scheduler = current_state(found)
    job = parse_job(found.record.job_yaml(), f"run {state.run}")
    details: dict[str, Any] = {
        "run": state.run,
        "job": job.job,
        "state": state.state,
        "reason": state.reason or "-",
        "cause": f"{state.cause_kind}: {state.cause}" if state.cause else "-",
        "cluster": f"{state.cluster} ({found.cluster.config.kind})",
        "scheduler": scheduler or "-",
        "where": state.where or "-",
        "attempt": state.attempt,
        "restarts": state.restarts,
        "after": ", ".join(state.after) or "-",
        "priority": state.priority,
        "submitted": f"by {state.submitted_by} at {_clock(state.submitted_at)}",
        "updated": state.updated_at,
        "storage": found.store.uri,
    }
    metrics: dict[str, Any] = {}
    if isinstance(job, TrainingJob):
        directory = run_directory(found)
        last = next(iter(directory.last_metrics(1)), {})
        share = goodput(directory.events(), directory.metrics())
        checkpoints = [e["step"] for e in directory.events() if e["kind"] == "checkpoint"]
        details["step"] = int(last.get("step", 0))
        details["total_steps"] = job.schedule.total_steps
        details["last_checkpoint"] = checkpoints[-1] if checkpoints else None
        details["goodput"] = None if share is None else round(share, 4)
        details["tracking"] = job.tracking.uri
        metrics = {k: v for k, v in last.items() if k not in ("time", "step")}
    return {**details, "metrics": metrics}


def run_directory(found: SubmittedRun) -> RunDirectory:
    """Return the run's directory: itself on a shared disk, else a copy of what was pushed."""
    run = found.record.run
    if not is_remote(found.store.uri):
        return RunDirectory(Path(found.store.uri) / "runs" / run)
    place = hashlib.sha256(found.store.uri.encode()).hexdigest()[:12]
    cache = Path(os.environ.get("PELAGOS_CACHE") or Path.home() / ".cache" / "pelagos")
    directory = cache / "views" / place / run
    Mirror(found.store, f"runs/{run}", directory).pull()
    return RunDirectory(directory)


def stop(found: SubmittedRun, now: bool) -> RunState:
    """Ask a run to save and stop; or end it at once, losing what came after its last checkpoint."""
    state, _ = current_state(found)
    if state.has_ended:
        return state
    if not (state.stop == "save" and not now):
        found.record.append("stop_requested", now=now)
    begun = state.state in UNDER_WAY
    if state.handle and (now or not begun):
        found.cluster.cancel(state.handle)
    if now or not begun:
        kind = "stopped" if begun else "cancelled"
        if not found.record.state().has_ended:
            found.record.append(
                kind, reason="stopped at once" if begun else "stopped before it began"
            )
    return found.record.state()


def resume(
    found: SubmittedRun,
    cluster: str | None,
    overrides: Sequence[str],
    options: Options,
    from_step: str | None = None,
) -> RunState:
    """Continue a run, on its cluster or on another one that reaches the same storage.

    With `from_step` it continues from that checkpoint as a branch (`branching.branch`).

    A sweep, once its report is made, measures the trials that have finished since, and reports again.

    Raises:
        RunError: it is running, has finished, or the other cluster keeps its runs elsewhere.
    """
    state, _ = current_state(found)
    is_sweep = isinstance(parse_job(found.record.job_yaml(), f"run {state.run}"), SweepJob)
    if is_sweep and overrides:
        raise RunError(
            f"run {state.run!r} reports on trials that were submitted with it and takes no overrides "
            f"({', '.join(overrides)}); resume a trial with them, or submit another sweep"
        )
    if is_sweep and from_step is not None:
        raise RunError(f"run {state.run!r} reports on a sweep and has no checkpoint to branch from")
    if state.state == "finished" and not is_sweep and from_step is None:
        raise RunError(
            f"run {state.run!r} has finished; `pelagos clone {state.run} NEW` runs it again"
        )
    if not state.has_ended and state.state != "preempted":
        raise RunError(
            f"run {state.run!r} is {state.state}; stop it first: pelagos stop {state.run}"
        )
    name = cluster or state.cluster
    config = find_cluster(name)
    target = open_cluster(name, config)
    if _store(config).uri != found.store.uri:
        raise RunError(
            f"cluster {name} keeps its runs in {config.storage}, this one is in {found.store.uri}: a "
            "run continues only where its checkpoints are. Give both clusters the same storage"
        )
    job = _revised(found, overrides, is_branch=from_step is not None)
    target.check_needs(needs_of(job))
    latest = submission_of(found.record, state.attempt)
    found.record.append(
        "resubmitted",
        cluster=name,
        cluster_config=config.model_dump(mode="json"),
        needs=vars(needs_of(job)),
        code=vars(latest.code),
        overrides=list(overrides),
        attempt=state.attempt + 1,
        handle={},
        **({"from_step": from_step} if from_step is not None else {}),
    )
    hand_over(target, found.record, submission_of(found.record, state.attempt + 1))
    return found.record.state()


def clone(
    found: SubmittedRun, name: str, cluster: str | None, overrides: Sequence[str], options: Options
) -> SubmissionPlan:
    """Plan a new run with the job of another."""
    job = parse_job(found.record.job_yaml(), f"run {found.record.run}")
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "job.yaml"
        path.write_text(resolve_yaml(job))
        return plan(
            [str(path)],
            cluster or found.record.state().cluster,
            [f"name={name}", *overrides],
            options,
        )


def diff(first: SubmittedRun, second: SubmittedRun) -> dict[str, tuple[Any, Any]]:
    """Return the job keys in which two runs differ, with both values."""
    jobs = [
        parse_job(f.record.job_yaml(), f.record.run).model_dump(mode="json")
        for f in (first, second)
    ]
    keys = changed_keys(jobs[0], jobs[1])
    return {key: (_value(jobs[0], key), _value(jobs[1], key)) for key in keys}


def wait(found: SubmittedRun, timeout_seconds: float | None = None) -> RunState:
    """Wait until a run has ended; return how. Raises `TimeoutError`."""
    deadline = None if timeout_seconds is None else time.monotonic() + timeout_seconds
    while True:
        state, _ = current_state(found)
        if state.has_ended:
            return state
        if deadline is not None and time.monotonic() >= deadline:
            raise TimeoutError(f"run {state.run!r} is {state.state} after {timeout_seconds:g} s")
        time.sleep(POLL_SECONDS)


def follow_logs(found: SubmittedRun, follow: bool) -> Iterator[str]:
    """Yield what the run prints, from the first line; with `follow`, until it ends.

    It is read from storage, not over a connection that could be lost: where the storage cannot be
    reached for a while, reading goes on after that from the same byte.
    """
    position = 0
    while True:
        has_ended = found.record.state().has_ended
        text = b""
        with contextlib.suppress(StorageError):
            text = _log_from(found, position)
        position += len(text)
        if text:
            yield text.decode(errors="replace")
        if has_ended or not follow:
            break
        current_state(found)
        time.sleep(POLL_SECONDS)
    if position == 0:
        state = found.record.state()
        with contextlib.suppress(ClusterError):
            yield found.cluster.logs(state.handle) if state.handle else ""


def _log_from(found: SubmittedRun, position: int) -> bytes:
    run = found.record.run
    if not is_remote(found.store.uri):
        with contextlib.suppress(FileNotFoundError):
            path = Path(found.store.uri) / "logs" / run / "output.log"
            with path.open("rb") as file:
                file.seek(position)
                return file.read()
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


def _see_to_silent_end(found: SubmittedRun, state: RunState, detail: str, num_events: int) -> None:
    """Record that a run's process is gone without having said why; start it again if that helps."""
    output = ""
    with contextlib.suppress(ClusterError):
        output = found.cluster.logs(state.handle)[-2000:]
    if record_silent_end(found.record, detail, output, num_events):
        hand_over(found.cluster, found.record, submission_of(found.record, state.attempt + 1))


def _revised(found: SubmittedRun, overrides: Sequence[str], *, is_branch: bool = False) -> Any:
    """Return the run's job with changes; refuses, once the run has begun, what would change it."""
    directory = run_directory(found)
    if (directory.path / "job.yaml").exists():
        return directory.revised_job(overrides, CHANGEABLE_IN_A_BRANCH if is_branch else ())
    if is_branch:
        raise RunError(f"run {found.record.run!r} has no checkpoint yet to branch from")
    return parse_job(found.record.job_yaml(), f"run {found.record.run}", overrides)


def _open(run: str, config: ClusterConfig) -> SubmittedRun:
    record = RunRecord(_store(config), run)
    record.state()  # raises, with the runs there are
    return _with_cluster(record)


def _with_cluster(record: RunRecord) -> SubmittedRun:
    """Return a record with the cluster it was last given to, as it was configured then."""
    latest = record.latest("cluster_config")
    config = recorded_config(latest["cluster_config"])
    return SubmittedRun(record, open_cluster(latest["cluster"], config))


def _store(config: ClusterConfig) -> ObjectStore:
    return open_store(config.storage, config.endpoint_url, config.region)


def _value(tree: Any, key: str) -> Any:
    for part in key.split("."):
        tree = tree[part]
    return tree


def _clock(moment: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(moment))
