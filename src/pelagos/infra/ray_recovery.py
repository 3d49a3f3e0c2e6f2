"""Between Ray Train's controller and whoever decides what follows a failure of workers.

Ray counts failures and starts workers again. It has no public way to end a training early, to pause
before a start, or to keep away from a node; callbacks of its controller have. They are used here and
nowhere else, and `tests/jobs/test_ray_internals.py` notices if they change.
"""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

_NODE_LABEL = "ray.io/node-id"


@dataclass(frozen=True)
class Lost:
    """A worker whose process ended without an exception of its own."""

    rank: int
    host: str
    node: str
    why: str


@dataclass(frozen=True)
class Verdict:
    """What follows: an end, or another start.

    Attributes:
        ends: the workers are not started again.
        pause_seconds: before the start.
        avoided: nodes that get no worker, as long as others have room.
    """

    ends: bool
    pause_seconds: float = 0.0
    avoided: tuple[str, ...] = ()


class Judge(Protocol):
    """Decides what follows when workers failed; called in Ray's controller, on the driver's node."""

    def __call__(self, lost: Sequence[Lost], *, is_last: bool) -> Verdict:
        """Return what follows; `is_last`: Ray starts no workers again, whatever is said."""


class LaunchEnded(RuntimeError):
    """Ends a training in Ray's controller; the reason is in the run's records."""


def controller_callback(judge: Judge) -> Any:
    """Return a callback for `RunConfig.callbacks` that asks `judge` after each failure."""
    from ray.train.v2._internal.execution.callback import ControllerCallback, WorkerGroupCallback
    from ray.train.v2._internal.execution.failure_handling import FailureDecision

    class Recovery(ControllerCallback, WorkerGroupCallback):
        def __init__(self) -> None:
            self.judge = judge
            self.places: dict[int, tuple[str, str]] = {}
            self.errors: Mapping[int, Exception] = {}
            self.verdict = Verdict(ends=False)

        def after_worker_group_start(self, worker_group: Any) -> None:
            self.errors = {}
            self.places = {
                w.distributed_context.world_rank: (w.metadata.hostname, w.metadata.node_id)
                for w in worker_group.get_workers()
            }

        def after_worker_group_poll_status(self, worker_group_status: Any) -> None:
            self.errors = worker_group_status.errors

        def before_controller_execute_failure_decision(self, failure_decision: Any) -> None:
            if not self.errors:
                return  # no worker failed: they did not start
            is_last = failure_decision == FailureDecision.RAISE
            self.verdict = self.judge(_lost(self.errors, self.places), is_last=is_last)
            self.errors = {}
            if self.verdict.ends and not is_last:
                raise LaunchEnded("the workers are not started again")

        def on_controller_start_worker_group(
            self, *, scaling_config: Any, num_workers: int
        ) -> dict[str, str] | None:
            time.sleep(self.verdict.pause_seconds)
            avoided = self.verdict.avoided
            needed = scaling_config._resources_per_worker_not_none
            self.verdict = Verdict(ends=False, avoided=avoided)
            if avoided and _room_without(avoided, needed) >= num_workers:
                return {_NODE_LABEL: f"!in({','.join(avoided)})"}
            return None

    return Recovery()


def _lost(
    errors: Mapping[int, Exception], places: Mapping[int, tuple[str, str]]
) -> tuple[Lost, ...]:
    """Return the workers that are gone; those that raised have told so themselves."""
    from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError

    found = []
    for rank, error in sorted(errors.items()):
        if isinstance(error, WorkerHealthCheckFailedError):
            host, node = places.get(rank, ("", ""))
            reason = error.health_check_failure
            lines = [line.strip() for line in str(reason).splitlines() if line.strip()]
            why = f"{type(reason).__name__}: {lines[0] if lines else ''}"
            found.append(Lost(rank, host, node, why))
    return tuple(found)


def _room_without(avoided: Sequence[str], needed: Mapping[str, float]) -> int:
    """Return how many workers the other nodes have room for, when nothing else runs there."""
    import ray

    room = 0
    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    for node in nodes:
        if node["Alive"] and node["NodeID"] not in avoided:
            has = node["Resources"]
            fits = [has.get(name, 0.0) // count for name, count in needed.items() if count > 0]
            room += int(min(fits, default=math.inf)) if fits else 0
    return room
