"""The protocol of objectives, and the shared code of those that predict fields.

An objective splits its loss into per-sample sums, so that the trainer can reduce a ratio over
exactly the samples it should: `loss = mean_g( sum_b errors[b, g] / sum_b magnitudes[b, g] )`
over samples `b` and field groups `g`. With `loss_scope="global"` the sums run over the whole
global batch, all ranks and micro-batches, and the gradient does not depend on how it was split;
with `"micro_batch"` each micro-batch takes its own ratio, as the papers' code does. Groups without
samples, and groups whose label vanishes, have magnitude 0 and are left out of the mean.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal, Protocol

import torch
from torch import Tensor, nn

from pelagos.models.family import Call
from pelagos.models.layers.reversible_norm import ReversibleNorm
from pelagos.models.losses import SMALLEST_LABEL, Loss, find_loss, group_mean
from pelagos.models.objectives.field_masks import FieldMasks

LossScope = Literal["global", "micro_batch"]
# Marks in a field's metadata. A field that follows from the data is no option of a job. One that
# changes neither what the network sees nor what the validation loss measures may change within a run.
FROM_THE_DATA, WITHIN_A_RUN = "from_the_data", "within_a_run"
FrameWindows = tuple[tuple[int, ...], ...]


class WindowBatch(Protocol):
    """The parts of a batch that an objective reads.

    `frames [B, F, C, *grid]` normalised, `times [B, F]` physical time of each frame,
    `present [B, C]` bool: False where the sample's dataset lacks the field, `sample_seed [B]`
    for whatever is drawn for a sample, whichever rank has it, `label [B]` the class of an image.
    """

    frames: Tensor
    times: Tensor
    present: Tensor
    sample_seed: Tensor
    label: Tensor


class Objective(Protocol):
    """One way of training a model on windows of a trajectory."""

    @property
    def loss_scope(self) -> LossScope: ...

    @property
    def group_names(self) -> tuple[str, ...]: ...

    @property
    def input_frames(self) -> int:
        """Frames that `predict` forecasts from."""
        ...

    @property
    def call(self) -> Call:
        """How it calls the model."""
        ...

    @property
    def model_channels(self) -> tuple[int, int]:
        """Channels that the model takes in and gives out."""
        ...

    def frame_windows(self, num_frames: int) -> FrameWindows:
        """All windows of a trajectory of `num_frames` frames, as tuples of frame indices."""
        ...

    def magnitudes(self, batch: WindowBatch) -> Tensor:
        """`[B, G]`: each sample's share of the denominators; labels only, no gradient."""
        ...

    def errors(self, model: nn.Module, batch: WindowBatch) -> Tensor:
        """`[B, G]`: each sample's share of the numerators; runs the model forward once."""
        ...

    def mean_over_groups(self, errors: Tensor, magnitudes: Tensor) -> Tensor:
        """The loss of errors and magnitudes summed over samples, both `[G]`."""
        ...

    def predict(self, model: nn.Module, frames: Tensor, lead_time: Tensor) -> Tensor:
        """Normalised `[B, C, *grid]` one `lead_time [B]` after `frames [B, F, C, *grid]`."""
        ...


def ratio_loss(errors: Tensor, magnitudes: Tensor) -> Tensor:
    """Mean over groups of summed errors over summed magnitudes, both `[B, G]`.

    Groups whose magnitudes are all 0 are left out.
    """
    return group_mean(errors.sum(dim=0), magnitudes.sum(dim=0))


