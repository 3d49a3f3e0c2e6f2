"""MPP's network, the axial vision transformer AViT: several frames to the next one.

Every field is brought to mean 0 and deviation 1 over its frames (RevIN), and its forecast back.
Fields are entries of one vocabulary: a data set uses those columns of the first and last layer
that are its own, so that one network learns from data with different fields. McCabe et al.,
"Multiple physics pretraining for spatiotemporal surrogate models", NeurIPS 2024, arXiv:2310.02994.

Written from the paper and from facts about the published checkpoints, so that official state
dicts load with `strict=True`. Layout: input and prediction are `[B, X, Y, T, C]`; tokens are
`BTHWC` (`H` along x, `W` along y). Two space dimensions. Single-device code.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, get_args

import torch
from torch import Tensor

from pelagos.models.checks import not_one_of, not_whole_numbers
from pelagos.models.family import Family, Options, Size
from pelagos.models.layers.frame_layers import GridRule, at_least_float32
from pelagos.models.layers.mpp_layers import (
    NUM_BRANCHES,
    Boundary,
    FieldProjection,
    Head,
    SpaceTimeBlock,
    Stem,
)
from pelagos.models.layers.precision import without_autocast
from pelagos.models.pretrained import BlockList, Pretrained
from pelagos.models.sample_draws import uniform

__all__ = ["FAMILY", "MPP", "VOCABULARY", "MPPConfig"]

VOCABULARY = (
    "shallow-water/height",
    "incompressible/velocity-x",
    "incompressible/velocity-y",
    "incompressible/particles",
    "diffusion-reaction/activator",
    "diffusion-reaction/inhibitor",
    "compressible/velocity-x",
    "compressible/velocity-y",
    "compressible/density",
    "compressible/pressure",
    "spare-1",
    "spare-2",
)
"""The fields of the published weights, in their order; the last two were never trained."""

_PATCH = 16  # strides 4, 2 and 2
_DEVIATION_EPS = 1e-7
_DROP_PATH_STREAM = 0x5F1D36A7  # other numbers than whatever else is drawn from a sample's seed
_LISTED = 3


@dataclass(frozen=True)
class MPPConfig(Options):
    """Sizes and options of one AViT, under the official names where they exist.

    `fields` names the vocabulary's entry of each channel, in the channels' order; None takes the
    first `in_channels` entries. `vocabulary` is the published one unless given.
    `in_timesteps` is the number of frames it is meant for: any other number runs too.
    `boundary`: whether opposite edges of the grid are neighbours (`mpp_layers.Boundary`).
    `drop_path`: how often, in training, the last block's branches are left out (stochastic depth,
    Huang et al., arXiv:1603.09382); it grows linearly with depth, from 0 in the first block.

    Raises ValueError, naming the arithmetic, for sizes that do not divide, and for unknown fields.
    """

    in_channels: int = 4
    out_channels: int = 4
    in_timesteps: int = 16
    embed_dim: int = 192
    num_heads: int = 3
    processor_blocks: int = 12
    fields: tuple[str, ...] | None = None
    vocabulary: tuple[str, ...] = VOCABULARY
    boundary: Boundary = "open"
    drop_path: float = 0.2

    def __post_init__(self) -> None:
        whole = ("in_channels", "out_channels", "in_timesteps", "embed_dim", "num_heads")
        problems = not_whole_numbers(self, (*whole, "processor_blocks"))
        problems += not_one_of("boundary", self.boundary, get_args(Boundary))
        for name in ("fields", "vocabulary"):
            problems += self._not_names(name)
        if not 0 <= self.drop_path < 1:
            problems.append(f"drop_path={self.drop_path} must be at least 0 and below 1")
        if not problems:
            problems = [*self._misfits(), *self._unknown_fields()]
        if problems:
            raise ValueError("MPP config: " + "; ".join(problems))

    @property
    def entries(self) -> tuple[int, ...]:
        """Each channel's place in the vocabulary."""
        if self.fields is None:
            return tuple(range(self.in_channels))
        return tuple(self.vocabulary.index(name) for name in self.fields)

    def _not_names(self, option: str) -> list[str]:
        value = getattr(self, option)
        if value is None and option == "fields":
            return []
        if not isinstance(value, (list, tuple)) or not all(isinstance(v, str) for v in value):
            return [f"{option}={value!r} must be a list of names"]
        object.__setattr__(self, option, tuple(value))
        twice = sorted({name for name in value if list(value).count(name) > 1})
        return [f"{option} names {', '.join(twice)} more than once"] if twice else []

    def _misfits(self) -> list[str]:
        problems = []
        for name, divisor in (("num_heads", self.num_heads), ("the stem's quarter width", 4)):
            if self.embed_dim % divisor:
                near = max(1, round(self.embed_dim / divisor)) * divisor
                problems.append(
                    f"embed_dim={self.embed_dim} must be a multiple of {name} ({divisor}), e.g. "
                    f"{near}"
                )
        if self.out_channels != self.in_channels:
            problems.append(
                f"out_channels={self.out_channels} must be in_channels={self.in_channels}: a "
                f"forecast takes its scale from the same field's frames"
            )
        if self.fields is not None and len(self.fields) != self.in_channels:
            problems.append(
                f"fields has {len(self.fields)} names for in_channels={self.in_channels}"
            )
        if self.in_channels > len(self.vocabulary):
            problems.append(
                f"in_channels={self.in_channels} exceeds the vocabulary's {len(self.vocabulary)} "
                f"entries: give vocabulary with at least {self.in_channels} names"
            )
        return problems

    def _unknown_fields(self) -> list[str]:
        problems = []
        for name in self.fields or ():
            if name not in self.vocabulary:
                near = difflib.get_close_matches(name, self.vocabulary, _LISTED, cutoff=0.0)
                problems.append(
                    f"field {name!r} is not in the vocabulary; closest: {', '.join(near)}; all: "
                    f"{', '.join(self.vocabulary)}"
                )
        return problems


