"""Whether a job has fields to forecast and to validate, from statistics alone."""

import logging
from collections.abc import Sequence

import numpy as np

from pelagos.data_pipelines.given_fields import unchanging_fields
from pelagos.data_pipelines.mixture import Mixture
from pelagos.data_pipelines.sampler import SampleIndex
from pelagos.models.objectives import FieldObjective, Objective
from pelagos.platform.config.load import Problem
from pelagos.platform.config.schema import TrainingJob

logger = logging.getLogger(__name__)


def field_problems(
    job: TrainingJob,
    objective: Objective,
    mixture: Mixture,
    held_out: Mixture,
    validated: Sequence[SampleIndex],
) -> list[Problem]:
    """Return why a job that forecasts fields has nothing to learn or to validate; say in the log
    which fields are taken for given, and which have no validation sample.

    `validated` are the samples of `held_out` that validation draws.
    """
    if not isinstance(objective, FieldObjective):
        return []
    if not set(job.data.fields) - mixture.given_fields:
        message = f"none of {', '.join(job.data.fields)} ever changes: there is nothing to forecast"
        return [Problem(("data", "fields"), message)]
    for entry in mixture.entries:
        for name, why in unchanging_fields(entry.dataset).items():
            if name in mixture.given_fields and name not in entry.dataset.spec.given_fields:
                logger.warning(
                    "%s: %s %s: it is given to the model, not forecast, and is in no loss or error",
                    entry.dataset.uri,
                    name,
                    why,
                )
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
            "none of the %d validation samples has %s: the validation loss leaves that out; raise "
            "validation.num_samples to include it",
            len(validated),
            ", ".join(without),
        )
    return []
