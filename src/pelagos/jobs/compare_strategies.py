"""`pelagos compare-strategies`: one job under several strategies and world sizes, and the table."""

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pelagos.evaluation.pages.plots import figure_png
from pelagos.infra.yaml_text import parse_yaml_value, yaml_text
from pelagos.jobs.measuring.strategy_table import (
    Comparison,
    compare_runs,
    comparison_figure,
    comparison_markdown,
)
from pelagos.jobs.training.checking import checked
from pelagos.platform.config.kinds import as_kind
from pelagos.platform.config.load import parse_job, resolve_yaml
from pelagos.platform.config.marks import Meaning, Trait
from pelagos.platform.config.meanings import Key, names_of, without
from pelagos.platform.config.schema import TrainingJob
from pelagos.platform.records.runs import RunDirectory
from pelagos.platform.records.states import State
from pelagos.platform.strategies import STRATEGIES

SHOWN_ERROR_LINES = 3
PROGRAM = ("-m", "pelagos.cli.main", "pretrain")


@dataclass(frozen=True)
class Layout:
    """A strategy at a world size."""

    strategy: str
    num_workers: int

    @property
    def name(self) -> str:
        """Names the run."""
        return f"{self.strategy}-{self.num_workers}"


def run(
    job: TrainingJob,
    layouts: Sequence[Layout],
    output: Path,
    *,
    steps: int,
    tolerance: float,
    overwrite: bool = False,
    progress: Callable[[str], None] = lambda _: None,
) -> Comparison:
    """Train the job under each layout, one after the other; write the table and the plots.

    Raises:
        ConfigError: a layout cannot run; nothing was started.
        ValueError: the output directory exists, or no layout is given.
    """
    if not layouts:
        raise ValueError(
            "no layout to compare: name at least one strategy and one number of --workers"
        )
    if output.exists() and not overwrite:
        raise ValueError(f"{output} already exists: choose another --output, or pass --overwrite")
    jobs = [_job_of(job, layout, steps) for layout in layouts]
    for of_layout in jobs:
        checked(of_layout)
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}-") as staging:
        runs = list(_train_all(jobs, layouts, Path(staging), progress))
        comparison = compare_runs(runs, tolerance)
        _write(comparison, Path(staging))
        if output.exists():
            shutil.rmtree(output)
        shutil.copytree(staging, output)
    return comparison


def layouts_of(strategies: Sequence[str], num_workers: Sequence[int]) -> list[Layout]:
    """Return every combination that makes sense: `single` comes once, on one worker.

    Raises:
        ValueError: an unknown strategy.
    """
    unknown = [s for s in strategies if s not in STRATEGIES]
    if unknown:
        raise ValueError(
            f"unknown strategy {', '.join(unknown)}; known strategies: {', '.join(STRATEGIES)}"
        )
    layouts: list[Layout] = []
    for count in num_workers:
        for strategy in strategies:
            layout = Layout(strategy, 1 if strategy == "single" else count)
            if layout not in layouts:
                layouts.append(layout)
    return layouts


def _job_of(job: TrainingJob, layout: Layout, steps: int) -> TrainingJob:
    """Return the job of one layout: the same steps, and nothing that is not compared."""
    overrides = [
        f"name={layout.name}",
        "runs_dir=runs",
        f"parallel.strategy={layout.strategy}",
        f"resources.num_workers={layout.num_workers}",
        "resources.launcher=none",
        f"schedule.total_steps={steps}",
        f"schedule.warmup_steps={min(job.schedule.warmup_steps, steps - 1)}",
        f"checkpoint.every_steps={steps}",
        f"validation.every_steps={steps}",
        "tracking.uri=null",
    ]
    computed = without(job.model_dump(mode="json"), names_of(_is_of_the_run_alone))
    text = yaml_text(computed, sort_keys=False)
    changed = parse_job(text, layout.name, overrides)
    return as_kind(TrainingJob, changed)


def _is_of_the_run_alone(key: Key) -> bool:
    """Whether a key says where the run is, how it is recorded, or who watches it."""
    return key.meaning is Meaning.RECORD or Trait.HOME in key.traits


def _train_all(
    jobs: Sequence[TrainingJob],
    layouts: Sequence[Layout],
    directory: Path,
    progress: Callable[[str], None],
) -> Iterator[tuple[str, RunDirectory, str]]:
    for number, (job, layout) in enumerate(zip(jobs, layouts, strict=True), start=1):
        progress(f"{layout.name} ({number} of {len(layouts)})")
        failure = _train(job, layout, directory)
        yield layout.name, RunDirectory(directory / "runs" / layout.name), failure


def _train(job: TrainingJob, layout: Layout, directory: Path) -> str:
    """Train in processes of its own; return why it failed, or nothing."""
    path = directory / f"{layout.name}.yaml"
    content = parse_yaml_value(resolve_yaml(job)) | {"runs_dir": str(directory / "runs")}
    path.write_text(yaml_text(content, sort_keys=False))
    command = [sys.executable, *PROGRAM, str(path)]
    if layout.num_workers > 1:
        launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node"]
        command = [sys.executable, "-m", *launcher, str(layout.num_workers), *PROGRAM, str(path)]
    log = directory / f"{layout.name}.log"
    with log.open("wb") as out:
        subprocess.run(command, stdout=out, stderr=subprocess.STDOUT, check=False)
    # the run's own word counts: gloo may abort a process that exits after all is done
    status = RunDirectory(directory / "runs" / layout.name).status()
    if status.get("state") == State.FINISHED:
        return ""
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return str(status.get("cause") or "; ".join(lines[-SHOWN_ERROR_LINES:]))


def _write(comparison: Comparison, directory: Path) -> None:
    (directory / "comparison.json").write_text(json.dumps(comparison.to_dict(), indent=1))
    (directory / "comparison.md").write_text(comparison_markdown(comparison))
    (directory / "comparison.png").write_bytes(figure_png(comparison_figure(comparison)))
