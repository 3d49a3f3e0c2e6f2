"""The last run of a submitted sweep: measure its trials, which are runs of their own, and report.

Resumed, it does so again: measurements stay, trials that have since ended otherwise are examined anew.
"""

from collections.abc import Mapping
from dataclasses import asdict

from pelagos.jobs.submission.records.record import RunState
from pelagos.jobs.sweep import SweepResult, conclude, sweep_directory
from pelagos.jobs.sweeping.inputs import inputs_of_run
from pelagos.jobs.sweeping.mlflow_parent import adopt_children, open_parent
from pelagos.jobs.sweeping.one_trial import measured, validation_losses
from pelagos.jobs.sweeping.trials import (
    FINAL_STATES,
    Trial,
    TrialResult,
    measurement_of,
    result_of,
    trials_of,
    write_result,
)
from pelagos.platform.config.sweep import SweepJob
from pelagos.platform.records.runs import RunDirectory
from pelagos.platform.records.states import State


def run(sweep: SweepJob, ends: Mapping[str, RunState]) -> SweepResult:
    """Measure the finished trials and report on all; `ends` are the trials' records, by name."""
    trials = trials_of(sweep)
    parent = open_parent(sweep, sweep_directory(sweep))
    adopt_children(sweep, parent)
    for trial in trials:
        if result_of(sweep, trial).state not in FINAL_STATES:
            write_result(trial, _result(sweep, trial, ends[trial.name]))
    return conclude(sweep, trials, parent)


def _result(sweep: SweepJob, trial: Trial, end: RunState) -> TrialResult:
    directory = RunDirectory(trial.path)
    losses = validation_losses(directory)
    step, loss = directory.last_step(), losses[-1] if losses else None
    if end.state == State.FAILED:
        return TrialResult(State.FAILED, step, loss, cause=end.cause)
    if end.state != State.FINISHED:
        return TrialResult(State.STOPPED, step, loss, cause=end.reason or end.state)
    try:
        return TrialResult(
            State.FINISHED,
            step,
            loss,
            measured_on=measurement_of(sweep),
            inputs=inputs_of_run(trial),
            **asdict(measured(sweep, trial, num_gpus=0)),  # a report asks for none
        )
    except Exception as error:  # whatever keeps one trial from being measured, the others are
        return TrialResult(State.FAILED, step, loss, cause=f"{type(error).__name__}: {error}")
