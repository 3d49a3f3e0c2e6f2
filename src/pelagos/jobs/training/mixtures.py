"""The datasets of a job, as the mixture that is trained or validated on."""

from collections.abc import Sequence
from itertools import count

from pelagos.data_pipelines.store import CacheSettings, DatasetError
from pelagos.data_pipelines.store.readable import ReadableDataset
from pelagos.data_pipelines.streaming.mixtures.curriculum import Weight, largest_weight
from pelagos.data_pipelines.streaming.mixtures.mixture import Mixture
from pelagos.data_pipelines.streaming.mixtures.mixture_entry import MixtureEntry
from pelagos.data_pipelines.streaming.normalization import Normalization
from pelagos.data_pipelines.streaming.sampler import Sampler
from pelagos.jobs.training.datasets import open_entry
from pelagos.models.objectives import Objective, Segmentation
from pelagos.platform.config.load import ConfigError, Problem
from pelagos.platform.config.schema import DataConfig, TrainingJob

VALIDATION_SEED_OFFSET = 1_000_003
TRAINING_SPLIT = "train"


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
    objective: Objective,
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
    ones = job.data.absent_fields == "ones"
    if ones and objective.call not in ("frame", "window"):
        raise ValueError(
            f"data.absent_fields: got ones, but {job.objective.name} forecasts no fields whose "
            "channels would need filling: use masked"
        )
    mixture = Mixture(
        entries,
        job.data.fields,
        objective.frame_windows,
        normalization or _normalization(job.data),
        absent_value=1.0 if ones else 0.0,
        absent_counts=ones and split == TRAINING_SPLIT,  # measurements use the data's own
    )
    if ones and mixture.is_complete:
        raise ValueError(
            f"data.absent_fields: got ones, but every dataset has all of {list(job.data.fields)}: "
            "remove the key"
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
        raise ValueError("data.normalization: the constants of the source did not replace `source`")
    return Normalization.constants(data.fields, data.normalization.mean, data.normalization.std)


def validation_sampler(job: TrainingJob, held_out: Mixture) -> Sampler:
    """Return the order in which a job's validation samples are drawn."""
    seed = job.seed + VALIDATION_SEED_OFFSET
    return Sampler(held_out, seed, version=job.data.order_version)


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
