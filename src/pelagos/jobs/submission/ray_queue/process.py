"""The queue of a Ray cluster: starts the runs of a storage when their turn comes, until none is left.

    python -m pelagos.jobs.submission.ray_queue.process STORAGE CLUSTER

It is a Ray job itself and keeps nothing: all its knowledge is in the records, so it may be killed at
any time and is started again by the next `pelagos submit`.

Everyone with access to the storage can write records. The queue's runs, and their environment
and quotas, come from events that are signed with the cluster's token alone.
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
    is_job_of,
    run_entrypoint,
    runtime_environment,
    scheduler_state,
    submit_patiently,
    token_here,
)
from pelagos.infra.clusters.schema import RayConfig, RayQuotas
from pelagos.infra.signatures import is_signed
from pelagos.infra.storage.local import ObjectStore, open_store
from pelagos.infra.storage.remote import StorageError
from pelagos.jobs.submission.handing_over import submission_of
from pelagos.jobs.submission.ray_queue.rules import (
    Decision,
    NodeResources,
    WaitingRun,
    decide,
    place_workers,
)
from pelagos.jobs.submission.records.record import RecordError, RunRecord, RunState, list_records
from pelagos.jobs.submission.silent_ends import record_silent_end
from pelagos.platform.records.states import UNDER_WAY, State

logger = logging.getLogger("pelagos.queue")
POLL_SECONDS = 2.0
# a submit that comes just as the queue leaves still finds it for this long
IDLE_SECONDS = 30.0


class Queue:
    """One cluster's queue over one storage; with no token, everyone may run anything there anyway."""

    def __init__(self, store: ObjectStore, cluster: str, client: Any, token: str = "") -> None:
        self.store, self.cluster, self.client, self.token = store, cluster, client, token
        self.records: dict[str, RunRecord] = {}
        self._submissions: dict[str, tuple[Submission, RayConfig]] = {}
        """What each run here that has not ended is started with, as it was last listed."""
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
            if state.state in UNDER_WAY:
                with self._left_out_where_it_fails(name):
                    self._reconcile(self.records[name])
        waiting = [self._with_needs(s) for s in own.values() if _is_waiting(s.state)]
        running = [self._with_needs(s) for s in own.values() if s.state in UNDER_WAY]
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

    def _with_needs(self, state: RunState) -> WaitingRun:
        return WaitingRun(state, self._submissions[state.run][0].needs)

    def _states(self) -> dict[str, RunState]:
        """Return the state of every run whose record is one.

        Anybody can write there, and one bad record must not stop everybody's queue.
        """
        states: dict[str, RunState] = {}
        self._submissions = {}
        for name, record in self.records.items():
            with self._left_out_where_it_fails(name):
                state = record.seen_state()
                if state.cluster == self.cluster and not state.has_ended:
                    self._submissions[name] = self._submission(record)
                states[name] = state
        return states

    def _signed_event(self, record: RunRecord) -> dict[str, Any]:
        """Return the event that submits a run, if somebody who holds the cluster's token wrote it.

        Raises:
            RecordError: another did, which is recorded as the cause of the wait.
        """
        event = record.submitting_event(events=record.seen())
        if not self.token or is_signed(self.token, self.store.uri, record.run, event):
            return event
        reason = (
            f"not started: it was not submitted with the token of cluster {self.cluster}. With it "
            f"(token_env or token_file in clusters.yaml): `pelagos stop {record.run}`, then `pelagos "
            f"resume {record.run}`"
        )
        if record.seen_state().reason != reason:
            record.append(State.QUEUED, reason=reason)
        raise RecordError(reason)

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
        if record.seen_state().stop:
            record.append(State.CANCELLED, reason="stopped before it began")
        elif decision.action == "start":
            self._start(record)
        elif decision.action == "cancel":
            record.append(State.CANCELLED, reason=decision.reason)
        elif record.seen_state().reason != decision.reason:
            record.append(State.QUEUED, reason=decision.reason)

    def _start(self, record: RunRecord) -> None:
        """Start a run as a Ray job, unless another queue did meanwhile."""
        state, num_events = record.seen_state(), len(record.seen())
        attempt = state.attempt + 1 if state.handle.get("submission_id") else max(1, state.attempt)
        submission, config = self._submission(record, attempt)
        submission_id = f"pelagos-{record.run}-{num_events}"
        handle = {"submission_id": submission_id}
        # something came since: the next look decides
        if not record.append_if(num_events, "started", handle=handle, attempt=attempt):
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
            record.append(State.FAILED, cause=cause, cause_kind="infrastructure")

    def _reconcile(self, record: RunRecord) -> None:
        """See to a run whose process ended without a word."""
        state = record.seen_state()
        submission_id = state.handle.get("submission_id")
        if not is_job_of(record.run, submission_id):
            return  # none was given, or somebody names another job there
        try:
            info = self.client.get_job_info(submission_id)
        except RuntimeError:
            return  # just submitted, or the head was restarted: the next look shows which
        seen = scheduler_state(str(info.status), info.message or "")
        num_events = len(record.events())
        if seen.state != "ended" or record.state().state not in UNDER_WAY:
            return
        output = str(self.client.get_job_logs(submission_id))[-2000:]
        record_silent_end(record, seen.detail, output, num_events)

    def _free(self, running: list[Needs]) -> list[NodeResources]:
        """Return every node's free resources, less those of the runs that the queue has started.

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

    def _submission(self, record: RunRecord, attempt: int = 1) -> tuple[Submission, RayConfig]:
        """Return the inputs of a run's start: all from one event, as it was last listed."""
        event = self._signed_event(record)
        config = recorded_config(event.get("cluster_config", {}))
        if not isinstance(config, RayConfig):
            raise RecordError(f"its cluster is of kind {config.kind}; only Ray's have a queue")
        return submission_of(record, event, attempt, config), config

    def _quotas(self, states: Mapping[str, RunState]) -> RayQuotas:
        """Return the limits of the newest submission to this cluster."""
        own = [s for s in states.values() if s.cluster == self.cluster and not s.has_ended]
        newest = max(own, key=lambda s: s.submitted_at, default=None)
        return self._submissions[newest.run][1].quotas if newest else RayQuotas()


def _is_waiting(state: str) -> bool:
    return state in (State.SUBMITTED, State.QUEUED, State.PREEMPTED)


def main(arguments: list[str]) -> None:
    """Serve as the queue of a cluster."""
    import ray
    from ray.job_submission import JobSubmissionClient

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    storage, cluster = arguments
    ray.init(address="auto", log_to_driver=False, logging_level=logging.WARNING)
    store = open_store(storage, os.environ.get("PELAGOS_STORAGE_ENDPOINT"))
    token = token_here()
    if not token:
        logger.warning(
            "this Ray cluster asks for no token: everyone who reaches it runs code there"
        )
    Queue(store, cluster, JobSubmissionClient(), token).serve()


if __name__ == "__main__":
    main(sys.argv[1:])
