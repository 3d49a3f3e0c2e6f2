"""`pelagos evaluate RUN RUN … --compare`: several runs on the same held-out trajectories."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from pelagos.evaluation.conclusions.verdicts import judge, warnings_of
from pelagos.evaluation.forecasting.scores import BASELINES, DatasetEvaluation
from pelagos.evaluation.pages.side_by_side import (
    SharedDataset,
    best_sentence,
    shared_datasets,
    write_side_by_side,
)
from pelagos.evaluation.pages.terminal_tables import Column, print_table
from pelagos.infra.storage.files import below
from pelagos.jobs.evaluate import measure
from pelagos.jobs.measuring.workers import workers_of
from pelagos.jobs.training.run_plugins import import_plugins_of
from pelagos.platform.config.measure import EvaluateJob
from pelagos.platform.records.runs import RunDirectory

COMPARISONS = "comparisons"
MAX_NAME_LENGTH = 120


@dataclass(frozen=True)
class CompareResult:
    """Where the report lies, and the numbers in it (`metrics`: as in metrics.json)."""

    report: Path
    metrics: dict[str, Any]


def run(
    jobs: Sequence[EvaluateJob], console: Console | None = None, place: str | None = None
) -> CompareResult:
    """Evaluate each run, alike but for its name, and report on their common datasets.

    Args:
        place: the directory below which the report goes; default: the first run's `runs_dir`.

    Raises:
        ValueError: fewer than two runs, one twice, no common dataset, or a job that `evaluate` rejects.
    """
    names = [job.run for job in jobs]
    if len(set(names)) != len(names) or len(names) < 2:
        raise ValueError(f"compare needs at least two different runs, got {', '.join(names)}")
    with _cluster_of(jobs):
        evaluations, told = _measured(jobs)
    shared = shared_datasets(evaluations)
    first = jobs[0]
    name = f"{COMPARISONS}/{'-vs-'.join(names)[:MAX_NAME_LENGTH]}/{first.split}"
    directory = (
        Path(first.output_dir) if first.output_dir else below(Path(place or first.runs_dir), name)
    )
    report, found = write_side_by_side(shared, told, directory)
    if console is not None:
        for data in shared:
            _show(data, console)
        console.print(f"report: {report}", soft_wrap=True)
    return CompareResult(report, {"runs": told, **found})


def _cluster_of(jobs: Sequence[EvaluateJob]) -> AbstractContextManager[None]:
    """Return the cluster that the workers of all evaluations fit in, one after the other."""
    workers = []
    for job in jobs:
        run = RunDirectory.open(job.runs_dir, job.run)
        import_plugins_of(run)
        workers.append(workers_of(job.resources, run.job().resources))
    return max(workers, key=lambda w: w.cpus_per_worker).cluster()


def _measured(
    jobs: Sequence[EvaluateJob],
) -> tuple[dict[str, list[DatasetEvaluation]], dict[str, dict[str, Any]]]:
    """Return the scores of each run on each dataset, from one frame on, and each run's description."""
    evaluations: dict[str, list[DatasetEvaluation]] = {}
    told: dict[str, dict[str, Any]] = {}
    for job in jobs:
        evaluations[job.run], step = measure(job)
        training_run = RunDirectory.open(job.runs_dir, job.run)
        import_plugins_of(training_run)
        training = training_run.job()
        weights = evaluations[job.run][0].weights
        told[job.run] = {"model": training.model.name, "step": step, "weights": weights}
    # a model of ten frames begins nine later: the others must too, to forecast the same frames
    initial = max(e.initial_frame for found in evaluations.values() for e in found)
    for job in jobs:
        if evaluations[job.run][0].initial_frame != initial:
            evaluations[job.run], _ = measure(job, initial)
    return evaluations, told


def _show(data: SharedDataset, console: Console) -> None:
    verdicts = {c.run: judge(c.evaluation, data.groups) for c in data.contenders}
    for warning in (*warnings_of(verdicts.items()), *data.warnings()):
        console.print(Text("warning:", style="red"), f"{data.name}, {warning}", soft_wrap=True)
    rows, count = data.rows(), len(data.first.trajectories)
    columns = [
        Column(
            f"{c.run}\n{c.method}{', averaged' if c.evaluation.weights == 'ema' else ''}",
            [
                Text(str(row.errors[c.run]), style="green" if row.best == c.run else "")
                for row in rows
            ],
        )
        for c in data.contenders
    ]
    columns += [Column(name, [str(row.baselines[name]) for row in rows]) for name in BASELINES]
    print_table(
        console,
        f"{data.name}: relative L1 / VRMSE, medians over {count} held-out trajectories",
        Column("lead time", [f"{row.lead_time:g}" for row in rows]),
        columns,
    )
    told = [
        best_sentence(data),
        *(f"{run} {verdict.sentence}" for run, verdict in verdicts.items()),
    ]
    for sentence in (*told, *data.first.notes()):
        console.print(f"  {sentence}", soft_wrap=True)
