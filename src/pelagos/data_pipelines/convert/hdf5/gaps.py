"""Parts of an HDF5 array that were never written, which HDF5 reads as zeros or as its fill value.

Chunks without storage, contiguous arrays that were only declared, external files that are gone or
short, and virtual arrays whose sources are gone or leave a part uncovered. A part is a box, one
half-open range per axis.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pelagos.data_pipelines.conventions.selection import Box
from pelagos.data_pipelines.convert.hdf5.elsewhere import require_numbers_beside
from pelagos.data_pipelines.convert.hdf5.first_look import require_answering
from pelagos.data_pipelines.convert.source import SourceError

# Larger virtual arrays are not compared point by point with the extent of their sources.
MOST_COUNTED_POINTS = 2**26
# A virtual array may be made of virtual arrays; deeper ones are taken to be a loop.
MOST_LEVELS = 16
# One byte per chunk marks whether it was written.
MOST_CHUNKS = 2**26


@dataclass(frozen=True)
class Gap:
    """A part that holds nothing, and why.

    Attributes:
        box: half-open range per axis.
        reason: continues "FILE: ARRAY …".
    """

    box: Box
    reason: str


@dataclass(frozen=True)
class Gaps:
    """Everything of an array that was never written.

    Attributes:
        chunks: `[chunk, axis]`, the first index of each chunk without storage.
        chunk_shape: of these chunks.
        others: parts for other reasons.
        count, total: chunks without storage, of how many.
    """

    shape: tuple[int, ...]
    chunks: npt.NDArray[np.int64] | None = None
    chunk_shape: tuple[int, ...] = ()
    total: int = 0
    others: tuple[Gap, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.others) or self.chunks is not None

    def first_in(self, wanted: Box) -> tuple[tuple[int, ...], str] | None:
        """The first index of `wanted` that was never written, and why; None if all of it was."""
        low = np.array([a for a, _ in wanted], np.int64)
        high = np.array([b for _, b in wanted], np.int64)
        if (low >= high).any():
            return None
        if self.chunks is not None:
            ends = self.chunks + np.array(self.chunk_shape)
            hit = ((self.chunks < high) & (ends > low)).all(axis=1)
            if hit.any():
                first = np.maximum(self.chunks[hit][0], low)
                reason = f"has {len(self.chunks)} of {self.total} chunks that were never written"
                return tuple(first.tolist()), reason
        for gap in self.others:
            starts = [max(a, c) for (a, _), (c, _) in zip(wanted, gap.box, strict=True)]
            stops = [min(b, d) for (_, b), (_, d) in zip(wanted, gap.box, strict=True)]
            if all(a < b for a, b in zip(starts, stops, strict=True)):
                return tuple(starts), gap.reason
        return None


def find_gaps(dataset: Any, level: int = 0) -> Gaps:
    """The parts of an h5py dataset that were never written. Reads its index of chunks, none of its data.

    Raises:
        SourceError: it, or a source of it, has its numbers in a file elsewhere.
    """
    require_numbers_beside(dataset, f"{dataset.file.filename}: {dataset.name}")
    shape = tuple(map(int, dataset.shape))
    whole = tuple((0, size) for size in shape)
    if math.prod(shape) == 0:
        return Gaps(shape)
    if dataset.is_virtual:
        return Gaps(shape, others=tuple(_virtual_gaps(dataset, whole, level)))
    if dataset.external:
        return Gaps(shape, others=tuple(_external_gaps(dataset, whole)))
    if dataset.chunks is None:
        if dataset.id.get_storage_size() == 0:
            return Gaps(shape, others=(Gap(whole, "was declared and never written"),))
        return Gaps(shape)
    counts = [-(-size // width) for size, width in zip(shape, dataset.chunks, strict=True)]
    total = math.prod(counts)
    if total > MOST_CHUNKS:
        raise SourceError(
            f"{dataset.file.filename}: {dataset.name} declares {total:,} chunks, "
            f"{dataset.id.get_num_chunks():,} of them written; write it in larger chunks"
        )
    if dataset.id.get_num_chunks() >= total:
        return Gaps(shape)
    lacking = _lacking_chunks(dataset, counts)
    if not len(lacking):
        return Gaps(shape)
    return Gaps(shape, lacking * np.array(dataset.chunks), dataset.chunks, total)


def _lacking_chunks(dataset: Any, counts: list[int]) -> npt.NDArray[np.int64]:
    """Positions in the grid of chunks that have no storage, in the order of the array."""
    is_there = np.zeros(counts, bool)
    widths = dataset.chunks

    def note(chunk: Any) -> None:
        place = tuple(at // width for at, width in zip(chunk.chunk_offset, widths, strict=True))
        if all(at < count for at, count in zip(place, counts, strict=True)):
            is_there[place] = True

    dataset.id.chunk_iter(note)
    return np.argwhere(~is_there).astype(np.int64)


def _external_gaps(dataset: Any, whole: Box) -> Iterator[Gap]:
    folder = Path(dataset.file.filename).parent
    for name, offset, size in dataset.external:
        path = folder / name
        if not path.is_file():
            yield Gap(whole, f"stores its numbers in the file {path}, which does not exist")
        elif size < 2**63 and path.stat().st_size < offset + size:
            yield Gap(
                whole,
                f"stores its numbers in the file {path}, which has {path.stat().st_size} bytes but "
                f"needs {offset + size}",
            )


def _virtual_gaps(dataset: Any, whole: Box, level: int) -> Iterator[Gap]:
    covered, boxes = 0, []
    for source in dataset.virtual_sources():
        points = int(source.vspace.get_select_npoints())
        if not points:
            continue
        low, high = source.vspace.get_select_bounds()
        box = tuple((int(a), int(b) + 1) for a, b in zip(low, high, strict=True))
        box = tuple((a, min(b, stop)) for (a, b), (_, stop) in zip(box, whole, strict=True))
        covered += points
        boxes.append(box)
        reason = _reason(dataset, source, level)
        if reason:
            yield Gap(box, reason)
    size = math.prod(stop for _, stop in whole)
    if covered >= size and len(boxes) == 1:
        return
    hole = _uncovered(whole, dataset)
    if hole is not None:
        yield hole


def _reason(dataset: Any, source: Any, level: int) -> str:
    """Why a source of a virtual array gives nothing, or only in part; empty if it gives all."""
    import h5py

    name, key = str(source.file_name), str(source.dset_name)
    if "%b" in name or "%b" in key:
        return (
            f"is virtual with a pattern of sources ({name}: {key}), and HDF5 skips those that are "
            "absent; write the array whole (h5repack, or copy it with h5py)"
        )
    if name == ".":
        return _reason_inside(dataset.file, dataset.file.filename, key, source, level)
    path = _found(dataset, name)
    if path is None:
        return f"is virtual, and its source {name} ({key}) does not exist"
    require_answering(path)
    try:
        with h5py.File(path, "r") as opened:
            return _reason_inside(opened, str(path), key, source, level)
    except OSError as error:
        return f"is virtual, and reading its source {path} ({key}) failed: {error}"


def _found(dataset: Any, name: str) -> Path | None:
    """A source's file, absolute or next to the virtual one, as HDF5 looks for it."""
    here = Path(dataset.file.filename).parent
    for candidate in (Path(name), here / name, here / Path(name).name):
        if candidate.is_file() and (candidate.is_absolute() or candidate != Path(name)):
            return candidate
    return Path(name) if Path(name).is_file() else None


