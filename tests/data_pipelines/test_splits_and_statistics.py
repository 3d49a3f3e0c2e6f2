"""Splits by their names and sizes, and statistics of fields against numpy's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pelagos.data_pipelines.store import DatasetSpec, Field
from pelagos.data_pipelines.store.field_statistics import (
    dataset_statistics,
    default_split,
    frame_moments,
    merge,
    pool,
    pooled_sums,
    require_statistics,
    shard_sums,
    trajectory_sums,
)
from pelagos.data_pipelines.store.splits import (
    canonical_splits,
    checked_split_name,
    default_splits,
    meant_split,
    split_of,
    split_ranges,
)

# -- splits ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("total", [1, 2, 3, 4, 9, 10, 19, 20, 29, 30, 1000])
def test_a_tenth_is_held_out_twice(total: int) -> None:
    held_out = 0 if total < 3 else max(1, total // 10)
    expected = {"train": total - 2 * held_out, "validation": held_out, "test": held_out}
    assert default_splits(total) == {name: count for name, count in expected.items() if count}
    ranges = split_ranges(default_splits(total))
    covered = [n for start, stop in ranges.values() for n in range(start, stop)]
    assert covered == list(range(total))


def test_the_split_of_a_folder() -> None:
    for name, split in (("train", "train"), ("Training", "train"), ("VALID", "validation")):
        assert split_of(name) == split
    for name, split in (("dev", "validation"), ("Testing", "test"), ("val", "validation")):
        assert split_of(name) == split
    # with an ending it is a split of its own, by its own name
    for name in ("test-ood", "Test_2", "train.a", "val3"):
        assert split_of(name) == name
    for name in ("brain", "testament", "test-", "my-test", ""):
        assert split_of(name) is None


def test_names_of_splits_are_known_meant_or_refused() -> None:
    assert split_ranges({"a": 2, "b": 0, "c": 3}) == {"a": (0, 2), "c": (2, 5)}
    assert canonical_splits({"Training": 1, "dev": 2, "test-ood": 3}) == {
        **{"train": 1, "validation": 2, "test-ood": 3}
    }
    with pytest.raises(ValueError, match="'val' and 'valid' both name the split 'validation'"):
        canonical_splits({"train": 1, "val": 2, "valid": 3})
    with pytest.raises(
        ValueError, match="unknown split 'tarin'; known splits: .*did you mean 'train'"
    ):
        canonical_splits({"tarin": 1})
    with pytest.raises(ValueError, match="such as test-ood$"):  # like nothing known: no hint
        checked_split_name("brains")
    assert checked_split_name("Val") == "Val"
    assert (meant_split("tset"), meant_split("vlaid"), meant_split("x")) == ("test", "valid", None)
    assert meant_split("train") is None
    assert meant_split("tset", {"test"}) is None


# -- statistics --------------------------------------------------------------------------------------


def described(values: np.ndarray) -> dict[str, float]:
    return {
        **{"count": float(values.size), "mean": values.mean(), "std": values.std()},
        **{"rms": np.sqrt((values**2).mean()), "min": values.min(), "max": values.max()},
    }


@pytest.mark.parametrize("grid", [(7, 10), (300, 257)])  # one block of 2^15 values, and several
def test_statistics_are_numpys(grid: tuple[int, int]) -> None:
    data = np.random.default_rng(3).normal(50.0, 2.0, (3, 4, 2, *grid)).astype(np.float32)
    found = dataset_statistics(shard_sums(data, ["u", "p"]), {"train": (0, 2), "none": (2, 2)})
    assert list(found) == ["all", "train", "none"]
    assert found["none"] == {"u": {}, "p": {}}
    for split, rows in (("all", slice(0, 3)), ("train", slice(0, 2))):
        for channel, name in enumerate(("u", "p")):
            values = data[rows, :, channel].astype(np.float64)
            expected = described(values)
            expected |= {f"delta_{k}": v for k, v in described(np.diff(values, axis=1)).items()}
            assert found[split][name] == pytest.approx(expected, rel=1e-12, abs=1e-12)
    assert (default_split(found), default_split({"all": {}})) == ("train", "all")


def test_frames_of_several_trajectories_have_no_change_between_them() -> None:
    frames = np.random.default_rng(4).normal(size=(9, 2, 7, 10)).astype(np.float32)
    found = frame_moments(frames, None, 3)
    wide = frames.astype(np.float64)
    for number in range(9):
        for channel in range(2):
            plain, deltas = found[number][channel]
            assert merge(plain).sum == pytest.approx(wide[number, channel].sum())
            assert len(deltas) == (1 if number % 3 else 0)
            if deltas:
                change = wide[number, channel] - wide[number - 1, channel]
                expected = [change.size, change.sum(), change.var() * change.size]
                assert [deltas[0].count, deltas[0].sum, deltas[0].deviation] == pytest.approx(
                    expected
                )
                assert (deltas[0].min, deltas[0].max) == (change.min(), change.max())
    # the same in pieces, each told the frame before it
    later = frame_moments(frames[1:3], frames[0], 3)
    assert [[m[1] for m in row] for row in later] == [[m[1] for m in row] for row in found[1:3]]


def test_masked_points_are_left_out_of_values_and_of_changes() -> None:
    rng = np.random.default_rng(5)
    values = rng.normal(3.0, 1.0, (2, 4, 7, 10)).astype(np.float32)
    mask = (rng.random((2, 4, 7, 10)) > 0.4).astype(np.float32)
    data = np.stack([np.where(mask, values, -99.0).astype(np.float32), mask], axis=2)
    found = pool(shard_sums(data, ["u", "mask"], {0: 1})["u"])
    wide, there = values.astype(np.float64), mask > 0
    expected = described(wide[there])
    both = there[:, 1:] & there[:, :-1]
    expected |= {f"delta_{k}": v for k, v in described(np.diff(wide, axis=1)[both]).items()}
    assert found == pytest.approx(expected, rel=1e-12, abs=1e-12)
    nothing = trajectory_sums(values[0], np.zeros_like(mask[0]))
    assert nothing == pooled_sums([], [])
    assert set(nothing.values()) == {0.0}
    broken = values[0].copy()
    broken[1, 2, 3] = np.nan  # is found, though the mask hides it
    assert np.isnan(trajectory_sums(broken, np.zeros_like(mask[0]))["sum"])


def test_masked_frames_of_several_trajectories_have_no_change_between_them() -> None:
    rng = np.random.default_rng(8)
    values = rng.normal(3.0, 1.0, (9, 7, 10)).astype(np.float32)
    mask = (rng.random((9, 7, 10)) > 0.4).astype(np.float32)
    found = frame_moments(np.stack([values, mask], axis=1), None, 3, {0: 1})
    wide, there = values.astype(np.float64), mask > 0
    for number in range(9):
        plain, deltas = found[number][0]
        assert merge(plain).sum == pytest.approx(wide[number][there[number]].sum())
        assert len(deltas) == (1 if number % 3 else 0)
        if deltas:
            both = there[number] & there[number - 1]
            change = (wide[number] - wide[number - 1])[both]
            assert (deltas[0].count, deltas[0].sum) == (change.size, pytest.approx(change.sum()))


def masked_spec() -> DatasetSpec:
    return DatasetSpec(
        name="parts",
        equation="none",
        fields=(Field("u", "velocity-x", "m/s"), Field("p", "pressure", "Pa")),
        num_trajectories=5,
        num_frames=3,
        grid_shape=(7, 10),
        frame_interval=0.5,
        domain_extent=(1.0, 2.0),
        boundary_conditions={"x": "periodic", "y": "periodic"},
        splits={"train": (0, 4), "test": (4, 5)},
        masks={"u": "p"},
    )


def statistics_of(spec: DatasetSpec) -> dict[str, Any]:
    data = np.random.default_rng(6).normal(size=spec.shape).astype(np.float32)
    return dict(dataset_statistics(shard_sums(data, spec.field_names), spec.splits))


def test_statistics_of_others_must_be_whole(tmp_path: Path) -> None:
    spec = masked_spec()  # of a masked field a split may have no value
    good = statistics_of(spec)
    require_statistics(good, spec)
    row = good["train"]["u"]
    required = ("count", "mean", "std", "min", "max")
    require_statistics(
        {**good, "train": {**good["train"], "u": {k: row[k] for k in required}}}, spec
    )
    for key in required:
        short = {k: v for k, v in row.items() if k != key}
        with pytest.raises(ValueError, match=r"statistics\.train\.u: has .*, expected count, mean"):
            require_statistics({**good, "train": {**good["train"], "u": short}}, spec)
    with pytest.raises(ValueError, match=r"statistics\.train\.u: has"):
        require_statistics({**good, "train": {**good["train"], "u": {**row, "median": 0.0}}}, spec)
    require_statistics({**good, "train": {**good["train"], "u": {}}}, spec)
    with pytest.raises(ValueError, match=r"statistics\.train\.p: has nothing, expected count"):
        require_statistics({**good, "train": {"u": row, "p": {}}}, spec)
    with pytest.raises(ValueError, match=r"statistics\.test\.p: has count, expected count, mean"):
        require_statistics({**good, "test": {"u": {}, "p": {"count": 1.0}}}, spec)
    with pytest.raises(
        ValueError, match=r"statistics\.train: the fields differ from the dataset's"
    ):
        require_statistics({**good, "train": {"u": row}}, spec)
    with pytest.raises(
        ValueError, match="statistics: got the splits all, train, expected all, train, test"
    ):
        require_statistics({k: good[k] for k in ("all", "train")}, spec)
    with pytest.raises(ValueError, match="statistics: got the splits nothing, expected all"):
        require_statistics({}, spec)
