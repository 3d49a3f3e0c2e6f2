"""A user's description of a foreign array, for properties that the array does not state."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class DescribedField:
    """A field of the dataset.

    Args:
        name: the field's name, by which a model's channel finds it.
        kind: its physical kind; None is its name.
        unit: for people.
        array: name of the array that holds it, where every field has its own; None is `name`.
    """

    name: str
    kind: str | None = None
    unit: str = "1"
    array: str | None = None


@dataclass(frozen=True)
class Description:
    """Additions to an array's own metadata. A value of None is taken from there, or assumed.

    Args:
        array: path in the group of the one array that holds all fields.
        dimensions: names of that array's (or each field's array's) axes, in order, from
            `trajectory, time, channel, z, y, x`; those it has not got count as one long.
        fields: in the order of the channel axis, or one per array.
        splits: `{"train": (0, 80), …}`.
        statistics: a file in which the statistics are kept between runs.
        name, equation, frame_interval, domain_extent, boundary_conditions, constant_fields,
        grid_location: as in `DatasetSpec`.
    """

    name: str | None = None
    equation: str = "unknown"
    array: str | None = None
    dimensions: tuple[str, ...] | None = None
    fields: tuple[DescribedField, ...] = ()
    frame_interval: float | None = None
    domain_extent: tuple[float, ...] | None = None
    boundary_conditions: Mapping[str, str] = field(default_factory=dict)
    splits: Mapping[str, tuple[int, int]] | None = None
    constant_fields: Mapping[str, float] = field(default_factory=dict)
    grid_location: Literal["cell", "node"] | None = None
    statistics: str | None = None
