"""Checks that need several keys of a job at once: pure arithmetic, no file is opened here."""

from collections.abc import Iterator, Sequence
from functools import singledispatch

from pelagos.infra.storage.addresses import reject_empty_parts
from pelagos.platform.config.convert import ConvertJob
from pelagos.platform.config.differences import is_among
from pelagos.platform.config.measure import EvaluateJob
from pelagos.platform.config.parallel import TF32_NEEDS_A_GPU
from pelagos.platform.config.schema import GenerateDataset, GenerateJob, Section, TrainingJob
from pelagos.platform.config.sweep import (
    CHANGEABLE_WITHIN_A_RUN,
    EARLY_STOPPING,
    POPULATION,
    RandomRangeConfig,
    SweepJob,
)

Finding = tuple[tuple[str | int, ...], str]


@singledispatch
def check_arithmetic(job: Section) -> list[Finding]:
    """Return (key, message) for every rule that spans several keys and is broken."""
    return []


@check_arithmetic.register
def _check_training(job: TrainingJob) -> list[Finding]:
    found = [*_check_batch(job), *_check_parallel(job), *_check_pretrain(job)]
    uris = [(("data", "mixture", i, "uri"), e.uri) for i, e in enumerate(job.data.mixture)]
    return [*found, *_check_addresses(uris, job.storage.backend)]


@check_arithmetic.register
def _check_generation(job: GenerateJob) -> list[Finding]:
    found = [f for i, d in enumerate(job.datasets) for f in _check_dataset(i, d)]
    written = [(("datasets", i, "uri"), d.uri) for i, d in enumerate(job.datasets)]
    return [*found, *_check_addresses(written, job.storage.backend)]


@check_arithmetic.register
def _check_conversion(job: ConvertJob) -> list[Finding]:
    return [*_check_addresses([(("uri",), job.uri)], job.storage.backend)]


@check_arithmetic.register
def _check_evaluation(job: EvaluateJob) -> list[Finding]:
    workers = job.resources.num_workers
    if job.resources.launcher != "none" or workers == 1:
        return []
    message = (
        f"got none, which runs one process, but num_workers is {workers}; use ray, or num_workers=1"
    )
    return [(("resources", "launcher"), message)]


@check_arithmetic.register
def _check_whole_sweep(job: SweepJob) -> list[Finding]:
    return [*_check_search(job), *_check_sweep(job)]


def data_world_size(job: TrainingJob) -> int:
    """Number of shares that a batch is cut into: of every strategy there is, one per worker."""
    return job.resources.num_workers


def local_batch_size(job: TrainingJob) -> int:
    """Samples per worker and step."""
    return job.data.global_batch_size // data_world_size(job)


def micro_batch_size(job: TrainingJob) -> int:
    """Samples per forward pass and worker."""
    return job.parallel.micro_batch_size or local_batch_size(job)


def _check_addresses(
    uris: Sequence[tuple[tuple[str | int, ...], str]], backend: str
) -> Iterator[Finding]:
    for key, uri in uris:
        try:
            reject_empty_parts(uri, ValueError, backend)
        except ValueError as error:
            yield key, str(error)


def _check_batch(job: TrainingJob) -> Iterator[Finding]:
    batch, workers = job.data.global_batch_size, data_world_size(job)
    if batch % workers:
        lower, upper = batch - batch % workers, batch - batch % workers + workers
        near = f"{lower} or {upper}" if lower else str(upper)
        yield (
            ("data", "global_batch_size"),
            f"got {batch}, which is not a multiple of the {workers} workers: {batch} = "
            f"{batch // workers} x {workers} + {batch % workers}. Use {near}, or another "
            "resources.num_workers.",
        )
        return
    run = job.data.run_length
    if batch % run:
        divisors = [d for d in range(1, batch + 1) if batch % d == 0]
        yield (
            ("data", "run_length"),
            f"got {run}, which does not divide global_batch_size {batch}. Use one of {divisors}.",
        )
    micro, local = micro_batch_size(job), batch // workers
    if local % micro:
        divisors = [d for d in range(1, local + 1) if local % d == 0]
        yield (
            ("parallel", "micro_batch_size"),
            f"got {micro}, which does not divide the {local} samples per worker "
            f"(global_batch_size {batch} / num_workers {workers}). Use one of {divisors}.",
        )


