"""DPOT's network: several frames to the next one, through Fourier attention.

Patches of each frame, with their coordinates, are embedded; frames are merged by learned
matrices and cosines of time; blocks mix tokens with one small complex network shared by all
Fourier modes (AFNO). Hao et al., "DPOT: Auto-regressive denoising operator transformer for
large-scale PDE pre-training", ICML 2024, arXiv:2403.03542.

Written from the paper and from facts about the published checkpoints, so that official state
dicts load with `strict=True`. Layout: input and prediction are `[B, X, Y, T, C]`; tokens are
`BDHW` (`H` along x, `W` along y). Two space dimensions. Single-device code.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from pelagos.models.checks import nearest_multiples, wrong_frames
from pelagos.models.family import Family, Options, Size
from pelagos.models.layers.dpot_layers import (
    CONVOLUTIONS,
    NORM_GROUPS,
    TRANSPOSED,
    DPOTBlock,
    FourierMixer,
    PatchEmbedding,
    TimeAggregator,
    coordinates,
    resize_linear,
)
from pelagos.models.layers.frame_layers import GridRule
from pelagos.models.pretrained import BlockList, Pretrained

__all__ = ["DPOT", "FAMILY", "DPOTConfig", "FourierMixer"]

_INIT_STD = 0.02


@dataclass(frozen=True)
class DPOTConfig(Options):
    """Sizes and options of one DPOT, under the official names.

    `n_blocks` is the number of heads that the channels are split into in Fourier space, and
    `depth` the number of layers. `modes` must reach over the whole token grid: the official
    code would drop negative frequencies below that, and no published model does.

    Raises ValueError, naming the arithmetic, for sizes that do not divide, and for options of the
    official configuration that no published model uses.
    """

    img_size: int = 128
    patch_size: int = 8
    mixing_type: str = "afno"
    in_channels: int = 4
    out_channels: int = 4
    in_timesteps: int = 10
    out_timesteps: int = 1
    n_blocks: int = 4
    embed_dim: int = 512
    out_layer_dim: int = 32
    depth: int = 4
    modes: int = 32
    mlp_ratio: float = 1.0
    n_cls: int = 12
    normalize: bool = False
    act: str = "gelu"
    time_agg: str = "exp_mlp"

    def __post_init__(self) -> None:
        required = {"mixing_type": "afno", "normalize": False, "act": "gelu", "time_agg": "exp_mlp"}
        problems = [
            f"{name}={getattr(self, name)!r} is not supported; use {value!r}"
            for name, value in required.items()
            if getattr(self, name) != value
        ]
        whole = {f.name: getattr(self, f.name) for f in fields(self) if f.type == "int"}
        problems += [
            f"{name}={value!r} must be a whole number, at least 1"
            for name, value in whole.items()
            if not isinstance(value, int) or value < 1
        ]
        if not problems:
            problems = self._misfits()
        if problems:
            raise ValueError("DPOT config: " + "; ".join(problems))

    @property
    def lifts(self) -> bool:
        """Whether mixers in three dimensions extend two-dimensional ones (`FourierMixer`)."""
        return True

    @property
    def token_grid(self) -> int:
        """Tokens along one side."""
        return self.img_size // self.patch_size

    def _misfits(self) -> list[str]:
        problems = []
        if self.img_size % self.patch_size:
            problems.append(
                f"img_size={self.img_size} must be a multiple of patch_size={self.patch_size}: "
                f"use {nearest_multiples(self.img_size, self.patch_size)}"
            )
        both = math.lcm(self.n_blocks, NORM_GROUPS)
        for name, divisor in (("n_blocks", self.n_blocks), ("8 norm groups", NORM_GROUPS)):
            if self.embed_dim % divisor:
                problems.append(
                    f"embed_dim={self.embed_dim} must be a multiple of {name} ({divisor}): "
                    f"use {nearest_multiples(self.embed_dim, both)}"
                )
        if self.modes < self.token_grid:
            problems.append(
                f"modes={self.modes} must be at least img_size({self.img_size}) / "
                f"patch_size({self.patch_size}) = {self.token_grid}: use {self.token_grid}"
            )
        if int(self.embed_dim * self.mlp_ratio) < 1:
            problems.append(
                f"mlp_ratio={self.mlp_ratio} leaves no hidden channel: use 1 / embed_dim("
                f"{self.embed_dim}) = {1 / self.embed_dim:g} or more"
            )
        return problems


class DPOT(Pretrained):
    """The DPOT network: `in_timesteps` frames to the next `out_timesteps`.

    Built under `torch.device("meta")` it allocates nothing; then `to_empty(device=...)` and
    `reset_parameters()`, or a state dict, make it usable. It has no buffers. `blocks()` lists
    the repeated blocks to wrap, compile or checkpoint, each called as `block(x)`.
    """

    model_types = ("dpot",)
    num_dimensions: ClassVar[int] = 2
    config_class = DPOTConfig
    config: DPOTConfig

    def __init__(self, config: DPOTConfig) -> None:
        super().__init__()
        self.config = config
        width, patch, hidden = config.embed_dim, config.patch_size, config.out_layer_dim
        dimensions = self.num_dimensions
        convolution = CONVOLUTIONS[dimensions]
        device = torch.get_default_device()
        with torch.device("meta"):  # modules' own initialisation would only be overwritten
            self.patch_embed = PatchEmbedding(config, dimensions)
            grid = (config.token_grid,) * dimensions
            self.pos_embed = nn.Parameter(torch.empty(1, width, *grid))
            self.blocks = BlockList(DPOTBlock(config, dimensions) for _ in range(config.depth))
            self.cls_head = nn.Sequential(
                nn.Linear(width, width),
                nn.GELU(),
                nn.Linear(width, width),
                nn.GELU(),
                nn.Linear(width, config.n_cls),
            )
            self.time_agg_layer = TimeAggregator(config)
            self.out_layer = nn.Sequential(
                TRANSPOSED[dimensions](width, hidden, patch, stride=patch),
                nn.GELU(),
                convolution(hidden, hidden, 1),
                nn.GELU(),
                convolution(hidden, config.out_channels * config.out_timesteps, 1),
            )
        self.materialize(device)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Predict the frames after `x [B, *grid, T, C]`, equally spaced in time.

        The grid has two axes, X and Y (three in `DPOT3D`), whose sides are any multiples of the
        patch: away from `img_size`, the position embedding is interpolated linearly. Returns the
        prediction `[B, *grid, T_out, C_out]` and the logits `[B, n_cls]` of the dataset that
        the trajectory is from. Raises ValueError for a shape that does not fit the configuration.
        """
        self._check(tuple(x.shape))
        config = self.config
        pixels_BTC = torch.cat((x, coordinates(x)), dim=-1).movedim((-2, -1), (1, 2))
        narrow = self.patch_embed(pixels_BTC.flatten(0, 1))
        position = resize_linear(self.pos_embed, narrow.shape[2:])
        narrow = narrow.unflatten(0, pixels_BTC.shape[:2])
        tokens = self.time_agg_layer(narrow, position, self.patch_embed.widening)
        for block in self.blocks:
            tokens = block(tokens)
        logits = self.cls_head(tokens.mean(dim=tuple(range(2, tokens.ndim))))
        prediction = self.out_layer(tokens).movedim(1, -1)
        shape = (config.out_timesteps, config.out_channels)
        return prediction.unflatten(-1, shape).to(x.dtype), logits.to(x.dtype)

    def resized_parameter(self, name: str, source: Tensor) -> Tensor | None:
        """The position embedding of another `img_size` or patch, interpolated linearly."""
        own = self.pos_embed.shape
        if name != "pos_embed" or source.ndim != len(own) or source.shape[:2] != own[:2]:
            return None
        return resize_linear(source, own[2:])

    def reset_parameters(self) -> None:
        """Initialise every parameter as the official code does, from torch's global generator.

        Convolutions, linear layers and norms torch's own way, the position embedding normal with
        deviation 0.02 cut at ±2, mixers uniform in [0, 1/size²), time matrices normal with
        deviation 1 / (T sqrt(D)), time frequencies from 2⁻¹⁰ to 2¹⁰.
        """
        for module in self.modules():
            self.init_weights(module)

    @torch.no_grad()
    def init_weights(self, module: nn.Module) -> None:
        """Initialise the direct parameters of one of `modules()`, not its children's.

        Draws from torch's global generator. Once over all modules is `reset_parameters`; one at
        a time lets a sharded model be filled without ever being whole.
        """
        if module is self:
            nn.init.trunc_normal_(self.pos_embed, std=_INIT_STD)
        elif isinstance(module, FourierMixer):
            scale = module.w1.shape[-1] ** -2
            for parameter in module.parameters(recurse=False):
                parameter.uniform_(0.0, scale)
        elif isinstance(module, TimeAggregator):
            frames, width, _ = module.w.shape
            module.w.normal_(0.0, 1.0 / (frames * width**0.5))
            module.gamma.copy_(2.0 ** torch.linspace(-10, 10, width))
        else:
            super().init_weights(module)

    def no_weight_decay(self) -> set[str]:
        """Names of parameters without weight decay: biases, norms, positions, time frequencies.

        The class head too: a loss that does not use it would let it decay to nothing.
        """
        norms = tuple(
            f"{name}." for name, module in self.named_modules() if isinstance(module, nn.GroupNorm)
        )
        kept = (*norms, "pos_embed", "time_agg_layer.gamma", "cls_head.")
        biases = (".bias", ".filter.b1", ".filter.b2")
        return {
            name
            for name, _ in self.named_parameters()
            if name.startswith(kept) or name.endswith(biases)
        }

    def _check(self, shape: tuple[int, ...]) -> None:
        config, axes = self.config, "XYZ"[: self.num_dimensions]
        patch, last = config.patch_size, (config.in_timesteps, config.in_channels)
        rule = GridRule(self.num_dimensions, patch, patch, f"patch_size={patch}")
        grid = shape[1:-2]
        if len(grid) == len(axes) and shape[-2:] == last and rule.fits(grid):
            return
        near = rule.nearest(grid) if len(grid) == len(axes) else (config.img_size,) * len(axes)
        raise ValueError(
            f"{type(self).__name__} got x of shape {shape}, needs [batch, {', '.join(axes)}, T, C] "
            f"with {', '.join(axes)} multiples of patch_size={patch}, in_timesteps={last[0]}, "
            f"in_channels={last[1]}: nearest is [batch, {', '.join(map(str, (*near, *last)))}]"
            + (wrong_frames(shape[-2], last[0]) if len(grid) == len(axes) else "")
        )


