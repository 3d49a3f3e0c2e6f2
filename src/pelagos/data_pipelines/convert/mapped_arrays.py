"""Plain arrays (.npy, .npz, .h5, .nc, .zarr) that a small YAML file describes: see `mapping`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pelagos.data_pipelines.convert.formats import Format, named, stored_bytes
from pelagos.data_pipelines.convert.mapping import Mapping, ParameterMapping, load_mapping
from pelagos.data_pipelines.convert.mapping.files import Unit, is_pattern, matched_files
from pelagos.data_pipelines.convert.mapping.measuring import Files, Measured, measure
from pelagos.data_pipelines.convert.mapping.places import require_one_region
from pelagos.data_pipelines.convert.mapping.positions import (
    STEP_RELATIVE_TOLERANCE,
    require_one_place,
    same_unit,
)
from pelagos.data_pipelines.convert.options import ConvertOptions, split_counts
from pelagos.data_pipelines.convert.readers import array_names
from pelagos.data_pipelines.convert.source import Part, Source, SourceError
from pelagos.data_pipelines.store import Field as StoredField
from pelagos.data_pipelines.store.schema import AXIS_NAMES


def _read(path: str, options: ConvertOptions) -> Source:
    if options.mapping is None:
        raise SourceError(f"{path}: plain arrays need --mapping FILE.yaml (docs/converting.md)")
    return source_of(path, load_mapping(options.mapping), options, options.mapping)


def source_of(
    path: str,
    mapping: Mapping,
    options: ConvertOptions,
    label: str,
    notes: Sequence[str] = (),
    check: Callable[[Sequence[Measured]], None] = lambda found: None,
    format_name: str = "arrays",
) -> Source:
    """The source that a mapping makes from the files at `path`.

    Args:
        label: names the mapping in messages.
        notes: earlier decisions.
        check: examines the files' contents, and raises.

    Raises:
        SourceError: files differ from the mapping, or do not fit together.
    """
    notes = list(notes)
    files, units = _files(path, mapping, notes)
    found = [measure(path, mapping, unit, files) for unit in units]
    order = _grid_axes(found, label)
    found = _of_one_grid(found, order, options.grid, notes)
    check(found)
    _require_equal_units(found)
    num_frames = _num_frames(found, mapping, options, notes)
    frame_interval, times = _frame_interval(found, mapping)
    splits = _splits(found)
    if len(splits) > 1 and mapping.splits is not None:
        raise SourceError(
            f"{label}: the folders of the files already give the splits; leave out splits"
        )
    notes += [*_assumed(found, mapping, order), *_only_in_some(found), *_other_beginnings(found)]
    notes += list(dict.fromkeys(note for unit in found for note in unit.notes))
    first = found[0]
    names = [name for entry in mapping.fields for name in entry.names]
    addresses = {array.file for unit in found for array in unit.arrays}
    return Source(
        format=format_name,
        name=mapping.name or named(path),
        equation=mapping.equation,
        fields=tuple(StoredField(n, n, u) for n, u in zip(names, first.units, strict=True)),
        splits=splits,
        num_frames=num_frames,
        grid_shape=tuple(first.sizes[letter] for letter in order),
        frame_interval=frame_interval,
        domain_extent=tuple(_extent(found, mapping, order)),
        boundary_conditions=mapping.boundary_conditions,
        constant_fields=mapping.constant_fields,
        published_normalization=mapping.published_normalization,
        published_splits=_published_splits(mapping, label, found),
        grid_location=mapping.grid_location,
        notes=tuple(notes),
        missing=mapping.missing,
        fill_value=mapping.fill_value,
        details={"source_bytes": stored_bytes(addresses), **times},
    )


def _files(path: str, mapping: Mapping, notes: list[str]) -> tuple[Files, list[Unit]]:
    """The files of each pattern, and the units that they make up.

    Raises:
        SourceError: the files of two patterns are not of the same names.
    """
    patterns = [entry.file for entry in mapping.fields if is_pattern(entry.file)]
    others = [
        *mapping.parameters.values(),
        mapping.frame_interval,
        *mapping.domain_extent.values(),
    ]
    patterns += [v.file for v in others if isinstance(v, ParameterMapping) and is_pattern(v.file)]
    if not patterns:
        return {}, [Unit("", ())]
    shared = [e for e in mapping.fields if not is_pattern(e.file) and "n" in e.axes]
    if shared:
        raise SourceError(
            f"the mapping's field {shared[0].names[0]} has an axis n in one file, but other fields "
            "are in the files of a pattern. Trajectories are either all in one file or each in its "
            "own"
        )
    files = {p: matched_files(path, p, notes) for p in dict.fromkeys(patterns) if p is not None}
    (first, units), *rest = [(pattern, list(found)) for pattern, found in files.items()]
    for pattern, theirs in rest:
        lacking = [u for u in units if u not in theirs] or [u for u in theirs if u not in units]
        if lacking:
            has = first if lacking[0] in units else pattern
            lacks = pattern if has == first else first
            raise SourceError(
                f"{files[has][lacking[0]]} has no matching file for {lacks}: {len(units)} files "
                f"match {first}, {len(theirs)} match {pattern}"
            )
    return files, units


def _grid_axes(found: Sequence[Measured], file: str) -> tuple[str, ...]:
    """Axes of space, slowest first.

    Raises:
        SourceError: they are no axes of a grid.
    """
    sizes = found[0].sizes
    order = AXIS_NAMES.get(len(set(sizes) & {"x", "y", "z"}), ())
    if not order or set(order) != set(sizes) & {"x", "y", "z"}:
        raise SourceError(
            f"{file}: the axes of space are {sorted(set(sizes) & {'x', 'y', 'z'})}; expected x, or "
            "y and x, or z, y and x"
        )
    return order


def _of_one_grid(
    found: Sequence[Measured],
    order: Sequence[str],
    wanted: tuple[int, ...] | None,
    notes: list[str],
) -> list[Measured]:
    """The files of one grid: that asked for, or the only one.

    Raises:
        SourceError: several exist, or none of the requested one.
    """
    by_grid: dict[tuple[int, ...], list[Measured]] = {}
    for unit in found:
        by_grid.setdefault(tuple(unit.sizes[letter] for letter in order), []).append(unit)
    told = "".join(
        f"\n  {len(units)} with {'x'.join(map(str, grid))}, e.g. {units[0].file}"
        for grid, units in sorted(by_grid.items(), key=lambda item: -len(item[1]))
    )
    if wanted is None and len(by_grid) > 1:
        example = "x".join(map(str, next(iter(by_grid))))
        raise SourceError(
            f"the files have {len(by_grid)} different grids ({' x '.join(order)}):{told}\nA dataset "
            f"has one grid. Convert each grid into its own dataset (--grid {example}), and name the "
            "datasets together in a mixture, which takes several grids"
        )
    if wanted is None:
        return list(found)
    if wanted not in by_grid:
        asked = "x".join(map(str, wanted))
        raise SourceError(f"--grid {asked}: no file has this grid ({' x '.join(order)}):{told}")
    others = len(found) - len(by_grid[wanted])
    if others:
        notes.append(f"{others} of {len(found)} files have other grids and are left out")
    return by_grid[wanted]


def _require_equal_units(found: Sequence[Measured]) -> None:
    for unit in found[1:]:
        if unit.units != found[0].units:
            raise SourceError(
                f"{unit.file} has the units {', '.join(unit.units)}, but {found[0].file} has "
                f"{', '.join(found[0].units)}. Write all files in the same units, or name the units "
                "by `units` in the mapping"
            )
        for name, (said, where) in unit.parameter_units.items():
            first, first_where = found[0].parameter_units[name]
            if not same_unit(said, first):
                raise SourceError(
                    f"{where} is in {said or 'no unit'}, but {first_where} in {first or 'no unit'}. "
                    "A parameter has one unit in all files of a dataset; write all files in one "
                    "unit"
                )


def _num_frames(
    found: Sequence[Measured], mapping: Mapping, options: ConvertOptions, notes: list[str]
) -> int:
    """Frames of every trajectory.

    Raises:
        SourceError: files differ in length without an instruction, or one is too short.
    """
    lengths = [unit.num_frames for unit in found]
    shortest = found[lengths.index(min(lengths))]
    wanted = options.num_frames or mapping.num_frames
    if wanted is None and min(lengths) != max(lengths):
        longest = found[lengths.index(max(lengths))]
        raise SourceError(
            f"{shortest.file} has {min(lengths)} frames and {longest.file} has {max(lengths)}, but "
            "all trajectories of a dataset have one length. `num_frames: shortest` in the mapping "
            f"keeps the first {min(lengths)} of each, `num_frames: N` (or --num-frames N) the first "
            "N"
        )
    if isinstance(wanted, int) and wanted > min(lengths):
        raise SourceError(
            f"num_frames is {wanted}, but {shortest.file} has {min(lengths)} frames. Leave the file "
            "out with a narrower pattern, or keep fewer frames"
        )
    kept = wanted if isinstance(wanted, int) else min(lengths)
    longer = sum(length > kept for length in lengths)
    if longer and options.num_frames is None:
        notes.append(f"the first {kept} frames are kept; {longer} of {len(found)} files have more")
    return kept


def _frame_interval(found: Sequence[Measured], mapping: Mapping) -> tuple[float, dict[str, str]]:
    """Time between frames, and the unit of time where the files say it.

    Raises:
        SourceError: files have different time steps or units of time.
    """
    if not isinstance(mapping.frame_interval, ParameterMapping):
        return mapping.frame_interval, {}
    first = found[0].time
    assert first is not None, found[0]
    for unit in found[1:]:
        assert unit.time is not None, unit
        if not unit.time.steps_as(first, STEP_RELATIVE_TOLERANCE):
            raise SourceError(
                f"{unit.file} has a frame every {unit.time.cadence}, but {found[0].file} every "
                f"{first.cadence}. A dataset has one time step, unit of time and calendar. Convert "
                "the files into several datasets, with one pattern each"
            )
    return first.step, first.described


def _extent(found: Sequence[Measured], mapping: Mapping, order: Sequence[str]) -> list[float]:
    """Length of the domain along each axis.

    Raises:
        SourceError: the points are elsewhere in one file than in another.
    """
    first = found[0]
    for unit in found[1:]:
        for name in unit.places.keys() & first.places.keys():
            require_one_region(unit.places[name], first.places[name], name)
    lengths = []
    for letter in order:
        for unit in found[1:]:
            if letter in unit.positions and letter in first.positions:
                require_one_place(unit.positions[letter], first.positions[letter], letter)
        given = mapping.domain_extent.get(letter, 1.0)  # type: ignore[call-overload]
        if isinstance(given, ParameterMapping):
            given = f"{abs(first.spacing[letter]) * first.sizes[letter]:.12g}"
        lengths.append(float(given))
    return lengths


def _assumed(found: Sequence[Measured], mapping: Mapping, order: Sequence[str]) -> list[str]:
    """Notes on assumed times and lengths, and on axes that run the other way."""
    first = found[0]
    notes = []
    unsaid = []
    if "t" in first.sizes and "frame_interval" not in mapping.model_fields_set:
        unsaid.append("frame_interval")
    if letters := [letter for letter in order if letter not in mapping.domain_extent]:
        unsaid.append(f"the extent along {', '.join(letters)}")
    if unsaid:
        notes.append(f"the source does not record these, so 1 is assumed for: {', '.join(unsaid)}")
    for letter in order:
        positions = first.positions.get(letter)
        if positions is not None and positions.falls:
            notes.append(
                f"{positions.where} falls, {positions}; rows keep the file's order, so the "
                f"dataset's {letter} runs against it"
            )
    return notes


def _only_in_some(found: Sequence[Measured]) -> list[str]:
    """Arrays that the first files have not, so that draft and user may not know them."""
    known = [set(array_names(array)) for array in found[0].arrays]
    having: dict[str, list[str]] = {}
    for unit in found[1:]:
        others = {
            (name, array.file)
            for array, names in zip(unit.arrays, known, strict=True)
            for name in array_names(array)
            if name not in names
        }
        for name, file in sorted(others):
            having.setdefault(name, []).append(file)
    return [
        f"left out: {name}, which {len(files)} of {len(found)} files have, e.g. {files[0]}, but "
        f"{found[0].file} lacks"
        for name, files in having.items()
    ]


def _other_beginnings(found: Sequence[Measured]) -> list[str]:
    """A note where trajectories begin at different times, which the dataset does not keep."""
    first = found[0]
    for unit in found[1:]:
        if first.time is None or unit.time is None:
            continue
        one, other = (t.points if t.moments is None else t.moments for t in (first.time, unit.time))
        if not _are_close(float(other[0] - one[0]) + first.time.step, first.time.step):
            return [
                f"the time of the first frame differs: {first.time.start} in {first.file}, "
                f"{unit.time.start} in {unit.file}; frames are counted from 0"
            ]
    return []


def _are_close(one: float, other: float) -> bool:
    return abs(one - other) <= STEP_RELATIVE_TOLERANCE * abs(other)


def _splits(found: Sequence[Measured]) -> dict[str, tuple[Part, ...]]:
    splits: dict[str, list[Part]] = {}
    for unit in found:
        part = Part(unit.arrays, unit.count, parameters=unit.parameters)
        splits.setdefault(unit.unit.split or "all", []).append(part)
    return {name: tuple(parts) for name, parts in splits.items()}


def _published_splits(
    mapping: Mapping, file: str, found: Sequence[Measured]
) -> dict[str, int] | None:
    if mapping.splits is None:
        return None
    try:
        return split_counts(sum(unit.count for unit in found), mapping.splits)
    except ValueError as error:
        raise SourceError(f"{file}: {error}") from error


FORMAT = Format(
    "arrays",
    "plain arrays: .npy, .npz, .h5, .nc, .zarr and a mapping",
    "a file, or the folder of the files, with --mapping FILE.yaml",
    lambda path, options: options.mapping is not None,
    _read,
)