def _check_parallel(job: TrainingJob) -> Iterator[Finding]:
    parallel, workers = job.parallel, job.resources.num_workers
    if parallel.strategy == "single" and workers > 1:
        yield (
            ("parallel", "strategy"),
            f"single runs on 1 worker, but resources.num_workers is {workers}; use ddp",
        )
    size = parallel.fsdp.shard_group_size
    if parallel.strategy == "hsdp" and size is not None and workers % size:
        legal = [n for n in range(1, workers + 1) if workers % n == 0]
        yield (
            ("parallel", "fsdp", "shard_group_size"),
            f"got {size}, which does not divide the {workers} workers: {workers} = "
            f"{workers // size} x {size} + {workers % size}. Use one of {legal}.",
        )
    if parallel.precision == "tf32" and not job.resources.gpus_per_worker:
        yield (
            ("parallel", "precision"),
            TF32_NEEDS_A_GPU,
        )
    if job.validation.num_samples < workers:
        yield (
            ("validation", "num_samples"),
            f"got {job.validation.num_samples}, but each of the {workers} workers needs at least "
            "one",
        )
    if parallel.strategy.startswith("zero"):
        yield from _check_zero(job)


def _check_zero(job: TrainingJob) -> Iterator[Finding]:
    parallel, zero = job.parallel, job.parallel.zero
    key = ("parallel", "zero")
    only_zero3 = {
        "offload_parameters": zero.offload_parameters != "none",
        "hpz_partition_size": zero.hpz_partition_size > 1,
        "quantized_weights": zero.quantized_weights,
        "quantized_gradients": zero.quantized_gradients,
    }
    if parallel.strategy != "zero3":
        for name, is_set in only_zero3.items():
            if is_set:
                yield (
                    (*key, name),
                    f"is an option of zero3, but the strategy is {parallel.strategy}",
                )
        if zero.offload_optimizer == "nvme":
            yield (
                (*key, "offload_optimizer"),
                "nvme is an option of zero3; use cpu, or parallel.strategy: zero3",
            )
    for name in ("quantized_weights", "quantized_gradients"):
        if getattr(zero, name) and not job.resources.gpus_per_worker:
            yield (*key, name), "runs on GPUs only, but resources.gpus_per_worker is 0"
    if job.resources.num_workers % zero.hpz_partition_size:
        yield (
            (*key, "hpz_partition_size"),
            f"got {zero.hpz_partition_size}, which does not divide the "
            f"{job.resources.num_workers} workers",
        )
    uses_nvme = "nvme" in (zero.offload_optimizer, zero.offload_parameters)
    if uses_nvme and zero.nvme_path is None:
        yield (
            (*key, "nvme_path"),
            "is required for offloading to nvme: name a directory on that disk",
        )
    if parallel.compile and parallel.strategy == "zero3":
        yield (
            ("parallel", "compile"),
            "does not work with zero3, whose hooks gather parameters inside each block; set it to "
            "false, or use parallel.strategy: fsdp",
        )


def _check_pretrain(job: TrainingJob) -> Iterator[Finding]:
    if job.schedule.warmup_steps >= job.schedule.total_steps:
        yield (
            ("schedule", "warmup_steps"),
            f"got {job.schedule.warmup_steps}, expected less than total_steps "
            f"{job.schedule.total_steps}",
        )
    starts = [(i, group.frozen_until_step) for i, group in enumerate(job.optimizer.groups)]
    for index, start in starts:
        if start >= job.schedule.total_steps:
            yield (
                ("optimizer", "groups", index, "frozen_until_step"),
                f"got {start}, expected less than total_steps {job.schedule.total_steps}; to never "
                "train these parameters use optimizer.frozen",
            )
    if job.resources.gpus_per_worker > 1:
        yield (
            ("resources", "gpus_per_worker"),
            f"got {job.resources.gpus_per_worker}; a worker drives one GPU: use 0 or 1 "
            "and raise num_workers",
        )
    entries = job.data.mixture
    if any(e.weight is not None for e in entries) and any(e.repeat != 1 for e in entries):
        yield ("data", "mixture"), "sets weights and repeats; use only one"
    constants = job.data.normalization
    if constants == "source" and job.job != "finetune":
        yield (
            ("data", "normalization"),
            f"source is only for finetune jobs, and this is a {job.job} job; use statistics",
        )
    if not isinstance(constants, str):
        for name, table in (("mean", constants.mean), ("std", constants.std)):
            missing = [f for f in job.data.fields if f not in table]
            if missing:
                yield (("data", "normalization", name), f"lacks {', '.join(missing)}")


