"""A checkpoint's description of network, fields and data: enough to rebuild the trained model."""

import math
from collections.abc import Mapping
from typing import Any

from pelagos import plugins
from pelagos.data_pipelines.streaming.mixtures.mixture import Mixture
from pelagos.models.registry import explicit_config
from pelagos.platform.config.schema import TrainingJob


def describe_forecaster(
    job: TrainingJob, mixture: Mixture, options: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the JSON that rebuilds the trained model with its fields and normalisation.

    Args:
        options: of the objective, those that the job gives and those that follow from the data.
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
            }
            for entry in mixture.entries
        ],
    }


def _patch_of(mixture: Mixture) -> list[int]:
    """Return the grid of the largest crops that a network was trained on; nothing without crops."""
    if all(entry.crop is None for entry in mixture.entries):
        return []
    return list(max(mixture.distinct_shapes, key=math.prod))
