"""The process of a submitted run on the cluster: wait, train, record, retry where that can help.

    python -m pelagos.jobs.submission.driver STORAGE RUN ATTEMPT DIGEST

It runs the job of the event with that digest: everyone with access to the storage can write to
the record and to the run's directory, but nothing written there is obeyed.

Exit status: 0 finished or stopped on request, 1 failed, 75 preempted (the scheduler may start the
run again: it continues from its last checkpoint).
"""

import contextlib
import functools
import hashlib
import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from pelagos import plugins
from pelagos.infra.private_directory import temporary_directory
from pelagos.infra.storage.local import ObjectStore, open_store
from pelagos.infra.storage.remote import StorageError, is_remote
from pelagos.jobs.submission.as_submitted import (
    MICRO_BATCH,
)
from pelagos.jobs.submission.kinds import kind_of
from pelagos.jobs.submission.placing import place_job
from pelagos.jobs.submission.records.record import RecordError, RunRecord
from pelagos.jobs.submission.records.summary import Progress
from pelagos.jobs.submission.shipping.mirror import Mirror
from pelagos.platform.config.kinds import Job, as_kind
from pelagos.platform.config.load import parse_job
from pelagos.platform.config.schema import TrainingJob
from pelagos.platform.console import HarmlessConsole
from pelagos.platform.records.causes import classify, decide_retry
from pelagos.platform.records.runs import Outcome, RunDirectory
from pelagos.platform.records.states import State

logger = logging.getLogger("pelagos")
EXIT_FAILED, EXIT_PREEMPTED = 1, 75
POLL_SECONDS = 2.0
PUSH_SECONDS = 5.0
DEPENDENCY_SECONDS = 5.0
LOG_SECONDS = 3.0


class Driver:
    """Drives one attempt of one run, and records its progress.

    Args:
        digest: of the event that submits the run, given by the starter of this process.
    """

    def __init__(self, store: ObjectStore, run: str, attempt: int, digest: str) -> None:
        self.record = RunRecord(store, run)
        self.event = self.record.submitting_event(digest)
        self.store, self.run, self.attempt = store, run, attempt
        scratch = scratch_directory(store)
        self.runs_dir, self.log = scratch / "runs", scratch / "logs" / run / "output.log"
        self.mirrors: list[Mirror] = []
        if is_remote(store.uri):
            self.mirrors = [
                Mirror(store, f"runs/{run}", self.runs_dir / run),
                Mirror(store, f"logs/{run}", self.log.parent),
            ]
        self.notice = os.environ.get("PELAGOS_NOTICE_FILE")
        self.was_noticed = False
        self._next_poll = self._next_push = 0.0

    def drive(self) -> int:
        """Run to the end; return the exit status."""
        state = self.record.state()
        if state.has_ended:
            return 0
        if not self._dependencies_met():
            return EXIT_FAILED
        where = f"{socket.gethostname()} (process {os.getpid()})"
        self.record.append(State.RUNNING, where=where, attempt=self.attempt)
        while True:
            outcome = self._execute()
            self.push()
            if outcome.kind == State.FINISHED:
                self.record.append(State.FINISHED, step=outcome.step)
                return 0
            if outcome.kind == State.STOPPED:
                return self._stopped(outcome)
            if not self._tries_again(outcome):
                return EXIT_FAILED

    def watch(self) -> None:
        """Look for a stop request, and push changes; called several times a second."""
        now = time.monotonic()
        if now >= self._next_poll:
            self._next_poll = now + POLL_SECONDS
            if self.notice and Path(self.notice).exists():
                self.was_noticed = True
                RunDirectory(self.runs_dir / self.run).request_stop()
            try:
                if self.record.state().stop:
                    RunDirectory(self.runs_dir / self.run).request_stop()
            except (StorageError, RecordError, OSError) as error:
                logger.warning("the record cannot be read now: %s", error)
        if now >= self._next_push:
            self._next_push = now + PUSH_SECONDS
            self.push()

    def push(self) -> None:
        """Send records and log to storage, where the storage is not a directory anyway.

        And how far the run is, for lists.
        """
        if (progress := self._progress()) is not None:
            self.record.note_progress(progress)
        for mirror in self.mirrors:
            if problem := mirror.try_push():
                logger.warning("%s could not be sent yet: %s", mirror.prefix, problem)

    @functools.cached_property
    def total_steps(self) -> int | None:
        """Steps of the whole run, where it is a training."""
        with contextlib.suppress(ValueError):  # running it gives the number
            job = parse_job(self.event["job"], f"run {self.run}")
            return kind_of(job).total_steps(job)
        return None

    def _progress(self) -> Progress | None:
        last = next(iter(RunDirectory(self.runs_dir / self.run).last_metrics(1)), None)
        if last is None:
            return None
        values = {key: last.get(key) for key in ("loss", "samples_per_second")}
        numbers = {k: float(v) for k, v in values.items() if isinstance(v, int | float)}
        try:
            return Progress(step=last["step"], total_steps=self.total_steps, **numbers)
        except ValueError:  # on a shared disk others may have written that
            return None

    def _execute(self) -> Outcome:
        """Run the job once; every way it can end is a value."""
        try:
            return self._run_job(place_job(self.job(), self.store.uri, self.runs_dir))
        except KeyboardInterrupt:
            return Outcome(State.STOPPED, 0, "interrupted")
        except Exception as error:
            logger.debug("the job failed", exc_info=True)
            return Outcome(State.FAILED, 0, f"{type(error).__name__}: {error}")

    def job(self) -> Job:
        """Return the job that was submitted, with the micro-batches that fit."""
        shrunk = self.record.state().micro_batch_size
        overrides = [f"{MICRO_BATCH}={shrunk}"] if shrunk is not None else []
        return parse_job(self.event["job"], f"run {self.run}", overrides)

    def _run_job(self, job: Job) -> Outcome:
        return kind_of(job).run(job, self, HarmlessConsole(width=160))

    def identity(self) -> str:
        """Return the run's identity.

        The same on every node that ever drives this submission, also where the first one's records
        never reached the storage.
        """
        submitted = f"{self.store.uri}/{self.run}/{self.record.state().submitted_at}"
        return hashlib.sha256(submitted.encode()).hexdigest()[:32]

    def mirror_of(self, run: str) -> Mirror:
        """Return the copy of a run's directory in storage."""
        return Mirror(self.store, f"runs/{run}", self.runs_dir / run)

    def _stopped(self, outcome: Outcome) -> int:
        if self.record.state().stop:
            self.record.append(State.STOPPED, step=outcome.step)
            return 0
        reason = "time limit or preemption" if self.was_noticed else "the cluster ended the job"
        self.record.append(
            "preempted", cause_kind="preempted", cause=f"{reason}; saved at step {outcome.step}"
        )
        return EXIT_PREEMPTED

    def _tries_again(self, outcome: Outcome) -> bool:
        """Record a failure; return whether the job runs again."""
        state, job = self.record.state(), self.job()
        kind = classify(outcome.cause)
        retry = decide_retry(
            kind,
            state.restarts,
            self.event["retries"],
            may_shrink=kind_of(job).may_shrink(job),
            has_shrunk=state.micro_batch_size is not None,
        )
        details = {"cause_kind": kind, "cause": outcome.cause, "step": outcome.step}
        if not retry.again:
            self.record.append(State.FAILED, **details, reason=retry.why)
            return False
        if retry.smaller_micro_batch:
            details["micro_batch_size"] = _half_micro_batch(job)
        self.record.append("retried", **details, reason=retry.why)
        self.record.append(State.RUNNING, attempt=self.attempt)
        return True

    def _dependencies_met(self) -> bool:
        """Wait for the runs this one comes after; a scheduler that held it has done so already."""
        after = self.event["after"]
        for name in (*after, *self.event.get("after_ended", ())):
            other = RunRecord(self.store, name)
            while not (state := other.state()).has_ended:
                if self.record.state().stop:
                    self.record.append(State.STOPPED, step=0)
                    return False
                time.sleep(DEPENDENCY_SECONDS)
            if state.state != State.FINISHED and name in after:
                self.record.append(
                    "cancelled", reason=f"{name}, which it comes after, {state.state}"
                )
                return False
        return True


