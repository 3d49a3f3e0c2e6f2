"""Populations of a sweep (Jaderberg et al., arXiv:1711.09846): who is compared with whom, and when.

Members differ in the values of `random` alone. They train in legs of equal length; after each
leg but the last they are compared, and those that lag take over the checkpoints and, perturbed, the
settings of the best. All members wait for each other at the end of a leg, so that a decision depends
on the seed and the losses, not on who was faster. Each is kept in the sweep's directory, and a
member's take-overs in its run (`take_over.py`), from which a killed sweep continues.
"""

import dataclasses
import json
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pelagos.infra.storage.files import replace_durably
from pelagos.jobs.sweeping.one_trial import run_trial, train
from pelagos.jobs.sweeping.trials import (
    RECORD_NAME,
    Trial,
    TrialResult,
    draw,
    name_digest,
    trial_job,
    write_result,
)
from pelagos.jobs.training.objective_options import option_of
from pelagos.models.objectives import WITHIN_A_RUN, options_of
from pelagos.platform.checkpoint import CheckpointStore
from pelagos.platform.config.load import ConfigError, Problem
from pelagos.platform.config.overrides import value_at
from pelagos.platform.config.schema import TrainingJob
from pelagos.platform.config.sweep import RandomRangeConfig, SweepJob
from pelagos.platform.records.run_files import read_json
from pelagos.platform.records.runs import RunDirectory
from pelagos.platform.records.states import State
from pelagos.platform.storage_choice import options_for
from pelagos.platform.trainer import GROUP_LOSS

logger = logging.getLogger(__name__)
CONFIG_PREFIX = "objective.config."
WEIGHTS_KEY = f"{CONFIG_PREFIX}field_weights"


