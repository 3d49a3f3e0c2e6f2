"""A checkpoint's description of network, fields and data: enough to rebuild the trained model."""

import math
from collections.abc import Mapping
from typing import Any

from pelagos import plugins
from pelagos.data_pipelines.store.schema import DatasetSpec
from pelagos.data_pipelines.streaming.mixtures.mixture import Mixture, Windows
from pelagos.models.registry import explicit_config
from pelagos.platform.config.schema import TrainingJob

_LICENCE = ("licence", "license")  # keys of a dataset's `generator`


def describe_forecaster(
    job: TrainingJob, mixture: Mixture, options: Mapping[str, Any], input_frames: int
) -> dict[str, Any]:
    """Return the JSON that rebuilds the trained model with its fields and normalisation.

    Args:
        options: of the objective, those that the job gives and those that follow from the data.
        input_frames: frames that the network forecasts from.
    """
    return {
        "model": {
            "name": job.model.name,
            "config": explicit_config(job.model.name, job.model.config),
        },
        "objective": {"name": job.objective.name, **options},
        **({"lora": job.adapter.model_dump()} if job.adapter else {}),
        "fields": list(job.data.fields),
        **({"plugins": wanted} if (wanted := plugins.wanted_by_model(job)) else {}),
        "absent_value": mixture.absent_value,
        **({"masks": mixture.masks} if mixture.masks else {}),
        **({"patch": patch} if (patch := _patch_of(mixture)) else {}),
        "normalization": mixture.normalization.to_dict(),
        "datasets": [
            {
                "uri": entry.dataset.uri,
                "name": entry.dataset.spec.name,
                "fingerprint": entry.dataset.fingerprint,
                "offset": dict(entry.offset),
                **_facts(entry.dataset.spec),
                "trajectories": len(rows),
                "lead_times": _lead_times(windows, entry.dataset.spec.frame_interval, input_frames),
            }
            for entry, rows, windows in zip(
                mixture.entries, mixture.trajectories, mixture.windows, strict=True
            )
        ],
    }


def _facts(spec: DatasetSpec) -> dict[str, Any]:
    """Return the properties of a dataset that a user of the model needs without having the data."""
    licence = next((spec.generator[key] for key in _LICENCE if spec.generator.get(key)), None)
    return {
        "equation": spec.equation,
        "units": {field.name: field.unit for field in spec.fields},
        "time_unit": str(spec.generator.get("time_unit", "1")),
        "frame_interval": spec.frame_interval,
        "grid_shape": list(spec.grid_shape),
        "domain_extent": list(spec.domain_extent),
        "boundary_conditions": dict(spec.boundary_conditions),
        **({"licence": str(licence)} if licence is not None else {}),
    }


def _lead_times(windows: Windows, interval: float, input_frames: int) -> list[float]:
    """Return the distances in time from the last input frame to the next frame, in order."""
    ahead = {w[input_frames] - w[input_frames - 1] for w in windows if len(w) > input_frames}
    return [steps * interval for steps in sorted(ahead)]


def _patch_of(mixture: Mixture) -> list[int]:
    """Return the grid of the largest crops that a network was trained on; nothing without crops."""
    if all(entry.crop is None for entry in mixture.entries):
        return []
    return list(max(mixture.distinct_shapes, key=math.prod))
