"""The job file of `pelagos finetune`: a training that starts from other weights."""

from typing import Annotated, Literal

from pydantic import Field

from pelagos.platform.config.marks import Trait
from pelagos.platform.config.schema import (
    CheckpointName,
    ModelConfig,
    PathText,
    PositiveFloat,
    PositiveInt,
    RegularExpression,
    RunName,
    Section,
    TrainingJob,
)
from pelagos.platform.config.section import WEIGHTS_DESCRIPTION, WeightsChoice

REGISTRY_SCHEME = "models:/"
SOURCE_MODEL = "source"


class SourceConfig(Section):
    """Where the weights come from: one of `run` and `uri`."""

    run: RunName | None = Field(None, description="Name of a run.")
    runs_dir: PathText | None = Field(
        None, description="Directory of that run; default: `runs_dir`."
    )
    checkpoint: CheckpointName = Field(
        "last", description="Of a run: last, best, or a step number."
    )
    weights: WeightsChoice = Field(
        "auto", description=f"Of a run: which weights. {WEIGHTS_DESCRIPTION}"
    )
    uri: PathText | None = Field(
        None,
        description="Exported or imported model directory, file of weights (safetensors, .pth), "
        "directory of checkpoints, models:/NAME/VERSION or models:/NAME@ALIAS of MLflow; local or "
        "s3://.",
    )
    prefix: str | None = Field(
        None, description="What stands before the network's own names in a foreign file."
    )


class LowRankConfig(Section):
    """Low-rank updates of frozen weights (LoRA, arXiv:2106.09685)."""

    rank: PositiveInt = Field(8, description="Rank of each update.")
    alpha: PositiveFloat = Field(16.0, description="The update is scaled by alpha / rank.")
    targets: Annotated[tuple[RegularExpression, ...], Field(min_length=1)] = Field(
        description="Regular expressions of the parameters that are updated: matrices, kernels of "
        "convolutions, spectral weights."
    )
    also_train: tuple[RegularExpression, ...] = Field(
        (),
        description="Regular expressions of parameters that are trained themselves, e.g. heads; "
        "everything else is frozen. Re-initialised parameters are trained always.",
    )


class FinetuneJob(TrainingJob):
    """Train from given weights on a downstream task: `pelagos finetune JOB.yaml`."""

    job: Literal["finetune"] = "finetune"
    source: Annotated[SourceConfig, Trait.INPUTS] = Field(description="The weights to start from.")
    model: Annotated[ModelConfig, Trait.NETWORK, Trait.INPUTS] = Field(
        ModelConfig(name=SOURCE_MODEL),
        description="Which network; default: the source's, with its options.",
    )
    reinitialize: tuple[RegularExpression, ...] = Field(
        (),
        description="Regular expressions of parameters that start afresh although they fit, e.g. a "
        "head.",
    )
    lora: Annotated[LowRankConfig | None, Trait.NETWORK] = Field(
        None, description="Train low-rank updates instead of the weights; default: all weights."
    )
