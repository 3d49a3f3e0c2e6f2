"""Poseidon's PDEgym: netCDF-4 files, one published problem each, and Helmholtz.h5.

Facts of the format and the constants of normalisation: `scOT/problems/` of
https://github.com/camlab-ethz/poseidon (Herde et al., arXiv 2405.19101). Validation and test
trajectories are the last ones of a file. Values stand as the published loader hands them to the
network, which is what the published weights were trained on: NS-SL, which the loader transposes, is
transposed. Times are in units of that loader's lead time: frames are 1/20 apart (1/19 for ACE, 1/15
for Wave-Gauss, 1/10 for GCE-RT). Steady problems become two frames, as Pelagos generates them: the
inputs with a solution of 0, and the inputs with the solution.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

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
from pelagos.data_pipelines.convert.source import Part, Source, SourceError, StoredArray
from pelagos.data_pipelines.store import Field

LOADER = "Poseidon's data loader (arXiv 2405.19101)"
_Look = tuple[tuple[str, ...], int, tuple[int, int]]  # fields, frames, grid of a file
_FLUID = ("density", "velocity-x", "velocity-y", "pressure")
_INCOMPRESSIBLE = "u_t + div(u u) + grad p = D u, div u = 0"
_COMPRESSIBLE = "Euler equations of an ideal gas: density, momentum and energy are conserved"


@dataclass(frozen=True)
class _Variable:
    """A variable of a file: `axes` name it with the trajectory's `n`, and are matched with or
    without axes of length one. `optional` fields are there if the axis `c` is long enough."""

    key: str
    axes: str
    fields: tuple[str, ...]
    first_index: int = 0
    start_frame: int = 0
    optional: tuple[str, ...] = ()


@dataclass(frozen=True)
class Problem:
    """One published problem: its variables, splits and constants."""

    equation: str
    variables: tuple[_Variable, ...]
    num_validation: int
    num_test: int
    mean: dict[str, float]
    std: dict[str, float]
    offset: dict[str, float] = field(default_factory=dict)
    lead_steps: int | None = 20  # None: a steady problem
    constant_fields: dict[str, float] = field(default_factory=dict)
    boundary: str = "periodic"


def _flow(axes: str = "ntcyx") -> Problem:
    return Problem(
        _INCOMPRESSIBLE,
        (_Variable("velocity", axes, ("velocity-x", "velocity-y"), optional=("tracer",)),),
        120,
        240,
        {**dict(zip(_FLUID, (0.8, 0.0, 0.0, 0.0), strict=True)), "tracer": 0.19586183},
        {**dict(zip(_FLUID, (0.31, 0.391, 0.356, 0.185), strict=True)), "tracer": 0.37},
        constant_fields={"density": 1.0},
    )


def _gas(pressure_offset: float) -> Problem:
    return Problem(
        _COMPRESSIBLE,
        (_Variable("data", "ntcyx", _FLUID),),  # index 4, the energy, is not used
        120,
        240,
        dict(zip(_FLUID, (0.8, 0.0, 0.0, 0.0), strict=True)),
        dict(zip(_FLUID, (0.31, 0.391, 0.356, 0.185), strict=True)),
        {"pressure": pressure_offset},
    )


def _wave(mean: tuple[float, float], std: tuple[float, float], lead_steps: int) -> Problem:
    names = ("displacement", "speed")
    return Problem(
        "u_tt = c^2 Laplace(u)",
        (_Variable("solution", "ntyx", names[:1]), _Variable("c", "nyx", names[1:])),
        60,
        240,
        dict(zip(names, mean, strict=True)),
        dict(zip(names, std, strict=True)),
        lead_steps=lead_steps,
        boundary="absorbing",
    )


_RT_FIELDS = (*_FLUID, "potential")

PROBLEMS: dict[str, Problem] = {
    "NS-Sines": _flow(),
    "NS-Gauss": _flow(),
    "NS-PwC": _flow(),
    "NS-SVS": _flow(),
    "NS-BB": _flow(),
    "NS-SL": _flow("ntcxy"),
    "FNS-KF": dataclasses.replace(
        _flow(),
        equation="u_t + div(u u) + grad p = D u + f, div u = 0, f = 0.1 sin(2 pi (x + y))",
        variables=(
            _Variable("solution", "ntcyx", ("velocity-x", "velocity-y")),
            _Variable("", "yx", ("forcing",)),
        ),
        mean={
            **dict(zip(_FLUID, (0.8, -2.2424793e-13, 4.1510376e-12, 0.0), strict=True)),
            "forcing": -1.2996679288335145e-09,
        },
        std={
            **dict(zip(_FLUID, (0.31, 0.22017328, 0.22078253, 0.185), strict=True)),
            "forcing": 0.0707106739282608,
        },
    ),
    "CE-RP": _gas(0.215),
    "CE-CRP": _gas(0.553),
    "CE-KH": _gas(1.0),
    "CE-Gauss": _gas(2.513),
    "CE-RPUI": _gas(1.33),
    "CE-RM": Problem(
        _COMPRESSIBLE,
        (_Variable("solution", "ntcyx", _FLUID),),
        100,
        130,
        dict(zip(_FLUID, (1.1964245, -7.164812e-06, 2.8968952e-06, 1.5648036), strict=True)),
        dict(zip(_FLUID, (0.5543239, 0.24304213, 0.2430597, 0.89639103), strict=True)),
    ),
    "GCE-RT": Problem(
        _COMPRESSIBLE + ", under gravity",
        (
            _Variable("solution", "ntcyx", _FLUID),
            _Variable("solution", "ntcyx", ("potential",), first_index=5),
        ),
        100,
        130,
        dict(
            zip(
                _RT_FIELDS,
                (0.8970493, 4.0316996e-13, -1.3858967e-13, 0.7133829, -1.7055787),
                strict=True,
            )
        ),
        dict(
            zip(
                _RT_FIELDS,
                (0.12857835, 0.014896976, 0.014896975, 0.21293919, 0.40131348),
                strict=True,
            )
        ),
        lead_steps=10,
        boundary="not stored",
    ),
    "Wave-Layer": _wave(
        (0.03467443221585092, 3498.5644380917424), (0.10442421752963911, 647.843958567462), 20
    ),
    "Wave-Gauss": _wave((0.0334376316, 2618.4593933), (0.1171879068, 601.51658913), 15),
    "ACE": Problem(
        "Allen-Cahn: u_t = Laplace(u) - eps^2 u (u^2 - 1)",
        (_Variable("solution", "ntyx", ("phase",)),),
        60,
        240,
        {"phase": 0.002484262},
        {"phase": 0.65351176},
        lead_steps=19,
    ),
    "SE-AF": Problem(
        "steady compressible Euler flow around an airfoil",
        (
            _Variable("solution", "ncyx", ("mask",)),
            _Variable("solution", "ncyx", ("density",), first_index=1, start_frame=1),
        ),
        120,
        240,
        {"mask": 0.0, "density": 0.92984116},
        {"mask": 1.0, "density": 0.10864315},
        lead_steps=None,
        boundary="not stored",
    ),
    "Poisson-Gauss": Problem(
        "-Laplace(u) = f, u = 0 on the boundary",
        (
            _Variable("source", "nyx", ("source",)),
            _Variable("solution", "nyx", ("solution",), start_frame=1),
        ),
        120,
        240,
        {"source": 0.014822142414492256, "solution": 0.0005603458434937093},
        {"source": 4.755138816607612, "solution": 0.02401226126952699},
        lead_steps=None,
        boundary="dirichlet",
    ),
    "Helmholtz": Problem(
        "-Laplace(u) - omega^2 a u = 0, u = b on the boundary",
        (
            _Variable("a", "yx", ("coefficient",)),
            _Variable("bc", "", ("boundary-value",)),
            _Variable("u", "yx", ("solution",), start_frame=1),
        ),
        128,
        512,
        {"coefficient": 1.0, "boundary-value": 0.0, "solution": 0.11523915668552},
        {"coefficient": 1.0, "boundary-value": 1.0, "solution": 0.8279975746000605},
        lead_steps=None,
        boundary="dirichlet",
    ),
}


def _problem_name(path: str, options: ConvertOptions) -> str | None:
    """The problem asked for, or the one that the file or its folder is named after."""
    known = {name.lower(): name for name in PROBLEMS}
    if options.problem is not None:
        if options.problem.lower() not in known:
            raise SourceError(
                f"--problem: got {options.problem!r}, known are {', '.join(PROBLEMS)}"
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
            f"{path} is not named like a problem of PDEgym: say which it is by --problem, one of "
            f"{', '.join(PROBLEMS)}"
        )
    files = files_of(path)
    if not files:
        raise SourceError(f"{path} holds no file ending in {', '.join(HDF5_SUFFIXES)}")
    problem = PROBLEMS[name]
    parts: list[Part] = []
    looks: list[_Look] = []
    for file in files:
        found, look = _samples(file, problem) if name == "Helmholtz" else _file(file, problem)
        parts += found
        looks.append(look)
        if looks[-1] != looks[0]:
            raise SourceError(
                f"{file} has {looks[-1]} (fields, frames, grid), {files[0]} {looks[0]}"
            )
    fields, num_frames, grid = looks[0]
    total = sum(part.count for part in parts)
    steps = problem.lead_steps
    return Source(
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
        notes=_notes(problem, total, fields),
        details={"problem": name, "source_bytes": stored_bytes(files)},
    )


def _file(file: str, problem: Problem) -> tuple[list[Part], _Look]:
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
                    f"{file}: {variable.key} has {found['c']} channels, expected are at least "
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
    grid = (sizes["y"], sizes["x"])
    for variable in problem.variables:
        if not variable.key:
            arrays.append(
                StoredArray("formula", f"kolmogorov-forcing/{grid[0]}", "", "yx", len(fields))
            )
            fields += variable.fields
    num_frames = sizes["t"] if problem.lead_steps else 2
    return [Part(tuple(arrays), sizes["n"])], (tuple(fields), num_frames, grid)


def _samples(file: str, problem: Problem) -> tuple[list[Part], _Look]:
    """Of Helmholtz.h5, with one group per sample."""
    fields = tuple(name for variable in problem.variables for name in variable.fields)
    with looking_into(file) as opened:
        groups = sorted((g for g in opened if g.startswith("Sample_")), key=natural)
        if not groups:
            raise SourceError(
                f"{file} has no group Sample_0, Sample_1, …; there are {list(opened)[:5]}"
            )
        shapes = {
            v.key: child(opened[groups[0]], v.key, "an array of the sample").shape
            for v in problem.variables
        }
        axes = {
            v.key: matched_axes(file, opened[groups[0]][v.key], v.axes) for v in problem.variables
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
    """The letters of a stored array's axes: those given, and `1` for each of length one beside.

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
            f"{file}: {stored.name.lstrip('/')} has shape {shape}, expected are the axes "
            f"[{', '.join(axes)}]"
        )
    return "".join(letters)


def _published(problem: Problem, fields: tuple[str, ...]) -> dict[str, Any]:
    names = {*fields, *problem.constant_fields, *(_FLUID if "density" in problem.mean else ())}
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


def _notes(problem: Problem, total: int, fields: tuple[str, ...]) -> tuple[str, ...]:
    notes = []
    if _splits(problem, total) is None:
        notes.append(
            f"{total} trajectories are fewer than the published {problem.num_validation} to "
            f"validate and {problem.num_test} to test: 80 %, 10 % and 10 % are taken"
        )
    if "velocity-x" in fields:
        notes.append("x and y stand as the published weights saw them; --swap-axes exchanges them")
    return tuple(notes)


FORMAT = Format(
    "poseidon",
    "Poseidon's PDEgym: NS-Sines.nc, CE-RP.nc, …, Helmholtz.h5",
    "a problem's file, or the folder of its pieces (--problem names it)",
    _matches,
    _read,
)
