"""Building the parts of a training job from its configuration, and refusing early what cannot fit."""

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from itertools import chain, count
from typing import Any

import torch
from torch import Tensor, nn

from pelagos import plugins
from pelagos.data_pipelines.store import CacheSettings, DatasetError
from pelagos.data_pipelines.store.readable import ReadableDataset
from pelagos.data_pipelines.streaming.batch import Batch
from pelagos.data_pipelines.streaming.loader import StreamLoader, load_batch
from pelagos.data_pipelines.streaming.mixtures.curriculum import Weight, largest_weight
from pelagos.data_pipelines.streaming.mixtures.mixture import Mixture
from pelagos.data_pipelines.streaming.mixtures.mixture_entry import MixtureEntry
from pelagos.data_pipelines.streaming.normalization import Normalization
from pelagos.data_pipelines.streaming.sampler import SampleIndex, Sampler
from pelagos.jobs.training.class_labels import drawn_label_problems, label_problems
from pelagos.jobs.training.datasets import open_entry
from pelagos.jobs.training.datasets import options_for as options_for
from pelagos.jobs.training.field_checks import field_problems
from pelagos.jobs.training.network_checks import check_network
from pelagos.jobs.training.networks import any_network, objective_options
from pelagos.jobs.training.networks import build_model as build_model
from pelagos.jobs.training.networks import build_network as build_network
from pelagos.jobs.training.networks import build_objective as build_objective
from pelagos.jobs.training.objective_options import option_problems
from pelagos.models.flops import flop_counter
from pelagos.models.objectives import OBJECTIVES, Segmentation
from pelagos.models.registry import (
    explicit_config,
)
from pelagos.platform.callbacks import Callbacks, create_callback
from pelagos.platform.config.checks import micro_batch_size
from pelagos.platform.config.load import ConfigError, Problem
from pelagos.platform.config.marks import Trait
from pelagos.platform.config.meanings import has, values_of
from pelagos.platform.config.schema import DataConfig, TrainingJob
from pelagos.platform.optimization.optimizer import freeze, group_settings
from pelagos.platform.optimization.optimizer_kinds import find_optimizer
from pelagos.platform.optimization.schedules import SCHEDULES
from pelagos.platform.protocols import Stream, TrainingParts
from pelagos.platform.strategies import check_strategy
from pelagos.platform.strategy_choice import strategy_options

INITIAL_WEIGHTS = "initial-weights"
VALIDATION_SEED_OFFSET = 1_000_003
TRAINING_SPLIT = "train"
_COUNTED: dict[str, int] = {}


def open_datasets(job: TrainingJob) -> list[ReadableDataset]:
    """Open the datasets of the job's mixture. Raises `ConfigError` with all that cannot be."""
    datasets, problems = [], []
    cache = CacheSettings(**job.data.cache.model_dump()) if job.data.cache else None
    for index, entry in enumerate(job.data.mixture):
        try:
            datasets.append(open_entry(entry, job.storage, cache))
        except (DatasetError, OSError) as error:
            problems.append(Problem(("data", "mixture", index, "uri"), str(error)))
    if problems:
        raise ConfigError(f"job {job.name}", problems)
    return datasets


