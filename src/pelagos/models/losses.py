"""Errors of predicted fields, as sums that a trainer can reduce over any samples.

A loss gives numerators and denominators per sample and group of fields; the objective's loss is the
mean over groups of summed numerators over summed denominators. `ratio` sums errors and magnitudes
over the batch, as Poseidon's code does (arXiv:2405.19101); the others are means over samples of an
error that is relative in each, so their denominators count samples.

A relative error needs a label that is not zero. A denominator is exactly 0 where a sample's dataset
lacks the group, or where the label vanishes: its mean size is below `SMALLEST_LABEL`, in normalised
units a millionth of the field's own standard deviation, or its variation (VRMSE) is below a
millionth of its own size. Float32 rounds normalised values by about as much, so the remainder there
is rounding. A group whose denominators are all 0 has no error, not a perfect one: `group_mean`
leaves it out.

Fields are `[B, C, *grid]`; results `[B, G]`. `valid [B, C, *grid]` marks the points at which a
field has a value (land in an ocean model has none): sums and means over space take these alone, as
numpy's do on a masked array, so nothing depends on the fields' values elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from pelagos.models.layers.precision import without_autocast
from pelagos.registry import Registry

Groups = Sequence[Sequence[int]]

MAGNITUDE_EPS = 1e-10  # added to the mean magnitude, as in arXiv:2405.19101's code
# Mean size of a label, in units of the field's standard deviation, and of its variation, in units of
# its own size, up to which it is rounding: 16 times float32's 6e-8.
SMALLEST_LABEL = 1e-6
_NORM_EPS = 1e-8  # added to the label's norm, as in arXiv:2403.03542's code


class Loss(Protocol):
    """Errors of predictions and the scales they are relative to.

    `needs_whole_grid`: whether it has no meaning where points have no value; `valid` must then be
    None.
    """

    @property
    def needs_whole_grid(self) -> bool: ...

    def magnitudes(
        self, label: Tensor, present: Tensor, groups: Groups, valid: Tensor | None = None
    ) -> Tensor:
        """`[B, G]`: denominators, of `label [B, C, *grid]` and `present [B, C]`."""

    def errors(
        self,
        difference: Tensor,
        label: Tensor,
        present: Tensor,
        groups: Groups,
        valid: Tensor | None = None,
    ) -> Tensor:
        """`[B, G]`: numerators, of prediction - label; absent fields contribute nothing."""


def grouped(per_channel: Tensor, groups: Groups) -> Tensor:
    """Sum `[B, C]` over the channels of each group: `[B, G]`."""
    return torch.stack([per_channel[:, list(g)].sum(-1) for g in groups], dim=-1)


def without_absent(fields: Tensor, present: Tensor) -> Tensor:
    """`[B, C, *grid]` with zeros where a sample's dataset lacks the field."""
    absent = ~present.reshape(*present.shape, *(1,) * (fields.ndim - 2))
    return fields.masked_fill(absent, 0.0)


def without_masked(fields: Tensor, valid: Tensor | None) -> Tensor:
    """`[B, C, *grid]` with zeros where there is no value."""
    return fields if valid is None else fields.where(valid, 0.0)


def mean_over_space(values: Tensor, valid: Tensor | None = None) -> Tensor:
    """`[B, C]`: the mean over the points of `[B, C, *grid]` that have a value; 0 without any.

    Values at other points must be 0.
    """
    if valid is None:
        return values.flatten(2).mean(dim=-1)
    return values.flatten(2).sum(dim=-1) / valid.flatten(2).sum(dim=-1).clamp_min(1)


def group_mean(errors: Tensor, magnitudes: Tensor, weights: Tensor | None = None) -> Tensor:
    """The mean over groups of summed errors over summed magnitudes, all `[G]`.

    Groups whose magnitudes are 0 are left out; if there is no other, the mean is 0. With
    `weights`, by which the errors were multiplied, it is a weighted mean of the groups that count.
    """
    counted = magnitudes > 0
    ratios = torch.where(counted, errors / magnitudes.where(counted, 1.0), 0.0)
    share = counted.to(ratios.dtype) if weights is None else weights.to(ratios) * counted
    total = share.sum()
    return ratios.sum() / total.where(total > 0, 1.0)


