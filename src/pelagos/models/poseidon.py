"""Poseidon's network: scOT, a scalable operator transformer conditioned on lead time.

A U-shaped Swin-v2 transformer: windowed cosine attention with a continuous position bias,
residual post-norms whose scale and shift are affine in the lead time, and ConvNeXt blocks on the
skip connections. Herde et al., "Poseidon: Efficient foundation models for PDEs", NeurIPS 2024,
arXiv:2405.19101.

Written from the paper and from the published checkpoints' parameter names, so that official
state dicts load with `strict=True`. Layout: pixels are `BCHW`; tokens are `BHWC` from the
patch embedding to the patch recovery (`H`, `W` the token grid). Single-device code.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, cast

import torch
from torch import Tensor, nn

from pelagos.models.family import Family, Size
from pelagos.models.layers.fourier import fourier_resize
from pelagos.models.layers.scot_layers import (
    ConditionalLayerNorm,
    ConditionalScale,
    ConvNeXtBlock,
    Embeddings,
    PatchMerging,
    PatchRecovery,
    PatchUnmerging,
    ScOTBlock,
    WindowAttention,
)
from pelagos.models.pretrained import Pretrained
from pelagos.models.scot_config import ScOTConfig

__all__ = ["FAMILY", "ScOT", "ScOTConfig", "ScOTOutput"]

_LOSS_EPS = 1e-10
_LAYER_SCALE_INIT = 1e-6
_LOGIT_SCALE_INIT = math.log(10.0)


@dataclass
class ScOTOutput:
    """`output`: prediction `[B, C_out, H, W]`; `loss`: scalar, or None without labels."""

    output: Tensor
    loss: Tensor | None = None


class EncoderStage(nn.Module):
    """Blocks of one resolution; returns the next stage's input and this stage's skip."""

    def __init__(self, config: ScOTConfig, stage: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            ScOTBlock(config, stage, shifted=bool(i % 2)) for i in range(config.depths[stage])
        )
        last = stage == config.num_stages - 1
        self.downsample = None if last else PatchMerging(config, stage)

    def forward(self, x_BHWC: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
        skip = x_BHWC
        for block in self.blocks:
            skip = block(skip, time)
        return (
            (skip, skip)
            if self.downsample is None
            else (
                self.downsample(skip + x_BHWC, time),
                skip,
            )
        )


class DecoderStage(nn.Module):
    """Blocks of one resolution in reverse order (the shifted one may come first), then upsample."""

    def __init__(self, config: ScOTConfig, stage: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            ScOTBlock(config, stage, shifted=bool(i % 2))
            for i in reversed(range(config.depths[stage]))
        )
        self.upsample = PatchUnmerging(config, stage) if stage else None

    def forward(self, x_BHWC: Tensor, time: Tensor) -> Tensor:
        for block in self.blocks:
            x_BHWC = block(x_BHWC, time)
        return x_BHWC if self.upsample is None else self.upsample(x_BHWC, time)


class _Stages(nn.Module):
    """Holder of `layers`, as the official checkpoints name the stages."""

    def __init__(self, layers: list[nn.Module]) -> None:
        super().__init__()
        self.layers: Iterable[nn.Module] = nn.ModuleList(layers)


class ScOT(Pretrained):
    """The Poseidon network: one frame and a lead time to the frame that much later.

    Built under `torch.device("meta")` it allocates nothing; then `to_empty(device=...)` and
    `reset_parameters()` (or `reset_buffers()` before loading a state dict, which carries
    parameters only) make it usable. `from_pretrained` reads the published directories too.
    """

    model_types = ("scot", "swinv2")
    config_class = ScOTConfig
    config: ScOTConfig

    def __init__(self, config: ScOTConfig) -> None:
        super().__init__()
        self.config = config
        stages = range(config.num_stages)
        device = torch.get_default_device()
        with torch.device("meta"):  # modules' own initialisation would only be overwritten
            self.embeddings = Embeddings(config)
            self.encoder = _Stages([EncoderStage(config, stage) for stage in stages])
            self.decoder = _Stages([DecoderStage(config, stage) for stage in reversed(stages)])
            self.patch_recovery = PatchRecovery(config)
            self.residual_blocks = nn.ModuleList(
                nn.ModuleList(ConvNeXtBlock(config, stage) for _ in range(depth))
                for stage, depth in enumerate(config.skip_connections)
            )
        self.materialize(device)

    def forward(
        self,
        pixel_values: Tensor,
        time: Tensor,
        labels: Tensor | None = None,
        pixel_mask: Tensor | None = None,
    ) -> ScOTOutput:
        """Predict the frame after the lead time.

        `pixel_values [B, C_in, H, W]` normalised fields, `time [B]` lead time as a fraction of
        the longest, `labels [B, C_out, H, W]`, `pixel_mask [B, C_out]` bool: True replaces the
        prediction by the label (the field is not the model's to predict). Square grids other than
        the configured `image_size` are resampled to it and back through the Fourier series; with
        `resize="none"` the network runs on the given grid.

        With labels, `loss` is the relative L1 (or L2², `p=2`) error over the whole batch, mean
        over the field groups. Raises ValueError for a shape that does not fit the configuration.
        """
        self._check(pixel_values, time, labels, pixel_mask)
        native = pixel_values
        if self.config.resize == "fourier":
            native = fourier_resize(pixel_values, self.config.image_size)
        prediction = self._predict(native, time).to(pixel_values.dtype)
        if self.config.learn_residual:
            prediction = prediction + native[:, : self.config.num_out_channels]
        if self.config.resize == "fourier":
            prediction = fourier_resize(prediction, pixel_values.shape[-1])
        if pixel_mask is not None and labels is not None:
            masked = pixel_mask.to(torch.bool)[:, :, None, None]
            prediction = torch.where(masked, labels.to(prediction.dtype), prediction)
        return ScOTOutput(prediction, None if labels is None else self._loss(prediction, labels))

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Initialise every parameter and buffer as the official code does.

        Linear and convolution kernels N(0, `initializer_range`²) with zero biases, the recovery
        projection torch's own uniform, attention temperature 1/10, layer scale 1e-6. Conditional
        norms are no exception, so a fresh model scales each branch by about 0.02 t, unless
        `unit_norm_init` adds 1.
        """
        for module in self.modules():
            self.init_weights(module, generator)

    @torch.no_grad()
    def init_weights(self, module: nn.Module, generator: torch.Generator | None = None) -> None:
        """Initialise the direct parameters and buffers of one of `modules()`, not its children's.

        Draws from torch's global generator if none is given. Once over all modules is
        `reset_parameters`; one at a time lets a sharded model be filled without ever being whole.
        """
        if isinstance(module, nn.ConvTranspose2d):
            bound = module.weight[0].numel() ** -0.5
            module.weight.uniform_(-bound, bound, generator=generator)
            cast(Tensor, module.bias).uniform_(-bound, bound, generator=generator)
        elif isinstance(module, (nn.Linear, nn.Conv2d)):
            module.weight.normal_(0.0, self.config.initializer_range, generator=generator)
            if module.bias is not None:
                scale = isinstance(module, ConditionalScale) and self.config.unit_norm_init
                module.bias.fill_(float(scale))
        elif isinstance(module, nn.LayerNorm):
            module.reset_parameters()
        elif isinstance(module, ConvNeXtBlock):
            module.weight.fill_(_LAYER_SCALE_INIT)
        elif isinstance(module, WindowAttention):
            module.logit_scale.fill_(_LOGIT_SCALE_INIT)
            module.reset_buffers()

    def reset_buffers(self) -> None:
        """Fill the constant tables, which state dicts do not carry."""
        with torch.no_grad():
            for module in self.modules():
                if isinstance(module, WindowAttention):
                    module.reset_buffers()

    def no_weight_decay(self) -> set[str]:
        """Names of parameters without weight decay: norms, biases, position-bias networks.

        The official rule tests for the substring `bias`, and so takes the weights of
        `continuous_position_bias_mlp` along.
        """
        norms = (ConditionalLayerNorm, nn.LayerNorm)
        prefixes = tuple(f"{n}." for n, module in self.named_modules() if isinstance(module, norms))
        return {
            name
            for name, _ in self.named_parameters()
            if "bias" in name or name.startswith(prefixes)
        }

    def blocks(self) -> list[nn.Module]:
        """Repeated blocks to wrap, compile or checkpoint, each called as `block(x, time)`."""
        return [m for m in self.modules() if isinstance(m, (ScOTBlock, ConvNeXtBlock))]

    def _predict(self, pixels_BCHW: Tensor, time: Tensor) -> Tensor:
        x_BHWC = self.embeddings(pixels_BCHW, time)
        skips = []
        for stage, refine in zip(self.encoder.layers, self.residual_blocks, strict=True):
            x_BHWC, skip = stage(x_BHWC, time)
            for block in cast(nn.ModuleList, refine):
                skip = block(skip, time)
            skips.append(skip)
        x_BHWC = skips.pop()
        for depth, stage in enumerate(self.decoder.layers):
            x_BHWC = stage(x_BHWC + skips.pop() if depth else x_BHWC, time)
        return cast(Tensor, self.patch_recovery(x_BHWC))

    def _loss(self, prediction: Tensor, labels: Tensor) -> Tensor:
        error = (prediction.float() - labels.float()).abs() ** self.config.p
        slices = self.config.channel_slice_list_normalized_loss
        if slices is None:
            return error.mean()
        size = labels.float().abs() ** self.config.p
        ratios = [
            error[:, a:b].mean() / (size[:, a:b].mean() + _LOSS_EPS) for a, b in pairwise(slices)
        ]
        return torch.stack(ratios).mean()

    def _check(
        self, pixels: Tensor, time: Tensor, labels: Tensor | None, pixel_mask: Tensor | None
    ) -> None:
        config, shape = self.config, tuple(pixels.shape)
        problem = _grid_problem(config, shape)
        if problem:
            raise ValueError(f"scOT got pixel_values of shape {shape}, {problem}")
        expected = (shape[0], config.num_out_channels, *shape[2:])
        if labels is not None and tuple(labels.shape) != expected:
            raise ValueError(f"scOT got labels of shape {tuple(labels.shape)}, needs {expected}")
        if tuple(time.shape) not in ((shape[0],), (shape[0], 1)):
            raise ValueError(f"scOT got time of shape {tuple(time.shape)}, needs ({shape[0]},)")
        if pixel_mask is not None and tuple(pixel_mask.shape) != expected[:2]:
            got = tuple(pixel_mask.shape)
            raise ValueError(f"scOT got pixel_mask of shape {got}, needs {expected[:2]}")
        if pixel_mask is not None and labels is None:
            raise ValueError(
                "scOT got pixel_mask without labels, so nothing can replace the fields"
            )


def _grid_problem(config: ScOTConfig, shape: tuple[int, ...]) -> str:
    """The shape of pixels to use instead; empty if the given one fits."""
    channels = config.num_channels
    fits = len(shape) == 4 and shape[1] == channels
    if config.resize == "fourier":
        if fits and shape[2] == shape[3] and shape[3] % 2 == 0:
            return ""
        square = max(2, min(shape[2:]) // 2 * 2) if fits else config.image_size
        return (
            f"needs [batch, {channels}, N, N]: num_channels={channels}, a square grid with an even "
            f"side ({config.image_size} natively, others through a Fourier resize; resize='none' "
            f"takes other grids); the nearest grid is {square}x{square}"
            + (f", with resize='none' {_nearest_grid(config, shape[2:])}" if fits else "")
        )
    if fits and all(map(config.takes_side, shape[2:])):
        return ""
    near = _nearest_grid(config, shape[2:]) if fits else ""
    return (
        f"needs [batch, {channels}, H, W]: num_channels={channels}, both sides multiples of "
        f"patch_size({config.patch_size}) * 2**(stages({config.num_stages}) - 1) = "
        f"{config.coarsest}. In every stage (with {config.patch_size} pixels a token in the first) "
        f"a side has at most window_size={config.window_size} tokens or a multiple of it"
        + (f"; the nearest grid is {near}" if near else "")
    )


_OFFICIAL: dict[str, Any] = {"image_size": 128, "num_heads": (3, 6, 12, 24), "window_size": 16}
_SMALL: dict[str, Any] = {"embed_dim": 48, "depths": (8, 8, 8, 8), **_OFFICIAL}
_NANO: dict[str, Any] = {
    "image_size": 64,
    "embed_dim": 32,
    "depths": (2, 2, 1),
    "num_heads": (2, 4, 8),
    "window_size": 8,
    "skip_connections": (1, 1, 0),
    "unit_norm_init": True,
}


def _nearest_grid(config: ScOTConfig, sides: tuple[int, ...]) -> str:
    """The nearest grid that whole windows cover."""
    return "x".join(str(config.nearest_side(side)) for side in sides)


def _example(config: ScOTConfig, batch_size: int) -> tuple[Tensor, ...]:
    side = config.image_size
    return torch.zeros(batch_size, config.num_channels, side, side), torch.ones(batch_size)


def _groups(_in_channels: int, out_channels: int) -> dict[str, Any]:
    if out_channels == 4:  # the published groups are those of the four fluid fields
        return {}
    return {"channel_slice_list_normalized_loss": tuple(range(out_channels + 1))}


FAMILY = Family(
    name="poseidon",
    model=ScOT,
    paper="Herde et al., NeurIPS 2024, arXiv:2405.19101",
    inputs="one frame [batch, field, y, x] and a lead time; density, velocity-x, velocity-y, pressure "
    "in the published weights; square grids, 128 a side natively (nano: 64), others by Fourier "
    "resize; any grid that whole windows cover with resize='none'",
    call="frame",
    example=_example,
    sizes=(
        Size("nano", 824_668, _NANO),
        Size("T", 20_774_444, {**_SMALL, "depths": (4, 4, 4, 4)}, "CC-BY-NC-4.0"),
        Size("S", 39_901_076, _SMALL),
        Size("B", 157_729_988, {**_SMALL, "embed_dim": 96}, "CC-BY-NC-4.0"),
        Size("L", 628_575_524, {**_SMALL, "embed_dim": 192}, "CC-BY-NC-4.0"),
    ),
    channels=("num_channels", "num_out_channels"),
    adapt=_groups,
    marker="embeddings.patch_embeddings.projection.weight",
    channel_axes=(
        ("embeddings.patch_embeddings.projection.weight", 1, 0),
        ("patch_recovery.mixup.weight", 0, 0),
    ),
)
