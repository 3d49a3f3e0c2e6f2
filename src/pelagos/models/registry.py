"""Every model by name: how to build it, its origin, its inputs."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch

from pelagos.models import (
    deeponet,
    dpot,
    dpot3d,
    fno,
    gnot,
    mae,
    mednext,
    mgno,
    mpp,
    nnunet,
    poseidon,
    simvp,
    sinenet,
    stunet,
    unet,
    vit,
)
from pelagos.models import own_network as own
from pelagos.models.checks import fail_on
from pelagos.models.family import Call, Family, Size
from pelagos.models.pretrained import CONFIG_FILE, Pretrained, read_config, with_earlier_defaults
from pelagos.registry import PELAGOS, Registry

FAMILIES: Registry[Family] = Registry(
    "family of models",
    {
        "poseidon": poseidon.FAMILY,
        "dpot": dpot.FAMILY,
        "dpot3d": dpot3d.FAMILY,
        "mpp": mpp.FAMILY,
        "fno": fno.FNO_FAMILY,
        "tfno": fno.TFNO_FAMILY,
        "unet": unet.FAMILY,
        "sinenet": sinenet.FAMILY,
        "mgno": mgno.FAMILY,
        "deeponet": deeponet.FAMILY,
        "vit": vit.FAMILY,
        "mae": mae.FAMILY,
        "nnunet": nnunet.FAMILY,
        "stunet": stunet.FAMILY,
        "mednext": mednext.FAMILY,
        "simvp": simvp.FAMILY,
        "gnot": gnot.FAMILY,
    },
)


@dataclass(frozen=True)
class ModelInfo:
    """Facts for choosing a model.

    `parameters` counts the model with its family's default channels in and out;
    `weights_license` is the licence of the weights its authors published, None if there are
    no such weights; `call` is how an objective calls it.
    """

    name: str
    family: str
    size: str
    parameters: int
    paper: str
    weights_license: str | None
    input_description: str
    call: Call


def _models() -> dict[str, tuple[Family, Size]]:
    return {
        f"{name}-{size.name.lower()}": (family, size)
        for name, family in FAMILIES.items()
        for size in family.sizes
    }


# Annotations of options that are checked alike for every family: in words, and as types.
_TYPES: dict[str, tuple[str, type | tuple[type, ...]]] = {
    "int": ("a whole number", int),
    "bool": ("true or false", bool),
    "float": ("a number", (int, float)),
    "str": ("text", str),
}


def list_models() -> list[str]:
    """Names that `create_model` knows, by family and size."""
    return list(_models())


def model_info(name: str) -> ModelInfo:
    """The record of one model, or of the class that a name such as `my_lab.networks:MyNet` is of.

    Raises ValueError, with the closest names, for an unknown one.
    """
    if own.names_class(name):
        return ModelInfo(name, name, "", 0, "", None, own.INPUTS, own.call_of(name))
    family, size = _entry(name)
    return ModelInfo(
        name,
        family.name,
        size.name,
        size.parameters,
        family.paper,
        size.weights_license,
        family.inputs,
        family.call,
    )


def create_model(
    name: str,
    *,
    in_channels: int | None = None,
    out_channels: int | None = None,
    **config_overrides: Any,
) -> Pretrained:
    """Build a freshly initialised model.

    `in_channels` and `out_channels` are the numbers of fields (the family's own if none is
    given: four for fluids); `config_overrides` replace fields of the family's configuration
    (`embed_dim=96`). Under `torch.device("meta")` nothing is allocated. The initialisation
    draws from torch's global generator.

    Raises ValueError for an unknown name or override, or for sizes that do not fit together.

    A class, named as in `model_info`, gets the overrides, and the numbers of fields where it takes
    `in_channels` and `out_channels`.

    >>> model = create_model("poseidon-nano", in_channels=3, out_channels=2, image_size=32)
    >>> model.config.num_channels, model.config.image_size
    (3, 32)
    """
    if own.names_class(name):
        return own.create(name, in_channels, out_channels, config_overrides)
    family, size = _entry(name)
    config_class = family.model.config_class
    known = {field.name for field in fields(config_class)} - set(family.channels)
    unknown = sorted(set(config_overrides) - known)
    if unknown:
        raise ValueError(
            f"model {name!r} has no option {', '.join(map(repr, unknown))}; its options are "
            f"{', '.join(sorted(known))} (channels: in_channels, out_channels)"
        )
    given = (in_channels, out_channels)
    counts = [d if g is None else g for g, d in zip(given, family.default_channels, strict=True)]
    channels = dict(zip(family.channels, counts, strict=True))
    adapted = family.adapt(*counts)
    wrong = [
        f"{field.name}={config_overrides[field.name]!r} must be {_TYPES[str(field.type)][0]}"
        for field in fields(config_class)
        if str(field.type) in _TYPES and field.name in config_overrides
        if not _is_of_type(config_overrides[field.name], str(field.type))
    ]
    fail_on(wrong, f"model {name!r}")
    try:
        config = config_class(**{**size.options, **adapted, **config_overrides, **channels})
    except ValueError as error:
        raise ValueError(f"model {name!r}: {error}") from error
    try:
        return family.model(config)
    except NotImplementedError as error:
        if torch.get_default_device().type != "meta":
            raise
        raise ValueError(
            f"model {name!r} cannot be built on the meta device, where tensors have shapes and no "
            f"values ({error}): a family's constructor computes numbers without torch, builds its "
            f"modules under torch.device('meta') and ends in self.materialize(device)"
        ) from error


def _is_of_type(value: object, annotation: str) -> bool:
    """Whether an option's value matches its annotation; text such as `no` is no truth value."""
    return isinstance(value, _TYPES[annotation][1]) and (
        annotation == "bool" or not isinstance(value, bool)
    )


