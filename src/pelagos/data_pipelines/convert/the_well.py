"""The Well: HDF5 files with fields by tensor order, in folders named by split.

Facts of the format: `docs/data_format.md` and `the_well/data/datasets.py` of
https://github.com/PolymathicAI/the_well (arXiv 2412.00568). Arrays are `[n, t, x, y(, z), tensor
indices]`; the attributes `sample_varying`, `time_varying` and `dim_varying` say which of these
axes an array has. The components of a tensor run over the spatial dimensions, the last one fastest.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
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
    attribute,
    child,
    extent,
    files_of,
    hdf5_looks,
    interval,
    looking_into,
    named,
    split_folders,
    stored_bytes,
    text,
    texts,
)
from pelagos.data_pipelines.convert.options import ConvertOptions
from pelagos.data_pipelines.convert.source import Part, Source, SourceError, StoredArray
from pelagos.data_pipelines.store import Field
from pelagos.data_pipelines.store.schema import AXIS_NAMES

GROUPS = ("t0_fields", "t1_fields", "t2_fields")


@dataclass(frozen=True)
class _File:
    """The properties of one file."""

    name: str
    fields: tuple[Field, ...]
    part: Part
    num_frames: int
    grid_shape: tuple[int, ...]
    times: npt.NDArray[np.float64]
    positions: dict[str, npt.NDArray[np.float64]]
    domain_extent: tuple[float, ...]
    starts_at_zero: bool
    boundary_conditions: dict[str, str]
    grid_type: str
    dims: tuple[str, ...]
    notes: tuple[str, ...]


def _matches(path: str, options: ConvertOptions) -> bool:
    files = next(iter(_files(path).values()), [])
    return bool(files) and hdf5_looks(
        files[0], lambda f: any(group in f for group in GROUPS) and "dimensions" in f
    )


def _files(path: str) -> dict[str, list[str]]:
    """Files by split; `all` where they are not in folders of splits."""
    inner = Path(path) / "data"
    folders = split_folders(path) or split_folders(str(inner))
    if folders:
        return {name: files_of(str(folder)) for name, folder in folders.items()}
    found = files_of(path)
    return {"all": found} if found else {}


def _read(path: str, options: ConvertOptions) -> Source:
    by_split = {name: files for name, files in _files(path).items() if files}
    if not by_split:
        raise SourceError(
            f"{path} holds no HDF5 files: expected a file of The Well, a folder of such files, or "
            "the folder with train, valid and test"
        )
    looks = {name: [_look(file) for file in files] for name, files in by_split.items()}
    files = list(itertools.chain.from_iterable(by_split.values()))
    flat = list(itertools.chain.from_iterable(looks.values()))
    first = flat[0]
    lengths = ((file, look.num_frames) for file, look in zip(files, flat, strict=True))
    num_frames, cut = common_length(lengths, options.num_frames)
    frame_interval, uneven = interval(first.times[:num_frames], "times of the frames")
    notes = [note for look in flat for note in look.notes]
    notes += [*cut, *_agreement(files, flat, num_frames), *([uneven] if uneven else [])]
    notes = list(dict.fromkeys(notes))
    names = list(dict.fromkeys(name for look in flat for name in look.part.parameters))
    common = [name for name in names if all(name in look.part.parameters for look in flat)]
    if missing := [name for name in names if name not in common]:
        notes.append(f"left out, because some files lack them: parameters {', '.join(missing)}")
    splits = {
        name: tuple(
            replace(look.part, parameters={k: look.part.parameters[k] for k in common})
            for look in of_split
        )
        for name, of_split in looks.items()
    }
    return Source(
        format="the_well",
        name=first.name or named(path),
        equation=f"{first.name} (The Well)",
        fields=first.fields,
        splits=splits,
        num_frames=num_frames,
        grid_shape=first.grid_shape,
        frame_interval=frame_interval,
        domain_extent=first.domain_extent,
        boundary_conditions=first.boundary_conditions,
        grid_location="node" if first.starts_at_zero else "cell",
        notes=tuple(notes),
        details={
            "num_files": len(files),
            "source_bytes": stored_bytes(files),
            "source_axes": list(first.dims),
        },
    )


def _agreement(files: list[str], looks: list[_File], num_frames: int) -> list[str]:
    """Notes on permitted differences between files.

    Raises:
        SourceError: something differs of which a dataset has one.
    """
    found = Agreement()
    for file, look in zip(files, looks, strict=True):
        found.require("the list of fields", file, tuple(f.name for f in look.fields))
        found.require("the list of axes", file, look.dims)
        found.require("the grid", file, look.grid_shape)
        found.require("the type of grid", file, look.grid_type)
        times = look.times[:num_frames]
        require_equal_times(found, file, times)
        for dim, points in look.positions.items():
            found.require(f"the position along {dim}", file, points)
        found.require("the boundary condition", file, look.boundary_conditions)
        found.remark(
            "the time of the first frame", file, float(times[0]), "frames are counted from 0"
        )
        found.remark("dataset_name", file, look.name, "the first is taken")
    return found.notes


def _times(stored: Any, file: str, notes: list[str]) -> npt.NDArray[np.float64]:
    """Times of the frames `[t]`, which trajectories may have each for itself.

    Raises:
        SourceError: trajectories of the file have other times between frames.
    """
    rows = np.asarray(stored, np.float64).reshape(-1, stored.shape[-1])
    found = Agreement()
    for row, times in enumerate(rows):
        require_equal_times(found, f"{file}: time[{row}]", times)
    notes += found.notes
    first: npt.NDArray[np.float64] = rows[0]
    return first


def _positions(stored: Any, file: str, dim: str) -> npt.NDArray[np.float64]:
    """Positions along an axis, which trajectories may have each for itself.

    Raises:
        SourceError: trajectories of the file have other positions.
    """
    rows = np.asarray(stored, np.float64).reshape(-1, stored.shape[-1])
    found = Agreement()
    for row, points in enumerate(rows):
        found.require(f"the position along {dim}", f"{file}: {dim}[{row}]", points)
    first: npt.NDArray[np.float64] = rows[0]
    return first


def _look(file: str) -> _File:
    with looking_into(file) as opened:
        dimensions = child(opened, "dimensions", "the group of coordinates")
        dims = tuple(texts(attribute(dimensions, "spatial_dims", "names of the axes")))
        letters = _letters(dims)
        sizes = {
            letter: int(child(dimensions, dim, "coordinates").shape[-1])
            for letter, dim in zip(letters, dims, strict=True)
        }
        order = AXIS_NAMES[len(dims)]
        count = int(attribute(opened, "n_trajectories", "the number of trajectories"))
        notes: list[str] = []
        time = child(dimensions, "time", "times of the frames")
        lengths = {"n": count, "t": int(time.shape[-1]), **sizes}
        arrays, fields = _arrays(opened, file, dims, letters, lengths)
        extents, starts, positions = {}, [], {}
        for letter, dim in zip(letters, dims, strict=True):
            points = positions[dim] = _positions(dimensions[dim], file, dim)
            spacing, note = interval(points, f"positions along {dim}")
            notes += [note] if note else []
            extents[letter] = extent(spacing, sizes[letter])
            starts.append(abs(float(points[0])) < spacing / 4)
        return _File(
            text(opened.attrs.get("dataset_name", "")),
            fields,
            Part(arrays, count, parameters=_parameters(opened, count, notes)),
            int(time.shape[-1]),
            tuple(sizes[letter] for letter in order),
            _times(time, file, notes),
            positions,
            tuple(extents[letter] for letter in order),
            all(starts),
            _boundaries(opened, dims, letters),
            text(opened.attrs.get("grid_type", "")),
            dims,
            tuple(notes),
        )


def _letters(dims: tuple[str, ...]) -> tuple[str, ...]:
    """The letters of the axes: their own names, or for other coordinates z, y, x in their order."""
    order = AXIS_NAMES.get(len(dims))
    if order is None:
        raise SourceError(f"{len(dims)} spatial dimensions {dims}: expected 1 to 3")
    return dims if set(dims) == set(order) else order


def _arrays(
    opened: Any,
    file: str,
    dims: tuple[str, ...],
    letters: tuple[str, ...],
    lengths: dict[str, int],
) -> tuple[tuple[StoredArray, ...], tuple[Field, ...]]:
    arrays: list[StoredArray] = []
    fields: list[Field] = []
    for order, group_name in enumerate(GROUPS):
        if group_name not in opened:
            continue
        group = child(opened, group_name, "a group of fields")
        components = ["".join(c) for c in itertools.product(dims, repeat=order)]
        for name in texts(group.attrs.get("field_names", list(group))):
            stored = child(group, name, "a field named in field_names")
            uses = stored.attrs.get("dim_varying", [True] * len(dims))
            axes = "n" * bool(stored.attrs.get("sample_varying", True))
            axes += "t" * bool(stored.attrs.get("time_varying", True))
            axes += "".join(letter for letter, used in zip(letters, uses, strict=True) if used)
            # a tensor's indices are one axis or, in most files, two
            axes += "c" * max(0, min(order, len(stored.shape) - len(axes)))
            if len(stored.shape) != len(axes):
                raise SourceError(
                    f"{file}: {stored.name} has shape {stored.shape}, but its attributes give "
                    f"{axes}"
                )
            wanted = {a: lengths[a] for a in axes if a != "c"}
            found = dict(zip(axes, map(int, stored.shape), strict=True))
            if any(found[letter] != size for letter, size in wanted.items()):
                raise SourceError(
                    f"{file}: {stored.name} has shape {stored.shape} along {axes}, but the file's "
                    f"trajectories, times and positions are {wanted}"
                )
            arrays.append(
                StoredArray(
                    "hdf5", file, stored.name.lstrip("/"), axes, len(fields), len(components)
                )
            )
            names = [f"{name}-{c}" if c else name for c in components]
            fields += [Field(n, n) for n in names]
    if not fields:
        raise SourceError(f"{file} has no field in {', '.join(GROUPS)}")
    return tuple(arrays), tuple(fields)


def _parameters(opened: Any, count: int, notes: list[str]) -> dict[str, float | tuple[float, ...]]:
    """Scalars that do not change in time, per trajectory if they differ.

    Also the file's own `simulation_parameters` that are not among the scalars.
    """
    found: dict[str, float | tuple[float, ...]] = {}
    scalars = opened.get("scalars", {})
    names = texts(scalars.attrs.get("field_names", list(scalars))) if len(scalars) else []
    for name in names:
        scalar = scalars[name]
        if scalar.attrs.get("time_varying", False):
            notes.append(f"scalar {name} changes in time and is left out")
            continue
        values = np.asarray(scalar, np.float64).reshape(-1)
        if scalar.attrs.get("sample_varying", False) and len(values) == count:
            found[name] = tuple(map(float, values))
        elif len(values) == 1:
            found[name] = float(values[0])
        else:
            notes.append(f"scalar {name} of shape {scalar.shape} is not one number and is left out")
    for name in texts(opened.attrs.get("simulation_parameters", [])):
        value = opened.attrs.get(name)
        is_known = name in found or name in names
        if not is_known and np.ndim(value) == 0 and np.asarray(value).dtype.kind in "fiu":
            found[name] = float(value)
    return found


def _boundaries(opened: Any, dims: tuple[str, ...], letters: tuple[str, ...]) -> dict[str, str]:
    """Per side, as the published loader reads them: open where nothing else is said."""
    found: dict[str, str] = {}
    for condition in opened.get("boundary_conditions", {}).values():
        kind = text(attribute(condition, "bc_type", "wall, open or periodic")).lower()
        associated = texts(attribute(condition, "associated_dims", "names of axes"))
        mask = np.asarray(child(condition, "mask", "the grid points where it holds"), bool)
        for dim in associated:
            letter = letters[dims.index(dim)]
            for side, index in (("low", 0), ("high", -1)):
                edge = mask[tuple(slice(None) if d != dim else index for d in associated)]
                if edge.all() if kind == "wall" else edge.any():
                    found[f"{letter}-{side}"] = kind
    sides: dict[str, str] = {}
    for letter in letters:
        low, high = (found.get(f"{letter}-{side}", "open") for side in ("low", "high"))
        sides |= {letter: low} if low == high else {f"{letter}-low": low, f"{letter}-high": high}
    return sides


FORMAT = Format(
    "the_well",
    "The Well: HDF5 with t0_fields, t1_fields, t2_fields",
    "a file, a folder of files, or the folder with data/train, data/valid, data/test",
    _matches,
    _read,
)
