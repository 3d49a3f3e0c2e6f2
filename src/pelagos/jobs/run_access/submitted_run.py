"""A submitted run among all others: the same verbs as for one of a directory here."""

import hashlib
import json
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

from pelagos.infra.private_directory import cache_directory
from pelagos.infra.storage.files import read_regular, replace_durably
from pelagos.infra.storage.remote import is_remote
from pelagos.jobs.run_access.any_run import AnyRun, Standing, Stopping
from pelagos.jobs.submission import following
from pelagos.jobs.submission.as_submitted import changes_to_own
from pelagos.jobs.submission.following import SubmittedRun
from pelagos.jobs.submission.placing import place_job
from pelagos.jobs.submission.records import own_runs
from pelagos.jobs.submission.shipping.mirror import Mirror
from pelagos.platform.config.kinds import Job
from pelagos.platform.config.load import parse_job
from pelagos.platform.records.description import RunDescription
from pelagos.platform.records.others_runs import COPY_MARK
from pelagos.platform.records.runs import RunDirectory, RunError
from pelagos.platform.records.states import State

# A look at a run in a bucket fetches what is new of its records.
BUCKET_POLL_SECONDS = 5.0


class SubmittedAnyRun(AnyRun):
    """A run that was submitted to a cluster.

    Attributes:
        found: its record.
    """

    def __init__(self, cluster: str, found: SubmittedRun) -> None:
        self.name, self.address = found.record.run, f"{cluster}/{found.record.run}"
        self.found = found
        self.is_in_bucket = is_remote(found.store.uri)
        self._is_pulled = False
        if self.is_in_bucket:
            self.poll_seconds = BUCKET_POLL_SECONDS

    def standing(self) -> Standing:
        state, _ = following.current_state(self.found)
        is_over = state.has_ended or state.state == State.LOST
        return Standing(state.state, is_over, state.cause, state.reason)

    def describe(self) -> RunDescription:
        return following.describe(self.found)

    def output(self, follow: bool) -> Iterator[str]:
        return following.follow_logs(self.found, follow)

    def stop(self, now: bool) -> Stopping:
        before, _ = following.current_state(self.found)
        state = following.stop(self.found, now)
        return Stopping(state.state, "" if before.has_ended else state.stop)

    def job(self) -> Job:
        return parse_job(self.found.record.job_yaml(), f"run {self.name}")

    def directory(self) -> RunDirectory:
        if self.is_in_bucket and not self._is_pulled:
            self._pull()
        run = RunDirectory(Path(self.runs_dir) / self.name)
        if not (run.path / "job.yaml").exists():
            state = self.found.record.state().state
            raise RunError(
                f"run {self.name!r} in {self.found.store.uri} has no training to look at: it is a "
                f"{self.job().job} job that is {state}. A training has one once it has begun"
            )
        return run

    @property
    def runs_dir(self) -> str:
        return str(self._copy.directory.parent if self.is_in_bucket else self._shared)

    def send_back(self, folder: str) -> None:
        if self.is_in_bucket:
            self._copy.push(folder)

    @property
    def _shared(self) -> Path:
        return Path(self.found.store.uri) / "runs"

    @cached_property
    def _copy(self) -> Mirror:
        place = hashlib.sha256(self.found.store.uri.encode()).hexdigest()[:12]
        directory = cache_directory() / "copies" / place / self.name
        return Mirror(self.found.store, f"runs/{self.name}", directory)

    def _pull(self) -> None:
        """Bring the run's files here from a bucket, once, and note which of them are believed.

        Everyone with access to the bucket can write there, and the copy is this user's file. Its job
        counts as this user's own where it is the job that this user submitted.
        """
        self._is_pulled = True
        copy, digest = self._copy.directory, ""
        copy.mkdir(parents=True, exist_ok=True)
        (copy / COPY_MARK).touch()  # until it is known, no file of it is this user's own
        self._copy.pull()
        if (copy / "job.yaml").exists() and self._is_as_submitted(RunDirectory(copy)):
            digest = hashlib.sha256(read_regular(copy / "job.yaml")).hexdigest()
        told = {"of": self.found.store.uri, "own": digest}
        replace_durably(copy / COPY_MARK, json.dumps(told).encode())

    def _is_as_submitted(self, run: RunDirectory) -> bool:
        events = own_runs.own_events(self.found.record)
        where = f"run {self.name}"
        own = [
            place_job(parse_job(event["job"], where), self.found.store.uri, run.path.parent)
            for event in events
        ]
        try:
            return bool(own) and changes_to_own(run, own, ()) == []
        except ValueError:
            return False
