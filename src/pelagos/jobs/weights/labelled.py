"""Fields with names: an xarray object as the model's array, and a forecast as such an object again.

A Dataset has one variable per field. A DataArray has an axis of fields (`channel`), or is one field.
Grid axes are called x, y and z, or are the last ones. The axis `time` holds the frames that a forecast
starts from, if the model needs several; otherwise each frame is a start of its own. All other axes are
samples.
"""

import difflib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from pelagos.jobs.weights.array_input import require_samples
from pelagos.jobs.weights.trained_on import TrainedOn, warn

CHANNEL_DIMS = ("channel", "field", "variable")
TIME, LEAD = "time", "lead_time"
AXES = ("z", "y", "x")
Labelled = xr.DataArray | xr.Dataset
FloatArray = npt.NDArray[Any]


@dataclass(frozen=True)
class Layout:
    """How labelled fields lie: axes of samples, of frames (None: one frame), of fields, of the grid."""

    samples: tuple[str, ...]
    frames: str | None
    channel: str | None
    grid: tuple[str, ...]

    @classmethod
    def of(cls, data: Labelled, trained: TrainedOn, input_frames: int) -> "Layout":
        """Return the layout of fields.

        Raises:
            ValueError: the axes of the grid or of the frames cannot be told.
        """
        dims = tuple(str(name) for name in data.dims)
        if LEAD in dims:
            raise ValueError(
                f"the data have an axis {LEAD!r}, which the forecast gets anew: select one of its "
                f"times, such as .isel({LEAD}=-1), or rename it"
            )
        channel = next((name for name in CHANNEL_DIMS if name in dims), None)
        if isinstance(data, xr.Dataset):
            channel = None
        frames = TIME if input_frames > 1 and TIME in dims else None
        if input_frames > 1 and frames is None:
            raise ValueError(
                f"the model forecasts from {input_frames} frames, but the axes {', '.join(dims)} have "
                f"no {TIME!r}: rename the axis of the frames to {TIME!r}"
            )
        rest = [name for name in dims if name not in (channel, frames)]
        grid = _grid_axes(rest, trained.num_dimensions)
        return cls(tuple(n for n in rest if n not in grid), frames, channel, grid)


def _grid_axes(names: Sequence[str], count: int | None) -> tuple[str, ...]:
    known = tuple(name for name in AXES if name in names)
    if known and (count is None or len(known) == count):
        return known
    others = [name for name in names if name != TIME]
    if count is None or len(others) < count:
        raise ValueError(
            f"cannot tell the grid's axes among {', '.join(names) or 'none'}: "
            + (f"the model needs {count}; " if count else "")
            + "name them x, y and z"
        )
    return tuple(others[-count:])


@dataclass(frozen=True)
class Unpacked:
    """Labelled fields as the model takes them.

    Attributes:
        values: `[*samples, (frame,) channel, *grid]` float32, in the model's order of fields; NaN where
            absent.
        absent: the fields that the data lack.
        layout: of the data.
        source: the data, for the labels of the answer.
        names: fields to return, in the data's order.
        dtype: of the answer.
    """

    values: FloatArray
    absent: tuple[str, ...]
    layout: Layout
    source: Labelled
    names: tuple[str, ...]
    dtype: np.dtype[Any]


def unpack(
    data: Labelled,
    fields: Sequence[str],
    absent: Collection[str],
    trained: TrainedOn,
    input_frames: int,
) -> Unpacked:
    """Return labelled fields as an array.

    Raises:
        ValueError: fields are absent without being named in `absent`, or axes cannot be told.
    """
    layout = Layout.of(data, trained, input_frames)
    found = _found(data, fields, layout)
    missing = [name for name in fields if name not in found and name not in absent]
    if missing:
        raise ValueError(_missing_text(missing, _names_in(data, layout), fields))
    wanted = [name for name in fields if name in found and name not in absent]
    if not wanted:
        raise ValueError(f"absent names all fields that the data have: {', '.join(found)}")
    _check_units(found, wanted, trained)
    order = (*layout.samples, *((layout.frames,) if layout.frames else ()), *layout.grid)
    arrays = dict(
        zip(wanted, xr.broadcast(*(found[name] for name in wanted)), strict=True)
    )  # a static field has no axis of time
    axis = len(order) - len(layout.grid)
    first = arrays[wanted[0]].transpose(*order)
    shape = first.shape
    require_samples(shape)
    values = np.full((*shape[:axis], len(fields), *shape[axis:]), np.nan, np.float32)
    for name, array in arrays.items():
        place = (slice(None),) * axis + (fields.index(name),)
        values[place] = array.transpose(*order).to_numpy()
    if layout.frames:
        _check_frames(data, layout.frames, shape[len(layout.samples)], input_frames, trained)
    kind = np.result_type(*(array.dtype for array in arrays.values()))
    dtype = kind if kind.kind == "f" else np.dtype(np.float32)
    names = tuple(name for name in found if name in wanted)
    return Unpacked(values, tuple(n for n in fields if n not in wanted), layout, data, names, dtype)