def build_mixture(
    job: TrainingJob,
    datasets: Sequence[ReadableDataset],
    split: str = TRAINING_SPLIT,
    normalization: Normalization | None = None,
) -> Mixture:
    """Return the job's mixture of one split; `normalization` replaces the job's own.

    `data.max_trajectories` limits the training split alone. Where weights change with the step,
    other splits take the largest of each.

    Raises:
        ValueError: with every reason why the datasets do not fit.
    """
    most = job.data.max_trajectories if split == TRAINING_SPLIT else None
    entries = []
    for dataset, entry in zip(datasets, job.data.mixture, strict=True):
        weight: Weight | None = entry.weight
        if weight is not None and split != TRAINING_SPLIT:
            weight = largest_weight(weight)
        crop = entry.crop or job.data.crop
        entries.append(MixtureEntry(dataset, split, weight, entry.offset, entry.repeat, most, crop))
    objective = build_objective(job)
    ones = job.data.absent_fields == "ones"
    if ones and objective.call not in ("frame", "window"):
        raise ValueError(
            f"data.absent_fields: got ones, but {job.objective.name} forecasts no fields, whose "
            f"channels would need filling: use masked"
        )
    mixture = Mixture(
        entries,
        job.data.fields,
        objective.frame_windows,
        normalization or _normalization(job.data),
        absent_value=1.0 if ones else 0.0,
        absent_counts=ones and split == TRAINING_SPLIT,  # what is measured are the data's own
    )
    if ones and mixture.is_complete:
        raise ValueError(
            f"data.absent_fields: got ones, but no dataset lacks any of {list(job.data.fields)}: "
            f"leave it out"
        )
    if normalization is None and isinstance(objective, Segmentation):
        # classes are whole numbers, not values to be scaled
        kept = mixture.normalization.unscaled(objective.label_field)
        return Mixture(entries, job.data.fields, objective.frame_windows, kept)
    return mixture


def _normalization(data: DataConfig) -> Normalization | None:
    if data.normalization == "statistics":
        return None  # pooled by the mixture itself
    if data.normalization == "none":
        return Normalization.identity(data.fields)
    if data.normalization == "source":
        raise ValueError("data.normalization: source was not replaced by the source's constants")
    return Normalization.constants(data.fields, data.normalization.mean, data.normalization.std)


def validation_sampler(job: TrainingJob, held_out: Mixture) -> Sampler:
    """Return the order in which a job's validation samples are drawn."""
    seed = job.seed + VALIDATION_SEED_OFFSET
    return Sampler(held_out, seed, version=job.data.order_version)


