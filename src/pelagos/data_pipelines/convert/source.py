"""A format's description of a source: which array holds which channels of which frames."""

from __future__ import annotations

import bisect
import dataclasses
import functools
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from pelagos.data_pipelines.convert.options import ConvertOptions, split_counts
from pelagos.data_pipelines.store import DatasetSpec, Field
from pelagos.data_pipelines.store.schema import AXIS_NAMES
from pelagos.data_pipelines.store.splits import canonical_splits, default_splits, split_ranges


class SourceError(ValueError):
    """A source breaks its format, or cannot be read.

    Names file, key and what was expected.
    """


@dataclass(frozen=True)
class StoredArray:
    """One array of a source and the channels it fills.

    Args:
        reader: which of `readers.READERS` opens the file.
        file: a path or address.
        key: the array in the file; empty where a file is one array.
        axes: one letter per axis of the array: `n` trajectory, `t` time, `c` channel, `z`, `y`,
            `x` space, `1` an axis of length one. Two `c` are the two indices of a tensor. If `t`
            or a space axis is missing, the values are constant along it.
        channel: the first channel of the dataset that it fills.
        num_channels: how many.
        first_index: the first index along `c` that is used.
        start_frame: the first frame that it fills, for arrays without `t`; earlier frames are 0.
        is_label: its values number classes or objects: whole numbers, none of which is rounded.
        flipped: the letters of axes that run backwards: the last index of the file comes first.
    """

    reader: str
    file: str
    key: str
    axes: str
    channel: int
    num_channels: int = 1
    first_index: int = 0
    start_frame: int = 0
    is_label: bool = False
    flipped: str = ""

    @property
    def address(self) -> str:
        return f"{self.file}: {self.key}" if self.key else self.file


@dataclass(frozen=True)
class Part:
    """Consecutive trajectories stored in the same arrays.

    Args:
        count: how many trajectories.
        first: index of the first one along `n`.
        first_frame: index of the first frame along `t`.
        parameters: per name one number for all, or one for each.
    """

    arrays: tuple[StoredArray, ...]
    count: int = 1
    first: int = 0
    first_frame: int = 0
    parameters: Mapping[str, float | Sequence[float]] = field(default_factory=dict)

    def taken(self, start: int, stop: int) -> Part:
        """The trajectories from `start` to `stop` of these."""
        parameters = {
            name: value if isinstance(value, int | float) else tuple(value[start:stop])
            for name, value in self.parameters.items()
        }
        return dataclasses.replace(
            self, count=stop - start, first=self.first + start, parameters=parameters
        )

    def parameter(self, name: str, row: int) -> float:
        value = self.parameters[name]
        return float(value if isinstance(value, int | float) else value[row])


@dataclass(frozen=True)
class Settlement:
    """The treatment of missing values, which readers give as NaN.

    Args:
        fills: by channel the number that takes their place.
        masks: by channel of a mask the channels that it masks, all missing at the same points.
        fixed: names of the masks that are the same in every frame of a trajectory.
    """

    fills: Mapping[int, float]
    masks: Mapping[int, tuple[int, ...]] = field(default_factory=dict)
    fixed: tuple[str, ...] = ()

    def apply(self, frames: npt.NDArray[np.float32]) -> None:
        """Fill `frames [trajectory, time, channel, y, x]`, and write their masks, in place."""
        for mask, channels in self.masks.items():
            frames[:, :, mask] = ~np.isnan(frames[:, :, channels[0]])
        for channel, value in self.fills.items():
            values = frames[:, :, channel]
            values[np.isnan(values)] = value


