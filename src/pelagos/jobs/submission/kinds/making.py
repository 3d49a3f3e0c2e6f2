"""Jobs that make datasets: generate and convert."""

import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

from pelagos.infra.storage.remote import is_remote
from pelagos.jobs.submission.kinds.base import Attempt, JobKind, Place
from pelagos.jobs.submission.kinds.places import on_this_ray
from pelagos.platform.config.convert import ConvertJob
from pelagos.platform.config.schema import GenerateJob
from pelagos.platform.console import HarmlessConsole
from pelagos.platform.records.runs import Outcome
from pelagos.platform.records.states import State

FILES = ("mapping", "labels")  # options of a conversion that name a file or folder


class GenerateKind(JobKind[GenerateJob]):
    """Simulated datasets, made shard by shard."""

    def place(self, tree: dict[str, Any], place: Place) -> None:
        for index, dataset in enumerate(tree["datasets"]):
            dataset["uri"] = place(("datasets", index, "uri"), dataset["uri"])

    def datasets_made(self, job: GenerateJob) -> tuple[str, ...]:
        return tuple(dataset.uri for dataset in job.datasets)

    def replaced(self, job: GenerateJob) -> dict[str, str]:
        uris = enumerate(self.datasets_made(job)) if job.overwrite else ()
        return {f"datasets.{index}.uri": uri for index, uri in uris}

    def on_cluster(self, job: GenerateJob, storage: str, runs_dir: Path) -> GenerateJob:
        return job.model_copy(update={"resources": on_this_ray(job.resources)})

    def run(self, job: GenerateJob, attempt: Attempt, console: HarmlessConsole) -> Outcome:
        from pelagos.jobs import generate

        generate.run(job, console)
        return Outcome(State.FINISHED, 0)


class ConvertKind(JobKind[ConvertJob]):
    """Data in published formats, converted shard by shard."""

    def place(self, tree: dict[str, Any], place: Place) -> None:
        for key in ("source", "uri"):
            tree[key] = place((key,), tree[key])
        for key in FILES:
            if isinstance(tree["options"].get(key), str):
                tree["options"][key] = place(("options", key), tree["options"][key])

    def check(self, job: ConvertJob, made: Collection[str], earlier: Collection[str]) -> list[str]:
        from pelagos.jobs import convert

        options = convert.options_of(job)
        if not is_remote(job.source) and not os.path.exists(job.source):
            return [f"not checked, because this machine cannot see it: {job.source}"]
        return list(convert.plan(job.source, options)[0].notes)

    def datasets_made(self, job: ConvertJob) -> tuple[str, ...]:
        return (job.uri,)

    def replaced(self, job: ConvertJob) -> dict[str, str]:
        files = {
            f"options.{k}": str(job.options[k]) for k in ("mapping", "labels") if job.options.get(k)
        }
        return {"source": job.source, "uri": job.uri, **files}

    def on_cluster(self, job: ConvertJob, storage: str, runs_dir: Path) -> ConvertJob:
        return job.model_copy(update={"resources": on_this_ray(job.resources)})

    def run(self, job: ConvertJob, attempt: Attempt, console: HarmlessConsole) -> Outcome:
        from pelagos.jobs import convert

        result = convert.run_job(job, console)
        if result.differences:
            differences = convert.listed(list(result.differences))
            return Outcome(State.FAILED, 0, f"{job.uri} differs from {job.source}: {differences}")
        return Outcome(State.FINISHED, 0)
