"""Making a dataset shard by shard, in parallel, killable at any moment: generate and convert.

Work on a shard is a function of its number that returns a report. It runs in Ray workers, in
threads or in this process; unfinished work continues after the shards that already exist.
"""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from pelagos.data_pipelines.store import (
    DatasetSpec,
    DatasetWriter,
    create_dataset,
    resume_dataset,
)
from pelagos.infra.ray_cluster import ray_cluster
from pelagos.infra.ray_workers import spread
from pelagos.platform.config.schema import ResourcesConfig

LINE_EVERY_SECONDS = 10.0

Report = TypeVar("Report")
Work = Callable[[int], Report]
Launch = Callable[[Work[Report], list[int]], Iterable[Report]]


def begin(
    uri: str, spec: DatasetSpec, overwrite: bool, options: dict[str, Any] | None
) -> DatasetWriter:
    """Create a dataset, or continue an unfinished one of the same specification.

    Raises:
        FileExistsError, ValueError: another one is there, and `overwrite` is false.
    """
    try:
        return create_dataset(uri, spec, storage_options=options or None)
    except FileExistsError:
        pass
    try:
        return resume_dataset(uri, spec, options or None)
    except ValueError:
        if not overwrite:
            raise
    return create_dataset(uri, spec, overwrite=True, storage_options=options or None)


@contextmanager
def abandoned_if_empty(writer: DatasetWriter) -> Iterator[None]:
    """On an error, remove a started dataset if no shard was written (`DatasetWriter.abandon`)."""
    try:
        yield
    except Exception:
        with contextlib.suppress(Exception):  # the first error is the one to report
            writer.abandon()
        raise


@contextmanager
def launcher(resources: ResourcesConfig, num_threads: int = 1) -> Iterator[Launch[Any]]:
    """A function that does work on shards and yields their reports as they come.

    Args:
        num_threads: with `launcher: none`, how many shards are in work in this process.
    """
    if resources.launcher == "none":
        yield map if num_threads == 1 else functools.partial(_in_threads, num_threads)
        return
    workers = resources.num_workers
    cpus, gpus = workers * resources.cpus_per_worker, workers * resources.gpus_per_worker
    with ray_cluster(resources.ray_address, num_cpus=cpus, num_gpus=gpus):
        yield functools.partial(_in_ray, resources)


def _in_threads(num_threads: int, work: Work[Report], shards: list[int]) -> Iterator[Report]:
    """Shards in threads of this process; after a failure no further one is begun."""
    waiting = list(reversed(shards))
    running: set[Future[Report]] = set()
    with ThreadPoolExecutor(num_threads, "shard") as pool:
        while waiting or running:
            while waiting and len(running) < num_threads:
                running.add(pool.submit(work, waiting.pop()))
            ready, running = wait(running, return_when=FIRST_COMPLETED)
            for future in ready:
                yield future.result()


def _in_ray(resources: ResourcesConfig, work: Work[Report], shards: list[int]) -> Iterator[Report]:
    """Shards in Ray workers, one per worker at a time."""
    return spread(
        functools.partial(_alone, work),
        shards,
        num_workers=resources.num_workers,
        cpus_per_worker=resources.cpus_per_worker,
        gpus_per_worker=resources.gpus_per_worker,
    )


def _alone(work: Work[Report], shard: int, following: int | None) -> Report:
    """Work on a shard; nothing is made ready for the one that follows."""
    return work(shard)


class ShardProgress:
    """Trajectories done, rate and remaining time: a live bar, or a line now and then."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.live = console.is_terminal
        self.bar = Progress(
            TextColumn("{task.description}", style="bold", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}", markup=False),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            disable=not self.live,
        )

    def begin(self, name: str, total: int, done: int) -> None:
        """Start a dataset of which `done` trajectories are there already."""
        self.name, self.total, self.done, self.computed = name, total, done, 0
        self.num_bytes = 0
        self.started = self.last_line = time.monotonic()
        self.task = self.bar.add_task(name, total=total, completed=done, rate="")
        if done:
            self.console.print(f"{name}: {done} of {total} trajectories already exist")

    def advance(self, count: int, num_bytes: int = 0) -> None:
        """Count trajectories that were just written, and their bytes where the rate is in bytes."""
        self.done += count
        self.computed += count
        self.num_bytes += num_bytes
        seconds = max(1e-9, time.monotonic() - self.started)
        rate = self.computed / seconds
        megabytes = f", {self.num_bytes / seconds / 1e6:.0f} MB/s" if self.num_bytes else ""
        self.bar.update(self.task, completed=self.done, rate=f"{rate:.2f}/s{megabytes}")
        if not self.live and time.monotonic() - self.last_line >= LINE_EVERY_SECONDS:
            self.last_line = time.monotonic()
            left = (self.total - self.done) / rate
            self._line(f"{rate:.2f} trajectories/s{megabytes}, {left:.0f} s left")

    def end(self) -> None:
        """Say how a dataset went, where no bar shows it."""
        if not self.live:
            self._line(f"{time.monotonic() - self.started:.1f} s")

    def _line(self, text: str) -> None:
        self.console.print(f"{self.name}: {self.done}/{self.total} {text}", highlight=False)


@contextmanager
def shard_progress(console: Console) -> Iterator[ShardProgress]:
    """Show the progress of shards while the context is open."""
    progress = ShardProgress(console)
    with progress.bar:
        yield progress
