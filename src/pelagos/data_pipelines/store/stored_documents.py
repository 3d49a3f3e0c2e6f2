"""Permitted contents of `manifest.json` and the spec next to it, of any origin: types and bounds.

A dataset's documents are untrusted data. They are checked whole before one of their numbers sizes
a loop or an array, and before one of their names becomes a path.
"""

from __future__ import annotations

import json
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from pelagos.infra.json_text import first_problem

# Far above every existing dataset, and far below sizes that keep a computer busy for minutes.
Count = Annotated[int, Field(ge=1, le=10**9)]
Size = Annotated[int, Field(ge=1, le=10**7)]
Checksum = Annotated[int, Field(ge=0, lt=2**32)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Text = Annotated[str, Field(max_length=10_000)]
# A part of a key: one component of a path.
Name = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[^/\\\x00-\x1f\x7f]+$")]
Axes = Annotated[list[Size], Field(min_length=1, max_length=3)]


Statistics = dict[Text, dict[Text, dict[Text, Finite]]]
_STATISTICS: TypeAdapter[Any] = TypeAdapter(Statistics)


class _Document(BaseModel):
    """Keys of a later version are ignored."""

    model_config = ConfigDict(strict=True, extra="ignore")


class _Field(_Document):
    name: Text
    kind: Text
    unit: Text = "1"


class _Spec(_Document):
    name: Text
    equation: Text
    fields: Annotated[list[_Field], Field(min_length=1, max_length=100_000)]
    num_trajectories: Count
    num_frames: Size
    grid_shape: Axes
    frame_interval: Finite
    domain_extent: Annotated[list[Finite], Field(min_length=1, max_length=3)]
    boundary_conditions: dict[Text, Text]
    splits: dict[Text, tuple[int, int]]
    parameter_names: Annotated[list[Name], Field(max_length=10_000)]
    constant_fields: dict[Text, Finite] = {}
    generator: dict[str, Any] = {}
    published_normalization: dict[str, Any] = {}
    dtype: Text = "float32"
    compression: Text = "lz4"
    trajectories_per_shard: Count | None = None
    grid_location: Text = "cell"
    physics: dict[str, Any] = {}
    given_fields: list[Text] = []
    masks: dict[Text, Text] = {}
    chunk_shape: Axes | None = None


class _Shard(_Document):
    model_config = ConfigDict(strict=True, extra="forbid")

    key: Text
    size: Annotated[int, Field(ge=0, lt=2**63)]
    crc32c: Checksum
    index_crc32c: Checksum


class _Head(_Document):
    format: Text
    format_version: Annotated[int, Field(ge=0, le=10**6)]


class _Manifest(_Head):
    spec: _Spec
    shards: Annotated[list[_Shard], Field(max_length=10**7)]
    statistics: Statistics
    parameters_crc32c: dict[Text, Checksum]
    fingerprint: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _Begun(_Document):
    spec: _Spec


def read_head(content: bytes) -> tuple[str, int]:
    """Name and version of the format that a manifest says.

    Raises:
        ValueError: it is no manifest.
    """
    head = _checked(_Head, content)
    return str(head["format"]), int(head["format_version"])


def read_manifest(content: bytes) -> dict[str, Any]:
    """The values of a manifest of this version.

    Raises:
        ValueError: a key has another type or size than the format says.
    """
    return _checked(_Manifest, content)


def read_statistics(values: Any) -> dict[str, dict[str, dict[str, float]]]:
    """Statistics by split, field and name, kept in a file of their own.

    Raises:
        ValueError: they are of another kind, or not finite.
    """
    try:
        found: dict[str, dict[str, dict[str, float]]] = _STATISTICS.validate_python(
            values, strict=True
        )
    except ValidationError as error:
        raise ValueError(first_problem(error, "statistics")) from error
    return found


def read_begun(content: bytes) -> dict[str, Any]:
    """The values of `spec.json`, of a dataset that is being written.

    Raises:
        ValueError: as in `read_manifest`.
    """
    return _checked(_Begun, content)


def _checked(model: type[_Document], content: bytes) -> dict[str, Any]:
    try:
        model.model_validate_json(content)
        values: dict[str, Any] = json.loads(content)
    except ValidationError as error:
        raise ValueError(first_problem(error, "the file")) from error
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    return values
