"""What a checkpoint keeps of a mixture's datasets, and the sentences that name a change."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest

from pelagos.data_pipelines.streaming.mixtures.mixture_state import (
    changes_of_datasets,
    changes_of_digests,
    digests,
)


def dataset(name: str, **changes: Any) -> dict[str, Any]:
    return {"uri": name, "fingerprint": f"f-{name}", "windows": 75, "weight": None, **changes}


def test_changes_are_named_dataset_by_dataset() -> None:
    before = [dataset("a"), dataset("b", crop=[8, 8]), dataset("c")]
    assert changes_of_datasets(before, before) == []
    moved = [{**row, "uri": f"elsewhere/{row['uri']}"} for row in before]
    assert changes_of_datasets(before, moved) == []
    # a key that is left out has its usual value
    assert (
        changes_of_datasets(before, [{**before[0], "repeat": 1, "crop": None}, *before[1:]]) == []
    )
    now = [dataset("a", weight=2.0), dataset("b", repeat=3), dataset("x", max_trajectories=4)]
    assert changes_of_datasets(before, now) == [
        "dataset 0 (a): weight was None, now 2.0",
        "dataset 1 (b): repeat was 1, now 3",
        "dataset 1 (b): crop was [8, 8], now None",
        "dataset 2 (x): fingerprint was f-c, now f-x",
        "dataset 2 (x): max_trajectories was None, now 4",
    ]
    for shorter, longer in ((before[:2], before), (before, before[:2])):
        assert changes_of_datasets(shorter, longer) == [
            f"the number of datasets was {len(shorter)}, now {len(longer)}"
        ]
    assert changes_of_datasets(before[:1], [dataset("a", windows=9), *before[1:]]) == [
        "the number of datasets was 1, now 3",
        "dataset 0 (a): windows was 75, now 9",
    ]


def test_a_digest_is_of_what_decides_the_order() -> None:
    row = ["f-a", 75, 2.0, 1, None, [8, 8]]  # fingerprint, windows, weight, repeat, most, crop
    found = digests([dataset("a", weight=2.0, crop=[8, 8])])
    assert found == [hashlib.sha256(json.dumps(row).encode()).hexdigest()[:8]]
    assert digests([dataset("a", weight=2.0, crop=[8, 8], uri="elsewhere")]) == found
    rows = [dataset(str(n)) for n in range(49)]
    assert len(set(digests(rows[:48]))) == 48
    (whole,) = digests(rows)
    kept = [[f"f-{n}", 75, None, 1, None, None] for n in range(49)]
    assert whole == hashlib.sha256(json.dumps(kept).encode()).hexdigest()


@pytest.mark.parametrize("count", [2, 48, 49])
def test_digests_tell_what_changed(count: int) -> None:
    before = [dataset(str(n)) for n in range(count)]
    kept = digests(before)
    assert changes_of_digests(kept, before) == []
    now = [dataset("0"), dataset("1", weight=3.0), *before[2:]]
    expected = ["dataset 1 (1): its content, windows, weight or crop changed"]
    if count > 48:
        expected = ["a dataset or its weight differs"]
    assert changes_of_digests(kept, now) == expected
    more = changes_of_digests(kept, [*before, dataset("more")])
    assert (
        more
        == {
            2: ["the number of datasets was 2, now 3"],
            48: ["the number of datasets was 48, now 49"],
            49: ["a dataset or its weight differs"],
        }[count]
    )
    fewer = changes_of_digests(kept, before[:1] if count < 49 else before[:48])
    told = {2: "2, now 1", 48: "48, now 1", 49: "more than 48, now 48"}
    assert fewer == [f"the number of datasets was {told[count]}"]
