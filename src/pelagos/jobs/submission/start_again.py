"""Starting a submitted run again: only one's own, with one's own code.

A record is written by everyone with access to the storage. Starting a run executes the code that is
named there with the starter's secrets, so it is refused unless this user submitted the
run from here and shipped that code (`own_runs`), or takes the run over with code of their own.
"""

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from pelagos.infra.clusters import ClusterError, Code, open_cluster
from pelagos.infra.signatures import digest_of
from pelagos.jobs.submission.as_submitted import changes_to_own
from pelagos.jobs.submission.following import (
    SubmittedRun,
    current_state,
    run_directory,
    storage_of,
)
from pelagos.jobs.submission.handing_over import details_of, hand_over, submission_of
from pelagos.jobs.submission.kinds import kind_of
from pelagos.jobs.submission.others_jobs import require_own_places
from pelagos.jobs.submission.placing import place_job
from pelagos.jobs.submission.planning import Options, own_code
from pelagos.jobs.submission.records import own_runs
from pelagos.jobs.submission.records.record import RunRecord, RunState
from pelagos.jobs.submission.shipping.package import upload
from pelagos.jobs.submission.silent_ends import record_silent_end
from pelagos.platform.config.clusters import find_cluster
from pelagos.platform.config.load import parse_job, resolve_yaml
from pelagos.platform.records.runs import CHANGEABLE_IN_A_BRANCH, RunError
from pelagos.platform.records.states import State


def recover(found: SubmittedRun) -> RunState:
    """Record how a run ended whose process left without a word; start it again if that can help.

    Raises:
        RunError: it is somebody else's.
    """
    state, detail = current_state(found)
    if state.state != State.LOST:
        return state
    event = require_own(found)[-1]
    cluster, record = found.own_cluster(), found.record
    if blocking := _blocking(found, state):
        # the scheduler has dropped it: it would never have begun
        record.append(State.CANCELLED, reason=blocking)
        return record.state()
    output = ""
    with contextlib.suppress(ClusterError):
        output = cluster.logs(found.handle(state))[-2000:]
    num_events = len(record.events())
    if not record.state().has_ended and record_silent_end(record, detail, output, num_events):
        hand_over(cluster, record, submission_of(record, event, state.attempt + 1, cluster.config))
    return record.state()


def _blocking(found: SubmittedRun, state: RunState) -> str:
    """Say which run, that it comes after, has ended otherwise than finished; empty if none has."""
    for name in state.after:
        other = RunRecord(found.store, name)
        if other.exists() and (ended := other.state()).has_ended and ended.state != State.FINISHED:
            return f"{name} had to finish first, but is {ended.state}"
    return ""


def require_own(found: SubmittedRun) -> list[dict[str, Any]]:
    """Return the events that submit the run, which this user wrote from here, the newest last.

    Raises:
        RunError: the newest is none of theirs.
    """
    events = own_runs.own_events(found.record)
    if events:
        return events
    run, last = found.record.run, found.record.submitting_event()
    remark = ""
    if own_runs.was_submitted(found.record):
        remark = (
            f" (you submitted {run!r} from here; since then somebody submitted it again, or removed "
            "or exchanged its record)"
        )
    raise RunError(
        f"run {run!r}: its record says that {last['by']} submitted it last, from {last['host']}. "
        f"This user's list of submissions here does not have that as the last one{remark}. Starting "
        f"the run again would execute its code with your access. `pelagos clone {run} NEW` runs its "
        f"job with your own code; `pelagos resume {run} --take-over` continues it with your own "
        "code"
    )


