"""Network, objective and datasets, built from a training's description: untrusted data."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pelagos.infra.memory_budget import require_affordable
from pelagos.models.described import buildable
from pelagos.models.objectives import Objective, create_objective
from pelagos.models.pretrained import Pretrained, check_weights, fill_buffers
from pelagos.models.registry import create_model, stored_config


def described_objective(description: Mapping[str, Any]) -> Objective:
    """Return the objective that a training left the description of.

    Raises:
        ValueError: the name is unknown, or its options do not fit.
    """
    told = description["objective"]
    options = {k: v for k, v in told.items() if k != "name"}
    with buildable(f"objective {told['name']!r}"):
        return create_objective(told["name"], description["fields"], **options)


def described_network(
    description: Mapping[str, Any], weights: Mapping[str, Tensor] | None = None
) -> Pretrained:
    """Return the network that a training left the description of, freshly drawn.

    Args:
        weights: the values it is to hold; a network of many more parameters is not built to its end.

    Raises:
        ValueError: the network is unknown, or its options do not fit.
    """
    objective, model = described_objective(description), description["model"]
    with buildable(f"model {model['name']!r}", weights):
        inputs, outputs = objective.model_channels
        config = stored_config(model["name"], model["config"])
        return create_model(model["name"], in_channels=inputs, out_channels=outputs, **config)


def loaded_network(
    description: Mapping[str, Any], weights: Mapping[str, Tensor], source: str
) -> Pretrained:
    """Return the described network with these weights; memory is taken once they are seen to fit.

    Raises:
        ValueError: as `described_network`; or names or shapes differ.
    """
    with torch.device("meta"):
        model = described_network(description, weights)
    check_weights(model, weights, source)
    _require_affordable_image(model)
    model.to_empty(device="cpu")
    fill_buffers(model)
    model.load_state_dict(dict(weights), strict=True)
    return model


def _require_affordable_image(model: Pretrained) -> None:
    """Networks that resize inputs to their own size have that from the description alone.

    No weight shows it.
    """
    size = getattr(model.config, "image_size", None)
    if isinstance(size, int):
        size = (size,) * 2
    if isinstance(size, tuple) and all(isinstance(side, int) for side in size):
        require_affordable(4 * math.prod(size), f"an image of model {type(model).__name__}")


def recorded_datasets(description: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the datasets that a training described: `uri` and `offset` of each.

    Raises:
        ValueError: there is none, or one without address.
    """
    found: list[dict[str, Any]] = description.get("datasets", [])
    if not found or not all(record.get("uri") for record in found):
        raise ValueError(
            "the training records no address of its datasets, so nothing can be measured"
        )
    return [{"offset": {}, **record} for record in found]
