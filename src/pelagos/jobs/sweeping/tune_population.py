"""Populations on Ray Tune: its scheduler decides, Pelagos' runs carry out its decisions.

Tune's `PopulationBasedTraining` compares the members, all at the end of the same leg (`synch`), and
chooses who takes over from whom and with which settings. Its checkpoints are empty: a member continues
from those of its run. The scheduler's own `_exploit` is where a decision becomes a take-over of runs.
"""

import json
import logging
import math
import random
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from pelagos.infra.storage.remote import StorageError
from pelagos.jobs.sweeping.population import (
    Population,
    drawn,
    explored,
    run_last_leg,
    run_leg,
    settings_of,
)
from pelagos.jobs.sweeping.trials import Trial
from pelagos.jobs.training.take_over import take_over
from pelagos.platform.config.sweep import RandomRangeConfig, SweepJob
from pelagos.platform.records.runs import RunDirectory

logger = logging.getLogger(__name__)
ROUND = "round"  # legs since the sweep was started, as Tune counts them


def tune_population(
    sweep: SweepJob,
    population: Population,
    trials: Sequence[Trial],
    resources: Callable[[Trial], Any],
    progress: Any,
    console: Console | None,
) -> Any:
    """Run the rest of a population.

    Return Tune's results, an error among them where Ray lost a worker too often. `trials` are the
    members that have not finished.
    """
    from ray import tune

    for name in ("ray.tune.utils.util", "ray.tune.logger.logger"):
        logging.getLogger(name).setLevel(logging.ERROR)  # a take-over takes its time, as it should
    by_name = {trial.name: trial for trial in trials}
    first_leg = len(population.decisions()) + 1
    directory = Path(sweep.runs_dir) / sweep.name
    return tune.Tuner(
        tune.with_resources(
            lambda config: _run_member(config, sweep, population, by_name, first_leg),
            lambda config: resources(by_name[config["trial"]]),
        ),
        param_space={"trial": tune.grid_search(list(by_name)), "leg": first_leg},
        tune_config=tune.TuneConfig(
            metric=sweep.search.metric,
            mode=sweep.search.mode,
            scheduler=_scheduler(sweep, population, by_name, first_leg, console),
            reuse_actors=True,  # nothing trains while a member waits for the others
        ),
        run_config=tune.RunConfig(
            name=f"ray-{population.name}",
            storage_path=str(directory.absolute()),
            verbose=0,
            callbacks=[progress],
            failure_config=tune.FailureConfig(
                max_failures=max(t.job.health.max_failures for t in trials)
            ),
        ),
    ).fit()


def _run_member(
    config: Mapping[str, Any],
    sweep: SweepJob,
    population: Population,
    trials: Mapping[str, Trial],
    first_leg: int,
) -> None:
    """Run a member in a worker of Tune, which ends it at each report, and starts it for the next leg."""
    from ray import tune

    trial = trials[config["trial"]]
    for leg in range(config["leg"], population.num_legs):
        loss = run_leg(sweep, population, trial, leg)
        with tempfile.TemporaryDirectory() as directory:
            (Path(directory) / "member.json").write_text(json.dumps({"run": trial.name}))
            tune.report(
                {sweep.search.metric: loss, ROUND: leg - first_leg + 1},
                checkpoint=tune.Checkpoint.from_directory(directory),
            )
    run_last_leg(sweep, trial)


def _scheduler(
    sweep: SweepJob,
    population: Population,
    trials: Mapping[str, Trial],
    first_leg: int,
    console: Console | None,
) -> Any:
    from ray.tune.schedulers import FIFOScheduler, PopulationBasedTraining

    class TakeOvers(PopulationBasedTraining):
        """Carries out take-overs as they are decided, and keeps each decision."""

        def __init__(self) -> None:
            super().__init__(
                time_attr=ROUND,
                perturbation_interval=1,
                hyperparam_mutations={"settings": _mutations(sweep)},
                quantile_fraction=sweep.search.quantile,
                resample_probability=sweep.search.resample_probability,
                perturbation_factors=sweep.search.perturbation_factors,
                custom_explore_fn=lambda config: {
                    **config,
                    "settings": explored(sweep, config["settings"]),
                },
                log_config=False,
                synch=True,
            )
            self.leg = first_leg
            self.losses: dict[str, float] = {}
            self.made: list[dict[str, Any]] = []

        def __reduce__(self) -> tuple[type[FIFOScheduler], tuple[()]]:
            return (
                FIFOScheduler,
                (),
            )  # Tune keeps a copy of its settings on disk; this is not for it

        def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
            name = trial.config["trial"]
            trial.config.setdefault("settings", settings_of(sweep, trials[name]))
            super().on_trial_add(tune_controller, trial)

        def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
            self.losses[trial.config["trial"]] = result[sweep.search.metric]
            if len(self.losses) < len(trials):
                return str(super().on_trial_result(tune_controller, trial, result))
            # the last of the members: now they are compared
            state = random.getstate()
            random.seed(f"{sweep.search.seed} {population.name} {self.leg}")
            try:
                decision = str(super().on_trial_result(tune_controller, trial, result))
            finally:
                random.setstate(state)
            population.record(self.leg, self.losses, self.made)
            self.leg, self.losses, self.made = self.leg + 1, {}, []
            for member in tune_controller.get_trials():
                member.set_config({**member.config, "leg": self.leg})
            return decision

        def _exploit(self, tune_controller: Any, trial: Any, trial_to_clone: Any) -> None:
            name, source = trial.config["trial"], trial_to_clone.config["trial"]
            if not math.isfinite(self.losses[source]):
                return  # all have failed
            before = trial.config
            super()._exploit(tune_controller, trial, trial_to_clone)
            member, best = RunDirectory(trials[name].path), RunDirectory(trials[source].path)
            settings = trial.config["settings"]
            try:
                record = take_over(member, best, population.end_of(self.leg), settings)
            except (ValueError, OSError, StorageError) as error:
                logger.warning("%s continues unchanged: %s", name, error)
                trial.set_config(before)
                return
            trial.set_config({**trial.config, "trial": name})
            told = {"member": name, "source": source, "settings": record["settings"]}
            self.made.append(told)
            if console is not None:
                console.print(f"  {take_over_text(record, name)}", soft_wrap=True)

        def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
            super().on_trial_error(tune_controller, trial)
            if trial.status != trial.ERROR:  # not to be tried again: the others would wait for it
                tune_controller.request_stop_experiment()

    return TakeOvers()


def take_over_text(record: Mapping[str, Any], member: str) -> str:
    """Return a take-over in a line."""
    changes = ", ".join(f"{k} {v[0]} -> {v[1]}" for k, v in record["settings"].items())
    return (
        f"step {record['step']}: {member} takes over {record['source']}, {changes or 'unchanged'}"
    )


def _mutations(sweep: SweepJob) -> dict[str, Any]:
    """Return the distributions from which Tune draws values; chance comes from the seeded `random`."""
    return {
        key: partial(_draw, sweep, key) if isinstance(span, RandomRangeConfig) else list(span)
        for key, span in sweep.random.items()
    }


def _draw(sweep: SweepJob, key: str) -> Any:
    return drawn(sweep, key, random.random())
