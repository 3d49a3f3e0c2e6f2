"""A foreign Zarr array as a dataset, read through zarr itself."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr

from pelagos.data_pipelines.conventions import MissingValueError
from pelagos.data_pipelines.foreign.arrays import find_arrays
from pelagos.data_pipelines.foreign.consolidated import require_current
from pelagos.data_pipelines.foreign.description import Description
from pelagos.data_pipelines.foreign.identity import fingerprint, identity_spec
from pelagos.data_pipelines.foreign.left_out import note_of_left_out
from pelagos.data_pipelines.foreign.parameters import parameter_vector
from pelagos.data_pipelines.foreign.specification import build_spec
from pelagos.data_pipelines.foreign.statistics_cache import cached_statistics
from pelagos.data_pipelines.foreign.zarr_numbers import ZarrNumbers
from pelagos.data_pipelines.store.errors import DatasetError
from pelagos.data_pipelines.store.field_statistics import default_split
from pelagos.data_pipelines.store.manifest import Statistics
from pelagos.data_pipelines.store.readable import FloatArray, Region, SpecReader
from pelagos.data_pipelines.store.zarr_view import StrictStore, open_store

logger = logging.getLogger(__name__)
_announced: set[str] = set()  # uris whose hint this process has logged


def open_foreign(
    uri: str | os.PathLike[str],
    storage_options: dict[str, Any] | None = None,
    description: Description | None = None,
) -> ForeignDataset:
    """Open a Zarr array or group, version 2 or 3, that Pelagos did not write.

    Raises:
        DatasetError: there is none, or the roles of its arrays cannot be determined.
    """
    return ForeignDataset(os.fspath(uri), storage_options, description or Description())


class ForeignDataset(SpecReader):
    """A Zarr array or group as a dataset. Made by `open_foreign`.

    Reads are as large as the array's chunks: slow where those hold whole trajectories. Numbers are
    given as float32, as their conventions say (see `pelagos.data_pipelines.conventions`). A missing
    chunk, a missing value, or a value that is not finite, is an error. It can be pickled, not forked.

    Attributes:
        arrays: those that hold the data.
        assumed: a sentence for each thing that neither the array nor the description says.
        notes: further facts for the user: arrays that are left out, ids that are rounded.
    """

    def __init__(
        self,
        uri: str,
        storage_options: dict[str, Any] | None,
        description: Description | None = None,
        gives_hint: bool = True,
    ) -> None:
        self.storage_options = storage_options
        self.description = description = description or Description()
        self._store: StrictStore = open_store(uri, storage_options)
        try:
            self._root = zarr.open(self._store, mode="r")
        except Exception as error:
            raise DatasetError(f"{uri} is not a Zarr array or group ({error})") from error
        try:
            self.arrays = find_arrays(self._root, description, uri)
            require_current(self._root, [source.path for source in self.arrays], uri)
            spec, self.assumed = build_spec(self._root, self.arrays, description, uri)
            self.notes = note_of_left_out(self._root, self.arrays, spec.parameter_names)
        except json.JSONDecodeError as error:
            raise DatasetError(f"{uri} has damaged metadata ({error})") from error
        except (ValueError, OSError):
            raise
        except Exception as error:  # a library's errors at unexpected metadata
            raise DatasetError(
                f"{uri} has damaged metadata ({type(error).__name__}: {error})"
            ) from error
        super().__init__(uri, spec)
        if gives_hint:
            self._announce(self.assumed)

    @property
    def bytes_read(self) -> int:
        """Bytes of chunks fetched through this object so far."""
        return self._store.bytes_read

    @bytes_read.setter
    def bytes_read(self, value: int) -> None:
        self._store.bytes_read = value

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over metadata and the chunks' sizes and versions; see `identity`."""
        spec = identity_spec(self.spec, self.description)
        return fingerprint(self.uri, self.storage_options, spec, self.arrays)

    @property
    def statistics(self) -> dict[str, dict[str, float]]:
        """`{field: {mean, std, …}}` of the training split; computed when first asked for."""
        return self.all_statistics[default_split(self.all_statistics)]

    @cached_property
    def all_statistics(self) -> Statistics:
        """Statistics of every split, kept in `description.statistics`."""
        self._refuse_fork()
        return cached_statistics(self, self.description.statistics, self.storage_options)

    @cached_property
    def parameters(self) -> dict[str, npt.NDArray[np.float64]]:
        """Vectors along the trajectories, float64 `[trajectory]` each.

        Raises:
            DatasetError: a number is absent or not finite, or the number of a class is rounded.
        """
        self._refuse_fork()
        root: Any = self._root
        found = {}
        for name in self.spec.parameter_names:
            where = f"{self.uri}, array {name!r}"
            stored = ZarrNumbers(root[name], where).whole()
            found[name], note = parameter_vector(stored, name, where)
            if note:
                self.notes.append(note)
                logger.warning("%s", note)
        return found

    def read_frames(
        self,
        trajectory: int,
        frames: Sequence[int],
        out: FloatArray | None = None,
        region: Region | None = None,
    ) -> FloatArray:
        """Some frames of one trajectory, `[len(frames), channel, y, x]` float32.

        Raises:
            DatasetError: a chunk or a value is missing, or cannot be decoded.
            IndexError: there is no such trajectory, frame or region.
        """
        self._refuse_fork()
        self._check_bounds(trajectory, frames, region)
        out = self._checked_out(len(frames), out, region)
        channel = 0
        try:
            for source in self.arrays:
                found = source.read(trajectory, frames, region)
                out[:, channel : channel + found.shape[1]] = found
                channel += found.shape[1]
        except IndexError:
            raise
        except MissingValueError as error:
            raise DatasetError(
                f"dataset {self.uri}, trajectory {trajectory}, frames "
                f"{', '.join(map(str, frames))}: {error}"
            ) from error
        except Exception as error:  # each codec and each store has its own
            raise DatasetError(
                f"dataset {self.uri}, trajectory {trajectory}, frames "
                f"{', '.join(map(str, frames))}: {error}. Pelagos fills nothing in: restore the "
                "data. If its writer leaves out chunks of fill values, have it write them (zarr: "
                "config={'write_empty_chunks': True})"
            ) from error
        return out

    def close(self) -> None:
        """Nothing is held open."""

    def __reduce__(self) -> tuple[Any, ...]:
        return open_foreign, (self.uri, self.storage_options, self.description)

    def __repr__(self) -> str:
        return f"ForeignDataset({self.uri!r}, shape={self.spec.shape}, fields={self.field_names})"

    def _announce(self, assumed: list[str]) -> None:
        if self.uri in _announced:
            return
        _announced.add(self.uri)
        chunks = {source.path or "/": source.array.chunks for source in self.arrays}
        logger.warning(
            "%s is a Zarr array from another tool, chunks %s. It reads slower than Pelagos' own "
            "format. To convert it: pelagos convert %s NEW.zarr",
            self.uri,
            chunks,
            self.uri,
        )
        for note in self.notes:
            logger.warning("%s: %s", self.uri, note)
        if assumed:
            logger.warning(
                "%s and its description do not record everything; assumed: %s",
                self.uri,
                "; ".join(assumed),
            )
