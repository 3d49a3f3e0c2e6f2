"""Measuring batch by batch, the next one read while one is forecast, and putting the parts together.

A trajectory's batch depends on the batch size alone, and a batch's part of a result on
the batch alone. So the numbers do not depend on which worker measures a batch, or in which order.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, Protocol

Unit = tuple[int, int]
"""The number of a measurement, and of a batch of it."""


class Measurement(Protocol):
    """A measurement in batches."""

    @property
    def num_batches(self) -> int: ...

    def read(self, batch: int) -> Any:
        """Return the data of a batch; called from a thread of its own, one batch ahead."""

    def measure(self, batch: int, read: Any) -> Any:
        """Return the part of the result that a batch, which was read, makes."""

    def combine(self, parts: Sequence[Any]) -> Any:
        """Return the result, of the parts of all batches in order."""


class BatchWorker:
    """Measures batches of several measurements one after the other, reading the next meanwhile.

    Memory is that of two batches. Used as a context it ends its thread.
    """

    def __init__(self, measurements: Sequence[Measurement]) -> None:
        self.measurements = measurements
        self._pool = ThreadPoolExecutor(1, "read-ahead")
        self._ahead: tuple[Unit, Future[Any]] | None = None

    def __call__(self, unit: Unit, upcoming: Unit | None) -> tuple[Unit, Any]:
        """Return the unit and its part; read `upcoming`, which is asked for next, meanwhile."""
        read = self._read(unit)
        self._ahead = None if upcoming is None else (upcoming, self._begin(upcoming))
        number, batch = unit
        return unit, self.measurements[number].measure(batch, read)

    def _read(self, unit: Unit) -> Any:
        ahead, self._ahead = self._ahead, None
        future = ahead[1] if ahead is not None and ahead[0] == unit else self._begin(unit)
        return future.result()

    def _begin(self, unit: Unit) -> Future[Any]:
        number, batch = unit
        return self._pool.submit(self.measurements[number].read, batch)

    def __enter__(self) -> BatchWorker:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._pool.shutdown(cancel_futures=True)


def units_of(measurements: Sequence[Measurement]) -> list[Unit]:
    """Return every batch of every measurement, in order."""
    return [(n, batch) for n, m in enumerate(measurements) for batch in range(m.num_batches)]


def measure_here(measurements: Sequence[Measurement]) -> list[Any]:
    """Return the result of each measurement, all batches measured by this thread."""
    units = units_of(measurements)
    with BatchWorker(measurements) as worker:
        parts = [
            worker(u, following) for u, following in zip(units, [*units[1:], None], strict=True)
        ]
    return combined(measurements, parts)


def combined(measurements: Sequence[Measurement], parts: Iterable[tuple[Unit, Any]]) -> list[Any]:
    """Return the result of each measurement from the parts of all batches, in whatever order."""
    by_unit = dict(parts)
    return [
        m.combine([by_unit[number, batch] for batch in range(m.num_batches)])
        for number, m in enumerate(measurements)
    ]