def _check_dataset(index: int, dataset: GenerateDataset) -> Iterator[Finding]:
    key = ("datasets", index)
    if dataset.splits is not None and sum(dataset.splits.values()) != dataset.num_trajectories:
        total = " + ".join(str(v) for v in dataset.splits.values())
        yield (
            (*key, "splits"),
            f"{total} = {sum(dataset.splits.values())}, but num_trajectories is "
            f"{dataset.num_trajectories}",
        )
    solver = dataset.solver_resolution or dataset.resolution
    if solver % dataset.resolution:
        yield (
            (*key, "solver_resolution"),
            f"got {solver}, expected a multiple of resolution {dataset.resolution}",
        )


def _check_search(job: SweepJob) -> Iterator[Finding]:
    search = job.search
    if search.name == "random" and not job.random:
        yield ("random",), "is empty, but search.name is random: give {key: {low: …, high: …}}"
    if search.name == "grid" and job.random:
        yield ("search", "name"), "got grid, but `random` gives ranges; use random or asha"
    if search.name == EARLY_STOPPING and search.grace_validations >= search.max_validations:
        yield (
            ("search", "grace_validations"),
            f"got {search.grace_validations}, expected less than max_validations "
            f"{search.max_validations}",
        )
    if search.name == POPULATION:
        yield from _check_population(job)
    for key, span in job.random.items():
        if not isinstance(span, RandomRangeConfig):
            continue
        if not span.low < span.high:
            yield ("random", key), f"low {span.low:g} must be below high {span.high:g}"
        if span.log and span.low <= 0:
            yield ("random", key, "low"), f"got {span.low:g}, must be above 0 where log is true"


POPULATIONS_DO_NOT_STOP = (
    "a population's members train to the same step, and this ends some before: leave it out"
)


def _check_population(job: SweepJob) -> Iterator[Finding]:
    search = job.search
    if not job.random:
        yield ("random",), "is empty, but a population changes these values: give {key: {low: …}}"
    if search.num_samples < 2:
        message = f"got {search.num_samples}, but a population needs at least 2 members"
        yield ("search", "num_samples"), message
    listed = ", ".join(CHANGEABLE_WITHIN_A_RUN)
    for key in job.random:
        # which options of an objective, that says itself (jobs/sweeping/population.py)
        if not is_among(key, (*CHANGEABLE_WITHIN_A_RUN, "objective.config.*")):
            yield (
                ("random", key),
                "a population changes values within a run, and this key cannot change there: the "
                f"members exchange weights and continue one loss. A population can change {listed}, "
                "and options of the objective that only move weights. For other keys use `grid`, "
                "which makes one population per value",
            )
    for key in job.grid:
        if is_among(key, ["schedule.stop_when"]):
            yield ("grid", key), POPULATIONS_DO_NOT_STOP
    if job.ray_address is not None and job.max_concurrent < search.num_samples:
        yield (
            ("max_concurrent",),
            f"got {job.max_concurrent}, but a population of {search.num_samples} on a running "
            "cluster has as many members at once as fit; set it to num_samples",
        )


def _check_sweep(job: SweepJob) -> Iterator[Finding]:
    if job.baseline is not None and job.baseline not in job.jobs:
        yield (
            ("baseline",),
            f"got {job.baseline!r}, which is not a label; expected one of: " + ", ".join(job.jobs),
        )
    for key in ("trajectories", "seeds"):
        values = getattr(job, key)
        if len(set(values)) != len(values):
            yield (key,), f"got {list(values)}, which repeats a value"
    both = sorted(set(job.grid) & set(job.random))
    if both:
        yield ("random",), f"{', '.join(both)} is in `grid` too; keep one"
    for label, entry in job.jobs.items():
        if (entry.file is None) == (entry.job is None):
            yield (
                ("jobs", label),
                "give exactly one of `file` (a job file) and `job` (the job itself)",
            )
    swept = {("grid", k) for k in job.grid} | {("random", k) for k in job.random}
    places: list[tuple[str, ...]] = [*swept]
    places += [("jobs", label, "set", k) for label, entry in job.jobs.items() for k in entry.set]
    sets = SweepJob.keys_set()
    for path in sorted(places):
        own = next((own for key, own in sets.items() if is_among(path[-1], [key])), None)
        if own is not None:
            yield path, f"the sweep sets this itself: use its key `{own}`"
