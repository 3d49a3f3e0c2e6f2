"""Files that forecasts start from, read block by block along their first axis of samples."""

import itertools
import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from pelagos.data_pipelines.foreign import open_readable
from pelagos.data_pipelines.store.layout import MANIFEST_KEY
from pelagos.data_pipelines.store.readable import ReadableDataset
from pelagos.data_pipelines.store.schema import AXIS_NAMES
from pelagos.infra.json_text import parse_json
from pelagos.infra.storage.remote import is_remote
from pelagos.jobs.forecasting.volumes import read_volume
from pelagos.jobs.weights.labelled import CHANNEL_DIMS, TIME, Labelled, Layout
from pelagos.jobs.weights.trained_network import TrainedNetwork

SUFFIXES = (".nc", ".zarr", ".npy", ".nii", ".nii.gz")
_HDF5 = b"\x89HDF"


class Source(ABC):
    """Starts of forecasts.

    Attributes:
        rows_axis: the axis that is read in blocks; None: there is one sample without an axis.
        num_rows: along it.
        values_per_row: numbers of a row.
        num_grid_axes: of the fields.
        coordinates: of the whole file.
        absent: fields that are known to be absent, as they were in training.
        offset: numbers that were subtracted in training; None: as usual.
    """

    rows_axis: str | None
    num_rows: int
    values_per_row: int
    num_grid_axes: int
    coordinates: Mapping[Any, xr.Variable]
    absent: tuple[str, ...]
    offset: Mapping[str, float] | None

    @abstractmethod
    def read(self, rows: range) -> Labelled:
        """Return some rows, in memory."""


def open_source(
    path: str, model: TrainedNetwork, fields: Sequence[str], start: str = "last", split: str = "all"
) -> Source:
    """Open a file of starts.

    Args:
        fields: the names of an unnamed array's channels.
        start: of the frames along `time`, where the forecasts begin: `last`, `first`, a number, or
            `all`, from each.
        split: of a Pelagos dataset.

    Raises:
        ValueError: it is no file that can be read, or holds no such frame.
    """
    plain = path.rstrip("/")
    suffix = next((s for s in SUFFIXES if plain.lower().endswith(s)), None)
    if suffix is None and not is_remote(plain):
        raise ValueError(f"{path}: expected a name that ends in {', '.join(SUFFIXES)}")
    if not is_remote(plain) and not Path(plain).exists():
        raise FileNotFoundError(2, "No such file or directory", path)
    if is_remote(plain) or (suffix == ".zarr" and (Path(plain) / MANIFEST_KEY).is_file()):
        return DatasetSource(open_readable(plain), model, start, split)
    if suffix == ".npy":
        return ArraySource(plain, model, fields, start)
    if suffix in (".nii", ".nii.gz"):
        return LabelledSource(read_volume(Path(plain), fields), model, start)
    data = _open_zarr(Path(plain)) if suffix == ".zarr" else _open_netcdf(Path(plain))
    return LabelledSource(_chosen(data, fields), model, start)


class LabelledSource(Source):
    """An xarray object whose numbers are read when they are asked for."""

    def __init__(self, data: Labelled, model: TrainedNetwork, start: str) -> None:
        self.data = _from_start(data, start, model.input_frames)
        layout = Layout.of(self.data, model.trained_on, model.input_frames)
        samples = layout.samples
        self.rows_axis = samples[0] if samples else None
        self.num_rows = int(self.data.sizes[samples[0]]) if samples else 1
        variables = (
            self.data.data_vars.values() if isinstance(self.data, xr.Dataset) else [self.data]
        )
        self.values_per_row = sum(variable.size for variable in variables) // max(1, self.num_rows)
        self.num_grid_axes = len(layout.grid)
        self.coordinates = {k: v.variable for k, v in self.data.coords.items()}
        self.absent, self.offset = (), None

    def read(self, rows: range) -> Labelled:
        if self.rows_axis is None:
            return self.data.load()
        return self.data.isel({self.rows_axis: slice(rows.start, rows.stop)}).load()


