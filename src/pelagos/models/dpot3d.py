"""DPOT in three space dimensions, whose blocks can start from those of a trained two-dimensional one.

The same network with transforms, patches and positions of three axes. Its blocks extend the
two-dimensional ones along z: from a field that is constant along z, they make the same as those from its
slice (`FourierMixer`). Hao et al., "DPOT: Auto-regressive denoising operator transformer for
large-scale PDE pre-training", ICML 2024, arXiv:2403.03542, whose authors fine-tune the blocks of a
two-dimensional network on three-dimensional data.

Layout: input and prediction are `[B, X, Y, Z, T, C]`; tokens are `BD` and the token grid.
Single-device code.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from pelagos.models.checks import not_one_of
from pelagos.models.dpot import DPOT, DPOTConfig
from pelagos.models.family import Family, Size

__all__ = ["DPOT3D", "FAMILY", "DPOT3DConfig", "lift_from_2d"]

Mixer = Literal["lifted", "published"]

_MOST_TOKENS = 14  # the official code keeps 8 modes along z, 0 to 7
_POINTWISE = re.compile(r"blocks\.\d+\.mlp\.\d+\.weight")
_CARRIED = ("blocks.", "time_agg_layer.")


@dataclass(frozen=True)
class DPOT3DConfig(DPOTConfig):
    """Sizes and options of one three-dimensional DPOT; `img_size` is the side of a cube.

    `mixer`: how Fourier modes are mixed along z. `lifted` extends the two-dimensional network;
    `published` computes the same as the official three-dimensional code (`FourierMixer`), for
    weights that were trained with it.
    """

    img_size: int = 64
    mixer: Mixer = "lifted"

    @property
    def lifts(self) -> bool:
        """Whether mixers extend two-dimensional ones."""
        return self.mixer == "lifted"

    def _misfits(self) -> list[str]:
        problems = [*super()._misfits(), *not_one_of("mixer", self.mixer, get_args(Mixer))]
        if self.mixer == "published" and self.token_grid > _MOST_TOKENS:
            problems.append(
                f"mixer='published' takes img_size({self.img_size}) / patch_size({self.patch_size}) "
                f"= {self.token_grid} up to {_MOST_TOKENS} tokens; with more, the official code "
                "drops modes along z"
            )
        return problems


class DPOT3D(DPOT):
    """The DPOT network on `[B, X, Y, Z, T, C]`, called and initialised like `DPOT`."""

    model_types = ("dpot3d",)
    config_class = DPOT3DConfig
    config: DPOT3DConfig
    num_dimensions = 3


def lift_from_2d(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The part of a two-dimensional DPOT's state dict that a three-dimensional one starts from.

    Blocks and time aggregation, their widths unchanged: the 1×1 kernels of the blocks' MLPs become
    1×1×1, mixers, norms and biases stay as they are. Patches, positions and heads, which are not
    the same in three dimensions, are left out: `load_state_dict(..., strict=False)`, or
    `adaptation.adapt`, leaves the network's own there. Raises ValueError for a state dict
    without blocks of two dimensions.
    """
    lifted = {
        name: tensor.unsqueeze(-1) if _POINTWISE.fullmatch(name) else tensor
        for name, tensor in state_dict.items()
        if name.startswith(_CARRIED)
    }
    kernels = [tuple(tensor.shape) for name, tensor in lifted.items() if _POINTWISE.fullmatch(name)]
    if not kernels or any(shape[2:] != (1, 1, 1) for shape in kernels):
        found = f"kernels {list(kernels[0][:-1])}" if kernels else "no blocks.#.mlp.#.weight"
        raise ValueError(
            f"lift_from_2d got a state dict with {found}; it takes a two-dimensional DPOT's, whose "
            f"blocks have kernels [out, in, 1, 1]"
        )
    return lifted


def _example(config: DPOT3DConfig, batch_size: int) -> tuple[Tensor, ...]:
    grid = (config.img_size,) * 3
    return (torch.zeros(batch_size, *grid, config.in_timesteps, config.in_channels),)


_NANO: dict[str, Any] = {"img_size": 32, "embed_dim": 64, "depth": 2, "n_blocks": 4}
_TINY: dict[str, Any] = {"embed_dim": 512, "depth": 4, "n_blocks": 4}
_SMALL: dict[str, Any] = {"embed_dim": 1024, "depth": 6, "n_blocks": 8}
_MEDIUM: dict[str, Any] = {"embed_dim": 1024, "depth": 12, "n_blocks": 8, "mlp_ratio": 4}
_HEAD: dict[str, Any] = {"out_layer_dim": 128, "mlp_ratio": 4}
_LARGE: dict[str, Any] = {"embed_dim": 1536, "depth": 24, "n_blocks": 16, **_HEAD}
_HUGE: dict[str, Any] = {"embed_dim": 2048, "depth": 27, "n_blocks": 8, **_HEAD}

FAMILY = Family(
    name="dpot3d",
    model=DPOT3D,
    paper="Hao et al., ICML 2024, arXiv:2403.03542",
    inputs="10 equally spaced frames [batch, x, y, z, time, field]; any grid of multiples of 8, 64 a "
    "side natively (nano: 32); blocks may start from a two-dimensional DPOT; official weights need "
    "mixer: published",
    call="window",
    example=_example,
    sizes=(
        Size("nano", 1_279_732, _NANO),
        Size("Ti", 15_138_036, _TINY),
        Size("S", 45_876_468, _SMALL),
        Size("M", 137_200_884, _MEDIUM),
        Size("L", 597_625_652, _LARGE),
        Size("H", 1_149_180_724, _HUGE),
    ),
    marker="time_agg_layer.w",
    marker_axes=("pos_embed", 5),
    channel_axes=(
        ("patch_embed.proj.0.weight", 1, 4),  # four coordinates
        ("out_layer.4.weight", 0, 0),
    ),
    foreign_options={"mixer": "published"},
)
