"""Listing the arrays of a file or folder: names, shapes, and the names of their axes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pelagos.data_pipelines.convert.formats import natural, split_folders
from pelagos.data_pipelines.convert.hdf5 import ClassicFile, is_classic, open_hdf5
from pelagos.data_pipelines.convert.hdf5.arrays import is_bare_dimension
from pelagos.data_pipelines.convert.mapping.files import READER_OF_SUFFIX, SPLIT_PLACE, reader_of
from pelagos.data_pipelines.convert.npz import NpzFile, mapped_npy
from pelagos.data_pipelines.convert.source import SourceError
from pelagos.infra.storage.remote import is_remote, storage_options

MOST_ARRAYS = 500  # per file: one with more has a group per sample, which no mapping describes


@dataclass(frozen=True)
class FoundArray:
    """An array of numbers.

    Attributes:
        file: as a mapping names it; None: the source itself.
        dimensions: names of its axes; None: it has none.
        starts_at: the first number of a vector; None: not looked at.
    """

    file: str | None
    key: str
    shape: tuple[int, ...]
    dimensions: tuple[str, ...] | None = None
    starts_at: float | None = None

    @property
    def name(self) -> str:
        return self.key.rpartition("/")[2]


@dataclass(frozen=True)
class Catalogue:
    """The arrays of a source.

    Attributes:
        arrays: of the first file, where the files are alike.
        num_files: how many files are alike; 1: each array is in the file that it names.
    """

    arrays: tuple[FoundArray, ...]
    num_files: int = 1


def catalogue(path: str) -> Catalogue:
    """The arrays of a file, or of a folder of files that are alike or of one each.

    Raises:
        SourceError: none exist.
    """
    place = Path(path)
    if is_remote(path) or not place.is_dir() or path.rstrip("/").endswith(".zarr"):
        return Catalogue(tuple(_arrays(path, None)))
    splits = split_folders(path)
    folders = list(splits.values()) or [place]
    files = [file for folder in folders for file in _files(folder)]
    if not files:
        raise SourceError(
            f"{path} has no array files; Pelagos knows files ending in "
            f"{', '.join(READER_OF_SUFFIX)}"
        )
    by_suffix: dict[str, list[Path]] = {}
    for file in files:
        by_suffix.setdefault(file.suffix, []).append(file)
    found: list[FoundArray] = []
    for suffix, alike in by_suffix.items():
        pattern = f"{SPLIT_PLACE}/*{suffix}" if splits else f"*{suffix}"
        first = list(_arrays(str(alike[0]), pattern))
        if len(by_suffix) == 1 and (splits or (len(alike) > 1 and _are_alike(alike, first))):
            return Catalogue(tuple(first), len(alike))
        for file in alike:
            found += _arrays(str(file), str(file.relative_to(place)))
    return Catalogue(tuple(found))


def _files(folder: Path) -> list[Path]:
    members = [p for p in folder.iterdir() if p.suffix in READER_OF_SUFFIX]
    return sorted(members, key=lambda p: natural(p.name))


def _are_alike(files: Sequence[Path], first: Sequence[FoundArray]) -> bool:
    """Whether the last file has arrays of the first, so that each file has trajectories of its own.

    Other arrays that only one has are an error, or are noted where the files are measured; files
    that share no array but coordinates hold different fields of the same trajectories.
    """
    last = list(_arrays(str(files[-1]), None))
    one, other = ({(a.key, len(a.shape)) for a in arrays} for arrays in (first, last))
    shared = {key for key, axes in one & other if axes > 1}
    if files[0].suffix == ".npy":
        return bool(shared) and one == other and len({f.stem for f in files}) >= 3
    return bool(shared)


def _arrays(path: str, file: str | None) -> Iterator[FoundArray]:
    reader = reader_of(path)
    if reader == "hdf5":
        yield from _classic(path, file) if is_classic(path) else _hdf5(path, file)
    elif reader == "npy":
        yield FoundArray(file, "", mapped_npy(path).shape)
    elif reader == "npz":
        archive = NpzFile(path)
        yield from (FoundArray(file, name, archive.shape(name)) for name in archive.names())
        archive.close()
    else:
        yield from _zarr(path, file)


def _hdf5(path: str, file: str | None) -> Iterator[FoundArray]:
    found: list[FoundArray] = []

    def note(name: str, node: Any) -> bool | None:
        shape = getattr(node, "shape", None)
        if shape is None or node.dtype.kind not in "fiub" or is_bare_dimension(node):
            return None
        names = tuple(_dimension(dim) for dim in node.dims) if shape else ()
        starts_at = float(node[0]) if len(shape) == 1 and shape[0] else None
        found.append(FoundArray(file, name, shape, names if all(names) else None, starts_at))
        return True if len(found) >= MOST_ARRAYS else None

    with open_hdf5(path) as opened:
        opened.visititems(note)
    yield from found


def _dimension(dim: Any) -> str:
    """The name of an axis: that of its dimension scale, or its label."""
    if len(dim):
        return str(dim[0].name).rpartition("/")[2]
    return str(dim.label)


def _classic(path: str, file: str | None) -> Iterator[FoundArray]:
    opened = ClassicFile(path)
    for name, variable in opened.file.variables.items():
        shape = tuple(map(int, variable.shape))
        if variable.data.dtype.kind in "fiu":
            starts_at = float(variable.data[0]) if len(shape) == 1 and shape[0] else None
            yield FoundArray(file, name, shape, tuple(variable.dimensions), starts_at)
    opened.close()


def _zarr(path: str, file: str | None) -> Iterator[FoundArray]:
    import zarr

    from pelagos.data_pipelines.foreign.axes import dimension_names
    from pelagos.data_pipelines.store.zarr_view import open_store

    node = zarr.open(open_store(path, storage_options(path) or None), mode="r")
    members = [("", node)] if isinstance(node, zarr.Array) else list(node.arrays())
    for name, array in members:
        if array.dtype.kind in "fiub":
            yield FoundArray(file, name, tuple(array.shape), dimension_names(array))
