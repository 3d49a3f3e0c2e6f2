"""Starting points of a training: existing weights, and low-rank updates to them."""

from typing import Annotated

from pydantic import Field

from pelagos.platform.config.section import (
    WEIGHTS_DESCRIPTION,
    CheckpointName,
    PathText,
    PositiveFloat,
    PositiveInt,
    RegularExpression,
    RunOfFile,
    Section,
    WeightsChoice,
)


class SourceConfig(Section):
    """Source of the weights: either `run` or `uri`."""

    run: RunOfFile | None = Field(None, description="Name of a run, or RUN@WHICH.")
    runs_dir: PathText | None = Field(
        None,
        description="Directory of that run; default: `runs_dir`, then the clusters. A submitted job "
        "takes the run from its own cluster.",
    )
    cluster: str | None = Field(None, description="Cluster that the run was submitted to.")
    checkpoint: CheckpointName = Field(
        "last", description="Checkpoint of a run: last, best, or a step number."
    )
    weights: WeightsChoice = Field("auto", description=f"Weights of a run. {WEIGHTS_DESCRIPTION}")
    uri: PathText | None = Field(
        None,
        description="Exported or imported model directory, file of weights (safetensors, .pth), "
        "directory of checkpoints, models:/NAME/VERSION or models:/NAME@ALIAS of MLflow; local or "
        "s3://.",
    )
    prefix: str | None = Field(
        None, description="Prefix before the network's own names in a foreign file."
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
