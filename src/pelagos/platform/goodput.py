"""Where the time of a run went, from its records; needs no torch, so that `status` is quick."""

from typing import Any

import numpy as np


def step_time_percentiles(metrics: list[dict[str, Any]]) -> dict[str, float]:
    """Return the median, 90th and 99th percentile of step seconds."""
    seconds = [m["step_seconds"] for m in metrics if "step_seconds" in m]
    if not seconds:
        return {}
    values = np.quantile(seconds, [0.5, 0.9, 0.99]).tolist()
    return dict(
        zip(("step_seconds_p50", "step_seconds_p90", "step_seconds_p99"), values, strict=True)
    )


def goodput(events: list[dict[str, Any]], metrics: list[dict[str, Any]]) -> float | None:
    """Return the share of launched wall time that went into steps which were kept.

    A launch lasts from its `launched` event to its last sign of life. Steps redone after a
    failure count once; start-up, saving, validation and lost steps count as not good.
    """
    launches = [e["time"] for e in events if e["kind"] == "launched"]
    signs = sorted([e["time"] for e in events] + [m["time"] for m in metrics if "time" in m])
    if not launches or not metrics:
        return None
    wall = 0.0
    for index, begin in enumerate(launches):
        following = launches[index + 1] if index + 1 < len(launches) else float("inf")
        wall += max((t for t in signs if begin <= t < following), default=begin) - begin
    kept = sum(float(m.get("step_seconds", 0.0)) for m in metrics)
    return min(1.0, kept / wall) if wall > 0 else None
