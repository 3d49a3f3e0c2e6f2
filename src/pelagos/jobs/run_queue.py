"""The queue of a Ray cluster: starts the runs of a storage when their turn comes, until none is left.

    python -m pelagos.jobs.run_queue STORAGE CLUSTER

It is a Ray job itself and keeps nothing: all it knows stands in the records, so it may be killed at
any time and is started again by the next `pelagos submit`.
"""

import contextlib
import logging
import os
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any

from pelagos.infra.clusters import Needs, Submission, recorded_config
from pelagos.infra.clusters.ray_jobs import (
    run_entrypoint,
    runtime_environment,
    scheduler_state,
    submit_patiently,
)
from pelagos.infra.clusters.schema import RayConfig, RayQuotas
from pelagos.infra.directory_store import ObjectStore, open_store
from pelagos.infra.object_store import StorageError
from pelagos.jobs.hand_over import submission_of
from pelagos.jobs.silent_ends import record_silent_end
from pelagos.platform.submission.record import RecordError, RunRecord, RunState, list_records
from pelagos.platform.submission.run_queue import (
    Decision,
    NodeResources,
    WaitingRun,
    decide,
    place_workers,
)

logger = logging.getLogger("pelagos.queue")
POLL_SECONDS = 2.0
# a submit that comes just as the queue leaves still finds it for this long
IDLE_SECONDS = 30.0
STARTED = ("starting", "running")


class Queue:
    """One cluster's queue over one storage."""

    def __init__(self, store: ObjectStore, cluster: str, client: Any) -> None:
        self.store, self.cluster, self.client = store, cluster, client
        self.records: dict[str, RunRecord] = {}
        self._complaints: dict[str, str] = {}

    def serve(self) -> None:
        """Work until nothing has been waiting or running for a while."""
        idle_since = time.monotonic()
        while time.monotonic() - idle_since < IDLE_SECONDS:
            if self.step():
                idle_since = time.monotonic()
            time.sleep(POLL_SECONDS)

    def step(self) -> bool:
        """Look at everything once and act; return whether runs are waiting or running."""
        self.records = {r.run: r for r in list_records(self.store, self.records)}
        states = self._states()
        own = {name: s for name, s in states.items() if s.cluster == self.cluster}
        for name, state in own.items():
            if state.state in STARTED:
                with self._left_out_where_it_fails(name):
                    self._reconcile(self.records[name])
        waiting = [
            WaitingRun(s, self._needs(name)) for name, s in own.items() if _is_waiting(s.state)
        ]
        running = [
            WaitingRun(s, self._needs(name)) for name, s in own.items() if s.state in STARTED
        ]
        decisions = decide(
            waiting,
            running,
            dict.fromkeys(self.records, "unreadable") | {n: s.state for n, s in states.items()},
            self._free([w.needs for w in running]),
            self._quotas(states),
        )
        for decision in decisions:
            with self._left_out_where_it_fails(decision.run):
                self._act(decision)
        return bool(waiting or running)

    def _states(self) -> dict[str, RunState]:
        """Return the state of every run whose record is one: anybody can write there, and what one
        of them wrote must not stop everybody's queue."""
        states: dict[str, RunState] = {}
        for name, record in self.records.items():
            with self._left_out_where_it_fails(name):
                state = record.state()
                if state.cluster == self.cluster and not state.has_ended:
                    self._needs(name), self._config(record)  # raise where they are none
                states[name] = state
        return states

    @contextlib.contextmanager
    def _left_out_where_it_fails(self, run: str) -> Iterator[None]:
        """Leave a run alone whose record is malformed or cannot be acted on, and say so once."""
        try:
            yield
        except (ValueError, TypeError, StorageError) as error:
            if self._complaints.get(run) != str(error):
                self._complaints[run] = str(error)
                logger.warning("run %s is left out: %s", run, error)

    def _act(self, decision: Decision) -> None:
        record = self.records[decision.run]
        if record.state().stop:
            record.append("cancelled", reason="stopped before it began")
        elif decision.action == "start":
            self._start(record)
        elif decision.action == "cancel":
            record.append("cancelled", reason=decision.reason)
        elif record.state().reason != decision.reason:
            record.append("queued", reason=decision.reason)

    def _start(self, record: RunRecord) -> None:
        """Start a run as a Ray job, unless another queue did meanwhile."""
        state, config = record.state(), self._config(record)
        attempt = state.attempt + 1 if state.handle.get("submission_id") else max(1, state.attempt)
        submission: Submission = submission_of(record, attempt, config)
        submission_id = f"pelagos-{record.run}-{len(record.events())}"
        handle = {"submission_id": submission_id}
        if not record.append_if(len(record.events()), "started", handle=handle, attempt=attempt):
            return
        try:
            submit_patiently(
                self.client,
                entrypoint=run_entrypoint(config.python, submission),
                submission_id=submission_id,
                runtime_env=runtime_environment(submission.environment),
                metadata={"pelagos_run": record.run},
            )
        except Exception as error:
            cause = f"{type(error).__name__}: {error}"
            record.append("failed", cause=cause, cause_kind="infrastructure")

    def _reconcile(self, record: RunRecord) -> None:
        """See to a run whose process ended without a word."""
        state = record.state()
        submission_id = state.handle.get("submission_id")
        if submission_id is None:
            return
        try:
            info = self.client.get_job_info(submission_id)
        except RuntimeError:
            return  # just submitted, or the head was restarted: the next look tells
        seen = scheduler_state(str(info.status), info.message or "")
        num_events = len(record.events())
        if seen.state != "ended" or record.state().state not in STARTED:
            return
        output = str(self.client.get_job_logs(submission_id))[-2000:]
        record_silent_end(record, seen.detail, output, num_events)

    def _free(self, running: list[Needs]) -> list[NodeResources]:
        """Return what every node has left besides the runs that the queue has started.

        A ledger of its own, because a run that was just started holds nothing in Ray yet.
        """
        import ray

        total = [
            NodeResources(n["Resources"].get("CPU", 0), n["Resources"].get("GPU", 0))
            for n in ray.nodes()  # type: ignore[no-untyped-call]
            if n["Alive"]
        ]
        for needs in running:
            total = place_workers(needs, total) or total
        return total

    def _needs(self, name: str) -> Needs:
        return Needs(**self.records[name].latest("needs")["needs"])

    def _config(self, record: RunRecord) -> RayConfig:
        config = recorded_config(record.latest("cluster_config")["cluster_config"])
        if not isinstance(config, RayConfig):
            raise RecordError(f"its cluster is of kind {config.kind}; only Ray's have a queue")
        return config

    def _quotas(self, states: Mapping[str, RunState]) -> RayQuotas:
        """Return the limits of the newest submission to this cluster."""
        own = [s for s in states.values() if s.cluster == self.cluster and not s.has_ended]
        newest = max(own, key=lambda s: s.submitted_at, default=None)
        return self._config(self.records[newest.run]).quotas if newest else RayQuotas()


def _is_waiting(state: str) -> bool:
    return state in ("submitted", "queued", "preempted")


def main(arguments: list[str]) -> None:
    """Serve as the queue of a cluster."""
    import ray
    from ray.job_submission import JobSubmissionClient

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    storage, cluster = arguments
    ray.init(address="auto", log_to_driver=False, logging_level=logging.WARNING)
    store = open_store(storage, os.environ.get("PELAGOS_STORAGE_ENDPOINT"))
    Queue(store, cluster, JobSubmissionClient()).serve()


if __name__ == "__main__":
    main(sys.argv[1:])
