"""Sizes and options of scOT, Poseidon's network, checked when they are made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

from pelagos.models.checks import nearest_multiples, not_whole_numbers

_WHOLE = (
    "image_size",
    "patch_size",
    "num_channels",
    "num_out_channels",
    "embed_dim",
    "window_size",
)


@dataclass(frozen=True)
class ScOTConfig:
    """Sizes and options of one scOT, under the official names.

    `depths`, `num_heads` and `skip_connections` have one entry per U-net stage; the width of
    stage `i` is `embed_dim * 2**i` and its token grid `image_size / patch_size / 2**i`.
    `channel_slice_list_normalized_loss` holds the boundaries of the field groups of the built-in
    loss: `(0, 1, 3, 4)` is density | velocity | pressure; None is a plain Lp mean.

    `resize`: the treatment of a grid that is not `image_size` square. `"fourier"`, the official
    way, resamples square ones to it and the forecast back; `"none"` runs on the grid as it is,
    square or not, if `takes_side` holds for both sides.

    `unit_norm_init`, which the official code has not, starts conditional norms at scale 1 instead
    of about 0.02 t: short trainings of small models gain by it. It does not change the network.

    Raises ValueError, naming the arithmetic, for sizes that do not divide, and for options of the
    official configuration that no published model uses (dropout, absolute positions).
    """

    image_size: int = 128
    patch_size: int = 4
    num_channels: int = 4
    num_out_channels: int = 4
    embed_dim: int = 48
    depths: tuple[int, ...] = (4, 4, 4, 4)
    num_heads: tuple[int, ...] = (3, 6, 12, 24)
    skip_connections: tuple[int, ...] = (2, 2, 2, 0)
    window_size: int = 16
    mlp_ratio: float = 4.0
    qkv_bias: bool = True
    hidden_dropout_prob: float = 0.0
    attention_probs_dropout_prob: float = 0.0
    drop_path_rate: float = 0.0
    hidden_act: str = "gelu"
    use_absolute_embeddings: bool = False
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-5
    p: int = 1
    channel_slice_list_normalized_loss: tuple[int, ...] | None = (0, 1, 3, 4)
    residual_model: str = "convnext"
    use_conditioning: bool = True
    learn_residual: bool = False
    unit_norm_init: bool = False
    resize: Literal["fourier", "none"] = "fourier"

    def __post_init__(self) -> None:
        for name in (
            "depths",
            "num_heads",
            "skip_connections",
            "channel_slice_list_normalized_loss",
        ):
            value = getattr(self, name)
            if isinstance(value, (list, tuple)):
                object.__setattr__(self, name, tuple(value))
        problems = [*not_whole_numbers(self, _WHOLE), *self._not_lists(), *self._unsupported()]
        problems = problems or self._misfits()
        if problems:
            raise ValueError("scOT config: " + "; ".join(problems))

    @property
    def num_stages(self) -> int:
        return len(self.depths)

    def stage_width(self, stage: int) -> int:
        """Channels of the tokens of one stage (0 is the finest)."""
        return int(self.embed_dim * 2**stage)

    def stage_grid(self, stage: int) -> int:
        """Tokens along one side of one stage (0 is the finest)."""
        return int(self.image_size // self.patch_size // 2**stage)

    @property
    def coarsest(self) -> int:
        """Pixels along one side of a token of the last stage."""
        return int(self.patch_size * 2 ** (self.num_stages - 1))

    def takes_side(self, side: int) -> bool:
        """Whether whole windows cover a grid's side in every stage, without resampling.

        Each stage's tokens must be at most `window_size` or a multiple of it.
        """
        tokens = [side // self.patch_size // 2**stage for stage in range(self.num_stages)]
        whole = side >= self.coarsest and side % self.coarsest == 0
        return whole and all(n <= self.window_size or n % self.window_size == 0 for n in tokens)

    def nearest_side(self, side: int) -> int:
        """The nearest side that `takes_side` (the smaller of two)."""
        reach = side + self.coarsest * self.window_size  # of which every multiple fits
        return min(filter(self.takes_side, range(1, reach + 1)), key=lambda n: abs(n - side))

    @classmethod
    def from_official(cls, config: Mapping[str, Any]) -> ScOTConfig:
        """From a published `config.json`: known names are taken, the framework's are dropped."""
        known = {field.name for field in fields(cls)}
        return cls(**{key: value for key, value in config.items() if key in known})

    def _unsupported(self) -> list[str]:
        required = {
            "hidden_dropout_prob": 0.0,
            "attention_probs_dropout_prob": 0.0,
            "drop_path_rate": 0.0,
            "hidden_act": "gelu",
            "use_absolute_embeddings": False,
            "residual_model": "convnext",
        }
        return [
            f"{name}={getattr(self, name)!r} is not supported; use {value!r}"
            for name, value in required.items()
            if getattr(self, name) != value
        ] + [
            f"{name}={getattr(self, name)!r} must be {' or '.join(map(repr, choices))}"
            for name, choices in {"p": (1, 2), "resize": ("fourier", "none")}.items()
            if getattr(self, name) not in choices
        ]

    def _not_lists(self) -> list[str]:
        slices = self.channel_slice_list_normalized_loss
        given = {"depths": 1, "num_heads": 1, "skip_connections": 0}
        given |= {} if slices is None else {"channel_slice_list_normalized_loss": 0}
        return [
            f"{name}={getattr(self, name)!r} must list whole numbers, each at least {least}"
            for name, least in given.items()
            if not _are_whole(getattr(self, name), least)
        ]

    def _nearest_window(self) -> int:
        """The window size next to the given one that covers every stage's tokens."""
        grids = [self.stage_grid(stage) for stage in range(self.num_stages)]
        fitting = [w for w in range(1, grids[0] + 1) if all(n <= w or n % w == 0 for n in grids)]
        return min(fitting, key=lambda w: abs(w - self.window_size))

    def _misfits(self) -> list[str]:
        problems = []
        stages = self.num_stages
        for name in ("num_heads", "skip_connections"):
            if len(getattr(self, name)) != stages:
                problems.append(
                    f"{name}={getattr(self, name)} needs len(depths) = {stages} entries"
                )
        if stages < 1 or self.image_size % self.coarsest:
            problems.append(
                f"image_size={self.image_size} must be a multiple of "
                f"patch_size({self.patch_size}) * 2**(stages({stages}) - 1) = {self.coarsest}: "
                f"use {nearest_multiples(self.image_size, self.coarsest)}"
            )
        if problems:
            return problems
        for stage in range(stages):
            grid, width, heads = (
                self.stage_grid(stage),
                self.stage_width(stage),
                self.num_heads[stage],
            )
            if grid > self.window_size and grid % self.window_size:
                problems.append(
                    f"stage {stage} has {grid} tokens a side, not a multiple of "
                    f"window_size={self.window_size}; the nearest that fits is "
                    f"{self._nearest_window()}"
                )
            if width % heads:
                problems.append(f"stage {stage}: width {width} is not a multiple of {heads} heads")
        slices = self.channel_slice_list_normalized_loss
        if slices is not None and (
            sorted(set(slices)) != list(slices)
            or slices[0] < 0
            or slices[-1] > self.num_out_channels
        ):
            problems.append(
                f"channel_slice_list_normalized_loss={slices} must rise within "
                f"[0, num_out_channels={self.num_out_channels}]"
            )
        return problems


def _are_whole(values: object, least: int) -> bool:
    return (
        isinstance(values, tuple)
        and bool(values)
        and all(isinstance(v, int) and not isinstance(v, bool) and v >= least for v in values)
    )
