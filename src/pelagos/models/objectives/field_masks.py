"""Points at which fields have no value: which channel marks them, and the number stored there."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class FieldMasks:
    """`pairs` of a channel and the channel that is its mask, 1 where it has a value, else 0."""

    pairs: tuple[tuple[int, int], ...] = ()

    @classmethod
    def of(cls, fields: Sequence[str], masks: Mapping[str, str]) -> FieldMasks:
        """The masks, field to mask field, of a model's channels.

        Raises ValueError for names that are no channels, and for masks that are masked.
        """
        strangers = sorted({*masks, *masks.values()} - set(fields))
        if strangers:
            raise ValueError(
                f"objective: masks name {', '.join(strangers)}; the model's fields are "
                f"{', '.join(fields)}"
            )
        masked = sorted(set(masks) & set(masks.values()))
        if masked:
            raise ValueError(
                f"objective: {', '.join(masked)} is a mask and has a mask itself: leave that out"
            )
        at = {name: channel for channel, name in enumerate(fields)}
        return cls(tuple((at[name], at[mask]) for name, mask in masks.items()))

    @property
    def channels(self) -> Collection[int]:
        """The channels that are masks."""
        return {mask for _, mask in self.pairs}

    def valid(self, frames: Tensor, axis: int = 1) -> Tensor | None:
        """Where `frames` have values, bool of their shape; None if nothing is masked.

        `axis` is that of the channels.
        """
        if not self.pairs:
            return None
        channels = list(torch.ones_like(frames, dtype=torch.bool).unbind(axis))
        for channel, mask in self.pairs:
            channels[channel] = frames.select(axis, mask) > 0.5
        return torch.stack(channels, dim=axis)

    def filled(self, frames: Tensor, axis: int = 1) -> Tensor:
        """The frames with 0, the mean of a normalised field, where they have no value."""
        valid = self.valid(frames, axis)
        return frames if valid is None else frames.where(valid, 0.0)


NO_MASKS = FieldMasks()
