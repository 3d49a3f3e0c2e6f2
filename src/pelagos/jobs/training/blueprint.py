"""Everything that a training job builds, each part once.

The driver checks its blueprint before anything starts; each worker has one of its own.
"""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from pelagos import plugins
from pelagos.data_pipelines.store.readable import ReadableDataset
from pelagos.data_pipelines.streaming.batch import Batch
from pelagos.data_pipelines.streaming.mixtures.mixture import Mixture
from pelagos.data_pipelines.streaming.sampler import SampleIndex, Sampler
from pelagos.jobs.training.checks.network import check_network
from pelagos.jobs.training.description import describe_forecaster
from pelagos.jobs.training.mixtures import build_mixture, open_datasets, validation_sampler
from pelagos.jobs.training.networks import build_model, build_objective, options_over
from pelagos.jobs.training.streams import MixtureStreams
from pelagos.models.flops import flop_counter
from pelagos.models.objectives import Objective, create_objective
from pelagos.platform.callbacks import Callbacks
from pelagos.platform.config.checks import micro_batch_size
from pelagos.platform.config.marks import Trait
from pelagos.platform.config.meanings import has, values_of
from pelagos.platform.config.schema import TrainingJob
from pelagos.platform.protocols import TrainingParts

INITIAL_WEIGHTS = "initial-weights"
_COUNTED: dict[str, int] = {}


class Blueprint:
    """The parts of one job in one process, made when they are first asked for and then kept.

    Raises:
        ConfigError: some datasets cannot be opened; lists all of those.
        ValueError: from the other parts, where they do not fit.
    """

    def __init__(self, job: TrainingJob) -> None:
        self.job = job

    @cached_property
    def bare_objective(self) -> Objective:
        """The objective over the job's fields, before the data are known."""
        return build_objective(self.job)

    @cached_property
    def datasets(self) -> list[ReadableDataset]:
        """The datasets of the mixture, open."""
        return open_datasets(self.job)

    @cached_property
    def mixture(self) -> Mixture:
        """The training data."""
        return build_mixture(self.job, self.datasets, self.bare_objective)

    @cached_property
    def held_out(self) -> Mixture:
        """The validation data, normalised like the training data."""
        split, normalization = self.job.validation.split, self.mixture.normalization
        return build_mixture(self.job, self.datasets, self.bare_objective, split, normalization)

    @cached_property
    def objective_options(self) -> dict[str, Any]:
        """The objective's options: those that the job gives, and those that follow from the data."""
        return options_over(self.job, self.mixture, self.bare_objective)

    @cached_property
    def objective(self) -> Objective:
        """The objective over the data: given fields are in none of its default groups."""
        if self.objective_options == options_over(self.job):
            return self.bare_objective
        name, fields = self.job.objective.name, self.job.data.fields
        return create_objective(name, fields, **self.objective_options)

    @cached_property
    def validation_order(self) -> Sampler:
        """The order in which validation samples are drawn."""
        return validation_sampler(self.job, self.held_out)

    @cached_property
    def validation_samples(self) -> list[SampleIndex]:
        """The samples that every validation takes."""
        return self.validation_order.samples(0, self.job.validation.num_samples)

    @cached_property
    def model(self) -> nn.Module:
        """The network on the meta device: a strategy draws its weights."""
        with torch.device("meta"):
            return build_model(self.job, self.bare_objective)

    @cached_property
    def flops_per_sample(self) -> float:
        """Floating-point operations of forward and backward of one sample, on average.

        Counted on the meta device with torch's own rules (matrix products, convolutions, attention);
        nothing is allocated or computed. It also proves that the model takes the mixture's grid. A
        process counts the same network on the same grid once.
        """
        mixture, flops = self.mixture, []
        weights = mixture.weights or list(mixture.num_windows)
        for shape in mixture.distinct_shapes:
            # all that the operations of one sample depend on
            network = values_of(self.job, has(Trait.NETWORK))
            key = repr((network, mixture.shape_on(shape)))
            if key not in _COUNTED:
                _COUNTED[key] = self._count_on(shape)
            share = sum(w for w, s in zip(weights, mixture.grid_shapes, strict=True) if s == shape)
            flops.append(_COUNTED[key] * share)
        return float(sum(flops) / sum(weights))

    def _count_on(self, shape: tuple[int, ...]) -> int:
        with torch.device("meta"), flop_counter() as counter:
            torch.autograd.backward(self.example_loss(1, shape)(self.model))
        self.model.zero_grad(set_to_none=True)
        return int(counter.get_total_flops())

    def example_loss(
        self, batch_size: int, grid_shape: tuple[int, ...] | None = None
    ) -> Callable[[nn.Module], Tensor]:
        """Return a function that runs a model forward on made-up samples, on the model's device.

        `grid_shape` is one of the mixture's, the largest if none is given.
        """
        mixture, objective = self.mixture, self.objective
        shape = mixture.shape_on(grid_shape or mixture.grid_shape)

        def run(model: nn.Module) -> Tensor:
            with next(model.parameters()).device:
                batch = Batch(
                    frames=torch.zeros(batch_size, *shape),
                    times=torch.zeros(batch_size, mixture.window_length),
                    present=torch.ones(batch_size, len(mixture.fields), dtype=torch.bool),
                    dataset=torch.zeros(batch_size, dtype=torch.long),
                    trajectory=torch.zeros(batch_size, dtype=torch.long),
                    sample_seed=torch.zeros(batch_size, dtype=torch.long),
                    label=torch.zeros(batch_size, dtype=torch.long),
                )
            return objective.errors(model, batch).sum()

        return run

    @cached_property
    def streams(self) -> MixtureStreams:
        """The training stream and the validation samples."""
        return MixtureStreams(self.job, self.mixture, lambda: self.validation_order)

    def parts(self) -> TrainingParts:
        """Return the trainer's parts. The network is handed over: a strategy changes it."""
        job = self.job
        parts = TrainingParts(
            self.model,
            self.objective,
            self.streams,
            initial_weights=INITIAL_WEIGHTS if job.starts_from else None,
            description={"forecaster": self.description()},
            flops_per_sample=self.flops_per_sample,
            example_loss=self.example_loss(micro_batch_size(job)),
            callbacks=Callbacks(job.callbacks),
            check_description=functools.partial(check_network, job),
        )
        del self.model
        return parts

    def description(self) -> dict[str, Any]:
        """Return the JSON that rebuilds the trained model with its fields and normalisation."""
        return describe_forecaster(
            self.job, self.mixture, self.objective_options, self.objective.input_frames
        )


def build_parts(job: TrainingJob) -> TrainingParts:
    """Return the trainer's parts, in a worker."""
    plugins.load_for(job)  # the driver's own job: it was read, and its plugins imported, there
    return Blueprint(job).parts()


@contextmanager
def left_trainable(model: nn.Module) -> Iterator[None]:
    """Restores afterwards which parameters are trained."""
    before = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        yield
    finally:
        for parameter, is_trained in before:
            parameter.requires_grad_(is_trained)
