"""`pelagos generate`: simulate datasets, in parallel, killable at any moment.

1. check the job whole: families, splits, what is at the uris
2. per dataset: create it, or continue where a killed run stopped (the existing shards show where)
3. compute missing shards in Ray tasks or in this process; each is written whole or not at all
4. finalize (statistics, manifest), then draw a contact sheet into the dataset
"""

from __future__ import annotations

import functools
import io
import time
from dataclasses import dataclass
from typing import Any, Literal

from rich.console import Console

from pelagos.data_pipelines.generate.tasks import (
    GenerationRequest,
    ShardReport,
    dataset_spec,
    make_shard,
)
from pelagos.data_pipelines.pictures.plots import contact_sheet
from pelagos.data_pipelines.store import DatasetError, DatasetSpec, open_dataset
from pelagos.data_pipelines.store.object_store import open_store
from pelagos.jobs.making.shard_work import (
    Launch,
    ShardProgress,
    abandoned_if_empty,
    begin,
    launcher,
    shard_progress,
)
from pelagos.platform.config.schema import GenerateDataset, GenerateJob
from pelagos.platform.console import HarmlessConsole
from pelagos.platform.storage_choice import options_for

CONTACT_SHEET = "contact-sheet.png"


@dataclass(frozen=True)
class GenerateResult:
    """The places of the datasets, and the work done for them.

    `metrics` holds, over all datasets: `trajectories` (complete now), `trajectories_computed` (by
    this call), `trajectories_retried` (accepted at a smaller step), `seconds`,
    `trajectories_per_second`.
    """

    run_name: str
    uris: tuple[str, ...]
    metrics: dict[str, float]


@dataclass(frozen=True)
class _Plan:
    """One dataset of the job."""

    uri: str
    request: GenerationRequest
    spec: DatasetSpec
    options: dict[str, Any]
    there: Literal["nothing", "dataset", "dataset and picture"]  # of this very specification

    @property
    def is_done(self) -> bool:
        return self.there == "dataset and picture"


def run(job: GenerateJob, console: Console | None = None) -> GenerateResult:
    """Simulate the job's datasets; the same job again continues where a killed one stopped.

    Datasets of the job that are complete already are kept. If all are, `overwrite` computes them
    again. A complete dataset that differs from the job's is rejected unless `overwrite`
    is set.

    Raises:
        ValueError: the job cannot run as written (all problems are listed).
        FileExistsError: the uris already hold other complete datasets.
        GenerationError: a trajectory is not finite at any step size tried.
    """
    console = console or HarmlessConsole()
    started = time.monotonic()
    plans = _plans(job)
    total = {"trajectories": 0.0, "trajectories_computed": 0.0, "trajectories_retried": 0.0}
    again = job.overwrite and all(plan.is_done for plan in plans)
    resources = job.resources
    if not again and all(plan.is_done for plan in plans):
        resources = resources.model_copy(update={"launcher": "none"})  # nothing to start Ray for
    with shard_progress(console) as progress, launcher(resources) as launch:
        for plan in plans:
            total["trajectories"] += plan.spec.num_trajectories
            if plan.is_done and not again:
                console.print(f"{plan.uri} is already complete")
                continue
            if again or plan.there == "nothing":
                reports = _generate(plan, job.overwrite, launch, progress)
            else:
                reports = []
            _draw(plan)
            total["trajectories_computed"] += sum(r.num_trajectories for r in reports)
            total["trajectories_retried"] += sum(r.num_retried for r in reports)
    total["seconds"] = time.monotonic() - started
    total["trajectories_per_second"] = total["trajectories_computed"] / total["seconds"]
    return GenerateResult(job.name, tuple(plan.uri for plan in plans), total)


def _plans(job: GenerateJob) -> list[_Plan]:
    """Every dataset with its specification, after all checks."""
    plans: list[_Plan] = []
    problems: list[str] = []
    occupied: list[str] = []
    for i, dataset in enumerate(job.datasets):
        try:
            plan, obstacle = _plan(job, dataset)
        except ValueError as error:
            problems.append(f"datasets.{i}: {error}")
            continue
        plans.append(plan)
        occupied += [obstacle] if obstacle else []
    uris = [dataset.uri.rstrip("/") for dataset in job.datasets]
    problems += [
        f"several datasets have the uri {u}" for u in sorted({u for u in uris if uris.count(u) > 1})
    ]
    if problems:
        raise ValueError(f"job {job.name} cannot run:\n  " + "\n  ".join(problems))
    if occupied and not job.overwrite:
        raise FileExistsError(
            "\n".join(occupied) + "\nUse another uri, or overwrite=true to replace it."
        )
    return plans


def _plan(job: GenerateJob, dataset: GenerateDataset) -> tuple[_Plan, str | None]:
    """One dataset's plan, and its obstacle: a different complete dataset at the same uri."""
    device = "cuda" if job.resources.gpus_per_worker else "cpu"
    request = GenerationRequest(
        dataset.family.lower(),
        job.seed,
        dataset.num_trajectories,
        dataset.resolution,
        dataset.num_frames,
        dataset.final_time,
        dataset.solver_resolution,
        dataset.solver_dtype,
        device,
        dataset.compile_solver,
    )
    splits = None if dataset.splits is None else {str(k): v for k, v in dataset.splits.items()}
    spec = dataset_spec(
        request,
        splits,
        compression=dataset.compression,
        trajectories_per_shard=dataset.trajectories_per_shard,
    )
    options = options_for(dataset.uri, job.storage)
    try:
        found = open_dataset(dataset.uri, options or None)
    except DatasetError:  # absent or unfinished: creating it shows which
        return _Plan(dataset.uri, request, spec, options, "nothing"), None
    differences = spec.differences(found.spec)
    found.close()
    if differences:
        obstacle = (
            f"{dataset.uri} already holds another complete dataset ({'; '.join(differences)})"
        )
        return _Plan(dataset.uri, request, spec, options, "nothing"), obstacle
    is_drawn = CONTACT_SHEET in open_store(dataset.uri, options or None).sizes()
    there: Literal["dataset", "dataset and picture"] = (
        "dataset and picture" if is_drawn else "dataset"
    )
    return _Plan(dataset.uri, request, spec, options, there), None


def _generate(
    plan: _Plan, overwrite: bool, launch: Launch[ShardReport], progress: ShardProgress
) -> list[ShardReport]:
    """Bring one dataset to its end; returns the reports of the shards this call computed."""
    writer = begin(plan.uri, plan.spec, overwrite, plan.options)
    missing = writer.missing_shards()
    left = sum(len(writer.shard_trajectories(shard)) for shard in missing)
    progress.begin(plan.spec.name, plan.spec.num_trajectories, plan.spec.num_trajectories - left)
    reports = []
    with abandoned_if_empty(writer):
        for report in launch(functools.partial(make_shard, writer, plan.request), missing):
            progress.advance(report.num_trajectories)
            reports.append(report)
    progress.end()
    writer.finalize()
    return reports


def _draw(plan: _Plan) -> None:
    picture = io.BytesIO()
    dataset = open_dataset(plan.uri, plan.options or None)
    contact_sheet(dataset, picture)
    dataset.close()
    open_store(plan.uri, plan.options or None).write(CONTACT_SHEET, picture.getvalue())
