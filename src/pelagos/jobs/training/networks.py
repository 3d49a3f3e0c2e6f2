"""The network and the objective of a training job, from its configuration."""

from typing import Any

from torch import nn

from pelagos.data_pipelines.streaming.mixtures.mixture import Mixture
from pelagos.jobs.training.objective_options import given_options, option_of
from pelagos.models.low_rank import add_low_rank
from pelagos.models.objectives import (
    OBJECTIVES,
    FieldObjective,
    Masked,
    Objective,
    Segmentation,
    create_objective,
    without_fields,
)
from pelagos.models.pretrained import Pretrained
from pelagos.models.registry import FAMILIES, create_model, model_info
from pelagos.platform.config.schema import TrainingJob

CALLS = {
    "frame": "one frame and a lead time",
    "window": "several frames",
    "image": "one image",
    "masked": "an image and its hidden patches",
}


def build_objective(job: TrainingJob) -> Objective:
    """Return the job's objective over its fields, before the data are known. Raises `ValueError`."""
    return create_objective(job.objective.name, job.data.fields, **options_over(job))


def options_over(
    job: TrainingJob, mixture: Mixture | None = None, objective: Objective | None = None
) -> dict[str, Any]:
    """Return the options of the job's objective: its own, and those that follow from the data.

    Fields that are given in the mixture are in none of the default field groups, which `objective`,
    the one without the data, has.
    """
    options = given_options(job)
    if mixture is not None and "field_groups" not in options:
        groups = _groups_without_given(objective, mixture)
        options |= {"field_groups": groups} if groups else {}
    if job.data.normalization == "none" and issubclass(
        OBJECTIVES[job.objective.name], FieldObjective
    ):
        options["smallest_label"] = 0.0  # of raw fields no size is known
    if mixture is not None and (masks := _masks(job, mixture)):
        options["masks"] = masks
    return options


def _masks(job: TrainingJob, mixture: Mixture) -> dict[str, str]:
    """Return the masks of the job's fields, as far as its objective leaves masked points out.

    Raises:
        ValueError: the objective cannot know where there are no values.
    """
    kind, masks = OBJECTIVES[job.objective.name], mixture.masks
    label = option_of(job, "label_field")
    if issubclass(kind, Segmentation) and label in masks:
        raise ValueError(
            f"{label} has points without a class ({masks[label]} is 0 there), and segmentation "
            "cannot learn from those: convert with `missing: fill` and a fill_value that is a "
            "class"
        )
    if not issubclass(kind, FieldObjective | Masked):
        return {}
    absent = sorted(set(masks.values()) - set(mixture.fields))
    if absent:
        raise ValueError(
            f"{', '.join(n for n in masks if masks[n] in absent)} has points without a value, and "
            f"{', '.join(absent)} marks them: add {', '.join(absent)} to data.fields, so that the "
            "model and its loss know them (or convert with `missing: fill`)"
        )
    return masks


def _groups_without_given(
    objective: Objective | None, mixture: Mixture
) -> dict[str, tuple[str, ...]]:
    """Return the default field groups if some fields must be excluded, else nothing."""
    usual: Any = getattr(objective, "field_groups", None)  # of objectives that forecast fields
    if not usual or not mixture.given_fields:
        return {}
    groups = {name: tuple(map(str, group)) for name, group in usual.items()}
    return without_fields(groups, mixture.given_fields)


def build_model(job: TrainingJob, objective: Objective) -> nn.Module:
    """Return the job's network, freshly drawn from torch's generator. Raises `ValueError`."""
    model = build_network(job, objective)
    if (lora := job.adapter) is not None:
        add_low_rank(model, lora.targets, lora.rank, lora.alpha, lora.also_train)
    return model


def build_network(job: TrainingJob, objective: Objective) -> Pretrained:
    """Return the registry's network for the job's fields, as it is. Raises `ValueError`."""
    call = model_info(job.model.name).call
    if call != objective.call:
        fitting = [name for name, kind in OBJECTIVES.items() if kind.call == call]
        raise ValueError(
            f"{job.model.name} takes {CALLS[call]}, but the objective {job.objective.name} gives "
            f"{CALLS[objective.call]}: use objective.name {' or '.join(fitting)}, or another model"
        )
    _check_no_channels(job)
    inputs, outputs = objective.model_channels
    return create_model(
        job.model.name, in_channels=inputs, out_channels=outputs, **job.model.config
    )


def _check_no_channels(job: TrainingJob) -> None:
    """Raise ValueError if the model's options set values that follow from the fields."""
    info = model_info(job.model.name)
    own = FAMILIES[info.family].channels if info.family in FAMILIES else ()
    given = [name for name in job.model.config if name in {"in_channels", "out_channels", *own}]
    if given:
        raise ValueError(
            f"config gives {', '.join(given)}, but the numbers of channels follow from data.fields "
            f"({len(job.data.fields)}: {', '.join(job.data.fields)}) and the objective: leave it out"
        )


def any_network(job: TrainingJob) -> nn.Module:
    """Return the job's network with as many channels as fields, whatever the objective."""
    _check_no_channels(job)
    channels = len(job.data.fields)
    return create_model(
        job.model.name, in_channels=channels, out_channels=channels, **job.model.config
    )
