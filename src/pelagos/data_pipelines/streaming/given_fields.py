"""Fields of which nothing has to be forecast: marked as given, or found to never change."""

from __future__ import annotations

from collections.abc import Mapping

from pelagos.data_pipelines.store.readable import ReadableDataset

# Standard deviation up to which values are one value, as a share of their size: float32 resolves
# 6e-8 of a number, so a variation of less than 16 times that is rounding.
CONSTANT_SHARE = 1e-6


def is_constant(statistics: Mapping[str, float]) -> bool:
    """Whether statistics of a field are those of one value, up to float32's rounding."""
    return statistics["std"] <= CONSTANT_SHARE * statistics.get("rms", abs(statistics["mean"]))


def unchanging_fields(dataset: ReadableDataset) -> dict[str, str]:
    """The stored fields that never change from frame to frame, and how that is known.

    A field of one value is 0 after normalisation, and one that is the same in all frames of a
    trajectory (a mask, a coefficient) is its own forecast: neither has a relative error that means
    anything. Both are read off the statistics of the training split; nothing is read.
    """
    found = {}
    for name in dataset.field_names:
        row = dataset.statistics[name]
        if is_constant(row):
            found[name] = f"is {row['mean']:g} everywhere"
        elif "delta_count" in row and row["delta_min"] == row["delta_max"] == 0.0:
            found[name] = "is the same in every frame of a trajectory"
    return found


def given_fields(dataset: ReadableDataset) -> tuple[str, ...]:
    """The stored fields that need no forecast, in order.

    A mask is one, even if it changes: it marks the points with values, and holds none itself.
    """
    spec = dataset.spec
    known = {*unchanging_fields(dataset), *spec.given_fields, *spec.masks.values()}
    return tuple(name for name in dataset.field_names if name in known)
