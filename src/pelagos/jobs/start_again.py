"""Starting a submitted run again: only one's own, with one's own code.

A record is written by everyone with access to the storage. Starting a run executes the code that is
named there with the secrets of whoever starts it, so that it is refused unless this user submitted the
run from here and shipped that code (`own_runs`), or takes the run over with code of their own.
"""

import contextlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from pelagos.infra.clusters import ClusterError, Code, Submission, open_cluster
from pelagos.jobs.hand_over import hand_over, submission_of
from pelagos.jobs.others_jobs import require_own_places
from pelagos.jobs.silent_ends import record_silent_end
from pelagos.jobs.submission_job import needs_of
from pelagos.jobs.submit import Options, own_code
from pelagos.jobs.submitted_runs import (
    LOST,
    SubmittedRun,
    current_state,
    run_directory,
    storage_of,
)
from pelagos.platform.config.clusters import find_cluster
from pelagos.platform.config.load import parse_job
from pelagos.platform.config.sweep import SweepJob
from pelagos.platform.runs import CHANGEABLE_IN_A_BRANCH, RunError
from pelagos.platform.submission import own_runs
from pelagos.platform.submission.package import upload
from pelagos.platform.submission.record import RunState


def recover(found: SubmittedRun) -> RunState:
    """Record how a run ended whose process left without a word; start it again if that can help.

    Raises:
        RunError: it is somebody else's.
    """
    state, detail = current_state(found)
    if state.state != LOST:
        return state
    require_own(found)
    cluster, record = found.own_cluster(), found.record
    output = ""
    with contextlib.suppress(ClusterError):
        output = cluster.logs(found.handle(state))[-2000:]
    num_events = len(record.events())
    if not record.state().has_ended and record_silent_end(record, detail, output, num_events):
        _require_own_code(found)
        hand_over(cluster, record, submission_of(record, state.attempt + 1, cluster.config))
    return record.state()


def require_own(found: SubmittedRun) -> None:
    """Raise `RunError` unless this user submitted the run, and its record still begins so."""
    if not own_runs.is_own(found.record):
        run, first = found.record.run, found.record.first_event()
        raise RunError(
            f"run {run!r} was submitted by {first['by']} from {first['host']}, says its record, and is "
            f"not in this user's list of submissions here. Starting it again would execute its code "
            f"with your access: `pelagos clone {run} NEW` runs its job with your own code; `pelagos "
            f"resume {run} --take-over` continues it with your own code"
        )


def _require_own_code(found: SubmittedRun) -> None:
    code = found.record.latest("code")["code"]
    if not own_runs.is_own_code(found.record, code):
        raise RunError(
            f"the record of {found.record.run!r} names code that this user did not ship "
            f"({code['wheel_uri']}): somebody else has written it, and nothing was started. `pelagos "
            f"resume {found.record.run} --take-over` continues the run with your own code"
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
    is_sweep = isinstance(parse_job(found.record.job_yaml(), f"run {state.run}"), SweepJob)
    if is_sweep and overrides:
        raise RunError(
            f"run {state.run!r} reports on trials that were submitted with it and takes no overrides "
            f"({', '.join(overrides)}); resume a trial with them, or submit another sweep"
        )
    if is_sweep and from_step is not None:
        raise RunError(f"run {state.run!r} reports on a sweep and has no checkpoint to branch from")
    if state.state == "finished" and not is_sweep and from_step is None:
        raise RunError(
            f"run {state.run!r} has finished; `pelagos clone {state.run} NEW` runs it again"
        )
    if not take_over:
        require_own(found)
    if not state.has_ended and state.state not in ("preempted", LOST):
        raise RunError(
            f"run {state.run!r} is {state.state}; stop it first: pelagos stop {state.run}"
        )
    name = cluster or state.cluster
    config = find_cluster(name)
    target = open_cluster(name, config)
    if storage_of(config).uri != found.store.uri:
        raise RunError(
            f"cluster {name} keeps its runs in {config.storage}, this one is in {found.store.uri}: a "
            "run continues only where its checkpoints are. Give both clusters the same storage"
        )
    job = _revised(found, overrides, is_branch=from_step is not None)
    own = None if take_over else parse_job(found.record.job_yaml(), f"run {state.run}")
    require_own_places(job, state.run, overrides, config, own)
    target.check_needs(needs_of(job))
    code = _code_for(found, options, take_over)
    found.record.append(
        "resubmitted",
        cluster=name,
        cluster_config=config.model_dump(mode="json"),
        needs=vars(needs_of(job)),
        code=vars(code),
        overrides=list(overrides),
        attempt=state.attempt + 1,
        handle={},
        **({"from_step": from_step} if from_step is not None else {}),
    )
    submission = submission_of(found.record, state.attempt + 1, config)
    hand_over(target, found.record, _with_tracking(submission, job, overrides))
    return found.record.state()


def _with_tracking(submission: Submission, job: Any, overrides: Sequence[str]) -> Submission:
    """Tell the run of a tracking server that its owner has changed by a way that nobody else can
    write: what a record says of it is not believed (`require_recorded_places`)."""
    keys = [text.partition("=")[0].strip() for text in overrides]
    tracking = getattr(job, "tracking", None)
    if tracking is None or tracking.uri is None or not {"tracking", "tracking.uri"} & set(keys):
        return submission
    return replace(
        submission,
        environment={**submission.environment, "MLFLOW_TRACKING_URI": tracking.uri},
    )


def _code_for(found: SubmittedRun, options: Options, take_over: bool) -> Code:
    """Return the code that a run continues with: its own, or, taken over, this user's."""
    if not take_over:
        _require_own_code(found)
        return Code(**found.record.latest("code")["code"])
    code, contents = own_code(found.store, options.include)
    upload(found.store, contents)
    own_runs.remember(found.record, found.record.first_event(), vars(code))
    return code


def _revised(found: SubmittedRun, overrides: Sequence[str], *, is_branch: bool = False) -> Any:
    """Return the run's job with changes; refuses, once the run has begun, what would change it."""
    directory = run_directory(found)
    if (directory.path / "job.yaml").exists():
        return directory.revised_job(overrides, CHANGEABLE_IN_A_BRANCH if is_branch else ())
    if is_branch:
        raise RunError(f"run {found.record.run!r} has no checkpoint yet to branch from")
    return parse_job(found.record.job_yaml(), f"run {found.record.run}", overrides)
