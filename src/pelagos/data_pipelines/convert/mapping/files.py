"""Which files a mapping means: one, or as many as a pattern matches, by split."""

from __future__ import annotations

import glob
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from pelagos.data_pipelines.convert.containers import unreadable_kind
from pelagos.data_pipelines.convert.endless_files import reject_endless
from pelagos.data_pipelines.convert.formats import misspelt_split, natural
from pelagos.data_pipelines.convert.source import SourceError
from pelagos.data_pipelines.store.splits import meant_split, split_of
from pelagos.infra.storage.addresses import reject_empty_parts
from pelagos.infra.storage.files import expanded_path
from pelagos.infra.suggestions import listed, nearest

READER_OF_SUFFIX = {
    ".npy": "npy",
    ".npz": "npz",
    ".h5": "hdf5",
    ".hdf5": "hdf5",
    ".nc": "hdf5",
    ".nc4": "hdf5",
    ".cdf": "hdf5",
    ".zarr": "strict-zarr",
}
SPLIT_PLACE = "{split}"
_WILD = re.compile(r"\*\*/|\*|\?|" + re.escape(SPLIT_PLACE))


@dataclass(frozen=True)
class Unit:
    """One file of each pattern, which hold the same trajectories.

    Attributes:
        split: `train`, …; empty where the pattern names none.
        token: the text that the pattern's wildcards matched; empty without a pattern.
    """

    split: str
    token: tuple[str, ...]

    @property
    def order(self) -> tuple[int, list[int | str], list[list[int | str]]]:
        """Splits in their order, others after them, then files as a person counts them."""
        splits = ("", "train", "validation", "test")
        at = splits.index(self.split) if self.split in splits else len(splits)
        return at, natural(self.split), [natural(part) for part in self.token]


def is_pattern(name: str | None) -> bool:
    """Whether a file entry of a mapping matches several files."""
    return name is not None and _WILD.search(name) is not None


def reader_of(place: str) -> str:
    """Which reader opens a file.

    Raises:
        SourceError: the suffix is unknown.
    """
    for suffix, reader in READER_OF_SUFFIX.items():
        if place.rstrip("/").endswith(suffix):
            return reader
    if known := unreadable_kind(place):
        raise SourceError(known)
    raise SourceError(f"{place}: Pelagos knows files ending in {', '.join(READER_OF_SUFFIX)}")


def folder_of(path: str) -> Path:
    """Where the files of a mapping are: in the source, or next to it."""
    place = Path(path)
    return place if place.is_dir() and not path.rstrip("/").endswith(".zarr") else place.parent


def address_of(path: str, name: str | None) -> str:
    """The address of a file that a mapping names, next to or in the source."""
    if name is None:
        if Path(path).is_dir() and not path.rstrip("/").endswith(".zarr"):
            raise SourceError(
                f"{path} is a folder: name one of its files in `file`, or give a pattern such as "
                f"'*.h5'; it has {listed(_files_in(Path(path)))}"
            )
        return path
    name = expanded_path(name)
    reject_empty_parts(name, SourceError)
    if "://" in name or Path(name).is_absolute():
        return name
    place = folder_of(path) / name
    if "://" not in path and not place.exists():
        there = _files_in(folder_of(path))
        raise SourceError(
            f"{place} does not exist{nearest(name, there)}; the folder has {listed(there)}"
        )
    return f"{path.rpartition('/')[0]}/{name}" if "://" in path else str(place)


def matched_files(path: str, pattern: str, notes: list[str]) -> dict[Unit, str]:
    """The files of a pattern, in order.

    Raises:
        SourceError: none exist, or the place cannot be listed.
    """
    if "://" in path or "://" in pattern:
        raise SourceError(
            f"{pattern}: patterns work only for files on this machine, not for object storage"
        )
    if pattern.count(SPLIT_PLACE) > 1:
        raise SourceError(f"{pattern}: {SPLIT_PLACE} may occur only once")
    whole = str(folder_of(path) / expanded_path(pattern))  # an absolute one stays as it is
    expression, searched = _compiled(whole)
    found: dict[Unit, str] = {}
    strangers: set[str] = set()
    for place in glob.glob(searched, recursive=True):
        match = expression.fullmatch(place)
        if match is None:
            continue
        split = ""
        if SPLIT_PLACE in pattern:
            folder = match.group("split")
            split = split_of(folder) or ""
            if not split:
                strangers.add(folder)
                continue
        reject_endless(place)
        token = tuple(g for name, g in _groups(match) if name != "split")
        unit = Unit(split, token)
        if unit in found:
            raise SourceError(f"{found[unit]} and {place} belong to one split: merge their folders")
        found[unit] = place
    present = {unit.split for unit in found}
    for folder in sorted(strangers):
        if meant_split(folder, present):
            raise misspelt_split(Path(whole.partition(SPLIT_PLACE)[0]) / folder, present)
    if strangers:
        notes.append(
            f"left out, because they have no name of a split: {', '.join(sorted(strangers))}"
        )
    if not found:
        there = _files_in(Path(_fixed_part(whole)))
        raise SourceError(f"no file matches {whole}; the folder has {listed(there)}")
    return {unit: found[unit] for unit in sorted(found, key=lambda u: u.order)}


def _groups(match: re.Match[str]) -> Iterable[tuple[str, str]]:
    names = {index: name for name, index in match.re.groupindex.items()}
    return [(names.get(i + 1, ""), g or "") for i, g in enumerate(match.groups())]


def _compiled(pattern: str) -> tuple[re.Pattern[str], str]:
    """The pattern as a regular expression that keeps the wildcards' matches, and for glob."""
    expression, searched, at = "", "", 0
    for wild in _WILD.finditer(pattern):
        fixed = pattern[at : wild.start()]
        expression += re.escape(fixed)
        searched += glob.escape(fixed)
        kind = wild.group()
        expression += {
            "**/": "((?:.*/)?)", "*": "([^/]*)", "?": "([^/])", SPLIT_PLACE: "(?P<split>[^/]+)"
        }[kind]  # fmt: skip
        searched += "*" if kind == SPLIT_PLACE else kind
        at = wild.end()
    return re.compile(expression + re.escape(pattern[at:])), searched + glob.escape(pattern[at:])


def _fixed_part(pattern: str) -> str:
    first = _WILD.search(pattern)
    return pattern[: first.start() if first else None].rpartition("/")[0] or "."


def _files_in(folder: Path) -> list[str]:
    """Names of a folder's members, as a person counts them."""
    try:
        return sorted((p.name + "/" * p.is_dir() for p in folder.iterdir()), key=natural)
    except OSError:
        return []