class ArraySource(LabelledSource):
    """A `.npy` file `[sample, (frame,) channel, *grid]`, mapped into memory."""

    def __init__(self, path: str, model: TrainedNetwork, fields: Sequence[str], start: str) -> None:
        try:
            self.array = np.load(path, mmap_mode="r", allow_pickle=False)
        except ValueError as error:
            raise ValueError(f"{path} is no array of numbers: {error}") from error
        frames = [TIME] if model.input_frames > 1 else []
        count = model.trained_on.num_dimensions or self.array.ndim - len(frames) - 2
        grid = AXIS_NAMES.get(count, ())
        dims = ("sample", *frames, "channel", *grid)
        array = self.array if self.array.ndim == len(dims) else self.array[None]
        if array.ndim != len(dims) or array.shape[len(dims) - len(grid) - 1] != len(fields):
            raise ValueError(
                f"{path} has shape {self.array.shape}, expected [{', '.join(dims)}] with "
                f"{len(fields)} channels: {', '.join(fields)}"
            )
        self.dims, self.fields, self.array = dims, list(fields), array
        self.rows_axis, self.num_rows = "sample", len(array)
        self.values_per_row, self.num_grid_axes = math.prod(array.shape[1:]), len(grid)
        self.coordinates = {}
        self.absent, self.offset = (), None

    def read(self, rows: range) -> Labelled:
        part = np.array(self.array[rows.start : rows.stop])
        return xr.DataArray(part, {"channel": self.fields}, self.dims, "forecast")


class DatasetSource(Source):
    """A Pelagos dataset, or another one that its reader opens: a row per trajectory."""

    def __init__(
        self, dataset: ReadableDataset, model: TrainedNetwork, start: str, split: str
    ) -> None:
        self.dataset, self.trajectories = dataset, dataset.split(split)
        spec, count = dataset.spec, model.input_frames
        self.frames = _frames_of(start, dataset.num_frames, count)
        self.constants = {n: v for n, v in spec.constant_fields.items() if n in model.fields}
        self.has_time = count > 1
        self.rows_axis, self.num_rows = "trajectory", len(self.trajectories)
        self.values_per_row = count * math.prod(spec.frame_shape)
        self.num_grid_axes = len(spec.grid_shape)
        points = spec.coordinates()
        times = {"units": str(spec.generator.get("time_unit", "1"))}
        axis = (TIME,) if self.has_time else ()
        time = points[TIME][self.frames if self.has_time else self.frames[-1]]
        self.coordinates = {
            "trajectory": xr.Variable("trajectory", list(self.trajectories)),
            TIME: xr.Variable(axis, time, times),
            **{name: xr.Variable(name, points[name]) for name in spec.axis_names},
        }
        known = {r["fingerprint"]: r for r in model.description.get("datasets", ())}
        record = known.get(dataset.fingerprint)
        self.offset = None if record is None else record.get("offset", {})
        has = {*dataset.field_names, *self.constants}
        masks = set(model.description.get("masks", {}).values())
        self.absent = tuple(
            name
            for name in model.fields
            if name not in has and (record is not None or name in masks)
        )

    def read(self, rows: range) -> Labelled:
        spec = self.dataset.spec
        chosen = self.trajectories[rows.start : rows.stop]
        data = np.stack([self.dataset.read_frames(t, self.frames) for t in chosen])
        if not self.has_time:
            data = data[:, 0]
        dims = ("trajectory", *((TIME,) if self.has_time else ()), *spec.axis_names)
        axis = 2 if self.has_time else 1
        values = {
            field.name: (dims, data.take(channel, axis), {"units": field.unit})
            for channel, field in enumerate(spec.fields)
        }
        shape = (*data.shape[:axis], *data.shape[axis + 1 :])
        for name, value in self.constants.items():
            values[name] = (dims, np.full(shape, value, np.float32), {})
        coordinates = dict(self.coordinates)
        coordinates["trajectory"] = xr.Variable("trajectory", list(chosen))
        return xr.Dataset(values, coordinates, {"source": spec.name})