def _half_micro_batch(job: Job) -> int:
    from pelagos.platform.config.checks import local_batch_size, micro_batch_size

    training = as_kind(TrainingJob, job)
    whole, local = micro_batch_size(training), local_batch_size(training)
    return next(n for n in range(max(1, whole // 2), 0, -1) if local % n == 0)


def scratch_directory(store: ObjectStore) -> Path:
    """Return where this process keeps runs and logs: the storage itself, if it is a directory."""
    if not is_remote(store.uri):
        return Path(store.uri)
    place = hashlib.sha256(store.uri.encode()).hexdigest()[:12]
    given = os.environ.get("PELAGOS_SCRATCH")
    return (Path(given) if given else temporary_directory()) / place


@contextlib.contextmanager
def _output_kept(path: Path) -> Iterator[None]:
    """Copy the output of this process and its children to a file, keeping its old destination."""
    path.parent.mkdir(parents=True, exist_ok=True)
    read_end, write_end = os.pipe()
    original = os.dup(1)

    # in a storage where others write, a link could lead to any file of this user's
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK
    log = os.open(path, flags, 0o666)

    def copy() -> None:
        with (
            os.fdopen(log, "ab", buffering=0) as file,
            os.fdopen(read_end, "rb", buffering=0) as source,
        ):
            while chunk := source.read(65536):
                file.write(chunk)
                with contextlib.suppress(OSError):
                    os.write(original, chunk)

    thread = threading.Thread(target=copy, name="pelagos-log", daemon=True)
    os.dup2(write_end, 1)
    os.dup2(write_end, 2)
    os.close(write_end)
    thread.start()
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os.dup2(original, 1)
        os.dup2(original, 2)
        thread.join(LOG_SECONDS)  # a child that outlives this process may hold the other end


def import_own_plugins(driver: Driver) -> None:
    """Import the modules that the submitted job names, then no more: its storage is shared."""
    job = driver.job()
    for each in kind_of(job).jobs_within(job):
        plugins.load_for(each)
    plugins.seal()


def main(arguments: list[str]) -> int:
    """Run as the cluster's process of a submitted run; return the exit status."""
    from pelagos.platform.console import set_up_logging

    storage, run, attempt, digest = arguments
    store = open_store(storage, os.environ.get("PELAGOS_STORAGE_ENDPOINT"))
    driver = Driver(store, run, int(attempt), digest)
    try:
        with _output_kept(driver.log):
            set_up_logging(verbose=False)
            try:
                import_own_plugins(driver)
                return driver.drive()
            finally:
                driver.push()
    except BaseException as error:
        with contextlib.suppress(Exception):
            cause = f"{type(error).__name__}: {error}"
            driver.record.append(State.FAILED, cause=cause, cause_kind=classify(cause))
        raise


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
