"""Objectives of networks that take one frame and a lead time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from pelagos.models.objectives.base import FieldObjective, FrameWindows, WindowBatch


@dataclass(frozen=True)
class FramePair(FieldObjective):
    """The error of a prediction from one frame of a trajectory to a later one."""

    def errors(self, model: nn.Module, batch: WindowBatch) -> Tensor:
        """`[B, G]`: the numerators; absent fields contribute nothing."""
        lead_time = batch.times[:, -1] - batch.times[:, 0]
        prediction = self.predict(model, batch.frames[:, :1], lead_time)
        return self._errors(prediction, batch.frames[:, -1], batch)

    def predict(self, model: nn.Module, frames: Tensor, lead_time: Tensor) -> Tensor:
        """`[B, C, *grid]`: from the last of `frames [B, F, C, *grid]`, `lead_time [B]` on."""
        time = (lead_time / self.time_scale).to(frames.dtype)
        masks = self.field_masks
        last = masks.filled(frames[:, -1:], axis=2)
        if self.normalize_samples:
            norm = self._norm(last)
            seen = masks.filled(norm.apply(last), axis=2)
            output: Tensor = norm.undo(model(seen[:, 0], time).output)
        else:
            output = model(last[:, 0], time).output
        return self._with_given(output, last[:, 0])


@dataclass(frozen=True)
class AllToAll(FramePair):
    """Poseidon's all2all: every ordered pair of frames, k to k̄ >= k (arXiv:2405.19101, sec. 2).

    `max_lead_steps`: longest k̄ - k in strided steps, None for any; `frame_stride`: use frames
    0, s, 2s, ... (Poseidon: 2 of 21 frames); `time_scale`: the model sees (t_k̄ - t_k) /
    time_scale; the other options as in `FieldObjective`.

    >>> objective = AllToAll(("density",), frame_stride=2, max_lead_steps=10)
    >>> len(objective.frame_windows(21))
    66
    """

    max_lead_steps: int | None = None
    name: ClassVar[str] = "all2all"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_lead_steps is not None and self.max_lead_steps < 1:
            raise ValueError(f"max_lead_steps={self.max_lead_steps} must be at least 1")

    def frame_windows(self, num_frames: int) -> FrameWindows:
        """Pairs (k, k̄), k̄ = k included: n (n + 1) / 2 of n used frames if nothing limits them.

        Raises ValueError for a stride that leaves one frame.
        """
        used = range(0, num_frames, self.frame_stride)
        if len(used) < 2:
            usable = f": set it to {num_frames - 1} or less" if num_frames > 1 else ""
            raise ValueError(
                f"all2all: num_frames({num_frames}) must exceed frame_stride({self.frame_stride}), "
                f"or each used frame is paired only with itself{usable}"
            )
        longest = len(used) if self.max_lead_steps is None else self.max_lead_steps
        return tuple((a, b) for i, a in enumerate(used) for b in used[i : i + longest + 1])


@dataclass(frozen=True)
class NextStep(FramePair):
    """One fixed step: frame t to t + `frame_stride`, for every t."""

    name: ClassVar[str] = "next_step"

    def frame_windows(self, num_frames: int) -> FrameWindows:
        """Pairs (t, t + stride). Raises ValueError if the trajectory is shorter than one."""
        if num_frames <= self.frame_stride:
            raise ValueError(
                f"next_step: num_frames({num_frames}) must exceed frame_stride({self.frame_stride})"
            )
        return tuple((t, t + self.frame_stride) for t in range(num_frames - self.frame_stride))


@dataclass(frozen=True)
class Steady(FramePair):
    """Steady problems: the input is the first frame, the solution the last, nothing between.

    Datasets hold the given fields (source, coefficient) in both frames, and the solution in the
    last, zeros in the first. `field_groups` name what is learnt, `{solution: [solution]}`, if
    the dataset does not say which fields are given. Poseidon's lead time for them is 1
    (arXiv:2405.19101, sec. 3): the frames' distance over `time_scale`.
    """

    name: ClassVar[str] = "steady"

    def frame_windows(self, num_frames: int) -> FrameWindows:
        """The one pair (0, last). Raises ValueError for a single frame."""
        if num_frames < 2:
            raise ValueError(f"steady: num_frames({num_frames}) must be 2: input and solution")
        return ((0, num_frames - 1),)
