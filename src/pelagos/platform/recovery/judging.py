"""Deciding in Ray's controller what follows a failure, and writing it into the run's records."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from pelagos.infra.ray_recovery import Lost, Verdict
from pelagos.platform.records.runs import Outcome, RunDirectory
from pelagos.platform.records.states import State
from pelagos.platform.recovery.restarts import RESTARTING, Decision, decide


@dataclass
class RunJudge:
    """A `pelagos.infra.ray_recovery.Judge` of one launch of a run.

    Attributes:
        run: its directory, on the driver's node.
        launch: its identity.
        max_failures: how often Ray starts workers again.
    """

    run: RunDirectory
    launch: str
    max_failures: int

    def __call__(self, lost: Sequence[Lost], *, is_last: bool) -> Verdict:
        """Return what follows; an end becomes the launch's outcome, a restart an event."""
        run = self.run
        decision = decide(run.events(), self.launch, lost, random.Random())
        if outcome := run.outcome(self.launch):
            return Verdict(ends=outcome.kind != State.FINISHED)
        ends = decision.ends
        if is_last and not ends:
            ends = f"{decision.cause}; {self._used_up()}"
        if ends:
            run.write_outcome(Outcome(State.FAILED, run.last_step(), ends), self.launch)
            return Verdict(ends=True)
        self._record(run, decision, lost)
        return Verdict(False, decision.pause_seconds, decision.avoided)

    def _used_up(self) -> str:
        if not self.max_failures:
            return "workers are not started again (health.max_failures: 0)"
        return f"all {self.max_failures} restarts are used (health.max_failures)"

    def _record(self, run: RunDirectory, decision: Decision, lost: Sequence[Lost]) -> None:
        run.append_event(
            RESTARTING,
            restart=decision.restart,
            of=self.max_failures,
            step=run.last_step(),
            cause=decision.cause,
            pause_seconds=decision.pause_seconds,
            lost_nodes=sorted({each.node for each in lost if each.node}),
            avoided_nodes=list(decision.avoided),
        )
