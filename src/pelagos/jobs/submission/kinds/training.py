"""Trainings as submitted jobs: pretrain and finetune."""

import os
from collections.abc import Collection
from pathlib import Path
from typing import Any, TypeVar

from pelagos.infra.storage.remote import is_remote
from pelagos.jobs.submission.as_submitted import changes_to_submitted, require_submitted
from pelagos.jobs.submission.kinds.base import Attempt, JobKind, Key, Place
from pelagos.jobs.submission.kinds.places import on_this_ray, place_tracking
from pelagos.jobs.sweeping.trials import clear_unbegun
from pelagos.platform.config.finetune import REGISTRY_SCHEME, FinetuneJob
from pelagos.platform.config.schema import TrainingJob
from pelagos.platform.console import HarmlessConsole
from pelagos.platform.records.runs import Outcome, RunDirectory

AnyTraining = TypeVar("AnyTraining", bound=TrainingJob)


class TrainingKind(JobKind[AnyTraining]):
    """A training: it continues from its checkpoints however often it is interrupted."""

    is_training = True

    def place(self, tree: dict[str, Any], place: Place) -> None:
        for index, entry in enumerate(tree["data"]["mixture"]):
            entry["uri"] = place(("data", "mixture", index, "uri"), entry["uri"])
        if tree["checkpoint"]["uri"]:
            tree["checkpoint"]["uri"] = place(("checkpoint", "uri"), tree["checkpoint"]["uri"])
        zero = tree["parallel"]["zero"]
        if isinstance(zero["config"], str):
            from pelagos.platform.strategies.zero_config import user_config

            zero["config"] = user_config(zero["config"])
        place_tracking(tree["tracking"], place)

    def check(self, job: AnyTraining, made: Collection[str], earlier: Collection[str]) -> list[str]:
        uris = [entry.uri for entry in job.data.mixture]
        absent = [uri for uri in uris if not is_remote(uri) and not os.path.exists(uri)]
        if absent or any(uri in made for uri in uris):
            unseen = ", ".join(absent or made)
            return [
                f"not checked, because absent so far or not visible from this machine: {unseen}"
            ]
        return self.check_parts(job)

    def check_parts(self, job: AnyTraining) -> list[str]:
        """Check the job against its datasets, which are there."""
        from pelagos.jobs.training.checking import checked

        checked(job)
        return []

    def on_cluster(self, job: AnyTraining, storage: str, runs_dir: Path) -> AnyTraining:
        checkpoint = job.checkpoint
        if checkpoint.uri is None and is_remote(storage):
            checkpoint = checkpoint.model_copy(update={"uri": f"{storage}/checkpoints"})
        changes = {"runs_dir": str(runs_dir), "checkpoint": checkpoint}
        return job.model_copy(update={**changes, "resources": on_this_ray(job.resources)})

    def total_steps(self, job: AnyTraining) -> int | None:
        return job.schedule.total_steps

    def may_shrink(self, job: AnyTraining) -> bool:
        return job.health.shrink_micro_batch

    def fetch_source(self, job: AnyTraining, attempt: Attempt) -> None:
        """Bring the run here that the job takes its weights from."""

    def run(self, job: AnyTraining, attempt: Attempt, console: HarmlessConsole) -> Outcome:
        from pelagos.jobs import resume

        directory = attempt.runs_dir / attempt.run
        if attempt.mirrors and not (directory / "job.yaml").exists():
            attempt.mirrors[0].pull()
        if not (directory / "job.yaml").exists():
            clear_unbegun(directory)
            self.fetch_source(job, attempt)
            return resume.start(job, console, attempt.watch, identity=attempt.identity()).outcome
        from_step = attempt.event.get("from_step") or None
        # where and how the steps are computed may have changed since the last attempt
        return resume.resume(
            str(attempt.runs_dir),
            attempt.run,
            console,
            changes_to_submitted(RunDirectory(directory), job, is_branch=bool(from_step)),
            attempt.watch,
            from_step=from_step,
            # a branch is made once, however often this is tried again
            request=f"submission of {attempt.event['time']}",
            require=lambda found: require_submitted(found, job),
        ).outcome


class FinetuneKind(TrainingKind[FinetuneJob]):
    """A training that starts from other weights, of a run or of files."""

    def place(self, tree: dict[str, Any], place: Place) -> None:
        super().place(tree, place)
        source = tree["source"]
        if source["uri"] is not None and not source["uri"].startswith(REGISTRY_SCHEME):
            source["uri"] = place(("source", "uri"), source["uri"])
        source["runs_dir"] = source["cluster"] = None  # a run of the cluster's own

    def runs_needed(self, job: FinetuneJob) -> dict[Key, str]:
        return {} if job.source.run is None else {("source", "run"): job.source.run}

    def check_parts(self, job: FinetuneJob) -> list[str]:
        source = job.source.run
        if source is not None:
            return [
                f"not checked against {source}, whose weights do not exist yet or are not visible "
                "from this machine"
            ]
        from pelagos.jobs import finetune

        finetune.prepare(job)
        return []

    def fetch_source(self, job: FinetuneJob, attempt: Attempt) -> None:
        if attempt.mirrors and job.source.run is not None:
            attempt.mirror_of(job.source.run).pull()
