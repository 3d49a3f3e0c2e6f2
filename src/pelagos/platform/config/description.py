"""The description of a Zarr array that Pelagos did not write, in a job file or a file of its own."""

from typing import Literal

from pydantic import Field

from pelagos.platform.config.section import NonNegativeInt, PathText, PositiveFloat, Section


class DescribedFieldConfig(Section):
    """One field of a described array."""

    name: str = Field(description="Name of the field, by which data.fields finds it.")
    kind: str | None = Field(None, description="Its physical kind; default: its name.")
    unit: str = Field("1", description="Its unit.")
    array: str | None = Field(
        None, description="The array that holds it, where each field has its own; default: name."
    )


class DescriptionConfig(Section):
    """Information that a Zarr array lacks; the log lists assumptions about the rest."""

    name: str | None = Field(None, description="Name of the dataset; default: from its uri.")
    equation: str = Field("unknown", description="The equation solved, for people.")
    array: str | None = Field(
        None, description="The array of a group that holds all fields; default: `data`."
    )
    dimensions: tuple[str, ...] | None = Field(
        None,
        description="Its axes in order, of trajectory, time, channel, z, y, x; default: from its "
        "dimension names, else in that order.",
    )
    fields: tuple[DescribedFieldConfig, ...] = Field(
        (), description="Its fields: in the order of the channel axis, or one per array."
    )
    frame_interval: PositiveFloat | None = Field(
        None, description="Time between frames; default: from the coordinate `time`, else 1."
    )
    domain_extent: tuple[PositiveFloat, ...] | None = Field(
        None, description="Length per axis, [y, x]; default: from the coordinates, else 1."
    )
    boundary_conditions: dict[str, str] = Field(
        {}, description="Per axis or side, e.g. {x: periodic, y-low: wall}."
    )
    splits: dict[str, tuple[NonNegativeInt, NonNegativeInt]] | None = Field(
        None, description="Split: [first trajectory, one past the last]; default: 80/10/10 %."
    )
    constant_fields: dict[str, float] = Field(
        {}, description="Fields that are not stored and have one value everywhere."
    )
    grid_location: Literal["cell", "node"] | None = Field(
        None,
        description="Where the points are; default: node if coordinates begin at 0, else cell.",
    )
    statistics: PathText | None = Field(
        None,
        description="File that keeps the statistics between runs; default: computed at every start.",
    )
