"""Objectives of single frames and images: masked autoencoding, classification, segmentation."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pelagos.models.family import Call
from pelagos.models.layers.vit_layers import patchify
from pelagos.models.objectives.base import (
    FROM_THE_DATA,
    FrameWindows,
    LossScope,
    OneFrameIn,
    WindowBatch,
)
from pelagos.models.objectives.field_masks import FieldMasks
from pelagos.models.sample_draws import uniform

_VARIANCE_EPS = 1e-6
_DICE_EPS = 1e-5


@dataclass(frozen=True)
class _SingleFrame(OneFrameIn):
    """A mean over samples of an error that each sample has of its own, from one frame of it."""

    fields: tuple[str, ...]
    frame_stride: int = 1
    loss_scope: LossScope = "global"

    def __post_init__(self) -> None:
        object.__setattr__(self, "fields", tuple(self.fields))
        if self.frame_stride < 1:
            raise ValueError(f"frame_stride={self.frame_stride} must be at least 1")

    @property
    def group_names(self) -> tuple[str, ...]:
        """One group: the whole sample."""
        return ("sample",)

    def frame_windows(self, num_frames: int) -> FrameWindows:
        """Every `frame_stride`-th frame by itself."""
        return tuple((frame,) for frame in range(0, num_frames, self.frame_stride))

    def magnitudes(self, batch: WindowBatch) -> Tensor:
        """`[B, 1]`: each sample counts once."""
        return torch.ones(batch.frames.shape[0], 1, device=batch.frames.device)

    def predict(self, model: nn.Module, frames: Tensor, lead_time: Tensor) -> Tensor:
        """Not a forecast: raises ValueError."""
        raise ValueError(f"{type(self).__name__} learns from single frames and makes no forecasts")


@dataclass(frozen=True)
class Masked(_SingleFrame):
    """Masked autoencoding: the error of patches that the encoder did not see (arXiv:2111.06377).

    `mask_ratio`: share of the patches that are hidden, drawn for each sample from its own seed;
    `patch_size`: the model's, along every axis; `normalize_patches`: targets have mean 0 and
    variance 1 in each patch (sec. 4.1, "reconstruction target"). The loss is the mean square over
    hidden patches alone. Where the model also predicts locally, at intermediate depths, those
    errors are averaged with it. `masks`: field to the field that is 1 where it has a value; the
    model sees 0 elsewhere, and neither targets nor errors take such points, nor the masks.
    """

    mask_ratio: float = 0.75
    patch_size: int | Sequence[int] = 16
    normalize_patches: bool = True
    masks: Mapping[str, str] | None = field(default=None, metadata={FROM_THE_DATA: True})
    field_masks: FieldMasks = field(init=False, repr=False)
    name: ClassVar[str] = "masked"
    call: ClassVar[Call] = "masked"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.mask_ratio < 1:
            raise ValueError(f"mask_ratio={self.mask_ratio} must be between 0 and 1")
        sides = (self.patch_size,) if isinstance(self.patch_size, int) else self.patch_size
        if not sides or min(sides) < 1:
            raise ValueError(f"patch_size={self.patch_size} must be at least 1")
        object.__setattr__(self, "field_masks", FieldMasks.of(self.fields, self.masks or {}))

    def magnitudes(self, batch: WindowBatch) -> Tensor:
        """`[B, 1]`: 1 for each sample that has a value in a hidden patch."""
        valid = self._valid_patches(batch.frames[:, 0])
        if valid is None:
            return super().magnitudes(batch)
        hidden = ~self.draw_kept(batch)
        return (valid & hidden[..., None]).flatten(1).any(dim=1, keepdim=True).float()

    def errors(self, model: nn.Module, batch: WindowBatch) -> Tensor:
        """`[B, 1]`: mean square error over the hidden patches.

        Raises ValueError for fields with masks where the model also predicts locally.
        """
        image = self.field_masks.filled(batch.frames[:, 0])
        patch, valid = self._patch(image.ndim - 2), self._valid_patches(image)
        output = model(image, self.draw_kept(batch))
        if valid is not None and output.local:
            raise ValueError(
                f"masked: local_reconstruction has no targets for {', '.join(self.masks or {})}, which "
                f"has points without a value: set model.config.local_reconstruction to false, or "
                f"convert with `missing: fill`"
            )
        target = self._target(patchify(image, patch), valid)
        squares = (output.prediction - target).float().square()
        errors = [_masked_mean(squares, output.masked, valid)]
        for local in output.local:
            difference = (local.prediction - self._target(local.target)).float().square()
            errors.append(_masked_mean(difference, local.masked))
        return torch.stack(errors).mean(dim=0)[:, None]

    def draw_kept(self, batch: WindowBatch) -> Tensor:
        """`[B, N]` bool: the patches that the encoder sees, as many in every sample."""
        image = batch.frames[:, 0]
        patch = self._patch(image.ndim - 2)
        grid = [side // size for side, size in zip(image.shape[2:], patch, strict=True)]
        num_patches = math.prod(grid)
        order = uniform((num_patches,), batch.sample_seed, image.device).argsort(dim=1)
        num_kept = max(1, round(num_patches * (1 - self.mask_ratio)))
        if num_kept >= num_patches:
            raise ValueError(
                f"masked: mask_ratio={self.mask_ratio} hides none of {num_patches} patches of "
                f"{patch} points on a grid of {tuple(image.shape[2:])}; use smaller patches, or "
                "hide more patches"
            )
        return torch.zeros_like(order, dtype=torch.bool).scatter(1, order[:, :num_kept], True)

    def _patch(self, num_dimensions: int) -> tuple[int, ...]:
        if isinstance(self.patch_size, int):
            return (self.patch_size,) * num_dimensions
        if len(self.patch_size) != num_dimensions:
            raise ValueError(
                f"masked: patch_size={tuple(self.patch_size)} has {len(self.patch_size)} sides, but "
                f"the grid has {num_dimensions} axes"
            )
        return tuple(self.patch_size)

    def _valid_patches(self, image: Tensor) -> Tensor | None:
        """`[B, N, volume * C]` bool: the predicted values; None where all are."""
        valid = self.field_masks.valid(image)
        if valid is None:
            return None
        masks = torch.tensor(sorted(self.field_masks.channels), device=image.device)
        return patchify(valid.index_fill(1, masks, False), self._patch(image.ndim - 2))

    def _target(self, patches: Tensor, valid: Tensor | None = None) -> Tensor:
        if not self.normalize_patches:
            return patches
        values = patches.float()
        if valid is None:
            variance, mean = torch.var_mean(values, dim=-1, keepdim=True)
        else:
            count = valid.sum(dim=-1, keepdim=True)
            mean = values.where(valid, 0.0).sum(dim=-1, keepdim=True) / count.clamp_min(1)
            squares = (values - mean).square().where(valid, 0.0)
            variance = squares.sum(dim=-1, keepdim=True) / (count - 1).clamp_min(1)
        return (values - mean) / (variance + _VARIANCE_EPS).sqrt()


@dataclass(frozen=True)
class Classification(_SingleFrame):
    """Cross entropy of class logits `[B, K]`, with label smoothing.

    The class of a trajectory (an image) is the parameter `label` of its dataset.
    """

    num_classes: int = 2
    label_smoothing: float = 0.0
    name: ClassVar[str] = "classification"
    call: ClassVar[Call] = "image"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_classes < 2:
            raise ValueError(f"classification: num_classes={self.num_classes} must be at least 2")
        if not 0 <= self.label_smoothing <= 1:
            raise ValueError(f"label_smoothing={self.label_smoothing} must be from 0 to 1")

    @property
    def model_channels(self) -> tuple[int, int]:
        """Every field in, one logit per class out."""
        return len(self.fields), self.num_classes

    def errors(self, model: nn.Module, batch: WindowBatch) -> Tensor:
        """`[B, 1]`. Raises ValueError for labels that are no class."""
        labels = batch.label
        if not labels.is_meta and not bool(((labels >= 0) & (labels < self.num_classes)).all()):
            raise ValueError(
                f"classification: labels {sorted(set(labels.tolist()))[:5]} are not all in 0 to "
                f"num_classes({self.num_classes}) - 1; -1 stands for a dataset without a parameter "
                f"'label'"
            )
        logits = model(batch.frames[:, 0])
        if isinstance(logits, tuple) or logits.shape != (len(labels), self.num_classes):
            raise ValueError(
                f"classification: the network returns {_shapes(logits)}, expected logits [batch, "
                f"{self.num_classes}]. For a ViT set head: classification; networks that return "
                "maps fit the objective segmentation"
            )
        smoothing = self.label_smoothing
        losses = F.cross_entropy(
            logits.float(), labels, reduction="none", label_smoothing=smoothing
        )
        return losses[:, None]


@dataclass(frozen=True)
class Segmentation(_SingleFrame):
    """Cross entropy plus soft Dice of a map of classes, as nnU-Net's (arXiv:1809.10486, sec. 3.3).

    `label_field`: the field that holds the class of every point as a whole number; the others go
    in. Per sample `mean CE + 1 - mean Dice`, Dice over the classes from 1 on (0 is background).
    Where the model answers with maps of several resolutions, finest first, each half as fine counts
    half, against labels taken at its points.
    """

    label_field: str = "label"
    num_classes: int = 2
    name: ClassVar[str] = "segmentation"
    call: ClassVar[Call] = "image"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.label_field not in self.fields or len(self.fields) < 2:
            raise ValueError(
                f"segmentation: label_field={self.label_field!r} must be one of the fields, in "
                f"addition to the inputs of the model; the fields are {', '.join(self.fields)}"
            )
        if self.num_classes < 2:
            raise ValueError(f"segmentation: num_classes={self.num_classes} must be at least 2")

    @property
    def model_channels(self) -> tuple[int, int]:
        """Every field but the label in, one logit per class out."""
        return len(self.fields) - 1, self.num_classes

    def errors(self, model: nn.Module, batch: WindowBatch) -> Tensor:
        """`[B, 1]`. Raises ValueError for labels that are no class."""
        image, labels = self.split(batch.frames[:, 0])
        answer = model(image)
        maps = answer if isinstance(answer, tuple) else (answer,)
        if any(m.ndim != image.ndim or m.shape[1] != self.num_classes for m in maps):
            raise ValueError(
                f"segmentation: the network returns {_shapes(answer)}, expected maps [batch, "
                f"{self.num_classes}, *grid]. For a ViT set head: segmentation"
            )
        weights = [0.5**level for level in range(len(maps))]
        errors = [w * self._error(m, _at(labels, m)) for w, m in zip(weights, maps, strict=True)]
        return torch.stack(errors).sum(dim=0)[:, None] / sum(weights)

    def split(self, frame: Tensor) -> tuple[Tensor, Tensor]:
        """The inputs `[B, C - 1, *grid]` and the classes `[B, *grid]`."""
        channel = self.fields.index(self.label_field)
        others = [index for index in range(len(self.fields)) if index != channel]
        labels = frame[:, channel].round().long()
        if not labels.is_meta and not bool(((labels >= 0) & (labels < self.num_classes)).all()):
            raise ValueError(
                f"segmentation: {self.label_field} has classes from {int(labels.min())} to "
                f"{int(labels.max())}, not all in 0 to num_classes({self.num_classes}) - 1"
            )
        return frame[:, others], labels

    def _error(self, logits: Tensor, labels: Tensor) -> Tensor:
        logits = logits.float()
        cross_entropy = F.cross_entropy(logits, labels, reduction="none").flatten(1).mean(dim=1)
        shares = logits.softmax(dim=1).flatten(2)[:, 1:]
        truth = F.one_hot(labels.flatten(1), self.num_classes).transpose(1, 2)[:, 1:].float()
        overlap = 2 * (shares * truth).sum(dim=2) + _DICE_EPS
        dice = overlap / (shares.sum(dim=2) + truth.sum(dim=2) + _DICE_EPS)
        return cross_entropy + 1 - dice.mean(dim=1)


def _shapes(answer: Tensor | tuple[Tensor, ...]) -> str:
    tensors = answer if isinstance(answer, tuple) else (answer,)
    return ", ".join(f"shape {tuple(tensor.shape)}" for tensor in tensors)


def _masked_mean(squares_BNV: Tensor, masked_BN: Tensor, valid_BNV: Tensor | None = None) -> Tensor:
    if valid_BNV is not None:
        counted = valid_BNV & masked_BN[..., None]
        sums = squares_BNV.where(counted, 0.0).sum(dim=(1, 2))
        return sums / counted.sum(dim=(1, 2)).clamp_min(1)
    means = squares_BNV.mean(dim=-1)
    return (means * masked_BN).sum(dim=1) / masked_BN.sum(dim=1)


def _at(labels: Tensor, logits: Tensor) -> Tensor:
    """Labels `[B, *grid]` at the points of a coarser map."""
    if labels.shape[1:] == logits.shape[2:]:
        return labels
    coarse = F.interpolate(labels[:, None].float(), size=logits.shape[2:], mode="nearest-exact")
    return coarse[:, 0].long()
