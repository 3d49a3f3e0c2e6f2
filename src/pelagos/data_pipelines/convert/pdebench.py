"""PDEBench: HDF5 with a group per sample, or with one array per field.

Facts of the format: `pdebench/models/fno/utils.py` and `pdebench/data_gen/` of
https://github.com/pdebench/PDEBench (arXiv 2210.07182).

- one group per sample (shallow water, diffusion-reaction, diffusion-sorption): `0000/data`
  `[t, x(, y), c]`, `0000/grid/{x,y,t}`;
- compressible Navier-Stokes: `density`, `pressure`, `Vx`, `Vy`, `Vz` `[n, t, x(, y, z)]`;
- scalar equations: `tensor` `[n, t, x]`; Darcy flow: `nu` `[n, x, y]` and `tensor` `[n, 1, x, y]`,
  which become two frames: the input with a solution of 0, and the input with the solution;
- incompressible Navier-Stokes: `velocity` `[n, t, x, y, 2]`, `particles` `[n, t, x, y, 1]`,
  `force` `[n, x, y, 2]`, `t`.

The published loader tests on the first tenth; here the last tenth of the rest validates.
`t-coordinate` holds the ends of time steps, one more than frames, in some files.
"""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pelagos.data_pipelines.convert.agreement import (
    Agreement,
    common_length,
    require_equal_times,
)
from pelagos.data_pipelines.convert.formats import (
    Format,
    child,
    extent,
    files_of,
    hdf5_looks,
    interval,
    looking_into,
    named,
    natural,
    stored_bytes,
)
from pelagos.data_pipelines.convert.options import ConvertOptions
from pelagos.data_pipelines.convert.source import Part, Source, SourceError, StoredArray
from pelagos.data_pipelines.store import Field
from pelagos.data_pipelines.store.schema import AXIS_NAMES

GAS_FIELDS = {
    "density": "density",
    "Vx": "velocity-x",
    "Vy": "velocity-y",
    "Vz": "velocity-z",
    "pressure": "pressure",
}
_SPACE = "xyz"  # the order of the axes in every file
# Fields of the groups' `data`, which have no names in the files: by dimensions and channels.
SAMPLE_FIELDS = {
    (2, 1): ("height",),
    (2, 2): ("activator", "inhibitor"),
    (1, 1): ("concentration",),
}


@dataclass(frozen=True)
class _Look:
    """The properties of one file.

    `lengths`: places of the file with their numbers of frames; `times`: of the frames `[t]`, None
    where it has none.
    """

    source: Source
    lengths: tuple[tuple[str, int], ...]
    times: npt.NDArray[np.float64] | None
    positions: dict[str, npt.NDArray[np.float64]]


def _matches(path: str, options: ConvertOptions) -> bool:
    files = files_of(path)
    return bool(files) and hdf5_looks(files[0], lambda f: _layout(f) is not None)


def _layout(opened: Any) -> str | None:
    keys = list(opened)
    if not keys:
        return None
    first = min(keys, key=natural)
    if first.isdecimal() and "data" in opened[first] and "grid" in opened[first]:
        return "samples"
    if "density" in opened and "x-coordinate" in opened:
        return "gas"
    if "tensor" in opened:
        return "darcy" if "nu" in opened else "scalar"
    if {"velocity", "t"} <= set(keys):
        return "incompressible"
    return None


