"""Checking that the classes in the data are those that an objective counts."""

from collections.abc import Iterable, Iterator

from pelagos.data_pipelines.store.schema import LABEL_PARAMETER
from pelagos.data_pipelines.streaming.loader import load_batch
from pelagos.data_pipelines.streaming.mixtures.mixture import Mixture
from pelagos.data_pipelines.streaming.sampler import SampleIndex
from pelagos.models.objectives import Classification, Objective, Segmentation


def label_problems(objective: Objective, mixture: Mixture) -> Iterator[str]:
    """Yield the problems of the classes of a mixture's datasets; nothing for other objectives.

    Of segmentations the extremes in a dataset's statistics are checked, which are the training
    split's; `drawn_label_problems` looks at others.
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
            values = dataset.parameters[LABEL_PARAMETER]
            if (values != values.round()).any():
                broken = values[values != values.round()][0]
                yield f"{dataset.uri}: {what} holds {broken}; classes are whole numbers from 0 on"
                continue
            found = {mixture.label(number, row) for row in mixture.trajectories[number]}
        yield from _misfit(f"{dataset.uri}: {what}", found, objective.num_classes)
    if isinstance(objective, Classification):
        yield from _other_classes(mixture)


def _other_classes(mixture: Mixture) -> Iterator[str]:
    """Yield the differences between the lists of classes of a mixture's datasets.

    Label 0 would be one class in the first and another in the second.
    """
    listed = [
        (entry.dataset.uri, entry.dataset.spec.generator.get("classes"))
        for entry in mixture.entries
    ]
    known = [(uri, classes) for uri, classes in listed if classes is not None]
    for uri, classes in known[1:]:
        first_uri, first = known[0]
        if classes != first:
            at = next(
                (i for i, pair in enumerate(zip(first, classes, strict=False)) if len({*pair}) > 1),
                min(len(first), len(classes)),
            )
            yield (
                f"{uri} has {len(classes)} classes, {first_uri} has {len(first)}, and label {at} is "
                f"{_class(classes, at)} there and {_class(first, at)} here: convert the pictures "
                f"with all classes as one source, so that they are numbered once"
            )


def _class(classes: list[str], number: int) -> str:
    return repr(classes[number]) if number < len(classes) else "no class"


def drawn_label_problems(
    objective: Objective, mixture: Mixture, samples: Iterable[SampleIndex], split: str
) -> Iterator[str]:
    """Yield the problems of the maps of classes in some samples, which are read for it.

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
            f"{where} has classes up to {max(found)}, but objective.config.num_classes({num_classes}) "
            f"allows 0 to {num_classes - 1}; set it to {max(found) + 1}"
        )