def _found(data: Labelled, fields: Sequence[str], layout: Layout) -> dict[str, xr.DataArray]:
    """Return the model's fields that the data have, in the data's order."""
    if isinstance(data, xr.Dataset):
        return {str(n): data[n] for n in data.data_vars if str(n) in fields}
    if layout.channel is None:
        name = str(data.name) if data.name is not None else None
        only = fields[0] if len(fields) == 1 else None
        chosen = name if name in fields else only
        return {} if chosen is None else {chosen: data}
    if layout.channel in data.coords:
        labels = [str(label) for label in data[layout.channel].to_numpy()]
    elif data.sizes[layout.channel] == len(fields):
        warn(
            f"the axis {layout.channel!r} names no fields, so they are taken in the model's order: "
            f"{', '.join(fields)}"
        )
        labels = list(fields)
    else:
        raise ValueError(
            f"the axis {layout.channel!r} has {data.sizes[layout.channel]} fields without names, "
            f"expected {len(fields)}: {', '.join(fields)}. Name them in a coordinate "
            f"{layout.channel!r}"
        )
    twice = sorted({label for label in labels if labels.count(label) > 1})
    if twice:
        raise ValueError(f"the coordinate {layout.channel!r} has {', '.join(twice)} twice")
    return {
        label: data.isel({layout.channel: number}, drop=True)
        for number, label in enumerate(labels)
        if label in fields
    }


def _names_in(data: Labelled, layout: Layout) -> list[str]:
    if isinstance(data, xr.Dataset):
        return [str(name) for name in data.data_vars]
    if layout.channel is not None:
        return [str(label) for label in data[layout.channel].to_numpy()]
    return [str(data.name)]


def _missing_text(missing: Sequence[str], found: Collection[str], fields: Sequence[str]) -> str:
    close = {n: difflib.get_close_matches(n, list(found), 1, 0.5) for n in missing}
    hints = [f"{near[0]} to {name}" for name, near in close.items() if near]
    return (
        f"the data lack {', '.join(missing)}: the model's fields are {', '.join(fields)}, the data have "
        f"{', '.join(found)}. "
        + (f"Rename {' and '.join(hints)}, or name" if hints else "Rename yours, or name")
        + f" the fields that the data lack: absent={list(missing)!r}"
    )


def _check_units(
    found: Mapping[str, xr.DataArray], wanted: Sequence[str], trained: TrainedOn
) -> None:
    for name in wanted:
        given, known = found[name].attrs.get("units"), trained.units.get(name, "1")
        if given is not None and known != "1" and str(given).strip() != known:
            warn(
                f"{name} is in {given}, but the model was trained on {known}. If that is another unit, "
                "convert it first"
            )


def _check_frames(
    data: Labelled, axis: str, count: int, input_frames: int, trained: TrainedOn
) -> None:
    if count != input_frames:
        raise ValueError(
            f"the axis {axis!r} has {count} frames, but the model forecasts from {input_frames}: select "
            f"them, such as .isel({axis}=slice(-{input_frames}, None))"
        )
    if axis not in data.coords or data[axis].dtype.kind not in "fiu" or trained.step is None:
        return
    apart = np.diff(data[axis].to_numpy().astype(np.float64))
    if not np.allclose(apart, trained.step, rtol=1e-3):
        warn(
            f"the frames are {apart.min():g} to {apart.max():g} apart in {axis!r}, but in training they "
            f"were {trained.step:g} apart: the model takes them for such frames"
        )


def pack(
    answer: FloatArray,
    given: Unpacked,
    fields: Sequence[str],
    leads: float | Sequence[float],
    trained: TrainedOn,
) -> Labelled:
    """Return a forecast with the labels of the data that it was made from.

    Args:
        answer: `[*samples, (lead,) channel, *grid]`; the axis of leads exists if `leads` is a sequence.
        given: the data.
        fields: the model's.
    """
    layout, source = given.layout, given.source
    has_leads = not isinstance(leads, float)
    before = (*layout.samples, *((LEAD,) if has_leads else ()))
    dims = (*before, *layout.grid)
    coords = _coordinates(source, layout, dims)
    attributes = {"long_name": "time since the last given frame", "units": trained.time_unit}
    coords[LEAD] = xr.Variable((LEAD,) if has_leads else (), np.asarray(leads, float), attributes)
    parts = {}
    for name in given.names:
        place = (slice(None),) * len(before) + (fields.index(name),)
        parts[name] = xr.Variable(
            dims, answer[place].astype(given.dtype), _attributes(source, name)
        )
    if isinstance(source, xr.Dataset):
        for name, part in parts.items():
            if trained.units.get(name, "1") != "1":
                part.attrs.setdefault("units", trained.units[name])
        return xr.Dataset(parts, coords, source.attrs)
    if layout.channel is None:
        (only,) = parts.values()
        return xr.DataArray(only, coords, name=source.name)
    values = np.stack([part.to_numpy() for part in parts.values()], axis=len(before))
    stacked = xr.Variable((*before, layout.channel, *layout.grid), values, dict(source.attrs))
    coords[layout.channel] = xr.Variable(layout.channel, list(given.names))
    return xr.DataArray(stacked, coords, name=source.name)


def _coordinates(source: Labelled, layout: Layout, dims: Sequence[str]) -> dict[str, Any]:
    """Return the coordinates that the answer keeps, the time of the last frame among them."""
    last = source.isel({layout.frames: -1}) if layout.frames else source
    return {
        str(name): coordinate.variable
        for name, coordinate in last.coords.items()
        if set(map(str, coordinate.dims)) <= set(dims) and str(name) != LEAD
    }


def _attributes(source: Labelled, name: str) -> dict[str, Any]:
    found = source[name].attrs if isinstance(source, xr.Dataset) else source.attrs
    return dict(found)
