"""The keys of training jobs with their meaning, read from the marks on the schema's fields.

Everything that depends on the meaning of a key is derived here or by its user: what a resume, a
branch and a population may change, what decides the name of a trial, what is counted or opened once.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import UnionType
from typing import Any, Union, get_args, get_origin

from pydantic import BaseModel

from pelagos.platform.config.differences import is_among
from pelagos.platform.config.finetune import FinetuneJob
from pelagos.platform.config.marks import Meaning, Trait
from pelagos.platform.config.schema import PretrainJob, TrainingJob

TRAINING_KINDS: tuple[type[TrainingJob], ...] = (PretrainJob, FinetuneJob)


@dataclass(frozen=True)
class Key:
    """A key of a training job: its dotted name, in which `*` is a list's number or a mapping's key."""

    name: str
    meaning: Meaning
    traits: frozenset[Trait]


KeyTest = Callable[[Key], bool]


@functools.cache
def training_keys() -> dict[str, Key]:
    """Return every key that has a value of its own, of all kinds of training, by name."""
    found: dict[str, Key] = {}
    for kind in TRAINING_KINDS:
        found |= {key.name: key for key in _keys(kind, "", Meaning.STEPS, frozenset())}
    return found


def names_of(wanted: KeyTest) -> tuple[str, ...]:
    """Return the names of these keys, a section of which all are wanted under its own name alone."""
    return tuple(_shortened("", [key.name for key in training_keys().values() if wanted(key)]))


def values_of(job: TrainingJob, wanted: KeyTest) -> dict[str, Any]:
    """Return the part of a job that these keys make up, as JSON."""
    names = names_of(lambda key: not wanted(key))
    return without(job.model_dump(mode="json"), names)


def without(tree: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """Return a job's JSON without the keys of these names.

    >>> without({"a": 1, "b": [{"c": 2, "d": 3}]}, ["a", "b.*.c"])
    {'b': [{'d': 3}]}
    """
    pruned: dict[str, Any] = _pruned(tree, "", names)
    return pruned


def may_resume(key: Key) -> bool:
    """Whether a resume may give another value: the steps to come continue those done all the same."""
    if key.meaning is Meaning.STEPS:
        return Trait.RESUMABLE in key.traits
    return Trait.HOME not in key.traits


def tells_trials_apart(key: Key) -> bool:
    """Whether runs that differ in a key are different trials of a sweep."""
    return key.meaning is Meaning.STEPS or Trait.ACCURACY in key.traits


def has(trait: Trait) -> KeyTest:
    """Return the test of whether a key has a trait."""
    return lambda key: trait in key.traits


def _keys(
    kind: type[BaseModel], path: str, meaning: Meaning, traits: frozenset[Trait]
) -> Iterator[Key]:
    """Yield the keys of a section at `path`; it passes its own marks on to them."""
    for name, field in kind.model_fields.items():
        own = next((mark for mark in field.metadata if isinstance(mark, Meaning)), meaning)
        its = traits | {mark for mark in field.metadata if isinstance(mark, Trait)}
        sections = list(_sections(field.annotation))
        if not sections or not _is_section(field.annotation):
            yield Key(f"{path}{name}", own, its)
        for section, place in sections:
            yield from _keys(section, f"{path}{name}{place}.", own, its)


def _sections(annotation: Any, place: str = "") -> Iterator[tuple[type[BaseModel], str]]:
    """Yield the sections that a value can be, hold as items or map to, and where below its key."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation, place
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in (Union, UnionType):
        for option in arguments:
            yield from _sections(option, place)
    elif origin in (tuple, dict):
        yield from _sections(arguments[-1 if origin is dict else 0], f"{place}.*")


def _is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _shortened(path: str, names: Sequence[str]) -> Iterator[str]:
    """Yield names that cover exactly these; each begins with `path`."""
    parts = dict.fromkeys(name.removeprefix(path).partition(".")[0] for name in names)
    for part in parts:
        below = [n for n in names if is_among(n, [f"{path}{part}"])]
        all_below = [n for n in training_keys() if is_among(n, [f"{path}{part}"])]
        if len(below) == len(all_below):
            yield f"{path}{part}"
        else:
            yield from _shortened(f"{path}{part}.", [n for n in below if n != f"{path}{part}"])


def _pruned(tree: Any, path: str, names: Sequence[str]) -> Any:
    if isinstance(tree, dict):
        kept = {key: value for key, value in tree.items() if not is_among(f"{path}{key}", names)}
        return {key: _pruned(value, f"{path}{key}.", names) for key, value in kept.items()}
    if isinstance(tree, list):
        return [_pruned(item, f"{path}{i}.", names) for i, item in enumerate(tree)]
    return tree
