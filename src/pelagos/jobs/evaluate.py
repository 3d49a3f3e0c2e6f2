"""`pelagos evaluate`: forecast held-out trajectories with a trained run, score, draw, report."""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from pelagos.data_pipelines.physics import DatasetPhysics, NoPhysics, dataset_physics
from pelagos.data_pipelines.store.readable import ReadableDataset
from pelagos.evaluation.conclusions.rollout_windows import window_scores
from pelagos.evaluation.conclusions.verdicts import Verdict, judge, warnings_of
from pelagos.evaluation.forecasting.climatology import climatology
from pelagos.evaluation.forecasting.forecasts import evaluate_dataset
from pelagos.evaluation.forecasting.scores import BASELINES, DatasetEvaluation
from pelagos.evaluation.forecasting.stability import Stability, roll_out
from pelagos.evaluation.pages.forecast_page import Provenance, numbers, write_report
from pelagos.evaluation.pages.summary import SummaryRow, shown_methods, summary_rows
from pelagos.evaluation.pages.terminal_tables import Column, print_table
from pelagos.infra.storage.files import below
from pelagos.jobs.training.datasets import open_recorded
from pelagos.jobs.training.field_checks import given_in
from pelagos.jobs.training.parts import unique_names
from pelagos.jobs.training.run_plugins import import_plugins_of
from pelagos.jobs.weights.described_parts import recorded_datasets
from pelagos.jobs.weights.forecaster import Forecaster
from pelagos.platform.config.measure import EvaluateJob
from pelagos.platform.config.schema import TrainingJob
from pelagos.platform.mlflow_records.tracker import code_version, log_evaluation
from pelagos.platform.records.runs import RunDirectory

logger = logging.getLogger(__name__)
AVERAGED = "averaged weights (ema_decay); the weights themselves: weights=model"


@dataclass(frozen=True)
class EvaluateResult:
    """Where the report lies, and the numbers in it (`metrics`: as in metrics.json)."""

    run_name: str
    report: Path
    metrics: dict[str, Any]


@dataclass(frozen=True)
class _TrainedRun:
    """A run as it was trained, loaded once for all that is measured of it."""

    directory: RunDirectory
    training: TrainingJob
    forecaster: Forecaster
    step: int


def _load(job: EvaluateJob) -> _TrainedRun:
    directory = RunDirectory.open(job.runs_dir, job.run)
    import_plugins_of(directory)
    forecaster, step = Forecaster.from_run(directory, job.checkpoint, job.weights)
    return _TrainedRun(directory, directory.job(), forecaster, step)


def run(job: EvaluateJob, console: Console | None = None) -> EvaluateResult:
    """Evaluate a run on a split of each of its datasets.

    Raises:
        ValueError: no such run, checkpoint, split or lead; nothing was written.
    """
    trained = _load(job)
    directory, training = trained.directory, trained.training
    output = _output(job, directory)
    if trained.forecaster.objective.call == "image":
        return _run_on_images(job, trained, console)
    evaluations = _evaluations(job, trained, with_physics=job.physics)
    stabilities = _stabilities(job, trained) if job.stability_steps else []
    provenance = _provenance(job, trained)
    report, _ = write_report(evaluations, provenance, output, stabilities)
    values = numbers(evaluations, provenance, stabilities)
    if job.tracking:
        log_evaluation(training, directory, output, evaluation_metrics(evaluations))
    if console is not None:
        if trained.forecaster.weights == "ema":
            console.print(AVERAGED)
        _show(evaluations, stabilities, report, training.tracking.uri, console)
    return EvaluateResult(job.run, report, values)


def _run_on_images(
    job: EvaluateJob, trained: _TrainedRun, console: Console | None
) -> EvaluateResult:
    from pelagos.evaluation.pages import image_page
    from pelagos.jobs.measuring.images import measure_images, show_images

    directory, training, step = trained.directory, trained.training, trained.step
    evaluations = measure_images(job, training, trained.forecaster)
    provenance, output = _provenance(job, trained), _output(job, directory)
    report = image_page.write_image_report(evaluations, provenance, output)
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
    return EvaluateResult(job.run, report, image_page.numbers(evaluations, provenance))


def _provenance(job: EvaluateJob, trained: _TrainedRun) -> Provenance:
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
    trained = _load(job)
    return _evaluations(job, trained, initial_frame, with_physics=False), trained.step


def _evaluations(
    job: EvaluateJob, trained: _TrainedRun, initial_frame: int = 0, *, with_physics: bool
) -> list[DatasetEvaluation]:
    _check_forecasts(trained.forecaster, job.run)
    leads = _lead_steps(job, trained.training)
    evaluations = [
        _evaluate(job, trained, record, leads, initial_frame, with_physics)
        for record in recorded_datasets(trained.forecaster.description)
    ]
    # verdicts and records are by name: datasets of one name are told apart as in training
    names = unique_names([evaluation.data.name for evaluation in evaluations])
    for evaluation, name in zip(evaluations, names, strict=True):
        evaluation.data = replace(evaluation.data, name=name)
    return evaluations


