"""How patiently an object store is read, and the cost of reading so far."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field, fields
from typing import Any, Literal

OPTION = "pelagos"  # the key of `storage_options` that is Pelagos's own, not the file system's

Backend = Literal["auto", "obstore", "fsspec"]


@dataclass(frozen=True)
class ReadPolicy:
    """Time-outs and the choice of client; `storage_options={"pelagos": {...}}` sets them.

    Attributes:
        backend: `obstore` reads ranges through obstore, `fsspec` through fsspec (s3fs for S3);
            `auto` takes obstore where it knows the scheme.
        connect_seconds: for opening a connection.
        attempt_seconds: how long an attempt may go without a byte arriving.
        first_answer_deadline_seconds: overall, while the endpoint has never answered: it may not
            exist.
        deadline_seconds: overall, once it has answered: an outage of a minute passes.
        hedge: send a second request when the first is later than 99 % of its like (obstore alone).
    """

    backend: Backend = "auto"
    connect_seconds: float = 3.0
    attempt_seconds: float = 5.0
    first_answer_deadline_seconds: float = 10.0
    deadline_seconds: float = 90.0
    hedge: bool = True

    def __post_init__(self) -> None:
        if self.backend not in ("auto", "obstore", "fsspec"):
            raise ValueError(f"backend {self.backend!r} of a store must be auto, obstore or fsspec")
        for name in ("connect", "attempt", "first_answer_deadline", "deadline"):
            seconds = getattr(self, f"{name}_seconds")
            if not seconds > 0:
                raise ValueError(f"{name}_seconds of a store must be positive, got {seconds}")


def split_options(options: dict[str, Any] | None) -> tuple[ReadPolicy, dict[str, Any]]:
    """The policy in `storage_options`, and the options that are for the file system.

    Raises:
        ValueError: the policy has an unknown key or a value out of range.
    """
    rest = dict(options or {})
    given = rest.pop(OPTION, {})
    unknown = set(given) - {f.name for f in fields(ReadPolicy)}
    if unknown:
        raise ValueError(
            f"storage_options[{OPTION!r}] has unknown keys {sorted(unknown)}; known: "
            f"{[f.name for f in fields(ReadPolicy)]}"
        )
    return ReadPolicy(**given), rest


@dataclass
class ReadCounters:
    """The cost of reading from a store so far. Counts only grow; any thread may add.

    Attributes:
        requests: range and object reads sent to the store, retries and hedges included.
        retries: attempts after a first that failed.
        hedges: second requests sent because the first was late.
        bytes_fetched: bytes that came from the store.
        damaged_reads: frames or indices whose checksum was wrong, and that were fetched once more.
        retry_seconds: time lost to failed attempts and the pauses after them.
        cache_hits, cache_misses: ranges read from the node's cache; trajectories put there.
        cache_bypasses: ranges read past a cache that is full or out of order.
        cache_drops: entries found damaged and removed.
        cache_wait_seconds: time spent waiting for another rank or thread to fetch.
    """

    requests: int = 0
    retries: int = 0
    hedges: int = 0
    bytes_fetched: int = 0
    damaged_reads: int = 0
    retry_seconds: float = 0.0
    cache_hits: int = 0
    cache_misses: int = 0
    cache_bypasses: int = 0
    cache_drops: int = 0
    cache_wait_seconds: float = 0.0
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    def add(self, **amounts: float) -> None:
        with self._lock:
            for name, amount in amounts.items():
                setattr(self, name, getattr(self, name) + amount)

    def snapshot(self) -> dict[str, float]:
        """`{name: count}` now."""
        with self._lock:
            return {
                f.name: getattr(self, f.name) for f in fields(self) if not f.name.startswith("_")
            }
