"""A file through a model, block by block: read and forecast in threads, written in order.

At any time at most `workers` + 1 blocks are in memory, however long the file is. Blocks do not depend on
the number of workers, so neither does the output.
"""

import collections
import contextlib
import logging
import math
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from rich.console import Console

from pelagos.jobs.forecasting.sinks import AtomicTarget
from pelagos.jobs.forecasting.sources import Source
from pelagos.jobs.making.shard_work import shard_progress
from pelagos.jobs.weights.labelled import Labelled
from pelagos.jobs.weights.trained_on import ForecastWarning

logger = logging.getLogger(__name__)
Answer = Callable[[Labelled], Labelled]
_BLOCK_BYTES = 32 * 2**20
_MOST_ROWS = 16


def rows_per_block(values_per_row: int) -> int:
    """Return how many rows go together: about 32 MiB of forecasts, and at most 16 rows."""
    return max(1, min(_MOST_ROWS, _BLOCK_BYTES // (4 * max(1, values_per_row))))


def stream(
    source: Source,
    answer: Answer,
    target: AtomicTarget,
    *,
    block_rows: int,
    workers: int,
    console: Console | None = None,
) -> int:
    """Write the answer to every row of a source; return the number of rows. All of it, or no file."""
    quiet = console or Console(quiet=True)
    try:
        with shard_progress(quiet) as progress:
            progress.begin(target.target.name, source.num_rows, 0)
            for rows, block in _answers(source, answer, block_rows, workers):
                target.write(rows, block, source.coordinates)
                progress.advance(len(rows))
            progress.end()
        target.finish()
    finally:
        target.discard()
    return source.num_rows


@contextlib.contextmanager
def each_warning_once() -> Iterator[None]:
    """Log each warning of a forecast once, not for every block."""
    with warnings.catch_warnings():
        warnings.simplefilter("always", ForecastWarning)
        show, seen = warnings.showwarning, set()

        def show_once(message: Warning | str, category: type[Warning], *place: Any) -> None:
            if not issubclass(category, ForecastWarning):
                show(message, category, *place)
            elif str(message) not in seen:
                seen.add(str(message))
                logger.warning("%s", message)

        warnings.showwarning = show_once  # type: ignore[assignment]
        yield


def _answers(
    source: Source, answer: Answer, block_rows: int, workers: int
) -> Iterator[tuple[range, Labelled]]:
    """Yield the blocks in order; the next ones are made meanwhile."""
    if source.num_rows < 1:
        raise ValueError("the file holds no sample to start from")
    count = math.ceil(source.num_rows / block_rows)
    blocks = [
        range(n * block_rows, min((n + 1) * block_rows, source.num_rows)) for n in range(count)
    ]
    pending: collections.deque[tuple[range, Future[Labelled]]] = collections.deque()
    with ThreadPoolExecutor(workers, "forecast") as pool:
        try:
            for rows in blocks:
                pending.append((rows, pool.submit(lambda r: answer(source.read(r)), rows)))
                if len(pending) > workers:
                    yield _next(pending)
            while pending:
                yield _next(pending)
        finally:
            for _, future in pending:
                future.cancel()


def _next(
    pending: "collections.deque[tuple[range, Future[Labelled]]]",
) -> tuple[range, Labelled]:
    rows, future = pending.popleft()
    return rows, future.result()
