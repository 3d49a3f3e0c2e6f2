"""The job's section of what the network learns."""

from typing import Annotated, Any, Literal

from pydantic import Field

from pelagos.platform.config.marks import Trait
from pelagos.platform.config.section import (
    Fraction,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    Section,
)


class ObjectiveConfig(Section):
    """What the network learns."""

    name: str = Field("all2all", description="Name of the objective.")
    config: dict[str, Any] = Field({}, description="Options of a plugin's objective.")
    max_lead_steps: PositiveInt | None = Field(
        None, description="Longest lead, counted in used frames; default: the whole trajectory."
    )
    frame_stride: PositiveInt = Field(1, description="Use every n-th stored frame.")
    num_input_frames: PositiveInt | None = Field(
        None, description="Frames that an autoregressive model forecasts from; default: 10."
    )
    time_scale: PositiveFloat = Field(
        1.0, description="The model's time input is lead time divided by this physical time."
    )
    field_groups: dict[str, tuple[str, ...]] | None = Field(
        None,
        description="Group name: fields whose errors share a denominator; fields in none are given, "
        "not forecast. Default: one group per field, the components of a vector together, without "
        "fields that the data hold constant or mark as given.",
    )
    loss_scope: Literal["global", "micro_batch"] = Field(
        "global", description="Over what a ratio loss is formed (micro_batch: the papers')."
    )
    loss: str | None = Field(
        None,
        description="ratio, relative_l1, relative_l2, nrmse, vrmse or spectral; default: the "
        "objective's own (docs/models.md).",
    )
    field_weights: Annotated[dict[str, NonNegativeFloat] | None, Trait.POPULATION] = Field(
        None, description="Field group: its weight in the mean over groups; default: 1 each."
    )
    normalize_samples: bool | None = Field(
        None,
        description="Each sample and field enters the network with mean 0 and deviation 1, and its "
        "answer is scaled back (RevIN); default: false.",
    )
    noise_scale: Annotated[NonNegativeFloat | None, Trait.POPULATION] = Field(
        None,
        description="autoregressive: noise on the inputs in training, as a share of each field's "
        "norm over the window (DPOT: 5e-4, size L 5e-5).",
    )
    num_unrolled_steps: PositiveInt | None = Field(
        None, description="autoregressive: steps on the model's own frames; default: 1."
    )
    backpropagate: Literal["all", "last"] | None = Field(
        None, description="Through all unrolled steps, or the last alone (push-forward)."
    )
    mask_ratio: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        None, description="masked: share of the patches that are hidden; default: 0.75."
    )
    patch_size: PositiveInt | tuple[PositiveInt, ...] | None = Field(
        None, description="masked: the model's patch size; default: 16."
    )
    normalize_patches: bool | None = Field(
        None, description="masked: targets with mean 0 and variance 1 per patch; default: true."
    )
    num_classes: PositiveInt | None = Field(
        None, description="classification, segmentation: number of classes; default: 2."
    )
    label_smoothing: Fraction | None = Field(None, description="classification: default: 0.")
    label_field: str | None = Field(
        None, description="segmentation: the field that holds the classes; default: label."
    )
