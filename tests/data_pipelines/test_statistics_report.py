"""Spectra obey Parseval, histograms count every value, statistics are those of the manifest."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pelagos.data_pipelines.management.spectra import energy_spectrum, wavenumbers
from pelagos.data_pipelines.management.statistics_report import draw, report


@pytest.mark.parametrize(
    ("grid", "extent"), [((9,), (1.0,)), ((12, 16), (1.0, 2.0)), ((4, 6, 8), (1.0, 1.0, 1.0))]
)
def test_the_energy_of_all_scales_is_that_of_the_field(
    grid: tuple[int, ...], extent: tuple[float, ...]
) -> None:
    frames = np.random.default_rng(0).normal(1, 2, (3, 2, *grid))
    energy = energy_spectrum(frames, extent)
    assert energy.shape == (3, 2, len(wavenumbers(grid, extent)))
    mean_square = np.square(frames).mean(axis=tuple(range(2, frames.ndim)))
    # Fourier transforms of a few hundred numbers lose a few units of the last place
    np.testing.assert_allclose(energy.sum(-1), mean_square / 2, rtol=1e-13)


@pytest.mark.parametrize(("mode", "extent"), [((0, 3), (1.0, 1.0)), ((3, 4), (2.0, 2.0))])
def test_one_wave_is_in_its_shell(mode: tuple[int, int], extent: tuple[float, float]) -> None:
    y, x = np.meshgrid(np.arange(16) / 16, np.arange(16) / 16, indexing="ij")
    wave = 3.0 * np.cos(2 * np.pi * (mode[0] * y + mode[1] * x))
    energy = energy_spectrum(wave, extent)
    shell = round(np.hypot(*mode))
    assert energy[shell] == pytest.approx(9 / 4, rel=1e-12)  # half of the mean square of 3 cos
    assert energy.sum() - energy[shell] < 1e-12
    wanted = 2 * np.pi * np.hypot(*mode) / extent[0]
    assert wavenumbers((16, 16), extent)[shell] == pytest.approx(wanted, rel=1e-12)


def test_every_value_is_counted_and_the_manifest_is_right(make_dataset: Any, tmp_path: Any) -> None:
    dataset, data = make_dataset(seed=4)
    found = report(dataset, dataset.manifest.statistics)
    assert found.differences == []
    assert found.statistics == dataset.manifest.statistics
    for channel, name in enumerate(dataset.field_names):
        edges, counts = found.histograms[name]["edges"], found.histograms[name]["counts"]
        wanted, _ = np.histogram(data[:, :, channel].astype(np.float64), edges)
        assert counts == wanted.tolist()
        assert sum(counts) == data[:, :, channel].size
        assert len(counts) > 32
        assert set(found.spectra[name]) == {0, 2, 4}
        squares = np.square(data[:, 2, channel].astype(np.float64)).mean()
        assert sum(found.spectra[name][2]) == pytest.approx(squares / 2, rel=1e-12)
    draw(found, tmp_path / "stats.png", 0.05)
    assert Image.open(tmp_path / "stats.png").size[0] > 600
    wrong = {"all": {"density": {**dataset.manifest.statistics["all"]["density"], "mean": 2.5}}}
    assert "all: density mean is 2.5" in report(dataset, wrong).differences[0]


def test_a_histogram_widens_without_losing_counts(make_dataset: Any) -> None:
    dataset, data = make_dataset(seed=5, splits={"train": (0, 7)})

    class Growing:
        """The same dataset with ever larger values, which the first one does not announce."""

        spec = replace(dataset.spec)
        uri = dataset.uri

        def read_frames(self, trajectory: int, frames: Any) -> np.ndarray:
            values: np.ndarray = data[trajectory, list(frames)] * np.float32((-7.0) ** trajectory)
            return values

    found = report(Growing(), None)  # type: ignore[arg-type]
    scaled = (
        data * np.float32(1) * ((-7.0) ** np.arange(7, dtype=np.float32))[:, None, None, None, None]
    )
    edges, counts = found.histograms["density"]["edges"], found.histograms["density"]["counts"]
    wanted, _ = np.histogram(scaled[:, :, 0].astype(np.float64), edges)
    assert counts == wanted.tolist()
    assert sum(counts) == data[:, :, 0].size
