"""`pelagos evaluate RUN RUN … --compare`: several runs on the same held-out trajectories."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from pelagos.jobs.evaluate import measure
from pelagos.platform.config.measure import EvaluateJob
from pelagos.platform.evaluation.evaluate import DatasetEvaluation
from pelagos.platform.evaluation.side_by_side import (
    SharedDataset,
    best_sentence,
    numbers,
    shared_datasets,
    write_side_by_side,
)
from pelagos.platform.runs import RunDirectory

COMPARISONS = "comparisons"
MAX_NAME_LENGTH = 120


@dataclass(frozen=True)
class CompareResult:
    """Where the report lies, and the numbers in it (`metrics`: as in metrics.json)."""

    report: Path
    metrics: dict[str, Any]


def run(jobs: Sequence[EvaluateJob], console: Console | None = None) -> CompareResult:
    """Evaluate each run, alike but for its name, and report on what they have in common.

    Raises:
        ValueError: fewer than two runs, one twice, no common dataset, or what `evaluate` refuses.
    """
    names = [job.run for job in jobs]
    if len(set(names)) != len(names) or len(names) < 2:
        raise ValueError(f"--compare takes two or more different runs, got {', '.join(names)}")
    evaluations: dict[str, list[DatasetEvaluation]] = {}
    told: dict[str, dict[str, Any]] = {}
    for job in jobs:
        evaluations[job.run], step = measure(job)
        training = RunDirectory.open(job.runs_dir, job.run).job()
        told[job.run] = {"model": training.model.name, "step": step}
    shared = shared_datasets(evaluations)
    first = jobs[0]
    default = (
        Path(first.runs_dir) / COMPARISONS / "-vs-".join(names)[:MAX_NAME_LENGTH] / first.split
    )
    directory = Path(first.output_dir) if first.output_dir else default
    report = write_side_by_side(shared, told, directory)
    if console is not None:
        for data in shared:
            _show(data, console)
        console.print(f"report: {report}", soft_wrap=True)
    return CompareResult(report, {"runs": told, **numbers(shared)})


def _show(data: SharedDataset, console: Console) -> None:
    columns = [f"{c.run}\n{c.method}" for c in data.contenders]
    title = f"{data.name}: median relative L1 error, {len(data.first.trajectories)} trajectories"
    table = Table("lead time", *columns, "persistence", title=title)
    errors = [data.error(c) for c in data.contenders] + [data.persistence()]
    for lead, time in enumerate(data.first.lead_times):
        table.add_row(f"{time:g}", *(f"{values[lead]:.2%}" for values in errors))
    console.print(table)
    console.print(f"  {best_sentence(data)}", soft_wrap=True)
