"""A dataset as an evaluation sees it: the model's channels, normalised, and the way back."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pelagos.evaluation.forecasting import rollout
from pelagos.evaluation.forecasting.given_fields import GivenField


class SpecLike(Protocol):
    """What is read of a dataset's specification."""

    @property
    def name(self) -> str: ...
    @property
    def frame_interval(self) -> float: ...
    @property
    def grid_shape(self) -> tuple[int, ...]: ...
    @property
    def constant_fields(self) -> Mapping[str, float]: ...


class DatasetLike(Protocol):
    """What is read of a dataset."""

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

    ``fields`` are the model's channels; ``present [C]`` those that the dataset stores or knows to
    be constant; ``groups`` the scored fields, name to channels: stored ones only, since a constant
    field is forecast by persistence without error. ``read(trajectory, frames)`` gives normalised
    ``[F, C, *grid]`` (0 where absent) and ``to_physical`` undoes the normalisation; ``grid_shape``
    is ``(y, x)``, or ``(x,)`` or ``(z, y, x)``. Of the dataset's training split: ``mean_frame`` is
    the mean of each channel, normalised, ``[C, 1, ...]`` or at each point ``[C, *grid]``; ``size``
    its root mean square, in physical units. ``masks``: of each channel with points without a value
    the channel that is 1 where there is one. ``given``: stored fields that are in no group because
    nothing of them has to be forecast.
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

    @property
    def num_dimensions(self) -> int:
        """Axes of the grid."""
        return len(self.grid_shape)

    @property
    def channel_mask(self) -> Tensor:
        """``present`` beside the channels of ``[..., C, *grid]``: ``[C, 1, ...]`` bool."""
        return torch.tensor(self.present).view(-1, *(1,) * self.num_dimensions)

    def valid(self, frames: Tensor) -> Tensor | None:
        """Where ``[..., C, *grid]`` have values, bool of that shape; None without masks."""
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
        fields: Sequence[str],
        mean: Sequence[float],
        std: Sequence[float],
        *,
        offset: Mapping[str, float] | None = None,
        groups: Mapping[str, Sequence[str]] | None = None,
        statistics: Mapping[str, Mapping[str, float]] | None = None,
        masks: Mapping[str, str] | None = None,
    ) -> EvaluationData:
        """View a dataset through the model's ``fields`` and ``(x - offset - mean) / std``.

        ``groups`` names the fields scored together (``{"velocity": ("velocity-x",
        "velocity-y")}``), None scores each by itself; fields which the dataset does not store are
        left out of them. ``statistics`` hold ``mean`` and ``std`` of the fields in the training
        split; where they are absent, the normalisation's. ``masks``: field to mask, of the dataset
        and of the model's training; a mask that the dataset lacks is 1 everywhere. Raises ValueError
        if the dataset stores none of the model's fields.
        """
        spec: SpecLike = dataset.spec
        stored = {name: i for i, name in enumerate(dataset.field_names)}
        wanted = groups or {name: (name,) for name in fields}
        scored = {
            key: tuple(fields.index(name) for name in names)
            for key, names in scored_groups(wanted, stored).items()
        }
        if not scored:
            raise ValueError(
                f"dataset {spec.name} stores {list(stored)}, none of the scored fields "
                f"{sorted({n for names in wanted.values() for n in names})}"
            )
        shape = (-1, *(1,) * len(spec.grid_shape))
        shift = torch.tensor(
            [m + (offset or {}).get(f, 0.0) for f, m in zip(fields, mean, strict=True)]
        )
        shift, scale = shift.float().view(shape), torch.tensor(std).float().view(shape)
        known = [
            (row["mean"], row["std"])
            if (row := (statistics or {}).get(name))
            else (m + (offset or {}).get(name, 0.0), s)
            for name, m, s in zip(fields, mean, std, strict=True)
        ]
        known_masks = set((masks or {}).values())
        present = tuple(
            name in stored or name in spec.constant_fields or name in known_masks for name in fields
        )

        def read(trajectory: int, frames: Sequence[int]) -> Tensor:
            raw = torch.from_numpy(np.asarray(dataset.read_frames(trajectory, frames), np.float32))
            channels = torch.zeros(raw.shape[0], len(fields), *raw.shape[2:])
            for i, name in enumerate(fields):
                if name in stored:
                    channels[:, i] = raw[:, stored[name]]
                elif name in spec.constant_fields:
                    channels[:, i] = spec.constant_fields[name]
                elif name in known_masks:
                    channels[:, i] = 1.0
            return rollout.masked((channels - shift) / scale, torch.tensor(present).view(shape))

        return cls(
            name=spec.name,
            uri=dataset.uri,
            fingerprint=dataset.fingerprint,
            fields=tuple(fields),
            present=present,
            groups=scored,
            num_frames=dataset.num_frames,
            frame_interval=spec.frame_interval,
            grid_shape=tuple(spec.grid_shape),
            read=read,
            to_physical=lambda x: x * scale.to(x.device) + shift.to(x.device),
            mean_frame=(torch.tensor([m for m, _ in known]).view(shape) - shift) / scale,
            size=tuple(math.hypot(m, s) for m, s in known),
            masks={
                fields.index(name): fields.index(mask)
                for name, mask in (masks or {}).items()
                if name in fields and mask in fields
            },
        )