def _reason_inside(file: Any, path: str, key: str, source: Any, level: int) -> str:
    if key not in file:
        return f"is virtual, and its source {path} has no array {key}"
    found = file[key]
    if level >= MOST_LEVELS:
        return f"is virtual over more than {MOST_LEVELS} levels of sources"
    import h5py

    space = source.src_space
    takes_all = space.get_select_type() == h5py.h5s.SEL_ALL
    needed = int(source.vspace.get_select_npoints())
    is_short = any(have < want for have, want in zip(found.shape, space.shape, strict=False))
    if is_short or (takes_all and found.size < needed):
        return (
            f"is virtual, and its source {path}: {key} has shape {found.shape}, which is too small"
        )
    gaps = find_gaps(found, level + 1)
    if not gaps:
        return ""
    box: Box = tuple((0, size) for size in found.shape)
    if not takes_all:
        low, high = space.get_select_bounds()
        box = tuple((int(a), int(b) + 1) for a, b in zip(low, high, strict=True))
    hit = gaps.first_in(box)
    return f"is virtual, and its source {path}: {key} {hit[1]}" if hit is not None else ""


def _uncovered(whole: Box, dataset: Any) -> Gap | None:
    """The first point of a virtual array that no source covers."""
    shape = tuple(stop for _, stop in whole)
    reason = "is virtual, and no source covers this part"
    if math.prod(shape) > MOST_COUNTED_POINTS:
        return _uncovered_by_count(whole, dataset)
    covered = np.zeros(shape, bool)
    for source in dataset.virtual_sources():
        for box in _selected_boxes(source.vspace, shape):
            covered[tuple(slice(a, b) for a, b in box)] = True
    if covered.all():
        return None
    lacking = np.argwhere(~covered)
    low, high = lacking.min(axis=0), lacking.max(axis=0) + 1
    box = tuple((int(a), int(b)) for a, b in zip(low, high, strict=True))
    return Gap(box, reason)


def _uncovered_by_count(whole: Box, dataset: Any) -> Gap | None:
    points = sum(int(s.vspace.get_select_npoints()) for s in dataset.virtual_sources())
    if points >= math.prod(stop for _, stop in whole):
        return None
    return Gap(whole, f"is virtual, and its sources cover only {points} of its points")


def _selected_boxes(space: Any, shape: tuple[int, ...]) -> Iterable[Box]:
    """The blocks that a selection consists of."""
    import h5py

    if space.get_select_type() == h5py.h5s.SEL_ALL:
        return [tuple((0, size) for size in shape)]
    if not space.is_regular_hyperslab():
        return [
            tuple((int(a), int(b) + 1) for a, b in zip(low, high, strict=True))
            for low, high in space.get_select_hyper_blocklist()
        ]
    start, stride, count, block = space.get_regular_hyperslab()
    along = []
    for axis, size in enumerate(shape):
        repeats = min(int(count[axis]), -(-(size - int(start[axis])) // int(stride[axis])))
        if stride[axis] == block[axis] or repeats == 1:
            stop = min(int(start[axis]) + repeats * int(block[axis]), size)
            along.append([(int(start[axis]), stop)])
            continue
        firsts = [int(start[axis]) + i * int(stride[axis]) for i in range(repeats)]
        along.append([(first, min(first + int(block[axis]), size)) for first in firsts])
    return list(itertools.product(*along))