def _stabilities(job: EvaluateJob, trained: _TrainedRun) -> list[Stability]:
    """Return how rollouts of `stability_steps` steps fare, on each of the run's datasets."""
    training, forecaster = trained.training, trained.forecaster
    found = []
    for record in recorded_datasets(forecaster.description):
        dataset = open_recorded(record["uri"], training)
        data = forecaster.view(dataset, record["offset"], training.objective.field_groups)
        found.append(
            roll_out(
                forecaster.predict_on(data),
                data,
                dataset.split(job.split)[: job.max_trajectories],
                job.stability_steps,
                rollout_step=training.objective.frame_stride,
                input_frames=forecaster.objective.input_frames,
                batch_size=job.batch_size,
            )
        )
    names = unique_names([stability.dataset for stability in found])
    return [replace(s, dataset=name) for s, name in zip(found, names, strict=True)]


def _check_forecasts(forecaster: Forecaster, run: str) -> None:
    if forecaster.objective.call not in ("frame", "window"):
        name = forecaster.description["objective"]["name"]
        raise ValueError(
            f"run {run} was trained for {name}, which forecasts nothing; evaluate measures "
            f"forecasts. The validation losses of its training are in its events.jsonl and in MLflow"
        )


def _lead_steps(job: EvaluateJob, training: TrainingJob) -> tuple[int, ...] | None:
    """Return the leads in stored frames, or None for every used frame of the dataset."""
    stride = training.objective.frame_stride
    if job.lead_steps is not None:
        return tuple(sorted({lead * stride for lead in job.lead_steps}))
    if training.objective.max_lead_steps is not None:
        return tuple(lead * stride for lead in range(1, training.objective.max_lead_steps + 1))
    return None


def _evaluate(
    job: EvaluateJob,
    trained: _TrainedRun,
    record: dict[str, Any],
    leads: Sequence[int] | None,
    initial_frame: int,
    with_physics: bool,
) -> DatasetEvaluation:
    training, forecaster = trained.training, trained.forecaster
    dataset = open_recorded(record["uri"], training)
    _check_masks(dataset, forecaster)
    stride, frames = training.objective.frame_stride, forecaster.objective.input_frames
    history = (frames - 1) * stride
    initial = max(initial_frame, history)
    physics, note = _physics(dataset, forecaster) if with_physics else (None, "not asked for")
    data = forecaster.view(dataset, record["offset"], training.objective.field_groups)
    data = replace(
        data,
        mean_frame=climatology(data, _trained_on(dataset)),
        given=given_in(dataset, data),
    )
    evaluation = evaluate_dataset(
        forecaster.predict_on(data),
        data,
        dataset.split(job.split)[: job.max_trajectories],
        leads or range(stride, dataset.num_frames - initial, stride),
        rollout_step=stride,
        start_frame=initial - history,
        input_frames=frames,
        batch_size=job.batch_size,
        ensemble_size=job.ensemble_size,
        physics=physics,
        physics_note=note,
    )
    evaluation.windows = window_scores(evaluation, job.rollout_windows)
    evaluation.weights = forecaster.weights
    return evaluation


def _trained_on(dataset: ReadableDataset) -> range:
    """Return the trajectories of the training split, or all where the dataset has no splits."""
    try:
        return dataset.split("train")
    except ValueError:
        return dataset.split("all")


def _check_masks(dataset: ReadableDataset, forecaster: Forecaster) -> None:
    masks = dataset.spec.masks
    absent = [f for f in forecaster.fields if f in masks and masks[f] not in forecaster.fields]
    if absent:
        raise ValueError(
            f"{dataset.uri}: {', '.join(absent)} has points without a value, but the run was trained "
            f"without {', '.join(sorted({masks[f] for f in absent}))}, which says where: train with it "
            f"in data.fields"
        )


def _physics(dataset: ReadableDataset, forecaster: Forecaster) -> tuple[DatasetPhysics | None, str]:
    """Return the dataset's equation on the model's channels, or None and the reason."""
    try:
        return dataset_physics(dataset, forecaster.fields), ""
    except NoPhysics as reason:
        return None, str(reason)


def evaluation_metrics(evaluations: Sequence[DatasetEvaluation]) -> list[tuple[str, int, float]]:
    """Return (name, lead step, value) for tracking: median relative L1 error and VRMSE of each method
    and baseline, the model's over the baselines', VRMSE over windows, and what the data's equation
    leaves over, as far as these are finite."""
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
    """Return at most so many rows, the first and the last among them."""
    if len(rows) <= most:
        return rows
    return [rows[round(i * (len(rows) - 1) / (most - 1))] for i in range(most)]
