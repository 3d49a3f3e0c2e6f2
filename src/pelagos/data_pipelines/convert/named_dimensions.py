"""netCDF and HDF5 files that name their dimensions, converted unaided as Zarr is.

The names give the axes, variables of their names the positions and times, and the attributes of CF
the values. A folder holds files that are alike, each with trajectories of its own.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

from pelagos.data_pipelines.convert.formats import HDF5_SUFFIXES, Format, files_of, split_folders
from pelagos.data_pipelines.convert.mapped_arrays import source_of
from pelagos.data_pipelines.convert.mapping.draft import Draft, draft_mapping
from pelagos.data_pipelines.convert.mapping.measuring import Measured
from pelagos.data_pipelines.convert.mapping.positions import STEP_RELATIVE_TOLERANCE
from pelagos.data_pipelines.convert.options import ConvertOptions
from pelagos.data_pipelines.convert.source import Source, SourceError


def _matches(path: str, options: ConvertOptions) -> bool:
    folders = [str(folder) for folder in split_folders(path).values()] or [path]
    if not any(files_of(folder, (*HDF5_SUFFIXES, ".cdf")) for folder in folders):
        return False
    draft = _draft(path)
    return draft is not None and not draft.guesses


def _draft(path: str) -> Draft | None:
    try:
        return draft_mapping(path)
    except (SourceError, OSError) as error:
        if isinstance(error.__cause__, ModuleNotFoundError):
            raise
        return None


def _read(path: str, options: ConvertOptions) -> Source:
    draft = draft_mapping(path)
    if draft.guesses:
        raise SourceError(
            f"{path} does not name its dimensions. `pelagos convert {path} --draft-mapping` "
            "proposes a mapping for you to check"
        )
    notes = []
    if draft.left_out:
        names = ", ".join(array.key for array in draft.left_out)
        notes.append(
            "left out, because they are not along time or trajectories, or have another grid or "
            f"length: {names}"
        )
    return source_of(
        path, draft.mapping, options, path, notes, _require_own_trajectories, FORMAT.name
    )


def _require_own_trajectories(found: Sequence[Measured]) -> None:
    """Reject files that continue each other in time: pieces of one trajectory, not several."""
    timed = [unit for unit in found if unit.time is not None and "n" not in unit.sizes]
    by_time = sorted(timed, key=lambda unit: _begin_and_end(unit)[0])
    for one, next_one in itertools.pairwise(by_time):
        (begin, end, date), (next_begin, _, next_date) = map(_begin_and_end, (one, next_one))
        step = (end - begin) / max(one.num_frames - 1, 1)
        gap = next_begin - end
        if date != next_date or abs(gap - step) > STEP_RELATIVE_TOLERANCE * step:
            return
    if len(by_time) > 1:
        raise SourceError(
            f"{by_time[1].file} begins where {by_time[0].file} ends, so the files are pieces of one "
            "trajectory. Join them first (xarray.open_mfdataset(FILES).to_netcdf('NEW.nc')). If "
            "each should be a trajectory, say so in a mapping (`pelagos convert "
            f"{Path(by_time[0].file).parent} --draft-mapping`)"
        )


def _begin_and_end(unit: Measured) -> tuple[float, float, str]:
    """First and last time, in seconds where the file gives the date, and otherwise their reference."""
    assert unit.time is not None, unit
    moments = unit.time.moments
    points = unit.time.points if moments is None else moments
    origin = unit.time.origin or "" if moments is None else "date"
    return float(points[0]), float(points[-1]), origin


FORMAT = Format(
    "netcdf",
    "netCDF or HDF5 whose dimensions have names",
    "a file, a folder of files that are alike, or such folders in train, val, test",
    _matches,
    _read,
)
