"""What a server counts, as Prometheus reads it."""

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

CONTENT_TYPE = CONTENT_TYPE_LATEST
_FAILED = 400
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_SAMPLES = (1, 2, 4, 8, 16, 32, 64)


class Measurements:
    """Counters of one server."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        self._requests = Counter(
            "pelagos_serve_requests", "Requests.", ["path", "status"], registry=registry
        )
        self._errors = Counter(
            "pelagos_serve_errors",
            "Requests with a status of 400 or above.",
            ["path", "status"],
            registry=registry,
        )
        self._seconds = Histogram(
            "pelagos_serve_request_seconds",
            "From the first byte of a request to the last one of its answer.",
            ["path"],
            buckets=_SECONDS,
            registry=registry,
        )
        self._batches = Histogram(
            "pelagos_serve_batch_samples",
            "Samples of each pass through the network.",
            buckets=_SAMPLES,
            registry=registry,
        )
        self.in_work = Gauge(
            "pelagos_serve_requests_in_work", "Requests being answered.", registry=registry
        )
        self.is_ready = Gauge(
            "pelagos_serve_ready", "1 once the model has answered.", registry=registry
        )

    def count_request(self, path: str, status: int, seconds: float) -> None:
        """Count a request that ended; `path` is one of few, whatever was asked for."""
        self._requests.labels(path, str(status)).inc()
        if status >= _FAILED:
            self._errors.labels(path, str(status)).inc()
        self._seconds.labels(path).observe(seconds)

    def count_passes(self, samples: Iterable[int]) -> None:
        """Count passes through the network, by the samples in each."""
        for number in samples:
            self._batches.observe(number)

    def text(self) -> bytes:
        """Return all of it in Prometheus' format."""
        return generate_latest(self._registry)
