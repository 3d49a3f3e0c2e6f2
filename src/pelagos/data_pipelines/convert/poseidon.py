"""Poseidon's PDEgym: netCDF-4 files, one published problem each, and Helmholtz.h5.

Facts of the format: `scOT/problems/` of https://github.com/camlab-ethz/poseidon (Herde et al.,
arXiv 2405.19101); `pdegym_problems` has the problems. The last trajectories of a file validate and
test. Values are as the published loader hands them to the network, which is what the published
weights were trained on: NS-SL, which the loader transposes, is transposed. Times are in units of
that loader's lead time: frames are 1/20 apart (1/19 for ACE, 1/15 for Wave-Gauss, 1/10 for GCE-RT).
Steady problems become two frames, as Pelagos generates them: the inputs with a solution of 0, and
the inputs with the solution.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pelagos.data_pipelines.convert.agreement import (
    Agreement,
    common_length,
    require_equal_descriptions,
)
from pelagos.data_pipelines.convert.formats import (
    HDF5_SUFFIXES,
    Format,
    child,
    files_of,
    hdf5_looks,
    looking_into,
    named,
    natural,
    stored_bytes,
)
from pelagos.data_pipelines.convert.options import ConvertOptions
from pelagos.data_pipelines.convert.pdegym_problems import (
    FLUID,
    LOADER,
    PROBLEMS,
    Problem,
)
from pelagos.data_pipelines.convert.reading import blocks
from pelagos.data_pipelines.convert.source import Part, Source, SourceError, StoredArray
from pelagos.data_pipelines.store import Field

_Look = tuple[tuple[str, ...], int, tuple[int, int]]  # fields, frames, grid of a file
# Of the divergences for two orders of the axes: that of the right one is an error of differences.
CLEARLY_LESS = 0.25


def _problem_name(path: str, options: ConvertOptions) -> str | None:
    """The problem asked for, or the one that the file or its folder is named after."""
    known = {name.lower(): name for name in PROBLEMS}
    if options.problem is not None:
        if options.problem.lower() not in known:
            raise SourceError(
                f"--problem: got {options.problem!r}; known problems: {', '.join(PROBLEMS)}"
            )
        return known[options.problem.lower()]
    place = Path(path)
    candidates = (named(path), place.name, place.absolute().parent.name)
    return next((known[c.lower()] for c in candidates if c.lower() in known), None)


def _matches(path: str, options: ConvertOptions) -> bool:
    files = files_of(path)
    name = _problem_name(path, options)
    if name is None or not files:
        return False
    problem = PROBLEMS[name]
    if name == "Helmholtz":
        return hdf5_looks(files[0], lambda f: "Sample_0" in f)
    return hdf5_looks(files[0], lambda f: all(v.key in f for v in problem.variables if v.key))


def _read(path: str, options: ConvertOptions) -> Source:
    name = _problem_name(path, options)
    if name is None:
        raise SourceError(
            f"{path} does not have the name of a PDEgym problem: give --problem, one of "
            f"{', '.join(PROBLEMS)}"
        )
    files = files_of(path)
    if not files:
        raise SourceError(f"{path} holds no file ending in {', '.join(HDF5_SUFFIXES)}")
    problem = PROBLEMS[name]
    parts: list[Part] = []
    looks: list[_Look] = []
    agreement = Agreement()
    for file in files:
        found, look = (_samples if name == "Helmholtz" else _file)(file, problem, agreement)
        parts += found
        looks.append(look)
        agreement.require("the list of fields", file, look[0])
        agreement.require("the grid (y, x)", file, look[2])
    fields, _, grid = looks[0]
    lengths = ((file, look[1]) for file, look in zip(files, looks, strict=True))
    num_frames, cut = common_length(lengths, options.num_frames)
    total = sum(part.count for part in parts)
    steps = problem.lead_steps
    source = Source(
        format="poseidon",
        name=name,
        equation=problem.equation,
        fields=tuple(Field(f, f) for f in fields),
        splits={"all": tuple(parts)},
        num_frames=num_frames,
        grid_shape=grid,
        frame_interval=1.0 / steps if steps else 1.0,
        boundary_conditions=(
            {}
            if problem.boundary == "not stored"
            else {"x": problem.boundary, "y": problem.boundary}
        ),
        constant_fields=problem.constant_fields,
        published_normalization=_published(problem, fields),
        published_splits=_splits(problem, total),
        notes=(*_notes(problem, total), *agreement.notes, *cut),
        details={"problem": name, "source_bytes": stored_bytes(files)},
        physics=problem.physics,
    )
    if "density" in problem.constant_fields and not options.swap_axes:  # incompressible
        first = next(blocks(source, range(1))).frames[0]
        return dataclasses.replace(source, notes=(*source.notes, *_velocity_notes(first[:2])))
    return source


def _file(file: str, problem: Problem, agreement: Agreement) -> tuple[list[Part], _Look]:
    """A file's trajectories, and their fields, frames and grid."""
    arrays: list[StoredArray] = []
    fields: list[str] = []
    sizes: dict[str, int] = {}
    with looking_into(file) as opened:
        for variable in problem.variables:
            if not variable.key:
                continue
            stored = child(opened, variable.key, f"a variable [{', '.join(variable.axes)}]")
            axes = matched_axes(file, stored, variable.axes)
            found = dict(zip(axes, map(int, stored.shape), strict=True))
            names = variable.fields
            if found.get("c", 0) >= len(names) + len(variable.optional):
                names += variable.optional
            if "c" in found and found["c"] < variable.first_index + len(names):
                raise SourceError(
                    f"{file}: {variable.key} has {found['c']} channels, expected at least "
                    f"{variable.first_index + len(names)}"
                )
            for letter in "ntyx":
                if sizes.setdefault(letter, found.get(letter, 0)) != found.get(
                    letter, sizes[letter]
                ):
                    raise SourceError(
                        f"{file}: {variable.key} has shape {stored.shape}, which does not fit the "
                        f"variables before it ({sizes})"
                    )
            arrays.append(
                StoredArray(
                    "hdf5",
                    file,
                    variable.key,
                    axes,
                    len(fields),
                    len(names),
                    variable.first_index,
                    variable.start_frame,
                )
            )
            fields += names
        keys = list(dict.fromkeys(v.key for v in problem.variables if v.key))
        require_equal_descriptions(agreement, file, opened, keys)
    grid = (sizes["y"], sizes["x"])
    for variable in problem.variables:
        if not variable.key:
            arrays.append(
                StoredArray("formula", f"kolmogorov-forcing/{grid[0]}", "", "yx", len(fields))
            )
            fields += variable.fields
    num_frames = sizes["t"] if problem.lead_steps else 2
    return [Part(tuple(arrays), sizes["n"])], (tuple(fields), num_frames, grid)


