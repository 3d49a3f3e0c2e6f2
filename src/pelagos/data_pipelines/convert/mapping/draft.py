"""Proposing a mapping for a source from the arrays found in it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from pelagos.data_pipelines.convert.endless_files import reject_endless
from pelagos.data_pipelines.convert.mapping.catalogue import Catalogue, FoundArray, catalogue
from pelagos.data_pipelines.convert.mapping.files import is_pattern
from pelagos.data_pipelines.convert.mapping.schema import Mapping
from pelagos.data_pipelines.convert.source import SourceError
from pelagos.data_pipelines.foreign.axes import role_of
from pelagos.infra.suggestions import listed
from pelagos.infra.yaml_text import yaml_text

LETTERS = {"trajectory": "n", "time": "t", "channel": "c", "z": "z", "y": "y", "x": "x"}
GRIDS = ({"x"}, {"y", "x"}, {"z", "y", "x"})
MOST_CHANNELS = 8  # an axis of unnamed arrays that is at most as long may be one of channels


@dataclass
class Draft:
    """A proposed mapping.

    Attributes:
        tree: the contents of the mapping file.
        guesses: properties that the source does not state, a sentence each; empty: it converts as it is.
        left_out: arrays that are no part of it.
    """

    tree: dict[str, Any]
    guesses: list[str] = field(default_factory=list)
    left_out: list[FoundArray] = field(default_factory=list)

    @property
    def mapping(self) -> Mapping:
        return Mapping.model_validate(self.tree)

    @property
    def text(self) -> str:
        """The mapping file, with guesses and omissions as comments."""
        lines = [f"# guessed: {guess}" for guess in self.guesses]
        for key, value in self.tree.items():
            if key == "fields":
                lines.append("fields:")
                lines += [f"  - {_flow(entry)}" for entry in value]
            elif isinstance(value, dict):
                lines.append(f"{key}:")
                lines += [f"  {name}: {_flow(entry)}" for name, entry in value.items()]
            else:
                lines.append(f"{key}: {_flow(value)}")
        lines += [f"# left out: {_described(array)}" for array in self.left_out]
        return "\n".join(lines) + "\n"


def draft_mapping(path: str) -> Draft:
    """Propose a mapping for a source.

    Axes are known by the names of dimensions, as those of Zarr are. Arrays without names are taken
    to have the usual order of axes, which is a guess.

    Raises:
        SourceError: no arrays could form a dataset.
    """
    reject_endless(path)
    found = catalogue(path)
    named = [(array, axes) for array in found.arrays if (axes := named_axes(array))]
    data = _most_alike([(array, axes) for array, axes in named if _is_data(axes, found)])
    guesses: list[str] = []
    if not data:
        data = _guessed(found, guesses)
    if not data:
        raise SourceError(
            f"{path} has no arrays with axes of space and of time or trajectories; it has "
            f"{listed(_described(array) for array in found.arrays)}"
        )
    tree: dict[str, Any] = {"fields": [_entry(array, axes) for array, axes in data]}
    _make_names_distinct(tree["fields"])
    used = [array for array, _ in data]
    used += _add_parameters(tree, found, data)
    used += _add_coordinates(tree, found, data, guesses)
    left_out = [array for array in found.arrays if array not in used]
    return Draft(tree, guesses, left_out)


def named_axes(array: FoundArray) -> str:
    """Letters of an array's axes by the names of its dimensions; empty if these do not show them."""
    roles = [role_of(name) for name in array.dimensions or ()]
    if not roles or not all(roles) or len(set(roles)) < len(roles):
        return ""
    letters = "".join(LETTERS[role] for role in roles)
    return letters if set(letters) & {"x", "y", "z"} in GRIDS else ""


def _is_data(axes: str, found: Catalogue) -> bool:
    """Whether an array holds frames, of one trajectory or of several."""
    return "t" in axes or "n" in axes or (found.num_files > 1 and len(axes) > 1)


def _most_alike(found: list[tuple[FoundArray, str]]) -> list[tuple[FoundArray, str]]:
    """The arrays of the commonest grid and length; of several as common the largest."""
    if not found:
        return []

    def extent(array: FoundArray, axes: str) -> tuple[tuple[str, int], ...]:
        return tuple(sorted((a, s) for a, s in zip(axes, array.shape, strict=True) if a != "c"))

    counts = Counter(extent(*entry) for entry in found)
    best = max(counts, key=lambda e: (len(e), counts[e]))
    return [entry for entry in found if extent(*entry) == best]


def _guessed(found: Catalogue, guesses: list[str]) -> list[tuple[FoundArray, str]]:
    """Axes of unnamed arrays by their order."""
    candidates = [
        (array, axes)
        for array in found.arrays
        if not named_axes(array) and (axes := _usual_axes(array.shape, found.num_files > 1))
    ]
    data = _most_alike(candidates)
    guesses += [f"the axes of {_described(array)} are [{', '.join(axes)}]" for array, axes in data]
    return data