def _read(path: str, options: ConvertOptions) -> Source:
    files = files_of(path)
    if not files:
        raise SourceError(f"{path} holds no HDF5 file")
    looks = [_file(file) for file in files]
    lengths = [length for look in looks for length in look.lengths]
    num_frames, notes = common_length(lengths, options.num_frames)
    notes += _agreement(files, looks, num_frames)
    first = looks[0].source
    parts = tuple(part for look in looks for part in look.source.splits["all"])
    names = list(dict.fromkeys(name for part in parts for name in part.parameters))
    common = [name for name in names if all(name in part.parameters for part in parts)]
    if missing := [name for name in names if name not in common]:
        notes += (f"left out, because some files lack them: parameters {', '.join(missing)}",)
    parts = tuple(
        Part(p.arrays, p.count, parameters={n: p.parameters[n] for n in common}) for p in parts
    )
    times = looks[0].times
    frame_interval, uneven = (
        (1.0, "the file holds no times, so the frame interval is set to 1")
        if times is None
        else interval(times[:num_frames], "times of the frames")
    )
    physics = first.physics
    if any(look.source.physics != physics for look in looks):
        physics = {}
        notes += (
            "the files' names give different coefficients of the equation, so none is recorded",
        )
    all_notes = [note for look in looks for note in look.source.notes]
    total = sum(part.count for part in parts)
    tenth = total // 10
    splits = {"test": tenth, "train": total - 2 * tenth, "validation": tenth} if tenth else None
    return dataclasses.replace(
        first,
        name=named(path),
        equation=f"PDEBench {named(path)}",
        splits={"all": parts},
        num_frames=num_frames,
        frame_interval=frame_interval,
        physics=physics,
        notes=tuple(dict.fromkeys([*all_notes, *([uneven] if uneven else []), *notes])),
        published_splits=splits,
        details={"num_files": len(files), "source_bytes": stored_bytes(files)},
    )


def _agreement(files: list[str], looks: list[_Look], num_frames: int) -> tuple[str, ...]:
    """Notes on permitted differences between files.

    Raises:
        SourceError: something differs of which a dataset has one.
    """
    found = Agreement()
    for file, look in zip(files, looks, strict=True):
        source = look.source
        found.require("the list of fields", file, source.field_names)
        found.require("the grid", file, source.grid_shape)
        found.require("the presence of times", file, look.times is not None)
        if look.times is not None:
            times = look.times[:num_frames]
            require_equal_times(found, file, times)
            found.remark(
                "the time of the first frame", file, float(times[0]), "frames are counted from 0"
            )
        found.require("the list of axes with positions", file, tuple(look.positions))
        for letter, points in look.positions.items():
            found.require(f"the position along {letter}", file, points)
        found.require("the boundary condition", file, source.boundary_conditions)
    return tuple(found.notes)


def _file(file: str) -> _Look:
    with looking_into(file) as opened:
        layout = _layout(opened)
        if layout is None:
            raise SourceError(
                f"{file}: expected groups 0000, 0001, … with data and grid, or the arrays density, "
                "Vx, …, or tensor, or velocity and t; the file has "
                f"{', '.join(list(opened)[:8]) or 'none'}"
            )
        if layout == "samples":
            return _samples(file, opened)
        return _arrays(file, opened, layout)


def _samples(file: str, opened: Any) -> _Look:
    groups = sorted((key for key in opened if key.isdecimal()), key=natural)
    agreement = Agreement()
    lengths: list[tuple[str, int]] = []
    times: list[Any] = []
    positions: dict[str, npt.NDArray[np.float64]] = {}
    notes: list[str] = []
    for group in groups:
        place = f"{file}: {group}"
        sample = child(opened, group, "a sample")
        data = child(sample, "data", "the samples' values [t, x, …, c]")
        grid = child(sample, "grid", "positions") if "grid" in sample else {}
        agreement.require("the shape of data except its frames", place, tuple(data.shape[1:]))
        lengths.append((place, int(data.shape[0])))
        space = _SPACE[: len(data.shape) - 2]
        found = _positions(grid, dict(zip(space, space, strict=True)), data.shape[1:-1], place)
        for letter in space:
            agreement.require(f"the position along {letter}", place, found.get(letter))
        positions = positions or found
        times.append(_times(grid["t"], place, data.shape[0], notes) if "t" in grid else None)
    shortest = min(length for _, length in lengths)
    for (place, _), own in zip(lengths, times, strict=True):
        agreement.require("the presence of times", place, own is not None)
        if own is not None:
            require_equal_times(agreement, place, own[:shortest])
    data = child(child(opened, groups[0], "a sample"), "data", "values")
    dims = len(data.shape) - 2
    channels = int(data.shape[-1])
    names = SAMPLE_FIELDS.get((dims, channels), tuple(f"channel-{i}" for i in range(channels)))
    axes = "t" + _SPACE[:dims] + "c"
    parts = tuple(
        Part((StoredArray("hdf5", file, f"{group}/data", axes, 0, channels),)) for group in groups
    )
    source = _source(file, names, parts, axes, data.shape, positions, [*notes, *agreement.notes])
    return _Look(source, tuple(lengths), times[0], positions)


