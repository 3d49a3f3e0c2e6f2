"""Every model by name: how to build it, where it comes from, what it takes in."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from pelagos.models.dpot import DPOT, DPOT_SIZES, DPOTConfig
from pelagos.models.poseidon import SCOT_SIZES, ScOT, ScOTConfig
from pelagos.models.pretrained import CONFIG_FILE, Pretrained, read_config

_POSEIDON_PAPER = "Herde et al., NeurIPS 2024, arXiv:2405.19101"
_POSEIDON_INPUT = (
    "one frame [batch, field, y, x] and a lead time; density, velocity-x, velocity-y, pressure in "
    "the published weights; square grids, {size} a side natively, others by Fourier resize"
)
_DPOT_PAPER = "Hao et al., ICML 2024, arXiv:2403.03542"
_DPOT_INPUT = (
    "{in_timesteps} equally spaced frames [batch, x, y, time, field]; a square grid of {img_size} "
    "a side; four fields in the published weights"
)


@dataclass(frozen=True)
class ModelInfo:
    """What a person wants to know before choosing a model.

    ``parameters`` counts the model with the default four fields in and out;
    ``weights_license`` is the licence of the weights its authors published, None where there are
    none.
    """

    name: str
    family: str
    size: str
    parameters: int
    paper: str
    weights_license: str | None
    input_description: str


@dataclass(frozen=True)
class _Family:
    """How the models of one family are configured and built.

    ``channels`` are the configuration's names of the numbers of fields in and out; ``adapt``
    returns the defaults that follow from them.
    """

    config: type[Any]
    build: Callable[[Any], Pretrained]
    channels: tuple[str, str]
    adapt: Callable[[int, int], dict[str, Any]]


@dataclass(frozen=True)
class _Entry:
    info: ModelInfo
    family: _Family
    defaults: dict[str, Any]


def _scot_groups(in_channels: int, out_channels: int) -> dict[str, Any]:
    if out_channels == 4:  # the published groups are those of the four fluid fields
        return {}
    return {"channel_slice_list_normalized_loss": tuple(range(out_channels + 1))}


_POSEIDON = _Family(ScOTConfig, ScOT, ("num_channels", "num_out_channels"), _scot_groups)
_DPOT = _Family(DPOTConfig, DPOT, ("in_channels", "out_channels"), lambda _in, _out: {})


def _poseidon(name: str, size: str, parameters: int, weights_license: str | None) -> _Entry:
    defaults = SCOT_SIZES[name]
    description = _POSEIDON_INPUT.format(size=defaults["image_size"])
    info = ModelInfo(
        name, "poseidon", size, parameters, _POSEIDON_PAPER, weights_license, description
    )
    return _Entry(info, _POSEIDON, defaults)


def _dpot(name: str, size: str, parameters: int, weights_license: str | None) -> _Entry:
    defaults = DPOT_SIZES[name]
    config = DPOTConfig(**defaults)
    description = _DPOT_INPUT.format(in_timesteps=config.in_timesteps, img_size=config.img_size)
    info = ModelInfo(name, "dpot", size, parameters, _DPOT_PAPER, weights_license, description)
    return _Entry(info, _DPOT, defaults)


_MODELS: dict[str, _Entry] = {
    "poseidon-nano": _poseidon("poseidon-nano", "nano", 824_668, None),
    "poseidon-t": _poseidon("poseidon-t", "T", 20_774_444, "CC-BY-NC-4.0"),
    "poseidon-s": _poseidon("poseidon-s", "S", 39_901_076, None),
    "poseidon-b": _poseidon("poseidon-b", "B", 157_729_988, "CC-BY-NC-4.0"),
    "poseidon-l": _poseidon("poseidon-l", "L", 628_575_524, "CC-BY-NC-4.0"),
    "dpot-nano": _dpot("dpot-nano", "nano", 230_387, None),
    "dpot-ti": _dpot("dpot-ti", "Ti", 7_534_643, "Apache-2.0"),
    "dpot-s": _dpot("dpot-s", "S", 30_801_459, "Apache-2.0"),
    "dpot-m": _dpot("dpot-m", "M", 122_125_875, "Apache-2.0"),
    "dpot-l": _dpot("dpot-l", "L", 509_018_739, "Apache-2.0"),
    "dpot-h": _dpot("dpot-h", "H", 1_031_082_099, "Apache-2.0"),
}


def list_models() -> list[str]:
    """Names that ``create_model`` knows, by family and size."""
    return list(_MODELS)


def model_info(name: str) -> ModelInfo:
    """The record of one model. Raises ValueError, with the closest names, for an unknown one."""
    return _entry(name).info


def create_model(
    name: str, *, in_channels: int = 4, out_channels: int = 4, **config_overrides: Any
) -> Pretrained:
    """Build a freshly initialised model.

    ``in_channels`` and ``out_channels`` are the numbers of fields; ``config_overrides`` replace
    fields of the family's configuration (``embed_dim=96``). Under ``torch.device("meta")`` nothing
    is allocated. The initialisation draws from torch's global generator.

    Raises ValueError for an unknown name or override, or for sizes that do not fit together.

    >>> model = create_model("poseidon-nano", in_channels=3, out_channels=2, image_size=32)
    >>> model.config.num_channels, model.config.image_size
    (3, 32)
    """
    entry = _entry(name)
    family = entry.family
    known = {field.name for field in fields(family.config)} - set(family.channels)
    unknown = sorted(set(config_overrides) - known)
    if unknown:
        raise ValueError(
            f"model {name!r} has no option {', '.join(map(repr, unknown))}; its options are "
            f"{', '.join(sorted(known))} (channels: in_channels, out_channels)"
        )
    channels = dict(zip(family.channels, (in_channels, out_channels), strict=True))
    adapted = family.adapt(in_channels, out_channels)
    try:
        config = family.config(**{**entry.defaults, **adapted, **config_overrides, **channels})
    except ValueError as error:
        raise ValueError(f"model {name!r}: {error}") from error
    return family.build(config)


def load_pretrained(directory: str | Path) -> Pretrained:
    """Return the network of a model directory, of whichever family its ``config.json`` names.

    Raises ValueError as ``ScOT.from_pretrained`` does.
    """
    config = read_config(directory)
    kind = model_class(config)
    if kind is None:
        known = ", ".join(t for family in (ScOT, DPOT) for t in family.model_types)
        raise ValueError(
            f"{directory}: {CONFIG_FILE} says model_type {config.get('model_type')!r}; known are "
            f"{known}"
        )
    return kind.from_pretrained(directory)


def model_class(config: Mapping[str, Any]) -> type[Pretrained] | None:
    """The network that a ``config.json`` is for, None if it is none of ours."""
    families: tuple[type[Pretrained], ...] = (ScOT, DPOT)
    return next((f for f in families if config.get("model_type") in f.model_types), None)


def _entry(name: str) -> _Entry:
    if name not in _MODELS:
        close = difflib.get_close_matches(name, _MODELS, n=3, cutoff=0.3)
        hint = f"closest: {', '.join(close)}; " if close else ""
        raise ValueError(f"unknown model {name!r}; {hint}all: {', '.join(_MODELS)}")
    return _MODELS[name]
