"""Whether a job has fields to forecast and to validate, and which fields it takes as given."""

import logging
import math
from collections.abc import Iterator, Sequence

import numpy as np

from pelagos.data_pipelines.store.readable import ReadableDataset
from pelagos.data_pipelines.streaming.given_fields import is_constant, unchanging_fields
from pelagos.data_pipelines.streaming.loader import load_batch
from pelagos.data_pipelines.streaming.mixtures.mixture import Mixture
from pelagos.data_pipelines.streaming.sampler import SampleIndex
from pelagos.evaluation.forecasting.given_fields import CHANGE_SHARE, GivenField
from pelagos.evaluation.forecasting.view import EvaluationData
from pelagos.models.objectives import FieldObjective, Objective
from pelagos.platform.config.load import Problem
from pelagos.platform.config.schema import TrainingJob

logger = logging.getLogger(__name__)
MOST_READ = 32  # validation samples that a check reads


def field_problems(
    job: TrainingJob,
    objective: Objective,
    mixture: Mixture,
    held_out: Mixture,
    validated: Sequence[SampleIndex],
) -> list[Problem]:
    """Return why a job that forecasts fields has nothing to learn or to validate.

    The log says which fields are taken for given, and which have no validation sample.

    `validated` are the samples of `held_out` that validation draws.
    """
    if not isinstance(objective, FieldObjective):
        return []
    if not set(job.data.fields) - mixture.given_fields:
        message = (
            f"none of {', '.join(job.data.fields)} ever changes, so there is nothing to forecast"
        )
        return [Problem(("data", "fields"), message)]
    _tell_of_given(objective, mixture)
    _tell_of_changes(job, objective, mixture, held_out, validated)
    drawn = np.any([held_out.present(d) for d in {s.dataset for s in validated}], axis=0)
    anywhere = np.any([held_out.present(d) for d in range(len(held_out.entries))], axis=0)
    groups = list(zip(objective.group_names, objective.group_channels, strict=True))
    if not any(drawn[c] for _, channels in groups for c in channels):
        message = f"no sample of split {job.validation.split} has any of {', '.join(dict(groups))}"
        return [Problem(("validation", "num_samples"), message)]
    without = [
        name
        for name, channels in groups
        if any(anywhere[c] for c in channels) and not any(drawn[c] for c in channels)
    ]
    if without:
        logger.warning(
            "none of the %d validation samples has %s, so the validation loss leaves that out; "
            "raise validation.num_samples to include it",
            len(validated),
            ", ".join(without),
        )
    return []


def given_in(dataset: ReadableDataset, data: EvaluationData) -> tuple[GivenField, ...]:
    """Return the stored fields of a dataset that an evaluation does not score, and why.

    They need no forecast.
    """
    scored = {data.fields[channel] for channels in data.groups.values() for channel in channels}
    found = unchanging_fields(dataset)
    known = {
        **dict.fromkeys(dataset.spec.given_fields, "is marked as given in the dataset"),
        **{name: f"{why} in the training split" for name, why in found.items()},
    }
    return tuple(
        GivenField(name, known[name], _only_value(dataset, name))
        for name in data.fields
        if name in known and name not in scored and name not in dataset.spec.masks.values()
    )


def _only_value(dataset: ReadableDataset, name: str) -> float | None:
    row = dataset.statistics[name]
    return float(row["mean"]) if is_constant(row) else None


def _unmarked(mixture: Mixture) -> Iterator[tuple[ReadableDataset, str, str]]:
    """Yield the fields that are taken as given for their statistics alone: dataset, name, why."""
    for entry in mixture.entries:
        for name, why in unchanging_fields(entry.dataset).items():
            if name in mixture.given_fields and name not in entry.dataset.spec.given_fields:
                yield entry.dataset, name, why


def _tell_of_given(objective: FieldObjective, mixture: Mixture) -> None:
    scored = {mixture.fields[c] for channels in objective.group_channels for c in channels}
    for dataset, name, why in _unmarked(mixture):
        what = (
            "it still counts in losses and errors, because objective.config.field_groups names it"
            if name in scored
            else (
                "the model takes it as an input and does not forecast it, so no loss or error "
                "counts it"
            )
        )
        logger.warning("%s: %s %s: %s", dataset.uri, name, why, what)


def _tell_of_changes(
    job: TrainingJob,
    objective: FieldObjective,
    mixture: Mixture,
    held_out: Mixture,
    validated: Sequence[SampleIndex],
) -> None:
    """Say which fields that are taken as given change in the validation samples.

    One sample of each of the first trajectories is read for it, none by a job without such fields;
    `evaluate` looks at every frame.
    """
    scored = {c for channels in objective.group_channels for c in channels}
    masks = {mask for entry in mixture.entries for mask in entry.dataset.spec.masks.values()}
    names = {name for _, name, _ in _unmarked(mixture)} - masks
    left = {c for c, name in enumerate(mixture.fields) if name in names and c not in scored}
    scale = mixture.normalization
    looked_at = list({(v.dataset, v.trajectory): v for v in validated}.values())[:MOST_READ]
    for sample in looked_at if left else ():
        frames = load_batch(held_out, [sample]).frames[0]
        for channel in sorted(left):
            size = math.hypot(scale.mean[channel], scale.std[channel]) / scale.std[channel]
            change = float((frames[:, channel] - frames[0, channel]).abs().max())
            if change > CHANGE_SHARE * size:
                left.remove(channel)
                logger.warning(
                    "%s: %s never changes in the training split, but changes in split %s. The "
                    "model takes it as an input, and no validation loss counts it. Train on data "
                    "in which it changes",
                    held_out.entries[sample.dataset].dataset.uri,
                    mixture.fields[channel],
                    job.validation.split,
                )
        if not left:
            return
