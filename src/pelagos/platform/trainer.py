"""The training loop: an ordinary function of (job, run, rank). Read `train` and `train_step` first.

It runs in one process, under torchrun, or in Ray Train workers, and does not know which. Ray,
MLflow and DeepSpeed are not imported here.
"""

import contextlib
import math
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from pelagos.infra.permanent_error import PermanentError
from pelagos.platform.callbacks import TrainingView
from pelagos.platform.config.checks import micro_batch_size
from pelagos.platform.config.schema import TrainingJob
from pelagos.platform.loss_sums import dataset_losses, sums_by_dataset
from pelagos.platform.meters import StepMeter
from pelagos.platform.optimization.optimizer import freeze, optimizer_factory, set_learning_rate
from pelagos.platform.optimization.schedules import lr_factor
from pelagos.platform.protocols import TrainingBatch, TrainingParts
from pelagos.platform.records.runs import Outcome, RunRecords
from pelagos.platform.records.states import State
from pelagos.platform.recovery.failures import mark
from pelagos.platform.strategies import Strategy, create_strategy
from pelagos.platform.strategy_choice import check_world, strategy_options
from pelagos.platform.tensor_layout import local_part
from pelagos.platform.training_state import TrainingState

GROUP_LOSS = "validation_group_loss/"
FIRST_STEP = "first_step"  # the event of a launch that has taken a step
BuildParts = Callable[[TrainingJob], TrainingParts]
StepObserver = Callable[[dict[str, float]], None]


class TrainingDiverged(PermanentError, FloatingPointError):
    """The loss or the gradient is no longer finite."""


def train(
    job: TrainingJob,
    run: RunRecords,
    build: BuildParts,
    storage_options: dict[str, Any],
    launch: str = "",
    on_step: StepObserver | None = None,
    until_step: int | None = None,
) -> Outcome:
    """Train to the end, to a stop request, or to an error; return how it ended.

    Args:
        job: the validated job.
        run: where its records go; a directory that every rank sees, or one on the driver's node.
        build: makes model, objective and streams; called once in each worker.
        storage_options: fsspec options of `checkpoint.uri`.
        launch: identifies this launch in the recorded outcome.
        on_step: called with every step's values, on each rank.
        until_step: stop, with a checkpoint, after that many steps; None: only at the end.
    """
    # 1. processes: the group exists already (Ray), or the strategy makes it (torchrun, single)
    if not job.resources.gpus_per_worker:
        torch.set_num_threads(job.resources.cpus_per_worker)
    parts = build(job)
    strategy = create_strategy(job.parallel.strategy, strategy_options(job, parts.example_loss))
    try:
        check_world(job, strategy.world_size)
        # 2. model and optimizer, then the newest checkpoint if there is one
        loop = TrainingLoop(job, run, parts, strategy, storage_options)
        start = loop.state.restore()
        loop.on_step = on_step
        # 3. the steps, and the end of a save that runs alongside, also if they fail
        try:
            parts.callbacks.start(loop.view(), start)
            with parts.streams.open(start, strategy.data_rank, strategy.data_world_size) as stream:
                outcome = loop.run_steps(start, stream, until_step)
        except BaseException as error:
            is_gone = strategy.world_size > 1 and not dist.is_initialized()
            mark(error, loop.completed + 1, group_is_gone=is_gone)
            with contextlib.suppress(Exception):  # the first error is the one to report
                loop.state.checkpoints.wait()
            raise
        loop.state.checkpoints.wait()
        parts.callbacks.end(outcome)
        # 4. every rank is done before any leaves: gloo aborts when peers vanish
        if strategy.rank == 0:
            run.write_outcome(outcome, launch)
        strategy.barrier()
        return outcome
    finally:
        strategy.close()


