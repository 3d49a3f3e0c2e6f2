"""A run's directory as workers on other machines see it: through a Ray actor on the driver's node.

So a cluster needs no disk that all nodes share for a run's records; the driver's node has them, and
the submission mirrors them to storage. Methods are those that a rank uses (`RunRecords`).
"""

import contextlib
import time
from typing import Any

from pelagos.platform.records.runs import Outcome, RunDirectory

STOP_POLL_SECONDS = 1.0
ANSWER_SECONDS = 60.0


class RemoteRunDirectory:
    """Forwards to the actor. Appends do not wait; Ray keeps their order."""

    def __init__(
        self, actor: Any, name: str, checkpoint_uri: str, identities: tuple[str, ...]
    ) -> None:
        self.name, self.checkpoint_uri, self.identities = name, checkpoint_uri, identities
        self._actor = actor
        self._stop = False
        self._asked: Any = None
        self._asked_at = 0.0

    def append_metrics(self, record: dict[str, Any]) -> None:
        self._actor.append_metrics.remote(record)

    def append_event(self, kind: str, **details: Any) -> None:
        self._actor.append_event.remote(kind, **details)

    def append_failure(self, details: dict[str, Any], traceback: str) -> str:
        # waited for: it must be there before Ray is told
        return str(self._answer("append_failure", details, traceback))

    def write_outcome(self, outcome: Outcome, launch: str) -> None:
        self._answer("write_outcome", outcome, launch)

    def outcome(self, launch: str) -> Outcome | None:
        found: Outcome | None = self._answer("outcome", launch)
        return found

    def last_step(self) -> int:
        return int(self._answer("last_step"))

    def keep_metrics_until(self, step: int) -> int:
        return int(self._answer("keep_metrics_until", step))

    def stop_requested(self) -> bool:
        """Return the last answer.

        A new question is asked once a second, and only the first is waited for, so that a stop
        asked for before the start ends the run at its first step.
        """
        import ray

        if self._asked_at == 0.0:
            self._stop = bool(self._answer("stop_requested"))
            self._asked_at = time.monotonic()
        if self._asked is not None:
            ready, _ = ray.wait([self._asked], timeout=0)
            if ready:
                with contextlib.suppress(
                    ray.exceptions.RayError
                ):  # the driver's end ends us anyway
                    self._stop = bool(ray.get(self._asked))
                self._asked = None
        if self._asked is None and time.monotonic() - self._asked_at >= STOP_POLL_SECONDS:
            self._asked = self._actor.stop_requested.remote()
            self._asked_at = time.monotonic()
        return self._stop

    def _answer(self, method: str, *arguments: Any) -> Any:
        import ray

        return ray.get(getattr(self._actor, method).remote(*arguments), timeout=ANSWER_SECONDS)


def share(run: RunDirectory) -> RemoteRunDirectory:
    """Start the actor of a run on this node; return a stand-in that workers on any node can use."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    actor_class = ray.remote(num_cpus=0)(RunDirectory)
    actor = actor_class.options(scheduling_strategy=here).remote(str(run.path), run.clock)
    return RemoteRunDirectory(actor, run.name, run.checkpoint_uri, run.identities)
