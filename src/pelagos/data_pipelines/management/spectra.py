"""Isotropic energy spectra: how much of a field's energy each length scale has."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pelagos.infra.memory_budget import require_affordable


def wavenumbers(grid_shape: tuple[int, ...], extent: tuple[float, ...]) -> npt.NDArray[np.float64]:
    """The wavenumber `2 pi n / L` of each shell n = 0, 1, …; L is the longest side of the domain."""
    shells = np.arange(_num_shells(grid_shape, extent), dtype=np.float64)
    return np.multiply(shells, 2 * np.pi / max(extent))


def energy_spectrum(
    frames: npt.NDArray[np.floating], extent: tuple[float, ...]
) -> npt.NDArray[np.float64]:
    """Energy `|u^|^2 / 2` per shell of wavenumbers, of fields taken as periodic.

    The sum over all shells is half the mean square of the field (Parseval). A shell n holds the
    modes whose wavenumber is nearest to `2 pi n / L`. Where a field is not periodic, the jump at
    its edge appears at small scales as a slope of -2.

    Args:
        frames: `[…, y, x]`, with as many spatial axes as `extent` has lengths.

    Returns:
        `[…, shell]`.
    """
    axes = tuple(range(-len(extent), 0))
    grid_shape = frames.shape[-len(extent) :]
    modes = np.fft.fftn(frames.astype(np.float64), axes=axes) / np.prod(grid_shape)
    energy = (0.5 * np.abs(modes) ** 2).reshape(*frames.shape[: -len(extent)], -1)
    shells = _shells(grid_shape, extent).ravel()
    count = _num_shells(grid_shape, extent)
    rows = energy.size // energy.shape[-1]
    require_affordable(8 * rows * count, f"a spectrum of a domain of {extent} in {count:,} shells")
    flat = energy.reshape(-1, energy.shape[-1])
    sums = [np.bincount(shells, weights=row, minlength=count) for row in flat]
    return np.array(sums, np.float64).reshape(*energy.shape[:-1], count)


def _shells(grid_shape: tuple[int, ...], extent: tuple[float, ...]) -> npt.NDArray[np.int64]:
    """The shell of each mode of the Fourier transform."""
    longest = max(extent)
    along = [
        np.fft.fftfreq(points, 1.0 / points) * (longest / length)
        for points, length in zip(grid_shape, extent, strict=True)
    ]
    squared = np.zeros(grid_shape)
    for axis in np.meshgrid(*along, indexing="ij"):
        squared += np.square(axis)
    return np.rint(np.sqrt(squared)).astype(np.int64)


def _num_shells(grid_shape: tuple[int, ...], extent: tuple[float, ...]) -> int:
    return int(_shells(grid_shape, extent).max()) + 1
