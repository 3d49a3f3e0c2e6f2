"""Which axis of an array is which: by its dimension names, or by position where it has none."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import zarr
from zarr.core.metadata import ArrayV3Metadata

from pelagos.data_pipelines.store.errors import DatasetError
from pelagos.data_pipelines.store.schema import AXIS_NAMES

SPATIAL = ("z", "y", "x")
ROLES = ("trajectory", "time", "channel", *SPATIAL)

# Lower-case names in use for each axis.
_NAMES = {
    "trajectory": "trajectory traj sample samples simulation sim run member ensemble realization "
    "batch n num_trajectories n_trajectories",
    "time": "time t step steps frame frames timestep time_step",
    "channel": "channel channels c field fields variable variables var component feature",
    "z": "z depth level lev",
    "y": "y lat latitude height h nj j rows",
    "x": "x lon longitude width w ni i columns",
}
_ROLE_OF = {name: role for role, names in _NAMES.items() for name in names.split()}


def role_of(name: str) -> str:
    """The role that a dimension's name implies; empty if it is unknown.

    >>> role_of("lat")
    'y'
    """
    return _ROLE_OF.get(name.lower(), "")


def dimension_names(array: zarr.Array[Any]) -> tuple[str, ...] | None:
    """The names that an array gives its axes: Zarr v3's own, or xarray's attribute in v2."""
    metadata = array.metadata
    names: Sequence[str | None] | None
    if isinstance(metadata, ArrayV3Metadata):
        names = metadata.dimension_names
    else:
        names = array.attrs.get("_ARRAY_DIMENSIONS")  # type: ignore[assignment]
    if names is None or len(names) != array.ndim or not all(names):
        return None
    found = tuple(str(name) for name in names)
    is_numbered = all(name.startswith("dim_") for name in found)  # xarray's, of unnamed axes
    return None if is_numbered else found


def axis_roles(
    array: zarr.Array[Any], has_channels: bool, given: tuple[str, ...] | None, where: str
) -> tuple[str, ...]:
    """The role of each axis of an array: `("trajectory", "time", "channel", "y", "x")`.

    Args:
        has_channels: whether an array without names has a channel axis.
        given: names that the description gives, which win.
        where: names the array in messages.

    Raises:
        DatasetError: the axes cannot be determined.
    """
    names = given or dimension_names(array)
    wanted = f"name its axes, in order, in description.dimensions: {', '.join(ROLES)}"
    if names is None:
        leading = ROLES[: 3 if has_channels else 2]
        num_spatial = array.ndim - len(leading)
        if num_spatial not in AXIS_NAMES:
            raise DatasetError(
                f"{where} has shape {array.shape} and no dimension names; expected "
                f"({', '.join(leading)}, y, x), with one to three axes of space. If the array has "
                f"another order, {wanted}"
            )
        return (*leading, *AXIS_NAMES[num_spatial])
    if len(names) != array.ndim:
        raise DatasetError(
            f"{where} has {array.ndim} axes, shape {array.shape}, but description.dimensions names "
            f"{len(names)}: {list(names)}"
        )
    roles = tuple(role_of(name) for name in names)
    unknown = [name for name, role in zip(names, roles, strict=True) if not role]
    if unknown or len(set(roles)) < len(roles):
        what = f"unknown: {json.dumps(unknown)}" if unknown else "some have the same meaning"
        raise DatasetError(f"{where} has the axes {list(names)} ({what}): {wanted}")
    spatial = {role for role in roles if role in SPATIAL}
    if spatial not in [set(axes) for axes in AXIS_NAMES.values()]:
        raise DatasetError(
            f"{where} has the axes {list(names)}; expected x, or y and x, or z, y and x: {wanted}"
        )
    return roles
