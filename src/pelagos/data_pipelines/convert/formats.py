"""The protocol of formats, and the code that several formats share to look at files."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pelagos.data_pipelines.convert.hdf5 import open_hdf5
from pelagos.data_pipelines.convert.hdf5.bounded_chunks import UnprovenChunks
from pelagos.data_pipelines.convert.hdf5.elsewhere import require_beside, require_numbers_beside
from pelagos.data_pipelines.convert.hdf5.first_look import DamagedFileError, require_answering
from pelagos.data_pipelines.convert.hdf5.gaps import find_gaps
from pelagos.data_pipelines.convert.options import ConvertOptions
from pelagos.data_pipelines.convert.source import Source, SourceError
from pelagos.data_pipelines.store.splits import (
    KNOWN_SPLITS,
    SPLIT_NAMES,
    is_split_name,
    meant_split,
)
from pelagos.infra.storage.remote import is_remote

HDF5_SUFFIXES = (".h5", ".hdf5", ".nc", ".nc4")
# Positions read from a file are called evenly spaced up to this part of their spacing.
SPACING_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Format:
    """A file format that `pelagos convert` reads.

    Args:
        description: a short one, for a list.
        source: the meaning of SRC, for a list.
        matches: whether a source looks like it.
        read: a source's description.
    """

    name: str
    description: str
    source: str
    matches: Callable[[str, ConvertOptions], bool]
    read: Callable[[str, ConvertOptions], Source]


def natural(path: str | Path) -> list[int | str]:
    """Sort key that puts `data_10` after `data_9`."""
    pieces = re.split(r"(\d+)", str(path))
    return [int(piece) if i % 2 else piece for i, piece in enumerate(pieces)]


def files_of(path: str, suffixes: Sequence[str] = HDF5_SUFFIXES) -> list[str]:
    """The file at `path`, or those in the folder there with one of the suffixes, in order.

    Suffixes in capitals count; hidden files, which some archives hold, are left out.

    Raises:
        SourceError: a link leads nowhere.
    """
    endings = tuple(suffixes)
    if is_remote(path):
        return [path] if path.endswith(endings) else []
    place = Path(path)
    if not place.is_dir():
        return [path] if place.is_file() and place.name.lower().endswith(endings) else []
    named_so = [p for p in place.iterdir() if p.name.lower().endswith(endings)]
    found = [p for p in named_so if not p.name.startswith(".") and not p.is_dir()]
    for file in found:
        if not file.exists():
            raise SourceError(f"{file} is a link to {file.readlink()}, which does not exist")
    return [str(p) for p in sorted(found, key=lambda p: natural(p.name))]


def split_folders(path: str) -> dict[str, Path]:
    """Folders of a folder that are named like splits, in the order train, validation, test.

    Then those of like files whose names have an ending (`test-ood`).

    Raises:
        SourceError: two folders have names of one split, or a folder of like files has nearly that
            name.
    """
    place = Path(path)
    if is_remote(path) or not place.is_dir():
        return {}
    found: dict[str, Path] = {}
    for folder in sorted(place.iterdir()):
        name = SPLIT_NAMES.get(folder.name.lower())
        if name is None or not folder.is_dir():
            continue
        if name in found:
            raise SourceError(
                f"{found[name]} and {folder} are both the split {name}: put everything into one "
                "folder, or remove one"
            )
        found[name] = folder
    _require_no_misspelt_split(place, found)
    names = ("train", "validation", "test")
    ordered: dict[str, Path] = {name: found[name] for name in names if name in found}
    kinds = {suffix for folder in found.values() for suffix in _suffixes(folder)}
    for folder in sorted(place.iterdir(), key=lambda p: natural(p.name)) if kinds else ():
        if folder.is_dir() and folder not in found.values() and is_split_name(folder.name):
            ordered |= {folder.name: folder} if kinds & _suffixes(folder) else {}
    return ordered


def _require_no_misspelt_split(place: Path, found: Mapping[str, Path]) -> None:
    """Raise SourceError for a folder `vaild` next to `train` that holds files of the same kind."""
    kinds = {suffix for folder in found.values() for suffix in _suffixes(folder)}
    for folder in sorted(place.iterdir()) if kinds else ():
        if folder.is_dir() and meant_split(folder.name, found) and kinds & _suffixes(folder):
            raise misspelt_split(folder, found)


def misspelt_split(folder: Path, present: Collection[str]) -> SourceError:
    """The error for a folder that has nearly the name of a split which is absent."""
    return SourceError(
        f"{folder} is not a known split and would be left out; did you mean "
        f"{meant_split(folder.name, present)!r}? Rename it, or move it away if it is not a split. "
        f"Known splits: {KNOWN_SPLITS}"
    )


def _suffixes(folder: Path) -> set[str]:
    return {p.suffix.lower() for p in folder.iterdir() if p.suffix and p.name[0] != "."}


@contextlib.contextmanager
def looking_into(file: str) -> Iterator[Any]:
    """An HDF5 file, open for a look."""
    opened = open_hdf5(file)
    with opened:
        yield opened


def hdf5_looks(file: str, test: Callable[[Any], bool]) -> bool:
    """Whether a file is HDF5 and passes a test. Raises DamagedFileError: its reading would not end."""
    try:
        with looking_into(file) as opened:
            return bool(test(opened))
    except SourceError as error:
        if isinstance(error, DamagedFileError) or isinstance(error.__cause__, ModuleNotFoundError):
            raise
        return False


def child(group: Any, key: str, expected: str) -> Any:
    """A member of an HDF5 group.

    Raises:
        SourceError: it is absent; lists the existing ones.
        DamagedFileError: the HDF5 library would hang or crash in it.
    """
    require_beside(group, key)
    require_answering(os.fsdecode(group.file.filename), f"{group.name}/{key}")
    if key not in group:
        raise SourceError(
            f"{group.file.filename}: {group.name.rstrip('/')}/{key} is missing, expected "
            f"{expected}; the group has {', '.join(list(group)[:10]) or 'no members'}"
        )
    found = group[key]
    require_numbers_beside(found, f"{group.file.filename}: {found.name}")
    if len(getattr(found, "shape", None) or ()) == 1:
        # a coordinate, which formats read whole; of data each part is looked at when it is read
        whole = tuple((0, int(size)) for size in found.shape)
        gap = find_gaps(found).first_in(whole)
        if gap is not None:
            index, reason = gap
            raise SourceError(
                f"{group.file.filename}: {found.name} holds nothing at index "
                f"({', '.join(map(str, index))}): it {reason}"
            )
        where = f"{group.file.filename}: {found.name}"
        UnprovenChunks(found, where).try_in(found, whole)
    return found


def attribute(node: Any, key: str, expected: str) -> Any:
    """An attribute of an HDF5 group or array.

    Raises:
        SourceError: it is absent.
    """
    if key not in node.attrs:
        raise SourceError(
            f"{node.file.filename}: {node.name} has no attribute {key!r}, expected {expected}; it "
            f"has {', '.join(node.attrs) or 'none'}"
        )
    return node.attrs[key]


def text(value: Any) -> str:
    """A string attribute, whichever way HDF5 stored it."""
    return value.decode() if isinstance(value, bytes) else str(value)


def texts(values: Iterable[Any]) -> list[str]:
    """Return each value as text."""
    return [text(value) for value in values]


def interval(points: npt.ArrayLike, what: str) -> tuple[float, str | None]:
    """Spacing of positions or times, and a sentence for a person if it is not even.

    >>> interval([0.0, 0.5, 1.0], "times")
    (0.5, None)
    """
    values = np.asarray(points, np.float64)
    if len(values) < 2:
        return 1.0, None
    steps = np.diff(values)
    mean = float((values[-1] - values[0]) / (len(values) - 1))
    if not np.isfinite(mean) or mean <= 0:
        return 1.0, f"{what} do not increase, so their spacing is set to 1"
    if np.abs(steps - mean).max() > SPACING_TOLERANCE * mean:
        return (
            mean,
            f"{what} are not evenly spaced; the dataset stores their mean spacing, {mean:g}",
        )
    # numbers such as 0.05 that float32 cannot hold
    return float(f"{mean:.6g}"), None


def extent(spacing: float, num_points: int) -> float:
    """Length of a domain in cells of `spacing`, which was rounded.

    >>> extent(0.166667, 6)
    1.0
    """
    return float(f"{spacing * num_points:.5g}")


def stored_bytes(files: Iterable[str]) -> int:
    """Bytes of local files together: this detects a source that has changed since the start."""
    return sum(Path(f).stat().st_size for f in files if not is_remote(f) and Path(f).exists())


def named(path: str) -> str:
    """A dataset's name from a source's path: without folders and suffix."""
    last = path.rstrip("/").rpartition("/")[2]
    for suffix in (*HDF5_SUFFIXES, ".ome.zarr", ".zarr", ".npy", ".npz", ".nii.gz", ".nii"):
        if last.endswith(suffix) and last != suffix:
            return last[: -len(suffix)]
    return last