@dataclass(frozen=True)
class Ratio:
    """Σ|error|^p / (Σ|label|^p + 1e-10 count), the sums over all samples of the batch."""

    p: int = 1
    smallest_label: float = SMALLEST_LABEL
    needs_whole_grid: ClassVar[bool] = False

    def magnitudes(
        self, label: Tensor, present: Tensor, groups: Groups, valid: Tensor | None = None
    ) -> Tensor:
        """`[B, G]`: Σ|label|^p + 1e-10·count over each group's channels and grid points.

        0 where the label vanishes.
        """
        label = without_masked(label, valid)
        sizes = self._sums(label, groups)
        floor = MAGNITUDE_EPS * self._counts(label, groups, valid)
        return (sizes + floor).where(self._counted(label, groups, valid), 0.0)

    def errors(
        self,
        difference: Tensor,
        label: Tensor,
        present: Tensor,
        groups: Groups,
        valid: Tensor | None = None,
    ) -> Tensor:
        """`[B, G]`: Σ|prediction - label|^p; 0 where the label vanishes."""
        difference, label = without_masked(difference, valid), without_masked(label, valid)
        errors = self._sums(without_absent(difference, present), groups)
        return errors.where(self._counted(label, groups, valid), 0.0)

    def _counted(self, label: Tensor, groups: Groups, valid: Tensor | None) -> Tensor:
        """`[B, G]` bool, sample by sample, so that micro-batches and ranks do not matter."""
        smallest = float(self.smallest_label) ** self.p
        return self._sums(label.detach(), groups) > smallest * self._counts(label, groups, valid)

    def _counts(self, label: Tensor, groups: Groups, valid: Tensor | None) -> Tensor:
        """Points with values: `[G]`, or `[B, G]` where they differ between samples."""
        if valid is not None:
            return grouped(valid.flatten(2).sum(dim=-1).float(), groups)
        counts = [len(channels) * label[0, 0].numel() for channels in groups]
        return torch.tensor(counts, dtype=torch.float32, device=label.device)

    def _sums(self, values: Tensor, groups: Groups) -> Tensor:
        powers = values.float().abs() if self.p == 1 else values.float().square()
        return grouped(powers.flatten(2).sum(dim=-1), groups)


@dataclass(frozen=True)
class RelativePerSample:
    """‖error‖ / (‖label‖ + 1e-8) in each sample and group.

    A group whose label vanishes, or that the sample's dataset lacks, does not count. Subclasses say
    which powers are summed, and the root.
    """

    smallest_label: float = SMALLEST_LABEL
    needs_whole_grid: ClassVar[bool] = False

    def magnitudes(
        self, label: Tensor, present: Tensor, groups: Groups, valid: Tensor | None = None
    ) -> Tensor:
        """`[B, G]`: 1 where the sample counts, 0 where it does not."""
        return self._counted(without_masked(label, valid), present, groups, valid).float()

    def errors(
        self,
        difference: Tensor,
        label: Tensor,
        present: Tensor,
        groups: Groups,
        valid: Tensor | None = None,
    ) -> Tensor:
        """`[B, G]`: relative errors; 0 where the sample does not count."""
        difference, label = without_masked(difference, valid), without_masked(label, valid)
        powers = grouped(self._powers(without_absent(difference, present)), groups)
        with torch.no_grad():
            counted = self._counted(label, present, groups, valid)
            sizes = self._root(grouped(self._powers(self._reference(label, valid)), groups))
        # a root has an infinite slope at 0, which a masked entry would turn into NaN
        norms = self._root(powers.where(powers > 0, 1.0)).where(counted & (powers > 0), 0.0)
        return norms / (sizes + _NORM_EPS)

    def _counted(
        self, label: Tensor, present: Tensor, groups: Groups, valid: Tensor | None
    ) -> Tensor:
        has = torch.stack([present[:, list(g)].any(dim=1) for g in groups], dim=-1)
        sizes, variations = (
            grouped(mean_over_space(values.float().square(), valid), groups)
            for values in (label, self._reference(label, valid))
        )
        # both are mean squares, hence the squares of the two bounds
        floor = (SMALLEST_LABEL**2 * sizes).clamp_min(self.smallest_label**2)
        return has & (variations > floor)

    def _powers(self, values: Tensor) -> Tensor:
        return values.float().square().flatten(2).sum(dim=-1)

    def _root(self, powers: Tensor) -> Tensor:
        return powers.sqrt()

    def _reference(self, label: Tensor, valid: Tensor | None) -> Tensor:
        """The scale of the relative error, of the label's shape, 0 where there is no value."""
        return label


