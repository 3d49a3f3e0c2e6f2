"""Answers of callbacks that are no numbers: named, and stopping or logged as the job says."""

import logging
from typing import Any

import pytest

from pelagos.platform.callbacks import CALLBACKS, Callback, CallbackError, Callbacks
from pelagos.platform.config.schema import CallbackConfig

ANSWERS = [5, {"loss": 1.0}, {"mine": "text"}, {"mine": [1.0]}]


def answering(answer: Any, monkeypatch: pytest.MonkeyPatch) -> str:
    class Answers(Callback):
        def on_step(self, step: int, values: Any) -> Any:
            return answer

    monkeypatch.setitem(CALLBACKS._parts, "answers", Answers)
    return "answers"


@pytest.mark.parametrize("answer", ANSWERS)
def test_it_stops_the_run(answer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    config = CallbackConfig(name=answering(answer, monkeypatch))
    with pytest.raises(
        CallbackError, match="callback answers, on_step at step 3: expected new names with numbers"
    ):
        Callbacks([config]).step(3, {"loss": 2.0})


@pytest.mark.parametrize("answer", ANSWERS)
def test_it_is_logged(
    answer: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    config = CallbackConfig(name=answering(answer, monkeypatch), on_error="log")
    kept: list[Any] = []
    callbacks = Callbacks([config], lambda kind, **details: kept.append((kind, details["step"])))
    with caplog.at_level(logging.WARNING):
        assert callbacks.step(3, {"loss": 2.0}) == {}
    assert "answers, on_step at step 3" in caplog.text
    assert kept == [("callback_failed", 3)]


def test_numbers_are_added(monkeypatch: pytest.MonkeyPatch) -> None:
    config = CallbackConfig(name=answering({"mine": 4}, monkeypatch))
    assert Callbacks([config]).step(3, {"loss": 2.0}) == {"mine": 4.0}
