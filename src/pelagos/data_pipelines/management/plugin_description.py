"""The description of a dataset that a plugin opens."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from pelagos.data_pipelines.store import DatasetSpec
from pelagos.data_pipelines.store.readable import ReadableDataset


@dataclass(frozen=True)
class PluginDescription:
    """What a dataset that a plugin opens says of itself; where it is stored, only the plugin knows.

    Attributes:
        opened_by: the plugin's module.
        shape: `[trajectory, time, channel, y, x]`.
        statistics: of the training split, by field and name.
        parameter_ranges: smallest and largest value of each parameter.
    """

    uri: str
    opened_by: str
    spec: DatasetSpec
    fingerprint: str
    shape: tuple[int, ...]
    raw_bytes: int
    statistics: dict[str, dict[str, float]]
    parameter_ranges: dict[str, tuple[float, float]]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, for programs."""
        values = {name: getattr(self, name) for name in self.__dataclass_fields__}
        values["spec"] = self.spec.to_json()
        return dict(json.loads(json.dumps(values)))


def describe_opened(dataset: ReadableDataset, opened_by: str) -> PluginDescription:
    """Return the description of a dataset that the plugin `opened_by` opened."""
    spec = dataset.spec
    return PluginDescription(
        uri=dataset.uri,
        opened_by=opened_by,
        spec=spec,
        fingerprint=dataset.fingerprint,
        shape=spec.shape,
        raw_bytes=spec.frame_bytes * spec.num_frames * spec.num_trajectories,
        statistics=dataset.statistics,
        parameter_ranges={
            name: (float(values.min()), float(values.max()))
            for name, values in dataset.parameters.items()
        },
    )
