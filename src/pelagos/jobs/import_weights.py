"""`pelagos import`: published or foreign weights into a model directory, without running their code."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pelagos.infra.yaml_text import parse_yaml_value
from pelagos.jobs.weights.foreign_files import ForeignWeights, read_source
from pelagos.jobs.weights.model_directory import ModelDirectory, check_free, write_model_directory
from pelagos.models.described import buildable
from pelagos.models.pretrained import Pretrained, check_weights, mismatches
from pelagos.models.registry import FAMILIES, create_model, list_models, model_class, model_info

_LISTED = 10
MARKERS = tuple(family.marker for family in FAMILIES.values() if family.marker is not None)


def run(
    source: str | Path,
    directory: str | Path,
    *,
    model: str | None = None,
    options: Sequence[str] = (),
    prefix: str | None = None,
    max_shard_size: str = "5GB",
    overwrite: bool = False,
) -> ModelDirectory:
    """Write the weights of `source` as a model directory, in their own precision.

    `source` is a safetensors or PyTorch file, a Hugging Face directory, or a directory of
    `torch.distributed.checkpoint`. The network is the registry's `model` with `options`
    (`key=value`), or the one that a `config.json` beside the weights describes, or the registered
    one that the shapes fit. `prefix` stands before the network's own names in the source, and what
    lacks it is left behind; by default it is found.

    Raises:
        ValueError: a source that is not readable without running its code, or does not fit;
            nothing was written.
    """
    target = Path(directory)
    check_free(target, overwrite)
    overrides = _options(options)
    found = read_source(Path(source), prefix, MARKERS)
    network, name = _network(found, model, overrides)
    check_weights(network, found.tensors, str(source))
    return write_model_directory(
        target,
        network,
        found.tensors,
        name=name,
        max_shard_size=max_shard_size,
        overwrite=overwrite,
    )


def find_network(found: ForeignWeights) -> tuple[str, dict[str, Any]]:
    """Return the registered model that weights are of, and its options where they are not the
    registered ones; numbers of fields aside. Raises ValueError where the files do not tell.
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
            f"{found.source}: the names fit no model of the registry (its first names: {names}); "
            f"give --model, and --prefix if something stands before the network's names"
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
        f"{found.source}: the shapes fit no registered size of {family}; give --model and the "
        f"options that differ, key=value. " + "; ".join(reasons)
    )


def _family(tensors: Mapping[str, Tensor]) -> str | None:
    """Return the family that names, and where those are shared numbers of axes, tell."""
    for name, family in FAMILIES.items():
        if family.marker is not None and family.marker in tensors:
            parameter, axes = family.marker_axes or (family.marker, None)
            found = tensors.get(parameter)
            if axes is None or found is None or found.ndim == axes:
                return name
    return None


def _foreign_options(found: ForeignWeights) -> Mapping[str, Any]:
    """Return the options of others' weights; what has a configuration of ours says its own."""
    family = _family(found.tensors)
    return {} if family is None or found.config is not None else FAMILIES[family].foreign_options


def _channels(found: ForeignWeights) -> dict[str, int]:
    """Return the numbers of fields that the shapes tell."""
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


def _options(entries: Sequence[str]) -> dict[str, Any]:
    options = {}
    for entry in entries:
        key, equals, value = entry.partition("=")
        if not equals or not key:
            raise ValueError(f"option {entry!r}: expected key=value, such as image_size=64")
        options[key] = parse_yaml_value(value)
    return options
