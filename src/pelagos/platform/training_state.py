"""What a training saves and restores: the checkpoint of a step, and how a failed save goes on.

A save runs beside the steps, and its threads end at different times on different ranks. So a
failure is acted upon at an agreed step only: the step's one reduction carries a flag (`has_failed`),
and after a step where any rank set it, every rank calls `settle`.
"""

import functools
import logging
import re
import time
from dataclasses import asdict
from typing import Any

from pelagos.platform.checkpoint import CheckpointError, CheckpointStore, SaveReport, load_newest
from pelagos.platform.checkpoint.trainer_state import streams_of
from pelagos.platform.config.schema import TrainingJob
from pelagos.platform.failed_saves import FailedSaves
from pelagos.platform.protocols import TrainingParts
from pelagos.platform.records.runs import RunRecords, check_identity
from pelagos.platform.strategies import Strategy
from pelagos.platform.strategies.base import TensorState
from pelagos.platform.validation_history import ValidationHistory
from pelagos.platform.weight_average import WeightAverage

logger = logging.getLogger(__name__)

# Events.
SET_ASIDE = "checkpoint_set_aside"
SAVE_FAILED = "checkpoint_failed"
# Between the tries of the last save, after which there is no other.
LAST_PAUSES_SECONDS = (1.0, 3.0, 9.0)


