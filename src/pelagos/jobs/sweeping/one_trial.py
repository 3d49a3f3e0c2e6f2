"""One trial in a Ray worker: train or continue, measure, keep the result.

A trial's own failure is a result with its cause; it never ends the sweep.
"""

import io
import logging
import math
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

from pelagos import plugins
from pelagos.evaluation.conclusions.verdicts import combined_label, judge
from pelagos.evaluation.forecasting.scores import BASELINES, DatasetEvaluation
from pelagos.jobs import evaluate, resume
from pelagos.jobs.pretrain import PretrainResult
from pelagos.jobs.sweeping.inputs import inputs_of_run
from pelagos.jobs.sweeping.trials import (
    FINAL_STATES,
    Measurement,
    Trial,
    TrialResult,
    clear_unbegun,
    measurement_of,
    write_result,
)
from pelagos.platform.config.differences import changed_keys, is_among
from pelagos.platform.config.marks import Meaning
from pelagos.platform.config.meanings import may_resume, names_of, tells_trials_apart
from pelagos.platform.config.measure import EvaluateJob, EvaluateResources
from pelagos.platform.config.overrides import override, value_at
from pelagos.platform.config.sweep import SweepJob
from pelagos.platform.console import HarmlessConsole
from pelagos.platform.records.runs import RunDirectory
from pelagos.platform.records.states import State

logger = logging.getLogger(__name__)
# Keys that a continued trial takes from the sweep's present job.
_AS_NOW = names_of(
    lambda key: (
        key.meaning in (Meaning.HOW, Meaning.PLACE)
        and may_resume(key)
        and not tells_trials_apart(key)
    )
)
Report = Callable[[int, float], bool]
"""Takes the number of a validation and its loss; returns whether the trial shall go on."""


def run_trial(sweep: SweepJob, trial: Trial, report: Report) -> TrialResult:
    """Run a trial to its end and keep its result; never raises for errors of the trial."""
    watcher = _ValidationWatcher(trial, report)
    try:
        plugins.load_for(trial.job)
        ended = train(trial, watcher)
        result = _result(sweep, trial, ended, watcher.is_stopped)
    except Exception as error:  # whatever breaks one trial, the others continue
        logger.debug("trial %s failed", trial.name, exc_info=True)
        result = TrialResult(State.FAILED, cause=f"{type(error).__name__}: {error}")
    if result.state in FINAL_STATES:
        result = replace(result, inputs=inputs_of_run(trial))
    if result.state in FINAL_STATES or result.state == State.FAILED:
        write_result(trial, result)
    return result


def train(
    trial: Trial, watcher: Callable[[], None], until_step: int | None = None
) -> PretrainResult:
    """Start or continue a trial's run, to its end or to a given number of steps."""
    console = HarmlessConsole(file=io.StringIO())
    if (trial.path / "job.yaml").exists():
        changes = _changes(trial)
        return resume.resume(trial.job.runs_dir, trial.name, console, changes, watcher, until_step)
    clear_unbegun(trial.path)  # a trial that could not be built left its cause
    return resume.start(trial.job, console, watcher, until_step)


def _changes(trial: Trial) -> list[str]:
    """Return, as overrides, how and where the sweep's job has the steps computed by now.

    Those in which a run that it began differs.
    """
    begun = RunDirectory(trial.path).job()
    keys = changed_keys(begun.model_dump(mode="json"), trial.job.model_dump(mode="json"))
    return [override(key, value_at(trial.job, key)) for key in keys if is_among(key, _AS_NOW)]


def _result(sweep: SweepJob, trial: Trial, ended: PretrainResult, is_stopped: bool) -> TrialResult:
    outcome = ended.outcome
    loss = ended.metrics.get("validation_loss")
    if outcome.kind == State.FAILED:
        return TrialResult(State.FAILED, outcome.step, loss, cause=outcome.cause)
    if outcome.kind == State.STOPPED:
        state = State.STOPPED_EARLY if is_stopped else State.STOPPED
        return TrialResult(state, outcome.step, loss)  # type: ignore[arg-type]
    found = asdict(measured(sweep, trial, trial.job.resources.gpus_per_worker))
    return TrialResult(
        State.FINISHED, outcome.step, loss, measured_on=measurement_of(sweep), **found
    )


def measured(sweep: SweepJob, trial: Trial, num_gpus: int) -> Measurement:
    """Return errors on the sweep's held-out split, the mean over datasets, and the baselines they beat.

    Args:
        num_gpus: of this process: a trial measures on the device that it was trained on.
    """
    if sweep.evaluate is None:
        return Measurement()
    lead = sweep.evaluate.lead_steps
    job = EvaluateJob(
        run=trial.name,
        runs_dir=trial.job.runs_dir,
        split=sweep.evaluate.split,
        max_trajectories=sweep.evaluate.max_trajectories,
        lead_steps=None if lead is None else (lead,),
        batch_size=sweep.evaluate.batch_size,
        resources=EvaluateResources(launcher="none", gpus_per_worker=num_gpus),
    )
    evaluations, _ = evaluate.measure(job)
    methods = evaluations[0].forecast_methods
    leads = [judge(evaluation).leads[-1] for evaluation in evaluations]
    vrmse = {method: _mean_error(evaluations, method, "vrmse") for method in methods}
    return Measurement(
        errors={method: _mean_error(evaluations, method, "relative_l1") for method in methods},
        vrmse={method: value for method, value in vrmse.items() if not math.isnan(value)},
        baselines={
            baseline: {
                metric: value
                for metric in ("relative_l1", "vrmse")
                if not math.isnan(value := _mean_error(evaluations, baseline, metric))
            }
            for baseline in BASELINES
        },
        beats=combined_label(leads),
        is_worse_than_constant=any(lead.is_worse_than_constant for lead in leads),
        weights=evaluations[0].weights,
        unscored=[f"{e.data.name}: {told}" for e in evaluations for told in e.warnings()],
    )


def _mean_error(evaluations: list[DatasetEvaluation], method: str, metric: str) -> float:
    """Return the mean over datasets of the error at the last lead; NaN where none has one.

    Of each dataset as Poseidon's own evaluation takes it: the mean over field groups of the median
    over samples, so the median of each group may be another sample's.
    """
    errors = [float(e.mean_over_groups(method, metric)[-1]) for e in evaluations]
    known = [error for error in errors if not math.isnan(error)]
    return math.fsum(known) / len(known) if known else math.nan


class _ValidationWatcher:
    """Reports each validation of a run once; asks the run to stop on request."""

    def __init__(self, trial: Trial, report: Report) -> None:
        self.run = RunDirectory(trial.path)
        self.report = report
        self.num_reported = 0
        self.is_stopped = False

    def __call__(self) -> None:
        if self.is_stopped:
            return
        losses = validation_losses(self.run)
        for number in range(self.num_reported, len(losses)):
            self.num_reported = number + 1
            if not self.report(number + 1, losses[number]):
                self.is_stopped = True
                self.run.request_stop()
                return


def validation_losses(run: RunDirectory) -> list[float]:
    """Return the loss of each validation, by step; one redone after a restart counts once."""
    events: list[dict[str, Any]] = [e for e in run.events() if e["kind"] == "validation"]
    by_step = {e["step"]: float(e["validation_loss"]) for e in events}
    return [by_step[step] for step in sorted(by_step)]