def stored_config(name: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """A stored model's options, completed with the meaning of options that did not exist yet."""
    if own.names_class(name):
        return dict(config)
    return with_earlier_defaults(FAMILIES[model_info(name).family].model, config)


def explicit_config(name: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """A model's options as they are stored: with today's value of those whose meaning changed."""
    if own.names_class(name):
        return dict(config)
    kind = FAMILIES[model_info(name).family].model.config_class
    today = {f.name: f.default for f in fields(kind)}
    return {**{key: today[key] for key in getattr(kind, "earlier_defaults", {})}, **config}


def load_pretrained(directory: str | Path) -> Pretrained:
    """Return the network of a model directory, of whichever family its `config.json` names.

    Raises ValueError as `ScOT.from_pretrained` does, and for a class of a user's own whose module
    was not imported: a file does not decide which code runs.
    """
    config = read_config(directory)
    if config.get("model_type") == own.MODEL_TYPE:
        return own.load(config, directory)
    kind = model_class(config)
    if kind is None:
        known = ", ".join(t for f in FAMILIES.values() for t in f.model.model_types)
        raise ValueError(
            f"{directory}: {CONFIG_FILE} says model_type {config.get('model_type')!r}; known are "
            f"{known}"
        )
    return kind.from_pretrained(directory)


def model_class(config: Mapping[str, Any]) -> type[Pretrained] | None:
    """The network that a `config.json` is for, None if it is none of ours."""
    models = (family.model for family in FAMILIES.values())
    return next((m for m in models if config.get("model_type") in m.model_types), None)


def _entry(name: str) -> tuple[Family, Size]:
    models = _models()
    if name not in models:
        stem = name.rpartition("-")[0]
        sizes = [known for known in models if known.rpartition("-")[0] == stem]
        # of a family that is there, its sizes
        close = difflib.get_close_matches(name, sizes or models, n=3, cutoff=0.0 if sizes else 0.3)
        hint = f"closest: {', '.join(close)}; " if close else ""
        from_plugins = {
            f"{key}-{size.name.lower()}": f" (from {FAMILIES.origin(key)})"
            for key, family in FAMILIES.items()
            if FAMILIES.origin(key) != PELAGOS
            for size in family.sizes
        }
        listed = ", ".join(known + from_plugins.get(known, "") for known in models)
        raise ValueError(f"unknown model {name!r}; {hint}all: {listed}")
    return models[name]