def _usual_axes(shape: Sequence[int], has_files: bool) -> str:
    """The usual order of axes of an unnamed array; empty if it has too few or too many."""
    sizes = list(shape)
    prefix = "" if has_files else "n"
    rest = len(sizes) - len(prefix)
    if rest < 2 or min(sizes) < 1:
        return ""
    last_is_channel = sizes[-1] <= MOST_CHANNELS < min(sizes[-3:-1], default=0)
    if rest == 2:
        is_square = not has_files and sizes[-1] == sizes[-2]
        return prefix + ("yx" if is_square else "tx")
    if rest == 3:
        return prefix + ("txc" if last_is_channel and sizes[-2] != sizes[-3] else "tyx")
    if rest == 4:
        if last_is_channel:
            return prefix + "tyxc"
        middle = sizes[len(prefix) + 1]
        return prefix + ("tcyx" if middle <= MOST_CHANNELS else "tzyx")
    if rest == 5:
        return prefix + ("tzyxc" if last_is_channel else "tczyx")
    return ""


def _entry(array: FoundArray, axes: str) -> dict[str, Any]:
    count = array.shape[axes.index("c")] if "c" in axes else 1
    base = array.name or (array.file or "").rpartition("/")[2].partition(".")[0] or "field"
    base = "field" if "*" in base else base
    names = [base] if "c" not in axes else [f"{base}-{i}" for i in range(count)]
    return {**_address(array), "axes": list(axes), "names": names}


def _make_names_distinct(entries: list[dict[str, Any]]) -> None:
    """Arrays of one name in several groups are called by group and name."""
    counts = Counter(name for entry in entries for name in entry["names"])
    for entry in entries:
        if any(counts[name] > 1 for name in entry["names"]):
            prefix = entry.get("key", "").rpartition("/")[0] or entry.get("file", "")
            prefix = prefix.replace("/", "-").removesuffix(".npy")
            entry["names"] = [f"{prefix}-{name}" for name in entry["names"]]


def _address(array: FoundArray) -> dict[str, Any]:
    found = {"file": array.file, "key": array.key}
    return {key: value for key, value in found.items() if value}


def _add_parameters(
    tree: dict[str, Any], found: Catalogue, data: Sequence[tuple[FoundArray, str]]
) -> list[FoundArray]:
    """Vectors with one number per trajectory; of files of one trajectory, single numbers."""
    first, axes = data[0]
    if "n" in axes:
        count = first.shape[axes.index("n")]
        along = first.dimensions[axes.index("n")] if first.dimensions else None
        vectors = [a for a in found.arrays if a.shape == (count,) and a.name != along]
        if along is not None:
            vectors = [a for a in vectors if a.dimensions == (along,)]
    else:
        vectors = [a for a in found.arrays if a.shape in ((), (1,)) and is_pattern(a.file)]
        vectors = [a for a in vectors if not a.dimensions or not role_of(a.dimensions[0])]
    if vectors:
        tree["parameters"] = {array.name: _address(array) for array in vectors}
    return vectors


def _add_coordinates(
    tree: dict[str, Any],
    found: Catalogue,
    data: Sequence[tuple[FoundArray, str]],
    guesses: list[str],
) -> list[FoundArray]:
    """Positions along time and space: vectors of the dimensions' names hold them.

    Where dimensions have no names, a vector as long as an axis that is called as such an axis usually
    is (`time`, `x`) is taken to hold its positions, which is a guess.
    """
    first, axes = data[0]
    vectors = [a for a in found.arrays if len(a.shape) == 1 and a.file == first.file]
    by_name = {a.name: a for a in vectors}
    used, starts, extents = [], [], {}
    for number, letter in enumerate(axes):
        if first.dimensions:
            coordinate = by_name.get(first.dimensions[number])
        else:
            length = first.shape[number]
            alike = [a for a in vectors if a.shape == (length,) and _letter(a.name) == letter]
            coordinate = alike[0] if len(alike) == 1 and letter in "tzyx" else None
        if coordinate is None or coordinate.shape[0] < 2:
            continue
        if not first.dimensions:
            guesses.append(f"{_described(coordinate)} holds the positions along {letter}")
        if letter == "t":
            tree["frame_interval"] = _address(coordinate)
            used.append(coordinate)
        elif letter in "zyx":
            extents[letter] = _address(coordinate)
            starts.append(coordinate.starts_at)
            used.append(coordinate)
    if extents:
        tree["domain_extent"] = extents
    if starts and all(start == 0 for start in starts):
        tree["grid_location"] = "node"
    return used


def _letter(name: str) -> str | None:
    """The letter of the axis that usually has a name; None of other names."""
    return LETTERS.get(role_of(name))


def _described(array: FoundArray) -> str:
    name = ": ".join(part for part in (array.file, array.key) if part)
    along = f" along {', '.join(array.dimensions)}" if array.dimensions else ""
    return f"{name} {array.shape}{along}"


def _flow(value: Any) -> str:
    """A value on one line of YAML."""
    return yaml_text(value, default_flow_style=True, width=10**6, sort_keys=False).removesuffix(
        "...\n"
    ).strip()  # fmt: skip
