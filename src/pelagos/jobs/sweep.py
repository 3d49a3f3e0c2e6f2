"""`pelagos sweep`: run every trial that is not over yet on Ray Tune, then report on all.

1. the trials follow from the job file alone; their names say which are over already
2. each label's job is checked before anything starts
3. Ray Tune places the others, as many at once as asked for; each is an ordinary run
4. the state of every trial becomes sweep.json and report.html
"""

import dataclasses
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from pelagos import plugins
from pelagos.evaluation.pages.sweep_page import (
    SweepReport,
    SweepRow,
    ranked,
    write_sweep_report,
)
from pelagos.infra.ray_cluster import ray_cluster
from pelagos.infra.storage.files import below, replace_durably
from pelagos.jobs.plot_runs import curves_of
from pelagos.jobs.sweeping.checks import check_labels
from pelagos.jobs.sweeping.inputs import check_inputs, inputs_of_run
from pelagos.jobs.sweeping.mlflow_parent import child_tags, close_parent, open_parent
from pelagos.jobs.sweeping.one_trial import run_trial, validation_losses
from pelagos.jobs.sweeping.population import populations_of
from pelagos.jobs.sweeping.trials import (
    CUT_OFF,
    FINAL_STATES,
    Trial,
    TrialResult,
    read_result,
    result_of,
    tracked,
    trials_of,
    write_result,
)
from pelagos.jobs.sweeping.tune_population import tune_population
from pelagos.platform.config.load import resolve_yaml
from pelagos.platform.config.sweep import EARLY_STOPPING, POPULATION, SweepJob
from pelagos.platform.records.runs import RunDirectory
from pelagos.platform.records.states import State

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SweepResult:
    """The state of every trial, and the place of the report."""

    report: SweepReport
    path: Path

    @property
    def ok(self) -> bool:
        """Whether every trial came to an end."""
        return not self.report.failures


def run(sweep: SweepJob, console: Console | None = None) -> SweepResult:
    """Run the rest of a sweep and report on all of it.

    Raises:
        ConfigError: a job, the grid or an amount of data cannot be run as written; nothing was made.
    """
    trials = trials_of(sweep)
    for trial in trials:
        plugins.load_for(trial.job)
    left = [t for t in trials if result_of(sweep, t).state not in FINAL_STATES]
    check_labels(sweep, {t.label for t in left})
    check_inputs(sweep, trials)
    directory = sweep_directory(sweep)
    parent = open_parent(sweep, directory)
    if console is not None:
        console.print(f"{sweep.name}: {len(trials)} trials, {len(trials) - len(left)} already done")
    if left:
        tags = child_tags(sweep, parent)
        tagged = [tracked(sweep, t, tags) for t in left]
        ended, causes = _run_on_ray(sweep, trials, tagged, directory, console)
        _settle(sweep, left, ended, causes)
    return conclude(sweep, trials, parent)


def sweep_directory(sweep: SweepJob) -> Path:
    """Return the directory of a sweep's own records, with the sweep as it was read in it.

    Raises:
        ValueError: it is a link, which in a place of several users may be somebody else's.
    """
    directory = below(Path(sweep.runs_dir), sweep.name)
    directory.mkdir(parents=True, exist_ok=True)
    replace_durably(directory / "sweep.yaml", resolve_yaml(sweep).encode())
    return directory


def conclude(sweep: SweepJob, trials: Sequence[Trial], parent: str | None) -> SweepResult:
    """Report on all trials as they are now, in the sweep's directory and in its MLflow run."""
    directory = sweep_directory(sweep)
    report = report_of(sweep, trials)
    curves = {trial.name: _validation_curve(RunDirectory(trial.path)) for trial in trials}
    path = write_sweep_report(report, directory, curves)
    close_parent(sweep, parent, directory, _best_values(report), not report.failures)
    return SweepResult(report, path)


def report_of(sweep: SweepJob, trials: Sequence[Trial]) -> SweepReport:
    """Return the present state of each trial, the best first."""
    rows = []
    for trial in trials:
        known = dataclasses.asdict(result_of(sweep, trial))
        del known["measured_on"], known["inputs"]
        rows.append(
            SweepRow(
                trial.name,
                trial.label,
                trial.overrides,
                trial.seed,
                trial.trajectories,
                take_overs=RunDirectory(trial.path).take_overs(),
                **known,
            )
        )
    lead = sweep.evaluate.lead_steps if sweep.evaluate else None
    return SweepReport(sweep.name, ranked(rows), sweep.gain_baseline, lead)


def _run_on_ray(
    sweep: SweepJob,
    trials: Sequence[Trial],
    left: Sequence[Trial],
    directory: Path,
    console: Console | None,
) -> tuple[set[str], dict[str, str]]:
    """Run the remaining trials.

    Return which Tune saw to an end, and why it lost others, by name.
    """
    cpus = max(t.job.resources.cpus_per_worker for t in left) * sweep.max_concurrent
    by_name = {trial.name: trial for trial in left}
    causes: dict[str, str] = {}
    with ray_cluster(sweep.ray_address, cpus, _num_gpus(sweep, left)):
        progress = _progress(sweep, by_name, console)
        if sweep.search.name != POPULATION:
            causes |= _causes(_tune(sweep, by_name, directory, progress))
            return progress.ended, causes
        for population in populations_of(sweep, trials):
            members = [by_name[name] for name in population.members if name in by_name]
            if members:
                causes |= _causes(
                    tune_population(sweep, population, members, _resources, progress, console)
                )
        return progress.ended, causes


