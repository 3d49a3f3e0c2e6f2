"""A run continues from one of its checkpoints with another optimizer or schedule: a recorded branch.

After a divergence the run must not repeat the same steps. The results so far
stay: its checkpoints where they are, the values of dropped steps in metrics-redone.jsonl, its
MLflow run as it was. The branch has a place for its checkpoints and an MLflow run of its own, and an
event says from which step on which settings changed. In this order, so that a branch that was cut
off after step 2 is made whole by the next resume, whatever that asks for:

1. the checkpoint is copied to a place of its own below the run's checkpoints
2. take-overs.json says that the run continues from there
3. later steps leave metrics.jsonl, the changed job becomes the run's, the event is written
"""

import json
import logging
from collections.abc import Sequence
from typing import Any

from pelagos.jobs.training.checking import checked
from pelagos.jobs.training.take_over import (
    as_recorded,
    bring_checkpoint,
    is_effective,
    make_effective,
)
from pelagos.platform.checkpoint import (
    CheckpointError,
    CheckpointStore,
    named_step,
)
from pelagos.platform.checkpoint.trainer_state import streams_of
from pelagos.platform.config.differences import changed_keys
from pelagos.platform.config.overrides import value_at
from pelagos.platform.mlflow_records.store import part_with_run
from pelagos.platform.records.runs import (
    BRANCHED,
    CHANGEABLE_IN_A_BRANCH,
    TAKE_OVERS,
    RunDirectory,
    RunError,
    check_identity,
)
from pelagos.platform.records.states import State
from pelagos.platform.storage_choice import options_for

logger = logging.getLogger(__name__)
LOCK_SECONDS = 60.0
_LOCK = "branch"


def branch(run: RunDirectory, which: str, overrides: Sequence[str], request: str = "") -> None:
    """Let `run` continue from its checkpoint `which` (`last`, `best`, a step) with other settings.

    `request` names who asked; asked twice by the same, the second call changes nothing.

    Raises:
        RunError: another process drives the run, or an override changes what the run is.
        CheckpointError: there is no such checkpoint; nothing was changed.
        ConfigError: the changed job is not valid; nothing was changed.
    """
    finish_last(run, overrides)
    with run.lock(), run.lock(_LOCK, LOCK_SECONDS):
        records = run.take_overs()
        if request and any(record.get("request") == request for record in records):
            return
        before, after = run.job(), run.revised_job(overrides, CHANGEABLE_IN_A_BRANCH)
        run.require_believed(after, overrides)
        source, step = _checkpoint(run, which)
        state = source.trainer_state(step)
        check_identity(run, source.uri, step, state)
        streams_of(state, f"{source.uri} step {step}")  # or nothing could continue from the branch
        if after.schedule.total_steps <= step:
            raise RunError(
                f"run {run.name!r}: schedule.total_steps is {after.schedule.total_steps}, but the "
                f"checkpoint is already at step {step}, so nothing is left to train; choose more "
                "steps"
            )
        checked(after)  # the network and the data may reject values that the schema accepts
        record = bring_checkpoint(run, run.name, source, step)
        plain = [job.model_dump(mode="json") for job in (before, after)]
        record["settings"] = {
            key: [value_at(before, key), value_at(after, key)] for key in changed_keys(*plain)
        }
        record |= {"request": request} if request else {}
        record["number"] = len(records) + 1  # two branches may be alike in all else
        run.replace(TAKE_OVERS, json.dumps([*records, record], indent=1))
        _make_effective(run, record, overrides)


def finish_last(run: RunDirectory, overrides: Sequence[str] = ()) -> None:
    """Complete a branch, or a take-over, that was cut off after it was recorded, and say so.

    Without it the run would continue from the new checkpoint with the old settings. One that has
    trained on already, under an earlier version, stays as it is.

    Raises:
        RunError: another process is making the branch; or it is another user's, and names addresses
            that `overrides` do not.
    """
    if _is_whole(run):
        return
    with run.lock(_LOCK, LOCK_SECONDS):
        if _is_whole(run):  # another rank, or the process that began it, was faster
            return
        record = run.take_overs()[-1]
        if record["source"] == run.name:
            _make_effective(run, record, overrides)
        else:
            make_effective(run, record, overrides)
        changed = (f"{key}={after!r}" for key, (_, after) in record["settings"].items())
        logger.warning(
            "run %s: completed the branch from step %d, which had been interrupted (%s)",
            run.name,
            record["step"],
            ", ".join(changed) or "no setting changed",
        )


def _is_whole(run: RunDirectory) -> bool:
    """Whether the run matches its last record, or has already trained on from it."""
    records = run.take_overs()
    if not records or is_effective(run, records[-1]):
        return True
    newest = CheckpointStore(
        run.checkpoint_uri, options_for(run.checkpoint_uri, run.job().storage)
    ).latest_step()
    return newest is not None and newest > records[-1]["step"]


def _make_effective(run: RunDirectory, record: dict[str, Any], overrides: Sequence[str]) -> None:
    """Bring the run to the state of its last record; the event comes last, and marks this as done."""
    job = as_recorded(run, record, overrides)
    run.keep_metrics_until(record["step"])
    part_with_run(run)
    run.replace_job(job)
    run.append_event(BRANCHED, **record)
    run.set_status(State.STOPPED, is_tracked=False)


def _checkpoint(run: RunDirectory, which: str) -> tuple[CheckpointStore, int]:
    """Return the store and step of a checkpoint; one by number may be of before a branch."""
    options = run.job().storage
    for number in range(len(run.take_overs()), -1, -1):
        uri = run.checkpoint_uri_after(number)
        store = CheckpointStore(uri, options_for(uri, options))
        if not which.isdigit() or int(which) in [info.step for info in store.complete()]:
            return store, named_step(store, which)
    uri = run.checkpoint_uri
    store = CheckpointStore(uri, options_for(uri, options))
    listed = ", ".join(str(info.step) for info in store.complete()) or "none"
    raise CheckpointError(f"{uri} has no checkpoint of step {which}; available steps: {listed}")