@dataclass(frozen=True)
class Population:
    """Trials that are compared with each other while they run."""

    name: str
    members: tuple[str, ...]
    steps_per_leg: int
    total_steps: int
    path: Path
    """Where its decisions are kept."""

    @property
    def num_legs(self) -> int:
        """Legs of a member's training; after each but the last, members are compared."""
        return -(-self.total_steps // self.steps_per_leg)

    def end_of(self, leg: int) -> int:
        """Steps done at the end of a leg, counted from 1."""
        return min(leg * self.steps_per_leg, self.total_steps)

    def decisions(self) -> list[dict[str, Any]]:
        """Return the decisions by leg: losses, and who took over which settings from whom."""
        if not self.path.exists():
            return []
        told: list[dict[str, Any]] = read_json(self.path)["decisions"]
        return told

    def record(
        self, leg: int, losses: Mapping[str, float], take_overs: Sequence[Mapping[str, Any]]
    ) -> None:
        """Keep the decision at the end of a leg; an endless loss, of a failed member, as null."""
        plain = {name: v if math.isfinite(v) else None for name, v in sorted(losses.items())}
        decision = {"leg": leg, "step": self.end_of(leg), "losses": plain}
        decisions = [*self.decisions(), {**decision, "take_overs": list(take_overs)}]
        content = {"name": self.name, "members": self.members, "decisions": decisions}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        replace_durably(self.path, json.dumps(content, indent=1).encode())


def populations_of(sweep: SweepJob, trials: Sequence[Trial]) -> list[Population]:
    """Return the sweep's populations: trials that differ in the values of `random` alone."""
    groups: dict[tuple[Any, ...], list[Trial]] = {}
    for trial in trials:
        fixed = {k: v for k, v in trial.overrides.items() if k not in sweep.random}
        key = (trial.label, json.dumps(fixed, sort_keys=True), trial.trajectories, trial.seed)
        groups.setdefault(key, []).append(trial)
    directory = Path(sweep.runs_dir) / sweep.name / "populations"
    populations = []
    for members in groups.values():
        job, names = members[0].job, tuple(trial.name for trial in members)
        name = f"{members[0].label}-{name_digest(names)}"
        steps = sweep.search.perturb_validations * job.validation.every_steps
        path = directory / f"{name}.json"
        populations.append(Population(name, names, steps, job.schedule.total_steps, path))
    return populations


def check_population(sweep: SweepJob, trial: Trial) -> None:
    """Check that members are compared at all, and that every value they may get is valid.

    Raises:
        ConfigError: with every reason.
    """
    problems = []
    (population,) = populations_of(sweep, [trial])
    if population.num_legs < 2:
        every = trial.job.validation.every_steps
        message = (
            f"got {sweep.search.perturb_validations}: the members would first be compared after "
            f"{population.steps_per_leg} steps (x validation.every_steps {every}), but they end "
            f"after {population.total_steps}. Compare or validate more often"
        )
        problems.append(Problem(("search", "perturb_validations"), message))
    if trial.job.schedule.stop_when is not None:
        message = (
            "a population's members train to the same step, and this ends some before: leave it out"
        )
        problems.append(Problem(("jobs", trial.label), f"schedule.stop_when: {message}"))
    problems += _unchangeable_options(sweep, trial.job)
    for key, span in sweep.random.items():
        ends = (span.low, span.high) if isinstance(span, RandomRangeConfig) else span
        for value in ends:
            try:
                trial_job(sweep, trial.label, {**trial.overrides, key: value})
            except ConfigError as error:
                problems += [
                    Problem(("random", key), f"{value} is not valid: {p.message}")
                    for p in error.problems
                ]
    if problems:
        raise ConfigError(f"sweep {sweep.name}", problems)


def _unchangeable_options(sweep: SweepJob, job: TrainingJob) -> Iterator[Problem]:
    """Yield the options of the objective that the members of a population cannot exchange."""
    options = options_of(job.objective.name)
    free = [name for name, option in options.items() if option.metadata.get(WITHIN_A_RUN)]
    for key, span in sweep.random.items():
        if not key.startswith(CONFIG_PREFIX):
            continue
        if key.removeprefix(CONFIG_PREFIX).partition(".")[0] not in free:
            listed = ", ".join(free) or "nothing"
            yield Problem(
                ("random", key),
                "a population changes values within a run, and this key cannot change there: the "
                "members exchange weights and continue one loss. Of the options of "
                f"{job.objective.name} a population can change {listed}. For others use `grid`, "
                "which makes one population per value",
            )
        elif key.startswith(WEIGHTS_KEY) and not (
            isinstance(span, RandomRangeConfig) and span.low > 0
        ):
            yield Problem(
                ("random", key),
                "must be a range above 0, because members are compared with these weights divided "
                "out",
            )


def settings_of(sweep: SweepJob, trial: Trial) -> dict[str, Any]:
    """Return a member's values of the keys of `random` as they are now."""
    has_begun = (trial.path / "job.yaml").exists()
    job = RunDirectory(trial.path).job() if has_begun else trial.job
    return {key: value_at(job, key) for key in sweep.random}


def explored(sweep: SweepJob, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return perturbed settings within their ranges, to four digits as draws are."""
    kept = dict(settings)
    for key, span in sweep.random.items():
        if isinstance(span, RandomRangeConfig):
            value = float(f"{kept[key]:.4g}")
            kept[key] = min(max(value, span.low), span.high)
    return kept


def drawn(sweep: SweepJob, key: str, share: float) -> Any:
    """Return the value of a key of `random` at a share of its range or list."""
    return draw(sweep.random[key], share)


def run_leg(sweep: SweepJob, population: Population, trial: Trial, leg: int) -> float:
    """Bring a member to the end of a leg; return its loss there, endless if it failed.

    A member that is there already, of a sweep that was killed, is left as it is.
    """
    until, run = population.end_of(leg), RunDirectory(trial.path)
    if _newest_step(run) < until:
        try:
            outcome = train(trial, lambda: None, until).outcome
        except Exception as error:  # whatever breaks one member, the others continue
            logger.debug("member %s failed", trial.name, exc_info=True)
            write_result(trial, TrialResult(State.FAILED, cause=f"{type(error).__name__}: {error}"))
            return math.inf
        if outcome.kind == State.FAILED:
            write_result(trial, TrialResult(State.FAILED, outcome.step, cause=outcome.cause))
            return math.inf
    (trial.path / RECORD_NAME).unlink(missing_ok=True)  # of a failure before a take-over
    loss = comparable_loss(sweep, run, until)
    return math.inf if loss is None else loss


def run_last_leg(sweep: SweepJob, trial: Trial) -> None:
    """Bring a member to the end of its training, measure it and keep its result."""
    result = run_trial(sweep, trial, lambda *_: True)
    if result.state == State.FINISHED:
        loss = comparable_loss(sweep, RunDirectory(trial.path), result.steps)
        write_result(trial, dataclasses.replace(result, validation_loss=loss))


def comparable_loss(sweep: SweepJob, run: RunDirectory, step: int) -> float | None:
    """Return the validation loss at a step; None if there is none, or it is not finite.

    Where members differ in the weights of field groups, these are divided out: it is the mean over
    groups that all weigh the same.
    """
    events = [e for e in run.events() if e["kind"] == "validation" and e["step"] == step]
    if not events:
        return None
    loss = float(events[-1]["validation_loss"])
    if any(key.startswith(WEIGHTS_KEY) for key in sweep.random):
        loss = _unweighted_loss(events[-1], run.job(), loss)
    return loss if math.isfinite(loss) else None


def _unweighted_loss(event: Mapping[str, Any], job: TrainingJob, weighted: float) -> float:
    losses = {k.removeprefix(GROUP_LOSS): v for k, v in event.items() if k.startswith(GROUP_LOSS)}
    if not losses:  # of one group, whose weight is 1
        return weighted
    given = option_of(job, "field_weights") or {}
    weights = {name: given.get(name, 1.0) for name in losses}
    mean = math.fsum(weights.values()) / len(weights)
    return math.fsum(losses[n] * mean / weights[n] for n in losses) / len(losses)


def _newest_step(run: RunDirectory) -> int:
    if not (run.path / "job.yaml").exists():
        return 0
    uri = run.checkpoint_uri
    return CheckpointStore(uri, options_for(uri, run.job().storage)).latest_step() or 0
