"""Training objectives: which frames a sample needs, and what a prediction's error is.

An objective splits its loss into per-sample sums, so that the trainer can reduce a ratio over
exactly the samples it should: ``loss = mean_g( sum_b errors[b, g] / sum_b magnitudes[b, g] )``
over samples ``b`` and field groups ``g``. With ``loss_scope="global"`` the sums run over the whole
global batch, all ranks and micro-batches, and the gradient does not depend on how it was split;
with ``"micro_batch"`` each micro-batch takes its own ratio, as the papers' code does.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Literal, Protocol

import torch
from torch import Tensor, nn

LossScope = Literal["global", "micro_batch"]
FrameWindows = tuple[tuple[int, ...], ...]

_MAGNITUDE_EPS = 1e-10  # added to the mean magnitude, as in arXiv:2405.19101's code
_NORM_EPS = 1e-8  # added to the label's norm, as in arXiv:2403.03542's code


class WindowBatch(Protocol):
    """What an objective reads of a batch.

    ``frames [B, F, C, *grid]`` normalised, ``times [B, F]`` physical time of each frame,
    ``present [B, C]`` bool: False where the sample's dataset lacks the field.
    """

    frames: Tensor
    times: Tensor
    present: Tensor


class Objective(Protocol):
    """One way of training a model on windows of a trajectory."""

    @property
    def loss_scope(self) -> LossScope: ...

    @property
    def group_names(self) -> tuple[str, ...]: ...

    @property
    def input_frames(self) -> int:
        """Frames that ``predict`` forecasts from."""
        ...

    def frame_windows(self, num_frames: int) -> FrameWindows:
        """All windows of a trajectory of ``num_frames`` frames, as tuples of frame indices."""
        ...

    def magnitudes(self, batch: WindowBatch) -> Tensor:
        """``[B, G]``: each sample's share of the denominators; labels only, no gradient."""
        ...

    def errors(self, model: nn.Module, batch: WindowBatch) -> Tensor:
        """``[B, G]``: each sample's share of the numerators; runs the model forward once."""
        ...

    def predict(self, model: nn.Module, frames: Tensor, lead_time: Tensor) -> Tensor:
        """Normalised ``[B, C, *grid]`` one ``lead_time [B]`` after ``frames [B, F, C, *grid]``."""
        ...


def ratio_loss(errors: Tensor, magnitudes: Tensor) -> Tensor:
    """Mean over groups of summed errors over summed magnitudes, both ``[B, G]``."""
    return (errors.sum(dim=0) / magnitudes.sum(dim=0)).mean()