def _positions(
    group: Any, keys: dict[str, str], sizes: tuple[int, ...], place: str
) -> dict[str, npt.NDArray[np.float64]]:
    """Positions along the axes that a file gives; of the edges of cells, their centres.

    Args:
        keys: the array of each axis, in order.
        sizes: points along each axis.

    Raises:
        SourceError: too few or too many exist.
    """
    found = {}
    for (letter, key), size in zip(keys.items(), sizes, strict=True):
        if key not in group:
            continue
        points = np.asarray(child(group, key, "positions"), np.float64).reshape(-1)
        if len(points) == size + 1:
            points = (points[1:] + points[:-1]) / 2
        if len(points) != size:
            raise SourceError(
                f"{place}: {key} holds {len(points)} positions for {size} points along {letter}"
            )
        found[letter] = points
    return found


def _times(stored: Any, place: str, num_frames: int, notes: list[str]) -> npt.NDArray[np.float64]:
    """Times of the frames `[t]`, which some files give for each trajectory.

    Raises:
        SourceError: fewer times than frames exist, or trajectories have other times between frames.
    """
    rows = np.asarray(stored, np.float64)
    rows = rows.reshape(-1, rows.shape[-1])[:, :num_frames]
    if rows.shape[1] < num_frames:
        raise SourceError(f"{place}: {rows.shape[1]} times for {num_frames} frames")
    agreement = Agreement()
    for row, times in enumerate(rows):
        require_equal_times(agreement, f"{place}: t[{row}]", times)
    notes += agreement.notes
    first: npt.NDArray[np.float64] = rows[0]
    return first


def _arrays(file: str, opened: Any, layout: str) -> _Look:
    parameters = _parameters(opened)
    choices: dict[str, list[tuple[str, tuple[str, ...], int]]] = {
        "gas": [(key, (name,), 0) for key, name in GAS_FIELDS.items() if key in opened],
        "scalar": [("tensor", ("u",), 0)],
        "darcy": [("nu", ("permeability",), 0), ("tensor", ("solution",), 1)],
        "incompressible": [
            ("velocity", ("velocity-x", "velocity-y"), 0),
            ("particles", ("tracer",), 0),
            ("force", ("force-x", "force-y"), 0),
        ],
    }
    variables = choices[layout]
    main = child(opened, variables[-1 if layout == "darcy" else 0][0], "an array of solutions")
    has_channels = layout == "incompressible"
    dims = len(main.shape) - 2 - has_channels
    if dims not in AXIS_NAMES:
        raise SourceError(
            f"{file}: {main.name.lstrip('/')} has shape {main.shape}, expected [n, t, x], [n, t, x, "
            f"y] or [n, t, x, y, z]{' and channels' if has_channels else ''}"
        )
    space = _SPACE[:dims]
    arrays: list[StoredArray] = []
    names: list[str] = []
    for key, fields, start_frame in variables:
        if key not in opened:
            continue
        axes = "n" + "t" * (key not in ("nu", "force")) + space + "c" * has_channels
        if layout == "darcy":
            axes = axes.replace("t", "1")
        # whatever both have must be as long in both: more would be cut without a word
        sizes = dict(zip(axes, opened[key].shape, strict=False))
        others = dict(zip("nt" + space, main.shape, strict=False))
        differs = any(sizes.get(letter, others[letter]) != others[letter] for letter in others)
        if len(opened[key].shape) != len(axes) or differs:
            raise SourceError(
                f"{file}: {key} has shape {opened[key].shape}, expected the axes {axes} to match "
                f"{main.name.lstrip('/')} of {main.shape}"
            )
        arrays.append(
            StoredArray("hdf5", file, key, axes, len(names), len(fields), start_frame=start_frame)
        )
        names += fields
    keys = {letter: f"{letter}-coordinate" for letter in space}
    positions = _positions(opened, keys, main.shape[2 : 2 + dims], file)
    named = [k for k in ("t-coordinate", "t") if k in opened and layout != "darcy"]
    times = child(opened, named[0], "times of the frames") if named else None
    num_frames = 2 if layout == "darcy" else int(main.shape[1])
    notes: list[str] = []
    found = None if times is None else _times(times, file, num_frames, notes)
    part = Part(tuple(arrays), int(main.shape[0]), parameters=parameters)
    axes = "nt" + space + "c" * has_channels
    source = _source(file, tuple(names), (part,), axes, main.shape, positions, notes)
    return _Look(source, ((file, num_frames),), found, positions)