class RelativeL2(RelativePerSample):
    """‖error‖₂ / ‖label‖₂ per sample.

    DPOT's (arXiv:2403.03542), and PDEBench's nRMSE (arXiv:2210.07182, appendix B).
    """


class RelativeL1(RelativePerSample):
    """‖error‖₁ / ‖label‖₁ per sample."""

    def _powers(self, values: Tensor) -> Tensor:
        return values.float().abs().flatten(2).sum(dim=-1)

    def _root(self, powers: Tensor) -> Tensor:
        return powers


class VRMSE(RelativePerSample):
    """sqrt(mean error² / variance of the label over space): The Well's (arXiv:2412.00568, eq. 1)."""

    def _reference(self, label: Tensor, valid: Tensor | None) -> Tensor:
        values = label.float()
        means = mean_over_space(values, valid)
        deviations = values - means.reshape(*means.shape, *(1,) * (values.ndim - 2))
        return without_masked(deviations, valid)


class Spectral(RelativePerSample):
    """Relative error in H¹: each Fourier mode weighs 1 + |k|², so that small scales count.

    `k` are whole wave numbers over the domain; Parseval makes weight 1 the relative L2 error.
    Fields without values at some points have no modes: filled with zeros, they would mostly have
    those of the jumps at the borders.
    """

    needs_whole_grid: ClassVar[bool] = True

    def _powers(self, values: Tensor) -> Tensor:
        with without_autocast(values):
            axes = tuple(range(2, values.ndim))
            modes = torch.fft.fftn(values.float(), dim=axes, norm="ortho")
            squared = modes.real.square() + modes.imag.square()
            weighted: Tensor = squared * _one_plus_wave_number_squared(values)
            return weighted.flatten(2).sum(dim=-1)


def _one_plus_wave_number_squared(values: Tensor) -> Tensor:
    weights = torch.ones((), device=values.device)
    grid = values.shape[2:]
    for axis, size in enumerate(grid):
        k = torch.fft.fftfreq(size, 1 / size, device=values.device)
        weights = weights + k.square().reshape(-1, *(1,) * (len(grid) - axis - 1))
    return weights


_PER_SAMPLE: dict[str, type[RelativePerSample]] = {
    "relative_l1": RelativeL1,
    "relative_l2": RelativeL2,
    "nrmse": RelativeL2,
    "vrmse": VRMSE,
    "spectral": Spectral,
}
LOSSES: Registry[Loss] = Registry(
    "loss", {"ratio": Ratio(), **{name: kind() for name, kind in _PER_SAMPLE.items()}}
)


def find_loss(name: str, p: int = 1, smallest_label: float = SMALLEST_LABEL) -> Loss:
    """The named loss.

    `p` is the power of `ratio`, and `smallest_label` the mean size up to which a label vanishes.
    Raises ValueError, with the closest name, for an unknown one.
    """
    known = LOSSES[name]
    if name == "ratio":
        return Ratio(p, smallest_label)
    return _PER_SAMPLE[name](smallest_label) if name in _PER_SAMPLE else known
