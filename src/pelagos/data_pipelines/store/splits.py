"""Splits of a dataset whose author gives none, and ranges of trajectories from their sizes."""

from collections.abc import Mapping


def default_splits(total: int) -> dict[str, int]:
    """80 % to train on, 10 % to validate, 10 % to test; at least one of each where there are three.

    >>> default_splits(20)
    {'train': 16, 'validation': 2, 'test': 2}
    """
    held_out = max(1, total // 10) if total >= 3 else 0
    counts = {"train": total - 2 * held_out, "validation": held_out, "test": held_out}
    return {name: count for name, count in counts.items() if count}


def split_ranges(counts: Mapping[str, int]) -> dict[str, tuple[int, int]]:
    """Consecutive ranges of trajectories; empty splits are left out.

    >>> split_ranges({"train": 16, "validation": 0, "test": 4})
    {'train': (0, 16), 'test': (16, 20)}
    """
    ranges, start = {}, 0
    for name, count in counts.items():
        if count:
            ranges[name] = (start, start + count)
        start += count
    return ranges