def default_field_groups(field_names: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """One group per field, the components of a vector (``velocity-x``, ``-y``) together.

    >>> default_field_groups(["density", "velocity-x", "velocity-y", "pressure"])
    {'density': ('density',), 'velocity': ('velocity-x', 'velocity-y'), 'pressure': ('pressure',)}
    """
    groups: dict[str, tuple[str, ...]] = {}
    for name in field_names:
        stem, _, axis = name.rpartition("-")
        key = stem if stem and axis in ("x", "y", "z") else name
        groups[key] = (*groups.get(key, ()), name)
    return groups


@dataclass(frozen=True)
class _FramePair:
    """Relative Lp error of a prediction from one frame of a trajectory to a later one."""

    fields: tuple[str, ...]
    field_groups: Mapping[str, Sequence[str | int]] | None = None
    frame_stride: int = 1
    time_scale: float = 1.0
    loss_scope: LossScope = "global"
    p: int = 1
    group_channels: tuple[tuple[int, ...], ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "fields", tuple(self.fields))
        problems = []
        if self.loss_scope not in ("global", "micro_batch"):
            problems.append(f"loss_scope={self.loss_scope!r} must be 'global' or 'micro_batch'")
        if self.p not in (1, 2):
            problems.append(f"p={self.p} must be 1 or 2")
        if self.frame_stride < 1:
            problems.append(f"frame_stride={self.frame_stride} must be at least 1")
        if not self.time_scale > 0:
            problems.append(f"time_scale={self.time_scale} must be positive")
        if problems:
            raise ValueError(f"objective {type(self).__name__}: " + "; ".join(problems))
        groups = self.field_groups or default_field_groups(self.fields)
        channels = tuple(tuple(self._channel(entry) for entry in g) for g in groups.values())
        if not channels or not all(channels):
            raise ValueError(f"objective: every field group needs a field, got {dict(groups)}")
        object.__setattr__(self, "field_groups", {k: tuple(v) for k, v in groups.items()})
        object.__setattr__(self, "group_channels", channels)

    @property
    def group_names(self) -> tuple[str, ...]:
        """Names of the field groups, in the order of the last axis of errors and magnitudes."""
        return tuple(self.field_groups or ())

    @property
    def input_frames(self) -> int:
        """Frames that ``predict`` forecasts from."""
        return 1

    def magnitudes(self, batch: WindowBatch) -> Tensor:
        """``[B, G]``: Σ|label|^p + 1e-10·count over each group's channels and grid points."""
        with torch.no_grad():
            sizes = self._sums(batch.frames[:, -1])
            points = batch.frames[0, 0, 0].numel()
            counts = [len(channels) * points for channels in self.group_channels]
            return sizes + _MAGNITUDE_EPS * sizes.new_tensor(counts)

    def errors(self, model: nn.Module, batch: WindowBatch) -> Tensor:
        """``[B, G]``: Σ|prediction - label|^p; absent fields contribute nothing."""
        lead_time = batch.times[:, -1] - batch.times[:, 0]
        difference = self.predict(model, batch.frames[:, :1], lead_time) - batch.frames[:, -1]
        spatial = (1,) * (difference.ndim - 2)
        absent = ~batch.present.reshape(*batch.present.shape, *spatial)
        return self._sums(difference.masked_fill(absent, 0.0))

    def predict(self, model: nn.Module, frames: Tensor, lead_time: Tensor) -> Tensor:
        """``[B, C, *grid]``: from the last of ``frames [B, F, C, *grid]``, ``lead_time [B]`` on."""
        time = (lead_time / self.time_scale).to(frames.dtype)
        output: Tensor = model(frames[:, -1], time).output
        return output

    def _sums(self, values: Tensor) -> Tensor:
        powers = values.float().abs() if self.p == 1 else values.float().square()
        per_channel = powers.flatten(2).sum(dim=-1)
        return torch.stack([per_channel[:, list(g)].sum(-1) for g in self.group_channels], dim=-1)

    def _channel(self, entry: str | int) -> int:
        if isinstance(entry, int) and 0 <= entry < len(self.fields):
            return entry
        if isinstance(entry, str) and entry in self.fields:
            return self.fields.index(entry)
        raise ValueError(
            f"objective: field group names {entry!r}; the model's fields are {list(self.fields)}, "
            f"channels 0 to {len(self.fields) - 1}"
        )


@dataclass(frozen=True)
class AllToAll(_FramePair):
    """Poseidon's all2all: every ordered pair of frames, k to k̄ >= k (arXiv:2405.19101, sec. 2).

    ``fields``: the model's channels; ``field_groups``: name to channels (names or indices), None
    groups vector components; ``max_lead_steps``: longest k̄ - k in strided steps, None for any;
    ``frame_stride``: use frames 0, s, 2s, ... (Poseidon: 2 of 21 frames); ``time_scale``: the
    model sees (t_k̄ - t_k) / time_scale; ``loss_scope`` and ``p`` as in the module's docstring.

    >>> objective = AllToAll(("density",), frame_stride=2, max_lead_steps=10)
    >>> len(objective.frame_windows(21))
    66
    """

    max_lead_steps: int | None = None
    name: ClassVar[str] = "all2all"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_lead_steps is not None and self.max_lead_steps < 0:
            raise ValueError(f"max_lead_steps={self.max_lead_steps} must not be negative")

    def frame_windows(self, num_frames: int) -> FrameWindows:
        """Pairs (k, k̄), k̄ = k included: n (n + 1) / 2 of n used frames if nothing limits them."""
        used = range(0, num_frames, self.frame_stride)
        longest = len(used) if self.max_lead_steps is None else self.max_lead_steps
        return tuple((a, b) for i, a in enumerate(used) for b in used[i : i + longest + 1])


@dataclass(frozen=True)
class NextStep(_FramePair):
    """One fixed step: frame t to t + ``frame_stride``, for every t. Options as in ``AllToAll``."""

    name: ClassVar[str] = "next_step"

    def frame_windows(self, num_frames: int) -> FrameWindows:
        """Pairs (t, t + stride). Raises ValueError if the trajectory is shorter than one."""
        if num_frames <= self.frame_stride:
            raise ValueError(
                f"next_step: num_frames({num_frames}) must exceed frame_stride({self.frame_stride})"
            )
        return tuple((t, t + self.frame_stride) for t in range(num_frames - self.frame_stride))


@dataclass(frozen=True)
class Autoregressive(_FramePair):
    """DPOT's: ``num_input_frames`` frames to the next one, relative L2 (arXiv:2403.03542).

    Per sample and field group ``‖prediction - label‖₂ / (‖label‖₂ + 1e-8)``, averaged over samples
    and groups; groups are single fields unless given. Sums over samples, as in the official code,
    differ by the batch size. A group that a sample's dataset lacks, or whose label vanishes, has no
    relative error and does not count.

    The model is called as ``model(x [B, *grid, T, C])``, grid axes x first, and answers with a
    tuple: the prediction ``[B, *grid, T_out, C]``, of which the first frame is taken, and what else
    it makes. Steps are one ``frame_stride`` long: the model sees no lead time, so ``time_scale``
    must be 1.
    """

    p: int = 2
    num_input_frames: int = 10
    name: ClassVar[str] = "autoregressive"

    def __post_init__(self) -> None:
        if self.field_groups is None:
            object.__setattr__(self, "field_groups", {name: (name,) for name in self.fields})
        super().__post_init__()
        if self.num_input_frames < 1:
            raise ValueError(f"num_input_frames={self.num_input_frames} must be at least 1")
        if self.p != 2 or self.time_scale != 1.0:
            raise ValueError(
                f"autoregressive: p={self.p} must be 2 and time_scale={self.time_scale} must be 1: "
                f"the error is relative L2, and the model sees no lead time"
            )

    @property
    def input_frames(self) -> int:
        """Frames that ``predict`` forecasts from."""
        return self.num_input_frames

    def frame_windows(self, num_frames: int) -> FrameWindows:
        """Input frames and label, ``frame_stride`` apart, from every start."""
        reach = self.num_input_frames * self.frame_stride
        if num_frames <= reach:
            raise ValueError(
                f"autoregressive: num_frames({num_frames}) must exceed num_input_frames"
                f"({self.num_input_frames}) * frame_stride({self.frame_stride}) = {reach}"
            )
        return tuple(
            tuple(range(start, start + reach + 1, self.frame_stride))
            for start in range(num_frames - reach)
        )

    def magnitudes(self, batch: WindowBatch) -> Tensor:
        """``[B, G]``: 1 where the sample counts; next to nothing, lest 0 / 0, where it does not."""
        with torch.no_grad():
            return self._counted(batch).float().clamp_min(_MAGNITUDE_EPS)

    def errors(self, model: nn.Module, batch: WindowBatch) -> Tensor:
        """``[B, G]``: relative L2 error; 0 where the sample does not count."""
        prediction, unused = self._call(model, batch.frames[:, :-1])
        difference = prediction - batch.frames[:, -1]
        absent = ~batch.present.reshape(*batch.present.shape, *(1,) * (difference.ndim - 2))
        squares = self._sums(difference.masked_fill(absent, 0.0))
        with torch.no_grad():
            counted, sizes = self._counted(batch), self._sums(batch.frames[:, -1]).sqrt()
        # sqrt has an infinite slope at 0, which a masked entry would turn into NaN
        norms = squares.where(squares > 0, 1.0).sqrt().where(counted & (squares > 0), 0.0)
        # Heads that this loss does not use take part with weight zero: every parameter then has a
        # gradient, which data parallel reductions wait for.
        return norms / (sizes + _NORM_EPS) + 0.0 * sum(t.sum() for t in unused)

    def predict(self, model: nn.Module, frames: Tensor, lead_time: Tensor) -> Tensor:
        """``[B, C, *grid]``: one frame after ``frames [B, num_input_frames, C, *grid]``.

        ``lead_time`` is not used: it must be the interval between the frames. Raises ValueError for
        another number of frames.
        """
        if frames.shape[1] != self.num_input_frames:
            raise ValueError(
                f"autoregressive: got {frames.shape[1]} frame(s), the model forecasts from "
                f"num_input_frames={self.num_input_frames}"
            )
        return self._call(model, frames)[0]

    def _call(self, model: nn.Module, frames_BFCyx: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        axes = tuple(range(frames_BFCyx.ndim - 1, 2, -1))  # x before y
        prediction, *unused = model(frames_BFCyx.permute(0, *axes, 1, 2))
        first = prediction[..., 0, :]
        grid = tuple(range(first.ndim - 2, 0, -1))
        return first.permute(0, first.ndim - 1, *grid), tuple(unused)

    def _counted(self, batch: WindowBatch) -> Tensor:
        present = [batch.present[:, list(g)].any(dim=1) for g in self.group_channels]
        return torch.stack(present, dim=-1) & (self._sums(batch.frames[:, -1]) > 0)


OBJECTIVES: dict[str, type[AllToAll] | type[NextStep] | type[Autoregressive]] = {
    "all2all": AllToAll,
    "next_step": NextStep,
    "autoregressive": Autoregressive,
}


def create_objective(name: str, field_names: Sequence[str], **options: Any) -> Objective:
    """The named objective over the model's ``field_names``, with its options checked.

    Raises ValueError for an unknown name (with the closest) or option (with all that exist).
    """
    if name not in OBJECTIVES:
        close = difflib.get_close_matches(name, OBJECTIVES, n=1, cutoff=0.0)
        raise ValueError(
            f"unknown objective {name!r}; closest: {close[0]}; all: {', '.join(OBJECTIVES)}"
        )
    known = [f.name for f in fields(OBJECTIVES[name]) if f.init and f.name != "fields"]
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise ValueError(
            f"objective {name!r} has no option {', '.join(unknown)}; it has {', '.join(known)}"
        )
    return OBJECTIVES[name](fields=tuple(field_names), **options)
