"""A checkpoint's record of a mixture's datasets, and the changes since it was written."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

# Keys of each dataset in the state, and the value that an absent key means.
STATE_KEYS: dict[str, int | None] = {"fingerprint": None, "windows": None, "weight": None}
STATE_KEYS |= {"repeat": 1, "max_trajectories": None, "crop": None}
# A state of more characters keeps digests of at most this many datasets, 12 characters each.
LONGEST_STATE, MOST_DIGESTS = 800, 48
_OF_EACH, _OF_ALL = 8, 64  # characters of a digest: of each dataset, or one of all of them


def changes_of_datasets(
    before: Sequence[Mapping[str, Any]], now: Sequence[Mapping[str, Any]]
) -> list[str]:
    """A sentence for each change between two lists of datasets as states hold them."""
    changes = []
    if len(before) != len(now):
        changes.append(f"the number of datasets was {len(before)}, now {len(now)}")
    for i, (old, new) in enumerate(zip(before, now, strict=False)):
        # A dataset may have moved: its contents count, not its place.
        changes += [
            f"dataset {i} ({new['uri']}): {key} was {old.get(key, usual)}, now "
            f"{new.get(key, usual)}"
            for key, usual in STATE_KEYS.items()
            if old.get(key, usual) != new.get(key, usual)
        ]
    return changes


def digests(datasets: Sequence[Mapping[str, Any]]) -> list[str]:
    """A digest of each dataset, or one digest of all where they are too many."""
    kept = [[d.get(key, usual) for key, usual in STATE_KEYS.items()] for d in datasets]
    if len(kept) > MOST_DIGESTS:
        return [hashlib.sha256(json.dumps(kept).encode()).hexdigest()]
    return [hashlib.sha256(json.dumps(row).encode()).hexdigest()[:_OF_EACH] for row in kept]


def changes_of_digests(before: Sequence[str], now: Sequence[Mapping[str, Any]]) -> list[str]:
    """A sentence for each dataset whose digest is another now."""
    found = digests(now)
    if len(before) != len(found):
        is_of_all = [len(digest) for digest in before] == [_OF_ALL]
        count = f"more than {MOST_DIGESTS}" if is_of_all else str(len(before))
        return [f"the number of datasets was {count}, now {len(now)}"]
    if len(now) > MOST_DIGESTS:
        return [] if list(before) == found else ["a dataset or its weight differs"]
    return [
        f"dataset {i} ({new['uri']}): its content, windows, weight or crop changed"
        for i, (old, its, new) in enumerate(zip(before, found, now, strict=True))
        if old != its
    ]