@dataclass(frozen=True)
class Source:
    """Everything about a source that a conversion needs; plain data that can be sent to a worker.

    `splits` holds the trajectories in order; a source without splits of its own has one, named
    `all`, which `published_splits` (numbers of trajectories, in order) or the default divides. The
    rest is as in `DatasetSpec`; `grid_shape` and `domain_extent` are `(z, y, x)`.

    Args:
        notes: decisions that a person should know, one sentence each.
        details: for the dataset's `generator` attribute (JSON).
        missing: the treatment of missing values: `reject` is an error; see `missing.settled`.
        fill_value: the number in their place; None: the field's mean.
        settlement: the decision, once the source was read for it.
        masks: as in `DatasetSpec`.
    """

    format: str
    name: str
    equation: str
    fields: tuple[Field, ...]
    splits: Mapping[str, tuple[Part, ...]]
    num_frames: int
    grid_shape: tuple[int, ...]
    frame_interval: float = 1.0
    domain_extent: tuple[float, ...] | None = None
    boundary_conditions: Mapping[str, str] = field(default_factory=dict)
    constant_fields: Mapping[str, float] = field(default_factory=dict)
    published_normalization: Mapping[str, Any] = field(default_factory=dict)
    published_splits: Mapping[str, int] | None = None
    grid_location: Literal["cell", "node"] = "cell"
    notes: tuple[str, ...] = ()
    details: Mapping[str, Any] = field(default_factory=dict)
    physics: Mapping[str, Any] = field(default_factory=dict)
    missing: Literal["reject", "fill", "mask"] = "reject"
    fill_value: float | None = None
    settlement: Settlement | None = None
    masks: Mapping[str, str] = field(default_factory=dict)

    @functools.cached_property
    def parts(self) -> tuple[Part, ...]:
        return tuple(itertools.chain.from_iterable(self.splits.values()))

    @functools.cached_property
    def _stops(self) -> list[int]:
        return list(itertools.accumulate(part.count for part in self.parts))

    @property
    def num_trajectories(self) -> int:
        return self._stops[-1] if self.parts else 0

    @property
    def field_names(self) -> tuple[str, ...]:
        return tuple(found.name for found in self.fields)

    @property
    def parameter_names(self) -> tuple[str, ...]:
        return tuple(self.parts[0].parameters)

    def locate(self, trajectory: int) -> tuple[Part, int]:
        """The part that holds a trajectory, and its number in there."""
        index = bisect.bisect_right(self._stops, trajectory)
        part = self.parts[index]
        return part, trajectory - (self._stops[index] - part.count)

    @property
    def given_fields(self) -> tuple[str, ...]:
        """Fields that are the same in every frame: of arrays without time, from frame 0 on."""
        if self.num_frames == 1:
            return ()
        changing = {
            channel
            for part in self.parts
            for array in part.arrays
            if "t" in array.axes or array.start_frame > 0
            for channel in range(array.channel, array.channel + array.num_channels)
        }
        if self.settlement is not None:
            fixed = self.settlement.fixed
            changing |= {c for c in self.settlement.masks if self.fields[c].name not in fixed}
        names = tuple(f.name for i, f in enumerate(self.fields) if i not in changing)
        return names if len(names) < len(self.fields) else ()

    def address(self, trajectory: int, channel: int) -> str:
        """File, key and index where a channel of a trajectory comes from, for messages."""
        part, row = self.locate(trajectory)
        for array in part.arrays:
            if array.channel <= channel < array.channel + array.num_channels:
                place = f"[{part.first + row}]" if "n" in array.axes else ""
                return array.address + place
        return part.arrays[0].file

    def spec(self, options: ConvertOptions) -> DatasetSpec:
        """The dataset that this source becomes.

        Raises:
            SourceError: it cannot become one.
        """
        counts = {name: sum(p.count for p in parts) for name, parts in self.splits.items()}
        try:
            return DatasetSpec(
                name=self.name,
                equation=self.equation,
                fields=self.fields,
                num_trajectories=self.num_trajectories,
                num_frames=self.num_frames,
                grid_shape=self.grid_shape,
                frame_interval=self.frame_interval,
                domain_extent=self.domain_extent or (1.0,) * len(self.grid_shape),
                boundary_conditions=dict(self.boundary_conditions),
                splits=split_ranges(counts),
                parameter_names=self.parameter_names,
                constant_fields=dict(self.constant_fields),
                generator={"converted_from": self.format, **self.details},
                published_normalization=dict(self.published_normalization),
                dtype=options.dtype,
                compression=options.compression,
                trajectories_per_shard=options.trajectories_per_shard,
                grid_location=self.grid_location,
                physics=dict(self.physics),
                given_fields=self.given_fields,
                masks=dict(self.masks),
            )
        except ValueError as error:
            raise SourceError(f"cannot store {self.name} ({self.format}): {error}") from error


