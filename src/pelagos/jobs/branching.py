"""A run continues from one of its checkpoints with another optimizer or schedule: a recorded branch.

After a divergence the steps to come must not be those that were begun. What the run did so far
stays: its checkpoints where they are, the values of dropped steps in metrics-redone.jsonl, its
MLflow run as it was. The branch has a place for its checkpoints and an MLflow run of its own, and an
event says from which step on which settings changed. In this order, so that a branch that was cut
off is made whole by asking for it again:

1. the checkpoint is copied to a place of its own below the run's checkpoints
2. take-overs.json says that the run continues from there
3. later steps leave metrics.jsonl, the changed job becomes the run's, the event is written
"""

import json
from collections.abc import Sequence
from typing import Any

from pelagos.jobs.parts import check_parts, options_for
from pelagos.jobs.take_over import bring_checkpoint
from pelagos.platform.checkpoint import (
    CheckpointError,
    CheckpointStore,
    named_step,
)
from pelagos.platform.config.overrides import value_at
from pelagos.platform.config.schema import TrainingJob
from pelagos.platform.mlflow_store import part_with_run
from pelagos.platform.runs import (
    BRANCHED,
    CHANGEABLE_IN_A_BRANCH,
    TAKE_OVERS,
    RunDirectory,
    RunError,
    changed_keys,
    check_identity,
)


def branch(run: RunDirectory, which: str, overrides: Sequence[str], request: str = "") -> None:
    """Let `run` continue from its checkpoint `which` (`last`, `best`, a step) with other settings.

    `request` names who asked; asked twice by the same, the second call changes nothing.

    Raises:
        RunError: another process drives the run, or an override changes what the run is.
        CheckpointError: there is no such checkpoint; nothing was changed.
        ConfigError: the changed job is not valid; nothing was changed.
    """
    with run.lock():
        records = run.take_overs()
        if request and any(record.get("request") == request for record in records):
            told = [event.get("request") for event in run.events() if event["kind"] == BRANCHED]
            if request not in told:  # it was cut off after it was recorded
                _make_effective(
                    run, records[-1], run.revised_job(overrides, CHANGEABLE_IN_A_BRANCH)
                )
            return
        before, after = run.job(), run.revised_job(overrides, CHANGEABLE_IN_A_BRANCH)
        source, step = _checkpoint(run, which)
        check_identity(run, source.uri, step, source.trainer_state(step))
        if after.schedule.total_steps <= step:
            raise RunError(
                f"run {run.name!r}: schedule.total_steps is {after.schedule.total_steps}, the "
                f"checkpoint is of step {step}: nothing is left to train; choose more steps"
            )
        check_parts(after)  # the network and the data may refuse what the schema takes
        record = bring_checkpoint(run, run.name, source, step)
        plain = [job.model_dump(mode="json") for job in (before, after)]
        record["settings"] = {
            key: [value_at(before, key), value_at(after, key)] for key in changed_keys(*plain)
        }
        record |= {"request": request} if request else {}
        run.replace(TAKE_OVERS, json.dumps([*records, record], indent=1))
        _make_effective(run, record, after)


def _make_effective(run: RunDirectory, record: dict[str, Any], after: TrainingJob) -> None:
    """Let the run be what its last record says; the event comes last, and says that this is done."""
    run.keep_metrics_until(record["step"])
    part_with_run(run)
    run.replace_job(after)
    run.append_event(BRANCHED, **record)
    run.set_status("stopped", is_tracked=False)


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
    raise CheckpointError(f"{uri} has no checkpoint of step {which}; there are: {listed}")
