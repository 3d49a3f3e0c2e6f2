"""`pelagos.train(…)` and friends: the jobs of the command line, with tables and figures as results.

    run = pelagos.train("job.yaml", "optimizer.lr=1e-3")     # or a dictionary
    run.metrics["loss"].plot(); run.evaluate().errors; run.forecaster()

Everything is in the run's directory: the command line continues a run of a notebook, and the other way.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pelagos import plugins
from pelagos.infra.yaml_text import yaml_text
from pelagos.jobs import evaluate as evaluate_job
from pelagos.jobs import resume as resume_job
from pelagos.jobs.interactive.live import progress_of
from pelagos.jobs.plot_runs import curves_of, panels_of
from pelagos.jobs.run_access.any_run import AnyRun
from pelagos.jobs.run_access.finding import find
from pelagos.jobs.run_access.submitted_run import SubmittedAnyRun
from pelagos.jobs.weights.forecaster import Forecaster
from pelagos.platform.config import EvaluateJob
from pelagos.platform.config.load import load_job, parse_job
from pelagos.platform.config.schema import TrainingJob
from pelagos.platform.records.description import RunDescription, description_of
from pelagos.platform.records.run_files import read_metrics
from pelagos.platform.records.runs import Outcome, RunDirectory, RunError

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

JobLike = str | os.PathLike[str] | Mapping[str, Any]


def train(job: JobLike, *overrides: str) -> Run:
    """Train a new run and return it: a pretraining or a fine-tuning, as the job's `job` says.

    In a notebook a table and the learning curves are shown and refreshed meanwhile. Interrupting
    (Ctrl-C, or the kernel's stop button) saves a checkpoint and returns; `resume` goes on.

    Args:
        job: the path of a job file, or its content as a dictionary.
        overrides: `dotted.key=value`, as on the command line.

    Raises:
        ConfigError: the job cannot run as written, with every reason; nothing was made.
        RunError: the run's name is taken.
        ValueError: the job trains nothing.
        KeyboardInterrupt: it was interrupted before it had a directory; nothing was saved.
    """
    loaded = _loaded(job, overrides)
    if not isinstance(loaded, TrainingJob):
        raise ValueError(
            f"expected a job that trains (job: pretrain or finetune), got job: {loaded.job}. "
            f"`pelagos {loaded.job}` runs it"
        )
    run = Run(Path(loaded.runs_dir) / loaded.name)
    with progress_of(run.path, loaded.schedule.total_steps) as (console, watch):
        try:
            run.outcome = resume_job.start(loaded, console, watch).outcome
        except KeyboardInterrupt as error:
            if run.path.is_dir():
                raise
            told = f"interrupted before the training of {loaded.name!r} began: nothing was saved"
            raise KeyboardInterrupt(told) from error
    return run


def open_run(name: str, runs_dir: str | None = None) -> Run:
    """Return a run by its name: of `runs/`, or submitted to a cluster.

    Args:
        name: NAME, DIR/NAME or CLUSTER/NAME, as every verb takes it.
        runs_dir: look only in this directory.

    Raises:
        RunError: there is none of the name, or several places have one.
    """
    found = find(name, runs_dir)
    return Run(found.directory().path, found)


class Run:
    """A training: its records as tables, its curves as figures, its model.

    Attributes:
        path: its directory; of a submitted run in a bucket, a copy as it was when it was opened.
        outcome: how the last launch from here ended; None if there was none.
    """

    def __init__(self, path: Path, found: AnyRun | None = None) -> None:
        self.path = path.absolute()
        self.outcome: Outcome | None = None
        self._found = found

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def directory(self) -> RunDirectory:
        """Its records."""
        return RunDirectory.open(str(self.path.parent), self.name)

    @property
    def job(self) -> TrainingJob:
        """The job as it runs."""
        return self.directory.job()

    @property
    def status(self) -> RunDescription:
        """What `pelagos status` shows."""
        return description_of(self.directory) if self._found is None else self._found.describe()

    @property
    def metrics(self) -> pd.DataFrame:
        """The values of every step, by step: loss, lr, gradient_norm, …; empty before the first."""
        return _by_step(read_metrics(self.path / "metrics.jsonl"), "loss")

    @property
    def validations(self) -> pd.DataFrame:
        """The losses of every validation, by step; empty before the first."""
        events = [e for e in self.directory.events() if e["kind"] == "validation"]
        losses = [
            {k: v for k, v in e.items() if k == "step" or k.startswith("validation")}
            for e in events
        ]
        return _by_step(losses, "validation_loss")

    def plot(self, *others: Run) -> Figure:
        """Return the learning curves as a figure, next to those of other runs.

        Raises ValueError: none has taken a step.
        """
        from pelagos.evaluation.pages.figures.curves_figure import curves_figure

        found = {run.name: curves_of(run.directory) for run in (self, *others)}
        if not any(found.values()):
            raise ValueError(f"nothing to draw: {', '.join(found)} took no step yet")
        return curves_figure(panels_of(found))

    def resume(self, *overrides: str) -> Run:
        """Continue from the newest checkpoint, as `pelagos resume` does; return this run.

        Raises:
            RunError: another process trains it, it was submitted to a cluster, or an override changes
                what the run is.
        """
        if isinstance(self._found, SubmittedAnyRun):
            raise RunError(
                f"run {self.name!r} was submitted to a cluster, and continues there: "
                f"pelagos resume {self._found.address}"
            )
        with progress_of(self.path, self.job.schedule.total_steps) as (console, watch):
            self.outcome = resume_job.resume(
                str(self.path.parent), self.name, console, overrides, watch
            ).outcome
        return self

    def forecaster(self, checkpoint: str = "last") -> Forecaster:
        """Return the trained model, in physical units. Raises CheckpointError: no such checkpoint."""
        return Forecaster.from_run(self.directory, checkpoint)[0]

    def evaluate(self, *overrides: str) -> Evaluation:
        """Measure the run on held-out trajectories, as `pelagos evaluate` does, and write the report.

        Args:
            overrides: keys of an evaluate job: `checkpoint=best`, `split=validation`, …
        """
        text = yaml_text({"job": "evaluate", "run": self.name, "runs_dir": str(self.path.parent)})
        job = parse_job(text, "evaluate", overrides)
        assert isinstance(job, EvaluateJob)
        result = evaluate_job.run(job)
        if self._found is not None:
            self._found.send_back("evaluation")
        return Evaluation(result)

    def __repr__(self) -> str:
        found = self.status
        why = f": {found.cause}" if found.cause else ""
        return f"Run({self.name!r}, {found.state} at step {found.step} of {found.total_steps}{why})"


class Evaluation:
    """The errors of a run, as a table, and its report.

    Attributes:
        report: the HTML page.
        metrics: every number, as in metrics.json.
    """

    def __init__(self, result: evaluate_job.EvaluateResult) -> None:
        self.report, self.metrics = result.report, result.metrics

    @property
    def errors(self) -> pd.DataFrame:
        """Medians over trajectories: dataset, lead_time, method, relative_l1 and vrmse (fractions)."""
        import pandas as pd

        rows = [
            {
                "dataset": dataset["name"],
                "lead_time": row["lead_time"],
                "method": method,
                "relative_l1": row[method],
                "vrmse": vrmse,
            }
            for dataset in self.metrics["datasets"]
            for row in dataset["summary"]
            if "vrmse" in row  # of forecasts; images have classes instead
            for method, vrmse in row["vrmse"].items()
        ]
        return pd.DataFrame(rows)

    def plot(self) -> Figure:
        """Return VRMSE against lead time, a panel for each dataset."""
        from pelagos.evaluation.pages.plots import plain, style
        from pelagos.infra.figures import new_figure

        table = self.errors
        names = list(table["dataset"].unique())
        figure = new_figure(4.2 * len(names), 3.0)
        for axis, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
            for method, rows in table[table["dataset"] == name].groupby("method", sort=False):
                label, colour, line = style(str(method))
                axis.plot(rows["lead_time"], rows["vrmse"], line, color=colour, label=label)
            plain(axis)
            axis.set(title=name, xlabel="lead time", ylabel="VRMSE", ylim=(0, None))
            axis.legend(fontsize="x-small", frameon=False)
        return figure

    def __repr__(self) -> str:
        sentences = [
            f"{dataset['name']}: the model {dataset['verdict']['sentence']}"
            for dataset in self.metrics["datasets"]
            if "verdict" in dataset
        ]
        here = Path.cwd()
        is_below = self.report.is_relative_to(here)
        report = self.report.relative_to(here) if is_below else self.report
        return "\n".join([*sentences, f"report: {report}"])


def _by_step(records: list[dict[str, Any]], column: str) -> pd.DataFrame:
    """Return records as a table by step, which has that column though it has no row."""
    import pandas as pd

    table = (
        pd.DataFrame.from_records(records) if records else pd.DataFrame({"step": [], column: []})
    )
    return table.astype({"step": int}).set_index("step")


def _loaded(job: JobLike, overrides: tuple[str, ...]) -> Any:
    if isinstance(job, Mapping):
        loaded: Any = parse_job(yaml_text(dict(job)), "the job's dictionary", overrides)
    else:
        loaded = load_job(job, overrides)
    plugins.load_for(loaded)
    return loaded
