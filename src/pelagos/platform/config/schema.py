"""The job file as typed, frozen models: every default once, each field described, units in names.

Unknown keys are rejected (`load.py` reports the nearest known key). Conditions that one
model cannot see alone - whether a batch divides, whether dataset fields match - are checked in
`checks.py` (arithmetic) and by the job itself (files).
"""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from pelagos.platform.config.description import DescriptionConfig
from pelagos.platform.config.marks import Meaning, Trait
from pelagos.platform.config.objective import ObjectiveConfig as ObjectiveConfig
from pelagos.platform.config.parallel import EveryNConfig as EveryNConfig
from pelagos.platform.config.parallel import FullyShardConfig as FullyShardConfig
from pelagos.platform.config.parallel import MemoryBudgetConfig as MemoryBudgetConfig
from pelagos.platform.config.parallel import ParallelConfig as ParallelConfig
from pelagos.platform.config.parallel import ZeroConfig as ZeroConfig
from pelagos.platform.config.section import AddressText as AddressText
from pelagos.platform.config.section import CheckpointName as CheckpointName
from pelagos.platform.config.section import Fraction as Fraction
from pelagos.platform.config.section import NonNegativeFloat as NonNegativeFloat
from pelagos.platform.config.section import NonNegativeInt as NonNegativeInt
from pelagos.platform.config.section import PathText as PathText
from pelagos.platform.config.section import PositiveFloat as PositiveFloat
from pelagos.platform.config.section import PositiveInt as PositiveInt
from pelagos.platform.config.section import RegularExpression as RegularExpression
from pelagos.platform.config.section import RunName as RunName
from pelagos.platform.config.section import Section as Section
from pelagos.platform.config.section import Seed as Seed
from pelagos.platform.config.starting import LowRankConfig, SourceConfig
from pelagos.platform.config.stopping import StopWhenConfig as StopWhenConfig