class TrainingState:
    """The weights' average, the validations and the checkpoints of one worker."""

    def __init__(
        self,
        job: TrainingJob,
        run: RunRecords,
        parts: TrainingParts,
        strategy: Strategy,
        storage_options: dict[str, Any],
    ) -> None:
        self.job = job
        self.run = run
        self.parts = parts
        self.strategy = strategy
        self.storage_options = storage_options
        self.average = self._new_average()
        self.checkpoints = CheckpointStore(
            run.checkpoint_uri, storage_options, job.health.collective_timeout_seconds
        )
        self.validations = ValidationHistory(job.schedule.stop_when)
        self.failures = FailedSaves(job.checkpoint)
        self._saving_step = 0
        self._has_any = False  # checkpoints, as far as rank 0 knows

    # -- saving -----------------------------------------------------------------------------------

    def is_due(self, completed: int) -> bool:
        """Whether a checkpoint is written after `completed` steps."""
        is_regular = completed % self.job.checkpoint.every_steps == 0
        return is_regular or self.failures.is_due(completed)

    def save(self, completed: int) -> None:
        """Write the checkpoint of `completed` steps, then delete those no longer kept.

        One that cannot be written is tried again later.

        Raises:
            CheckpointError: it cannot be written, and the training may not go on without.
        """
        self.settle(completed)
        try:
            self._begin(completed)
        except CheckpointError as error:
            self._go_on(completed, _if_unwritten(error))

    def settle(self, completed: int) -> None:
        """Wait for the save on its way, and decide what follows if it failed; all ranks together.

        Raises:
            CheckpointError: it failed, and the training may not go on without.
        """
        is_saving = self.checkpoints.is_saving
        if error := self._outcome():
            self._go_on(completed, error)
        elif is_saving:
            self.failures.succeeded()

    def save_last(self, completed: int) -> None:
        """Write the last checkpoint and wait for it, trying a few times.

        Raises:
            CheckpointError: it cannot be written.
        """
        error = self._outcome()  # of an earlier step's
        if error is not None:
            self._tell(error)
        for pause in (0.0, *LAST_PAUSES_SECONDS):
            if error is not None:
                self._give_up_older(error)
            time.sleep(pause)
            error = self._begin_and_wait(completed)
            if error is None:
                return
            self._tell(error)
        assert error is not None
        raise error

    def _begin_and_wait(self, completed: int) -> CheckpointError | None:
        try:
            self._begin(completed)
        except CheckpointError as error:
            return _if_unwritten(error)
        return self._outcome()

    def _begin(self, completed: int) -> None:
        self._saving_step = completed
        best = self.validations.saved(completed)
        keep = best if self.job.checkpoint.keep_best else set()
        self.failures.begun()
        self.checkpoints.save(
            completed,
            self._tensors(),
            self._trainer_state(completed),
            asynchronous=self.job.checkpoint.asynchronous,
            on_complete=functools.partial(self._saved, keep),
        )

    def _outcome(self) -> CheckpointError | None:
        """Wait for the save on its way; return why it could not be written."""
        try:
            self.checkpoints.wait()
        except CheckpointError as error:
            return _if_unwritten(error)
        return None

    def _go_on(self, completed: int, error: CheckpointError) -> None:
        """Record a failed save and plan the next try.

        Raises:
            CheckpointError: `error`, if there is no checkpoint to fall back on, or a limit is reached.
        """
        self._tell(error)
        self.failures.failed(completed)
        # the clock and the listing of rank 0 decide for all
        group = self.checkpoints.all_ranks()
        if why := group.from_rank_0(self._must_end(completed) if group.rank == 0 else ""):
            raise CheckpointError(
                f"{error} The training does not go on without it: {why}"
            ) from error
        self._give_up_older(error)

    def _must_end(self, completed: int) -> str:
        try:
            has_any = bool(self.checkpoints.complete())
        except (OSError, ValueError):  # out of reach, which may be why the save failed
            has_any = self._has_any
        return self.failures.limit_reached(completed) if has_any else "there is no other"

    def _tell(self, error: CheckpointError) -> None:
        """Record a save that failed. Its step is not the best one: there is no checkpoint of it."""
        self.validations.not_saved()
        if self.strategy.rank == 0:
            self._event(SAVE_FAILED, step=self._saving_step, cause=str(error))

    def _give_up_older(self, error: CheckpointError) -> None:
        """Make room, if that is what was missing: by what the next checkpoint would replace."""
        if not error.needs_room or self.strategy.rank != 0:
            return
        best = self.validations.best
        keep = {best["step"]} if best and self.job.checkpoint.keep_best else set()
        try:
            self.checkpoints.prune(max(1, self.job.checkpoint.keep_last - 1), keep)
        except (OSError, ValueError) as failure:  # the next try may find room all the same
            logger.warning("cannot delete older checkpoints: %s", failure)

    def _saved(self, keep: set[int], report: SaveReport) -> None:
        """Record a checkpoint that is complete; only then delete older ones."""
        if self.strategy.rank != 0:
            return
        self._has_any = True
        self._event(
            "checkpoint",
            step=report.step,
            stall_seconds=report.stall_seconds,
            background_seconds=report.background_seconds,
            bytes_per_second=report.bytes_per_second,
            num_bytes=report.num_bytes,
            uri=self.checkpoints.uri,
        )
        self.parts.callbacks.checkpoint(report.step, self.checkpoints.uri)
        self.checkpoints.prune(self.job.checkpoint.keep_last, keep)

    # -- restoring --------------------------------------------------------------------------------

    def restore(self) -> int:
        """Load the newest whole checkpoint, if any; return the number of completed steps.

        Raises:
            CheckpointError: each is damaged, or this training cannot load it.
            RunError: it is of another run.
        """
        found = load_newest(self.checkpoints, self._tensors, self.job.checkpoint.new_parameters)
        step, lost = 0, 0
        if found is None and self.parts.initial_weights is not None:
            self._start_from(self.parts.initial_weights)
        if found is not None:
            self._has_any = True
            step, report = found.step, found.report
            state = report.trainer_state
            check_identity(self.run, self.checkpoints.uri, step, state)
            self.parts.check_description(state)
            self.parts.streams.check_state(streams_of(state, self.checkpoints.uri))
            self.strategy.load_state(found.tensors)
            if self.average is not None:
                prefix = "ema."
                begun = [
                    n.removeprefix(prefix) for n in report.kept_initial if n.startswith(prefix)
                ]
                self.average.begin_with(self.strategy.weights(), begun)
            if self.strategy.loss_scale is not None and "loss_scale" in state:
                self.strategy.loss_scale.load(state["loss_scale"])
            self.validations.load(state)
            if self.job.checkpoint.keep_best:
                self.validations.choose_among(found.steps)
        if self.strategy.rank == 0:
            lost = self.run.keep_metrics_until(step)
            if found is not None:
                for one in found.set_aside:
                    self._event(SET_ASIDE, **asdict(one))
                self._event(
                    "resumed",
                    step=step,
                    steps_redone=lost,
                    kept_initial=report.kept_initial,
                    not_taken=report.not_taken,
                )
        self.strategy.barrier()
        return step

    def _start_from(self, name: str) -> None:
        """Load the weights that were made ready for the first step."""
        store = CheckpointStore(
            f"{self.checkpoints.uri}/{name}",
            self.storage_options,
            self.job.health.collective_timeout_seconds,
        )
        tensors = self.strategy.state()
        weights = {key: t for key, t in tensors.items() if key.startswith("model.")}
        store.load(0, weights, may_lack=_fresh_parameters)
        self.strategy.load_state(tensors)
        self.average = self._new_average()

    def _new_average(self) -> WeightAverage | None:
        decay = self.job.ema_decay
        return WeightAverage(self.strategy.weights(), decay) if decay else None

    def _tensors(self) -> TensorState:
        tensors = self.strategy.state()
        if self.average is not None:
            tensors |= {f"ema.{name}": t for name, t in self.average.tensors.items()}
        return tensors

    def _trainer_state(self, completed: int) -> dict[str, Any]:
        return {
            "step": completed,
            "samples": completed * self.job.data.global_batch_size,
            "seed": self.job.seed,
            "run": self.run.identities[0],
            **self.validations.state(),
            "streams": self.parts.streams.state(),
            **({"loss_scale": scale.state()} if (scale := self.strategy.loss_scale) else {}),
            **self.parts.description,
        }

    def _event(self, kind: str, **details: Any) -> None:
        """Record an event and notify the callbacks."""
        self.run.append_event(kind, **details)
        self.parts.callbacks.event(kind, details)


def _if_unwritten(error: CheckpointError) -> CheckpointError:
    """Return the error of a save that failed on every rank; raise one that a callback made."""
    if not error.is_unwritten:
        raise error
    return error


def _fresh_parameters(state: dict[str, Any]) -> list[str]:
    """Return expressions of the parameters that weights made ready do not have: their heads are new."""
    return [f"^{re.escape(parameter)}$" for parameter in state.get("fresh", [])]
