"""A dataset as an evaluation sees it: the model's channels, normalised, and the way back."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy.typing as npt
import torch
from torch import Tensor

from pelagos.evaluation.forecasting.given_fields import GivenField


class SpecLike(Protocol):
    """The parts of a dataset's specification that are read."""

    @property
    def name(self) -> str: ...
    @property
    def frame_interval(self) -> float: ...
    @property
    def grid_shape(self) -> tuple[int, ...]: ...


class DatasetLike(Protocol):
    """The parts of a dataset that are read."""

    @property
    def spec(self) -> Any: ...
    @property
    def uri(self) -> str: ...
    @property
    def fingerprint(self) -> str: ...
    @property
    def num_frames(self) -> int: ...
    @property
    def field_names(self) -> tuple[str, ...]: ...
    def read_frames(self, trajectory: int, frames: Sequence[int]) -> npt.NDArray[Any]: ...


class ChannelsLike(Protocol):
    """Which field of a dataset is which of the model's channels, how it is scaled, and back."""

    @property
    def fields(self) -> tuple[str, ...]: ...
    @property
    def present(self) -> tuple[bool, ...]: ...
    @property
    def shift(self) -> tuple[float, ...]: ...
    @property
    def scale(self) -> tuple[float, ...]: ...
    def normalized(self, raw: npt.NDArray[Any]) -> Tensor: ...
    def to_physical(self, values: Tensor) -> Tensor: ...
    def beside(self, values: Sequence[float]) -> Tensor: ...


def scored_groups(
    groups: Mapping[str, Sequence[str]], stored: Collection[str]
) -> dict[str, tuple[str, ...]]:
    """Return of each group the fields that a dataset stores; groups without any are left out.

    >>> scored_groups({"velocity": ["velocity-x", "velocity-y"], "p": ["p"]}, ["velocity-x"])
    {'velocity': ('velocity-x',)}
    """
    found = {key: tuple(n for n in names if n in stored) for key, names in groups.items()}
    return {key: names for key, names in found.items() if names}


@dataclass(frozen=True)
class EvaluationData:
    """A dataset as the model sees it.

    `fields` are the model's channels; `present [C]` those that the dataset stores or knows to
    be constant; `groups` the scored fields, name to channels: stored ones only, since a constant
    field is forecast by persistence without error. `read(trajectory, frames)` gives normalised
    `[F, C, *grid]` (0 where absent) and `to_physical` undoes the normalisation; `grid_shape`
    is `(y, x)`, or `(x,)` or `(z, y, x)`. Of the dataset's training split: `mean_frame` is
    the mean of each channel, normalised, `[C, 1, ...]` or at each point `[C, *grid]`; `size`
    its root mean square, in physical units. `masks`: of each channel with points without a value
    the channel that is 1 where there is one. `given`: stored fields that are in no group because
    they need no forecast. `units`: the unit of each stored field, "1" where it has none;
    `time_unit`: that of times, empty where the data does not say.
    """

    name: str
    uri: str
    fingerprint: str
    fields: tuple[str, ...]
    present: tuple[bool, ...]
    groups: Mapping[str, tuple[int, ...]]
    num_frames: int
    frame_interval: float
    grid_shape: tuple[int, ...]
    read: Callable[[int, Sequence[int]], Tensor]
    to_physical: Callable[[Tensor], Tensor]
    mean_frame: Tensor
    size: tuple[float, ...]
    masks: Mapping[int, int] = field(default_factory=dict)
    given: tuple[GivenField, ...] = ()
    units: Mapping[str, str] = field(default_factory=dict)
    time_unit: str = ""

    @property
    def num_dimensions(self) -> int:
        """Axes of the grid."""
        return len(self.grid_shape)

    @property
    def channel_mask(self) -> Tensor:
        """`present` aligned with the channels of `[..., C, *grid]`: `[C, 1, ...]` bool."""
        return torch.tensor(self.present).view(-1, *(1,) * self.num_dimensions)

    def valid(self, frames: Tensor) -> Tensor | None:
        """Where `[..., C, *grid]` have values, bool of that shape; None without masks."""
        if not self.masks:
            return None
        axis = -self.num_dimensions - 1
        channels = list(torch.ones_like(frames, dtype=torch.bool).unbind(axis))
        for channel, mask in self.masks.items():
            channels[channel] = frames.select(axis, mask) > 0.5
        return torch.stack(channels, dim=axis)

    def filled(self, frames: Tensor) -> Tensor:
        """The frames with 0, as in training, where they have no value."""
        valid = self.valid(frames)
        return frames if valid is None else frames.where(valid, 0.0)

    @classmethod
    def from_dataset(
        cls,
        dataset: DatasetLike,
        channels: ChannelsLike,
        *,
        groups: Mapping[str, Sequence[str]] | None = None,
        statistics: Mapping[str, Mapping[str, float]] | None = None,
        masks: Mapping[str, str] | None = None,
    ) -> EvaluationData:
        """View a dataset through the model's `channels`.

        `groups` names the fields scored together (`{"velocity": ("velocity-x",
        "velocity-y")}`), None scores each by itself; fields which the dataset does not store are
        left out. `statistics` hold `mean` and `std` of the fields in the training
        split; where they are absent, the normalisation's. `masks`: field to mask, of the dataset
        and of the model's training. Raises ValueError if the dataset stores none of the model's
        fields.
        """
        spec: SpecLike = dataset.spec
        fields = channels.fields
        wanted = groups or {name: (name,) for name in fields}
        scored = {
            key: tuple(fields.index(name) for name in names)
            for key, names in scored_groups(wanted, dataset.field_names).items()
        }
        if not scored:
            raise ValueError(
                f"dataset {spec.name} stores {list(dataset.field_names)}, none of the scored fields "
                f"{sorted({n for names in wanted.values() for n in names})}"
            )
        known = [
            (row["mean"], row["std"]) if (row := (statistics or {}).get(name)) else (shift, scale)
            for name, shift, scale in zip(fields, channels.shift, channels.scale, strict=True)
        ]

        def read(trajectory: int, frames: Sequence[int]) -> Tensor:
            return channels.normalized(dataset.read_frames(trajectory, frames))

        means = channels.beside([m for m, _ in known]) - channels.beside(channels.shift)
        return cls(
            name=spec.name,
            uri=dataset.uri,
            fingerprint=dataset.fingerprint,
            fields=tuple(fields),
            present=channels.present,
            groups=scored,
            num_frames=dataset.num_frames,
            frame_interval=spec.frame_interval,
            grid_shape=tuple(spec.grid_shape),
            read=read,
            to_physical=channels.to_physical,
            mean_frame=means / channels.beside(channels.scale),
            size=tuple(math.hypot(m, s) for m, s in known),
            masks={
                fields.index(name): fields.index(mask)
                for name, mask in (masks or {}).items()
                if name in fields and mask in fields
            },
            # a dataset from elsewhere need not know units
            units={stored.name: stored.unit for stored in getattr(spec, "fields", ())},
            time_unit=str(getattr(spec, "generator", {}).get("time_unit", "")),
        )
