"""Checking that the classes in the data are those that an objective counts."""

from collections.abc import Iterator

from pelagos.data_pipelines.mixture import LABEL_PARAMETER, Mixture
from pelagos.models.objectives import Classification, Objective, Segmentation


def label_problems(objective: Objective, mixture: Mixture) -> Iterator[str]:
    """Yield what is wrong with the classes of a mixture's datasets; nothing for other objectives.

    Of segmentations the extremes in a dataset's statistics are checked, which are the training
    split's.
    """
    if not isinstance(objective, (Classification, Segmentation)):
        return
    most = objective.num_classes - 1
    for number, entry in enumerate(mixture.entries):
        dataset = entry.dataset
        if isinstance(objective, Segmentation):
            what = f"field {objective.label_field!r}"
            row = dataset.statistics.get(objective.label_field)
            if row is None:
                yield f"{dataset.uri} has no {what}, the class of every point"
                continue
            found = {round(row["min"]), round(row["max"])}
        else:
            what = f"parameter {LABEL_PARAMETER!r}"
            if LABEL_PARAMETER not in dataset.parameters:
                yield f"{dataset.uri} has no {what}, the class of every image"
                continue
            found = {mixture.label(number, row) for row in mixture.trajectories[number]}
        if min(found) < 0:
            yield f"{dataset.uri}: {what} has class {min(found)}; classes are whole numbers from 0 on"
        elif max(found) > most:
            yield (
                f"{dataset.uri}: {what} has classes up to {max(found)}, but "
                f"objective.num_classes({objective.num_classes}) allows 0 to {most}; set it to "
                f"{max(found) + 1}"
            )
