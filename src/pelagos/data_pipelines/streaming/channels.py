"""Which field of a dataset is which channel of the model, how it is scaled, and the way back.

Training, forecasting and evaluation all go through here. A model's channels are named. A dataset gives
those that it stores, by name; those that it declares constant (density 1 of an incompressible flow)
have that value; a mask that it lacks is 1 everywhere; the rest are absent.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pelagos.data_pipelines.streaming.normalization import Normalization

NO_OFFSET: Mapping[str, float] = {}


class HasFields(Protocol):
    """The parts of a dataset that are read."""

    @property
    def field_names(self) -> tuple[str, ...]: ...
    @property
    def spec(self) -> Any: ...


@dataclass(frozen=True)
class Channels:
    """How one dataset's fields become the model's channels: `(value - shift) / scale`.

    Attributes:
        fields: names of the model's channels, in order.
        sources: of each channel the stored channel that it comes from; None: none.
        constants: of each channel without a source its value everywhere; None: the dataset lacks it.
        shift: offset plus mean of each channel, in physical units.
        scale: standard deviation of each channel.
        num_stored: how many channels the dataset stores.
        num_dimensions: axes of its grid.
        absent_value: the value of an absent channel, after normalisation.
    """

    fields: tuple[str, ...]
    sources: tuple[int | None, ...]
    constants: tuple[float | None, ...]
    shift: tuple[float, ...]
    scale: tuple[float, ...]
    num_stored: int
    num_dimensions: int
    absent_value: float

    @classmethod
    def of(
        cls,
        dataset: HasFields,
        normalization: Normalization,
        *,
        offset: Mapping[str, float] = NO_OFFSET,
        masks: Collection[str] = (),
        absent_value: float = 0.0,
    ) -> Channels:
        """Return the channels of a dataset.

        Args:
            dataset: stores fields, or declares them constant.
            normalization: names the model's channels, in order.
            offset: subtracted from a field before it is normalised.
            masks: names of channels that are 1 everywhere where a dataset lacks them.
            absent_value: the value of the other absent channels, after normalisation.
        """
        stored, constant = dataset.field_names, dataset.spec.constant_fields
        known = {**dict.fromkeys(masks, 1.0), **constant}
        names = normalization.fields
        return cls(
            fields=names,
            sources=tuple(stored.index(n) if n in stored else None for n in names),
            constants=tuple(None if n in stored else known.get(n) for n in names),
            shift=tuple(
                offset.get(n, 0.0) + m for n, m in zip(names, normalization.mean, strict=True)
            ),
            scale=normalization.std,
            num_stored=len(stored),
            num_dimensions=len(dataset.spec.grid_shape),
            absent_value=absent_value,
        )

    @property
    def present(self) -> tuple[bool, ...]:
        """Which channels the dataset has: stored, constant, or a mask."""
        pairs = zip(self.sources, self.constants, strict=True)
        return tuple(source is not None or constant is not None for source, constant in pairs)

    @property
    def absent(self) -> tuple[str, ...]:
        """Names of the channels that the dataset lacks."""
        return tuple(n for n, has in zip(self.fields, self.present, strict=True) if not has)

    @cached_property
    def are_as_stored(self) -> bool:
        """Whether the model's channels are the stored ones, in order."""
        return self.sources == tuple(range(self.num_stored))

    @cached_property
    def _columns(self) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """Shift and scale as `[C, 1, …]`, made once: every sample is read with them."""
        shape = (len(self.fields), *(1,) * self.num_dimensions)
        shift, scale = (np.array(c, np.float32).reshape(shape) for c in (self.shift, self.scale))
        return shift, scale

    def write(self, raw: npt.NDArray[Any], out: npt.NDArray[np.float32]) -> None:
        """Write stored frames `[F, stored channel, *grid]` normalised into `out [F, C, *grid]`.

        Where `are_as_stored`, `raw` may be `out` itself.
        """
        if self.are_as_stored:  # two calls in place of two per channel
            shifts, scales = self._columns
            np.subtract(raw, shifts, out=out)
            np.divide(out, scales, out=out)
            return
        rows = zip(self.sources, self.constants, self.shift, self.scale, strict=True)
        for channel, (source, constant, shift, scale) in enumerate(rows):
            target = out[:, channel]
            if source is not None:
                np.subtract(raw[:, source], np.float32(shift), out=target)
                np.divide(target, np.float32(scale), out=target)
            elif constant is not None:
                target[...] = (constant - shift) / scale
            else:
                target[...] = self.absent_value

    def normalized(self, raw: npt.NDArray[Any]) -> Tensor:
        """Return stored frames `[F, stored channel, *grid]` as the model sees them, `[F, C, *grid]`."""
        out = np.empty((len(raw), len(self.fields), *raw.shape[2:]), np.float32)
        self.write(raw, out)
        return torch.from_numpy(out)

    def to_physical(self, values: Tensor) -> Tensor:
        """Return normalised values `[…, C, *grid]` in physical units, offsets included."""
        shift, scale = (self.beside(c).to(values.device) for c in (self.shift, self.scale))
        return values * scale + shift

    def beside(self, values: Sequence[float]) -> Tensor:
        """Return one number per channel as `[C, 1, …]`, which goes with `[…, C, *grid]`."""
        return torch.tensor(values, dtype=torch.float32).view(-1, *(1,) * self.num_dimensions)


def fill_absent(
    normalized: Tensor,
    fields: Sequence[str],
    absent: Collection[str],
    *,
    masks: Collection[str] = (),
    absent_value: float = 0.0,
    axis: int = 1,
) -> Tensor:
    """Return normalised values with absent channels as `Channels.write` makes them.

    Args:
        normalized: the channels are along `axis`.
        fields: names of the channels, in order.
        absent: names of those that the data lack.
        masks: names of channels that are 1 where they are absent; no normalisation changes them.
        absent_value: the value of the other absent channels.
    """
    for names, value in ((set(absent) - set(masks), absent_value), (set(absent) & set(masks), 1.0)):
        where = [channel for channel, name in enumerate(fields) if name in names]
        if where:
            at = torch.tensor(where, dtype=torch.long, device=normalized.device)
            normalized = normalized.index_fill(axis, at, value)
    return normalized