def default_field_groups(field_names: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """One group per field, the components of a vector (`velocity-x`, `-y`) together.

    >>> default_field_groups(["density", "velocity-x", "velocity-y", "pressure"])
    {'density': ('density',), 'velocity': ('velocity-x', 'velocity-y'), 'pressure': ('pressure',)}
    """
    groups: dict[str, tuple[str, ...]] = {}
    for name in field_names:
        stem, _, axis = name.rpartition("-")
        key = stem if stem and axis in ("x", "y", "z") else name
        groups[key] = (*groups.get(key, ()), name)
    return groups


def without_fields(
    groups: Mapping[str, Sequence[str]], names: Collection[str]
) -> dict[str, tuple[str, ...]]:
    """The groups without some fields, and without groups that have no other field.

    >>> without_fields({"displacement": ["displacement"], "speed": ["speed"]}, {"speed"})
    {'displacement': ('displacement',)}
    """
    kept = {key: tuple(f for f in fields if f not in names) for key, fields in groups.items()}
    return {key: fields for key, fields in kept.items() if fields}


class OneFrameIn:
    """Defaults of an objective on `fields`."""

    fields: tuple[str, ...]

    @property
    def input_frames(self) -> int:
        """Frames that `predict` forecasts from."""
        return 1

    @property
    def model_channels(self) -> tuple[int, int]:
        """Channels that the model takes in and gives out: every field both ways."""
        return len(self.fields), len(self.fields)

    def mean_over_groups(self, errors: Tensor, magnitudes: Tensor) -> Tensor:
        """The mean over groups of `errors [G]` over `magnitudes [G]`, of those that count."""
        return group_mean(errors, magnitudes)


@dataclass(frozen=True)
class FieldObjective(OneFrameIn):
    """An error of predicted fields against later frames of a trajectory.

    `fields`: the model's channels; `field_groups`: name to channels (names or indices), None
    groups vector components. Fields in no group are given, not forecast: `predict` hands them on
    as they are in the latest frame. `field_weights`: group name to its weight in the mean over
    groups, 1 where not named; `frame_stride`: frames per step; `time_scale`: the model sees lead
    times divided by it; `loss`: a name of `losses.LOSSES`, and `p` the power of its `ratio`;
    `normalize_samples`: the network sees each sample and field with mean 0 and deviation 1 of
    its input frames, and its answer is scaled back (`ReversibleNorm`), errors being of the latter;
    `smallest_label`: mean size up to which a label vanishes (`losses`), 0 where fields are not
    normalised and so have no known size; `masks`: field to the field that is 1 where it has a
    value and 0 where it has none. The network sees 0 where there is none, whatever the data hold,
    and errors leave these points out. Masks are given, not forecast.
    """

    fields: tuple[str, ...]
    field_groups: Mapping[str, Sequence[str | int]] | None = None
    frame_stride: int = 1
    time_scale: float = 1.0
    loss_scope: LossScope = "global"
    p: int = 1
    loss: str = "ratio"
    # of members of a population, weights are divided out of the loss before they are compared
    field_weights: Mapping[str, float] | None = field(default=None, metadata={WITHIN_A_RUN: True})
    normalize_samples: bool = False
    smallest_label: float = field(default=SMALLEST_LABEL, metadata={FROM_THE_DATA: True})
    masks: Mapping[str, str] | None = field(default=None, metadata={FROM_THE_DATA: True})
    group_channels: tuple[tuple[int, ...], ...] = field(init=False, repr=False)
    error: Loss = field(init=False, repr=False)
    field_masks: FieldMasks = field(init=False, repr=False)
    call: ClassVar[Call] = "frame"

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
        object.__setattr__(self, "field_masks", FieldMasks.of(self.fields, self.masks or {}))
        groups = self.field_groups or self._groups_without_masks()
        channels = tuple(tuple(self._channel(entry) for entry in g) for g in groups.values())
        if not channels or not all(channels):
            raise ValueError(f"objective: every field group needs a field, got {dict(groups)}")
        object.__setattr__(self, "field_groups", {k: tuple(v) for k, v in groups.items()})
        object.__setattr__(self, "group_channels", channels)
        object.__setattr__(self, "error", find_loss(self.loss, self.p, self.smallest_label))
        self._check_weights()
        self._check_masks()

    @property
    def group_names(self) -> tuple[str, ...]:
        """Names of the field groups, in the order of the last axis of errors and magnitudes."""
        return tuple(self.field_groups or ())

    def magnitudes(self, batch: WindowBatch) -> Tensor:
        """`[B, G]`: the denominators, of the last frame."""
        with torch.no_grad():
            return self._magnitudes(batch.frames[:, -1], batch)

    def mean_over_groups(self, errors: Tensor, magnitudes: Tensor) -> Tensor:
        """The weighted mean over groups of `errors [G]` over `magnitudes [G]`.

        Of the groups that count.
        """
        weights = None if self.field_weights is None else self._weights(errors)
        return group_mean(errors, magnitudes, weights)

    def _magnitudes(self, label: Tensor, batch: WindowBatch) -> Tensor:
        """`[B, G]`: the denominators, of `label [B, C, *grid]`, where it has values."""
        valid = self.field_masks.valid(label)
        return self.error.magnitudes(label, batch.present, self.group_channels, valid)

    def _errors(self, prediction: Tensor, label: Tensor, batch: WindowBatch) -> Tensor:
        """`[B, G]`: the numerators, weighted by group, where the label has values."""
        difference, valid = prediction - label, self.field_masks.valid(label)
        errors = self.error.errors(difference, label, batch.present, self.group_channels, valid)
        return errors if self.field_weights is None else errors * self._weights(errors)

    def _with_given(self, prediction: Tensor, latest: Tensor) -> Tensor:
        """`prediction [B, C, *grid]`, the channels of no group as in the `latest` frame."""
        forecast = {channel for group in self.group_channels for channel in group}
        if len(forecast) == prediction.shape[1]:
            return prediction
        channels = [
            (prediction if channel in forecast else latest.to(prediction.dtype))[:, channel]
            for channel in range(prediction.shape[1])
        ]
        return torch.stack(channels, dim=1)

    def _norm(self, frames: Tensor) -> ReversibleNorm:
        """That of `frames [B, F, C, *grid]`, of the points with values; masks stay as they are."""
        masks = self.field_masks
        return ReversibleNorm.of(frames, masks.valid(frames, axis=2), kept=masks.channels)

    def _weights(self, errors: Tensor) -> Tensor:
        given = self.field_weights or {}
        weights = errors.new_tensor([given.get(name, 1.0) for name in self.group_names])
        return weights * len(weights) / weights.sum()  # the loss stays a weighted mean

    def _check_weights(self) -> None:
        weights = self.field_weights or {}
        strangers = sorted(set(weights) - set(self.group_names))
        if strangers:
            raise ValueError(
                f"objective: field_weights names {', '.join(strangers)}; the field groups are "
                f"{', '.join(self.group_names)}"
            )
        if any(weight < 0 for weight in weights.values()) or (
            weights and not any(weights.get(name, 1.0) for name in self.group_names)
        ):
            raise ValueError(f"objective: field_weights {dict(weights)} must be positive somewhere")

    def _check_masks(self) -> None:
        masks = set((self.masks or {}).values())
        for name, channels in zip(self.group_names, self.group_channels, strict=True):
            found = [self.fields[c] for c in channels if self.fields[c] in masks]
            if found:
                raise ValueError(
                    f"objective: field group {name!r} forecasts {', '.join(found)}, which marks "
                    "where other fields have values and is an input only: leave it out of "
                    "field_groups"
                )
        if masks and self.error.needs_whole_grid:
            raise ValueError(
                f"objective: loss {self.loss!r} takes modes of whole grids, but "
                f"{', '.join(self.masks or {})} has points without a value: use another loss "
                f"(relative_l2, vrmse), or convert with `missing: fill`"
            )

    def _groups_without_masks(self) -> Mapping[str, Sequence[str | int]]:
        usual, masks = self._default_groups(), set((self.masks or {}).values())
        kept = {name: tuple(f for f in group if f not in masks) for name, group in usual.items()}
        return {name: group for name, group in kept.items() if group}

    def _default_groups(self) -> Mapping[str, Sequence[str | int]]:
        return default_field_groups(self.fields)

    def _channel(self, entry: str | int) -> int:
        if isinstance(entry, int) and 0 <= entry < len(self.fields):
            return entry
        if isinstance(entry, str) and entry in self.fields:
            return self.fields.index(entry)
        raise ValueError(
            f"objective: field group names {entry!r}; the model's fields are {list(self.fields)}, "
            f"channels 0 to {len(self.fields) - 1}"
        )
