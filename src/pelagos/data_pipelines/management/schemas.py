"""Whether datasets describe the same kind of data."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pelagos.data_pipelines.store.schema import DatasetSpec

_SAME = (
    "num_frames",
    "grid_shape",
    "frame_interval",
    "domain_extent",
    "boundary_conditions",
    "parameter_names",
    "constant_fields",
    "grid_location",
    "masks",
)

# Notes of a conversion in `generator` without which the numbers mean something else: which class a
# label is, how volumes lie, what the unit of positions and the depth of pictures are. Next to each, for
# sources of one format, what datasets have that do not record it.
_MEANING: dict[str, tuple[str, Any]] = {
    "classes": ("images", None),
    "depth": ("images", "8 bits"),
    "orientation": ("nifti", "as stored in each file"),
    "unit": ("nifti", None),
    "units": ("ome-zarr", None),
}


def recorded_meaning(spec: DatasetSpec) -> dict[str, Any]:
    """Entries of `generator` that a dataset joined from others must keep."""
    made_of = spec.generator.get("converted_from")
    found = {
        key: spec.generator.get(key, usual if made_of == format_name else None)
        for key, (format_name, usual) in _MEANING.items()
    }
    return {key: value for key, value in found.items() if value is not None}


def require_equal_schemas(first: DatasetSpec, others: Iterable[DatasetSpec]) -> None:
    """Raises ValueError, listing every difference, unless the trajectories can share one dataset."""
    problems = []
    for other in others:
        pairs = [(key, getattr(first, key), getattr(other, key)) for key in _SAME]
        pairs.append(("fields", _fields(first), _fields(other)))
        # who records none is taken at the user's word
        if first.physics and other.physics:
            pairs.append(("physics", first.physics, other.physics))
        if first.given_fields and other.given_fields:
            pairs.append(("given_fields", first.given_fields, other.given_fields))
        meaning = recorded_meaning(first), recorded_meaning(other)
        pairs += [
            (f"generator.{key}", mine, meaning[1][key])
            for key, mine in meaning[0].items()
            if key in meaning[1]
        ]
        problems += [
            f"{other.name}: {key} is {theirs!r}, expected {mine!r} as in {first.name}"
            for key, mine, theirs in pairs
            if mine != theirs
        ]
    if problems:
        raise ValueError("the datasets differ:\n  " + "\n  ".join(problems))


def _fields(spec: DatasetSpec) -> list[tuple[str, str]]:
    return [(field.name, field.unit) for field in spec.fields]
