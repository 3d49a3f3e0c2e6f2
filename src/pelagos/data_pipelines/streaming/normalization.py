"""Normalisation of the model's channels: subtract a mean, divide by a standard deviation."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from pelagos.data_pipelines.store.readable import ReadableDataset
from pelagos.data_pipelines.streaming.given_fields import is_constant


@dataclass(frozen=True)
class Normalization:
    """`(x - mean) / std` for each of the model's channels.

    Attributes:
        fields: channel names, in order.
        mean, std: one number per channel; every std is positive.
    """

    fields: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        if not len(self.fields) == len(self.mean) == len(self.std):
            raise ValueError(
                f"{len(self.fields)} fields, {len(self.mean)} means and {len(self.std)} standard "
                "deviations: expected one of each per field"
            )
        for name, mean, std in zip(self.fields, self.mean, self.std, strict=True):
            if not (math.isfinite(mean) and math.isfinite(std) and std > 0):
                raise ValueError(
                    f"normalisation of {name!r}: mean {mean} must be finite and std {std} positive"
                )

    @classmethod
    def identity(cls, fields: Sequence[str]) -> Normalization:
        """Mean 0, standard deviation 1."""
        return cls(tuple(fields), (0.0,) * len(fields), (1.0,) * len(fields))

    @classmethod
    def constants(
        cls, fields: Sequence[str], mean: Mapping[str, float], std: Mapping[str, float]
    ) -> Normalization:
        """Given numbers, such as those that a paper publishes.

        Raises:
            ValueError: a field has none.
        """
        missing = [name for name in fields if name not in mean or name not in std]
        if missing:
            raise ValueError(f"no normalisation constants for {missing}: give mean and std of each")
        return cls(
            tuple(fields), tuple(mean[name] for name in fields), tuple(std[name] for name in fields)
        )

    @classmethod
    def from_statistics(
        cls,
        datasets: Sequence[ReadableDataset],
        fields: Sequence[str],
        offsets: Sequence[Mapping[str, float]] | None = None,
    ) -> Normalization:
        """Mean and standard deviation over every value of the datasets (their training splits).

        A dataset with n values, mean m and standard deviation s of a field counts as such:
        mean = sum n m / sum n,  variance = sum n (s^2 + (m - mean)^2) / sum n. A field that is
        constant in a dataset, up to rounding, counts with s = 0. A field that is constant everywhere
        gets std 1. A mask stays as it is: 1 where there is a value, 0 where there is none.

        Args:
            offsets: per dataset, numbers subtracted from fields before normalisation.

        Raises:
            ValueError: no dataset has a field.
        """
        all_offsets = offsets if offsets is not None else [{}] * len(datasets)
        means, stds = [], []
        for name in fields:
            if any(name in dataset.spec.masks.values() for dataset in datasets):
                means.append(0.0)
                stds.append(1.0)
                continue
            rows = [
                row
                for dataset, offset in zip(datasets, all_offsets, strict=True)
                if (row := _moments(dataset, name, offset.get(name, 0.0))) is not None
            ]
            if not rows:
                found = ", ".join(sorted({f for d in datasets for f in d.field_names}))
                raise ValueError(
                    f"no dataset of the mixture has field {name!r}; the datasets have {found}. "
                    "Name those to train on: fields: [FIELD, …]"
                )
            count = math.fsum(n for n, _, _ in rows)
            mean = math.fsum(n * m for n, m, _ in rows) / count
            variance = math.fsum(n * (s * s + (m - mean) ** 2) for n, m, s in rows) / count
            means.append(mean)
            stds.append(math.sqrt(variance) or 1.0)
        return cls(tuple(fields), tuple(means), tuple(stds))

    def apply(self, values: torch.Tensor, axis: int = -3) -> torch.Tensor:
        """Normalise `[…, channel, y, x]`; `axis` is where the channels are."""
        mean, std = self._columns(values, axis)
        return (values - mean) / std

    def invert(self, values: torch.Tensor, axis: int = -3) -> torch.Tensor:
        """Undo `apply`."""
        mean, std = self._columns(values, axis)
        return values * std + mean

    def unscaled(self, name: str) -> Normalization:
        """The same, but with one field left as it is."""
        at = self.fields.index(name)
        mean = (*self.mean[:at], 0.0, *self.mean[at + 1 :])
        return Normalization(self.fields, mean, (*self.std[:at], 1.0, *self.std[at + 1 :]))

    def to_dict(self) -> dict[str, Any]:
        """JSON; `from_dict` is its inverse."""
        return {"fields": list(self.fields), "mean": list(self.mean), "std": list(self.std)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Normalization:
        return cls(tuple(values["fields"]), tuple(values["mean"]), tuple(values["std"]))

    def _columns(self, values: torch.Tensor, axis: int) -> tuple[torch.Tensor, torch.Tensor]:
        place = axis if axis < 0 else axis - values.ndim
        if not -values.ndim <= place < 0 or values.shape[place] != len(self.fields):
            where = "[…, {}, y, x]" if axis == -3 else f"{{}} channels at axis {axis}"
            raise ValueError(
                f"values have shape {tuple(values.shape)}, expected "
                f"{where.format(len(self.fields))}"
            )
        shape = (len(self.fields), *(1,) * (-place - 1))
        return (
            torch.tensor(self.mean, dtype=values.dtype, device=values.device).reshape(shape),
            torch.tensor(self.std, dtype=values.dtype, device=values.device).reshape(shape),
        )


def _moments(
    dataset: ReadableDataset, name: str, offset: float
) -> tuple[float, float, float] | None:
    """Count, mean and standard deviation of a field, stored or constant; None if absent."""
    if name in dataset.statistics:
        row = dataset.statistics[name]
        return row["count"], row["mean"] - offset, 0.0 if is_constant(row) else row["std"]
    if name in dataset.spec.constant_fields:
        # of a field that no mask thins out
        values_per_field = max(row["count"] for row in dataset.statistics.values())
        return values_per_field, dataset.spec.constant_fields[name] - offset, 0.0
    return None
