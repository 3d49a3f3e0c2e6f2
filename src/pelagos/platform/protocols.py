"""The platform's protocols for models, objectives and data streams. It knows them only as these."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from pelagos.platform.callbacks import Callbacks


class TrainingBatch(Protocol):
    """One rank's samples of one step: `frames [batch, frame, channel, y, x]` and their meaning."""

    frames: Tensor
    dataset: Tensor  # [batch] int64: index of each sample's dataset in the mixture

    def to(self, device: torch.device) -> "TrainingBatch":
        """Return the batch on `device`."""

    def slice(self, start: int, stop: int) -> "TrainingBatch":
        """Return samples `start` to `stop`."""


class Objective(Protocol):
    """A loss that is a mean over field groups of sum(errors) / sum(magnitudes) over samples.

    Of the groups that have samples.
    """

    @property
    def loss_scope(self) -> Literal["global", "micro_batch"]:
        """The set of samples over which the ratio is formed."""

    @property
    def group_names(self) -> tuple[str, ...]:
        """Names of the groups, in the order of the last axis below."""

    def magnitudes(self, batch: Any) -> Tensor:
        """Return each sample's denominators, `[batch, group]`; depends on labels only."""

    def mean_over_groups(self, errors: Tensor, magnitudes: Tensor) -> Tensor:
        """Return the loss of errors and magnitudes summed over samples, both `[group]`.

        Groups of magnitude 0 have no samples and are left out.
        """

    def errors(self, model: nn.Module, batch: Any) -> Tensor:
        """Run the model once; return each sample's numerators, `[batch, group]`."""


class Stream(Protocol):
    """This rank's batches, one per step, in the order that (config, seed, step, slot) fixes."""

    data_wait_seconds: float

    @property
    def read_counts(self) -> dict[str, float]:
        """This rank's requests to object stores and the node's cache so far, by name."""

    def __next__(self) -> TrainingBatch:
        """Return the batch of the next step."""

    def __enter__(self) -> "Stream":
        """Return itself; leaving the context stops the background reading."""

    def __exit__(self, *_: object) -> None:
        """Stop the background reading."""


class StreamFactory(Protocol):
    """Opens the training stream at a step, and the validation batches."""

    dataset_names: tuple[str, ...]
    epoch_samples: int

    def open(self, start_step: int, data_rank: int, data_world_size: int) -> Stream:
        """Return the stream of one share of each batch, from `start_step` on."""

    def validation(
        self, data_rank: int, data_world_size: int
    ) -> Iterator[tuple[TrainingBatch, int]]:
        """Return one share of the fixed validation samples, in as many batches on every rank.

        Each with the number of its first samples that count.
        """

    def state(self) -> dict[str, Any]:
        """Return the identity of the sample order (small, JSON)."""

    def check_state(self, state: dict[str, Any]) -> None:
        """Raise `ValueError` where `state`, from a checkpoint, is of another sample order."""


@dataclass(frozen=True)
class TrainingParts:
    """The parts that a job builds for the trainer in each worker."""

    model: nn.Module
    """On the meta device: the strategy gives each rank its part of the initial weights."""
    objective: Objective
    streams: StreamFactory
    description: dict[str, Any] = field(default_factory=dict)
    """JSON stored in each checkpoint: what rebuilds model, fields and normalisation."""
    initial_weights: str | None = None
    """Name, below the run's checkpoints, of the store whose step 0 holds the weights to start from;
    the parameters that it lists as `fresh` keep their own initial values."""
    flops_per_sample: float | None = None
    """Floating-point operations of forward and backward of one sample."""
    example_loss: Callable[[nn.Module], Tensor] | None = None
    """Runs one micro-batch of made-up samples forward: what a memory budget measures."""
    callbacks: Callbacks = field(default_factory=lambda: Callbacks(()))
    """What watches the training."""
    check_description: Callable[[dict[str, Any]], None] = lambda _: None
    """Raises `ValueError` where a checkpoint's state is of a network that computes otherwise."""