def _from_start(data: Labelled, start: str, input_frames: int) -> Labelled:
    if TIME not in data.dims:
        return data
    if start == "all":
        if input_frames > 1:
            raise ValueError(
                f"--from all: the model needs {input_frames} frames for one forecast. Give the number "
                "of the last of them"
            )
        return data
    frames = _frames_of(start, int(data.sizes[TIME]), input_frames)
    return data.isel({TIME: frames[0] if input_frames == 1 else frames})


def _frames_of(start: str, num_frames: int, input_frames: int) -> list[int]:
    """Return the frames that a forecast starts from; `start` is the last of them.

    Raises:
        ValueError: there are too few.
    """
    names = {"first": input_frames - 1, "last": num_frames - 1}
    if start not in names and not start.removeprefix("-").isdigit():
        raise ValueError(
            f"--from {start}: expected first, last, all, or the number of a frame from 0"
        )
    last = names[start] if start in names else int(start)
    last = last + num_frames if last < 0 else last
    if not input_frames - 1 <= last < num_frames:
        raise ValueError(
            f"--from {start}: the data have frames 0 to {num_frames - 1}, and the model needs "
            f"{input_frames} up to that one"
        )
    return list(range(last - input_frames + 1, last + 1))


def _chosen(data: xr.Dataset, fields: Sequence[str]) -> Labelled:
    """Return the variables that are fields, or the one variable with an axis of fields."""
    if any(name in data.data_vars for name in fields):
        return data[[name for name in data.data_vars if name in fields]]
    several = [v for v in data.data_vars.values() if set(CHANNEL_DIMS) & set(v.dims)]
    if len(several) == 1:
        return several[0]
    if len(fields) == 1 and len(data.data_vars) == 1:
        return next(iter(data.data_vars.values()))
    return data


def _open_netcdf(path: Path) -> xr.Dataset:
    with path.open("rb") as file:
        is_hdf5 = file.read(4) == _HDF5
    engine = "h5netcdf" if is_hdf5 else "scipy"
    if is_hdf5:
        require_h5netcdf(f"reading {path}")
    try:
        return xr.open_dataset(path, engine=engine, cache=False, decode_timedelta=False)
    except (TypeError, KeyError, OSError) as error:
        raise ValueError(f"{path} cannot be read as netCDF: {error}") from error


def require_h5netcdf(purpose: str) -> None:
    """Raise ValueError, with the remedy, unless xarray can read and write netCDF-4."""
    try:
        import h5netcdf  # noqa: F401
    except ModuleNotFoundError as error:
        raise ValueError(
            f"{purpose} needs the package h5netcdf: pip install 'pelagos[convert]'"
        ) from error


def _open_zarr(path: Path) -> xr.Dataset:
    _refuse_pickles(path)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Failed to open Zarr store with consolidated")
            return xr.open_dataset(
                path, engine="zarr", chunks=None, cache=False, decode_timedelta=False
            )
    except (TypeError, KeyError, FileNotFoundError) as error:
        raise ValueError(f"{path} cannot be read as Zarr: {error}") from error


def _refuse_pickles(path: Path) -> None:
    """Raise ValueError if an array's codec would run code of the file: Zarr v2 allows `pickle`."""
    names = ("zarr.json", ".zarray", ".zmetadata")
    for file in itertools.chain.from_iterable(path.rglob(name) for name in names):
        if _names_pickle(parse_json(file.read_bytes())):
            raise ValueError(
                f"{file} asks for the codec pickle, which runs code of the file. Pelagos reads numbers "
                "only; write the array again without it"
            )


def _names_pickle(value: Any) -> bool:
    if isinstance(value, dict):
        own = (value.get("id"), value.get("name"))
        return any(isinstance(n, str) and "pickle" in n for n in own) or any(
            _names_pickle(inner) for inner in value.values()
        )
    return isinstance(value, list) and any(_names_pickle(inner) for inner in value)
