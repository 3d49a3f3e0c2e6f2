"""Training objectives: the frames of a sample, and the error of a prediction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import Field, fields
from typing import Any

from pelagos.models.objectives.base import (
    FROM_THE_DATA,
    WITHIN_A_RUN,
    FieldObjective,
    FrameWindows,
    LossScope,
    Objective,
    WindowBatch,
    default_field_groups,
    ratio_loss,
    without_fields,
)
from pelagos.models.objectives.field_masks import NO_MASKS, FieldMasks
from pelagos.models.objectives.frame_pairs import AllToAll, NextStep, Steady
from pelagos.models.objectives.frame_windows import Autoregressive
from pelagos.models.objectives.images import Classification, Masked, Segmentation
from pelagos.registry import Registry

__all__ = [
    "NO_MASKS",
    "OBJECTIVES",
    "WITHIN_A_RUN",
    "AllToAll",
    "Autoregressive",
    "Classification",
    "FieldMasks",
    "FieldObjective",
    "FrameWindows",
    "LossScope",
    "Masked",
    "NextStep",
    "Objective",
    "Segmentation",
    "Steady",
    "WindowBatch",
    "create_objective",
    "default_field_groups",
    "options_of",
    "ratio_loss",
    "without_fields",
]

OBJECTIVES: Registry[type[Any]] = Registry(
    "objective",
    {
        "all2all": AllToAll,
        "next_step": NextStep,
        "steady": Steady,
        "autoregressive": Autoregressive,
        "masked": Masked,
        "classification": Classification,
        "segmentation": Segmentation,
    },
)


def options_of(name: str) -> dict[str, Field[Any]]:
    """The options that a job may give the named objective.

    The fields of its dataclass, except the model's `fields` and those that follow from the data.

    Raises ValueError for an unknown name (with the closest).
    """
    own = [f for f in fields(OBJECTIVES[name]) if f.init and f.name != "fields"]
    return {f.name: f for f in own if not f.metadata.get(FROM_THE_DATA)}


def create_objective(name: str, field_names: Sequence[str], **options: Any) -> Objective:
    """The named objective over the model's `field_names`, with its options checked.

    Raises ValueError for an unknown name (with the closest) or option (with all that exist).
    """
    known = [f.name for f in fields(OBJECTIVES[name]) if f.init and f.name != "fields"]
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise ValueError(
            f"objective {name!r} has no option {', '.join(unknown)}; it has {', '.join(known)}"
        )
    objective: Objective = OBJECTIVES[name](fields=tuple(field_names), **options)
    return objective
