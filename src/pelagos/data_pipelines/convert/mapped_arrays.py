"""Plain arrays (.npy, .npz, .h5, .nc, .zarr) that a small YAML file describes.

fields:
  - {file: "velocity.npy", axes: [n, t, y, x, c], names: [velocity-x, velocity-y]}
  - {file: "rest.h5", key: "p", axes: [n, t, y, x], names: [pressure]}
parameters:
  viscosity: {file: "rest.h5", key: "nu"}
  gamma: 1.4
frame_interval: 0.05
domain_extent: {x: 1.0, y: 1.0}
boundary_conditions: {x: periodic, y: periodic}
splits: {train: 0.8, validation: 0.1, test: 0.1}
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pelagos.data_pipelines.conventions import Conventions
from pelagos.data_pipelines.convert.formats import Format, named, stored_bytes
from pelagos.data_pipelines.convert.options import ConvertOptions, split_counts
from pelagos.data_pipelines.convert.readers import stored_array, whole_array
from pelagos.data_pipelines.convert.source import Part, Source, SourceError, StoredArray
from pelagos.data_pipelines.store import Field as StoredField
from pelagos.data_pipelines.store.schema import AXIS_NAMES

READER_OF_SUFFIX = {
    ".npy": "npy",
    ".npz": "npz",
    ".h5": "hdf5",
    ".hdf5": "hdf5",
    ".nc": "hdf5",
    ".nc4": "hdf5",
    ".zarr": "strict-zarr",
}


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ArrayMapping(_Section):
    """One stored array and the fields it holds."""

    file: str | None = None  # beside the source, or the source itself
    key: str = ""
    axes: list[Literal["n", "t", "c", "z", "y", "x", "1"]]
    names: Annotated[list[str], Field(min_length=1)]
    units: list[str] | None = None


class ParameterMapping(_Section):
    """A stored vector with one number per trajectory."""

    file: str | None = None
    key: str = ""


class Mapping(_Section):
    """A mapping file."""

    name: str | None = None
    equation: str = "not given"
    fields: Annotated[list[ArrayMapping], Field(min_length=1)]
    parameters: dict[str, float | ParameterMapping] = {}
    frame_interval: float = 1.0
    domain_extent: dict[Literal["x", "y", "z"], float] = {}
    boundary_conditions: dict[str, str] = {}
    constant_fields: dict[str, float] = {}
    published_normalization: dict[str, Any] = {}
    grid_location: Literal["cell", "node"] = "cell"
    splits: dict[str, float] | None = None


def _load(file: str) -> Mapping:
    try:
        return Mapping.model_validate(yaml.safe_load(Path(file).read_text(encoding="utf-8")))
    except OSError as error:
        raise SourceError(f"--mapping {file} cannot be read: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise SourceError(f"--mapping {file} is not YAML: {error}") from error
    except ValidationError as error:
        problems = [
            f"{'.'.join(map(str, problem['loc'])) or 'the file'}: {problem['msg']}"
            for problem in error.errors()
        ]
        raise SourceError(
            f"--mapping {file}: {len(problems)} problems\n  " + "\n  ".join(problems)
        ) from error


def _read(path: str, options: ConvertOptions) -> Source:
    if options.mapping is None:
        raise SourceError(f"{path}: plain arrays need --mapping FILE.yaml (docs/converting.md)")
    mapping = _load(options.mapping)
    arrays: list[StoredArray] = []
    fields: list[StoredField] = []
    sizes: dict[str, int] = {}
    notes: list[str] = []
    for entry in mapping.fields:
        axes = "".join(entry.axes)
        found = StoredArray(
            *_file(path, entry.file), entry.key, axes, len(fields), len(entry.names)
        )
        _measure(found, sizes)
        conventions = getattr(stored_array(found), "conventions", Conventions())
        notes += [note for note in conventions.notes if note not in notes]
        units = entry.units or [conventions.units or "1"] * len(entry.names)
        if len(units) != len(entry.names):
            raise SourceError(
                f"{options.mapping}: fields {entry.names} have {len(units)} units: give one each"
            )
        arrays.append(found)
        fields += [StoredField(n, n, u) for n, u in zip(entry.names, units, strict=True)]
    order = AXIS_NAMES.get(len(set(sizes) & {"x", "y", "z"}), ())
    if not order or set(order) != set(sizes) & {"x", "y", "z"}:
        raise SourceError(
            f"{options.mapping}: axes name {sorted(set(sizes) & {'x', 'y', 'z'})} of space; "
            f"required are x, or y and x, or z, y and x"
        )
    count = sizes.get("n", 1)
    part = Part(tuple(arrays), count, parameters=_parameters(path, mapping, count))
    return Source(
        format="arrays",
        name=mapping.name or named(path),
        equation=mapping.equation,
        fields=tuple(fields),
        splits={"all": (part,)},
        num_frames=sizes.get("t", 1),
        grid_shape=tuple(sizes[letter] for letter in order),
        frame_interval=mapping.frame_interval,
        domain_extent=tuple(mapping.domain_extent.get(letter, 1.0) for letter in order),  # type: ignore[call-overload]
        boundary_conditions=mapping.boundary_conditions,
        constant_fields=mapping.constant_fields,
        published_normalization=mapping.published_normalization,
        published_splits=_splits(mapping, options.mapping, count),
        grid_location=mapping.grid_location,
        notes=tuple(notes),
        details={"source_bytes": stored_bytes({array.file for array in arrays})},
    )


def _file(path: str, name: str | None) -> tuple[str, str]:
    """Reader and address of a file that a mapping names, beside or in the source."""
    place = path
    if name is not None:
        folder = (
            Path(path) if Path(path).is_dir() and not path.endswith(".zarr") else Path(path).parent
        )
        place = name if "://" in name or Path(name).is_absolute() else str(folder / name)
    for suffix, reader in READER_OF_SUFFIX.items():
        if place.rstrip("/").endswith(suffix):
            return reader, place
    raise SourceError(f"{place}: known are files ending in {', '.join(READER_OF_SUFFIX)}")


def _measure(array: StoredArray, sizes: dict[str, int]) -> None:
    """Add the sizes of an array's axes to those known, which they must equal."""
    shape = stored_array(array).shape
    if len(shape) != len(array.axes):
        raise SourceError(
            f"{array.address} has shape {shape}, the mapping names the axes {list(array.axes)}"
        )
    for letter, size in zip(array.axes, shape, strict=True):
        wanted = {"c": array.num_channels, "1": 1}.get(letter, sizes.get(letter, size))
        if size != wanted:
            raise SourceError(
                f"{array.address} has shape {shape} along {list(array.axes)}: axis {letter} has "
                f"{size}, required are {wanted}"
            )
        if letter not in "c1":
            sizes[letter] = int(size)
    if "c" not in array.axes and array.num_channels > 1:
        raise SourceError(f"{array.address} has {array.num_channels} names but no axis c")


def _parameters(path: str, mapping: Mapping, count: int) -> dict[str, float | tuple[float, ...]]:
    found: dict[str, float | tuple[float, ...]] = {}
    for name, value in mapping.parameters.items():
        if isinstance(value, float):
            found[name] = value
            continue
        array = StoredArray(*_file(path, value.file), value.key, "n", 0)
        numbers = np.asarray(whole_array(array), np.float64).reshape(-1)
        if len(numbers) != count:
            raise SourceError(
                f"{array.address} has {len(numbers)} numbers, parameter {name!r} needs one for "
                f"each of {count} trajectories"
            )
        found[name] = tuple(map(float, numbers))
    return found


def _splits(mapping: Mapping, file: str, count: int) -> dict[str, int] | None:
    if mapping.splits is None:
        return None
    try:
        return split_counts(count, mapping.splits)
    except ValueError as error:
        raise SourceError(f"{file}: {error}") from error


FORMAT = Format(
    "arrays",
    "plain arrays: .npy, .npz, .h5, .nc, .zarr and a mapping",
    "a file or the folder of the files, with --mapping FILE.yaml",
    lambda path, options: options.mapping is not None,
    _read,
)
