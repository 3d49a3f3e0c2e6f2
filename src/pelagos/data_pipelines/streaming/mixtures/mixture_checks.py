"""Checks when a mixture is made: datasets, channels and settings must fit together."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from pelagos.data_pipelines.streaming.mixtures.curriculum import weight_problem

if TYPE_CHECKING:
    from pelagos.data_pipelines.streaming.mixtures.mixture_entry import MixtureEntry
    from pelagos.data_pipelines.streaming.normalization import Normalization


def mixture_problems(entries: Sequence[MixtureEntry], fields: Sequence[str]) -> list[str]:
    """Problems of datasets that are to be trained on together, a sentence each."""
    if not entries:
        return ["there is no dataset"]
    problems = []
    if len(set(fields)) != len(fields) or not fields:
        problems.append(f"channels must be non-empty and distinct, got {list(fields)}")
    for entry in entries:
        dataset = entry.dataset
        if not set(fields) & set(dataset.field_names):
            problems.append(
                f"{dataset.uri} has fields {list(dataset.field_names)}, none of the model's "
                f"channels {list(fields)}: set data.fields"
            )
        unknown = sorted(set(entry.offset) - set(fields))
        if unknown:
            problems.append(f"{dataset.uri}: offset for {unknown}, which are no channels")
        if entry.split not in (*dataset.spec.splits, "all"):
            problems.append(
                f"{dataset.uri} has no split {entry.split!r}; it has "
                f"{[*dataset.spec.splits, 'all']}"
            )
        elif entry.max_trajectories is not None:
            available = len(dataset.split(entry.split))
            if not 0 < entry.max_trajectories <= available:
                problems.append(
                    f"{dataset.uri} has {available} trajectories in its split {entry.split}; "
                    f"max_trajectories is {entry.max_trajectories}, it must be 1 to {available}"
                )
        problem = None if entry.weight is None else weight_problem(entry.weight)
        if problem is not None:
            problems.append(f"{dataset.uri}: {problem}")
        grid, crop = dataset.grid_shape, entry.crop
        if crop is not None and (
            len(crop) != len(grid) or not all(0 < c <= n for c, n in zip(crop, grid, strict=True))
        ):
            problems.append(f"{dataset.uri}: a crop of {crop} points does not fit its grid {grid}")
    problems += _misspelt(entries, fields)
    problems += _mask_problems(entries, fields)
    if len({len(entry.dataset.grid_shape) for entry in entries}) > 1:
        listed = ", ".join(f"{e.dataset.uri}: {e.dataset.grid_shape}" for e in entries)
        problems.append(f"all grids must have as many axes, got {listed}: train on them separately")
    with_weight = sum(entry.weight is not None for entry in entries)
    if with_weight not in (0, len(entries)):
        problems.append(
            f"{with_weight} of {len(entries)} datasets have a weight: give one to all or to none"
        )
    if with_weight and any(entry.repeat != 1 for entry in entries):
        problems.append("datasets have weights and repeats: use one of the two")
    return problems


def check_masks(normalization: Normalization, masks: Collection[str]) -> None:
    """Raise ValueError if a normalisation makes other numbers of a mask than 0 and 1."""
    rows = zip(normalization.fields, normalization.mean, normalization.std, strict=True)
    for name, mean, std in rows:
        if name in masks and (mean, std) != (0.0, 1.0):
            raise ValueError(
                f"normalisation of {name!r} has mean {mean:g} and std {std:g}, but it says where "
                f"fields have values and stays 0 and 1: give mean 0 and std 1"
            )


def _mask_problems(entries: Sequence[MixtureEntry], fields: Sequence[str]) -> list[str]:
    """Fields of which datasets do not agree where they have values, and masks that are shifted."""
    problems: list[str] = []
    masks: dict[str, tuple[str, str]] = {}  # of a field its mask, and where that was first seen
    for entry in entries:
        for name, mask in entry.dataset.spec.masks.items():
            first, where = masks.setdefault(name, (mask, entry.dataset.uri))
            if name in fields and first != mask:
                problems.append(
                    f"field {name!r} is masked by {first!r} in {where}, by {mask!r} in "
                    f"{entry.dataset.uri}: convert them so that one name says where it has values"
                )
    for entry in entries:
        spec = entry.dataset.spec
        for name, (mask, where) in masks.items():
            unmasked = name in spec.field_names and name not in spec.masks
            if name in fields and unmasked and mask in spec.field_names:
                problems.append(
                    f"field {name!r} is masked by {mask!r} in {where}, but not in "
                    f"{entry.dataset.uri}, which has a field {mask!r} too: they cannot share channels"
                )
        shifted = sorted(set(entry.offset) & {mask for mask, _ in masks.values()})
        if shifted:
            problems.append(
                f"{entry.dataset.uri}: offset for {', '.join(shifted)}, which says where other "
                f"fields have values and stays 0 and 1: leave it out"
            )
    return problems


def _misspelt(entries: Sequence[MixtureEntry], fields: Sequence[str]) -> list[str]:
    """Channels that no dataset has, where one has a field of nearly the same name."""
    specs = [entry.dataset.spec for entry in entries]
    has = {name for spec in specs for name in (*spec.field_names, *spec.constant_fields)}
    problems = []
    for name in fields:
        others = [n for n in sorted(has - set(fields)) if n[:-1] != name[:-1]]  # velocity-x, -y
        near = difflib.get_close_matches(name, others, n=1, cutoff=0.8)
        if name not in has and near:
            problems.append(f"no dataset has field {name!r}; did you mean {near[0]!r}?")
    return problems
