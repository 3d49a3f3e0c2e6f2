"""What a checkpoint is said to hold, how two differ, and which files and tensors are damaged."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from pelagos.infra.storage.remote import is_remote
from pelagos.platform.checkpoint import CheckpointStore
from pelagos.platform.checkpoint.inspection import (
    CheckpointLocation,
    TensorDifference,
    compare,
    describe,
    locate,
    verify,
)

STATE = {"step": 7, "samples": 56, "seed": 3}


def saved(root: Path, tensors: dict[str, torch.Tensor], step: int = 7) -> CheckpointLocation:
    store = CheckpointStore(str(root))
    store.save(step, tensors, {**STATE, "forecaster": {"model": {"name": "fno", "config": {}}}})
    return CheckpointLocation(store, step)


class Counter:
    """Notes what a bar of progress is told."""

    def __init__(self) -> None:
        self.told: list[tuple[int, int]] = []

    def __call__(self, done: int, total: int) -> None:
        self.told.append((done, total))


def test_sections_are_summed_by_the_first_word_of_a_name(tmp_path: Path) -> None:
    tensors = {
        "model.b": torch.zeros(3, 4, dtype=torch.bfloat16),
        "model.a.weight": torch.zeros(5),
        "optimizer.a.weight.exp_avg": torch.zeros(2, 3, 2),
    }
    location = saved(tmp_path, tensors)
    found = describe(location)
    assert found["sections"] == {
        "model": {"tensors": 2, "elements": 17, "num_bytes": 12 * 2 + 5 * 4},
        "optimizer": {"tensors": 1, "elements": 12, "num_bytes": 48},
    }
    told = ("uri", "format_version", "step", "samples", "seed", "model", "ranks")
    assert [found[k] for k in told] == [f"{tmp_path} step 7", 2, 7, 56, 3, "fno", 1]
    files = [
        path for path in (tmp_path / "step-00000007").iterdir() if path.name != "manifest.json"
    ]
    assert (found["files"], found["num_bytes"]) == (
        len(files),
        sum(path.stat().st_size for path in files),
    )
    assert [(t["name"], t["shape"], t["dtype"]) for t in found["tensors"]] == [
        ("model.a.weight", [5], "float32"),
        ("model.b", [3, 4], "bfloat16"),
        ("optimizer.a.weight.exp_avg", [2, 3, 2], "float32"),
    ]
    assert all(len(crc) == 8 for t in found["tensors"][:2] for crc in t["crc32c"])
    part = describe(location, r"^model\..*t$")
    assert [t["name"] for t in part["tensors"]] == ["model.a.weight"]
    assert part["sections"] == found["sections"]  # of all


def test_every_difference_of_two_checkpoints(tmp_path: Path) -> None:
    plain = {
        "model.same": torch.ones(3),
        "model.first": torch.ones(2),
        "model.grown": torch.ones(2),
    }
    plain |= {"model.moved": torch.tensor([1.0, -4.0, 2.0, 0.0]), "model.nothing": torch.zeros(3)}
    other = {"model.same": torch.ones(3), "model.last": torch.ones(2), "model.grown": torch.ones(3)}
    other |= {"model.moved": torch.tensor([1.0, -3.5, 2.0, 0.25])}
    other |= {"model.nothing": torch.tensor([0.0, 0.5, 0.0])}
    a, b = saved(tmp_path / "a", plain), saved(tmp_path / "b", other)
    counter = Counter()
    found = list(compare(a, b, counter))
    assert found == [
        TensorDifference("model.first", "only in A", "[2]"),
        TensorDifference("model.grown", "shape", "[2] and [3]"),
        TensorDifference("model.last", "only in B", "[2]"),
        TensorDifference("model.moved", "values", "2 of 4 elements", 0.5, 0.125),
        TensorDifference("model.nothing", "values", "1 of 3 elements", 0.5, math.inf),
    ]
    assert counter.told == [(n, 6) for n in range(1, 7)]
    assert list(compare(a, a)) == []


def test_other_types_of_equal_values_do_not_differ(tmp_path: Path) -> None:
    """The bits do, so values are looked at."""
    a = saved(tmp_path / "a", {"model.w": torch.ones(4)})
    b = saved(tmp_path / "b", {"model.w": torch.ones(4, dtype=torch.float64)})
    (found,) = list(compare(a, b)) or [None]
    assert found is None


def test_all_damage_is_told_and_progress_counts_files_and_tensors(tmp_path: Path) -> None:
    location = saved(tmp_path, {"model.a": torch.ones(3), "model.b": torch.full((4,), 2.0)})
    directory = tmp_path / "step-00000007"
    counter = Counter()
    assert verify(location, counter) == []
    files = len(list(directory.iterdir())) - 1  # all but the manifest
    assert counter.told == [(n, files + 2) for n in range(1, files + 3)]
    path = next(directory.glob("__0_*"))
    content = path.read_bytes()
    place = content.index(torch.full((4,), 2.0).numpy().tobytes())
    path.write_bytes(content[:place] + b"\x01" + content[place + 1 :])
    of_file, of_tensor = verify(location)
    assert of_file.startswith(f"{path.name}: got crc32c ")
    assert of_tensor.startswith("model.b at [0]")
    (directory / "trainer.json").unlink()
    assert [line.split(":")[0] for line in verify(location)][-1:] != ["trainer.json"]
    assert "trainer.json: missing" in verify(location)
    metadata = directory / ".metadata"
    metadata.write_bytes(metadata.read_bytes()[:-1])
    counter = Counter()
    lines = verify(location, counter)
    assert sorted(line.split(":")[0] for line in lines) == [".metadata", path.name, "trainer.json"]
    assert counter.told[-1] == (files, files + 2)  # no tensor can be found without it


def test_an_address_names_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved(tmp_path / "checkpoints", {"model.a": torch.ones(3)})
    for target in ("checkpoints/step-00000007", "checkpoints/step-00000007/"):
        found = locate(str(tmp_path / target), str(tmp_path))
        assert (found.store.uri, found.step) == (str(tmp_path / "checkpoints"), 7)
    monkeypatch.chdir(tmp_path / "checkpoints")
    assert describe(locate("step-00000007", "."))["samples"] == 56
    remote: Any = "memory://bucket/run/step-00000012"
    assert is_remote(remote)
    found = locate(remote, ".")
    assert (found.store.uri, found.step) == ("memory://bucket/run", 12)
    for target in (str(tmp_path / "other" / "step-00000007"), "a/b"):  # no such directory
        with pytest.raises(
            ValueError, match=f"{target} is not a checkpoint: expected a run's name"
        ):
            locate(target, ".")
