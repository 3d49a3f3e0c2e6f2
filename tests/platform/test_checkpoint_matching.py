"""Which tensors of a checkpoint a model takes, what its trainer state may hold, and copies of it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pelagos.platform.checkpoint import CheckpointError, CheckpointStore
from pelagos.platform.checkpoint.copying import copy_checkpoint, empty_place
from pelagos.platform.checkpoint.matching import match_tensors
from pelagos.platform.checkpoint.trainer_state import checked_state, streams_of

# -- matching ------------------------------------------------------------------------------------------


def of_model(*names: str, shape: tuple[int, ...] = (2,)) -> dict[str, Tensor]:
    return {name: torch.zeros(shape) for name in names}


def shapes(*names: str, shape: tuple[int, ...] = (2,)) -> dict[str, tuple[int, ...]]:
    return dict.fromkeys(names, shape)


STATE = ("model.a", "optimizer.a.exp_avg", "ema.a")


def test_what_both_have_is_read() -> None:
    wanted = of_model(*STATE)
    read, (kept, frozen) = match_tensors(shapes(*STATE), wanted, (), "here")
    assert read == wanted
    assert all(read[name] is wanted[name] for name in STATE)
    assert (kept, frozen) == ((), ())


def test_only_parameters_that_are_named_may_be_lacking() -> None:
    """By their own name, whichever of their states it is: weight, moment or average."""
    new = ("model.head.bias", "optimizer.head.bias.exp_avg", "ema.head.bias")
    wanted = of_model(*STATE, *new)
    read, (kept, frozen) = match_tensors(shapes(*STATE), wanted, ("nothing", r"^head\.bias$"), "")
    assert (list(read), kept, frozen) == ([*STATE], new, ())
    for patterns in ((), ("^bias",), ("exp_avg",), ("model",)):
        with pytest.raises(
            CheckpointError, match=r"3 differences, e\.g\. model\.head\.bias: absent"
        ):
            match_tensors(shapes(*STATE), wanted, patterns, "")


def test_states_of_parameters_that_are_frozen_now_are_left() -> None:
    read, (kept, frozen) = match_tensors(shapes(*STATE), of_model("model.a"), (), "")
    assert (list(read), kept, frozen) == (["model.a"], (), STATE[1:])
    with pytest.raises(
        CheckpointError, match=r"1 differences, e\.g\. model\.b: absent from the model"
    ):
        match_tensors(shapes(*STATE, "model.b"), of_model(*STATE), (), "")
    # a moment of a parameter that is gone altogether is no frozen one
    with pytest.raises(
        CheckpointError, match=r"2 differences.*model\.b: .*optimizer\.b\.m: absent from"
    ):
        match_tensors(shapes("model.a", "model.b", "optimizer.b.m"), of_model("model.a"), (), "")


def test_advice_depends_on_what_is_lacking() -> None:
    with pytest.raises(CheckpointError, match=r"Name them in checkpoint\.new_parameters to start"):
        match_tensors(shapes("model.a"), of_model(*STATE), (), "")
    told = (
        r"^here holds another architecture: 1 differences, e\.g\. model\.b: absent from the check"
    )
    with pytest.raises(CheckpointError, match=told + r"point\. Use the model configuration of"):
        match_tensors(shapes("model.a"), of_model("model.a", "model.b"), (), "here")
    with pytest.raises(
        CheckpointError, match=r"model\.a: \[2\] in the checkpoint, \[3, 1\] in the"
    ):
        match_tensors(shapes("model.a"), of_model("model.a", shape=(3, 1)), (), "")


@pytest.mark.parametrize("count", [9, 10, 11, 25])
def test_ten_differences_are_shown_and_all_counted(count: int) -> None:
    names = [f"model.{n:02}" for n in range(count)]
    with pytest.raises(CheckpointError, match=f" {count} differences") as caught:
        match_tensors({}, of_model(*names), (), "here")
    assert [name in str(caught.value) for name in names] == [n < 10 for n in range(count)]


# -- the trainer's state -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "state",
    [
        {},
        {"run": "r", "best": None, "streams": None, "fresh": [], "anything": {"else": 1}},
        {"best": {"step": 3}, "loss_scale": {"scale": 2.0, "good_steps": 4}},
        {"streams": {"seed": 3, "mixture": {"fields": ["u"], "digests": ["aa"], "more": 1}}},
        {"forecaster": {"model": {"name": "fno", "config": {}}, "datasets": [{}]}},
    ],
)
def test_a_state_is_handed_on_as_it_is(state: dict[str, Any]) -> None:
    found = checked_state(state, "here")
    assert found == state
    assert found is not state


@pytest.mark.parametrize(
    ("state", "key"),
    [
        ([], "the whole"),
        ({"run": 3}, "run"),
        ({"best": {"loss": 1.0}}, "best.step"),
        ({"best": {"step": "3"}}, "best.step"),
        ({"best": {"step": 3, "loss": "low"}}, "best.loss"),
        ({"streams": {"mixture": {"fields": []}}}, "streams.seed"),
        ({"streams": {"seed": 0}}, "streams.mixture"),
        ({"streams": {"seed": 0, "mixture": {}}}, "streams.mixture.fields"),
        ({"streams": {"seed": 0, "mixture": {"fields": [], "datasets": [3]}}}, "datasets"),
        ({"streams": {"seed": 0, "mixture": {"fields": [], "digests": [3]}}}, "digests"),
        ({"fresh": "all"}, "fresh"),
        ({"loss_scale": {"scale": "big"}}, "loss_scale"),
        ({"forecaster": {"model": {"name": "fno"}}}, "forecaster.model.config"),
        ({"forecaster": {"model": {"config": {}}}}, "forecaster.model.name"),
        ({"forecaster": {"datasets": {}}}, "forecaster.datasets"),
    ],
)
def test_a_state_that_is_none_names_the_key(state: Any, key: str) -> None:
    with pytest.raises(
        CheckpointError, match=r"^here: trainer\.json does not come from a train"
    ) as caught:
        checked_state(state, "here")
    assert key in str(caught.value)


def test_a_run_continues_from_an_order_of_samples() -> None:
    streams = {"seed": 3}
    assert streams_of({"streams": streams}, "here") is streams
    for state in ({}, {"streams": None}):
        with pytest.raises(
            CheckpointError, match=r"here: trainer\.json does not record which samples"
        ):
            streams_of(state, "here")


# -- copies --------------------------------------------------------------------------------------------


@pytest.fixture
def source(tmp_path: Path) -> CheckpointStore:
    store = CheckpointStore(str(tmp_path / "source"))
    for step in (3, 5):
        store.save(step, {"model.w": torch.full((4,), float(step))}, {"step": step})
    return store


@pytest.mark.parametrize("place", ["disk", "objects"])
def test_a_copy_is_complete_and_has_the_same_bytes(
    source: CheckpointStore, tmp_path: Path, place: str
) -> None:
    uri = str(tmp_path / "target") if place == "disk" else f"memory://{tmp_path.name}-copy"
    target = CheckpointStore(uri)
    copy_checkpoint(source, 5, target)
    assert [info.step for info in target.complete()] == [5]
    with source.opened(5) as (here, _), target.opened(5) as (there, _):
        names = sorted(path.name for path in here.iterdir())
        assert sorted(path.name for path in there.iterdir()) == names
        for name in names:
            assert (there / name).read_bytes() == (here / name).read_bytes()
            if place == "disk" and name != "manifest.json":
                assert os.path.samefile(there / name, here / name)  # takes no room
    assert torch.equal(target.load_named(5, "")["model.w"], torch.full((4,), 5.0))
    empty_place(target)
    assert target.complete() == []
    assert [info.step for info in source.complete()] == [3, 5]
    copy_checkpoint(source, 3, target)
    assert [info.step for info in target.complete()] == [3]


def test_a_complete_checkpoint_stays_and_files_of_a_killed_copy_do_not(
    source: CheckpointStore, tmp_path: Path
) -> None:
    target = CheckpointStore(str(tmp_path / "target"))
    target.save(3, {"model.w": torch.zeros(4)}, {"step": 3})
    copy_checkpoint(source, 3, target)
    assert torch.equal(target.load_named(3, "")["model.w"], torch.zeros(4))
    staging = target.place.staging(5)
    (staging / "trainer.json").write_text("half of")
    copy_checkpoint(source, 5, target)
    assert target.trainer_state(5)["step"] == 5
    with source.opened(5) as (directory, _):
        assert "half of" not in (directory / "trainer.json").read_text()


def test_a_disk_without_links_gets_copies(
    source: CheckpointStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    target = CheckpointStore(str(tmp_path / "target"))
    copy_checkpoint(source, 3, target)
    shutil.rmtree(tmp_path / "source")
    assert torch.equal(target.load_named(3, "")["model.w"], torch.full((4,), 3.0))


def test_damage_is_not_copied_and_a_failed_copy_leaves_nothing(
    source: CheckpointStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = CheckpointStore(str(tmp_path / "target"))
    with pytest.raises(CheckpointError, match="no complete checkpoint; found: 3, 5"):
        copy_checkpoint(source, 4, target)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(target.place, "commit", full)
    with pytest.raises(OSError, match="No space left"):
        copy_checkpoint(source, 3, target)
    assert list((tmp_path / "target").iterdir()) == []
    (tmp_path / "source" / "step-00000003" / "trainer.json").write_text("{}")
    with pytest.raises(
        CheckpointError, match=r"source step 3 is damaged: trainer\.json: got 2 bytes, expected 14"
    ):
        copy_checkpoint(source, 3, target)
    assert target.complete() == []
