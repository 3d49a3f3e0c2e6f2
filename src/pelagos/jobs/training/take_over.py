"""A run continues from another run's checkpoint, with other settings: exploit and explore.

The run's earlier results stay: its records, and its newest and best checkpoint, where they are. In
this order, each step whole or not begun, so that a take-over that was cut off is completed when it is
made again:

1. the other's checkpoint is copied to a place of its own below the run's checkpoints
2. take-overs.json records that the run continues from there
3. the changed job becomes the run's; the previous one stays next to it
4. an event records it: from which run and step, the old and new values of changed settings
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from pelagos.platform.checkpoint import CheckpointStore, copy_checkpoint, empty_place
from pelagos.platform.config.kinds import as_kind
from pelagos.platform.config.load import load_job
from pelagos.platform.config.overrides import override, value_at
from pelagos.platform.config.schema import TrainingJob
from pelagos.platform.records.others_runs import believed
from pelagos.platform.records.runs import BRANCHED, TAKE_OVERS, RunDirectory, RunError
from pelagos.platform.storage_choice import options_for

EVENT = "taken_over"


def take_over(
    run: RunDirectory, source: RunDirectory, step: int, settings: Mapping[str, Any]
) -> dict[str, Any]:
    """Let `run` continue from `source`'s checkpoint of `step` with these settings (dotted key: value).

    Returns its record: step, source, `settings` (key: [before, after]), checkpoint. The second call
    for a step changes nothing.

    Raises:
        RunError: another process drives the run, or it has gone beyond `step`.
        CheckpointError: the source has no whole checkpoint of that step; nothing was changed.
        ConfigError: the job with these settings is not valid; nothing was changed.
    """
    with run.lock():
        records = run.take_overs()
        record = next((r for r in records if r["step"] == step), None)
        if record is None:
            record = _continue_from(run, source, step, settings)
        elif record != records[-1]:
            return record
        make_effective(run, record)
        return record


def make_effective(
    run: RunDirectory, record: dict[str, Any], overrides: Sequence[str] = ()
) -> None:
    """Bring the run to the state of a take-over's record; the event comes last."""
    run.replace_job(as_recorded(run, record, overrides))
    if not is_effective(run, record):
        run.append_event(EVENT, **record)


def is_effective(run: RunDirectory, record: dict[str, Any]) -> bool:
    """Whether a take-over, or a branch, was not only recorded but made whole: its event says so."""
    return any(
        event["kind"] in (EVENT, BRANCHED)
        and all(event.get(key) == value for key, value in record.items())
        for event in run.events()
    )


def _continue_from(
    run: RunDirectory, source: RunDirectory, step: int, settings: Mapping[str, Any]
) -> dict[str, Any]:
    """Bring the checkpoint into the run's own, and let the run continue from there."""
    if run.last_step() > step:
        raise RunError(
            f"run {run.name!r} has continued to step {run.last_step()}: taking over the checkpoint "
            f"of step {step} of {source.name} would undo its steps since then"
        )
    before, after = run.job(), with_settings(run, settings)
    changes = {key: [value_at(before, key), value_at(after, key)] for key in settings}
    own, others = _store(run), _store(source)
    record = bring_checkpoint(run, source.name, others, step)
    record["settings"] = {key: change for key, change in changes.items() if change[0] != change[1]}
    run.replace(TAKE_OVERS, json.dumps([*run.take_overs(), record], indent=1))
    _tidy(own)
    return record


def bring_checkpoint(
    run: RunDirectory, source: str, store: CheckpointStore, step: int
) -> dict[str, Any]:
    """Copy a checkpoint of `source`, and the best one until then, to a new place of `run`'s own.

    Return the record of it.
    """
    uri = run.checkpoint_uri_after(len(run.take_overs()) + 1)
    target = CheckpointStore(uri, options_for(uri, run.job().storage))
    empty_place(target)  # one that was cut off before it was recorded
    best = store.trainer_state(step).get("best")
    if best and best["step"] in [info.step for info in store.complete()]:
        copy_checkpoint(store, best["step"], target)
    copy_checkpoint(store, step, target)
    # the source may have taken these over itself
    identities = {str(target.trainer_state(i.step).get("run", "")) for i in target.complete()}
    return {
        "step": step,
        "source": source,
        "checkpoint": f"{store.uri} step {step}",
        "identities": sorted(identities),
    }


def as_recorded(
    run: RunDirectory, record: Mapping[str, Any], overrides: Sequence[str] = ()
) -> TrainingJob:
    """Return the job that a run has after a recorded take-over or branch.

    The run's files may be another user's: an address that only they name must not come into a job
    file of this user's, who is believed.

    Raises:
        RunError: they name one, and the user says nothing of it in `overrides`.
    """
    written = with_settings(run, {key: value[1] for key, value in record["settings"].items()})
    job = written
    for name in ("job.yaml", TAKE_OVERS):
        job = believed(job, run.path / name)
    run.require_believed(job, overrides, written)
    return job


def with_settings(run: RunDirectory, settings: Mapping[str, Any]) -> TrainingJob:
    """Return the run's job with other values of these dotted keys."""
    overrides = [override(key, value) for key, value in settings.items()]
    job = load_job(run.path / "job.yaml", overrides)
    other = RunError(f"run {run.name!r}: with {TAKE_OVERS} it is no longer a training")
    return as_kind(TrainingJob, job, other)


def _store(run: RunDirectory) -> CheckpointStore:
    uri = run.checkpoint_uri
    return CheckpointStore(uri, options_for(uri, run.job().storage))


def _tidy(store: CheckpointStore) -> None:
    """Keep the newest and the best checkpoint of the abandoned steps."""
    newest = store.latest_step()
    if newest is None:
        return
    best = store.trainer_state(newest).get("best")
    store.prune(1, {best["step"]} if best else set())
