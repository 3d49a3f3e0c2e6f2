"""Weights of a mixture that change with the step: each holds until the next one begins.

A weight is a number, or `{0: 1.0, 10000: 0.2}`: from step 0 on, from step 10000 on. Constant in
between, so that the share of every dataset up to any step is a sum of exact fractions.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence

Weight = float | Mapping[int, float]
WeightsFrom = tuple[int, list[float]]
"""First step, and the weight of each dataset from there on."""

_LONGEST_IN_STATE = 60


def weight_problem(weight: Weight) -> str | None:
    """The problem with a weight, or None."""
    if not isinstance(weight, Mapping):
        is_right = weight > 0 and math.isfinite(weight)
        return None if is_right else f"weight must be a positive number, got {weight}"
    if not all(math.isfinite(value) for value in weight.values()):
        return f"weights must be finite, got {dict(weight)}"
    if not weight or min(weight) != 0:
        return f"weights by step must begin with step 0, got the steps {sorted(weight)}"
    if min(weight.values()) < 0 or max(weight.values()) <= 0:
        return (
            f"weights must not be negative, and at least one must be positive, got {dict(weight)}"
        )
    return None


def weight_at(weight: Weight, step: int) -> float:
    """The weight that holds at a step."""
    if not isinstance(weight, Mapping):
        return float(weight)
    return float(weight[max(start for start in weight if start <= step)])


def largest_weight(weight: Weight) -> float:
    """The largest that a weight ever is."""
    return float(max(weight.values()) if isinstance(weight, Mapping) else weight)


def weights_by_step(weights: Sequence[Weight]) -> list[WeightsFrom]:
    """The weights of all datasets from each step at which one changes; the first is step 0.

    >>> weights_by_step([{0: 1.0, 100: 0.0}, 2.0])
    [(0, [1.0, 2.0]), (100, [0.0, 2.0])]

    Raises:
        ValueError: all are 0 at once.
    """
    steps = sorted({0} | {s for weight in weights if isinstance(weight, Mapping) for s in weight})
    table = [(step, [weight_at(weight, step) for weight in weights]) for step in steps]
    for step, row in table:
        if not any(row):
            raise ValueError(
                f"every weight is 0 from step {step} on; at least one must be positive"
            )
    return table


def in_state(weight: Weight | None) -> float | str | None:
    """A weight as a checkpoint keeps it: short, and another one for another weight."""
    if not isinstance(weight, Mapping):
        return weight
    text = " ".join(f"{step}:{weight[step]!r}" for step in sorted(weight))
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    return text if len(text) <= _LONGEST_IN_STATE else f"{text[: _LONGEST_IN_STATE - 18]}… {digest}"
