"""The dataset interface that training needs, for any writer: the protocol and its shared code.

`Dataset` reads Pelagos' own format, `ForeignDataset` any other Zarr array. A mixture takes both.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from pelagos.data_pipelines.store.errors import DatasetError
from pelagos.data_pipelines.store.schema import DatasetSpec
from pelagos.infra.storage.read_policy import ReadCounters

FloatArray = npt.NDArray[Any]
Region = tuple[tuple[int, int], ...]
"""Half-open ranges of grid points, one per spatial axis: `((y0, y1), (x0, x1))`."""


class ReadableDataset(Protocol):
    """A dataset that is open for reading, from any number of threads."""

    uri: str
    spec: DatasetSpec
    bytes_read: int
    counters: ReadCounters

    @property
    def fingerprint(self) -> str:
        """Changes when the data does."""
        ...

    @property
    def num_trajectories(self) -> int: ...

    @property
    def num_frames(self) -> int: ...

    @property
    def field_names(self) -> tuple[str, ...]: ...

    @property
    def grid_shape(self) -> tuple[int, ...]: ...

    @property
    def statistics(self) -> dict[str, dict[str, float]]:
        """`{field: {count, mean, std, …}}` of the training split."""
        ...

    @property
    def parameters(self) -> dict[str, npt.NDArray[np.float64]]:
        """Per-trajectory parameters, `[trajectory]` each."""
        ...

    def split(self, name: str) -> range:
        """The trajectories of a split; `all` is every one."""
        ...

    def read_frames(
        self,
        trajectory: int,
        frames: Sequence[int],
        out: FloatArray | None = None,
        region: Region | None = None,
    ) -> FloatArray:
        """Some frames of a trajectory, `[len(frames), channel, y, x]`, of the type `spec.value_dtype`.

        `region` limits them to a part of the grid.
        """
        ...

    def close(self) -> None: ...


class SpecReader:
    """Properties that follow from a dataset's place and specification alone."""

    def __init__(self, uri: str, spec: DatasetSpec) -> None:
        self.uri = uri
        self.spec = spec
        self.bytes_read = 0
        self.counters = ReadCounters()
        self._value_dtype = spec.value_dtype
        self._process = os.getpid()

    @property
    def num_trajectories(self) -> int:
        return self.spec.num_trajectories

    @property
    def num_frames(self) -> int:
        return self.spec.num_frames

    @property
    def field_names(self) -> tuple[str, ...]:
        return self.spec.field_names

    @property
    def grid_shape(self) -> tuple[int, ...]:
        return self.spec.grid_shape

    def split(self, name: str) -> range:
        """The trajectories of a split; `all` is every one.

        Raises:
            DatasetError: there is no such split.
        """
        if name in self.spec.splits:
            return range(*self.spec.splits[name])
        if name == "all":
            return range(self.num_trajectories)
        raise DatasetError(
            f"dataset {self.uri} has no split {name!r}; it has {[*self.spec.splits, 'all']}"
        )

    def _checked_out(
        self, num_frames: int, out: FloatArray | None, region: Region | None
    ) -> FloatArray:
        """`out`, or new memory, for the given number of frames of a region."""
        grid = self.grid_shape if region is None else tuple(b - a for a, b in region)
        shape = (num_frames, len(self.spec.fields), *grid)
        dtype = self._value_dtype
        if out is None:
            return np.empty(shape, dtype)
        if out.shape != shape or out.dtype != dtype or not out.flags.c_contiguous:
            raise ValueError(
                f"out must be C-contiguous {dtype} {shape}, got {out.dtype} {out.shape}"
                + ("" if out.flags.c_contiguous else ", not contiguous")
            )
        return out

    def _check_bounds(
        self, trajectory: int, frames: Sequence[int], region: Region | None = None
    ) -> None:
        if not 0 <= trajectory < self.num_trajectories:
            raise IndexError(
                f"trajectory {trajectory} is outside 0..{self.num_trajectories - 1} of {self.uri}"
            )
        if len(frames) == 0 or min(frames) < 0 or max(frames) >= self.num_frames:
            raise IndexError(
                f"frames {list(frames)} must be one or more of 0..{self.num_frames - 1} "
                f"of {self.uri}"
            )
        if region is not None and (
            len(region) != len(self.grid_shape)
            or not all(
                0 <= a < b <= size for (a, b), size in zip(region, self.grid_shape, strict=True)
            )
        ):
            raise IndexError(
                f"region {region} must be one non-empty range per axis of the grid "
                f"{self.grid_shape} of {self.uri}"
            )

    def _refuse_fork(self) -> None:
        if os.getpid() != self._process:
            raise DatasetError(
                f"dataset {self.uri} was opened in process {self._process} but is read in its "
                f"forked child {os.getpid()}. Open it in the child, use the spawn or forkserver "
                "start method, or read in threads (num_workers=0 of a DataLoader)"
            )
