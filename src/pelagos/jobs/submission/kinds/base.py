"""The interface of every kind of job on its way to a cluster and there."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from pelagos.infra.clusters import Needs
from pelagos.infra.storage.local import ObjectStore
from pelagos.jobs.submission.shipping.mirror import Mirror
from pelagos.platform.config.kinds import Job
from pelagos.platform.console import HarmlessConsole
from pelagos.platform.records.runs import Outcome

AnyJob = TypeVar("AnyJob", bound=Job)
Key = tuple[str | int, ...]
Place = Callable[[Key, str], str]
"""(key, path or uri) -> the same, absolute; notes a path that the cluster's nodes do not see."""


class Attempt(Protocol):
    """One attempt at a run, as its process on the cluster sees it."""

    store: ObjectStore
    run: str
    runs_dir: Path
    event: dict[str, Any]
    """The event that submits the run."""
    mirrors: list[Mirror]
    """Copies of the run's directories in storage; none where storage is a directory."""

    def watch(self) -> None:
        """Look for a request to stop; called several times a second."""

    def mirror_of(self, run: str) -> Mirror:
        """Return the copy of another run's directory."""

    def identity(self) -> str:
        """Return the run's identity, the same for every attempt."""


class JobKind(ABC, Generic[AnyJob]):
    """A kind of job. The defaults are those of a job that trains nothing and needs no other run."""

    is_training = False
    reports_on_trials = False
    """It is submitted as its trials, runs of their own, and a report on them."""

    def run_name(self, job: AnyJob) -> str:
        """Return the name of the run that the job makes."""
        return str(job.name)  # type: ignore[union-attr]

    def needs(self, job: AnyJob) -> Needs:
        """Return the workers that the job needs at once."""
        resources = job.resources  # type: ignore[union-attr]
        cpus, gpus = resources.cpus_per_worker or 1, resources.gpus_per_worker or 0
        return Needs(resources.num_workers, cpus, gpus)

    def place(self, tree: dict[str, Any], place: Place) -> None:
        """Make the job's own paths absolute, in its plain values `tree`."""

    def runs_needed(self, job: AnyJob) -> dict[Key, str]:
        """Return the runs that must have been submitted before, by the key that names each."""
        return {}

    def datasets_made(self, job: AnyJob) -> tuple[str, ...]:
        """Return the addresses of the datasets that the job writes."""
        return ()

    def replaced(self, job: AnyJob) -> dict[str, str]:
        """Return the places that the job may read or replace with its runner's rights, by key.

        Of a job that somebody else wrote, each must be said again.
        """
        return {}

    def check(self, job: AnyJob, made: Collection[str], earlier: Collection[str]) -> list[str]:
        """Make the checks that are possible before the job is sent; return notes on the others.

        Args:
            made: addresses of datasets that earlier runs of the submission make.
            earlier: names of these runs.
        """
        return []

    def jobs_within(self, job: AnyJob) -> Iterator[Job]:
        """Yield the jobs that it runs, itself first: their plugins are imported."""
        yield job

    def on_cluster(self, job: AnyJob, storage: str, runs_dir: Path) -> AnyJob:
        """Return the job with its directories where this machine of the cluster has them."""
        return job

    def total_steps(self, job: AnyJob) -> int | None:
        """Return the optimizer steps of the whole run, where it is a training."""
        return None

    def may_shrink(self, job: AnyJob) -> bool:
        """Whether it may be tried again with smaller micro-batches."""
        return False

    @abstractmethod
    def run(self, job: AnyJob, attempt: Attempt, console: HarmlessConsole) -> Outcome:
        """Run the job, which is placed, on the cluster."""