class TrainingLoop:
    """The state of one worker between steps."""

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
        self.module = parts.model
        freeze(self.module, job.optimizer.frozen)
        make_optimizer = optimizer_factory(job.optimizer, self.module)
        self.model = strategy.prepare(self.module, make_optimizer)
        self.state = TrainingState(job, run, parts, strategy, storage_options)
        self.on_step: StepObserver | None = None
        self.completed = 0
        self.save_failed = False  # on any rank, as of the last step's reduction
        if strategy.rank == 0:
            parts.callbacks.record = run.append_event
        self.meter = StepMeter(
            job.data.global_batch_size, strategy.world_size, parts.flops_per_sample, strategy.device
        )

    # -- steps ------------------------------------------------------------------------------------

    def run_steps(self, start: int, stream: Any, until_step: int | None = None) -> Outcome:
        """Run steps `start` up to the end, `until_step` or a stop request; save at the end of each."""
        total = self.job.schedule.total_steps
        last = total if until_step is None else min(until_step, total)
        completed = self.completed = start
        while completed < last and not self.state.validations.reason_to_stop:
            self.meter.start(stream.data_wait_seconds)
            batch = next(stream).to(self.strategy.device)
            values, stop = self.train_step(completed, batch)
            completed = self.completed = completed + 1
            values |= self.meter.finish(stream.data_wait_seconds)
            values |= {f"data_{name}": count for name, count in stream.read_counts.items()}
            values |= self.parts.callbacks.step(completed, values)
            self._log_step(completed, values)
            if completed == start + 1 and self.strategy.rank == 0:
                self.run.append_event(FIRST_STEP, step=completed)
            if self.on_step is not None:
                self.on_step(values)
            if completed % self.job.validation.every_steps == 0 or completed == total:
                self.validate(completed)
            is_last = completed == last or stop or bool(self.state.validations.reason_to_stop)
            if self.save_failed and not is_last:
                self.state.settle(completed)
            if is_last or self.state.is_due(completed):
                self.save(completed, is_last)
            if stop and completed < total:
                return Outcome(State.STOPPED, completed, "stop requested")
        if reason := self.state.validations.reason_to_stop:
            return Outcome(State.FINISHED, completed, reason)
        if completed < total:
            return Outcome(State.STOPPED, completed, f"pause requested after step {last}")
        return Outcome(State.FINISHED, completed)

    def train_step(self, step: int, batch: TrainingBatch) -> tuple[dict[str, float], bool]:
        """Take optimizer step `step` (counted from 0); return its values and whether to stop.

        The loss is mean over groups g of  sum_b errors[b, g] / sum_b magnitudes[b, g], of the groups
        that have samples (`objective.mean_over_groups`). With scope
        `global` the sums run over the global batch: denominators depend on labels only, so they are
        summed over ranks before the first forward pass and each micro-batch adds its exact share.
        With scope `micro_batch` each micro-batch forms its own ratio (the papers' behaviour).
        """
        job, strategy, objective = self.job, self.strategy, self.parts.objective
        torch.manual_seed(_step_seed(job.seed, step, strategy.data_rank))
        lr = set_learning_rate(strategy.optimizer, lr_factor(step, job.schedule), step)
        micro = micro_batch_size(job)
        num_micro = batch.frames.shape[0] // micro
        magnitudes = objective.magnitudes(batch)
        denominator = strategy.sum_over_data(magnitudes.sum(dim=0))
        errors = torch.empty_like(magnitudes)
        local_loss = torch.zeros((), device=strategy.device)
        for index in range(num_micro):
            part = slice(index * micro, (index + 1) * micro)
            is_last = index == num_micro - 1
            with strategy.micro_step(is_last):
                micro_errors = objective.errors(self.model, batch.slice(part.start, part.stop))
                if objective.loss_scope == "global":
                    # gradients are averaged over the shares of the batch: each is scaled back up
                    share = objective.mean_over_groups(micro_errors.sum(dim=0), denominator)
                    loss = share * strategy.data_world_size
                else:
                    own = magnitudes[part].sum(dim=0)
                    loss = objective.mean_over_groups(micro_errors.sum(dim=0), own) / num_micro
                strategy.backward(loss)
            errors[part] = micro_errors.detach()
            local_loss += loss.detach()
        values, stop = self._reduce_values(batch, errors, magnitudes, local_loss)
        if not math.isfinite(values["loss"]):
            raise TrainingDiverged(self._diverged(step, f"the loss is {values['loss']}"))
        norm = strategy.step()
        values |= self._check_gradient(step, norm) | {"lr": lr}
        if self.state.average is not None and math.isfinite(norm):
            self.state.average.update(strategy.weights(), step)
        return values, stop

    def _check_gradient(self, step: int, norm: float) -> dict[str, float]:
        """Return the logged values of the gradient; an overflow under fp16 only lowers the scale.

        Raises:
            TrainingDiverged: the norm is not finite, and no loss scale can fix that.
        """
        scale = self.strategy.loss_scale
        if scale is None or scale.is_exhausted:
            if not math.isfinite(norm):
                raise TrainingDiverged(self._diverged(step, f"the gradient norm is {norm}"))
            return {"gradient_norm": norm}
        overflowed = not math.isfinite(norm)
        logged = {"loss_scale": scale.scale, "skipped": float(overflowed)}
        return logged if overflowed else {**logged, "gradient_norm": norm}

    def _reduce_values(
        self, batch: TrainingBatch, errors: Tensor, magnitudes: Tensor, local_loss: Tensor
    ) -> tuple[dict[str, float], bool]:
        """Sum everything that is logged over ranks in one reduction, with the ranks' flags.

        These are a stop request, which is returned, and a save that failed (`save_failed`).
        """
        names = self.parts.streams.dataset_names
        flags = torch.tensor(
            [float(self.run.stop_requested()), float(self.state.checkpoints.has_failed)],
            dtype=torch.double,
            device=errors.device,
        )
        sums = sums_by_dataset(batch.dataset, errors, magnitudes, len(names))
        flat = torch.cat([sums.flatten(), local_loss.double()[None], flags])
        flat = self.strategy.sum_over_data(flat)
        if self.strategy.data_group is not None:  # every rank stops, whichever was asked
            flat[-2:] = self.strategy.all_reduce_sum(flat[-2:])
        flat = flat.cpu()
        sums = flat[:-3].reshape(sums.shape)
        loss = float(flat[-3]) / self.strategy.data_world_size
        losses = dataset_losses(self.parts.objective, sums, names)
        self.save_failed = bool(flat[-1] > 0)
        return {"loss": loss, **losses}, bool(flat[-2] > 0)

    # -- validation, checkpoints ------------------------------------------------------------------

    @torch.no_grad()
    def validate(self, completed: int) -> None:
        """Log the loss over the fixed validation samples, always over the whole set.

        It is the loss of the averaged weights where the run keeps an average: those that `best`,
        `evaluate`, `export` and the registered model use.
        """
        begin = time.perf_counter()
        names = self.parts.streams.dataset_names
        with (
            self.state.average.in_place_of_weights(self.strategy)
            if self.state.average is not None
            else contextlib.nullcontext()
        ):
            sums = self._validation_sums()
        errors, magnitudes = sums.sum(dim=1)
        loss = float(self.parts.objective.mean_over_groups(errors, magnitudes))
        objective = self.parts.objective
        of_datasets = dataset_losses(objective, sums, names, "validation_loss")
        self.state.validations.add(
            completed, loss, {n.partition("/")[2]: v for n, v in of_datasets.items()}
        )
        if self.strategy.rank == 0:
            values = {"validation_loss": loss, **of_datasets}
            if len(objective.group_names) > 1:
                groups = zip(
                    objective.group_names, errors.tolist(), magnitudes.tolist(), strict=True
                )
                values |= {f"{GROUP_LOSS}{name}": e / m for name, e, m in groups if m > 0}
            weights = "model" if self.state.average is None else "ema"
            seconds = time.perf_counter() - begin
            self._event("validation", step=completed, weights=weights, seconds=seconds, **values)
            self.parts.callbacks.validation(completed, values)

    def _validation_sums(self) -> Tensor:
        """Return `[2, dataset, group]`: errors and magnitudes over all validation samples.

        Every rank runs as many forward passes, because sharded strategies communicate in each.
        """
        names = self.parts.streams.dataset_names
        sums = torch.zeros(2, len(names), len(self.parts.objective.group_names), dtype=torch.double)
        self.module.eval()
        share, shares = self.strategy.data_rank, self.strategy.data_world_size
        for unplaced, counted in self.parts.streams.validation(share, shares):
            batch = unplaced.to(self.strategy.device)
            errors = self.parts.objective.errors(self.module, batch)[:counted]
            magnitudes = self.parts.objective.magnitudes(batch)[:counted]
            dataset = batch.dataset[:counted]
            sums += sums_by_dataset(dataset, errors, magnitudes, len(names)).cpu()
        self.module.train()
        return self.strategy.sum_over_data(sums.to(self.strategy.device)).cpu()

    def save(self, completed: int, is_last: bool) -> None:
        """Write the checkpoint of `completed` steps; one that cannot be written is tried again."""
        if is_last:
            self.state.save_last(completed)
        else:
            self.state.save(completed)

    def _log_step(self, completed: int, values: dict[str, float]) -> None:
        if self.strategy.rank == 0:
            epoch = completed * self.job.data.global_batch_size / self.parts.streams.epoch_samples
            self.run.append_metrics({"step": completed, "epoch": epoch, **values})

    def view(self) -> TrainingView:
        """Return the callbacks' view of this training."""
        rank, world_size = self.strategy.rank, self.strategy.world_size
        return TrainingView(self.job, rank, world_size, self._local_weights)

    def _local_weights(self) -> dict[str, Tensor]:
        return {name: local_part(weight) for name, weight in self.strategy.weights().items()}

    def _event(self, kind: str, **details: Any) -> None:
        """Record an event and notify the callbacks."""
        self.run.append_event(kind, **details)
        self.parts.callbacks.event(kind, details)

    def _diverged(self, step: int, what: str) -> str:
        what = f"step {step + 1}: {what}; this step did not change the weights"
        saved = self.state.checkpoints.latest_step()
        if not saved:
            return (
                f"{what}; no checkpoint was saved. Start a new run with a lower optimizer.lr, a "
                "longer schedule.warmup_steps, or parallel.precision: fp32."
            )
        return (
            f"{what}; the checkpoint of step {saved} is the last good one. Continue from it, or an "
            f"earlier one, with other settings: `pelagos resume {self.job.name} --from {saved} "
            f"optimizer.lr={self.job.optimizer.lr / 10:g}` (or schedule.warmup_steps, "
            "optimizer.clip_norm, parallel.precision=fp32)."
        )


def _step_seed(seed: int, step: int, data_rank: int) -> int:
    """Return the seed for a model's random numbers in a step (dropout): no state to save or restore."""
    return ((seed * 1_000_003 + step) * 65_537 + data_rank) % 2**64  # torch takes 64 bits
