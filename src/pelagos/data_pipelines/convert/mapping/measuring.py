"""Looking into the arrays that a mapping names: sizes, units and parameters of each file."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping as AbstractMapping
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy.typing as npt

from pelagos.data_pipelines.conventions import Conventions, TimeAxis, time_axis
from pelagos.data_pipelines.convert.mapping.files import Unit, address_of, is_pattern, reader_of
from pelagos.data_pipelines.convert.mapping.places import Place, own_places, require_one_region
from pelagos.data_pipelines.convert.mapping.positions import (
    Positions,
    own_positions,
    read_positions,
    require_one_place,
    unit_of,
)
from pelagos.data_pipelines.convert.mapping.schema import ArrayMapping, Mapping, ParameterMapping
from pelagos.data_pipelines.convert.readers import parameter_of, positions_of, stored_array
from pelagos.data_pipelines.convert.source import SourceError, StoredArray

EVEN_ADVICE = "Give a number as {} in a mapping to ignore it"

Files = AbstractMapping[str, AbstractMapping[Unit, str]]
"""For each pattern its files."""


@dataclass(frozen=True)
class Measured:
    """The contents of one unit's files.

    Attributes:
        arrays: the stored arrays, with the channels that they fill.
        sizes: length of each axis by its letter.
        parameters: one number for all of the unit's trajectories, or one each.
        parameter_units: of the parameters stored in arrays, with the array.
        units: of each field, from the mapping or else from the arrays' attributes.
        time: the times of the frames, where the mapping names their array.
        positions: along axes of space and time, where the mapping names those of space or the
            files give them.
        spacing: from one point to the next along axes of space, where the mapping names their
            positions; negative where positions fall.
        places: auxiliary coordinates of the grid, by name.
        notes: assumptions about the arrays.
    """

    unit: Unit
    arrays: tuple[StoredArray, ...]
    sizes: dict[str, int]
    parameters: dict[str, float | tuple[float, ...]] = field(default_factory=dict)
    parameter_units: dict[str, tuple[str, str]] = field(default_factory=dict)
    units: tuple[str, ...] = ()
    time: TimeAxis | None = None
    positions: dict[str, Positions] = field(default_factory=dict)
    spacing: dict[str, float] = field(default_factory=dict)
    places: dict[str, Place] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def count(self) -> int:
        return self.sizes.get("n", 1)

    @property
    def num_frames(self) -> int:
        return self.sizes.get("t", 1)

    @property
    def file(self) -> str:
        """The first file that belongs to this unit alone, for messages."""
        return self.arrays[0].file


def measure(path: str, mapping: Mapping, unit: Unit, files: Files) -> Measured:
    """Look into the files of one unit.

    Raises:
        SourceError: an array differs from the mapping.
    """
    arrays: list[StoredArray] = []
    units: list[str] = []
    notes: list[str] = []
    sizes: dict[str, int] = {}
    channel = 0
    for entry in mapping.fields:
        found = _stored(path, entry, unit, files, channel)
        _measure_axes(found, sizes)
        conventions = getattr(stored_array(found), "conventions", Conventions())
        notes += [note for note in conventions.notes if note not in notes]
        units += _units(entry, conventions)
        arrays.append(found)
        channel += len(entry.names)
    count = sizes.get("n", 1)
    parameters, parameter_units = _parameters(path, mapping, unit, files, count, notes)
    time = _time(path, mapping.frame_interval, unit, files, sizes.get("t", 1))
    positions = _positions(path, mapping, unit, files, sizes)
    advice = EVEN_ADVICE.format("domain_extent")
    spacing = {letter: found.step(advice) for letter, found in positions.items()}
    _add_own_positions(positions, arrays, mapping)
    places = _own_places(arrays, mapping)
    return Measured(
        unit,
        tuple(arrays),
        sizes,
        parameters,
        parameter_units,
        tuple(units),
        time,
        positions,
        spacing,
        places,
        tuple(notes),
    )


def _place(path: str, name: str | None, unit: Unit, files: Files) -> str:
    return files[name or ""][unit] if is_pattern(name) else address_of(path, name)


def _stored(path: str, entry: ArrayMapping, unit: Unit, files: Files, channel: int) -> StoredArray:
    place = _place(path, entry.file, unit, files)
    axes = "".join(entry.axes)
    return StoredArray(reader_of(place), place, entry.key, axes, channel, len(entry.names))


def _units(entry: ArrayMapping, conventions: Conventions) -> list[str]:
    units = entry.units or [conventions.units or "1"] * len(entry.names)
    if len(units) != len(entry.names):
        raise SourceError(
            f"the mapping's fields {entry.names} have {len(units)} units; give one per name"
        )
    return units


def _measure_axes(array: StoredArray, sizes: dict[str, int]) -> None:
    """Add the sizes of an array's axes to those known, which they must equal."""
    shape = stored_array(array).shape
    if len(shape) != len(array.axes):
        raise SourceError(
            f"{array.address} has shape {shape}, but the mapping names the axes {list(array.axes)}"
        )
    for letter, size in zip(array.axes, shape, strict=True):
        wanted = {"c": array.num_channels, "1": 1}.get(letter, sizes.get(letter, size))
        if size != wanted:
            raise SourceError(
                f"{array.address} has shape {shape} along {list(array.axes)}: axis {letter} has "
                f"{size}, expected {wanted}"
            )
        if letter not in "c1":
            sizes[letter] = int(size)
    if "c" not in array.axes and array.num_channels > 1:
        raise SourceError(f"{array.address} has {array.num_channels} names but no axis c")


