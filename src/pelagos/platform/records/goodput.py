"""Where the time of a run went, from its records; needs no torch, so that `status` is quick."""

from array import array
from bisect import bisect_right
from typing import Any

import numpy as np

from pelagos.platform.records.record_tail import RecordTail


class RunTimes:
    """Sums over a run's records, which may come one by one and are not kept: 8 bytes for a step.

    A launch lasts from its `launched` event to its last sign of life. Steps redone after a failure
    count once; start-up, saving, validation and lost steps count as not good.
    """

    def __init__(self) -> None:
        self.seconds = array("d")
        self.launches: list[float] = []
        self._ends: list[float] = []
        self.num_steps = 0

    def add_event(self, event: dict[str, Any]) -> None:
        """Count an event."""
        if event["kind"] == "launched":
            self.launches.append(event["time"])
            self._ends.append(event["time"])
        self._add_sign(event["time"])

    def add_step(self, values: dict[str, Any]) -> None:
        """Count a step that was kept."""
        self.num_steps += 1
        if "step_seconds" in values:
            self.seconds.append(float(values["step_seconds"]))
        if "time" in values:
            self._add_sign(values["time"])

    def drop_steps(self) -> None:
        """Forget the steps, of which some were dropped: the others will be counted again."""
        self.seconds = array("d")
        self.num_steps = 0

    def goodput(self) -> float | None:
        """Return the share of launched wall time that went into steps which were kept."""
        if not self.launches or not self.num_steps:
            return None
        wall = sum(end - begin for begin, end in zip(self.launches, self._ends, strict=True))
        kept = float(np.sum(self.seconds)) if self.seconds else 0.0
        return min(1.0, kept / wall) if wall > 0 else None

    def percentiles(self) -> dict[str, float]:
        """Return the median, 90th and 99th percentile of step seconds."""
        if not self.seconds:
            return {}
        values = np.quantile(np.frombuffer(self.seconds), [0.5, 0.9, 0.99]).tolist()
        names = ("step_seconds_p50", "step_seconds_p90", "step_seconds_p99")
        return dict(zip(names, values, strict=True))

    def _add_sign(self, time: float) -> None:
        """Let the launch that was under way then have lasted until then."""
        index = bisect_right(self.launches, time) - 1
        if index >= 0:
            self._ends[index] = max(self._ends[index], time)


class FollowedTimes:
    """The sums of time over a run's records, each of which is read once."""

    def __init__(self, events: RecordTail, metrics: RecordTail) -> None:
        self._events, self._metrics = events, metrics
        self._times = RunTimes()
        self._restarts = 0

    def now(self) -> RunTimes:
        """Return them, including the news since the last call."""
        for events in self._events.pieces():
            for event in events:
                self._times.add_event(event)
        for steps in self._metrics.pieces():
            if self._metrics.restarts != self._restarts:
                self._restarts = self._metrics.restarts
                self._times.drop_steps()
            for values in steps:
                self._times.add_step(values)
        return self._times
