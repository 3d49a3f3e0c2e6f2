"""The `DatasetSpec` of a foreign array: its metadata, its description, and assumptions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr

from pelagos.data_pipelines.conventions import TimeAxis, time_axis
from pelagos.data_pipelines.foreign.arrays import SourceArray
from pelagos.data_pipelines.foreign.axes import dimension_names
from pelagos.data_pipelines.foreign.description import DescribedField, Description
from pelagos.data_pipelines.foreign.parameters import require_finite_positions
from pelagos.data_pipelines.foreign.zarr_numbers import ZarrNumbers
from pelagos.data_pipelines.store.errors import DatasetError
from pelagos.data_pipelines.store.schema import DatasetSpec, Field
from pelagos.data_pipelines.store.splits import default_splits, split_ranges

# Steps of a coordinate that differ by no more than this count as equal.
_STEP_RELATIVE_TOLERANCE = 1e-3
# Points that lie no farther apart than this part of a step are the same, and the rounding of float32.
_PLACE_TOLERANCE = 0.02
_ROUNDING = 4 * float(np.finfo(np.float32).eps)


def build_spec(
    root: zarr.Group | zarr.Array[Any],
    arrays: Sequence[SourceArray],
    description: Description,
    uri: str,
) -> tuple[DatasetSpec, list[str]]:
    """The specification, and a sentence for each thing in it that was assumed.

    Raises:
        DatasetError: array and description do not fit together.
    """
    first = arrays[0]
    assumed: list[str] = []
    fields = _fields(root, arrays, description, uri, assumed)
    num_trajectories = first.size_of("trajectory")
    grid_shape = tuple(first.size_of(axis) for axis in first.spatial_axes)
    coordinates, time = _coordinates(root, first, uri)
    _require_one_place(root, arrays, description, uri)
    assumed += [note for source in arrays for note in source.numbers.conventions.notes]
    splits = description.splits
    if splits is None:
        splits = split_ranges(default_splits(num_trajectories))
        assumed.append(f"splits {splits}")
    interval = description.frame_interval
    if interval is None:
        interval = _step(coordinates.get("time"), uri, "frame_interval")
    if interval is None:
        interval = 1.0
        assumed.append("frame_interval 1")
    extent = description.domain_extent or _extent(coordinates, first, grid_shape, uri, assumed)
    at_zero = [c[0] == 0 for axis, c in coordinates.items() if axis in first.spatial_axes]
    location = description.grid_location or ("node" if at_zero and all(at_zero) else "cell")
    name = description.name or uri.rstrip("/").rpartition("/")[2].removesuffix(".zarr")
    try:
        spec = DatasetSpec(
            name=name,
            equation=description.equation,
            fields=fields,
            num_trajectories=num_trajectories,
            num_frames=first.size_of("time"),
            grid_shape=grid_shape,
            frame_interval=interval,
            domain_extent=tuple(extent),
            boundary_conditions=dict(description.boundary_conditions),
            splits={key: (int(a), int(b)) for key, (a, b) in splits.items()},
            parameter_names=parameter_names(root, first),
            constant_fields=dict(description.constant_fields),
            grid_location=location,
            generator=time.described if time is not None else {},
            compression="none",
            chunk_shape=grid_shape,
        )
    except ValueError as error:
        raise DatasetError(f"{uri} with its description: {error}") from error
    return spec, assumed


def parameter_names(root: zarr.Group | zarr.Array[Any], source: SourceArray) -> tuple[str, ...]:
    """Vectors of numbers next to the data whose one dimension is that of the trajectories."""
    names = dimension_names(source.array)
    if isinstance(root, zarr.Array) or names is None or "trajectory" not in source.roles:
        return ()
    along = names[source.roles.index("trajectory")]
    return tuple(
        sorted(
            path
            for path, array in root.arrays()
            if array.ndim == 1
            and path != along
            and array.dtype.kind in "fiub"
            and dimension_names(array) == (along,)
        )
    )


def _fields(
    root: zarr.Group | zarr.Array[Any],
    arrays: Sequence[SourceArray],
    description: Description,
    uri: str,
    assumed: list[str],
) -> tuple[Field, ...]:
    count = arrays[0].size_of("channel") if len(arrays) == 1 else len(arrays)
    described = description.fields
    if not described:
        names = _channel_names(root, arrays[0]) if len(arrays) == 1 else None
        if len(arrays) > 1 or (count == 1 and "channel" not in arrays[0].roles):
            names = [a.path.rpartition("/")[2] or "data" for a in arrays]
        if names is None or len(names) != count:
            names = [f"channel-{i}" for i in range(count)]
            assumed.append(f"fields {', '.join(names)}")
        units = [a.numbers.conventions.units or "1" for a in arrays]
        units = units if len(units) == count else units[:1] * count
        described = tuple(
            DescribedField(name, unit=unit) for name, unit in zip(names, units, strict=True)
        )
    if len(described) != count:
        raise DatasetError(
            f"{uri} has {count} channels, but description.fields names {len(described)}: "
            f"{[f.name for f in described]}"
        )
    return tuple(Field(f.name, f.kind or f.name, f.unit) for f in described)


def _channel_names(root: zarr.Group | zarr.Array[Any], source: SourceArray) -> list[str] | None:
    """Names in the attribute `channel_names`, or a coordinate of strings along the channels."""
    given = source.array.attrs.get("channel_names")
    if isinstance(given, list):
        return [str(name) for name in given]
    names = dimension_names(source.array)
    if isinstance(root, zarr.Array) or names is None or "channel" not in source.roles:
        return None
    coordinate = root.get(names[source.roles.index("channel")])
    if isinstance(coordinate, zarr.Array) and coordinate.dtype.kind in "UTO":
        return [str(name) for name in np.asarray(coordinate[...])]
    return None


def _coordinates(
    root: zarr.Group | zarr.Array[Any], source: SourceArray, uri: str
) -> tuple[dict[str, npt.NDArray[np.float64]], TimeAxis | None]:
    """Numbers along time and space, where arrays of the dimensions' names hold them."""
    names = dimension_names(source.array)
    if isinstance(root, zarr.Array) or names is None:
        return {}, None
    found: dict[str, npt.NDArray[np.float64]] = {}
    time = None
    for name, role in zip(names, source.roles, strict=True):
        array = root.get(name)
        if not isinstance(array, zarr.Array) or array.ndim != 1:
            continue
        where = f"{uri}, array {name!r}"
        if role == "time" and array.dtype.kind in "fiuMm":
            is_number = array.dtype.kind in "fiu"
            points = ZarrNumbers(array, where).whole() if is_number else np.asarray(array[...])
            require_finite_positions(points, where)
            time = time_axis(points, array.attrs.asdict(), where)
            found[role] = time.points
        elif role in source.spatial_axes and array.dtype.kind in "fiu":
            found[role] = np.asarray(ZarrNumbers(array, where).whole(), np.float64)
            require_finite_positions(found[role], where)
    return found, time