_LARGE: dict[str, Any] = {"out_layer_dim": 128, "mlp_ratio": 4}
_NANO: dict[str, Any] = {"img_size": 64, "embed_dim": 64, "depth": 2, "n_blocks": 4}
_TINY: dict[str, Any] = {"embed_dim": 512, "depth": 4, "n_blocks": 4}
_MEDIUM: dict[str, Any] = {"embed_dim": 1024, "depth": 12, "n_blocks": 8, "mlp_ratio": 4}


def _example(config: DPOTConfig, batch_size: int) -> tuple[Tensor, ...]:
    side, frames = config.img_size, config.in_timesteps
    return (torch.zeros(batch_size, side, side, frames, config.in_channels),)


FAMILY = Family(
    name="dpot",
    model=DPOT,
    paper="Hao et al., ICML 2024, arXiv:2403.03542",
    inputs="10 equally spaced frames [batch, x, y, time, field]; any grid of multiples of 8, 128 a "
    "side natively (nano: 64); four fields in the published weights",
    call="window",
    example=_example,
    sizes=(
        Size("nano", 230_387, _NANO),
        Size("Ti", 7_534_643, _TINY, "Apache-2.0"),
        Size("S", 30_801_459, {"embed_dim": 1024, "depth": 6, "n_blocks": 8}, "Apache-2.0"),
        Size("M", 122_125_875, _MEDIUM, "Apache-2.0"),
        Size(
            "L",
            509_018_739,
            {"embed_dim": 1536, "depth": 24, "n_blocks": 16, **_LARGE},
            "Apache-2.0",
        ),
        Size(
            "H",
            1_031_082_099,
            {"embed_dim": 2048, "depth": 27, "n_blocks": 8, **_LARGE},
            "Apache-2.0",
        ),
    ),
    marker="time_agg_layer.w",
    marker_axes=("pos_embed", 4),
    channel_axes=(
        ("patch_embed.proj.0.weight", 1, 3),  # three coordinates
        ("out_layer.4.weight", 0, 0),
    ),
)
