"""Files that forecasts are written to, block by block: under a temporary name, then renamed."""

import math
import os
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import xarray as xr

from pelagos.infra.storage.files import sync_directory
from pelagos.infra.storage.remote import is_remote
from pelagos.jobs.forecasting.sources import SUFFIXES, require_h5netcdf
from pelagos.jobs.forecasting.volumes import GEOMETRY, write_volume
from pelagos.jobs.weights.labelled import LEAD, Labelled

Sizes = Mapping[str, int]
_CHUNK_BYTES = 4 * 2**20


class Sink(Protocol):
    """Takes forecasts block by block, in order."""

    def write(self, rows: range, block: xr.Dataset) -> None: ...
    def close(self) -> None: ...


def check_target(path: str, source: str, *, overwrite: bool) -> Path:
    """Return where to write.

    Raises:
        ValueError: no such format; it exists, and is not to be overwritten, or is no file of it; or it
            is the source.
    """
    target = Path(path.rstrip("/"))
    if is_remote(path):
        raise ValueError(f"{path}: forecasts are written to this machine; copy them afterwards")
    if not str(target).lower().endswith(SUFFIXES):
        raise ValueError(f"{path}: expected a name that ends in {', '.join(SUFFIXES)}")
    if not is_remote(source) and target.exists() and target.samefile(source):
        raise ValueError(f"{path} is the file that is read; choose another name")
    if target.exists() and not overwrite:
        raise ValueError(f"{path} exists; choose another name or give --overwrite")
    is_group = target.is_dir() and any((target / n).exists() for n in ("zarr.json", ".zgroup"))
    if target.is_dir() and not (is_group and target.suffix == ".zarr"):
        raise ValueError(f"{path} is a directory and not Zarr, so it is not overwritten")
    if not target.parent.is_dir():
        raise ValueError(f"{path}: there is no directory {target.parent}")
    return target


class AtomicTarget:
    """Writes forecasts to a temporary name beside the target; `finish` puts them into place."""

    def __init__(
        self, target: Path, rows_axis: str | None, num_rows: int, num_grid_axes: int
    ) -> None:
        self.target, self.rows_axis, self.num_rows = target, rows_axis, num_rows
        self.num_grid_axes = num_grid_axes
        suffix = next(s for s in SUFFIXES if target.name.lower().endswith(s))
        self.temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp{suffix}")
        self.kind = suffix
        self._sink: Sink | None = None

    def write(self, rows: range, block: Labelled, coordinates: Mapping[Any, xr.Variable]) -> None:
        """Write the forecasts of some rows; the first block decides names, axes and types.

        Args:
            coordinates: of the whole source, for those along the rows.
        """
        data = block
        if isinstance(data, xr.DataArray):
            data = data.to_dataset(name=data.name or "forecast", promote_attrs=False)
        if self._sink is None:
            self._sink = self._open(data, coordinates)
        self._sink.write(rows, data)

    def _open(self, block: xr.Dataset, coordinates: Mapping[Any, xr.Variable]) -> Sink:
        labels = {}
        for name, coordinate in block.coords.items():
            along = self.rows_axis in coordinate.dims
            labels[name] = coordinates[name] if along else coordinate.variable
        skeleton = xr.Dataset(coords=labels, attrs=_plain(block.attrs))
        sizes = {str(d): n for d, n in block.sizes.items()}
        if self.rows_axis is not None:
            sizes[self.rows_axis] = self.num_rows
        if self.kind == ".nc":
            return _Netcdf(self.temporary, skeleton, sizes, block, self.rows_axis)
        if self.kind == ".zarr":
            return _Zarr(self.temporary, skeleton, sizes, block, self.rows_axis)
        if self.kind == ".npy":
            return _Npy(self.temporary, sizes, block, self.rows_axis, self.num_grid_axes)
        if self.num_rows > 1:
            raise ValueError(
                f"{self.target}: a NIfTI file holds one volume, but there are {self.num_rows} samples. "
                "Write .nc, .zarr or .npy"
            )
        return _Nifti(self.temporary)

    def finish(self) -> None:
        """Close the file, flush it, and give it its name."""
        assert self._sink is not None
        self._sink.close()
        files = [self.temporary] if self.temporary.is_file() else self.temporary.rglob("*")
        for file in files:
            if file.is_file():
                with file.open("rb") as opened:
                    os.fsync(opened.fileno())
        earlier = self.target.with_name(f".{self.target.name}.{os.getpid()}.old")
        if self.target.is_dir():
            self.target.rename(earlier)
        self.temporary.replace(self.target)
        sync_directory(self.target.parent)
        shutil.rmtree(earlier, ignore_errors=True)

    def discard(self) -> None:
        """Remove what was written, unless it was finished."""
        if self.temporary.is_dir():
            shutil.rmtree(self.temporary, ignore_errors=True)
        self.temporary.unlink(missing_ok=True)


def _chunks(variable: xr.DataArray, rows_axis: str | None) -> tuple[int, ...]:
    """Return the shape of chunks: a whole block of rows, or a row, or a frame, up to 4 MiB.

    Blocks are whole chunks, so none is written twice.
    """
    sizes = dict(zip(_dims(variable), variable.shape, strict=True))
    for axis in (rows_axis, LEAD):
        if math.prod(sizes.values()) * variable.dtype.itemsize > _CHUNK_BYTES and axis in sizes:
            sizes[axis] = 1
    return tuple(sizes.values())


def _dims(variable: xr.DataArray) -> tuple[str, ...]:
    return tuple(str(d) for d in variable.dims)


