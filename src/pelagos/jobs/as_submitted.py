"""A run's job.yaml beside the job that was submitted: what differs, others may have written.

Everyone who can write to the storage can change a run's directory. What a run does when it goes on is
what its submitter said, who is known by another way than the storage (`RunRecord.submitting_event`).
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

from pelagos.jobs.submission_job import place_job
from pelagos.platform.config.differences import changed_keys, is_among
from pelagos.platform.config.finetune import FinetuneJob
from pelagos.platform.config.kinds import Job
from pelagos.platform.config.overrides import override, value_at
from pelagos.platform.config.schema import TrainingJob
from pelagos.platform.others_runs import ENDPOINT, TRACKING, is_given
from pelagos.platform.runs import CHANGEABLE, RunDirectory, RunError

# Where a run happens to be: every machine says it afresh.
RUNS_DIR, RAY_ADDRESS = "runs_dir", "resources.ray_address"
# A run that does not fit shrinks them by itself, which changes no result.
MICRO_BATCH = "parallel.micro_batch_size"
# A fine-tuning takes these from its source before it begins.
FROM_THE_SOURCE = ("model", "data.normalization", "lora.also_train")


def require_submitted(
    run: RunDirectory, submitted: Job, storage: str, overrides: Sequence[str]
) -> None:
    """Raise unless a run's job.yaml is what this user submitted, but for what they override now.

    Raises:
        RunError: names each key with both values, and what to say.
    """
    given = tuple(text.partition("=")[0].strip() for text in overrides)
    job = _placed(submitted, storage, run)
    found = run.job_as_written()
    keys = [key for key in _differing(found, job) if not is_given(key, given)]
    told = [f"{key}: {value_at(found, key)!r}, submitted {value_at(job, key)!r}" for key in keys]
    if told:
        raise RunError(
            f"{run.path / 'job.yaml'} is not what you submitted ({'; '.join(told)}): somebody has "
            f"changed it, or you have, without submitting it. Say each value that you mean (KEY=VALUE)"
        )


def changes_to_submitted(run: RunDirectory, job: TrainingJob) -> list[str]:
    """Return the overrides that make a run's job.yaml the job that was submitted, which is placed.

    Raises:
        RunError: it differs in what a run that goes on cannot change.
    """
    found = run.job_as_written()
    keys = list(_differing(found, job))
    fixed = [k for k in keys if not is_among(k, (*CHANGEABLE, "optimizer", "schedule"))]
    if fixed:
        told = [
            f"{key}: {value_at(found, key)!r}, submitted {value_at(job, key)!r}" for key in fixed
        ]
        raise RunError(
            f"job.yaml of run {run.name!r} is not what was submitted ({'; '.join(told)}): somebody has "
            f"changed it since. `pelagos clone {run.name} NEW` runs the submitted job anew"
        )
    # the last two are said even where they are the same: a file of another user is not believed
    always = (RAY_ADDRESS, MICRO_BATCH, TRACKING, ENDPOINT)
    return [override(key, value_at(job, key)) for key in dict.fromkeys((*keys, *always))]


def _placed(job: Job, storage: str, run: RunDirectory) -> TrainingJob:
    placed = place_job(job, storage, Path(run.path).parent)
    if not isinstance(placed, TrainingJob):
        raise RunError(
            f"run {run.name!r} was submitted as no training, but its directory holds one"
        )
    return placed


def _differing(found: TrainingJob, job: TrainingJob) -> Iterator[str]:
    ignored = [RUNS_DIR, RAY_ADDRESS, MICRO_BATCH]
    if isinstance(found, FinetuneJob):
        ignored += FROM_THE_SOURCE
    for key in changed_keys(found.model_dump(mode="json"), job.model_dump(mode="json")):
        if not is_among(key, ignored):
            yield key
