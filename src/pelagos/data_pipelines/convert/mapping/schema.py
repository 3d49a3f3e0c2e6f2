"""The keys of a mapping file.

fields:
  - {file: "velocity.npy", axes: [n, t, y, x, c], names: [velocity-x, velocity-y]}
  - {file: "rest.h5", key: "p", axes: [n, t, y, x], names: [pressure]}
parameters:
  viscosity: {file: "rest.h5", key: "nu"}
  gamma: 1.4
frame_interval: 0.05
domain_extent: {x: 1.0, y: 1.0}
boundary_conditions: {x: periodic, y: periodic}
splits: {train: 0.8, validation: 0.1, test: 0.1}

A file may be a pattern, `runs/*.h5`, with `{split}` for the name of a split's folder:
`{split}/*.h5`. Each file then holds one trajectory, or several along the axis n.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator

from pelagos.data_pipelines.store.splits import canonical_splits, checked_split_name


class Section(BaseModel):
    """A part of a mapping file: no other keys, numbers are numbers and text is text."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ArrayMapping(Section):
    """One stored array and the fields it holds."""

    file: str | None = Field(None, description="next to the source; default: the source itself")
    key: str = Field("", description="the array in the file; empty where a file is one array")
    axes: list[Literal["n", "t", "c", "z", "y", "x", "1"]] = Field(
        description="one letter per axis: n trajectory, t time, c channel, z y x space, 1 none"
    )
    names: Annotated[list[str], Field(min_length=1)] = Field(
        description="of the fields, one per index of axis c"
    )
    units: list[str] | None = Field(None, description="one per name; default: the array's own")


class ParameterMapping(Section):
    """A stored vector with one number per trajectory."""

    file: str | None = Field(None, description="as in fields")
    key: str = Field("", description="the array in the file")


class Mapping(Section):
    """A mapping file."""

    name: str | None = Field(None, description="the dataset's name")
    equation: str = Field("not given", description="for people")
    fields: Annotated[list[ArrayMapping], Field(min_length=1)] = Field(
        description="the arrays, with axes and names"
    )
    parameters: dict[str, float | ParameterMapping] = Field(
        {}, description="numbers, or arrays with one number per trajectory"
    )
    frame_interval: float | ParameterMapping = Field(
        1.0, description="time between frames, or the array of their times"
    )
    num_frames: Annotated[int, Field(ge=1)] | Literal["shortest"] | None = Field(
        None, description="frames to keep of each trajectory, where files differ in length"
    )
    domain_extent: dict[Literal["x", "y", "z"], float | ParameterMapping] = Field(
        {}, description="lengths, or the arrays of the positions"
    )
    boundary_conditions: dict[str, str] = Field({}, description="per axis or side")
    constant_fields: dict[str, float] = Field({}, description="fields with one value everywhere")
    published_normalization: dict[str, Any] = Field({}, description="as in the dataset")
    grid_location: Literal["cell", "node"] = Field("cell", description="cell centres or nodes")
    missing: Literal["reject", "fill", "mask"] = Field(
        "reject", description="treatment of missing values"
    )
    fill_value: float | None = Field(
        None, description="replaces missing values; default: the field's mean"
    )
    splits: dict[Annotated[str, AfterValidator(checked_split_name)], float] | None = Field(
        None, description="shares or numbers of trajectories, in order"
    )

    @field_validator("splits")
    @classmethod
    def _by_their_own_names(cls, splits: dict[str, float] | None) -> dict[str, float] | None:
        return None if splits is None else canonical_splits(splits)