def _tune(sweep: SweepJob, trials: dict[str, Trial], directory: Path, progress: Any) -> Any:
    """Run trials that do without each other."""
    from ray import tune

    return tune.Tuner(
        tune.with_resources(
            lambda config: _trainable(config, sweep, trials),
            lambda config: _resources(trials[config["trial"]]),
        ),
        param_space={"trial": tune.grid_search(list(trials))},
        tune_config=tune.TuneConfig(
            metric=sweep.search.metric,
            mode=sweep.search.mode,
            scheduler=_scheduler(sweep),
            max_concurrent_trials=sweep.max_concurrent,
            # a stopped trial may still be saving in its process, which the next must not share
            reuse_actors=sweep.search.name != EARLY_STOPPING,
        ),
        run_config=tune.RunConfig(
            name="ray",
            storage_path=str(directory.absolute()),
            verbose=0,
            callbacks=[progress],
        ),
    ).fit()


def _causes(found: Any) -> dict[str, str]:
    """Return why Tune lost trials, by name."""
    return {
        str((result.config or {}).get("trial")): str(result.error).strip().splitlines()[-1]
        for result in (found[number] for number in range(len(found)))
        if result.error is not None
    }


def _num_gpus(sweep: SweepJob, trials: Sequence[Trial]) -> int:
    """Return how many GPUs the trials can use at once on this machine."""
    import torch

    wanted = sweep.max_concurrent * max(t.job.resources.gpus_per_worker for t in trials)
    return min(wanted, torch.cuda.device_count())


def _resources(trial: Trial) -> Any:
    from ray.tune import PlacementGroupFactory

    resources = trial.job.resources
    gpus = {"GPU": resources.gpus_per_worker} if resources.gpus_per_worker else {}
    return PlacementGroupFactory([{"CPU": resources.cpus_per_worker, **gpus}])


def _scheduler(sweep: SweepJob) -> Any:
    from ray.tune.schedulers import ASHAScheduler

    if sweep.search.name != EARLY_STOPPING:
        return None
    return ASHAScheduler(
        time_attr="validations",
        grace_period=sweep.search.grace_validations,
        max_t=sweep.search.max_validations,
        reduction_factor=sweep.search.reduction_factor,
        stop_last_trials=False,
    )


def _trainable(config: dict[str, Any], sweep: SweepJob, trials: dict[str, Trial]) -> dict[str, Any]:
    """Run one trial in a worker of Ray Tune."""
    from ray import tune

    metric = sweep.search.metric

    def report(validations: int, loss: float) -> bool:
        if sweep.search.name != EARLY_STOPPING:
            return True
        try:
            tune.report({metric: loss, "validations": validations})
        except SystemExit:  # so Tune informs the reporting thread that the trial lags
            return False
        return True

    result = run_trial(sweep, trials[config["trial"]], report)
    loss = result.validation_loss
    losses = len(validation_losses(RunDirectory(trials[config["trial"]].path)))
    return {metric: float("inf") if loss is None else loss, "validations": losses}


def _progress(sweep: SweepJob, trials: dict[str, Trial], console: Console | None) -> Any:
    """Return a Tune callback that prints how trials ended, and records which trials Tune ended."""
    from ray.tune import Callback

    by_name = trials

    class Progress(Callback):
        def __init__(self) -> None:
            self.ended: set[str] = set()

        def __reduce__(self) -> tuple[type[Callback], tuple[()]]:
            return Callback, ()  # Tune keeps a copy of its settings on disk; this is not for it

        def on_trial_complete(
            self, iteration: int, trials: list[Any], trial: Any, **info: Any
        ) -> None:
            name = str(trial.config["trial"])
            self.ended.add(name)
            result = read_result(by_name[name])
            # Tune reports a lagging trial before the trial has saved its own result
            lags = result.state in CUT_OFF and sweep.search.name == EARLY_STOPPING
            loss = result.validation_loss
            shown = result.cause or (f"validation loss {loss:.4g}" if loss is not None else "")
            state = "stopped early" if lags else result.state
            if console is not None:
                console.print(f"  {state:13} {name}  {shown}", soft_wrap=True)

    return Progress()


def _settle(
    sweep: SweepJob, trials: Sequence[Trial], ended: set[str], causes: dict[str, str]
) -> None:
    """Record trials that Ray ended before they could do so themselves.

    Work that a signal to this process interrupts continues next time.
    """
    for trial in trials:
        state = read_result(trial).state
        if state not in (*CUT_OFF, State.WAITING):
            continue
        run_directory = RunDirectory(trial.path)
        step, losses = run_directory.last_step(), validation_losses(run_directory)
        loss = losses[-1] if losses else None
        if trial.name in causes:
            write_result(trial, TrialResult(State.FAILED, step, loss, cause=causes[trial.name]))
        elif trial.name in ended and state in CUT_OFF and sweep.search.name != POPULATION:
            run_directory.set_status(State.STOPPED, cause="")
            inputs = inputs_of_run(trial)
            write_result(trial, TrialResult(State.STOPPED_EARLY, step, loss, inputs=inputs))


def _validation_curve(run: RunDirectory) -> tuple[list[int], list[float]]:
    """Return steps and losses of a trial's validations."""
    empty: tuple[list[int], list[float]] = ([], [])
    return curves_of(run).get("validation_loss", empty) if run.path.is_dir() else empty


def _best_values(report: SweepReport) -> dict[str, float]:
    """Return the numbers of the best trial, for tracking."""
    best = next((row for row in report.rows if row.state == State.FINISHED), None)
    if best is None or best.validation_loss is None:
        return {}
    errors = {f"best_{method}_error": value for method, value in best.errors.items()}
    errors |= {f"best_{method}_vrmse": value for method, value in best.vrmse.items()}
    for name, values in best.baselines.items():
        errors |= {f"{name}_{metric}": value for metric, value in values.items()}
    errors = {name: value for name, value in errors.items() if math.isfinite(value)}
    return {"best_validation_loss": best.validation_loss, **errors}
