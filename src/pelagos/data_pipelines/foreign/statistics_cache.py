"""Statistics of a foreign array: computed in one pass over it, and kept where the user says."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from pelagos.data_pipelines.store.errors import DatasetError, ObjectMissingError
from pelagos.data_pipelines.store.field_statistics import (
    TrajectorySums,
    dataset_statistics,
    require_statistics,
    shard_sums,
)
from pelagos.data_pipelines.store.layout import dumps
from pelagos.data_pipelines.store.manifest import Statistics
from pelagos.data_pipelines.store.object_store import open_store
from pelagos.data_pipelines.store.readable import ReadableDataset
from pelagos.data_pipelines.store.stored_documents import read_statistics
from pelagos.infra.json_text import parse_json

_FORMAT = "pelagos-statistics"

logger = logging.getLogger(__name__)


def compute_statistics(
    dataset: ReadableDataset, progress: Callable[[int, int], None] | None = None
) -> Statistics:
    """Read all of a dataset and return its statistics by split (and `all`), field and name.

    Raises:
        DatasetError: something of it is missing.
    """
    spec = dataset.spec
    sums: dict[str, list[TrajectorySums]] = {name: [] for name in spec.field_names}
    for trajectory in range(spec.num_trajectories):
        data = dataset.read_frames(trajectory, range(spec.num_frames))
        for name, rows in shard_sums(data[None], spec.field_names, spec.mask_channels).items():
            sums[name].extend(rows)
        if progress is not None:
            progress(trajectory + 1, spec.num_trajectories)
    return dataset_statistics(sums, spec.splits)


def cached_statistics(
    dataset: ReadableDataset,
    place: str | None,
    storage_options: dict[str, Any] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Statistics:
    """The statistics kept at `place`, if they are of this dataset as it is now.

    Else computed, and kept there. `place` None keeps them nowhere.
    """
    if place is None:
        logger.warning(
            "%s has no statistics. Pelagos reads all of it to compute them, now and at every "
            "opening for training. Name a file in description.statistics to keep them",
            dataset.uri,
        )
        return compute_statistics(dataset, progress)
    folder, separator, name = place.rpartition("/")
    store = open_store(folder or separator or ".", storage_options)
    try:
        kept = parse_json(store.read(name))
    except ObjectMissingError:
        kept = {"format": _FORMAT}
    except ValueError as error:
        raise DatasetError(f"{place} is not a file of statistics ({error}): remove it") from error
    if not isinstance(kept, dict) or kept.get("format") != _FORMAT:
        raise DatasetError(f"{place} exists and is not a file of statistics: name another file")
    if kept.get("fingerprint") == dataset.fingerprint:
        return _checked(kept.get("statistics"), dataset, place)
    logger.warning(
        "computing the statistics of %s, once: reading all of it. They will be kept in %s",
        dataset.uri,
        place,
    )
    statistics = compute_statistics(dataset, progress)
    content = {
        "format": _FORMAT,
        "uri": dataset.uri,
        "fingerprint": dataset.fingerprint,
        "statistics": statistics,
    }
    store.write(name, dumps(content))
    return statistics


def _checked(kept: Any, dataset: ReadableDataset, place: str) -> Statistics:
    """Return statistics that were kept. Raises DatasetError: somebody changed them."""
    try:
        found = read_statistics(kept)
        require_statistics(found, dataset.spec)
    except ValueError as error:
        raise DatasetError(f"{place} is damaged ({error}): remove it") from error
    return found