def _source(
    file: str,
    names: tuple[str, ...],
    parts: tuple[Part, ...],
    axes: str,
    shape: tuple[int, ...],
    positions: dict[str, Any],
    notes: list[str],
) -> Source:
    """The properties of a file except its times; `notes` are those so far."""
    sizes = dict(zip(axes, map(int, shape), strict=True))
    order = AXIS_NAMES[len(set(axes) & set(_SPACE))]
    extents = dict.fromkeys(order, 1.0)
    if missing := [letter for letter in order if letter not in positions]:
        notes.append(f"the file has no positions along {', '.join(missing)}: extent 1 is assumed")
    location: Any = "cell"
    for letter, points in positions.items():
        spacing, note = interval(points.reshape(-1), f"positions along {letter}")
        notes += [note] if note else []
        extents[letter] = extent(spacing, sizes[letter])
        if abs(float(points.reshape(-1)[0])) < spacing / 4:
            location = "node"
    physics, boundary = _physics(Path(file).name, names, order)
    return Source(
        format="pdebench",
        name=named(file),
        equation="PDEBench " + named(file),
        fields=tuple(Field(name, name) for name in names),
        splits={"all": parts},
        num_frames=sizes["t"],
        grid_shape=tuple(sizes[letter] for letter in order),
        domain_extent=tuple(extents[letter] for letter in order),
        boundary_conditions=dict.fromkeys(order, boundary) if boundary else {},
        grid_location=location,
        notes=tuple(notes),
        physics=physics,
    )


def _physics(
    name: str, fields: tuple[str, ...], axes: tuple[str, ...]
) -> tuple[dict[str, Any], str | None]:
    """The equation of a file in two dimensions, and its boundary condition.

    None unless its published name and fields determine all of it (arXiv 2210.07182, appendix D).
    """
    boundary = "periodic" if "periodic" in name.lower() else None
    if axes != ("y", "x"):
        return {}, boundary
    if fields == ("activator", "inhibitor"):
        coefficients = {
            "activator_diffusivity": 1e-3,
            "inhibitor_diffusivity": 5e-3,
            "activator_loss": 5e-3,
        }
        return {"equation": "fitzhugh-nagumo", "coefficients": coefficients}, "no flux"
    if fields == ("permeability", "solution") and (
        found := re.search(r"beta(\d+(?:\.\d+)?)", name)
    ):
        return {"equation": "darcy", "coefficients": {"source": float(found[1])}}, "dirichlet"
    # Viscosities of 1e-8 are those of the inviscid files, with gamma = 5/3.
    is_gas = {"density", "velocity-x", "velocity-y", "pressure"} == set(fields)
    if is_gas and boundary and re.search(r"eta1e-0?8_zeta1e-0?8", name.lower()):
        return {"equation": "compressible-euler", "coefficients": {"gamma": 5.0 / 3.0}}, boundary
    return {}, boundary


def _parameters(opened: Any) -> dict[str, float]:
    """Numbers among the file's attributes: viscosities, Mach number, speed."""
    found = {}
    for name, value in opened.attrs.items():
        if np.ndim(value) == 0 and np.asarray(value).dtype.kind in "fiu":
            found[str(name)] = float(value)
    return found


FORMAT = Format(
    "pdebench",
    "PDEBench: HDF5 with 0000/data, or density, Vx, …, or tensor",
    "a file, or a folder of similar files",
    _matches,
    _read,
)