def _parameters(
    path: str, mapping: Mapping, unit: Unit, files: Files, count: int, notes: list[str]
) -> tuple[dict[str, float | tuple[float, ...]], dict[str, tuple[str, str]]]:
    """The numbers of each parameter, and its unit with the array that says so."""
    found: dict[str, float | tuple[float, ...]] = {}
    units: dict[str, tuple[str, str]] = {}
    for name, value in mapping.parameters.items():
        if not isinstance(value, ParameterMapping):
            found[name] = value
            continue
        place = _place(path, value.file, unit, files)
        array = StoredArray(reader_of(place), place, value.key, "n", 0)
        try:
            numbers = parameter_of(array, name, notes)
        except SourceError as error:
            raise SourceError(f"{error}. It is parameter {name!r}, which every file has") from error
        if len(numbers) != count:
            raise SourceError(
                f"{array.address} has {len(numbers)} numbers, but parameter {name!r} needs one for "
                f"each of {count} trajectories"
            )
        found[name] = tuple(map(float, numbers))
        units[name] = unit_of(array), array.address
    return found, units


def _time(
    path: str, given: float | ParameterMapping, unit: Unit, files: Files, num_frames: int
) -> TimeAxis | None:
    if not isinstance(given, ParameterMapping):
        return None
    array, points = _coordinate(path, given, unit, files, "t", num_frames)
    attributes = getattr(stored_array(array), "attributes", {})
    try:
        time = time_axis(points, attributes, array.address)
    except ValueError as error:
        raise SourceError(str(error)) from error
    points_of_time = Positions(time.points, time.unit or "", array.address)
    step = points_of_time.step(EVEN_ADVICE.format("frame_interval"))
    if step < 0:
        raise SourceError(
            f"{array.address} falls from {time.points[0]:g} to {time.points[-1]:g}: the frames run "
            f"backwards in time. Write them in the order of time, or give a number as "
            f"frame_interval in a mapping to keep their order"
        )
    return dataclasses.replace(time, step=step)


def _positions(
    path: str, mapping: Mapping, unit: Unit, files: Files, sizes: AbstractMapping[str, int]
) -> dict[str, Positions]:
    """The positions along axes of space that the mapping names."""
    found = {}
    for letter, given in mapping.domain_extent.items():
        if isinstance(given, ParameterMapping):
            place = _place(path, given.file, unit, files)
            array = StoredArray(reader_of(place), place, given.key, letter, 0)
            found[str(letter)] = read_positions(array, sizes.get(letter, 1))
    return found


def _add_own_positions(
    positions: dict[str, Positions], arrays: Sequence[StoredArray], mapping: Mapping
) -> None:
    """Add the properties that the arrays' files state, which must be the same in all files.

    A number in the mapping passes over it.
    """
    given: dict[str, Any] = {str(key): value for key, value in mapping.domain_extent.items()}
    if "frame_interval" in mapping.model_fields_set:
        given["t"] = mapping.frame_interval
    for array in arrays:
        for letter, own in own_positions(array).items():
            if not isinstance(given.get(letter), int | float):
                require_one_place(own, positions.setdefault(letter, own), letter)


def _own_places(arrays: Sequence[StoredArray], mapping: Mapping) -> dict[str, Place]:
    """The position of the grid by the arrays' files, which must be the same in all files.

    Numbers for all axes in the mapping pass over it.
    """
    places: dict[str, Place] = {}
    for array in arrays:
        letters = set(array.axes) & set("zyx")
        given = [mapping.domain_extent.get(letter) for letter in letters]  # type: ignore[call-overload]
        if all(isinstance(value, int | float) for value in given):
            continue
        for name, place in own_places(array).items():
            require_one_region(place, places.setdefault(name, place), name)
    return places


def _coordinate(
    path: str, given: ParameterMapping, unit: Unit, files: Files, letter: str, size: int
) -> tuple[StoredArray, npt.NDArray[Any]]:
    """Positions along an axis, as many as it has."""
    place = _place(path, given.file, unit, files)
    array = StoredArray(reader_of(place), place, given.key, letter, 0)
    points = positions_of(array)
    if len(points) != size:
        raise SourceError(
            f"{array.address} has {len(points)} positions, but axis {letter} of the arrays has "
            f"{size}"
        )
    return array, points
