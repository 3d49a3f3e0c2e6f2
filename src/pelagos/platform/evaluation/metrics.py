"""Errors of a forecast, as pure functions of tensors.

``forecast`` and ``truth`` are ``[..., channel, *grid]`` in physical units, with a grid of
``num_dimensions`` axes: ``[..., channel, y, x]`` by default. Errors reduce the channel and the grid,
so a vector field passed as its channels is scored as one, and a scalar field as
``[..., 1, y, x]``. Arithmetic is in fp64. Points that are not finite give an error that is not.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

_VRMSE_EPS = 1e-7
# Shells of wave numbers |k| that PDEBench calls low, middle and high (arXiv:2210.07182, app. B).
SPECTRAL_BANDS: dict[str, tuple[int, int | None]] = {
    "low": (0, 4),
    "mid": (4, 12),
    "high": (12, None),
}


class Metric(Protocol):
    """An error ``[...]`` of ``[..., channel, *grid]``."""

    def __call__(self, forecast: Tensor, truth: Tensor, num_dimensions: int = 2) -> Tensor: ...


def relative_l1(forecast: Tensor, truth: Tensor, num_dimensions: int = 2) -> Tensor:
    """Σ|forecast - truth| / Σ|truth|, ``[...]`` (Poseidon's metric, arXiv:2405.19101)."""
    axes = _field_axes(num_dimensions)
    error = (forecast.double() - truth.double()).abs().sum(axes)
    return error / truth.double().abs().sum(axes)


def relative_l2(forecast: Tensor, truth: Tensor, num_dimensions: int = 2) -> Tensor:
    """‖forecast - truth‖₂ / ‖truth‖₂, ``[...]``."""
    axes = _field_axes(num_dimensions)
    error = (forecast.double() - truth.double()).square().sum(axes)
    return (error / truth.double().square().sum(axes)).sqrt()


def nrmse(forecast: Tensor, truth: Tensor, num_dimensions: int = 2) -> Tensor:
    """Root mean square error over root mean square truth, ``[...]`` (PDEBench, APEBench).

    Of one sample it is the relative L2 error; the papers take the mean over samples of it.
    """
    return relative_l2(forecast, truth, num_dimensions)


def vrmse(forecast: Tensor, truth: Tensor, num_dimensions: int = 2) -> Tensor:
    """sqrt(MSE / (Var + 1e-7)), ``[...]`` (The Well, arXiv:2412.00568): 1 is the truth's mean.

    The variance is over space, each channel about its own mean.
    """
    axes = _field_axes(num_dimensions)
    error = (forecast.double() - truth.double()).square().mean(axes)
    values = truth.double()
    variance = (values - values.mean(axes[1:], keepdim=True)).square().mean(axes)
    return (error / (variance + _VRMSE_EPS)).sqrt()


def rmse(forecast: Tensor, truth: Tensor, num_dimensions: int = 2) -> Tensor:
    """Root mean square error, in the field's units, ``[...]`` (PDEBench's RMSE)."""
    return (forecast.double() - truth.double()).square().mean(_field_axes(num_dimensions)).sqrt()


def conserved_rmse(forecast: Tensor, truth: Tensor, num_dimensions: int = 2) -> Tensor:
    """Error of the mean over space, root mean square over channels, ``[...]``.

    PDEBench's cRMSE (arXiv:2210.07182, app. B): what a conserved quantity is off by, per point.
    """
    difference = (forecast.double() - truth.double()).mean(_field_axes(num_dimensions)[1:])
    return difference.square().mean(-1).sqrt()


def boundary_rmse(forecast: Tensor, truth: Tensor, num_dimensions: int = 2) -> Tensor:
    """Root mean square error over the outermost points of the grid, ``[...]``.

    PDEBench's bRMSE (arXiv:2210.07182, app. B): ends, edges or faces in one, two or three dimensions.
    """
    squares = (forecast.double() - truth.double()).square()
    is_outermost = torch.ones(truth.shape[-num_dimensions:], dtype=torch.bool, device=truth.device)
    is_outermost[(slice(1, -1),) * num_dimensions] = False
    outermost = squares.flatten(-num_dimensions)[..., is_outermost.flatten()]
    return outermost.mean((-2, -1)).sqrt()


def max_error(forecast: Tensor, truth: Tensor, num_dimensions: int = 2) -> Tensor:
    """Largest error at any point, in the field's units, ``[...]`` (PDEBench's maximum error)."""
    return (forecast.double() - truth.double()).abs().amax(_field_axes(num_dimensions))


def shell_energy(field: Tensor, *, centred: bool, num_dimensions: int = 2) -> Tensor:
    """Σ|f̂(k)|² over the shells of wave vectors k, ``[..., *grid]`` to ``[..., shell]``.

    Wave numbers count periods in the domain. Shell s holds |k| in [s, s + 1), or, ``centred``,
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
    """Radially summed spectrum E(k) = ½ Σ_{|k'| ≈ k} |f̂(k')|², ``[..., *grid]`` to ``[..., k]``.

    k = 0, 1, ... half the shortest side, wave vectors to the nearest whole number; the corners
    beyond the largest complete shell are left out. The sum over a vector's channels is its kinetic
    energy.
    """
    complete = min(field.shape[-num_dimensions:]) // 2 + 1
    energy = shell_energy(field, centred=True, num_dimensions=num_dimensions)
    return 0.5 * energy[..., :complete]


def band_rmse(forecast: Tensor, truth: Tensor, band: str, num_dimensions: int = 2) -> Tensor:
    """Root mean square error carried by one band of ``SPECTRAL_BANDS``, ``[...]``.

    PDEBench's fRMSE with the band's shells summed instead of averaged: the squares of the three
    bands then add up to the mean square error.
    """
    start, stop = SPECTRAL_BANDS[band]
    error = forecast.double() - truth.double()
    energy = shell_energy(error, centred=False, num_dimensions=num_dimensions)
    return energy[..., start:stop].sum(-1).mean(-1).sqrt()


def _band(band: str) -> Metric:
    def error(forecast: Tensor, truth: Tensor, num_dimensions: int = 2) -> Tensor:
        return band_rmse(forecast, truth, band, num_dimensions)

    return error


def _field_axes(num_dimensions: int) -> tuple[int, ...]:
    """The channel's axis, then those of the grid."""
    return tuple(range(-num_dimensions - 1, 0))


METRICS: dict[str, Metric] = {
    "relative_l1": relative_l1,
    "relative_l2": relative_l2,
    "nrmse": nrmse,
    "vrmse": vrmse,
    "rmse": rmse,
    "conserved_rmse": conserved_rmse,
    "boundary_rmse": boundary_rmse,
    "max_error": max_error,
    **{f"frmse_{band}": _band(band) for band in SPECTRAL_BANDS},
}
