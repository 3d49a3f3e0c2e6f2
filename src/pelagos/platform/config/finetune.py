"""The job file of `pelagos finetune`: a training that starts from other weights."""

from typing import Annotated, Literal

from pydantic import Field

from pelagos.platform.config.marks import Trait
from pelagos.platform.config.schema import (
    ModelConfig,
    RegularExpression,
    TrainingJob,
)
from pelagos.platform.config.starting import LowRankConfig as LowRankConfig
from pelagos.platform.config.starting import SourceConfig as SourceConfig

REGISTRY_SCHEME = "models:/"
SOURCE_MODEL = "source"


class FinetuneJob(TrainingJob):
    """Train from given weights on a downstream task: `pelagos finetune JOB.yaml`."""

    job: Literal["finetune"] = "finetune"
    source: Annotated[SourceConfig, Trait.INPUTS] = Field(description="The weights to start from.")
    model: Annotated[ModelConfig, Trait.NETWORK, Trait.INPUTS] = Field(
        ModelConfig(name=SOURCE_MODEL),
        description="The network; default: the source's, with its options.",
    )
    reinitialize: tuple[RegularExpression, ...] = Field(
        (),
        description="Regular expressions of parameters that are re-initialised although they fit, "
        "e.g. a head.",
    )
    lora: Annotated[LowRankConfig | None, Trait.NETWORK] = Field(
        None, description="Train low-rank updates instead of the weights; default: all weights."
    )

    @property
    def starts_from(self) -> SourceConfig:
        return self.source

    @property
    def adapter(self) -> LowRankConfig | None:
        return self.lora
