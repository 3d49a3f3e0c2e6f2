"""Objectives of networks that take several frames: the next one, denoising, unrolled training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from pelagos.models.family import Call
from pelagos.models.objectives.base import (
    WITHIN_A_RUN,
    FieldObjective,
    FrameWindows,
    WindowBatch,
)
from pelagos.models.sample_draws import draws_per_sample, normal_like

Backpropagation = Literal["all", "last"]


@dataclass(frozen=True)
class Autoregressive(FieldObjective):
    """DPOT's: `num_input_frames` frames to the next one, relative L2 (arXiv:2403.03542).

    Per sample and field group `‖prediction - label‖₂ / (‖label‖₂ + 1e-8)`, averaged over samples
    and groups; groups are single fields unless given. Sums over samples, as in the official code,
    differ by the batch size. A group that a sample's dataset lacks, or whose label vanishes, has no
    relative error and does not count.

    `noise_scale`: in training, ε ‖x‖₂ times standard normal noise is added to the input, the norm
    over space and frames of each sample and field (DPOT eq. 5; ε = 5e-4 on 10 frames of 128 x 128 is
    20 % of the root mean square). `num_unrolled_steps`: the model's own frames are fed back for
    as many steps, and each is compared with the trajectory's. `backpropagate`: through `all` of
    these steps, or the `last` alone, of which the error is then taken: push-forward training
    (Brandstetter et al., arXiv:2202.03376, sec. 3.1).

    The model is called as `model(x [B, *grid, T, C])`, grid axes x first, and answers with a
    tuple: the prediction `[B, *grid, T_out, C]`, of which the first frame is taken, and what else
    it makes. Steps are one `frame_stride` long: the model sees no lead time, so `time_scale`
    must be 1.
    """

    p: int = 2
    loss: str = "relative_l2"
    num_input_frames: int = 10
    noise_scale: float = field(default=0.0, metadata={WITHIN_A_RUN: True})
    num_unrolled_steps: int = 1
    backpropagate: Backpropagation = "all"
    name: ClassVar[str] = "autoregressive"
    call: ClassVar[Call] = "window"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_input_frames < 1:
            raise ValueError(f"num_input_frames={self.num_input_frames} must be at least 1")
        if self.num_unrolled_steps < 1:
            raise ValueError(f"num_unrolled_steps={self.num_unrolled_steps} must be at least 1")
        if self.noise_scale < 0:
            raise ValueError(f"noise_scale={self.noise_scale} must not be negative")
        if self.backpropagate not in ("all", "last"):
            raise ValueError(f"backpropagate={self.backpropagate!r} must be 'all' or 'last'")
        if self.p != 2 or self.time_scale != 1.0:
            raise ValueError(
                f"autoregressive: p={self.p} must be 2 and time_scale={self.time_scale} must be 1: "
                f"the error is relative L2, and the model sees no lead time"
            )

    @property
    def input_frames(self) -> int:
        """Frames that `predict` forecasts from."""
        return self.num_input_frames

    def frame_windows(self, num_frames: int) -> FrameWindows:
        """Input frames and labels, `frame_stride` apart, from every start."""
        reach = (self.num_input_frames + self.num_unrolled_steps - 1) * self.frame_stride
        if num_frames <= reach:
            unrolled = (
                f" + num_unrolled_steps({self.num_unrolled_steps}) - 1)"
                if self.num_unrolled_steps > 1
                else ""
            )
            raise ValueError(
                f"autoregressive: num_frames({num_frames}) must exceed {'(' if unrolled else ''}"
                f"num_input_frames({self.num_input_frames}){unrolled} * frame_stride"
                f"({self.frame_stride}) = {reach}{self._fitting(num_frames)}"
            )
        return tuple(
            tuple(range(start, start + reach + 1, self.frame_stride))
            for start in range(num_frames - reach)
        )

    def _fitting(self, num_frames: int) -> str:
        """The largest number of input frames that such trajectories hold, in words."""
        most = (num_frames - 1) // self.frame_stride - self.num_unrolled_steps + 1
        if most >= 1:
            return f": set objective.config.num_input_frames to {most} or less"
        return ": lower objective.config.num_unrolled_steps or objective.config.frame_stride"

    def magnitudes(self, batch: WindowBatch) -> Tensor:
        """`[B, G]`: the denominators of all steps whose error is taken."""
        with torch.no_grad():
            labels = [batch.frames[:, index] for index in self._scored()]
            sizes = [self._magnitudes(label, batch) for label in labels]
            return torch.stack(sizes).sum(dim=0)

    def errors(self, model: nn.Module, batch: WindowBatch) -> Tensor:
        """`[B, G]`: the numerators; 0 where the sample does not count."""
        frames = self.field_masks.filled(batch.frames[:, : self.num_input_frames], axis=2)
        if self.noise_scale and model.training:
            frames = self._noised(frames, batch.sample_seed)
        seeds = batch.sample_seed if draws_per_sample(model) else None
        scored, total, rest = self._scored(), torch.zeros(()), torch.zeros(())
        for index in range(self.num_input_frames, batch.frames.shape[1]):
            counts = index in scored
            with nullcontext() if counts else torch.no_grad():
                prediction, unused = self._call(model, frames, seeds)
            if counts:
                total = total + self._errors(prediction, batch.frames[:, index], batch)
                rest = rest + sum((t.sum() for t in unused), torch.zeros(()))
            frames = torch.cat((frames[:, 1:], prediction[:, None]), dim=1)
        # Heads that this loss does not use take part with weight zero: every parameter then has a
        # gradient, which data parallel reductions wait for.
        return total + 0.0 * rest

    def predict(self, model: nn.Module, frames: Tensor, lead_time: Tensor) -> Tensor:
        """`[B, C, *grid]`: one frame after `frames [B, num_input_frames, C, *grid]`.

        `lead_time` is not used: it must be the interval between the frames. Raises ValueError for
        another number of frames.
        """
        if frames.shape[1] != self.num_input_frames:
            raise ValueError(
                f"autoregressive: got {frames.shape[1]} frame(s), but the model forecasts from "
                f"num_input_frames={self.num_input_frames}"
            )
        return self._call(model, frames)[0]

    def _scored(self) -> range:
        """Frames of a window whose error is taken."""
        last = self.num_input_frames + self.num_unrolled_steps - 1
        return range(last if self.backpropagate == "last" else self.num_input_frames, last + 1)

    def _noised(self, frames_BFCyx: Tensor, seeds: Tensor) -> Tensor:
        axes = (1, *range(3, frames_BFCyx.ndim))
        norms: Tensor = torch.linalg.vector_norm(frames_BFCyx, dim=axes, keepdim=True)
        if self.masks:  # a mask is no measurement
            channels = torch.tensor(sorted(self.field_masks.channels), device=norms.device)
            norms = norms.index_fill(2, channels, 0.0)
        return frames_BFCyx + self.noise_scale * norms * normal_like(frames_BFCyx, seeds)

    def _call(
        self, model: nn.Module, frames_BFCyx: Tensor, seeds: Tensor | None = None
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        masks = self.field_masks
        frames_BFCyx = masks.filled(frames_BFCyx, axis=2)
        if self.normalize_samples:
            norm = self._norm(frames_BFCyx)
            seen = masks.filled(norm.apply(frames_BFCyx), axis=2)
            prediction, unused = self._forward(model, seen, seeds)
            prediction = norm.undo(prediction)
        else:
            prediction, unused = self._forward(model, frames_BFCyx, seeds)
        return self._with_given(prediction, frames_BFCyx[:, -1]), unused

    def _forward(
        self, model: nn.Module, frames_BFCyx: Tensor, seeds: Tensor | None
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        axes = tuple(range(frames_BFCyx.ndim - 1, 2, -1))  # x before y
        drawn = () if seeds is None else (seeds,)
        prediction, *unused = model(frames_BFCyx.permute(0, *axes, 1, 2), *drawn)
        first = prediction[..., 0, :]
        grid = tuple(range(first.ndim - 2, 0, -1))
        return first.permute(0, first.ndim - 1, *grid), tuple(unused)

    def _default_groups(self) -> Mapping[str, Sequence[str | int]]:
        return {name: (name,) for name in self.fields}
