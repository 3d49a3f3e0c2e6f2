"""The job file of `pelagos sweep`: training jobs over grids, random draws, amounts of data, seeds."""

from typing import Annotated, Any, Literal

from pydantic import Field

from pelagos.platform.config.marks import Sets, Trait
from pelagos.platform.config.meanings import has, names_of
from pelagos.platform.config.schema import (
    Fraction,
    PathText,
    Plugins,
    PositiveFloat,
    PositiveInt,
    RunName,
    Section,
    Seed,
    TrackingConfig,
)

Label = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_]{0,29}$")]
DEFAULT_BASELINE = "fno"
EARLY_STOPPING = "asha"
POPULATION = "population"
# Methods that compare trials while they run, and so need one Ray for all trials.
COMPARES_RUNNING_TRIALS = (EARLY_STOPPING, POPULATION)
CHANGEABLE_WITHIN_A_RUN = names_of(has(Trait.POPULATION))


class SweptJobConfig(Section):
    """A training job of the sweep: a file, or the job itself."""

    file: PathText | None = Field(None, description="Its job file: pretrain or finetune.")
    job: dict[str, Any] | None = Field(None, description="The job itself, instead of `file`.")
    set: dict[str, Any] = Field({}, description="Dotted keys of that file: values instead.")


class RandomRangeConfig(Section):
    """A range from which values are drawn."""

    low: float = Field(description="Smallest value.")
    high: float = Field(description="Largest value.")
    log: bool = Field(False, description="Uniform in the logarithm.")


class SearchConfig(Section):
    """Choice of the trials, and of those that are stopped early."""

    name: Literal["grid", "random", "asha", "population"] = Field(
        "grid",
        description="grid: every combination; random: draws on top of it; asha: either, and trials "
        "that lag are stopped (arXiv:1810.05934); population: trials that lag continue from the "
        "checkpoints of the best, with other values of `random` (arXiv:1711.09846).",
    )
    metric: Literal["validation_loss"] = Field(
        "validation_loss", description="Metric that ranks the trials."
    )
    mode: Literal["min"] = Field("min", description="Smaller is better.")
    num_samples: PositiveInt = Field(
        1,
        description="Draws from `random` for each combination; population: members of each.",
    )
    seed: Seed = Field(0, description="Seed of the draws.")
    grace_validations: PositiveInt = Field(
        1, description="asha: validations before a trial may be stopped."
    )
    max_validations: PositiveInt = Field(
        100, description="asha: no trial is compared after this many validations."
    )
    reduction_factor: Annotated[int, Field(ge=2)] = Field(
        3, description="asha: one in this many trials continues at each comparison."
    )
    perturb_validations: PositiveInt = Field(
        1, description="population: validations between two comparisons of its members."
    )
    quantile: Annotated[float, Field(gt=0, le=0.5)] = Field(
        0.25,
        description="population: share of the members that take over the checkpoints of as many "
        "of the best.",
    )
    resample_probability: Fraction = Field(
        0.25,
        description="population: how often a new value is drawn; otherwise it moves by a factor, "
        "or to a neighbour in its list.",
    )
    perturbation_factors: tuple[PositiveFloat, PositiveFloat] = Field(
        (0.8, 1.2), description="population: factors, one of which a value is multiplied by."
    )


class TrialEvaluationConfig(Section):
    """Measurement of each finished trial."""

    split: str = Field("test", description="Split of each dataset.")
    max_trajectories: PositiveInt = Field(64, description="Trajectories per dataset at most.")
    lead_steps: PositiveInt | None = Field(
        None,
        description="Lead time of the errors, in used frames; default: the last (all of a "
        "trajectory, or max_lead_steps).",
    )
    batch_size: PositiveInt = Field(16, description="Trajectories forecast at once.")


class SweepJob(Section):
    """Train many variants and compare them: `pelagos sweep JOB.yaml`."""

    job: Literal["sweep"] = "sweep"
    name: Annotated[RunName, Sets("name")] = Field(
        description="Name of the sweep; names its directory and its runs."
    )
    runs_dir: Annotated[PathText, Sets("runs_dir")] = Field(
        "runs", description="Directory of the sweep's records and of its runs."
    )
    jobs: Annotated[dict[Label, SweptJobConfig], Field(min_length=1)] = Field(
        description="Label: training job. Each is run with every combination of the keys below."
    )
    grid: dict[str, Annotated[tuple[Any, ...], Field(min_length=1)]] = Field(
        {}, description="Dotted key of the jobs: its values; every combination is run."
    )
    random: dict[str, RandomRangeConfig | Annotated[tuple[Any, ...], Field(min_length=1)]] = Field(
        {},
        description="Dotted key of the jobs: range, or list of values, that `search.num_samples` are "
        "drawn from.",
    )
    search: SearchConfig = SearchConfig()
    trajectories: Annotated[tuple[PositiveInt, ...], Sets("data.max_trajectories")] = Field(
        (), description="Numbers of training trajectories (data.max_trajectories); default: all."
    )
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1), Sets("seed")] = Field(
        (0,), description="Seeds; every variant is run with each."
    )
    baseline: str | None = Field(
        None, description="Reference label of the gains; default: fno, if there is one."
    )
    evaluate: TrialEvaluationConfig | None = Field(
        TrialEvaluationConfig(), description="Measurement of finished trials; null: none."
    )
    max_concurrent: Annotated[PositiveInt, Sets("resources.launcher")] = Field(
        2, description="Trials at the same time, at most."
    )
    ray_address: Annotated[str | None, Sets("resources.ray_address")] = Field(
        None,
        description="Address of a running Ray cluster whose nodes see `runs_dir`; default: start "
        "one on this machine.",
    )
    tracking: Annotated[TrackingConfig, Sets("tracking")] = TrackingConfig()
    plugins: Plugins = Field(
        (), description="Modules that are imported first, in addition to those that its jobs name."
    )

    @classmethod
    def keys_set(cls) -> dict[str, str]:
        """Return the keys of its jobs that a sweep sets itself: by which key of its own."""
        marks = ((mark, own) for own, field in cls.model_fields.items() for mark in field.metadata)
        return {mark.key: own for mark, own in marks if isinstance(mark, Sets)}

    @property
    def gain_baseline(self) -> str | None:
        """The label that gains are measured against, if there is one."""
        return self.baseline or (DEFAULT_BASELINE if DEFAULT_BASELINE in self.jobs else None)