def _require_one_place(
    root: zarr.Group | zarr.Array[Any],
    arrays: Sequence[SourceArray],
    description: Description,
    uri: str,
) -> None:
    """Raise DatasetError where fields lie along dimensions of other names at other positions.

    A number in the description passes over them.
    """
    seen: dict[str, tuple[str, npt.NDArray[np.float64]]] = {}
    known: dict[tuple[str, ...], dict[str, npt.NDArray[np.float64]]] = {}
    for source in arrays:
        names = dimension_names(source.array) or ()
        if names not in known:
            points, time = _coordinates(root, source, uri)
            moments = None if time is None else time.moments
            known[names] = points if moments is None else {**points, "time": moments}
        for role, points_of_it in known[names].items():
            given = description.frame_interval if role == "time" else description.domain_extent
            if given is not None:
                continue
            name = names[source.roles.index(role)]
            first_name, first = seen.setdefault(role, (name, points_of_it))
            if first_name == name:
                continue
            allowed = _PLACE_TOLERANCE * float(np.ptp(first)) / max(len(first) - 1, 1)
            if role != "time":
                allowed = max(allowed, _ROUNDING * float(np.abs(first).max(initial=0.0)))
            is_as_long = points_of_it.shape == first.shape
            if not is_as_long or np.abs(points_of_it - first).max(initial=0.0) > allowed:
                key = "frame_interval" if role == "time" else "domain_extent"
                raise DatasetError(
                    f"{uri}: {name} has the points along {role} at {points_of_it[0]:.9g} to "
                    f"{points_of_it[-1]:.9g}, but {first_name} at {first[0]:.9g} to "
                    f"{first[-1]:.9g}. The fields of a dataset have one domain. Name those of one "
                    f"domain in description.fields, or give description.{key} to ignore the "
                    "positions"
                )


def _step(points: npt.NDArray[np.float64] | None, uri: str, key: str) -> float | None:
    """The distance between neighbours of a coordinate; None if there is none."""
    if points is None or len(points) < 2:
        return None
    steps = np.diff(points)
    mean = float(steps.mean())
    if mean == 0 or np.abs(steps - mean).max() > _STEP_RELATIVE_TOLERANCE * abs(mean):
        raise DatasetError(
            f"{uri}: a coordinate has steps from {steps.min():g} to {steps.max():g}, but Pelagos' "
            f"models need even steps. Give description.{key} to ignore it"
        )
    if mean < 0 and key == "frame_interval":
        raise DatasetError(
            f"{uri}: the times fall from {points[0]:g} to {points[-1]:g}, so the frames run "
            f"backwards. Write them in the order of time, or give description.{key} to keep their "
            "order"
        )
    return abs(mean)


def _extent(
    coordinates: dict[str, npt.NDArray[np.float64]],
    source: SourceArray,
    grid_shape: tuple[int, ...],
    uri: str,
    assumed: list[str],
) -> tuple[float, ...]:
    extent = []
    for axis, points in zip(source.spatial_axes, grid_shape, strict=True):
        step = _step(coordinates.get(axis), uri, "domain_extent")
        if step is None:
            assumed.append(f"extent 1 along {axis}")
        elif coordinates[axis][-1] < coordinates[axis][0]:
            assumed.append(
                f"{axis} runs against its coordinate, which falls from {coordinates[axis][0]:g} to "
                f"{coordinates[axis][-1]:g}; rows keep the array's order"
            )
        extent.append(1.0 if step is None else step * points)
    return tuple(extent)
