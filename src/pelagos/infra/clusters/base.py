"""The interface of a cluster back end: check, preview, start, look, read logs, cancel."""

import math
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pelagos.infra.clusters.schema import ClusterConfig
from pelagos.infra.doctor import Check

BOOTSTRAP = Path(__file__).with_name("bootstrap.py")


class ClusterError(ValueError):
    """A cluster that cannot be reached, refuses, or can never hold the job; gives the remedy."""


@dataclass(frozen=True)
class Needs:
    """The resources that a run needs at once."""

    num_workers: int = 1
    cpus_per_worker: int = 1
    gpus_per_worker: int = 0

    @property
    def cpus(self) -> int:
        return self.num_workers * self.cpus_per_worker

    @property
    def gpus(self) -> int:
        return self.num_workers * self.gpus_per_worker


@dataclass(frozen=True)
class Code:
    """The archives a run is started with, by address and sha256."""

    wheel_uri: str
    wheel_sha256: str
    files_uri: str
    files_sha256: str


@dataclass(frozen=True)
class Submission:
    """Everything a back end needs to know to start a run.

    It starts when the runs of `after` have finished and those of `after_ended` have ended in any
    way; `after_handles` and `ended_handles` find those on the same cluster.
    A run that does not use Ray is one process, which trains by itself.
    """

    run: str
    storage: str
    attempt: int
    needs: Needs
    code: Code
    uses_ray: bool = True
    priority: int = 0
    after: tuple[str, ...] = ()
    after_ended: tuple[str, ...] = ()
    after_handles: tuple[dict[str, Any], ...] = ()
    ended_handles: tuple[dict[str, Any], ...] = ()
    environment: dict[str, str] = field(default_factory=dict)
    event: str = "DIGEST"
    """Digest of the event that submits it, known once that is written: the run's process obeys this
    event of its record alone."""

    def arguments(self) -> list[str]:
        """Return the arguments of bootstrap.py: the place of the code, then the command."""
        code = self.code
        return [
            *("--wheel", code.wheel_uri, "--wheel-sha256", code.wheel_sha256),
            *("--files", code.files_uri, "--files-sha256", code.files_sha256),
            *("--", self.storage, self.run, str(self.attempt), self.event),
        ]


@dataclass(frozen=True)
class SchedulerState:
    """The cluster's own report of a run."""

    state: Literal["waiting", "running", "ended", "unknown"]
    detail: str = ""
    succeeded: bool | None = None


class Cluster(ABC):
    """One cluster of clusters.yaml.

    Raises:
        ClusterError: from every method, where the cluster cannot be reached or refuses.
    """

    # whether a queue of Pelagos's own sees to runs there whose process ended without a word
    has_queue = False
    # whether many runs can be handed over at once: something there makes them wait for room
    makes_runs_wait = True
    # whether a run of one process gets its devices through Ray, not from the scheduler itself
    trains_through_ray = True

    def __init__(self, name: str, config: ClusterConfig) -> None:
        self.name, self.config = name, config

    @abstractmethod
    def check(self) -> list[Check]:
        """Return findings: does it exist, may we use it, does it match the configuration."""

    @abstractmethod
    def render(self, submission: Submission) -> dict[str, str]:
        """Return exactly the texts that `start` would send, by name."""

    def render_array(self, submissions: Sequence[Submission]) -> dict[str, str]:
        """Return exactly the texts that `start_array` would send, by name."""
        rendered = [(s.run, self.render(s)) for s in submissions]
        return {f"{run}/{name}": text for run, texts in rendered for name, text in texts.items()}

    def sign(self, text: bytes) -> str:
        """Return a signature that only who may start runs here can make.

        Empty where only the submitter starts them.
        """
        return ""

    @abstractmethod
    def start(self, submission: Submission) -> dict[str, Any]:
        """Hand the run to the cluster; return a handle to find it again (small, JSON)."""

    def start_array(self, submissions: Sequence[Submission], at_once: int) -> list[dict[str, Any]]:
        """Hand many like runs over; return a handle of each.

        A back end without arrays starts each by itself, and its own queue says how many run
        `at_once`.
        """
        return [self.start(submission) for submission in submissions]

    @abstractmethod
    def checked_handle(self, run: str, storage: str, handle: Mapping[str, Any]) -> dict[str, Any]:
        """Return a run's handle as its record has it, if `start` can have given it to that run.

        Records are written by everyone with access to the storage: a handle must not lead to another
        run, process or file.

        Raises:
            ClusterError: it is no such handle.
        """

    @abstractmethod
    def state(self, handle: dict[str, Any]) -> SchedulerState:
        """Return the cluster's report of a run."""

    @abstractmethod
    def logs(self, handle: dict[str, Any]) -> str:
        """Return the run's output, as far as the cluster still knows it."""

    @abstractmethod
    def cancel(self, handle: dict[str, Any]) -> None:
        """End the run at once; one that has ended already is no error."""

    def not_its_handle(self, run: str, told: object) -> ClusterError:
        """Return the error for a handle that is none of a run."""
        return ClusterError(
            f"the record of {run} says that it is {told!r} on cluster {self.name}, but this cluster "
            "never gives that name to this run, so somebody else wrote it. Pelagos did not contact "
            "the cluster"
        )

    def check_needs(self, needs: Needs) -> None:
        """Reject needs that the cluster can never meet, with the arithmetic. Raises `ClusterError`."""
        node, most = self.config.node, self.config.max_nodes
        if node is None:
            return
        each = f"{needs.cpus_per_worker} CPU and {needs.gpus_per_worker} GPU"
        fit = workers_per_node(needs, node.cpus, node.gpus)
        if fit == 0:
            raise ClusterError(
                f"cluster {self.name}: one worker needs {each}, but one node has {node.cpus} CPU "
                f"and {node.gpus} GPU, so no node can hold it. Lower "
                f"resources.cpus_per_worker{' or gpus_per_worker' if needs.gpus_per_worker else ''}"
            )
        nodes = math.ceil(needs.num_workers / fit)
        if most is not None and nodes > most:
            raise ClusterError(
                f"cluster {self.name}: {needs.num_workers} workers of {each} at {fit} per node take "
                f"{nodes} nodes. The cluster has at most {most}, which hold {most * fit}. Lower "
                f"resources.num_workers to {most * fit} or less"
            )

    def num_nodes(self, needs: Needs) -> int:
        """Return how many nodes the workers take, or 1 where the hardware is not described."""
        node = self.config.node
        if node is None:
            return 1
        return math.ceil(needs.num_workers / workers_per_node(needs, node.cpus, node.gpus))

    def price_per_hour(self, needs: Needs) -> float | None:
        """Return the run's cost per hour, or None where clusters.yaml gives no price."""
        price = self.config.price_per_device_hour
        return None if price is None else price * (needs.gpus or needs.cpus)


def workers_per_node(needs: Needs, cpus: float, gpus: float) -> int:
    """Return how many workers fit on a node."""
    by_cpu = int(cpus // needs.cpus_per_worker)
    return min(by_cpu, int(gpus // needs.gpus_per_worker)) if needs.gpus_per_worker else by_cpu


def local_command(submission: Submission) -> list[str]:
    """Return the command line that starts a run with this interpreter."""
    return [sys.executable, str(BOOTSTRAP), *submission.arguments()]
