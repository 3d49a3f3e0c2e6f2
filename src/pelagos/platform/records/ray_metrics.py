"""A run's values as metrics of the Ray cluster that it runs in, for Prometheus.

Ray serves them on every node's metrics port, with `ray_` before each name. Imported only in processes
that are part of a Ray cluster.
"""

import time
from typing import Any

import ray.train
from ray.util.metrics import Gauge

from pelagos.platform.records.runs import RunDirectory

GOODPUT_SECONDS = 30.0
RUN_VALUES = {
    "step": "Steps done.",
    "loss": "Loss of the last step.",
    "samples_per_second": "Throughput of all ranks.",
    "data_stall_fraction": "Share of the last step spent waiting for data.",
}
RANK_VALUES = {
    "step_seconds": "Duration of the last step on this rank.",
    "memory_bytes": "Peak memory of this rank.",
}


class RunMetrics:
    """The values of a whole run, set by its driver."""

    def __init__(self, run: RunDirectory) -> None:
        self.run = run
        names = {**RUN_VALUES, "goodput": "Share of wall time in steps that were kept."}
        self.gauges = _gauges(names, {"run": run.name})
        self.times = run.followed_times()
        self._next_goodput = 0.0

    def update(self) -> None:
        """Set the gauges from the run's records; called several times a second."""
        for last in self.run.last_metrics(1):
            _set(self.gauges, last)
        now = time.monotonic()
        if now >= self._next_goodput:
            self._next_goodput = now + GOODPUT_SECONDS
            share = self.times.now().goodput()
            if share is not None:
                self.gauges["goodput"].set(share)


class RankMetrics:
    """The values of one rank, set by its worker after each step."""

    def __init__(self, run: str) -> None:
        rank = ray.train.get_context().get_world_rank()
        self.gauges = _gauges(RANK_VALUES, {"run": run, "rank": str(rank)})

    def __call__(self, values: dict[str, float]) -> None:
        _set(self.gauges, values)


def _gauges(descriptions: dict[str, str], tags: dict[str, str]) -> dict[str, Gauge]:
    gauges = {}
    for name, description in descriptions.items():
        gauge = Gauge(f"pelagos_{name}", description, tuple(tags))
        gauge.set_default_tags(tags)
        gauges[name] = gauge
    return gauges


def _set(gauges: dict[str, Gauge], values: dict[str, Any]) -> None:
    for name in gauges.keys() & values.keys():
        gauges[name].set(float(values[name]))
