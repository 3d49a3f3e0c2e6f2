"""Observers of a training: each rank calls them as it proceeds, in the order of the job.

A callback sees values, the run and this rank's weights. It changes neither the order of samples nor the
steps: it gets copies of values, and torch's generator is seeded anew in each step.
"""

import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from pelagos.infra.permanent_error import PermanentError
from pelagos.platform.config.schema import CallbackConfig, TrainingJob
from pelagos.platform.records.runs import Outcome
from pelagos.registry import Registry, own_line

if TYPE_CHECKING:
    from torch import Tensor

logger = logging.getLogger(__name__)
FAILED = "callback_failed"
Values = Mapping[str, float]


class CallbackError(PermanentError, ValueError):
    """An exception in a callback, which stops the run: names callback, call, step and line."""


@dataclass(frozen=True)
class TrainingView:
    """The view that a callback has of a training.

    Attributes:
        job: the job as it runs.
        rank, world_size: which of how many processes this is.
        weights: returns this rank's part of each trained weight by name, without gradients; they are
            the model's own, to be looked at.
    """

    job: TrainingJob
    rank: int
    world_size: int
    weights: "Callable[[], dict[str, Tensor]]"


class Callback:
    """Base of callbacks: each call does nothing. Steps are counted from 1: those completed."""

    def on_start(self, view: TrainingView, step: int) -> None:
        """Before the first step of a launch; `step` were completed before. On every rank."""

    def on_step(self, step: int, values: Values) -> Values | None:
        """After a step, on every rank, with its values (loss, gradient_norm, lr, seconds …).

        The values it returns on rank 0 are logged with them.
        """

    def on_validation(self, step: int, values: Values) -> None:
        """After a validation, on rank 0."""

    def on_checkpoint(self, step: int, uri: str) -> None:
        """When a checkpoint is complete, on rank 0; with asynchronous saves in another thread."""

    def on_event(self, kind: str, details: Mapping[str, Any]) -> None:
        """When the training records an event (`resumed`, `validation`, `checkpoint`), on rank 0."""

    def on_end(self, outcome: Outcome) -> None:
        """When the training has ended without an error, on every rank."""


CALLBACKS: Registry[Callable[..., Callback]] = Registry("callback", {})


class Callbacks:
    """A job's callbacks, called together; an exception in one stops the run or is logged."""

    def __init__(
        self,
        configs: Sequence[CallbackConfig],
        record: Callable[..., None] = lambda kind, **details: None,
    ) -> None:
        self.record = record
        """Keeps an event of the run; on rank 0."""
        self.entries = [(config, create_callback(config)) for config in configs]

    def start(self, view: TrainingView, step: int) -> None:
        self._call("on_start", step, view, step)

    def step(self, step: int, values: Values) -> dict[str, float]:
        """Return the callbacks' additions to a step's values.

        Raises:
            CallbackError: one returned no numbers, or names that exist.
        """
        added: dict[str, float] = {}
        shown = MappingProxyType(dict(values))
        for (config, _), found in self._call("on_step", step, step, shown):
            if found is None:
                continue
            is_named = isinstance(found, Mapping)
            numbers = is_named and all(isinstance(v, int | float) for v in found.values())
            taken = sorted(set(found) & ({*values} | {*added})) if is_named else []
            if taken or not numbers:
                text = (
                    f"callback {config.name}, on_step at step {step}: expected new names with "
                    f"numbers, got {found!r}"
                    + (f"; these names are taken: {', '.join(map(str, taken))}" if taken else "")
                )
                self._failed(config, step, text, None)
                continue
            added |= {str(name): float(value) for name, value in found.items()}
        return added

    def validation(self, step: int, values: Values) -> None:
        self._call("on_validation", step, step, MappingProxyType(dict(values)))

    def checkpoint(self, step: int, uri: str) -> None:
        self._call("on_checkpoint", step, step, uri)

    def event(self, kind: str, details: Mapping[str, Any]) -> None:
        self._call("on_event", details.get("step"), kind, MappingProxyType(dict(details)))

    def end(self, outcome: Outcome) -> None:
        self._call("on_end", outcome.step, outcome)

    def _call(
        self, method: str, step: Any, *arguments: Any
    ) -> list[tuple[tuple[CallbackConfig, Callback], Any]]:
        answers = []
        for entry in self.entries:
            config, callback = entry
            try:
                answers.append((entry, getattr(callback, method)(*arguments)))
            except (Exception, SystemExit) as error:  # an exit must not end the run quietly
                told = f"{type(error).__name__}: {error}{own_line(error)}"
                text = f"callback {config.name}, {method} at step {step}: {told}"
                self._failed(config, step, text, error)
        return answers

    def _failed(
        self, config: CallbackConfig, step: Any, text: str, error: BaseException | None
    ) -> None:
        """Stop the run, or log and record the failure, as the job says of this callback."""
        if config.on_error == "stop":
            raise CallbackError(text) from error
        logger.warning("%s; the run continues (on_error: log)", text)
        self.record(FAILED, step=step, cause=text)


def create_callback(config: CallbackConfig) -> Callback:
    """Make the callback that an entry of a job names: a plugin's, or a class of an imported module.

    Raises:
        ValueError: there is none of that name, it takes no such keywords, or is none.
    """
    module, colon, attribute = config.name.partition(":")
    make: Any
    if colon:
        if module not in sys.modules:
            raise ValueError(f"callback {config.name}: the module {module} was not imported")
        make = getattr(sys.modules[module], attribute, None)
        if make is None:
            raise ValueError(f"callback {config.name}: {module} has no {attribute}")
    else:
        make = CALLBACKS[config.name]
    try:
        callback = make(**config.config)
    except TypeError as error:
        raise ValueError(f"callback {config.name}: {error}") from error
    if not isinstance(callback, Callback):
        raise ValueError(
            f"callback {config.name} makes a {type(callback).__name__}, expected a subclass of "
            "pelagos.platform.callbacks.Callback"
        )
    return callback
