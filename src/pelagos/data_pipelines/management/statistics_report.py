"""The distribution of a dataset's numbers: statistics computed again, histograms, energy spectra."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

from pelagos.data_pipelines.management.spectra import energy_spectrum, wavenumbers
from pelagos.data_pipelines.store.field_statistics import (
    TrajectorySums,
    dataset_statistics,
    shard_sums,
)
from pelagos.data_pipelines.store.manifest import Statistics
from pelagos.data_pipelines.store.readable import ReadableDataset
from pelagos.infra.figures import write_png

NUM_BINS = 256
# Pooled float64 statistics of the same values differ by the order in which numpy adds alone.
RELATIVE_TOLERANCE = 1e-9


@dataclass(frozen=True)
class StatisticsReport:
    """One pass over a dataset.

    Attributes:
        statistics: by split (and `all`), field and name.
        differences: sentences, one for each number of the manifest that the data does not have.
        histograms: per field `edges` `[bins + 1]` and `counts` `[bins]` of every value.
        wavenumbers: of the shells of the spectra.
        spectra: per field and frame number, the mean energy over trajectories, `[shell]`.
    """

    uri: str
    name: str
    statistics: Statistics
    differences: list[str]
    histograms: dict[str, dict[str, list[float]]]
    wavenumbers: list[float]
    spectra: dict[str, dict[int, list[float]]]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, for programs."""
        return dict(vars(self))


def report(
    dataset: ReadableDataset,
    stored: Statistics | None,
    progress: Callable[[int, int], None] | None = None,
) -> StatisticsReport:
    """Read all of a dataset.

    Args:
        stored: the statistics it should have; None compares nothing.
        progress: called as `progress(trajectories done, in all)`.

    Raises:
        DatasetError: something of it is missing or damaged.
    """
    spec = dataset.spec
    frames = sorted({0, (spec.num_frames - 1) // 2, spec.num_frames - 1})
    sums: dict[str, list[TrajectorySums]] = {name: [] for name in spec.field_names}
    bins = [_Bins() for _ in spec.fields]
    energy: npt.NDArray[np.float64] | None = None
    for trajectory in range(spec.num_trajectories):
        data = dataset.read_frames(trajectory, range(spec.num_frames))
        for name, rows in shard_sums(data[None], spec.field_names, spec.mask_channels).items():
            sums[name].extend(rows)
        for channel, histogram in enumerate(bins):
            values = data[:, channel]
            mask = spec.mask_channels.get(channel)
            histogram.add(values if mask is None else values[data[:, mask] != 0])
        found = energy_spectrum(data[frames], spec.domain_extent)  # [frame, channel, shell]
        energy = found if energy is None else energy + found
        if progress is not None:
            progress(trajectory + 1, spec.num_trajectories)
    assert energy is not None
    energy /= spec.num_trajectories
    statistics = dataset_statistics(sums, spec.splits)
    return StatisticsReport(
        uri=dataset.uri,
        name=spec.name,
        statistics=statistics,
        differences=_differences(stored or {}, statistics),
        histograms={n: b.to_json() for n, b in zip(spec.field_names, bins, strict=True)},
        wavenumbers=wavenumbers(spec.grid_shape, spec.domain_extent).tolist(),
        spectra={
            name: {frame: energy[i, channel].tolist() for i, frame in enumerate(frames)}
            for channel, name in enumerate(spec.field_names)
        },
    )


def draw(found: StatisticsReport, path: str | Path | IO[bytes], frame_interval: float) -> None:
    """Draw histograms and spectra as a PNG: a row per field."""
    names = list(found.histograms)
    figure = Figure(figsize=(9, 2.6 * len(names) + 0.6), layout="constrained")
    axes = figure.subplots(len(names), 2, squeeze=False)
    shells = np.array(found.wavenumbers)
    for (left, right), name in zip(axes, names, strict=True):
        histogram = found.histograms[name]
        left.stairs(np.array(histogram["counts"]), histogram["edges"], fill=True)
        left.set_yscale("log", nonpositive="clip")
        left.set_ylabel(name)
        for frame, energy in found.spectra[name].items():
            right.loglog(shells[1:], energy[1:], label=f"t = {frame * frame_interval:.3g}")
        right.legend(fontsize=8)
    axes[0][0].set_title("number of values", fontsize=10)
    axes[0][1].set_title("energy by wavenumber, mean over trajectories", fontsize=10)
    figure.suptitle(found.name)
    write_png(figure, path, dpi=110, facecolor="white")


class _Bins:
    """A histogram of values whose range is not known before: it widens in steps of two bins to one.

    Bins stay where they are, so counts are exact whatever the order.
    """

    def __init__(self) -> None:
        self.low, self.width = 0.0, 0.0
        self.counts = np.zeros(NUM_BINS, np.int64)

    def add(self, values: npt.NDArray[np.floating]) -> None:
        if not values.size:
            return
        low, high = float(values.min()), float(values.max())
        if self.width == 0.0:
            # bins are multiples of a power of two, so that no rounding moves a value over an edge
            span = max(high - low, abs(high) * 1e-6, 1e-30)
            self.width = 2.0 ** math.ceil(math.log2(2 * span / NUM_BINS))
            self.low = math.floor(low / self.width) * self.width
        while low < self.low or high >= self.low + NUM_BINS * self.width:
            self._widen()
        places = ((values.astype(np.float64) - self.low) / self.width).astype(np.int64)
        self.counts += np.bincount(places.ravel(), minlength=NUM_BINS)

    def _widen(self) -> None:
        """Make bins twice as wide, the old ones about in the middle."""
        width = 2 * self.width
        low = (math.floor(self.low / width) - NUM_BINS // 4) * width
        first = round((self.low - low) / self.width)
        counts = np.zeros(2 * NUM_BINS, np.int64)
        counts[first : first + NUM_BINS] = self.counts
        self.low, self.width = low, width
        self.counts = counts.reshape(NUM_BINS, 2).sum(axis=1)

    def to_json(self) -> dict[str, list[float]]:
        """Edges and counts, without the empty bins at both ends."""
        used = np.flatnonzero(self.counts)
        first, last = int(used[0]), int(used[-1]) + 1
        edges = [self.low + i * self.width for i in range(first, last + 1)]
        return {"edges": edges, "counts": self.counts[first:last].tolist()}


def _differences(stored: Statistics, found: Statistics) -> list[str]:
    sentences = []
    for split, fields in stored.items():
        for name, row in fields.items():
            for key, value in row.items():
                here = found[split][name].get(key, math.nan)
                scale = RELATIVE_TOLERANCE * row.get("rms", row["std"])
                if not math.isclose(value, here, rel_tol=RELATIVE_TOLERANCE, abs_tol=scale):
                    sentences.append(f"{split}: {name} {key} is {value}, but the data gives {here}")
    return sentences