def _samples(file: str, problem: Problem, agreement: Agreement) -> tuple[list[Part], _Look]:
    """Of Helmholtz.h5, with one group per sample."""
    fields = tuple(name for variable in problem.variables for name in variable.fields)
    with looking_into(file) as opened:
        groups = sorted((g for g in opened if g.startswith("Sample_")), key=natural)
        if not groups:
            raise SourceError(
                f"{file} has no group Sample_0, Sample_1, …; it has {list(opened)[:5]}"
            )
        for group in groups:
            shapes = {
                v.key: child(
                    child(opened, group, "a sample"), v.key, "an array of the sample"
                ).shape
                for v in problem.variables
            }
            agreement.require("the shape of each array", f"{file}: {group}", shapes)
        axes = {
            v.key: matched_axes(file, child(opened, groups[0], "a sample")[v.key], v.axes)
            for v in problem.variables
        }
    parts = [
        Part(
            tuple(
                StoredArray(
                    "hdf5", file, f"{group}/{v.key}", axes[v.key], i, start_frame=v.start_frame
                )
                for i, v in enumerate(problem.variables)
            )
        )
        for group in groups
    ]
    grid = shapes["a"][-2:]
    return parts, (fields, 2, (int(grid[0]), int(grid[1])))


def matched_axes(file: str, stored: Any, axes: str) -> str:
    """The letters of a stored array's axes: those given, and `1` for each further one of length one.

    Raises:
        SourceError: the array has another number of axes.
    """
    shape = tuple(stored.shape)
    extra = len(shape) - len(axes)
    letters = list(axes)
    for position, size in enumerate(shape):
        if extra > 0 and size == 1 and letters[position : position + 1] != ["n"]:
            letters.insert(position, "1")
            extra -= 1
    if extra:
        raise SourceError(
            f"{file}: {stored.name.lstrip('/')} has shape {shape}, expected the axes "
            f"[{', '.join(axes)}]"
        )
    return "".join(letters)


def _published(problem: Problem, fields: tuple[str, ...]) -> dict[str, Any]:
    names = {*fields, *problem.constant_fields, *(FLUID if "density" in problem.mean else ())}
    constants: dict[str, Any] = {
        "source": LOADER,
        "mean": {k: v for k, v in problem.mean.items() if k in names},
        "std": {k: v for k, v in problem.std.items() if k in names},
        "offset": problem.offset,
    }
    return constants | ({"lead_steps_per_unit": problem.lead_steps} if problem.lead_steps else {})


def _splits(problem: Problem, total: int) -> dict[str, int] | None:
    num_train = total - problem.num_validation - problem.num_test
    if num_train < 1:
        return None
    return {"train": num_train, "validation": problem.num_validation, "test": problem.num_test}


def _notes(problem: Problem, total: int) -> tuple[str, ...]:
    notes = []
    if _splits(problem, total) is None:
        notes.append(
            f"{total} trajectories are fewer than the published {problem.num_validation} to "
            f"validate and {problem.num_test} to test, so the splits are 80 %, 10 % and 10 %"
        )
    return tuple(notes)


def _velocity_notes(velocity: npt.NDArray[np.floating]) -> tuple[str, ...]:
    """Notes on the order of axes of a periodic flow `[2, y, x]`, judged by its divergence."""

    def divergence(x_axis: int) -> float:
        slopes = [
            np.roll(component, -1, axis) - np.roll(component, 1, axis)
            for component, axis in zip(velocity, (x_axis, 1 - x_axis), strict=True)
        ]
        return float(np.sqrt(np.mean((slopes[0] + slopes[1]) ** 2)))

    first, last = divergence(0), divergence(1)
    if first < CLEARLY_LESS * last:
        return (
            "velocity-x runs along the first axis of the file (the divergence shows it), which the "
            "dataset calls y. --swap-axes stores y first; the published weights were not trained "
            "on that order",
        )
    return ()


FORMAT = Format(
    "poseidon",
    "Poseidon's PDEgym: NS-Sines.nc, CE-RP.nc, …, Helmholtz.h5",
    "a problem's file, or the folder of its pieces (--problem names it)",
    _matches,
    _read,
)
