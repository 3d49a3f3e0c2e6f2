"""The trials of a sweep: their list, their names, and the state of each.

A trial is an ordinary run. Its name follows from the sweep's name and from the trial's definition, and
ends in a digest of all that decides its steps: another learning rate in the job file is another
run. A sweep adds `trial.json` to the run's directory when the run is over.
"""

import contextlib
import hashlib
import itertools
import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import TypeAdapter

from pelagos.infra.storage.files import below, replace_durably
from pelagos.infra.yaml_text import yaml_text
from pelagos.platform.config.kinds import as_kind
from pelagos.platform.config.load import ConfigError, Problem, parse_job, read_yaml_text
from pelagos.platform.config.meanings import names_of, tells_trials_apart, without
from pelagos.platform.config.overrides import override, override_text
from pelagos.platform.config.schema import TrainingJob
from pelagos.platform.config.sweep import POPULATION, RandomRangeConfig, SweepJob
from pelagos.platform.records.run_files import read_json
from pelagos.platform.records.runs import RunDirectory
from pelagos.platform.records.states import State

RECORD_NAME = "trial.json"
MAX_NAME_LENGTH = 100
DIGEST_LENGTH = 6
LONG_DIGEST_LENGTH = 16
# How and where steps are computed and recorded, not which steps they are.
NOT_IN_DIGEST = names_of(lambda key: not tells_trials_apart(key))

Inputs = dict[str, str]
"""`source` and the uris of datasets: their digests."""
TrialState = Literal[
    State.WAITING, State.FINISHED, State.STOPPED_EARLY, State.FAILED, State.STOPPED, State.LOST
]
FINAL_STATES = (State.FINISHED, State.STOPPED_EARLY)
# Their runs continue with the next `pelagos sweep`.
CUT_OFF = (State.STOPPED, State.LOST)


@dataclass(frozen=True)
class Trial:
    """One run of a sweep, before it has run."""

    name: str
    label: str
    overrides: dict[str, Any]
    """Values of the keys in `grid` and `random`."""
    seed: int
    trajectories: int | None
    """Training trajectories of each dataset; None: all."""
    job: TrainingJob

    @property
    def path(self) -> Path:
        """The run's directory."""
        return Path(self.job.runs_dir) / self.name


@dataclass(frozen=True)
class TrialResult:
    """How a trial ended, and its measurements."""

    state: TrialState
    steps: int = 0
    validation_loss: float | None = None
    errors: dict[str, float] = field(default_factory=dict)
    """Forecast method: mean over field groups of the median relative L1 error at one lead."""
    cause: str = ""
    measured_on: dict[str, Any] | None = None
    """Which trajectories and lead `errors` are of: `measurement_of` the sweep."""
    inputs: Inputs | None = None
    """What the run was made of; None: not recorded."""
    vrmse: dict[str, float] = field(default_factory=dict)
    """Like `errors`; without methods that have none, where no field varies."""
    baselines: dict[str, dict[str, float]] = field(default_factory=dict)
    """`persistence` and `mean`: `relative_l1` and `vrmse` on the same trajectories and lead."""
    beats: str = ""
    """Which baselines the trial beats at that lead (`evaluation.verdicts`), in a word."""
    is_worse_than_constant: bool = False
    weights: str = ""
    """`ema` if the averaged weights were measured, `model` if the weights themselves."""
    unscored: list[str] = field(default_factory=list)
    """Sentences on fields that change on these trajectories and are in no error."""


@dataclass(frozen=True)
class Measurement:
    """The measurements of a finished trial; the fields of the same names above."""

    errors: dict[str, float] = field(default_factory=dict)
    vrmse: dict[str, float] = field(default_factory=dict)
    baselines: dict[str, dict[str, float]] = field(default_factory=dict)
    beats: str = ""
    is_worse_than_constant: bool = False
    weights: str = ""
    unscored: list[str] = field(default_factory=list)


_RESULT = TypeAdapter(TrialResult)


def write_result(trial: Trial, result: TrialResult) -> None:
    """Keep a trial's result in its run's directory. Raises ValueError: that is a link."""
    below(trial.path.parent, trial.name).mkdir(parents=True, exist_ok=True)
    told = _without_endless(asdict(result))
    text = json.dumps({"label": trial.label, "overrides": trial.overrides, **told}, indent=1)
    replace_durably(trial.path / RECORD_NAME, text.encode())


def read_result(trial: Trial) -> TrialResult:
    """Return the state of a trial; one that has no record waits, or was cut off."""
    with contextlib.suppress(OSError, ValueError, TypeError, AttributeError):
        told = read_json(trial.path / RECORD_NAME)
        known = {f.name: told[f.name] for f in fields(TrialResult) if f.name in told}
        if known.get("state") == "interrupted":  # as sweeps of earlier versions wrote
            known["state"] = State.STOPPED
        for key in ("errors", "vrmse", "baselines"):
            known[key] = _with_endless(known.get(key, {}))
        return _RESULT.validate_python(known)
    if not (trial.path / "job.yaml").exists():
        return TrialResult(State.WAITING)
    was_stopped = RunDirectory(trial.path).status()["state"] == State.STOPPED
    return TrialResult(State.STOPPED if was_stopped else State.LOST)