class MPP(Pretrained):
    """The AViT network: frames, equally spaced in time, to the next one.

    Built under `torch.device("meta")` it allocates nothing; then `to_empty(device=...)` and
    `reset_parameters()`, or a state dict, make it usable. It has no buffers. `blocks()` lists
    the repeated blocks to wrap, compile or checkpoint, each called as `block(x, kept)`.
    """

    model_types = ("mpp", "avit")
    config_class = MPPConfig
    config: MPPConfig

    def __init__(self, config: MPPConfig) -> None:
        super().__init__()
        self.config = config
        width, entries, size = config.embed_dim, config.entries, len(config.vocabulary)
        device = torch.get_default_device()
        with torch.device("meta"):  # modules' own initialisation would only be overwritten
            self.space_bag = FieldProjection(size, width // 4, entries)
            self.embed = Stem(width)
            self.blocks = BlockList(
                SpaceTimeBlock(width, config.num_heads, config.boundary)
                for _ in range(config.processor_blocks)
            )
            self.debed = Head(size, width, entries)
        self.materialize(device)

    @property
    def draws_per_sample(self) -> bool:
        """Whether branches are left out in training."""
        return self.config.drop_path > 0

    def forward(self, x: Tensor, sample_seed: Tensor | None = None) -> tuple[Tensor]:
        """Predict the frame after `x [B, X, Y, T, C]`, any number of frames of any grid.

        Both sides must be multiples of 16, and one at least 32. The parts left out of a sample in
        training follow from its `sample_seed [B]`, or come from torch's global generator.
        Returns the prediction `[B, X, Y, 1, C]`. Raises ValueError for a shape that does not fit
        the configuration.
        """
        self._check(tuple(x.shape))
        with torch.no_grad(), without_autocast(x):
            values = at_least_float32(x)
            deviation, mean = torch.std_mean(values, dim=(1, 2, 3), keepdim=True)
            deviation = deviation + _DEVIATION_EPS
        normal = ((values - mean) / deviation).to(x.dtype)
        pixels_BTCXY = self.space_bag(normal).permute(0, 3, 4, 1, 2)
        tokens_BTCHW = self.embed(pixels_BTCXY.flatten(0, 1)).unflatten(0, pixels_BTCXY.shape[:2])
        tokens_BTHWC = tokens_BTCHW.permute(0, 1, 3, 4, 2)
        kept = self._kept(x, sample_seed)
        for block, kept_BNT in zip(self.blocks, kept, strict=True):
            tokens_BTHWC = block(tokens_BTHWC, kept_BNT)
        last_BCHW = tokens_BTHWC[:, -1].permute(0, 3, 1, 2)
        forecast_BXYC = self.debed(last_BCHW).permute(0, 2, 3, 1)
        with without_autocast(x):
            forecast = torch.addcmul(mean, at_least_float32(forecast_BXYC[..., None, :]), deviation)
        return (forecast.to(x.dtype),)

    def _kept(self, x: Tensor, seeds: Tensor | None) -> Sequence[Tensor | None]:
        """Each block's `kept`: 0 for a branch and frame left out, else the factor that compensates."""
        depth = len(self.blocks)
        if not (self.training and self.draws_per_sample):
            return [None] * depth
        shape = (depth, NUM_BRANCHES, x.shape[3])
        if seeds is None:
            numbers = torch.rand(len(x), *shape, device=x.device)
        else:
            numbers = uniform(shape, seeds ^ _DROP_PATH_STREAM, x.device)
        rates = torch.linspace(0, self.config.drop_path, depth, device=x.device)[:, None, None]
        return ((numbers >= rates) / (1 - rates)).unbind(1)

    def _check(self, shape: tuple[int, ...]) -> None:
        channels = self.config.in_channels
        needed = (
            f"needs [batch, X, Y, T, {channels}]: in_channels={channels}, X and Y multiples of "
            f"{_PATCH}, one of them at least {2 * _PATCH} (norms over the grid need two tokens), at "
            f"least one frame"
        )
        if len(shape) != 5 or shape[-1] != channels or not shape[3]:
            raise ValueError(f"MPP got x of shape {shape}, {needed}")
        rule, grid = GridRule(2, _PATCH, _PATCH, "strides 4 * 2 * 2"), shape[1:3]
        if not rule.fits(grid) or max(grid) < 2 * _PATCH:
            near = rule.nearest(grid)
            near = near if max(near) > _PATCH else (_PATCH, 2 * _PATCH)
            raise ValueError(
                f"MPP got x of shape {shape}, {needed}; the nearest grid is {near[0]}x{near[1]}"
            )


def _example(config: MPPConfig, batch_size: int) -> tuple[Tensor, ...]:
    return (torch.zeros(batch_size, 32, 32, config.in_timesteps, config.in_channels),)


_NANO: dict[str, Any] = {
    "embed_dim": 64,
    "num_heads": 4,
    "processor_blocks": 2,
    "drop_path": 0.0,
}
_SMALL: dict[str, Any] = {"embed_dim": 384, "num_heads": 6}
_BASE: dict[str, Any] = {"embed_dim": 768, "num_heads": 12}
_LARGE: dict[str, Any] = {"embed_dim": 1024, "num_heads": 16, "processor_blocks": 24}

FAMILY = Family(
    name="mpp",
    model=MPP,
    paper="McCabe et al., NeurIPS 2024, arXiv:2310.02994",
    inputs="equally spaced frames [batch, x, y, time, field], 16 in the published weights; any grid "
    "whose sides are multiples of 16; fields from a vocabulary of 12 (option fields)",
    call="window",
    example=_example,
    sizes=(
        Size("nano", 153_052, _NANO),
        Size("Ti", 7_285_884, {"embed_dim": 192, "num_heads": 3}, "MIT"),
        Size("S", 28_979_436, _SMALL, "MIT"),
        Size("B", 115_608_012, _BASE, "MIT"),
        Size("L", 407_055_628, _LARGE, "MIT"),
    ),
    # a vocabulary of fields, whatever is chosen of it: the shapes are those of all
    marker="space_bag.weight",
)
