"""Carrying weights over to a network whose fields, grid or heads differ.

Every parameter of the network is matched, interpolated or re-initialised, and what the source has
beyond is dropped; which, is said for each. The published fine-tuning of Poseidon re-initialises
exactly the parameters whose shapes differ (arXiv:2405.19101, appendix C.1).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from pelagos.models.checks import check_patterns
from pelagos.models.pretrained import Pretrained

Action = Literal["matched", "interpolated", "re-initialised", "dropped"]

# Below this share of carried values, the source is another network, not another task.
_LEAST_SHARE = 0.25
_LISTED = 3


@dataclass(frozen=True)
class AdaptedParameter:
    """The fate of one parameter; a shape is None on the side that lacks it."""

    name: str
    action: Action
    shape: tuple[int, ...] | None
    source_shape: tuple[int, ...] | None


@dataclass(frozen=True)
class Adaptation:
    """`tensors` are the network's parameters that have values now; the others start afresh."""

    tensors: dict[str, Tensor]
    parameters: tuple[AdaptedParameter, ...]

    def names(self, action: Action) -> tuple[str, ...]:
        """Parameters with which this was done."""
        return tuple(p.name for p in self.parameters if p.action == action)

    def counts(self) -> dict[str, int]:
        """Number of parameters by action."""
        return dict(Counter(p.action for p in self.parameters))


def adapt(
    model: Pretrained,
    weights: Mapping[str, Tensor],
    source: str,
    reinitialize: Sequence[str] = (),
) -> Adaptation:
    """Decide the treatment of each parameter of `model` (which may be on the meta device).

    `reinitialize`: regular expressions of parameters that start afresh although they fit.
    Raises ValueError for a pattern that matches nothing, and for weights of which less than a
    quarter of the network's other values can be taken: those of another family or size.
    """
    own = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    check_patterns("reinitialize", reinitialize, list(own))
    tensors: dict[str, Tensor] = {}
    rows: list[AdaptedParameter] = []
    for name, shape in own.items():
        given = weights.get(name)
        given_shape = None if given is None else tuple(given.shape)
        action: Action = "re-initialised"
        if given is not None and not any(re.search(p, name) for p in reinitialize):
            if given_shape == shape:
                tensors[name], action = given, "matched"
            elif (resized := model.resized_parameter(name, given)) is not None:
                tensors[name], action = resized, "interpolated"
        rows.append(AdaptedParameter(name, action, shape, given_shape))
    rows += [
        AdaptedParameter(name, "dropped", None, tuple(tensor.shape))
        for name, tensor in weights.items()
        if name not in own
    ]
    adaptation = Adaptation(tensors, tuple(rows))
    asked = {name for name in own if any(re.search(p, name) for p in reinitialize)}
    _check_share(model, adaptation, weights, source, asked)
    return adaptation


def _check_share(
    model: Pretrained,
    adaptation: Adaptation,
    weights: Mapping[str, Tensor],
    source: str,
    asked: set[str],
) -> None:
    wanted = {n: tensor for n, tensor in model.state_dict().items() if n not in asked}
    total = sum(tensor.numel() for tensor in wanted.values())
    carried = sum(tensor.numel() for tensor in adaptation.tensors.values())
    if adaptation.tensors and carried >= _LEAST_SHARE * total:
        return
    misfit = next(
        (p for p in adaptation.parameters if p.shape and p.source_shape not in (None, p.shape)),
        None,
    )
    why = (
        f"e.g. {misfit.name} has shape {list(misfit.source_shape or ())} in the source and "
        f"{list(misfit.shape or ())} in the network"
        if misfit
        else (
            f"the source's names are {', '.join(list(weights)[:_LISTED])}, …; the network's "
            f"{', '.join(list(model.state_dict())[:_LISTED])}, …"
        )
    )
    raise ValueError(
        f"{source} fits only {carried:,} of {total:,} values of {_name_of(model)}: it has "
        f"another family or size ({why}). Choose the model of the source, or leave `model` out to "
        "take it"
    )


def _name_of(model: Pretrained) -> str:
    """The class of a network; of a user's own, theirs."""
    return type(getattr(model, "network", model)).__name__
