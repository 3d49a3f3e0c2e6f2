"""`pelagos evaluate`: forecast held-out trajectories with a trained run, score, draw, report."""

import functools
import logging
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from pelagos.evaluation.conclusions.rollout_windows import window_scores
from pelagos.evaluation.conclusions.verdicts import Verdict, judge, warnings_of
from pelagos.evaluation.forecasting.scores import BASELINES, DatasetEvaluation
from pelagos.evaluation.forecasting.stability import Stability
from pelagos.evaluation.pages.forecast_page import Provenance, write_report
from pelagos.evaluation.pages.summary import SummaryRow, shown_methods, summary_rows
from pelagos.evaluation.pages.terminal_tables import Column, print_table
from pelagos.infra.storage.files import below
from pelagos.jobs.measuring.forecasts import check_forecasts, forecast_measurements, known_of
from pelagos.jobs.measuring.spreading import measure_all
from pelagos.jobs.measuring.story import story_of
from pelagos.jobs.measuring.trained import TrainedRun, load_run
from pelagos.jobs.measuring.workers import workers_of
from pelagos.jobs.training.mixtures import unique_names
from pelagos.platform.config.measure import EvaluateJob
from pelagos.platform.mlflow_records.description import code_version
from pelagos.platform.mlflow_records.tracker import log_evaluation
from pelagos.platform.records.runs import RunDirectory

logger = logging.getLogger(__name__)
AVERAGED = "averaged weights (ema_decay); for the weights themselves: weights=model"


@dataclass(frozen=True)
class EvaluateResult:
    """Where the report lies, and the numbers in it (`metrics`: as in metrics.json)."""

    run_name: str
    report: Path
    metrics: dict[str, Any]


def run(job: EvaluateJob, console: Console | None = None) -> EvaluateResult:
    """Evaluate a run on a split of each of its datasets.

    Raises:
        ValueError: no such run, checkpoint, split or lead; nothing was written.
    """
    trained = load_run(job)
    directory, training = trained.directory, trained.training
    output = _output(job, directory)
    if trained.forecaster.objective.call == "image":
        return _run_on_images(job, trained, console)
    begun = time.perf_counter()
    evaluations, stabilities = _forecasts(job, trained, for_report=True)
    seconds = time.perf_counter() - begun
    story = story_of(
        trained,
        [evaluation.data.name for evaluation in evaluations],
        seconds,
        sum(len(evaluation.trajectories) for evaluation in evaluations),
    )
    provenance = _provenance(job, trained)
    report, found = write_report(evaluations, provenance, output, stabilities, story)
    if job.tracking:
        log_evaluation(training, directory, output, evaluation_metrics(evaluations))
    if console is not None:
        if trained.forecaster.weights == "ema":
            console.print(AVERAGED)
        _show(evaluations, stabilities, report, training.tracking.uri, console)
    return EvaluateResult(job.run, report, found)


def _run_on_images(
    job: EvaluateJob, trained: TrainedRun, console: Console | None
) -> EvaluateResult:
    from pelagos.evaluation.pages import image_page
    from pelagos.jobs.measuring.images import measure_images, show_images

    directory, training, step = trained.directory, trained.training, trained.step
    evaluations = measure_images(job, trained)
    provenance, output = _provenance(job, trained), _output(job, directory)
    report, found = image_page.write_image_report(evaluations, provenance, output)
    if job.tracking:
        values = [
            (f"evaluation/{e.name}/{name}", step, value)
            for e in evaluations
            for name, value in e.summary().items()
            if math.isfinite(value)
        ]
        log_evaluation(training, directory, output, values)
    if console is not None:
        if trained.forecaster.weights == "ema":
            console.print(AVERAGED)
        show_images(evaluations, console)
        console.print(f"report: {report}", soft_wrap=True)
    return EvaluateResult(job.run, report, found)


def _provenance(job: EvaluateJob, trained: TrainedRun) -> Provenance:
    training = trained.training
    return Provenance(
        run_name=job.run,
        checkpoint_step=trained.step,
        weights=trained.forecaster.weights,
        model=training.model.name,
        config=training.model_dump(mode="json"),
        code_version=code_version(),
        links={"MLflow": training.tracking.uri or "not tracked"},
    )


def _output(job: EvaluateJob, directory: RunDirectory) -> Path:
    """Where the report goes. Raises ValueError: a link in the run's directory leads elsewhere."""
    if job.output_dir:
        return Path(job.output_dir)
    return below(directory.path, f"evaluation/{job.split}")


def measure(job: EvaluateJob, initial_frame: int = 0) -> tuple[list[DatasetEvaluation], int]:
    """Return the scores on each of the run's datasets, and the checkpoint's step; writes nothing.

    Leads count from `initial_frame`, or from the last frame that the model needs if that is later.

    Raises:
        ValueError: no such run, checkpoint, split or lead.
    """
    trained = load_run(job)
    alone = job.model_copy(update={"stability_steps": 0})
    return _forecasts(alone, trained, initial_frame, for_report=False)[0], trained.step


