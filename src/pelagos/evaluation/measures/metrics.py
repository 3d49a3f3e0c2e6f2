"""Errors of a forecast, as pure functions of tensors.

`forecast` and `truth` are `[..., channel, *grid]` in physical units, with a grid of
`num_dimensions` axes: `[..., channel, y, x]` by default. Errors reduce the channel and the grid,
so a vector field passed as its channels is scored as one, and a scalar field as
`[..., 1, y, x]`. Arithmetic is in fp64. Points that are not finite give an error that is not.

An error relative to a truth that vanishes is undefined, neither perfect nor infinite: NaN. A truth
vanishes where it is zero, and for VRMSE where its standard deviation is below `SMALLEST_LABEL` of
its own root mean square: float32 rounds at 6e-8, so variation there is rounding. Bands without a
single wave number, on small grids, are undefined too. `is_undefined` decides from the truth alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from pelagos.registry import Registry

# Size of a truth, or its variation, as a share of its reference, up to which it is rounding:
# 16 times float32's 6e-8, as in the losses (models/losses.py).
SMALLEST_LABEL = 1e-6
# Wave numbers |k| that PDEBench calls low, middle and high (arXiv:2210.07182, app. B).
SPECTRAL_BANDS: dict[str, tuple[int, int | None]] = {
    "low": (0, 4),
    "mid": (4, 12),
    "high": (12, None),
}


class Metric(Protocol):
    """An error `[...]` of `[..., channel, *grid]`."""

    def __call__(self, forecast: Tensor, truth: Tensor, num_dimensions: int = 2) -> Tensor: ...


class _BandMetric(Protocol):
    def __call__(
        self, forecast: Tensor, truth: Tensor, band: str, num_dimensions: int = 2
    ) -> Tensor: ...


def relative_l1(forecast: Tensor, truth: Tensor, num_dimensions: int = 2) -> Tensor:
    """Σ|forecast - truth| / Σ|truth|, `[...]` (Poseidon's metric, arXiv:2405.19101)."""
    axes = _field_axes(num_dimensions)
    error = (forecast.double() - truth.double()).abs().sum(axes)
    return _over(error, truth.double().abs().sum(axes))


def relative_l2(forecast: Tensor, truth: Tensor, num_dimensions: int = 2) -> Tensor:
    """‖forecast - truth‖₂ / ‖truth‖₂, `[...]`."""
    axes = _field_axes(num_dimensions)
    error = (forecast.double() - truth.double()).square().sum(axes)
    return _over(error, truth.double().square().sum(axes)).sqrt()


def nrmse(forecast: Tensor, truth: Tensor, num_dimensions: int = 2) -> Tensor:
    """Root mean square error over root mean square truth, `[...]` (PDEBench, APEBench).

    Of one sample it is the relative L2 error; the papers take the mean over samples of it.
    """
    return relative_l2(forecast, truth, num_dimensions)


def vrmse(forecast: Tensor, truth: Tensor, num_dimensions: int = 2) -> Tensor:
    """sqrt(MSE / Var), `[...]` (The Well, arXiv:2412.00568, eq. 1): 1 is the truth's mean.

    The variance is over space, each channel about its own mean; NaN where it vanishes. The Well's
    code adds 1e-7 to it, which here would make the error depend on the field's units.
    """
    axes = _field_axes(num_dimensions)
    error = (forecast.double() - truth.double()).square().mean(axes)
    size, variance = _size_and_variance(truth, num_dimensions)
    return _over(error, variance.where(variance > SMALLEST_LABEL**2 * size, 0.0)).sqrt()


def rmse(forecast: Tensor, truth: Tensor, num_dimensions: int = 2) -> Tensor:
    """Root mean square error, in the field's units, `[...]` (PDEBench's RMSE)."""
    return (forecast.double() - truth.double()).square().mean(_field_axes(num_dimensions)).sqrt()


def conserved_rmse(forecast: Tensor, truth: Tensor, num_dimensions: int = 2) -> Tensor:
    """Error of the mean over space, root mean square over channels, `[...]`.

    PDEBench's cRMSE (arXiv:2210.07182, app. B): the error of a conserved quantity, per point.
    """
    difference = (forecast.double() - truth.double()).mean(_field_axes(num_dimensions)[1:])
    return difference.square().mean(-1).sqrt()


def boundary_rmse(forecast: Tensor, truth: Tensor, num_dimensions: int = 2) -> Tensor:
    """Root mean square error over the outermost points of the grid, `[...]`.

    PDEBench's bRMSE (arXiv:2210.07182, app. B): ends, edges or faces in one, two or three dimensions.
    """
    squares = (forecast.double() - truth.double()).square()
    is_outermost = outermost_points(truth.shape[-num_dimensions:], truth.device)
    outermost = squares.flatten(-num_dimensions)[..., is_outermost.flatten()]
    return outermost.mean((-2, -1)).sqrt()


def outermost_points(sides: Sequence[int], device: torch.device) -> Tensor:
    """Where a grid ends, `[*grid]` bool."""
    is_outermost = torch.ones(*sides, dtype=torch.bool, device=device)
    is_outermost[(slice(1, -1),) * len(sides)] = False
    return is_outermost


def max_error(forecast: Tensor, truth: Tensor, num_dimensions: int = 2) -> Tensor:
    """Largest error at any point, in the field's units, `[...]` (PDEBench's maximum error)."""
    return (forecast.double() - truth.double()).abs().amax(_field_axes(num_dimensions))


def shell_energy(field: Tensor, *, centred: bool, num_dimensions: int = 2) -> Tensor:
    """Σ|f̂(k)|² over the shells of wave vectors k, `[..., *grid]` to `[..., shell]`.

    Wave numbers count periods in the domain. Shell s holds |k| in [s, s + 1), or, `centred`,
    [s - 1/2, s + 1/2). Every wave vector is in one shell, so the sum over shells is the mean
    square of the field (Parseval).
    """
    sides, axes = field.shape[-num_dimensions:], tuple(range(-num_dimensions, 0))
    energy = torch.fft.fftn(field.double(), dim=axes, norm="forward").abs().square()
    waves = [
        torch.fft.fftfreq(side, 1.0 / side, dtype=torch.float64, device=field.device)
        for side in sides
    ]
    squares = sum(k.square() for k in torch.meshgrid(*waves, indexing="ij"))
    assert isinstance(squares, Tensor)
    shell = (squares.sqrt() + (0.5 if centred else 0.0)).floor().long().flatten()
    result: Tensor = energy.new_zeros(*field.shape[:-num_dimensions], int(shell.max()) + 1)
    return result.index_add(-1, shell, energy.flatten(-num_dimensions))


def energy_spectrum(field: Tensor, num_dimensions: int = 2) -> Tensor:
    """Radially summed spectrum E(k) = ½ Σ_{|k'| ≈ k} |f̂(k')|², `[..., *grid]` to `[..., k]`.

    k = 0, 1, ... half the shortest side, wave vectors to the nearest whole number; the corners
    beyond the largest complete shell are left out. The sum over a vector's channels is its kinetic
    energy.
    """
    complete = min(field.shape[-num_dimensions:]) // 2 + 1
    energy = shell_energy(field, centred=True, num_dimensions=num_dimensions)
    return 0.5 * energy[..., :complete]


def frmse(forecast: Tensor, truth: Tensor, band: str, num_dimensions: int = 2) -> Tensor:
    """PDEBench's fRMSE over one band of `SPECTRAL_BANDS`, `[...]` (arXiv:2210.07182, app. B).

    As its published numbers are computed, on a domain of side 1: e(s) is the root of the sum of
    |f̂(k)|², the squared modes of the error over the number of points, over the wave vectors of
    non-negative components below half of each side with s <= |k| < s + 1, s below half of the
    shortest side; fRMSE is the mean of e(s) over the band's s, then over channels. On lines k goes
    up to half of the side. Negative wave numbers are not counted, and a mean is not a sum, so bands
    do not add up to the error (`spectral_rmse` does).
    """
    error = forecast.double() - truth.double()
    start, stop = SPECTRAL_BANDS[band]
    return _quadrant_shells(error, num_dimensions)[..., start:stop].sqrt().mean(-1).mean(-1)


def spectral_rmse(forecast: Tensor, truth: Tensor, band: str, num_dimensions: int = 2) -> Tensor:
    """Root mean square error carried by one band of `SPECTRAL_BANDS`, `[...]`.

    All wave vectors count, and the squares of the three bands add up to the mean square error
    (Parseval). NaN where the grid has no wave vector in the band.
    """
    start, stop = SPECTRAL_BANDS[band]
    error = forecast.double() - truth.double()
    energy = shell_energy(error, centred=False, num_dimensions=num_dimensions)[..., start:stop]
    if energy.shape[-1] == 0:
        return energy.new_full(energy.shape[:-2], torch.nan)
    return energy.sum(-1).mean(-1).sqrt()


def is_undefined(metric: str, truth: Tensor, num_dimensions: int = 2, scale: float = 0.0) -> Tensor:
    """Where a metric of `METRICS` has no value because of the truth, whatever the forecast, `[...]`.

    `scale` is the root mean square of the field over its dataset, in the truth's units: truths, and
    variations, below `SMALLEST_LABEL` of it vanish as well, as they do in the losses.
    """
    shape, sides = truth.shape[: -num_dimensions - 1], truth.shape[-num_dimensions:]
    if metric.startswith(("frmse_", "spectral_rmse_")):
        nothing = truth.new_zeros(1, *sides)  # the grid alone determines the bands
        is_absent: Tensor = METRICS[metric](nothing, nothing, num_dimensions).isnan()
        return is_absent.expand(shape)
    size, variance = _size_and_variance(truth, num_dimensions)
    if metric == "vrmse":
        return torch.le(variance, SMALLEST_LABEL**2 * size.clamp_min(scale**2))
    if metric in _RELATIVE_TO_SIZE:
        return torch.le(size, (SMALLEST_LABEL * scale) ** 2)
    return torch.zeros_like(size, dtype=torch.bool)


def _over(error: Tensor, size: Tensor) -> Tensor:
    """The ratio, NaN where the size is 0."""
    return (error / size).where(size != 0, torch.nan)


def _size_and_variance(truth: Tensor, num_dimensions: int) -> tuple[Tensor, Tensor]:
    """Mean square, and mean square about each channel's mean over space, `[...]`."""
    axes = _field_axes(num_dimensions)
    values = truth.double()
    deviations = values - values.mean(axes[1:], keepdim=True)
    return values.square().mean(axes), deviations.square().mean(axes)


def _quadrant_shells(field: Tensor, num_dimensions: int) -> Tensor:
    """Σ|f̂(k)|² over k of non-negative components, s <= |k| < s + 1: `[..., *grid]` to `[..., s]`."""
    sides, axes = field.shape[-num_dimensions:], tuple(range(-num_dimensions, 0))
    energy: Tensor = torch.fft.fftn(field, dim=axes, norm="forward").abs().square()
    if num_dimensions == 1:
        return energy[..., : sides[0] // 2 + 1]
    quadrant = energy
    for axis, side in zip(axes, sides, strict=True):
        quadrant = quadrant.narrow(axis, 0, side // 2)
    waves = [torch.arange(side // 2, device=field.device) for side in sides]
    squares = sum(k.square() for k in torch.meshgrid(*waves, indexing="ij"))
    assert isinstance(squares, Tensor)
    shell, most = squares.double().sqrt().floor().long().flatten(), min(sides) // 2
    is_counted = shell < most
    result: Tensor = energy.new_zeros(*field.shape[:-num_dimensions], most)
    return result.index_add(
        -1, shell[is_counted], quadrant.flatten(-num_dimensions)[..., is_counted]
    )


def _band(metric: _BandMetric, band: str) -> Metric:
    def error(forecast: Tensor, truth: Tensor, num_dimensions: int = 2) -> Tensor:
        return metric(forecast, truth, band, num_dimensions)

    return error


def _field_axes(num_dimensions: int) -> tuple[int, ...]:
    """The channel's axis, then those of the grid."""
    return tuple(range(-num_dimensions - 1, 0))


METRICS: Registry[Metric] = Registry(
    "metric",
    {
        "relative_l1": relative_l1,
        "relative_l2": relative_l2,
        "nrmse": nrmse,
        "vrmse": vrmse,
        "rmse": rmse,
        "conserved_rmse": conserved_rmse,
        "boundary_rmse": boundary_rmse,
        "max_error": max_error,
        **{f"frmse_{band}": _band(frmse, band) for band in SPECTRAL_BANDS},
        **{f"spectral_rmse_{band}": _band(spectral_rmse, band) for band in SPECTRAL_BANDS},
    },
)
_RELATIVE_TO_SIZE = ("relative_l1", "relative_l2", "nrmse")
