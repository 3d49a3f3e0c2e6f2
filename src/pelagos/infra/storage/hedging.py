"""One hedged request past the 99th percentile (Dean and Barroso, The Tail at Scale, 2013).

A call runs in a partner thread while its caller waits. If it takes longer than 99 % of recent calls
of about its size, the same call is sent once more and the first answer counts. At most one call in
twenty is hedged, so that a store which is slow for everybody does not get twice the load.

The hand-over costs 0.05 to 0.2 ms, negligible for a network, but much for a store on this machine:
where answers can come within milliseconds, calls are made directly until one is late.
"""

from __future__ import annotations

import _thread
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Generic, TypeVar

T = TypeVar("T")

NUM_KEPT = 512  # latencies per size class
NUM_BETWEEN_UPDATES = 32
LEAST_SEEN = 64  # before the percentile is believed
FIRST_DELAY_SECONDS = 1.0
LEAST_DELAY_SECONDS = 0.05
LARGEST_SHARE = 0.05
FREE_HEDGES = 8
NEAR_SECONDS = 0.008  # a store whose fastest answers come sooner is next door
LATE_SECONDS = 1.0


class Hedger:
    """Runs calls, each hedged once if it is late. Any number of threads may call.

    Attributes:
        num_hedges: calls that were sent twice.
    """

    def __init__(self) -> None:
        self.num_hedges = 0
        self._num_calls = 0
        self._latencies: dict[int, _Latencies] = {}
        self._lock = threading.Lock()

    def call(self, operation: Callable[[], T], size: int) -> T:
        """The result of `operation`, which reads `size` bytes; its exception if it raises."""
        kind = size.bit_length()
        latencies = self._latencies.get(kind) or self._latencies.setdefault(kind, _Latencies())
        self._num_calls += 1
        started = time.perf_counter()
        if latencies.is_direct:
            try:
                return operation()
            finally:
                latencies.add(time.perf_counter() - started)
        race = _Race[T]()
        self._start(race, operation)
        if not race.decided.acquire(timeout=latencies.delay_seconds):
            if self._may_hedge():
                race.num_runners = 2
                self._start(race, operation)
            race.decided.acquire()
        latencies.add(time.perf_counter() - started)
        if race.error is not None:
            raise race.error
        return race.result  # type: ignore[return-value]

    def _may_hedge(self) -> bool:
        with self._lock:
            if self.num_hedges >= FREE_HEDGES + LARGEST_SHARE * self._num_calls:
                return False
            self.num_hedges += 1
            return True

    def _start(self, race: _Race[T], operation: Callable[[], T]) -> None:
        try:
            partner = _idle.pop()
        except IndexError:
            partner = _Partner()
        partner.run(race, operation)


class _Latencies:
    """Recent latencies of calls of one size.

    Attributes:
        delay_seconds: how long the next call may take unhedged.
        is_direct: whether the next call need not be watched.
    """

    def __init__(self) -> None:
        self.delay_seconds = FIRST_DELAY_SECONDS
        self.is_direct = False
        self._kept: deque[float] = deque(maxlen=NUM_KEPT)
        self._num_seen = 0

    def add(self, seconds: float) -> None:
        self._kept.append(seconds)
        self._num_seen += 1
        if self._num_seen >= LEAST_SEEN and self._num_seen % NUM_BETWEEN_UPDATES == 0:
            ordered = sorted(self._kept.copy())
            self.delay_seconds = max(ordered[int(0.99 * len(ordered))], LEAST_DELAY_SECONDS)
            is_near = ordered[len(ordered) // 20] < NEAR_SECONDS
            self.is_direct = is_near and ordered[-1] < LATE_SECONDS
        if seconds > LATE_SECONDS:
            self.is_direct = False


class _Race(Generic[T]):
    """One or two runs of an operation: the first success decides, or the last failure."""

    def __init__(self) -> None:
        self.decided = _thread.allocate_lock()
        self.decided.acquire()
        self.result: T | None = None
        self.error: BaseException | None = None
        self.num_runners = 1
        self._num_failed = 0
        self._is_decided = False
        self._guard = _thread.allocate_lock()

    def finish(self, result: T | None, error: BaseException | None) -> None:
        with self._guard:
            if self._is_decided:
                return
            if error is not None:
                self._num_failed += 1
                if self._num_failed < self.num_runners:
                    return
            self.result, self.error, self._is_decided = result, error, True
            self.decided.release()


class _Partner:
    """A thread that runs one operation after the other; back among the idle after each."""

    def __init__(self) -> None:
        self._wake = _thread.allocate_lock()
        self._wake.acquire()
        self._race: Any = None
        self._operation: Callable[[], Any] | None = None
        threading.Thread(target=self._loop, daemon=True, name="pelagos-read").start()

    def run(self, race: Any, operation: Callable[[], Any]) -> None:
        self._race, self._operation = race, operation
        self._wake.release()

    def _loop(self) -> None:
        while True:
            self._wake.acquire()
            race, operation = self._race, self._operation
            self._race = self._operation = None
            assert operation is not None
            result, error = None, None
            try:
                result = operation()
            except BaseException as caught:
                error = caught
            _idle.append(self)
            race.finish(result, error)
            del race, operation, result, error


# Shared by all stores of a process. A fork has none of its parent's threads.
_idle: list[_Partner] = []
os.register_at_fork(after_in_child=_idle.clear)
