"""Names of splits, splits of a dataset whose author gives none, and ranges from their sizes."""

import difflib
import re
from collections.abc import Collection, Mapping
from typing import TypeVar

SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "valid": "validation",
    "val": "validation",
    "validation": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
}
KNOWN_SPLITS = (
    "train (training), validation (valid, val, dev), test (testing), "
    "or one of them with an ending, such as test-ood"
)
_CLOSE = 0.75  # difflib's ratio of a word of five letters of which two changed places is 0.8
_ENDING = re.compile(r"[-_.].+|\d+")

_Value = TypeVar("_Value")


def is_split_name(name: str) -> bool:
    """Whether training, validation and evaluation look for this name.

    Also true for one of these names with an ending.

    >>> is_split_name("val"), is_split_name("test-ood"), is_split_name("vaild")
    (True, True, False)
    """
    lower = name.lower()
    return lower in SPLIT_NAMES or any(
        lower.startswith(known) and _ENDING.fullmatch(lower[len(known) :]) for known in SPLIT_NAMES
    )


def split_of(name: str) -> str | None:
    """The split that a folder of this name holds, None where it is named like none.

    >>> split_of("Val"), split_of("test-ood"), split_of("brain")
    ('validation', 'test-ood', None)
    """
    return SPLIT_NAMES.get(name.lower()) or (name if is_split_name(name) else None)


def meant_split(name: str, present: Collection[str] = ()) -> str | None:
    """The known name that a name which is none looks like, unless its split is `present`.

    >>> meant_split("vaild")
    'valid'
    """
    if is_split_name(name):
        return None
    others = [known for known, split in SPLIT_NAMES.items() if split not in present]
    close = difflib.get_close_matches(name.lower(), others, n=1, cutoff=_CLOSE)
    return close[0] if close else None


def checked_split_name(name: str) -> str:
    """The name itself. Raises ValueError: it is none; the message lists those known."""
    if is_split_name(name):
        return name
    meant = meant_split(name)
    hint = f"; did you mean {meant!r}?" if meant else ""
    raise ValueError(f"{KNOWN_SPLITS}{hint}")


def canonical_splits(splits: Mapping[str, _Value]) -> dict[str, _Value]:
    """Splits by the names that datasets use: `validation`, not `valid`.

    >>> canonical_splits({"train": 8, "val": 2})
    {'train': 8, 'validation': 2}

    Raises:
        ValueError: a name is unknown, or two name one split.
    """
    found: dict[str, _Value] = {}
    given: dict[str, str] = {}
    for name, value in splits.items():
        try:
            checked_split_name(name)
        except ValueError as error:
            raise ValueError(f"unknown split {name!r}; known splits: {error}") from error
        split = SPLIT_NAMES.get(name.lower(), name)
        if split in found:
            raise ValueError(f"{given[split]!r} and {name!r} both name the split {split!r}")
        found[split], given[split] = value, name
    return found


def default_splits(total: int) -> dict[str, int]:
    """80 % to train on, 10 % to validate, 10 % to test; at least one of each if three or more exist.

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
