"""When a failed save is tried again, when the training gives up, which checkpoint is the best then."""

import time

import pytest

from pelagos.platform.config.schema import CheckpointConfig
from pelagos.platform.failed_saves import FailedSaves
from pelagos.platform.validation_history import ValidationHistory


def tries(saves: FailedSaves, steps: int) -> list[int]:
    """The steps after which a save is tried, each of which fails."""
    found = []
    saves.failed(10)
    for completed in range(10, 10 + steps):
        if saves.is_due(completed):
            found.append(completed)
            saves.begun()
            assert not saves.is_due(completed)
            saves.failed(completed)
    return found


def test_pauses_between_tries_double_up_to_the_usual_distance() -> None:
    saves = FailedSaves(CheckpointConfig(every_steps=5))
    # at once, then after 1, 2, 4 steps, and never after more than 5
    assert tries(saves, 30) == [10, 11, 13, 17, 22, 27, 32, 37]
    saves.succeeded()
    assert not any(saves.is_due(step) for step in range(100))
    assert tries(saves, 3) == [10, 11]


def test_steps_since_the_first_failure_reach_the_limit() -> None:
    saves = FailedSaves(CheckpointConfig(give_up_after_steps=7, give_up_after_minutes=None))
    saves.failed(10)
    saves.failed(16)
    assert saves.limit_reached(16) == ""
    assert saves.limit_reached(17) == "checkpoint.give_up_after_steps: 7"
    saves.succeeded()
    saves.failed(17)
    assert saves.limit_reached(23) == ""


def test_minutes_are_counted_by_a_clock_that_nobody_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    monkeypatch.setattr(time, "time", lambda: pytest.fail("the wall clock was asked"))
    saves = FailedSaves(CheckpointConfig(give_up_after_steps=None, give_up_after_minutes=1.5))
    saves.failed(1)
    now += 89.0
    saves.failed(2)
    assert saves.limit_reached(10**6) == ""
    now += 1.0
    assert saves.limit_reached(3) == "checkpoint.give_up_after_minutes: 1.5"
    never = FailedSaves(CheckpointConfig(give_up_after_steps=None, give_up_after_minutes=None))
    never.failed(1)
    now += 1e9
    assert never.limit_reached(10**9) == ""


def history(*losses: tuple[int, float]) -> ValidationHistory:
    made = ValidationHistory(None)
    for step, loss in losses:
        made.add(step, loss, {})
        made.saved(step)
    return made


def test_the_best_is_one_of_which_there_is_a_checkpoint() -> None:
    found = history((2, 0.5), (4, 0.2), (6, 0.3))
    assert found.best == {"step": 4, "loss": 0.2}
    again = ValidationHistory(None)
    again.load(found.state())
    again.choose_among({2, 6})
    assert again.best == {"step": 6, "loss": 0.3}
    again.choose_among({2})
    assert again.best == {"step": 2, "loss": 0.5}
    again.choose_among(set())
    assert again.best is None


def test_the_best_that_is_there_stays() -> None:
    found = history((2, 0.5), (4, 0.2), (6, 0.3))
    found.choose_among({4, 6})
    assert found.best == {"step": 4, "loss": 0.2}


def test_a_save_that_failed_is_not_the_best() -> None:
    found = history((2, 0.5))
    found.add(4, 0.2, {})
    assert found.saved(4) == {4}
    assert found.not_saved() == {2}
    found.add(6, 0.4, {})
    assert found.saved(6) == {6}
    found.choose_among({2})
    assert found.best == {"step": 2, "loss": 0.5}