def _fill(dtype: np.dtype[Any]) -> float | None:
    return float("nan") if dtype.kind == "f" else None


class _Netcdf:
    """netCDF-4."""

    def __init__(
        self, path: Path, skeleton: xr.Dataset, sizes: Sizes, block: xr.Dataset, rows: str | None
    ) -> None:
        require_h5netcdf(f"writing {path}")
        import h5netcdf

        skeleton.to_netcdf(path, engine="h5netcdf")
        self.rows_axis = rows
        self.file = h5netcdf.File(path, "a")
        for dim, size in sizes.items():
            if dim not in self.file.dimensions:
                self.file.dimensions[dim] = size
        for name, variable in block.data_vars.items():
            dims = _dims(variable)
            # netCDF-4 has no half precision
            dtype = np.dtype("f4") if variable.dtype == np.float16 else variable.dtype
            made = self.file.create_variable(
                str(name),
                dims,
                dtype,
                fillvalue=_fill(dtype),
                chunks=_chunks(variable, rows) if dims else None,
            )
            made.attrs.update(_plain(variable.attrs))

    def write(self, rows: range, block: xr.Dataset) -> None:
        for name, variable in block.data_vars.items():
            values = variable.to_numpy()
            place = _place(variable, self.rows_axis, rows)
            self.file.variables[str(name)][place] = values

    def close(self) -> None:
        self.file.close()


class _Zarr:
    """Zarr v3, with names of axes, as xarray reads it."""

    def __init__(
        self, path: Path, skeleton: xr.Dataset, sizes: Sizes, block: xr.Dataset, rows: str | None
    ) -> None:
        import zarr

        # text of a fixed length has no type in the specification of Zarr v3
        texts = {n: c.astype(object) for n, c in skeleton.coords.items() if c.dtype.kind == "U"}
        skeleton.assign_coords(texts).to_zarr(path, mode="w-", zarr_format=3, consolidated=False)
        self.path, self.rows_axis = path, rows
        self.group = zarr.open_group(path, mode="a")
        for name, variable in block.data_vars.items():
            dims = _dims(variable)
            shape = tuple(sizes[d] for d in dims)
            self.group.create_array(
                str(name),
                shape=shape,
                dtype=variable.dtype,
                chunks=_chunks(variable, rows) if dims else "auto",
                fill_value=_fill(variable.dtype) or 0,
                dimension_names=dims,
                attributes=_plain(variable.attrs),
            )

    def write(self, rows: range, block: xr.Dataset) -> None:
        for name, variable in block.data_vars.items():
            array: Any = self.group[str(name)]
            array[_place(variable, self.rows_axis, rows)] = variable.to_numpy()

    def close(self) -> None:
        import zarr

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", zarr.errors.ZarrUserWarning)
            zarr.consolidate_metadata(self.path)


class _Npy:
    """One array `[row, (lead,) channel, *grid]`; the variables of a Dataset are its channels."""

    def __init__(
        self, path: Path, sizes: Sizes, block: xr.Dataset, rows: str | None, num_grid_axes: int
    ) -> None:
        self.rows_axis, self.num_grid_axes = rows, num_grid_axes
        one = self._array(block)
        shape = one.shape if rows is None else (sizes[rows], *one.shape[1:])
        self.file = np.lib.format.open_memmap(path, mode="w+", dtype=one.dtype, shape=shape)

    def _array(self, block: xr.Dataset) -> Any:
        arrays = [v.to_numpy() for v in block.data_vars.values()]
        if len(arrays) == 1:
            return arrays[0]
        if len({array.shape for array in arrays}) > 1:  # labels of images and their probabilities
            return arrays[0]
        return np.stack(arrays, axis=arrays[0].ndim - self.num_grid_axes)

    def write(self, rows: range, block: xr.Dataset) -> None:
        place = ... if self.rows_axis is None else slice(rows.start, rows.stop)
        self.file[place] = self._array(block)

    def close(self) -> None:
        self.file.flush()
        del self.file


class _Nifti:
    """One volume; leads and channels are its further axes."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, rows: range, block: xr.Dataset) -> None:
        values = np.stack([v.to_numpy() for v in block.data_vars.values()])
        first = next(iter(block.data_vars.values()))
        if first.dims[-3:] != ("z", "y", "x"):
            raise ValueError(
                f"a NIfTI file holds volumes; the forecast has the axes {', '.join(_dims(first))}. "
                "Write .nc, .zarr or .npy"
            )
        kept = values.squeeze(axis=tuple(n for n in range(values.ndim - 3) if values.shape[n] == 1))
        dtype = np.float32 if kept.dtype.kind == "f" else kept.dtype
        geometry = first.attrs.get(GEOMETRY)
        write_volume(self.path, kept.astype(dtype), geometry)

    def close(self) -> None:
        pass


def _place(variable: xr.DataArray, rows_axis: str | None, rows: range) -> Any:
    """Where the numbers of some rows go in the whole array."""
    if rows_axis is None or rows_axis not in variable.dims:
        return ...
    return tuple(
        slice(rows.start, rows.stop) if d == rows_axis else slice(None) for d in variable.dims
    )


def _plain(attributes: Mapping[Any, Any]) -> dict[str, Any]:
    """Return the attributes that files can hold."""
    kinds = (str, int, float, np.generic)
    found = {str(k): v for k, v in attributes.items() if isinstance(v, kinds)}
    return {k: v.item() if isinstance(v, np.generic) else v for k, v in found.items()}
