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
from pathlib import Path
from typing import Any

import numpy as np

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
    found = [_file(file) for file in files]
    for file, other in zip(files, found, strict=True):
        for what in ("fields", "num_frames", "grid_shape"):
            if getattr(other, what) != getattr(found[0], what):
                raise SourceError(
                    f"{file}: {what} {getattr(other, what)}, {files[0]} has "
                    f"{getattr(found[0], what)}; convert unlike files one by one"
                )
    parts = tuple(part for source in found for part in source.splits["all"])
    names = [n for n in parts[0].parameters if all(n in part.parameters for part in parts)]
    parts = tuple(
        Part(p.arrays, p.count, parameters={n: p.parameters[n] for n in names}) for p in parts
    )
    total = sum(part.count for part in parts)
    tenth = total // 10
    splits = {"test": tenth, "train": total - 2 * tenth, "validation": tenth} if tenth else None
    return dataclasses.replace(
        found[0],
        name=named(path),
        splits={"all": parts},
        published_splits=splits,
        details={"num_files": len(files), "source_bytes": stored_bytes(files)},
    )


def _file(file: str) -> Source:
    with looking_into(file) as opened:
        layout = _layout(opened)
        if layout is None:
            raise SourceError(
                f"{file}: expected are groups 0000, 0001, … with data and grid, or the arrays "
                f"density, Vx, …, or tensor, or velocity and t; there are "
                f"{', '.join(list(opened)[:8]) or 'none'}"
            )
        if layout == "samples":
            return _samples(file, opened)
        return _arrays(file, opened, layout)


def _samples(file: str, opened: Any) -> Source:
    groups = sorted((key for key in opened if key.isdecimal()), key=natural)
    data, grid = opened[groups[0]]["data"], opened[groups[0]]["grid"]
    dims = len(data.shape) - 2
    channels = int(data.shape[-1])
    names = SAMPLE_FIELDS.get((dims, channels), tuple(f"channel-{i}" for i in range(channels)))
    axes = "t" + _SPACE[:dims] + "c"
    parts = tuple(
        Part((StoredArray("hdf5", file, f"{group}/data", axes, 0, channels),)) for group in groups
    )
    positions = {letter: np.asarray(grid[letter]) for letter in _SPACE[:dims] if letter in grid}
    times = np.asarray(grid["t"]) if "t" in grid else None
    return _source(file, names, parts, axes, data.shape, positions, times)


def _arrays(file: str, opened: Any, layout: str) -> Source:
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
            f"{file}: {main.name.lstrip('/')} has shape {main.shape}, expected are [n, t, x], "
            f"[n, t, x, y] or [n, t, x, y, z]{' and channels' if has_channels else ''}"
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
        if len(opened[key].shape) != len(axes) or opened[key].shape[0] != main.shape[0]:
            raise SourceError(
                f"{file}: {key} has shape {opened[key].shape}, expected are the axes {axes} "
                f"beside {main.name.lstrip('/')} of {main.shape}"
            )
        arrays.append(
            StoredArray("hdf5", file, key, axes, len(names), len(fields), start_frame=start_frame)
        )
        names += fields
    positions = {
        letter: np.asarray(opened[f"{letter}-coordinate"])
        for letter in space
        if f"{letter}-coordinate" in opened
    }
    times = opened.get("t-coordinate", opened.get("t"))
    times = None if times is None or layout == "darcy" else np.asarray(times)
    part = Part(tuple(arrays), int(main.shape[0]), parameters=parameters)
    axes = "nt" + space + "c" * has_channels
    source = _source(file, tuple(names), (part,), axes, main.shape, positions, times)
    return dataclasses.replace(source, num_frames=2) if layout == "darcy" else source


def _source(
    file: str,
    names: tuple[str, ...],
    parts: tuple[Part, ...],
    axes: str,
    shape: tuple[int, ...],
    positions: dict[str, Any],
    times: Any,
) -> Source:
    sizes = dict(zip(axes, map(int, shape), strict=True))
    order = AXIS_NAMES[len(set(axes) & set(_SPACE))]
    notes: list[str] = []
    extents = dict.fromkeys(order, 1.0)
    location: Any = "cell"
    for letter, points in positions.items():
        spacing, note = interval(points.reshape(-1), f"positions along {letter}")
        notes += [note] if note else []
        extents[letter] = extent(spacing, sizes[letter])
        if abs(float(points.reshape(-1)[0])) < spacing / 4:
            location = "node"
    frame_interval = 1.0
    if times is None:
        notes.append("the file holds no times: the frame interval is written as 1")
    else:
        frame_interval, note = interval(
            (times[0] if times.ndim > 1 else times)[: sizes["t"]], "times of the frames"
        )
        notes += [note] if note else []
    physics, boundary = _physics(Path(file).name, names, order)
    return Source(
        format="pdebench",
        name=named(file),
        equation="PDEBench " + named(file),
        fields=tuple(Field(name, name) for name in names),
        splits={"all": parts},
        num_frames=sizes["t"],
        grid_shape=tuple(sizes[letter] for letter in order),
        frame_interval=frame_interval,
        domain_extent=tuple(extents[letter] for letter in order),
        boundary_conditions=dict.fromkeys(order, boundary) if boundary else {},
        grid_location=location,
        notes=tuple(notes),
        physics=physics,
    )


def _physics(
    name: str, fields: tuple[str, ...], axes: tuple[str, ...]
) -> tuple[dict[str, Any], str | None]:
    """The equation of a file in two dimensions, if its published name and fields tell all of it,
    and its boundary condition (arXiv 2210.07182, appendix D)."""
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
    "a file, or a folder of like files",
    _matches,
    _read,
)
