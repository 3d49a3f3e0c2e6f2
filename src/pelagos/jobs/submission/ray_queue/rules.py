"""Which waiting runs a Ray cluster starts next. Pure: known facts go in, decisions come out.

Rules, in this order:
    dependencies   a run waits for those it comes after; if one did not finish, it is cancelled,
                   unless it comes after their end, whatever that is
    quotas         a user above a limit waits, and holds up no other user
    gang           a run starts when all of its workers fit, each whole on one node
    order          higher priority first, then who came first; a run that does not fit yet is not
                   overtaken by those behind it, so that large runs get their turn
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from pelagos.infra.clusters.base import Needs, workers_per_node
from pelagos.infra.clusters.schema import RayQuotas
from pelagos.jobs.submission.records.record import RunState
from pelagos.platform.records.states import ENDED, State


@dataclass(frozen=True)
class NodeResources:
    """CPU cores and GPUs of a node: all, or only the free ones."""

    cpus: float
    gpus: float


@dataclass(frozen=True)
class WaitingRun:
    """A run of the queue: its state and its needs."""

    state: RunState
    needs: Needs


@dataclass(frozen=True)
class Decision:
    """The decision about a waiting run, and its reason."""

    run: str
    action: Literal["start", "wait", "cancel"]
    reason: str = ""


def decide(
    waiting: Sequence[WaitingRun],
    running: Sequence[WaitingRun],
    states: dict[str, str],
    free: Sequence[NodeResources],
    quotas: RayQuotas,
) -> list[Decision]:
    """Return a decision for every waiting run.

    Args:
        waiting: runs not started yet.
        running: runs that the queue has started and that have not ended.
        states: state of every run of the storage, by name, for dependencies.
        free: the free resources of every node.
        quotas: limits per user.
    """
    decisions: list[Decision] = []
    active = list(running)
    left = list(free)
    blocked_by = ""
    order = sorted(waiting, key=lambda w: (-w.state.priority, w.state.submitted_at, w.state.run))
    for candidate in order:
        run = candidate.state.run
        decision = _by_dependencies(candidate, states) or _by_quota(candidate, active, quotas)
        if decision is None and blocked_by:
            decision = Decision(run, "wait", f"behind {blocked_by}")
        if decision is None:
            packed = place_workers(candidate.needs, left)
            if packed is None:
                blocked_by = run
                decision = Decision(run, "wait", _shortage(candidate.needs, left))
            else:
                left = packed
                active.append(candidate)
                decision = Decision(run, "start")
        decisions.append(decision)
    return decisions


def place_workers(needs: Needs, free: Sequence[NodeResources]) -> list[NodeResources] | None:
    """Return the nodes' free resources once all workers are placed, or None if they do not all fit."""
    left, missing = [], needs.num_workers
    for node in sorted(free, key=lambda n: (-n.gpus, -n.cpus)):
        here = min(missing, max(0, workers_per_node(needs, node.cpus, node.gpus)))
        missing -= here
        left.append(
            NodeResources(
                node.cpus - here * needs.cpus_per_worker, node.gpus - here * needs.gpus_per_worker
            )
        )
    return left if missing == 0 else None


def _by_dependencies(candidate: WaitingRun, states: dict[str, str]) -> Decision | None:
    unfinished = [n for n in candidate.state.after_ended if states.get(n) not in ENDED]
    for name in candidate.state.after:
        state = states.get(name, "missing")
        if state in ("missing", State.FAILED, State.STOPPED, State.CANCELLED):
            return Decision(
                candidate.state.run, "cancel", f"{name} had to finish first, but is {state}"
            )
        if state != State.FINISHED:
            unfinished.append(name)
    if unfinished:
        return Decision(candidate.state.run, "wait", f"after {', '.join(unfinished)}")
    return None


def _by_quota(
    candidate: WaitingRun, active: Sequence[WaitingRun], quotas: RayQuotas
) -> Decision | None:
    user = candidate.state.submitted_by
    own = [a for a in active if a.state.submitted_by == user]
    limits = (
        ("running jobs", quotas.running_jobs_per_user, len(own), 1),
        ("GPUs", quotas.gpus_per_user, sum(a.needs.gpus for a in own), candidate.needs.gpus),
        ("CPU cores", quotas.cpus_per_user, sum(a.needs.cpus for a in own), candidate.needs.cpus),
    )
    for what, limit, used, wanted in limits:
        if limit is not None and wanted > limit:
            reason = f"quota: the run needs {wanted} {what}; {user} may use {limit} in all"
            return Decision(candidate.state.run, "cancel", reason)
        if limit is not None and used + wanted > limit:
            reason = f"quota: {user} uses {used} of {limit} {what}, and the run needs {wanted} more"
            return Decision(candidate.state.run, "wait", reason)
    return None


def _shortage(needs: Needs, free: Sequence[NodeResources]) -> str:
    fit = sum(max(0, workers_per_node(needs, node.cpus, node.gpus)) for node in free)
    return (
        f"waiting for {needs.num_workers} workers of {needs.cpus_per_worker} CPU and "
        f"{needs.gpus_per_worker} GPU at once; {fit} fit now"
    )