def result_of(sweep: SweepJob, trial: Trial) -> TrialResult:
    """Return the state of a trial.

    One that was measured on something else than the sweep asks for is not over: its run is, its
    measurement is made anew.
    """
    result = read_result(trial)
    if result.state == State.FINISHED and result.measured_on != measurement_of(sweep):
        return replace(result, state=State.STOPPED, **asdict(Measurement()))
    return result


def measurement_of(sweep: SweepJob) -> dict[str, Any] | None:
    """Return the settings, besides the trials themselves, that determine the errors of a sweep."""
    if sweep.evaluate is None:
        return None
    # the last lead has no number, as before the choice existed
    return sweep.evaluate.model_dump(mode="json", exclude={"batch_size"}, exclude_none=True)


def clear_unbegun(directory: Path) -> None:
    """Remove the recorded end of a trial that had not begun, so that it can begin."""
    if not (directory / "job.yaml").exists():
        (directory / RECORD_NAME).unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            directory.rmdir()


def _is_endless(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


def _without_endless(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a record as strict JSON has it: None for a number that is not finite."""
    finite = {key: None if _is_endless(value) else value for key, value in values.items()}
    return {k: _without_endless(v) if isinstance(v, Mapping) else v for k, v in finite.items()}


def _with_endless(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return errors as they were recorded, infinite where the record has None."""
    known = {key: math.inf if value is None else value for key, value in values.items()}
    return {k: _with_endless(v) if isinstance(v, Mapping) else v for k, v in known.items()}


def trials_of(sweep: SweepJob) -> list[Trial]:
    """Return every trial of a sweep, always in the same order.

    Raises:
        ConfigError: with all that is wrong with the jobs, the grid and the ranges.
    """
    problems: list[Problem] = []
    trials: list[Trial] = []
    for label, overrides, member in _variants(sweep):
        for trajectories, seed in itertools.product(sweep.trajectories or (None,), sweep.seeds):
            try:
                trials.append(_trial(sweep, label, overrides, trajectories, seed, member))
            except ConfigError as error:
                problems += _where_it_stands(sweep, label, overrides, error)
    if problems:
        raise ConfigError(f"sweep {sweep.name}", list(dict.fromkeys(problems)))
    return _with_own_names(sweep, trials)


def _with_own_names(sweep: SweepJob, trials: list[Trial]) -> list[Trial]:
    """Return the trials, those that share a name under names of their own.

    A name is cut to its length and ends in six digits of a digest of its steps: trials that differ
    in something else (where checkpoints go, how often), or whose digits are the same by chance, can
    share one. They take digits of all that they are.

    Raises:
        ConfigError: two trials are the same job, by values listed twice.
    """
    shared = {name for name, count in Counter(t.name for t in trials).items() if count > 1}
    if not shared:
        return trials
    seen: dict[str, Trial] = {}
    found = []
    for trial in trials:
        if trial.name in shared:
            whole = trial.job.model_dump(mode="json", exclude={"name"})
            # a member of a population is itself, also where another has the same values
            identity = {"label": trial.label, "job": whole, "named": trial.name}
            if (same := seen.get(name_digest(identity))) is not None:
                values = ", ".join(f"{k}={override_text(v)}" for k, v in trial.overrides.items())
                others = ", ".join(f"{k}={override_text(v)}" for k, v in same.overrides.items())
                message = (
                    f"label {trial.label}, seed {trial.seed}: {values or 'its job'} is the same trial "
                    f"as {others or 'another'}; list each value once"
                )
                raise ConfigError(f"sweep {sweep.name}", [Problem(("grid",), message)])
            seen[name_digest(identity)] = trial
            digits = name_digest(identity, LONG_DIGEST_LENGTH)
            name = f"{trial.name[: MAX_NAME_LENGTH - LONG_DIGEST_LENGTH - 1]}-{digits}"
            trial = replace(trial, name=name, job=trial.job.model_copy(update={"name": name}))
        found.append(trial)
    return found


def tracked(sweep: SweepJob, trial: Trial, tags: Mapping[str, str]) -> Trial:
    """Return the trial with these tags in addition to the sweep's, in the registry under its name."""
    tracking = sweep.tracking.model_copy(
        update={
            "tags": {**sweep.tracking.tags, **tags},
            "register_as": sweep.tracking.register_as or sweep.name,
        }
    )
    return replace(trial, job=trial.job.model_copy(update={"tracking": tracking}))


def _variants(sweep: SweepJob) -> Iterator[tuple[str, dict[str, Any], int | None]]:
    """Yield label, overrides, and the number of the member in a population.

    The draws are the same for every label and combination; elsewhere than in a population, one that
    comes twice (of lists) is one trial.
    """
    generator = np.random.default_rng(sweep.search.seed)
    count = sweep.search.num_samples if sweep.random else 1
    draws: list[dict[str, Any]] = []
    for _ in range(count):
        drawn = {key: draw(span, generator.random()) for key, span in sorted(sweep.random.items())}
        if sweep.search.name == POPULATION or drawn not in draws:
            draws.append(drawn)
    for label, values, (number, drawn) in itertools.product(
        sweep.jobs, itertools.product(*sweep.grid.values()), enumerate(draws)
    ):
        member = number if sweep.search.name == POPULATION else None
        yield label, {**dict(zip(sweep.grid, values, strict=True)), **drawn}, member


def draw(span: RandomRangeConfig | tuple[Any, ...], share: float) -> Any:
    """Return the value at a share of a list or of a range.

    Of a range to four digits, so that names can hold it.

    >>> draw(RandomRangeConfig(low=1e-4, high=1e-2, log=True), 0.5), draw(("a", "b", "c"), 0.99)
    (0.001, 'c')
    """
    if not isinstance(span, RandomRangeConfig):
        return span[int(share * len(span))]
    if span.log:
        value = span.low * (span.high / span.low) ** share
    else:
        value = span.low + (span.high - span.low) * share
    return float(f"{value:.4g}")


def _trial(
    sweep: SweepJob,
    label: str,
    overrides: dict[str, Any],
    trajectories: int | None,
    seed: int,
    member: int | None,
) -> Trial:
    """Return one trial. Raises `ConfigError` naming the job file's keys."""
    values = {**overrides, "seed": seed}
    if trajectories is not None:
        values["data.max_trajectories"] = trajectories
    job = trial_job(sweep, label, values)
    name = _name(sweep, label, overrides, trajectories, seed, job, member)
    resources = {"launcher": "none", "ray_address": None}
    job = job.model_copy(
        update={
            "name": name,
            "runs_dir": sweep.runs_dir,
            "resources": job.resources.model_copy(update=resources),
            "tracking": sweep.tracking,
            "plugins": tuple(dict.fromkeys([*sweep.plugins, *job.plugins])),
        }
    )
    return Trial(name, label, overrides, seed, trajectories, job)


def trial_job(sweep: SweepJob, label: str, values: Mapping[str, Any]) -> TrainingJob:
    """Return a label's job with the values of dotted keys. Raises `ConfigError`."""
    entry = sweep.jobs[label]
    source = entry.file or f"jobs.{label}.job"
    text = read_yaml_text(entry.file) if entry.file else yaml_text(entry.job)
    overrides = [override(key, value) for key, value in {**entry.set, **values}.items()]
    job = parse_job(text, source, overrides)
    message = f"is {job.job}; a sweep takes pretrain and finetune"
    job = as_kind(TrainingJob, job, ConfigError(source, [Problem(("job",), message)]))
    if job.resources.num_workers != 1:
        raise ConfigError(
            source,
            [
                Problem(
                    ("resources", "num_workers"),
                    f"is {job.resources.num_workers}; a trial runs in one process. Set it to 1 in "
                    f"jobs.{label}.set, and max_concurrent to as many trials as fit",
                )
            ],
        )
    return job


def _name(
    sweep: SweepJob,
    label: str,
    overrides: Mapping[str, Any],
    trajectories: int | None,
    seed: int,
    job: TrainingJob,
    member: int | None,
) -> str:
    """Return SWEEP-LABEL-key-value-…-nN-mMEMBER-sSEED-DIGEST, shortened if need be."""
    parts = [f"{key.rpartition('.')[2]}-{override_text(value)}" for key, value in overrides.items()]
    parts += [f"n{trajectories}"] if trajectories is not None else []
    parts += [f"m{member}"] if member is not None else []
    readable = re.sub(r"[^A-Za-z0-9._-]+", "_", "-".join([sweep.name, label, *parts, f"s{seed}"]))
    decisive = without(job.model_dump(mode="json"), NOT_IN_DIGEST)
    if sweep.search.name == POPULATION:  # which steps a member takes depends on the others too
        population = sweep.model_dump(mode="json", include={"search", "random"})
        # … and they are compared, and take over from each other, when they validate
        when = job.validation.every_steps
        decisive["population"] = {**population, "member": member, "validated_every": when}
    return f"{readable[: MAX_NAME_LENGTH - DIGEST_LENGTH - 1]}-{name_digest(decisive)}"


def name_digest(content: Any, length: int = DIGEST_LENGTH) -> str:
    """Return the digest of JSON that a name ends in."""
    told = json.dumps(content, sort_keys=True)
    return hashlib.sha256(told.encode()).hexdigest()[:length]


def _where_it_stands(
    sweep: SweepJob, label: str, overrides: Mapping[str, Any], error: ConfigError
) -> Iterator[Problem]:
    """Yield each problem of a trial's job under the sweep's key that brought it about."""
    for problem in error.problems:
        dotted = ".".join(map(str, problem.key))
        if dotted in overrides:
            key: tuple[str, ...] = ("grid" if dotted in sweep.grid else "random", dotted)
        elif dotted in sweep.jobs[label].set:
            key = ("jobs", label, "set", dotted)
        else:
            key = ("jobs", label, "file" if sweep.jobs[label].file else "job")
        told = problem.message if key[-1] == dotted else f"{error.source}: {problem}"
        yield Problem(key, told)
