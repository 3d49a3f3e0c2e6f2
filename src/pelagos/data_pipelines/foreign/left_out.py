"""Arrays of a Zarr group that are no part of the dataset, and the note that says so."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import zarr

from pelagos.data_pipelines.foreign.arrays import SourceArray
from pelagos.data_pipelines.foreign.axes import dimension_names
from pelagos.infra.suggestions import listed


def note_of_left_out(
    root: zarr.Group | zarr.Array[Any], arrays: Sequence[SourceArray], used: Sequence[str]
) -> list[str]:
    """A sentence that names the arrays of numbers that are not read; none if all are.

    Args:
        arrays: those that hold the data.
        used: names of vectors that are read as parameters.
    """
    if isinstance(root, zarr.Array):
        return []
    coordinates = {name for a in arrays for name in dimension_names(a.array) or ()}
    known = {a.path for a in arrays} | set(used) | coordinates
    members: Mapping[str, Any] = dict(root.arrays())
    others = [
        f"{name} ({', '.join(dimension_names(array) or map(str, array.shape))})"
        for name, array in sorted(members.items())
        if name not in known and array.dtype.kind in "fiub"
    ]
    if not others:
        return []
    return [
        f"left out, because they are not fields along time or trajectories: {listed(others)}; name "
        "them in a mapping or a description if they belong to the data"
    ]
