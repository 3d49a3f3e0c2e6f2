"""Checks that configurations share: whole numbers, tuples, sizes that divide."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import fields
from typing import Any

from pelagos.models.family import Options

_LISTED = 3


def lists_to_tuples(options: Options) -> None:
    """Turn lists, as files hold them, into tuples: equal configurations then compare equal."""
    for entry in fields(options):
        value = getattr(options, entry.name)
        if isinstance(value, list):
            object.__setattr__(options, entry.name, tuple(value))


def not_whole(options: Options) -> list[str]:
    """A line for every field `int` or `tuple[int, ...]` that is not made of numbers from 1 on."""
    problems = []
    for entry in fields(options):
        value = getattr(options, entry.name)
        if entry.type == "int" and not _is_count(value):
            problems.append(f"{entry.name}={value!r} must be a whole number, at least 1")
        if entry.type == "tuple[int, ...]" and not (
            isinstance(value, tuple) and value and all(map(_is_count, value))
        ):
            problems.append(f"{entry.name}={value!r} must list whole numbers, each at least 1")
    return problems


def nearest_multiples(size: int, divisor: int) -> str:
    """The valid choices next to a size that `divisor` does not divide.

    >>> nearest_multiples(50, 16), nearest_multiples(5, 16)
    ('48 or 64', '16')
    """
    below = size // divisor * divisor
    return f"{below} or {below + divisor}" if below else f"{divisor}"


def wrong_frames(got: int, taken: int) -> str:
    """Advice where a network that takes `taken` frames is given `got`; empty if it fits."""
    if got == taken:
        return ""
    return (
        f"; with {got} frames, set objective.config.num_input_frames to {taken}, or the model's "
        f"in_timesteps to {got}"
    )


def not_whole_numbers(config: Any, names: Iterable[str]) -> list[str]:
    """Problems of options that must be whole numbers, at least 1, and are not."""
    given = {name: getattr(config, name) for name in names}
    return [
        f"{name}={value!r} must be a whole number, at least 1"
        for name, value in given.items()
        if not isinstance(value, int) or isinstance(value, bool) or value < 1
    ]


def not_one_of(name: str, value: object, known: Iterable[object]) -> list[str]:
    """The problem of an option that is none of the known values."""
    choices = list(known)
    if value in choices:
        return []
    return [f"{name}={value!r} must be one of {', '.join(map(repr, choices))}"]


def check_patterns(key: str, patterns: Iterable[str], names: Sequence[str]) -> None:
    """Raise ValueError for regular expressions that are found in none of the names."""
    unmatched = [p for p in patterns if not any(re.search(p, name) for name in names)]
    if unmatched:
        raise ValueError(
            f"{key}: {', '.join(unmatched)} matches none of the {len(names)} parameters, e.g. "
            f"{', '.join(names[:_LISTED])}"
        )


def fail_on(problems: list[str], what: str) -> None:
    """Raise one ValueError with every problem, or none."""
    if problems:
        raise ValueError(f"{what}: " + "; ".join(problems))


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1
