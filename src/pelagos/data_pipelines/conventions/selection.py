"""Which part of an array a selection reads, and where a number of it is in the whole array."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

Box = tuple[tuple[int, int], ...]
"""One half-open range per axis."""


def box_of(selection: Any, shape: Sequence[int]) -> Box:
    """The half-open range along each axis that a selection touches."""
    parts = list(selection) if isinstance(selection, tuple) else [selection]
    if any(part is Ellipsis for part in parts):
        at = next(i for i, part in enumerate(parts) if part is Ellipsis)
        parts[at : at + 1] = [slice(None)] * (len(shape) - len(parts) + 1)
    parts += [slice(None)] * (len(shape) - len(parts))
    box: list[tuple[int, int]] = []
    for part, size in zip(parts, shape, strict=True):
        if isinstance(part, slice):
            start, stop, _ = part.indices(size)
            box.append((start, max(start, stop)))
        elif isinstance(part, int | np.integer):
            at = int(part) % size if size else 0
            box.append((at, at + 1))
        else:
            numbers = np.asarray(part)
            if numbers.dtype == bool:
                numbers = np.flatnonzero(numbers)
            box.append((int(numbers.min()), int(numbers.max()) + 1) if len(numbers) else (0, 0))
    return tuple(box)


def absolute_index(selection: Any, box: Box) -> Callable[[Sequence[int]], Sequence[int]]:
    """A function that turns an index of the selection into one of the whole array."""
    parts = selection if isinstance(selection, tuple) else (selection,)

    def absolute(index: Sequence[int]) -> list[int]:
        kept, found = list(index), []
        for axis, (start, _) in enumerate(box):
            part = parts[axis] if axis < len(parts) else slice(None)
            found.append(start if isinstance(part, int | np.integer) else start + kept.pop(0))
        return found

    return absolute
