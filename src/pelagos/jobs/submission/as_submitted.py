"""A run's job.yaml compared with the submitted job: others may have written the differences.

Everyone who can write to the storage can change a run's directory. A continued run does
as its submitter said, who is identified by other means than the storage (`RunRecord.submitting_event`).
"""

from collections.abc import Iterator, Sequence

from pelagos.platform.config.differences import changed_keys, is_among
from pelagos.platform.config.kinds import Job, as_kind
from pelagos.platform.config.old_options import new_key
from pelagos.platform.config.overrides import override, value_at
from pelagos.platform.config.schema import TrainingJob
from pelagos.platform.records.others_runs import ENDPOINT, TRACKING, is_given
from pelagos.platform.records.runs import CHANGEABLE, CHANGEABLE_IN_A_BRANCH, RunDirectory, RunError

# Where a run happens to be: every machine says it afresh.
RUNS_DIR, RAY_ADDRESS = "runs_dir", "resources.ray_address"
# A run that does not fit shrinks them by itself, which changes no result.
MICRO_BATCH = "parallel.micro_batch_size"
# A fine-tuning takes these from its source before it begins.
FROM_THE_SOURCE = ("model", "data.normalization", "lora.also_train")


def changes_to_own(run: RunDirectory, own: Sequence[Job], overrides: Sequence[str]) -> list[str]:
    """Return the overrides that turn a run's job.yaml into this user's last submission.

    Without the keys that they override now.

    Args:
        own: the jobs that this user submitted as this run, placed, the newest last. The run may not
            have begun since, so that its job.yaml is an earlier one.

    Raises:
        RunError: job.yaml matches none; names each key with both values, and the remedy.
    """
    given = tuple(new_key(text.partition("=")[0].strip()) for text in overrides)
    found = run.job_as_written()

    def differing(job: TrainingJob) -> list[str]:
        return [key for key in _differing(found, job) if not is_given(key, given)]

    *earlier, job = [_training(job, run) for job in own]
    keys = differing(job)
    if not keys or not all(differing(other) for other in earlier):
        return [override(key, value_at(job, key)) for key in keys]
    raise RunError(
        f"{run.path / 'job.yaml'} differs from the job that you submitted "
        f"({_told(found, job, keys)}). Somebody changed it, or you did without submitting it. Give "
        "each value that you want as KEY=VALUE"
    )


def changes_to_submitted(run: RunDirectory, job: TrainingJob, *, is_branch: bool) -> list[str]:
    """Return the overrides that make a run's job.yaml the job that was submitted, which is placed.

    Args:
        is_branch: optimizer and schedule may change, from a checkpoint on.

    Raises:
        RunError: it differs in keys that a continued run cannot change.
    """
    found = run.job_as_written()
    keys = list(_differing(found, job))
    changeable = (*CHANGEABLE, *(CHANGEABLE_IN_A_BRANCH if is_branch else ()))
    _refuse(run.name, found, job, [key for key in keys if not is_among(key, changeable)])
    # the last two are said even where they are the same: a file of another user is not believed
    always = (RAY_ADDRESS, MICRO_BATCH, TRACKING, ENDPOINT)
    return [override(key, value_at(job, key)) for key in dict.fromkeys((*keys, *always))]


def require_submitted(found: TrainingJob, submitted: TrainingJob) -> None:
    """Raise unless a run continues as the job that was submitted, which is placed.

    Its directory may have been changed since that was looked at, and holds more than job.yaml.

    Raises:
        RunError: names each key with both values.
    """
    _refuse(submitted.name, found, submitted, list(_differing(found, submitted)))


def _refuse(run: str, found: TrainingJob, job: TrainingJob, keys: Sequence[str]) -> None:
    if keys:
        raise RunError(
            f"job.yaml of run {run!r}, or its take-overs.json, differs from what was submitted "
            f"({_told(found, job, keys)}): somebody changed it since. Restore the submitted values, "
            f"or run the submitted job anew: `pelagos clone {run} NEW`"
        )


def _told(found: TrainingJob, job: TrainingJob, keys: Sequence[str]) -> str:
    return "; ".join(
        f"{key}: now {value_at(found, key)!r}, submitted {value_at(job, key)!r}" for key in keys
    )


def _training(job: Job, run: RunDirectory) -> TrainingJob:
    other = RunError(
        f"run {run.name!r} was not submitted as a training, but its directory holds one"
    )
    return as_kind(TrainingJob, job, other)


def _differing(found: TrainingJob, job: TrainingJob) -> Iterator[str]:
    if found.job != job.job:
        yield "job"  # a training of another kind has other keys
        return
    ignored = [RUNS_DIR, RAY_ADDRESS, MICRO_BATCH]
    if found.starts_from is not None:
        ignored += FROM_THE_SOURCE
    for key in changed_keys(found.model_dump(mode="json"), job.model_dump(mode="json")):
        if not is_among(key, ignored):
            yield key
