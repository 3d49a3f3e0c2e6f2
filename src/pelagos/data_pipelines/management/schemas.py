"""Whether datasets describe the same kind of data."""

from __future__ import annotations

from collections.abc import Iterable

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


def require_equal_schemas(first: DatasetSpec, others: Iterable[DatasetSpec]) -> None:
    """Raises ValueError, listing every difference, unless trajectories may stand in one dataset."""
    problems = []
    for other in others:
        pairs = [(key, getattr(first, key), getattr(other, key)) for key in _SAME]
        pairs.append(("fields", _fields(first), _fields(other)))
        # who records none is taken at the user's word
        if first.physics and other.physics:
            pairs.append(("physics", first.physics, other.physics))
        if first.given_fields and other.given_fields:
            pairs.append(("given_fields", first.given_fields, other.given_fields))
        problems += [
            f"{other.name}: {key} is {theirs!r}, required is {mine!r} as in {first.name}"
            for key, mine, theirs in pairs
            if mine != theirs
        ]
    if problems:
        raise ValueError("the datasets differ:\n  " + "\n  ".join(problems))


def _fields(spec: DatasetSpec) -> list[tuple[str, str]]:
    return [(field.name, field.unit) for field in spec.fields]