class MixtureStreams:
    """The training stream and the fixed validation samples of a job's mixture."""

    def __init__(self, job: TrainingJob) -> None:
        self.job = job
        self.datasets = open_datasets(job)
        self.mixture = build_mixture(job, self.datasets)
        self.sampler = Sampler(
            self.mixture,
            job.seed,
            job.data.global_batch_size,
            job.data.run_length,
            job.data.order_version,
        )
        self.dataset_names = unique_names([e.dataset.spec.name for e in self.mixture.entries])
        self.epoch_samples = self.mixture.num_samples
        self._validation: Sampler | None = None

    def open(self, start_step: int, data_rank: int, data_world_size: int) -> Stream:
        return StreamLoader(
            self.mixture,
            self.sampler,
            global_batch_size=self.job.data.global_batch_size,
            rank=data_rank,
            world_size=data_world_size,
            start_step=start_step,
            num_threads=self.job.data.num_threads,
            prefetch_steps=self.job.data.prefetch_steps,
            stop_step=self.job.schedule.total_steps,
        )

    def validation(self, data_rank: int, data_world_size: int) -> Iterator[tuple[Batch, int]]:
        """Return one of so many shares: every so many-th sample of one fixed list.

        Where the list does not divide, a rank repeats its last sample, which then does not count.
        Samples of grids of other shapes come in batches of their own, as many on every rank.
        """
        if self._validation is None:
            held_out = build_mixture(
                self.job, self.datasets, self.job.validation.split, self.mixture.normalization
            )
            self._validation = validation_sampler(self.job, held_out)
        drawn = self._validation.samples(0, self.job.validation.num_samples)
        mixture, size = self._validation.mixture, micro_batch_size(self.job)
        for shape in mixture.distinct_shapes:
            whole = [s for s in drawn if mixture.grid_shapes[s.dataset] == shape]
            own = whole[data_rank::data_world_size]
            missing = -(-len(whole) // data_world_size) - len(own)
            samples = [*own, *(own or whole)[-1:] * missing]
            for start in range(0, len(samples), size):
                batch = load_batch(mixture, samples[start : start + size])
                yield batch, max(0, min(size, len(own) - start))

    def state(self) -> dict[str, Any]:
        return self.sampler.state_dict()

    def check_state(self, state: dict[str, Any]) -> None:
        self.sampler.check_state(state)


def unique_names(names: Sequence[str]) -> tuple[str, ...]:
    """Return the names with a number behind those that come more than once, none like another.

    >>> unique_names(["a", "b", "a"]), unique_names(["a", "a", "a-1"])
    (('a-1', 'b', 'a-2'), ('a-2', 'a-3', 'a-1'))
    """
    taken = {name for name in names if names.count(name) == 1}
    found: list[str] = []
    for name in names:
        if name in taken and name not in found:
            found.append(name)
            continue
        numbered = (f"{name}-{number}" for number in count(1))
        found.append(next(n for n in numbered if n not in taken))
        taken.add(found[-1])
    return tuple(found)


def build_parts(job: TrainingJob) -> TrainingParts:
    """Return what the trainer needs, in a worker."""
    plugins.load_for(job)  # the driver's own job: it was read, and its plugins imported, there
    with torch.device("meta"):
        model = build_model(job)
    streams = MixtureStreams(job)
    objective = build_objective(job, streams.mixture)
    return TrainingParts(
        model,
        objective,
        streams,
        initial_weights=INITIAL_WEIGHTS if job.starts_from else None,
        description={"forecaster": describe_forecaster(job, streams.mixture)},
        flops_per_sample=count_flops(job, streams.mixture),
        example_loss=example_loss(job, streams.mixture, micro_batch_size(job)),
        callbacks=Callbacks(job.callbacks),
        check_description=functools.partial(check_network, job),
    )


def describe_forecaster(job: TrainingJob, mixture: Mixture) -> dict[str, Any]:
    """Return the JSON that rebuilds the trained model with its fields and normalisation."""
    return {
        "model": {
            "name": job.model.name,
            "config": explicit_config(job.model.name, job.model.config),
        },
        "objective": {"name": job.objective.name, **objective_options(job, mixture)},
        **({"lora": job.adapter.model_dump()} if job.adapter else {}),
        "fields": list(job.data.fields),
        **({"plugins": wanted} if (wanted := plugins.wanted_by_model(job)) else {}),
        "absent_value": mixture.absent_value,
        **({"masks": mixture.masks} if mixture.masks else {}),
        **({"patch": patch} if (patch := _patch_of(mixture)) else {}),
        "normalization": mixture.normalization.to_dict(),
        "datasets": [
            {
                "uri": entry.dataset.uri,
                "name": entry.dataset.spec.name,
                "fingerprint": entry.dataset.fingerprint,
                "offset": dict(entry.offset),
            }
            for entry in mixture.entries
        ],
    }


def _patch_of(mixture: Mixture) -> list[int]:
    """Return the grid of the largest crops that a network was trained on; nothing without crops."""
    if all(entry.crop is None for entry in mixture.entries):
        return []
    return list(max(mixture.distinct_shapes, key=math.prod))


def count_flops(job: TrainingJob, mixture: Mixture) -> float:
    """Return the floating-point operations of forward and backward of one sample, on average.

    Counted on the meta device with torch's own rules (matrix products, convolutions, attention);
    nothing is allocated or computed. It also proves that the model takes the mixture's grid. A process
    counts the same network on the same grid once: a job is checked and then trained.

    Raises:
        ValueError: the model does not fit the data.
    """
    flops = []
    weights = mixture.weights or list(mixture.num_windows)
    for shape in mixture.distinct_shapes:
        key = _counted_as(job, mixture.shape_on(shape))
        if key not in _COUNTED:
            _COUNTED[key] = _count_on(job, mixture, shape)
        share = sum(w for w, s in zip(weights, mixture.grid_shapes, strict=True) if s == shape)
        flops.append(_COUNTED[key] * share)
    return float(sum(flops) / sum(weights))


def _count_on(job: TrainingJob, mixture: Mixture, shape: tuple[int, ...]) -> int:
    with torch.device("meta"), flop_counter() as counter:
        torch.autograd.backward(example_loss(job, mixture, 1, shape)(build_model(job)))
    return int(counter.get_total_flops())


def _counted_as(job: TrainingJob, sample_shape: tuple[int, ...]) -> str:
    """All that the operations of one sample depend on."""
    return repr((values_of(job, has(Trait.NETWORK)), sample_shape))


def example_loss(
    job: TrainingJob,
    mixture: Mixture,
    batch_size: int,
    grid_shape: tuple[int, ...] | None = None,
) -> Callable[[nn.Module], Tensor]:
    """Return a function that runs a model forward on made-up samples, on the model's device.

    `grid_shape` is one of the mixture's, the largest if none is given.
    """
    shape = mixture.shape_on(grid_shape or mixture.grid_shape)
    objective = build_objective(job, mixture)

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


def check_parts(job: TrainingJob) -> Mixture:
    """Build every part as far as that costs nothing; return the opened mixture.

    Raises:
        ConfigError: with every reason why the job cannot run.
    """
    problems: list[Problem] = []
    mixture: Mixture | None = None
    problems += _unknown_parts(job)
    options = option_problems(job)
    problems += options
    try:
        build_objective(job)
    except (ValueError, TypeError) as error:
        if not options:
            is_known = job.objective.name in OBJECTIVES
            key = ("objective", "config" if is_known and job.objective.config else "name")
            problems.append(Problem(key, str(error)))
    make = any_network if problems else build_model
    try:
        with torch.device("meta"):
            model = make(job)
    except (ValueError, TypeError) as error:
        problems.append(Problem(("model",), str(error)))
    else:
        problems += _training_problems(job, model)
    datasets: list[ReadableDataset] = []
    try:
        datasets = open_datasets(job)
    except ConfigError as error:
        problems += error.problems
    if not problems:
        try:
            mixture = build_mixture(job, datasets)
            held_out = build_mixture(job, datasets, job.validation.split)
            drawn = validation_sampler(job, held_out).samples(0, job.validation.num_samples)
            labels = [label_problems(build_objective(job), part) for part in (mixture, held_out)]
            found = dict.fromkeys(chain(*labels))
            found = found or dict.fromkeys(_validation_labels(job, held_out, drawn))
            problems += [Problem(("data", "mixture"), problem) for problem in found]
            objective = build_objective(job, mixture)
            problems += field_problems(job, objective, mixture, held_out, drawn)
            count_flops(job, mixture)
        except ValueError as error:
            problems.append(Problem(("data",), str(error)))
    if problems or mixture is None:
        raise ConfigError(f"job {job.name}", problems)
    return mixture


def _validation_labels(
    job: TrainingJob, held_out: Mixture, drawn: Sequence[SampleIndex]
) -> Iterator[str]:
    """Yield what is wrong with the maps of classes that validation will draw."""
    distinct = {(s.dataset, s.trajectory, s.window, str(s.region)): s for s in drawn}.values()
    yield from drawn_label_problems(build_objective(job), held_out, distinct, job.validation.split)


def _unknown_parts(job: TrainingJob) -> Iterator[Problem]:
    """Yield what is wrong with the names of optimizer, schedule and callbacks."""
    checks: list[tuple[tuple[str | int, ...], Callable[[], object]]] = [
        (("optimizer", "name"), lambda: find_optimizer(job.optimizer)),
        (("schedule", "name"), lambda: SCHEDULES[job.schedule.name]),
    ]
    for index, entry in enumerate(job.callbacks):
        checks.append((("callbacks", index), functools.partial(create_callback, entry)))
    for key, check in checks:
        try:
            check()
        except ValueError as error:
            yield Problem(key, str(error))


def _training_problems(job: TrainingJob, model: nn.Module) -> Iterator[Problem]:
    """Yield what is wrong with the optimizer's patterns and the strategy's options."""
    try:
        freeze(model, job.optimizer.frozen)
        group_settings(model, job.optimizer)
    except ValueError as error:
        yield Problem(("optimizer",), str(error))
    try:
        options = strategy_options(job)
        check_strategy(job.parallel.strategy, options, job.resources.num_workers)
    except ValueError as error:
        yield Problem(("parallel",), str(error))