def _forecasts(
    job: EvaluateJob, trained: TrainedRun, initial_frame: int = 0, *, for_report: bool
) -> tuple[list[DatasetEvaluation], list[Stability]]:
    """Return the scores on each of the run's datasets, and how long rollouts fare, if asked for."""
    check_forecasts(trained.forecaster, job.run)
    workers = workers_of(job.resources, trained.training.resources)
    make = functools.partial(
        forecast_measurements, job, trained.training, initial_frame, for_report
    )
    found = measure_all(make, known_of, trained.forecaster, workers)
    evaluations = [result for result in found if isinstance(result, DatasetEvaluation)]
    stabilities = [result for result in found if isinstance(result, Stability)]
    # verdicts and records are by name: datasets of one name get the numbers that training gives them
    names = unique_names([evaluation.data.name for evaluation in evaluations])
    for evaluation, name in zip(evaluations, names, strict=True):
        evaluation.data = replace(evaluation.data, name=name)
        evaluation.windows = window_scores(evaluation, job.rollout_windows)
        evaluation.weights = trained.forecaster.weights
    names = unique_names([stability.dataset for stability in stabilities])
    return evaluations, [replace(s, dataset=n) for s, n in zip(stabilities, names, strict=True)]


def evaluation_metrics(evaluations: Sequence[DatasetEvaluation]) -> list[tuple[str, int, float]]:
    """Return (name, lead step, value) for tracking.

    Median relative L1 error and VRMSE of each method and baseline, the model's over the baselines',
    VRMSE over windows, and the residual of the data's equation, as far as these are finite.
    """
    errors = [
        (f"evaluation/{e.data.name}/{method}/{metric}", lead, float(value))
        for e in evaluations
        for method in (*e.forecast_methods, "one_step", *BASELINES)
        for metric in ("relative_l1", "vrmse")
        for lead, value in zip(e.lead_steps, e.mean_over_groups(method, metric), strict=True)
        if math.isfinite(value)
    ]
    ratios = [
        (f"evaluation/{e.data.name}/{verdict.method}/over_{name}{end}", step, float(value))
        for e in evaluations
        for verdict in (judge(e),)
        for step, lead in zip(e.lead_steps, verdict.leads, strict=True)
        for name, against in lead.against.items()
        for end, value in (("", against.ratio), ("_low", against.low), ("_high", against.high))
        if math.isfinite(value)
    ]
    physics = [
        (f"evaluation/{e.data.name}/{method}/{quantity}", lead, float(value))
        for e in evaluations
        if e.physics is not None
        for method in e.physics.methods
        for quantity in e.physics.quantities
        for lead, value in zip(e.lead_steps, e.physics.quantile(method, quantity), strict=True)
        if math.isfinite(value)
    ]
    means = [
        (f"evaluation/{e.data.name}/{method}/vrmse_steps_{window.name}", window.last, value)
        for e in evaluations
        for window in e.windows
        for method, value in window.vrmse.items()
        if math.isfinite(value)
    ]
    return errors + ratios + physics + means


def _show(
    evaluations: Sequence[DatasetEvaluation],
    stabilities: Sequence[Stability],
    report: Path,
    tracking_uri: str | None,
    console: Console,
) -> None:
    verdicts = {evaluation.data.name: judge(evaluation) for evaluation in evaluations}
    for warning in warnings_of(verdicts.items()):
        console.print(Text("warning:", style="red"), warning, soft_wrap=True)
    for evaluation in evaluations:
        for warning in evaluation.warnings():
            told = f"{evaluation.data.name}: {warning}"
            console.print(Text("warning:", style="red"), told, soft_wrap=True)
    for evaluation in evaluations:
        verdict = verdicts[evaluation.data.name]
        _print_errors(console, evaluation, verdict)
        console.print(f"  the model {verdict.sentence}", soft_wrap=True)
        for note in evaluation.notes():
            console.print(f"  {note}", soft_wrap=True)
    for stability in stabilities:
        steps, count = len(stability.times), len(stability.first_non_finite)
        console.print(
            f"{stability.dataset}: after {steps} steps {stability.num_finite} of {count} rollouts "
            "are finite; mean square, end / start: "
            + ", ".join(
                f"{name} " + ("-" if math.isnan(energy) else f"{energy:.3g}")
                for name, energy, _, _ in stability.rows()
            ),
            soft_wrap=True,
        )
    console.print(f"report: {report}", soft_wrap=True)
    if tracking_uri is not None:
        command = f"mlflow ui --backend-store-uri {tracking_uri}"
        console.print(f"runs and plots: {command}", soft_wrap=True)


def _print_errors(console: Console, evaluation: DatasetEvaluation, verdict: Verdict) -> None:
    """Print errors by lead as relative L1 / VRMSE, and which baselines the model beats."""
    rows, count = _thinned(summary_rows(evaluation, verdict)), len(evaluation.trajectories)
    colours = {"both": "green", "neither": "red"}
    found = [row.verdict.label for row in rows]
    labels = [Text(label, style=colours.get(label, "yellow")) for label in found]
    print_table(
        console,
        f"{evaluation.data.name}: relative L1 / VRMSE, medians over {count} held-out trajectories",
        Column("lead time", [f"{row.lead_time:g}" for row in rows]),
        [
            *(
                Column(method, [str(row.errors[method]) for row in rows])
                for method in shown_methods(evaluation)
            ),
            Column("beats", labels, is_text=True),
        ],
    )


def _thinned(rows: list[SummaryRow], most: int = 10) -> list[SummaryRow]:
    """Return at most `most` rows, including the first and the last."""
    if len(rows) <= most:
        return rows
    return [rows[round(i * (len(rows) - 1) / (most - 1))] for i in range(most)]
