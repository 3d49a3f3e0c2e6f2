"""Errors of a forecast, as pure functions of tensors.

``forecast`` and ``truth`` are ``[..., channel, y, x]`` in physical units. Errors reduce the last
three axes, so a vector field passed as its channels is scored as one, and a scalar field as
``[..., 1, y, x]``. Arithmetic is in fp64. Points that are not finite give an error that is not.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

_FIELD_AXES = (-3, -2, -1)
_VRMSE_EPS = 1e-7
# Shells of wave numbers |k| that PDEBench calls low, middle and high (arXiv:2210.07182, app. B).
SPECTRAL_BANDS: dict[str, tuple[int, int | None]] = {
    "low": (0, 4),
    "mid": (4, 12),
    "high": (12, None),
}


def relative_l1(forecast: Tensor, truth: Tensor) -> Tensor:
    """Σ|forecast - truth| / Σ|truth|, ``[...]`` (Poseidon's metric, arXiv:2405.19101)."""
    error = (forecast.double() - truth.double()).abs().sum(_FIELD_AXES)
    return error / truth.double().abs().sum(_FIELD_AXES)


def relative_l2(forecast: Tensor, truth: Tensor) -> Tensor:
    """‖forecast - truth‖₂ / ‖truth‖₂, ``[...]``."""
    error = (forecast.double() - truth.double()).square().sum(_FIELD_AXES)
    return (error / truth.double().square().sum(_FIELD_AXES)).sqrt()


def nrmse(forecast: Tensor, truth: Tensor) -> Tensor:
    """Root mean square error over root mean square truth, ``[...]`` (PDEBench, APEBench).

    Of one sample it is the relative L2 error; the papers take the mean over samples of it.
    """
    return relative_l2(forecast, truth)


def vrmse(forecast: Tensor, truth: Tensor) -> Tensor:
    """sqrt(MSE / (Var + 1e-7)), ``[...]`` (The Well, arXiv:2412.00568): 1 is the truth's mean.

    The variance is over space, each channel about its own mean.
    """
    error = (forecast.double() - truth.double()).square().mean(_FIELD_AXES)
    values = truth.double()
    variance = (values - values.mean((-2, -1), keepdim=True)).square().mean(_FIELD_AXES)
    return (error / (variance + _VRMSE_EPS)).sqrt()


def rmse(forecast: Tensor, truth: Tensor) -> Tensor:
    """Root mean square error, in the field's units, ``[...]`` (PDEBench's RMSE)."""
    return (forecast.double() - truth.double()).square().mean(_FIELD_AXES).sqrt()


def conserved_rmse(forecast: Tensor, truth: Tensor) -> Tensor:
    """Error of the mean over space, root mean square over channels, ``[...]``.

    PDEBench's cRMSE (arXiv:2210.07182, app. B): what a conserved quantity is off by, per point.
    """
    difference = (forecast.double() - truth.double()).mean((-2, -1))
    return difference.square().mean(-1).sqrt()


def boundary_rmse(forecast: Tensor, truth: Tensor) -> Tensor:
    """Root mean square error over the outermost points of the grid, ``[...]``.

    PDEBench's bRMSE (arXiv:2210.07182, app. B).
    """
    squares = (forecast.double() - truth.double()).square()
    edges = (squares[..., 0, :], squares[..., -1, :], squares[..., 1:-1, 0], squares[..., 1:-1, -1])
    return torch.cat(edges, dim=-1).mean((-2, -1)).sqrt()


def max_error(forecast: Tensor, truth: Tensor) -> Tensor:
    """Largest error at any point, in the field's units, ``[...]`` (PDEBench's maximum error)."""
    return (forecast.double() - truth.double()).abs().amax(_FIELD_AXES)


def shell_energy(field: Tensor, *, centred: bool) -> Tensor:
    """Σ|f̂(k)|² over the shells of wave vectors k, ``[..., y, x]`` to ``[..., shell]``.

    Wave numbers count periods in the domain. Shell s holds |k| in [s, s + 1), or, ``centred``,
    [s - 1/2, s + 1/2). Every wave vector is in one shell, so the sum over shells is the mean
    square of the field (Parseval).
    """
    rows, columns = field.shape[-2:]
    energy = torch.fft.fft2(field.double(), norm="forward").abs().square()
    ky = torch.fft.fftfreq(rows, 1.0 / rows, dtype=torch.float64, device=field.device)
    kx = torch.fft.fftfreq(columns, 1.0 / columns, dtype=torch.float64, device=field.device)
    radius = torch.hypot(ky[:, None], kx[None, :]) + (0.5 if centred else 0.0)
    shell = radius.floor().long().flatten()
    result: Tensor = energy.new_zeros(*field.shape[:-2], int(shell.max()) + 1)
    return result.index_add(-1, shell, energy.flatten(-2))


def energy_spectrum(field: Tensor) -> Tensor:
    """Radially summed spectrum E(k) = ½ Σ_{|k'| ≈ k} |f̂(k')|², ``[..., y, x]`` to ``[..., k]``.

    k = 0, 1, ... min(y, x)/2, wave vectors to the nearest whole number; the corners beyond the
    largest complete shell are left out. The sum over a vector's channels is its kinetic energy.
    """
    complete = min(field.shape[-2:]) // 2 + 1
    return 0.5 * shell_energy(field, centred=True)[..., :complete]


def band_rmse(forecast: Tensor, truth: Tensor, band: str) -> Tensor:
    """Root mean square error carried by one band of ``SPECTRAL_BANDS``, ``[...]``.

    PDEBench's fRMSE with the band's shells summed instead of averaged: the squares of the three
    bands then add up to the mean square error.
    """
    start, stop = SPECTRAL_BANDS[band]
    energy = shell_energy(forecast.double() - truth.double(), centred=False)
    return energy[..., start:stop].sum(-1).mean(-1).sqrt()


def _band(band: str) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda forecast, truth: band_rmse(forecast, truth, band)


METRICS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
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
