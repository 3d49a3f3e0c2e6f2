"""Words for states and times, for tables of runs."""

import math
import time

from rich.text import Text

from pelagos.platform.records.states import State

COLOURS: dict[str, str] = {
    State.FINISHED: "green",
    State.RUNNING: "cyan",
    State.FAILED: "red",
    State.LOST: "red",
    State.PREEMPTED: "yellow",
    State.QUEUED: "blue",
}


def coloured(state: str) -> Text:
    """Return the state with its colour."""
    return Text(state, style=COLOURS.get(state, ""))


def ago(moment: float | None) -> str:
    """Return how long ago a time was, in the largest fitting unit."""
    if moment is None:
        return "-"
    seconds = max(0.0, time.time() - moment)
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit} ago"
    return f"{seconds:.0f} s ago"


def span(seconds: float) -> str:
    """Return a length of time in its two largest units.

    >>> span(59.4), span(3700), span(90000)
    ('59 s', '1 h 1 min', '1 d 1 h')
    """
    if not math.isfinite(seconds):
        return "-"
    whole = round(seconds)
    parts: list[str] = []
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60), ("s", 1)):
        count, whole = divmod(whole, length)
        if count or (parts and len(parts) < 2):
            parts.append(f"{count} {unit}")
        if len(parts) == 2:
            break
    return " ".join(part for part in parts if not part.startswith("0 ")) or "0 s"
