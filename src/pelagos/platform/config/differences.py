"""In which dotted keys two jobs differ, and which keys a pattern matches."""

from collections.abc import Iterator, Sequence
from typing import Any


def changed_keys(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """Return the dotted keys in which two resolved jobs differ."""
    return sorted(_differences(before, after))


def _differences(before: Any, after: Any, path: str = "") -> Iterator[str]:
    """Yield the dotted keys whose values differ."""
    if _are_lists_of_mappings(before, after):
        before, after = dict(enumerate(before)), dict(enumerate(after))
    if isinstance(before, dict) and isinstance(after, dict) and before.keys() == after.keys():
        for key in before:
            yield from _differences(before[key], after[key], f"{path}.{key}" if path else key)
    elif before != after:
        yield path


def _are_lists_of_mappings(before: Any, after: Any) -> bool:
    """Return whether both are lists of as many mappings, which are compared one by one."""
    both = isinstance(before, list) and isinstance(after, list) and len(before) == len(after)
    return both and all(isinstance(item, dict) for item in (*before, *after))


def is_among(key: str, patterns: Sequence[str]) -> bool:
    """Return whether a dotted key is one of these, or below one; `*` matches one part.

    >>> is_among("data.mixture.0.uri", ["data.mixture.*.uri"]), is_among("database", ["data"])
    (True, False)
    """
    parts = key.split(".")
    return any(
        len(parts) >= len(wanted)
        and all(w in ("*", p) for w, p in zip(wanted, parts, strict=False))
        for wanted in (pattern.split(".") for pattern in patterns)
    )
