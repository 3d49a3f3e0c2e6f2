"""Classic netCDF files (CDF-1 and CDF-2), mapped into memory through scipy."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pelagos.data_pipelines.conventions import Decoded, decode_all, parse, require_present
from pelagos.data_pipelines.conventions.selection import absolute_index, box_of
from pelagos.data_pipelines.convert.containers import unreadable_kind
from pelagos.data_pipelines.convert.hdf5.arrays import NETCDF_FILLS
from pelagos.data_pipelines.convert.hdf5.opening import CLASSIC_MAGIC
from pelagos.data_pipelines.convert.source import SourceError
from pelagos.infra.storage.files import CappedReader
from pelagos.infra.storage.remote import is_remote

_VERSIONS = (b"\x01", b"\x02")


def is_classic(file: str) -> bool:
    """Whether a local file is classic netCDF, of any version."""
    if is_remote(file):
        return False
    try:
        with Path(file).open("rb") as stream:
            return stream.read(len(CLASSIC_MAGIC)) == CLASSIC_MAGIC
    except OSError:
        return False


def _leave(_: object) -> None:
    """Leave closing to the garbage collector."""


class ClassicFile:
    """An open file of variables.

    Raises:
        SourceError: it is of the version CDF-5, which scipy does not read, or is cut short.
    """

    def __init__(self, file: str) -> None:
        from scipy.io import netcdf_file

        self.name = file
        with Path(file).open("rb") as stream:
            version = stream.read(len(CLASSIC_MAGIC) + 1)[len(CLASSIC_MAGIC) :]
        if version not in _VERSIONS:
            raise SourceError(
                unreadable_kind(file, may_be_misnamed=False)
                or f"{file} is netCDF of a version that Pelagos does not read"
            )
        try:
            # the mapping lasts as long as arrays that use it: scipy's own closing would warn of that
            kept_open = type("KeptOpen", (netcdf_file,), {"close": _leave, "__del__": _leave})
            stream = CappedReader(io.FileIO(file))
            self.file: Any = kept_open(stream, "r", mmap=True, maskandscale=False)
        except (TypeError, ValueError, IndexError, KeyError, OverflowError, MemoryError) as error:
            raise SourceError(
                f"cannot read {file} as classic netCDF ({error}): it is cut short or damaged"
            ) from error

    def array(self, key: str) -> ClassicArray:
        """The variable at `key`. Raises KeyError: there is none."""
        found = self.file.variables[key]
        coordinates = tuple(
            name if name in self.file.variables else None for name in found.dimensions
        )
        return ClassicArray(found, f"{self.name}: {key}", coordinates)

    def names(self) -> list[str]:
        """The variables of the file."""
        return list(self.file.variables)

    def close(self) -> None:
        """Left to the garbage collector: the mapping lasts as long as arrays that use it."""


class ClassicArray:
    """One variable. `dtype` is that of the values.

    Args:
        coordinates: of each axis the variable that holds its positions; None: there is none.
    """

    def __init__(self, variable: Any, where: str, coordinates: tuple[str | None, ...] = ()) -> None:
        self.variable, self.where, self.coordinates = variable, where, coordinates
        self.shape: tuple[int, ...] = tuple(map(int, variable.shape))
        stored = variable.data.dtype
        self.dtype: Any = stored
        self.attributes: dict[str, Any] = dict(variable._attributes)
        kind = f"{stored.kind}{stored.itemsize}"
        has_own = {"_FillValue", "missing_value"} & set(self.attributes)
        fills = (
            {}
            if has_own or kind not in NETCDF_FILLS
            else {"the fill value of netCDF": NETCDF_FILLS[kind]}
        )
        if stored.kind in "fiu":
            self.conventions = parse(self.attributes, stored, where, fills)
            if self.conventions.is_packed:
                self.dtype = np.dtype(np.float32)

    def decoded(self, selection: Any) -> Decoded:
        """Values, and where they are missing."""
        stored = np.array(self.variable.data[selection])  # a copy: the mapping may be closed
        return self.conventions.decode(stored)

    def __getitem__(self, selection: Any) -> npt.NDArray[Any]:
        decoded = self.decoded(selection)
        box = box_of(selection, self.shape)
        require_present(decoded, self.where, absolute_index(selection, box))
        return decoded.values

    def whole(self) -> npt.NDArray[Any]:
        """All values of a small variable, packed ones in float64."""
        return decode_all(self.conventions, np.array(self.variable.data[...]), self.where)
