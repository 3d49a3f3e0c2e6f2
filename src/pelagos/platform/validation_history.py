"""The validation losses that a training remembers: the best saved one, and when to stop early."""

import math
from collections.abc import Collection, Mapping
from typing import Any

from pelagos.platform.config.stopping import StopWhenConfig

REMEMBERED = 1000  # more than a run keeps checkpoints of


class ValidationHistory:
    """The validation losses of a run so far, equal on every rank; a checkpoint keeps them.

    Attributes:
        best: step and loss of the best validation of which there is a checkpoint.
    """

    def __init__(self, stop_when: StopWhenConfig | None) -> None:
        self.stop_when = stop_when
        self.best: dict[str, Any] | None = None
        self._before_save: tuple[dict[str, Any] | None, list[dict[str, Any]]] = (None, [])
        self._validated: list[dict[str, Any]] = []
        """Step and loss of every validation of which a checkpoint was written: one may be lost."""
        self._last: tuple[int, float] | None = None
        self._watched: dict[str, Any] | None = None
        """Of the loss that `stop_when` watches: the best, its step, validations since, the last."""
        self._reason = ""

    def add(self, step: int, loss: float, of_datasets: Mapping[str, float]) -> None:
        """Take the loss of a validation after `step`, and those of each dataset by name."""
        self._last = (step, loss)
        rule = self.stop_when
        watched = loss if rule is None or rule.dataset is None else of_datasets.get(rule.dataset)
        if rule is None or watched is None:  # a dataset may have no validation samples
            return
        before = self._watched
        if before is None or watched < before["loss"] - rule.min_delta:
            self._watched = {"step": step, "loss": watched, "since": 0, "last": watched}
        else:
            self._watched = before | {"since": before["since"] + 1, "last": watched}
        self._reason = self._decide()

    @property
    def reason_to_stop(self) -> str:
        """Why `stop_when` ends the run here; empty if it does not."""
        return self._reason

    def saved(self, step: int) -> set[int]:
        """Note that a checkpoint of `step` is being written; return the step of the best, if any."""
        self._before_save = (self.best, self._validated)
        if self._last is not None and self._last[0] == step:
            loss = self._last[1]
            if math.isfinite(loss):
                self._validated = [*self._validated, {"step": step, "loss": loss}][-REMEMBERED:]
            if self.best is None or loss < self.best["loss"]:
                self.best = {"step": step, "loss": loss}
        return {self.best["step"]} if self.best else set()

    def not_saved(self) -> set[int]:
        """Take back the last call of `saved`; return the step of the best, if any."""
        self.best, self._validated = self._before_save
        return {self.best["step"]} if self.best else set()

    def state(self) -> dict[str, Any]:
        """Return what a continued run needs, as JSON."""
        watched = {} if self._watched is None else {"watched": self._watched}
        validated = {"validated": self._validated} if self._validated else {}
        return {"best": self.best, **validated, **watched}

    def choose_among(self, steps: Collection[int]) -> None:
        """Let the best be one of `steps`, of which there are checkpoints."""
        self._validated = [one for one in self._validated if one["step"] in steps]
        if self.best is not None and self.best["step"] not in steps:
            self.best = min(self._validated, key=lambda one: one["loss"], default=None)

    def load(self, state: Mapping[str, Any]) -> None:
        """Take over the state that a checkpoint holds.

        A run that `stop_when` ended stays ended, unless what it says has changed.
        """
        self.best = state.get("best")
        self._validated = list(state.get("validated", []))
        self._watched = state.get("watched")
        self._reason = self._decide()

    def _decide(self) -> str:
        rule, watched = self.stop_when, self._watched
        if rule is None or watched is None:
            return ""
        loss = watched["last"]
        name = "validation loss" + (f" of {rule.dataset}" if rule.dataset else "")
        if rule.target is not None and loss <= rule.target:
            return f"schedule.stop_when: {name} {loss:.4g} reached the target {rule.target:g}"
        if rule.patience is not None and watched["since"] >= rule.patience:
            least = f" by more than {rule.min_delta:g}" if rule.min_delta else ""
            return (
                f"schedule.stop_when: {name} did not fall{least} in {watched['since']} validations; "
                f"best {watched['loss']:.4g} at step {watched['step']}"
            )
        return ""