PluginName = Annotated[str, Field(pattern=r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*$")]
Plugins = tuple[PluginName, ...]
PLUGINS = Field(
    (), description="Modules that are imported first: they register parts (docs/extending.md)."
)


class StorageConfig(Section):
    """Access to `s3://` data. Credentials are never here: they come from the environment."""

    endpoint_url: AddressText | None = Field(
        None, description="S3 endpoint; default: AWS_ENDPOINT_URL, else Amazon's own."
    )
    region: str | None = Field(None, description="S3 region; default: AWS_REGION.")
    anonymous: bool = Field(False, description="Send unsigned requests (public buckets).")
    backend: Literal["auto", "obstore", "fsspec"] = Field(
        "auto", description="Client that reads datasets; auto: obstore where it knows the scheme."
    )


class ResourcesConfig(Section):
    """Workers, cores and GPUs of a job."""

    launcher: Annotated[Literal["ray", "none"], Meaning.HOW] = Field(
        "ray", description="ray: Ray workers; none: this process (alone, or as a torchrun rank)."
    )
    num_workers: PositiveInt = Field(1, description="Number of worker processes (world size).")
    cpus_per_worker: PositiveInt = Field(1, description="CPU cores (and torch threads) per worker.")
    gpus_per_worker: NonNegativeInt = Field(0, description="GPUs per worker: 0 or 1.")
    ray_address: Annotated[str | None, Meaning.PLACE] = Field(
        None, description="Address of a running Ray cluster; default: start one for the job."
    )


class GenerateDataset(Section):
    """One dataset to simulate."""

    family: str = Field(
        description="Family of initial states; an error about an unknown one lists all."
    )
    uri: PathText = Field(description="Where the dataset goes: a directory or s3:// prefix.")
    num_trajectories: PositiveInt = Field(description="Number of trajectories to simulate.")
    resolution: Annotated[int, Field(ge=16)] = Field(128, description="Stored cells per axis.")
    solver_resolution: PositiveInt | None = Field(
        None,
        description="Simulated cells per axis, a multiple of `resolution`; default: the same, of waves "
        "three times as many.",
    )
    num_frames: Annotated[int, Field(ge=2)] = Field(21, description="Frames per trajectory.")
    final_time: PositiveFloat = Field(1.0, description="Physical time of the last frame.")
    splits: dict[Literal["train", "validation", "test"], NonNegativeInt] | None = Field(
        None, description="Trajectories per split; default: 80 % / 10 % / 10 %."
    )
    compression: Literal["none", "lz4", "zstd"] = Field("lz4", description="Chunk compression.")
    trajectories_per_shard: PositiveInt | None = Field(
        None, description="Trajectories per shard object; default: chosen from their size."
    )
    solver_dtype: Literal["float32", "float64"] = Field(
        "float32", description="Precision of the solver."
    )
    compile_solver: bool = Field(
        False,
        description="torch.compile the compressible step: 2 to 5 times as fast after up to a minute.",
    )


class GenerateJob(Section):
    """Simulate datasets: `pelagos generate JOB.yaml`."""

    job: Literal["generate"] = "generate"
    name: RunName = Field(description="Name of the job.")
    seed: Seed = Field(0, description="Seed of every random draw.")
    datasets: Annotated[tuple[GenerateDataset, ...], Field(min_length=1)] = Field(
        description="The datasets to simulate, one after the other."
    )
    resources: ResourcesConfig = ResourcesConfig()
    storage: StorageConfig = StorageConfig()
    plugins: Plugins = PLUGINS
    overwrite: bool = Field(False, description="Replace complete datasets of the same uri.")


class MixtureEntryConfig(Section):
    """One dataset of the training mixture."""

    # a resume compares fingerprints: moved data is the same data
    uri: Annotated[PathText, Trait.RESUMABLE] = Field(
        description="Directory or s3:// prefix: a Pelagos dataset, or any Zarr array or group."
    )
    weight: PositiveFloat | dict[NonNegativeInt, NonNegativeFloat] | None = Field(
        None,
        description="Relative share of samples, or {0: 1.0, 10000: 0.2}: the share from each step "
        "on; default: proportional to size.",
    )
    repeat: PositiveInt = Field(
        1, description="Without weights: how often each of its samples counts in an epoch."
    )
    offset: dict[str, float] = Field(
        {}, description="Subtracted from a field before normalisation, e.g. {pressure: 2.513}."
    )
    description: DescriptionConfig | PathText | None = Field(
        None,
        description="Information that a Zarr array from another tool lacks: a mapping, or the path of a "
        "YAML file of one (docs/data-recipes.md).",
    )
    crop: tuple[PositiveInt, ...] | None = Field(
        None, description="Grid points of random crops, [y, x]; default: data.crop."
    )


class ConstantsConfig(Section):
    """Published normalisation constants, one per field of `data.fields`."""

    mean: dict[str, float] = Field(description="Mean of each field.")
    std: dict[str, PositiveFloat] = Field(description="Standard deviation of each field.")


class CacheConfig(Section):
    """Cache of each node for data from object stores (docs/data.md)."""

    directory: Annotated[PathText, Meaning.PLACE] = Field(
        description="Directory on a disk of the node; created if absent."
    )
    max_bytes: PositiveInt = Field(description="Largest size in bytes, all datasets together.")


class DataConfig(Section):
    """The data that is streamed into the model."""

    mixture: Annotated[tuple[MixtureEntryConfig, ...], Field(min_length=1), Trait.INPUTS] = Field(
        description="The datasets and their weights."
    )
    fields: Annotated[tuple[str, ...], Field(min_length=1), Trait.NETWORK] = Field(
        ("density", "velocity-x", "velocity-y", "pressure"),
        description="Channels of the model, by field name; fields a dataset lacks are masked.",
    )
    global_batch_size: PositiveInt = Field(description="Samples per optimizer step, all workers.")
    normalization: Literal["statistics", "none", "source"] | ConstantsConfig = Field(
        "statistics",
        description="statistics: pooled over the mixture; none; source: those of the "
        "weights (finetune); or {mean: {...}, std: {...}}.",
    )
    absent_fields: Literal["masked", "ones"] = Field(
        "masked",
        description="Value of a field that a dataset lacks. masked: 0 after normalisation, and no "
        "part of the loss; ones: 1, and learnt like any other (official DPOT).",
    )
    max_trajectories: PositiveInt | None = Field(
        None,
        description="Train on the first N trajectories of each dataset's split; default: all "
        "(validation and constants of normalisation are not affected).",
    )
    run_length: PositiveInt = Field(
        1,
        description="Consecutive samples of a batch from one dataset: 1 mixes freely, "
        "global_batch_size takes each batch from one dataset, its share per shard group gives each "
        "group one.",
    )
    # a checkpoint records its version and continues under no other
    order_version: Annotated[Literal[1, 2], Trait.RESUMABLE] = Field(
        2,
        description="Version of the order of samples: 2; 1 continues a run that began under it.",
    )
    crop: tuple[PositiveInt, ...] | None = Field(
        None,
        description="Train and validate on random crops of this many grid points, [y, x]; default: "
        "whole frames, which `evaluate` always takes.",
    )
    cache: Annotated[CacheConfig | None, Meaning.HOW] = Field(
        None, description="Cache of remote datasets on each node; default: none."
    )
    num_threads: Annotated[PositiveInt, Meaning.HOW] = Field(
        4, description="Reader threads per worker."
    )
    prefetch_steps: Annotated[PositiveInt, Meaning.HOW] = Field(
        2, description="Batches prepared ahead."
    )


class ModelConfig(Section):
    """The network."""

    name: str = Field(
        description="Name in the registry (`pelagos models`), or a class: my_lab.networks:MyNet."
    )
    # a checkpoint keeps all options, and is continued by no other network
    config: Annotated[dict[str, Any], Trait.RESUMABLE] = Field(
        {}, description="Overrides of the model's own configuration."
    )


class ParameterGroupConfig(Section):
    """Settings for the parameters whose name matches a pattern; the first match wins."""

    pattern: RegularExpression = Field(
        description="Regular expression searched in the parameter's name."
    )
    lr: PositiveFloat | None = Field(None, description="Learning rate; default: optimizer.lr.")
    weight_decay: NonNegativeFloat | None = Field(None, description="Default: optimizer's.")
    frozen_until_step: NonNegativeInt = Field(
        0, description="These do not change until this step (gradual unfreezing)."
    )


MomentDecay = Annotated[float, Field(ge=0, lt=1)]


class OptimizerConfig(Section):
    """AdamW (Loshchilov and Hutter, 2019), or one of a plugin, and gradient clipping."""

    name: str = Field("adamw", description="Name of the optimizer: adamw, or a plugin's.")
    config: dict[str, Any] = Field({}, description="Options of a plugin's optimizer.")
    lr: Annotated[PositiveFloat, Trait.POPULATION] = Field(1e-3, description="Peak learning rate.")
    weight_decay: Annotated[NonNegativeFloat, Trait.POPULATION] = Field(
        0.1,
        description="Decoupled decay; none for parameters that the model exempts (biases, norms, …).",
    )
    betas: Annotated[tuple[MomentDecay, MomentDecay], Trait.POPULATION] = Field(
        (0.9, 0.999), description="Moment decay rates, below 1."
    )
    eps: Annotated[PositiveFloat, Trait.POPULATION] = Field(
        1e-8, description="Added to the denominator."
    )
    clip_norm: Annotated[PositiveFloat | None, Trait.POPULATION] = Field(
        5.0, description="Largest global gradient norm."
    )
    groups: Annotated[tuple[ParameterGroupConfig, ...], Trait.POPULATION] = Field(
        (), description="Settings by name pattern."
    )
    layer_decay: Annotated[float, Field(gt=0, le=1), Trait.POPULATION] = Field(
        1.0,
        description="Ratio of each block's rate to that of the block after it. Parameters before "
        "the blocks get the lowest rate, those after them the full one.",
    )
    # parameters may come to rest as a run continues
    frozen: Annotated[tuple[RegularExpression, ...], Trait.RESUMABLE] = Field(
        (), description="Regular expressions of parameters that are not trained."
    )


class ScheduleConfig(Section):
    """Learning rate over steps: linear warm-up, then the named curve."""

    name: Annotated[str, Trait.POPULATION] = Field(
        "cosine", description="Curve after warm-up: cosine, constant, or a plugin's."
    )
    total_steps: PositiveInt = Field(description="Optimizer steps of the whole run.")
    warmup_steps: Annotated[NonNegativeInt, Trait.POPULATION] = Field(
        0, description="Steps of linear warm-up; step k (from 1) of W takes k / W of the rate."
    )
    final_lr_fraction: Annotated[Fraction, Trait.POPULATION] = Field(
        0.0, description="Rate at the end, as share of the peak."
    )
    # a run that it ended may go on, or end earlier: the steps are the same
    stop_when: Annotated[StopWhenConfig | None, Trait.RESUMABLE] = Field(
        None, description="Early stopping; default: none."
    )


class CheckpointConfig(Section):
    """Times and places of checkpoints."""

    every_steps: PositiveInt = Field(500, description="Steps between checkpoints.")
    keep_last: PositiveInt = Field(3, description="Newest checkpoints kept.")
    keep_best: bool = Field(True, description="Also keep the one with the best validation loss.")
    uri: Annotated[PathText | None, Meaning.PLACE, Trait.HOME] = Field(
        None, description="Directory or s3:// prefix; default: the run's own."
    )
    asynchronous: Annotated[bool, Meaning.HOW] = Field(
        True,
        description="Training waits for the copy to host memory only, not for writing.",
    )
    new_parameters: Annotated[tuple[str, ...], Meaning.HOW] = Field(
        (),
        description="Regular expressions of parameters that a checkpoint may lack on resume; they "
        "start from their initial values.",
    )
    give_up_after_steps: Annotated[PositiveInt | None, Meaning.HOW] = Field(
        1500, description="Steps trained on while no checkpoint can be written; null: no limit."
    )
    give_up_after_minutes: Annotated[PositiveFloat | None, Meaning.HOW] = Field(
        60.0, description="The same in minutes; the first limit reached ends the run."
    )


class ValidationConfig(Section):
    """Loss on held-out trajectories during training."""

    every_steps: Annotated[PositiveInt, Meaning.RECORD] = Field(
        500, description="Steps between validations."
    )
    num_samples: PositiveInt = Field(256, description="Samples drawn, the same ones every time.")
    split: str = Field("validation", description="Split of every dataset in the mixture.")


def _that_mlflow_registers(name: str) -> str:
    if name.strip() in ("", ".", "..") or set(name) & {"/", ":"}:
        raise ValueError("a name without / and :, not empty and no path such as ..")
    return name


def _that_no_record_has(tag: str) -> str:
    # what was sent already is read from such tags, and MLflow refuses a run with two names
    is_own = tag.startswith("pelagos.") and tag != "pelagos.sweep"  # which sweeps give their trials
    if is_own or tag == "mlflow.runName":
        raise ValueError(
            "tags other than mlflow.runName, which is the job's name, and pelagos.…, which the run's "
            "own records have"
        )
    return tag


RegisteredName = Annotated[str, AfterValidator(_that_mlflow_registers)]
TagName = Annotated[str, AfterValidator(_that_no_record_has)]


class TrackingConfig(Section):
    """Records in MLflow."""

    uri: PathText | None = Field(
        "sqlite:///mlflow.db", description="MLflow tracking store or server; null: no tracking."
    )
    experiment: Annotated[str, Field(min_length=1, max_length=500)] = Field(
        "pelagos", description="MLflow experiment."
    )
    log_every_steps: PositiveInt = Field(1, description="Steps between logged values.")
    max_points: PositiveInt = Field(
        10_000,
        description="Points of each metric in MLflow at most, evenly spaced by step; the run's "
        "metrics.jsonl keeps every step.",
    )
    register_as: RegisteredName | None = Field(
        None, description="Registered model name, without / and :; default: the run's."
    )
    tags: dict[TagName, str] = Field(
        {}, description="Further tags of the MLflow run; not mlflow.runName, nor pelagos.…"
    )


class HealthConfig(Section):
    """Responses to failures."""

    max_failures: NonNegativeInt = Field(3, description="Worker-group restarts before giving up.")
    collective_timeout_seconds: PositiveInt = Field(
        600, description="A collective that takes longer ends the worker group."
    )
    shrink_micro_batch: bool = Field(
        False,
        description="Submitted runs: after running out of memory, try once more at half the "
        "micro-batch (the same steps, other rounding).",
    )


class CallbackConfig(Section):
    """A callback: it is called during the training and sees its values."""

    name: str = Field(description="A plugin's name, or a class: my_lab.watch:GradientNorms.")
    config: dict[str, Any] = Field({}, description="Keywords of its constructor.")
    on_error: Literal["stop", "log"] = Field(
        "stop", description="Whether an exception in it stops the run, or is logged."
    )


class TrainingJob(Section):
    """What every kind of training has: data, model, objective, and how the steps are computed."""

    job: str
    name: Annotated[RunName, Meaning.PLACE, Trait.HOME] = Field(
        description="Name of the run; names its directory."
    )
    seed: Seed = Field(0, description="Seed of weights and sample order.")
    runs_dir: Annotated[PathText, Meaning.PLACE, Trait.HOME, Trait.INPUTS] = Field(
        "runs", description="Directory that holds one directory per run."
    )
    data: DataConfig
    model: Annotated[ModelConfig, Trait.NETWORK, Trait.INPUTS]
    objective: Annotated[ObjectiveConfig, Trait.NETWORK] = ObjectiveConfig()
    optimizer: Annotated[OptimizerConfig, Trait.UPDATES] = OptimizerConfig()
    schedule: Annotated[ScheduleConfig, Trait.UPDATES]
    parallel: Annotated[ParallelConfig, Meaning.HOW] = ParallelConfig()
    resources: Annotated[ResourcesConfig, Meaning.HOW] = ResourcesConfig()
    checkpoint: Annotated[CheckpointConfig, Meaning.RECORD] = CheckpointConfig()
    validation: ValidationConfig = ValidationConfig()
    tracking: Annotated[TrackingConfig, Meaning.RECORD] = TrackingConfig()
    health: Annotated[HealthConfig, Meaning.HOW] = HealthConfig()
    storage: Annotated[StorageConfig, Meaning.PLACE, Trait.INPUTS] = StorageConfig()
    # where the code of parts is; which parts, other keys say
    plugins: Annotated[Plugins, Meaning.PLACE] = PLUGINS
    callbacks: Annotated[tuple[CallbackConfig, ...], Meaning.RECORD] = Field(
        (), description="Callbacks of the training, called in this order (docs/extending.md)."
    )
    ema_decay: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        None, description="Decay of an exponential moving average of the weights; default: none."
    )

    @property
    def starts_from(self) -> SourceConfig | None:
        """The section that names the weights it starts from; None: it initialises its own."""
        return None

    @property
    def adapter(self) -> LowRankConfig | None:
        """The low-rank updates that are trained instead of the weights, if any."""
        return None


class PretrainJob(TrainingJob):
    """Train a model on a mixture of datasets: `pelagos pretrain JOB.yaml`."""

    job: Literal["pretrain"] = "pretrain"
