"""When a checkpoint that could not be written is tried again, and when the training gives up."""

import time

from pelagos.platform.config.schema import CheckpointConfig


class FailedSaves:
    """The saves that failed in a row. Its steps are the same on every rank; its clock is not."""

    def __init__(self, config: CheckpointConfig) -> None:
        self.config = config
        self.tries = 0
        self._first_step = 0
        self._first_time = 0.0
        self._next_step: int | None = None

    def failed(self, completed: int) -> None:
        """Note, after `completed` steps, that a save failed.

        It is tried again at once, then after 1, 2, 4, … steps, at most `checkpoint.every_steps`.
        """
        if self.tries == 0:
            self._first_step, self._first_time = completed, time.monotonic()
        pause = min(2 ** (self.tries - 1), self.config.every_steps) if self.tries else 0
        self.tries += 1
        self._next_step = completed + pause

    def begun(self) -> None:
        """Note that a save begins: nothing is due until its end is known."""
        self._next_step = None

    def succeeded(self) -> None:
        """Note that a checkpoint is there."""
        self.tries, self._next_step = 0, None

    def is_due(self, completed: int) -> bool:
        """Whether to try again after `completed` steps."""
        return self._next_step is not None and completed >= self._next_step

    def limit_reached(self, completed: int) -> str:
        """Return which limit ends the training, or an empty string."""
        steps, minutes = self.config.give_up_after_steps, self.config.give_up_after_minutes
        if steps is not None and completed - self._first_step >= steps:
            return f"checkpoint.give_up_after_steps: {steps}"
        if minutes is not None and time.monotonic() - self._first_time >= 60 * minutes:
            return f"checkpoint.give_up_after_minutes: {minutes:g}"
        return ""