def resume(
    found: SubmittedRun,
    cluster: str | None,
    overrides: Sequence[str],
    options: Options,
    from_step: str | None = None,
    take_over: bool = False,
) -> RunState:
    """Continue a run, on its cluster or on another one that reaches the same storage.

    A run that this user did not submit from here is refused, unless `take_over` is given: then it
    continues with this user's own code.

    With `from_step` it continues from that checkpoint as a branch (`branching.branch`).

    A sweep, once its report is made, measures the trials that have finished since, and reports again.

    Raises:
        RunError: it is running, has finished, or the other cluster keeps its runs elsewhere; or its
            job, which others could write, says where this user's secrets would be sent.
    """
    state, _ = current_state(found)
    last = found.record.submitting_event()
    _require_resumable(state, last, overrides, from_step)
    own = [] if take_over else require_own(found)
    last = own[-1] if own else last
    if not state.has_ended and state.state not in (State.PREEMPTED, State.LOST):
        raise RunError(
            f"run {state.run!r} is {state.state}; stop it first: pelagos stop {state.run}"
        )
    name = cluster or state.cluster
    config = find_cluster(name)
    target = open_cluster(name, config)
    if storage_of(config).uri != found.store.uri:
        raise RunError(
            f"cluster {name} keeps its runs in {config.storage}, but this run is in "
            f"{found.store.uri}, and a run continues only where its checkpoints are. Give both "
            "clusters the same storage"
        )
    job = _revised(found, overrides, own or [last], bool(own), is_branch=from_step is not None)
    own_job = parse_job(last["job"], f"run {state.run}") if own else None
    require_own_places(job, state.run, overrides, config, own_job)
    target.check_needs(kind_of(job).needs(job))
    code = Code(**last["code"]) if own else _own_code(found, options)
    submission = replace(
        submission_of(found.record, {**last, "code": vars(code)}, state.attempt + 1, config),
        needs=kind_of(job).needs(job),
    )
    event = found.record.submit_again(
        resolve_yaml(job),
        target.sign,
        **details_of(submission, target, last["retries"]),
        overrides=list(overrides),
        attempt=state.attempt + 1,
        handle={},
        **({"from_step": from_step} if from_step is not None else {}),
    )
    own_runs.remember(found.record, event)
    hand_over(target, found.record, replace(submission, event=digest_of(event)))
    return found.record.state()


def _require_resumable(
    state: RunState, last: Mapping[str, Any], overrides: Sequence[str], from_step: str | None
) -> None:
    is_sweep = kind_of(parse_job(last["job"], f"run {state.run}")).reports_on_trials
    if is_sweep and overrides:
        raise RunError(
            f"run {state.run!r} reports on trials that were submitted with it, so it takes no "
            f"overrides ({', '.join(overrides)}). Resume a trial with them, or submit another sweep"
        )
    if is_sweep and from_step is not None:
        raise RunError(
            f"run {state.run!r} reports on a sweep, so it has no checkpoint to branch from"
        )
    if state.state == State.FINISHED and not is_sweep and from_step is None:
        raise RunError(
            f"run {state.run!r} has finished; `pelagos clone {state.run} NEW` runs it again"
        )


def _own_code(found: SubmittedRun, options: Options) -> Code:
    """Ship this user's code, with which a run continues that was somebody else's."""
    code, contents = own_code(found.store, options.include)
    upload(found.store, contents)
    return code


def _revised(
    found: SubmittedRun,
    overrides: Sequence[str],
    submissions: Sequence[Mapping[str, Any]],
    is_own: bool,
    *,
    is_branch: bool = False,
) -> Any:
    """Return the run's job with changes.

    Once the run has begun, rejects values that would change it, and values that neither this user's own
    submissions nor an override give.
    """
    jobs = [event["job"] for event in submissions]
    directory, where = run_directory(found), f"run {found.record.run}"
    if (directory.path / "job.yaml").exists():
        if is_own:
            here = directory.path.parent
            own = [place_job(parse_job(text, where), found.store.uri, here) for text in jobs]
            overrides = [*changes_to_own(directory, own, overrides), *overrides]
        return directory.revised_job(overrides, CHANGEABLE_IN_A_BRANCH if is_branch else ())
    if is_branch:
        raise RunError(f"run {found.record.run!r} has no checkpoint yet to branch from")
    return parse_job(jobs[-1], where, overrides)