def finished(source: Source, options: ConvertOptions) -> Source:
    """A format's source after the options that apply to every format.

    Raises:
        SourceError: the options do not fit the source.
    """
    if source.num_trajectories == 0:
        raise SourceError(f"{source.name} ({source.format}) holds no trajectory")
    _require_finite_parameters(source)
    changes: dict[str, Any] = {"name": options.name or source.name}
    if options.num_frames is not None:
        if not 1 <= options.num_frames <= source.num_frames:
            raise SourceError(
                f"--num-frames {options.num_frames}: {source.name} has {source.num_frames} frames "
                f"per trajectory"
            )
        changes["num_frames"] = options.num_frames
    if options.swap_axes:  # first: the next steps cut the parts that it turns
        source = dataclasses.replace(source, **_swapped(source))
    changes["splits"] = _limited(_divided(source, options), options.max_trajectories)
    return dataclasses.replace(source, **changes)


def _require_finite_parameters(source: Source) -> None:
    for part in source.parts:
        for name, value in part.parameters.items():
            numbers = np.atleast_1d(np.asarray(value, np.float64))
            if not np.isfinite(numbers).all():
                at = int(np.argmin(np.isfinite(numbers)))
                raise SourceError(
                    f"{part.arrays[0].file}: parameter {name!r} is {numbers[at]} at index ({at}), "
                    "expected a finite number for each trajectory. This is true of "
                    f"{int((~np.isfinite(numbers)).sum())} of {len(numbers)}"
                )


def _divided(source: Source, options: ConvertOptions) -> dict[str, tuple[Part, ...]]:
    """The source's splits, or those asked for."""
    if tuple(source.splits) != ("all",):
        if options.splits is not None:
            raise SourceError(
                f"--splits: {source.name} already has the splits {', '.join(source.splits)}; leave "
                "the option out"
            )
        return dict(source.splits)
    total = source.num_trajectories
    if options.splits is None:
        counts = dict(source.published_splits or default_splits(total))
    else:
        try:
            counts = split_counts(total, canonical_splits(options.splits))
        except ValueError as error:
            raise SourceError(f"--splits: {source.name}: {error}") from error
    divided, start = {}, 0
    for name, count in counts.items():
        divided[name] = _cut(source.splits["all"], start, start + count)
        start += count
    return divided


def _limited(splits: dict[str, tuple[Part, ...]], limit: int | None) -> dict[str, tuple[Part, ...]]:
    """At most `limit` trajectories, from the beginning of every split, at least one of each."""
    sizes = {name: sum(part.count for part in parts) for name, parts in splits.items()}
    total = sum(sizes.values())
    if limit is None or limit >= total:
        return splits
    if limit < len(splits):
        raise SourceError(
            f"--max-trajectories {limit} is less than the number of splits ({', '.join(splits)})"
        )
    kept = {name: max(1, size * limit // total) for name, size in sizes.items()}
    largest = max(sizes, key=lambda name: sizes[name])
    kept[largest] += limit - sum(kept.values())
    return {name: _cut(parts, 0, kept[name]) for name, parts in splits.items()}


def _cut(parts: Sequence[Part], start: int, stop: int) -> tuple[Part, ...]:
    """The trajectories `start` to `stop` of consecutive parts."""
    found, before = [], 0
    for part in parts:
        low, high = max(start - before, 0), min(stop - before, part.count)
        if low < high:
            found.append(part if (low, high) == (0, part.count) else part.taken(low, high))
        before += part.count
    return tuple(found)


def _swapped(source: Source) -> dict[str, Any]:
    """The changes to a two-dimensional source when x and y change places."""
    if AXIS_NAMES[len(source.grid_shape)] != ("y", "x"):
        raise SourceError(f"--swap-axes: {source.name} does not have two dimensions")
    exchange = str.maketrans("xy", "yx")

    def swap(part: Part) -> Part:
        arrays = [
            dataclasses.replace(
                a, axes=a.axes.translate(exchange), flipped=a.flipped.translate(exchange)
            )
            for a in part.arrays
        ]
        return dataclasses.replace(part, arrays=tuple(arrays))

    extent = source.domain_extent
    return {
        "grid_shape": source.grid_shape[::-1],
        "domain_extent": None if extent is None else extent[::-1],
        "boundary_conditions": {
            side[0].translate(exchange) + side[1:]: kind  # "x", "x-low"
            for side, kind in source.boundary_conditions.items()
        },
        "splits": {name: tuple(map(swap, parts)) for name, parts in source.splits.items()},
        "details": {**source.details, "swapped_axes": True},
    }
