"""Work spread over Ray workers that stay: each takes one piece after the other until none is left."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

MAX_RETRIES = 3  # of a worker whose process or node died, and of the piece that it had

Item = TypeVar("Item")
Report = TypeVar("Report")
Work = Callable[[Item, Item | None], Report]
"""(piece, the piece that the same worker takes next, or None if that is not known) -> report."""


def spread(
    work: Work[Item, Report],
    items: Sequence[Item],
    *,
    num_workers: int,
    cpus_per_worker: int = 1,
    gpus_per_worker: int = 0,
    reads_ahead: bool = False,
) -> Iterator[Report]:
    """Yield the reports of all pieces as they come, in the cluster that this process is joined to.

    Each worker receives `work` once and keeps it: data that it loads is loaded once per worker. A worker
    that the cluster has no room for yet begins when it has; the others go ahead meanwhile.

    Args:
        cpus_per_worker: also its number of torch's threads.
        reads_ahead: `work` makes use of the piece that follows: where there is one for every worker,
            it is decided with the one before.

    Raises:
        Exception: the exception of `work`, unchanged.
    """
    import ray

    waiting = list(reversed(items))
    actor_class: Any = ray.remote(
        num_cpus=cpus_per_worker,
        num_gpus=gpus_per_worker,
        max_restarts=MAX_RETRIES,
        max_task_retries=MAX_RETRIES,
    )(_Worker)
    sent = ray.put(work)
    count = min(num_workers, len(items))
    workers = [actor_class.remote(cpus_per_worker) for _ in range(count)]
    calls: dict[Any, Any] = {worker.ready.remote(): worker for worker in workers}
    upcoming: dict[Any, Item] = {}
    num_running = 0
    try:
        while waiting or upcoming or num_running:
            (call,), _ = ray.wait(list(calls), num_returns=1)
            worker = calls.pop(call)
            reports = _answer(call)
            num_running -= len(reports)
            item = upcoming.pop(worker) if worker in upcoming else _pop(waiting)
            if item is not None:
                num_idle = count - num_running - 1
                following = _pop(waiting) if reads_ahead and len(waiting) > num_idle else None
                if following is not None:
                    upcoming[worker] = following
                calls[worker.run.remote([sent], item, following)] = worker
                num_running += 1
            yield from reports
    finally:
        for worker in workers:
            ray.kill(worker)


def _pop(waiting: list[Item]) -> Item | None:
    return waiting.pop() if waiting else None


def _answer(call: Any) -> list[Any]:
    """Return the report of a call, none if it was only the worker's word that it is there."""
    import ray
    from ray.exceptions import RayTaskError

    try:
        reports: list[Any] = ray.get(call)
    except RayTaskError as error:
        raise (error.cause if isinstance(error.cause, Exception) else error) from None
    return reports


class _Worker:
    """A Ray actor."""

    def __init__(self, num_threads: int) -> None:
        import torch

        torch.set_num_threads(num_threads)
        self.work: Work[Any, Any] | None = None

    def ready(self) -> list[Any]:
        return []

    def run(self, sent: Sequence[Any], item: Any, following: Any) -> list[Any]:
        """Work on an item; `sent` holds the reference to the work, which is fetched once.

        Not an argument of the constructor: for those in its store Ray writes a line of alarm, in case
        they are gone when it starts the actor again.
        """
        if self.work is None:
            import ray

            (work,) = sent
            self.work = ray.get(work)
        return [self.work(item, following)]
