"""Which network others' weights are of: by names, by shapes, by files next to them."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from pelagos.jobs.weights.foreign_files import ForeignWeights
from pelagos.models.described import buildable
from pelagos.models.pretrained import Pretrained, mismatches
from pelagos.models.registry import FAMILIES, create_model, list_models, model_class, model_info

_LISTED = 10
MARKERS = tuple(family.marker for family in FAMILIES.values() if family.marker is not None)


def find_network(found: ForeignWeights) -> tuple[str, dict[str, Any]]:
    """Return the registered model that weights are of, and its options.

    Options where they are not the registered ones; numbers of fields aside. Raises ValueError where
    the files do not show them.
    """
    network, name = _network(found, None, {})
    family = next(f for f in FAMILIES.values() if f.model is type(network))
    if name is None:
        name = next(n for n in list_models() if model_info(n).family == family.name)
    channels = _channels(ForeignWeights("", network.state_dict(), None))
    usual, own = asdict(_on_meta(name, channels).config), asdict(network.config)
    counts = (*family.channels, *family.adapt(1, 1))
    return name, {k: v for k, v in own.items() if v != usual[k] and k not in counts}


def _network(
    found: ForeignWeights, model: str | None, overrides: Mapping[str, Any]
) -> tuple[Pretrained, str | None]:
    """Return the network on the meta device, and its name in the registry if it has one."""
    kind = model_class(found.config or {})
    if model is None and found.config is not None and kind is not None and not overrides:
        with buildable(f"the model of {found.source}", found.tensors), torch.device("meta"):
            network = kind(kind.config_class.from_official(found.config))
        return network, _name_of(network)
    options = {**_foreign_options(found), **_channels(found), **overrides}
    if model is not None:
        return _on_meta(model, options), model
    return _infer(found, options)


def _on_meta(name: str, options: Mapping[str, Any]) -> Pretrained:
    with torch.device("meta"):
        return create_model(name, **options)


def _infer(found: ForeignWeights, options: Mapping[str, Any]) -> tuple[Pretrained, str]:
    """Return the registered model that the names and shapes fit."""
    family = _family(found.tensors)
    if family is None:
        names = ", ".join(sorted(found.tensors)[:_LISTED])
        raise ValueError(
            f"{found.source}: no registered model has these names (the first are {names}); give "
            "--model, and --prefix if the parameter names have a prefix"
        )
    reasons = []
    for name in (n for n in list_models() if n.startswith(f"{family}-")):
        try:
            network = _on_meta(name, options)
        except ValueError as error:
            reasons.append(str(error))
            continue
        problems = mismatches(network, found.tensors)
        if not problems:
            return network, name
        reasons.append(f"{name}: {problems[0]} ({len(problems)} mismatches)")
    raise ValueError(
        f"{found.source}: no registered size of {family} has these shapes; give --model and the "
        "options that differ, key=value. " + "; ".join(reasons)
    )


def _family(tensors: Mapping[str, Tensor]) -> str | None:
    """Return the family by parameter names, and where those are shared, by numbers of axes."""
    for name, family in FAMILIES.items():
        if family.marker is not None and family.marker in tensors:
            parameter, axes = family.marker_axes or (family.marker, None)
            found = tensors.get(parameter)
            if axes is None or found is None or found.ndim == axes:
                return name
    return None


def _foreign_options(found: ForeignWeights) -> Mapping[str, Any]:
    """Return the options of others' weights; a configuration of ours gives its own."""
    family = _family(found.tensors)
    return {} if family is None or found.config is not None else FAMILIES[family].foreign_options


def _channels(found: ForeignWeights) -> dict[str, int]:
    """Return the numbers of fields that follow from the shapes."""
    family = _family(found.tensors)
    if family is None:
        return {}
    counts: dict[str, int] = {}
    told = zip(("in_channels", "out_channels"), FAMILIES[family].channel_axes, strict=False)
    for key, (name, axis, extra) in told:
        tensor = found.tensors.get(name)
        if tensor is not None and tensor.ndim > axis and tensor.shape[axis] > extra:
            counts[key] = tensor.shape[axis] - extra
    return counts


def _name_of(network: Pretrained) -> str | None:
    """Return the registered model with the same configuration, numbers of fields aside."""
    weights = network.state_dict()
    channels = _channels(ForeignWeights("", weights, None))
    family = _family(weights)
    for name in (n for n in list_models() if n.startswith(f"{family}-")):
        if _on_meta(name, channels).config == network.config:
            return name
    return None
