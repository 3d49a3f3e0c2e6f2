"""A family's entry in the registry: its network, sizes and origin, and how it is called."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Literal, Self

from torch import Tensor

from pelagos.models.pretrained import Pretrained

Call = Literal["frame", "window", "image", "masked"]
"""How an objective calls a network.

- `frame`: `model(frame [B, C, *grid], lead_time [B])`, an object with `.output`
  `[B, C_out, *grid]`.
- `window`: `model(x [B, *grid, T, C])`, grid axes x first: a tuple, the prediction
  `[B, *grid, T_out, C_out]` first, then whatever else it makes.
- `image`: `model(image [B, C, *grid])`, a tensor (class logits `[B, K]` or a map
  `[B, K, *grid]`), or what the objective that fits it asks for.
- `masked`: `model(image [B, C, *grid], keep [B, N])`, `keep` True for the patches that the
  encoder may see, as many in every sample: an object with `.prediction [B, N, values]` of every
  patch and `.masked [B, N]`, the patches that were hidden.
"""


@dataclass(frozen=True)
class Options:
    """Base of the families' configurations: sizes and options, written to `config.json`.

    `earlier_defaults` are options that came later than the first stored models: what a stored
    configuration without them means, where that is not today's default.
    """

    earlier_defaults: ClassVar[Mapping[str, Any]] = {}

    @classmethod
    def from_official(cls, config: Mapping[str, Any]) -> Self:
        """From a mapping with the names of the fields, such as `config.json`; others are dropped."""
        known = {entry.name for entry in fields(cls)}
        return cls(
            **{
                key: tuple(value) if isinstance(value, list) else value
                for key, value in config.items()
                if key in known
            }
        )


@dataclass
class FrameOutput:
    """A forecast `output [B, C_out, *grid]`."""

    output: Tensor


@dataclass(frozen=True)
class Size:
    """One row of a family's table.

    `parameters` counts the network with the family's default channels; `options` are the
    fields of its configuration that make this size; `weights_license` is the licence of the
    weights that its authors published, None if there are no such weights.
    """

    name: str
    parameters: int
    options: dict[str, Any]
    weights_license: str | None = None


def _no_changes(_in_channels: int, _out_channels: int) -> dict[str, Any]:
    return {}


@dataclass(frozen=True)
class Family:
    """A network in several sizes.

    `channels` are its configuration's names of the numbers of channels in and out, and
    `default_channels` their default values; `inputs` describes the inputs
    in a sentence; `example` makes the arguments of a forward pass from a configuration and a count,
    on the default device; `adapt` returns the options that follow from the numbers of channels.

    `marker` is a parameter that only this family's networks have, by which weights of others are
    recognised, and `marker_axes` (parameter, number of axes) distinguishes families with one marker;
    `foreign_options` are those that others' weights are computed with, where ours are usually
    different; `channel_axes` says which shapes give the numbers of channels in and out:
    (parameter, axis, what that counts beyond channels).
    """

    name: str
    model: type[Pretrained]
    paper: str
    inputs: str
    call: Call
    example: Callable[[Any, int], tuple[Tensor, ...]]
    sizes: tuple[Size, ...]
    channels: tuple[str, str] = ("in_channels", "out_channels")
    default_channels: tuple[int, int] = (4, 4)
    adapt: Callable[[int, int], dict[str, Any]] = field(default=_no_changes)
    marker: str | None = None
    marker_axes: tuple[str, int] | None = None
    foreign_options: Mapping[str, Any] = field(default_factory=dict)
    channel_axes: tuple[tuple[str, int, int], ...] = ()
