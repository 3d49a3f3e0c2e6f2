"""The queue's decisions: dependencies, quotas, gang start, order. Pure, so every case is written out."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pelagos.infra.clusters import Needs
from pelagos.infra.clusters.schema import RayQuotas
from pelagos.jobs.submission.ray_queue.rules import NodeResources, WaitingRun, decide, place_workers
from pelagos.jobs.submission.records.record import RunState

NODES = [NodeResources(4, 2), NodeResources(4, 2)]


def run(
    name: str,
    workers: int = 1,
    gpus: int = 1,
    priority: int = 0,
    at: float = 0.0,
    after: tuple[str, ...] = (),
    by: str = "ada",
    after_ended: tuple[str, ...] = (),
) -> WaitingRun:
    state = RunState(
        run=name,
        state="queued",
        cluster="lab",
        attempt=0,
        restarts=0,
        priority=priority,
        after=after,
        after_ended=after_ended,
        retries=0,
        submitted_by=by,
        submitted_at=at,
    )
    return WaitingRun(state, Needs(workers, 1, gpus))


def decisions(waiting, running=(), states=None, free=NODES, quotas=None):  # type: ignore[no-untyped-def]
    found = decide(waiting, running, states or {}, free, quotas or RayQuotas())
    return {d.run: (d.action, d.reason) for d in found}


def test_a_run_starts_only_when_all_of_its_workers_fit_at_once() -> None:
    found = decisions([run("big", workers=5)])
    assert found["big"] == ("wait", "waiting for 5 workers of 1 CPU and 1 GPU at once; 4 fit now")
    assert decisions([run("fits", workers=4)])["fits"][0] == "start"


def test_a_worker_is_never_split_over_nodes() -> None:
    needs = Needs(num_workers=1, cpus_per_worker=6)
    assert place_workers(needs, NODES) is None
    assert place_workers(Needs(2, 4), NODES) == [NodeResources(0, 2), NodeResources(0, 2)]


def test_what_starts_in_one_look_is_taken_from_the_next() -> None:
    found = decisions([run("a", workers=3, at=1), run("b", workers=2, at=2)])
    assert found["a"][0] == "start"
    assert found["b"] == ("wait", "waiting for 2 workers of 1 CPU and 1 GPU at once; 1 fit now")


def test_higher_priority_goes_first_then_who_came_first() -> None:
    free = [NodeResources(4, 1)]
    waiting = [run("late", at=3), run("early", at=1), run("urgent", at=9, priority=5)]
    found = decisions(waiting, free=free)
    assert [name for name, (action, _) in found.items() if action == "start"] == ["urgent"]
    assert decisions(waiting[:2], free=free)["early"][0] == "start"


def test_a_large_run_is_not_overtaken_by_small_ones_behind_it() -> None:
    found = decisions([run("large", workers=5, at=1), run("small", at=2)])
    assert found["small"] == ("wait", "behind large")


def test_a_run_waits_for_those_it_comes_after_and_holds_up_nobody() -> None:
    waiting = [run("second", after=("first",), at=1), run("other", at=2)]
    found = decisions(waiting, states={"first": "running"})
    assert found == {"second": ("wait", "after first"), "other": ("start", "")}
    assert decisions(waiting[:1], states={"first": "finished"})["second"][0] == "start"


@pytest.mark.parametrize("state", ["failed", "stopped", "cancelled"])
def test_a_run_is_cancelled_if_what_it_comes_after_did_not_finish(state: str) -> None:
    found = decisions([run("second", after=("first",))], states={"first": state})
    assert found["second"] == ("cancel", f"first had to finish first, but is {state}")


def test_quotas_hold_back_one_user_and_not_another() -> None:
    quotas = RayQuotas(gpus_per_user=2)
    waiting = [run("mine", at=1), run("yours", at=2, by="bo")]
    found = decisions(waiting, running=[run("r", workers=2)], quotas=quotas)
    assert found["mine"] == ("wait", "quota: ada uses 2 of 2 GPUs, and the run needs 1 more")
    assert found["yours"][0] == "start"
    one = RayQuotas(running_jobs_per_user=1)
    found = decisions([run("a", at=1), run("b", at=2)], quotas=one)
    assert (found["a"][0], found["b"][0]) == ("start", "wait")


def test_a_run_above_its_quota_is_refused_for_good() -> None:
    found = decisions([run("huge", workers=3)], quotas=RayQuotas(gpus_per_user=2))
    assert found["huge"] == ("cancel", "quota: the run needs 3 GPUs; ada may use 2 in all")


@given(
    st.lists(st.tuples(st.integers(1, 6), st.integers(0, 2), st.integers(-3, 3)), max_size=8),
    st.lists(st.tuples(st.integers(0, 8), st.integers(0, 4)), max_size=4),
)
def test_what_starts_always_fits_together(sizes, nodes) -> None:  # type: ignore[no-untyped-def]
    waiting = [
        run(f"run-{i}", workers, gpus, priority, at=i)
        for i, (workers, gpus, priority) in enumerate(sizes)
    ]
    free = [NodeResources(c, g) for c, g in nodes]
    found = decisions(waiting, free=free)
    assert len(found) == len(waiting)
    started = [w.needs for w in waiting if found[w.state.run][0] == "start"]
    assert sum(n.cpus for n in started) <= sum(n.cpus for n in free)
    assert sum(n.gpus for n in started) <= sum(n.gpus for n in free)
    # nobody of lower rank started past one who was held back by room
    order = sorted(waiting, key=lambda w: (-w.state.priority, w.state.submitted_at))
    actions = [found[w.state.run][0] for w in order]
    assert actions == sorted(actions, key=lambda a: a != "start")


@pytest.mark.parametrize("end", ["finished", "failed", "stopped", "cancelled"])
def test_what_comes_after_the_end_of_others_starts_however_they_ended(end: str) -> None:
    report = run("report", after_ended=("a", "b"))
    assert decisions([report], states={"a": end, "b": "running"})["report"] == ("wait", "after b")
    assert decisions([report], states={"a": end, "b": end})["report"][0] == "start"
