"""Checking that the classes in the data are those that an objective counts."""

from collections.abc import Iterable, Iterator

from pelagos.data_pipelines.loader import load_batch
from pelagos.data_pipelines.mixture import LABEL_PARAMETER, Mixture
from pelagos.data_pipelines.sampler import SampleIndex
from pelagos.models.objectives import Classification, Objective, Segmentation


def label_problems(objective: Objective, mixture: Mixture) -> Iterator[str]:
    """Yield what is wrong with the classes of a mixture's datasets; nothing for other objectives.

    Of segmentations the extremes in a dataset's statistics are checked, which are the training
    split's; ``drawn_label_problems`` looks at others.
    """
    if not isinstance(objective, (Classification, Segmentation)):
        return
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
        yield from _misfit(f"{dataset.uri}: {what}", found, objective.num_classes)


def drawn_label_problems(
    objective: Objective, mixture: Mixture, samples: Iterable[SampleIndex], split: str
) -> Iterator[str]:
    """Yield what is wrong with the maps of classes that some samples hold, which are read for it.

    Nothing for objectives without such maps. The mixture must leave the label field unscaled.
    """
    if not isinstance(objective, Segmentation):
        return
    channel = mixture.fields.index(objective.label_field)
    found: dict[int, set[int]] = {}
    for sample in samples:
        labels = load_batch(mixture, [sample]).frames[:, :, channel]
        classes = found.setdefault(sample.dataset, set())
        classes |= {round(float(labels.min())), round(float(labels.max()))}
    for number, classes in found.items():
        uri = mixture.entries[number].dataset.uri
        where = f"{uri}, split {split!r}: field {objective.label_field!r}"
        yield from _misfit(where, classes, objective.num_classes)


def _misfit(where: str, found: set[int], num_classes: int) -> Iterator[str]:
    if min(found) < 0:
        yield f"{where} has class {min(found)}; classes are whole numbers from 0 on"
    elif max(found) >= num_classes:
        yield (
            f"{where} has classes up to {max(found)}, but objective.num_classes({num_classes}) "
            f"allows 0 to {num_classes - 1}; set it to {max(found) + 1}"
        )
