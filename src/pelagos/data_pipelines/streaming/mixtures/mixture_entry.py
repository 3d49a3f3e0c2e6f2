"""One dataset of a mixture."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pelagos.data_pipelines.store.readable import ReadableDataset
from pelagos.data_pipelines.streaming.mixtures.curriculum import (
    Weight,
)
from pelagos.data_pipelines.streaming.mixtures.mixture_state import (
    STATE_KEYS,
)


@dataclass(frozen=True)
class MixtureEntry:
    """One dataset of a mixture.

    Args:
        dataset: open.
        split: which of its trajectories (`all` for every one).
        weight: relative share of samples, or `{0: 1.0, 10000: 0.2}`: the share from each step on;
            None in every entry shares by number of windows.
        offset: numbers to subtract from fields before normalisation, by field name.
        repeat: how often each of its windows counts where datasets share by number of windows.
        max_trajectories: use at most this many trajectories, the first of the split; None takes all.
        crop: read a random box of this many grid points, `(y, x)`, of each sample; None reads all.
    """

    dataset: ReadableDataset
    split: str = "train"
    weight: Weight | None = None
    offset: Mapping[str, float] = field(default_factory=dict)
    repeat: int = 1
    max_trajectories: int | None = None
    crop: tuple[int, ...] | None = None

    @property
    def sample_grid(self) -> tuple[int, ...]:
        """Grid points of a sample, `(y, x)`."""
        return self.dataset.grid_shape if self.crop is None else self.crop

    def unusual(self) -> dict[str, Any]:
        """Differences from the default `repeat`, `max_trajectories` and `crop`, for the state."""
        values: dict[str, Any] = {"repeat": self.repeat, "max_trajectories": self.max_trajectories}
        values["crop"] = None if self.crop is None else list(self.crop)
        return {k: v for k, v in values.items() if v is not None and v != STATE_KEYS[k]}
