"""Whether a group of workers that failed is started again, when, and without which nodes.

Decided from the run's events alone, so that the decision is the same whoever takes it.
"""

import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pelagos.infra.ray_recovery import Lost
from pelagos.platform.records.run_records import WORKER_FAILED
from pelagos.platform.recovery.failures import WorkerFailure

RESTARTING = "restarting"
FAILURES_OF_A_BAD_NODE = 2
FIRST_PAUSE_SECONDS = 5.0
LONGEST_PAUSE_SECONDS = 60.0
_PROGRESS = "checkpoint"


@dataclass(frozen=True)
class Decision:
    """What follows a failure.

    Attributes:
        ends: why the workers are not started again; empty: they are.
        cause: the failure that counted.
        pause_seconds: before they are started.
        avoided: nodes that failed too often.
        restart: which restart of this launch it is, from 1.
    """

    ends: str
    cause: str
    pause_seconds: float = 0.0
    avoided: tuple[str, ...] = ()
    restart: int = 1


@dataclass
class _Attempt:
    failures: list[WorkerFailure] = field(default_factory=list)
    lost_nodes: tuple[str, ...] = ()
    has_saved: bool = False

    def bad_nodes(self) -> set[str]:
        """Nodes that lost a worker, or on which one failed by itself."""
        failed = {f.node for f in self.failures if not f.is_of_a_peer and f.node}
        return failed | set(self.lost_nodes)


def decide(
    events: Iterable[Mapping[str, Any]],
    launch: str,
    lost: Sequence[Lost],
    draw: random.Random,
) -> Decision:
    """Return what follows the failure of the workers' newest attempt.

    - A permanent failure ends the launch.
    - The same failure (error, step, place) in two attempts, one after the other, ends it too.
    - The first restart after a checkpoint comes at once; the next ones after 5, 10, … 60 s and up to
      half as much again, drawn.

    Args:
        events: the run's, in order.
        launch: the one under way.
        lost: workers whose process or node died without a record.
        draw: of the pauses.
    """
    attempts = _attempts(events, launch)
    newest = attempts[-1]
    own = [f for f in newest.failures if not f.is_of_a_peer]
    first = next(iter([f for f in own if f.is_permanent] or own), None)
    cause = first.sentence() if first else _lost(lost) or _of_peers(newest.failures)
    restart = len(attempts)
    if first is not None and first.is_permanent:
        ends = f"{first.error}: {first.text} ({first.where()})"
        return Decision(ends, cause, restart=restart)
    before = attempts[-2].failures if len(attempts) > 1 else []
    for failure in own:
        if any(failure.is_like(f) for f in before if not f.is_of_a_peer):
            ends = f"twice the same, so another try cannot help: {failure.sentence()}"
            return Decision(ends, cause, restart=restart)
    since = 0  # failures since the run last got on
    for attempt in reversed(attempts):
        since += 1
        if attempt.has_saved:
            break
    pause = min(LONGEST_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * 2 ** (since - 2)) if since > 1 else 0.0
    counted = Counter(node for attempt in attempts for node in attempt.bad_nodes())
    counted.update({each.node for each in lost if each.node})
    avoided = tuple(sorted(n for n, count in counted.items() if count >= FAILURES_OF_A_BAD_NODE))
    return Decision("", cause, pause * draw.uniform(1.0, 1.5), avoided, restart)


def _attempts(events: Iterable[Mapping[str, Any]], launch: str) -> list[_Attempt]:
    attempts = [_Attempt()]
    for event in events:
        kind = event.get("kind")
        if kind == "launched" and event.get("launch") == launch:
            attempts = [_Attempt()]
        elif kind == RESTARTING:
            nodes = event.get("lost_nodes")
            attempts[-1].lost_nodes = tuple(map(str, nodes)) if isinstance(nodes, list) else ()
            attempts.append(_Attempt())
        elif kind == _PROGRESS:
            attempts[-1].has_saved = True
        elif kind == WORKER_FAILED and (failure := WorkerFailure.of(dict(event))):
            attempts[-1].failures.append(failure)
    return attempts


def _lost(lost: Sequence[Lost]) -> str:
    return "; ".join(f"rank {each.rank} on {each.host} was lost: {each.why}" for each in lost)


def _of_peers(failures: Sequence[WorkerFailure]) -> str:
    return failures[0].sentence() if failures else "the workers ended without a word"
