"""Folders of pictures, one per class, also inside folders named by split.

The layout of ImageNet and of torchvision's `ImageFolder`: `DIR/CLASS/picture.png`, or
`DIR/train/CLASS/picture.png`. Classes are numbered in the order of their names, over all splits. A
class may be called `train`: folders that hold pictures themselves, next to other such folders, are
classes. Linked folders are followed. Hidden files and folders are left out.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from pelagos.data_pipelines.convert.agreement import Agreement
from pelagos.data_pipelines.convert.formats import (
    Format,
    misspelt_split,
    named,
    natural,
    split_folders,
)
from pelagos.data_pipelines.convert.options import ConvertOptions
from pelagos.data_pipelines.convert.pictures import EIGHT_BITS, RAW, head
from pelagos.data_pipelines.convert.source import Part, Source, SourceError, StoredArray
from pelagos.data_pipelines.store import Field
from pelagos.data_pipelines.store.schema import LABEL_PARAMETER
from pelagos.data_pipelines.store.splits import SPLIT_NAMES, is_split_name, meant_split
from pelagos.infra.storage.remote import is_remote

SUFFIXES = (
    *(".png", ".jpg", ".jpeg", ".jfif", ".tif", ".tiff", ".bmp", ".webp"),
    ".gif",
)
_FIELDS = {"L": ("intensity",), "RGB": ("red", "green", "blue"), RAW: ("intensity",)}


@dataclass
class _Walk:
    """Pictures below folders, with the entries left out on the way."""

    others: list[Path] = field(default_factory=list)
    loops: list[Path] = field(default_factory=list)

    def pictures(self, folder: Path, above: frozenset[Path] = frozenset()) -> Iterator[Path]:
        """Every picture below a folder, through links too.

        Raises:
            SourceError: a folder cannot be listed, or a link leads nowhere.
        """
        place = folder.resolve()
        if place in above:  # a link to a folder that holds it
            self.loops.append(folder)
            return
        for entry in _listed(folder):
            if entry.is_dir():
                yield from self.pictures(entry, above | {place})
            elif entry.suffix.lower() not in SUFFIXES:
                self.others.append(entry)
            elif entry.is_file():
                yield entry
            else:
                raise SourceError(
                    f"{entry} is a link to {os.readlink(entry)}, which does not exist"
                )

    def notes(self) -> Iterator[str]:
        if self.others:
            yield f"{len(self.others)} files are not pictures and are left out: {self.others[0]}, …"
        for folder in self.loops:
            yield f"{folder} links to a folder above it: it is left out"


def _listed(folder: Path) -> list[Path]:
    """The entries of a folder, in order, without hidden ones."""
    try:
        return sorted(p for p in folder.iterdir() if not p.name.startswith("."))
    except OSError as error:
        raise SourceError(f"{folder} cannot be listed: {error.strerror}") from error


def _folders(path: str) -> tuple[dict[str, Path], list[str]]:
    """The folder of each split, or `all`, and notes on how that was decided.

    Raises:
        SourceError: names and structure do not determine it.
    """
    within = [p for p in _listed(Path(path)) if p.is_dir() and any(_Walk().pictures(p))]
    like_splits = [p for p in within if p.name.lower() in SPLIT_NAMES]
    others = [p for p in within if p not in like_splits]
    flat = [p for p in like_splits if any(_is_picture(entry) for entry in _listed(p))]
    names = ", ".join(p.name for p in like_splits)
    if others and flat and flat == like_splits:
        return {"all": Path(path)}, [
            f"{names} hold pictures next to folders of other classes ({others[0].name}, …): they are "
            f"read as classes, not as splits"
        ]
    if flat:
        raise SourceError(
            f"{flat[0]} is named like a split and holds pictures itself; expected is a folder per "
            f"class in it. If it is a class, give it another name, or put all classes into a folder "
            f"called all"
        )
    if not like_splits:
        return {"all": Path(path)}, []
    splits = {SPLIT_NAMES[p.name.lower()] for p in like_splits}
    for folder in others:
        if meant_split(folder.name, splits):
            raise misspelt_split(folder, splits)
    ended = {p.name: p for p in others if is_split_name(p.name)}  # test-ood
    left_out = [p.name for p in others if p.name not in ended]
    notes = (
        [f"folders next to {names} that are no split are left out: {', '.join(left_out)}"]
        if left_out
        else []
    )
    found = {name: p for name, p in split_folders(path).items() if p in like_splits}
    return {**found, **ended}, notes


def _is_picture(place: Path) -> bool:
    return place.suffix.lower() in SUFFIXES and place.is_file()


def _pictures(folder: Path, walk: _Walk) -> dict[str, list[Path]]:
    """Pictures by class: those of each sub-folder, at any depth."""
    found = {}
    above = frozenset((folder.resolve(),))
    for place in _listed(folder):
        files = list(walk.pictures(place, above)) if place.is_dir() else []
        if files:
            found[place.name] = sorted(files, key=lambda p: natural(p.relative_to(folder)))
    return found


def _matches(path: str, options: ConvertOptions) -> bool:
    if is_remote(path) or not Path(path).is_dir():
        return False
    try:
        within = [p for p in _listed(Path(path)) if p.is_dir()]
        return any(
            _is_picture(entry) or (entry.is_dir() and any(map(_is_picture, _listed(entry))))
            for place in within
            for entry in _listed(place)
        )
    except SourceError:  # a folder that may not be listed
        return False


def _read(path: str, options: ConvertOptions) -> Source:
    if not Path(path).is_dir():
        raise SourceError(f"{path} is not a folder: expected is one with a folder per class")
    folders, notes = _folders(path)
    walk = _Walk()
    by_split = {name: _pictures(folder, walk) for name, folder in folders.items()}
    classes = sorted({label for found in by_split.values() for label in found}, key=natural)
    if not classes:
        raise SourceError(
            f"{path} has no folders with pictures ({', '.join(SUFFIXES)}): expected is one folder "
            f"per class, as they are or in train, val and test"
        )
    files = [p for found in by_split.values() for several in found.values() for p in several]
    mode, depth, grid, remarks = _look(files, options.size)
    splits = {}
    for name, found in by_split.items():
        labelled = [(file, label) for label, several in found.items() for file in several]
        if name == "all":
            labelled = _interleaved(labelled)  # a split of consecutive ones has every class
        splits[name] = tuple(_part(f, classes.index(c), mode, options.size) for f, c in labelled)
    if stray := [
        p
        for folder in dict.fromkeys((Path(path), *folders.values()))
        for p in _listed(folder)
        if _is_picture(p)
    ]:
        notes.append(f"{len(stray)} pictures are in no class and are left out: {stray[0]}, …")
    notes += _repeated(by_split)
    return Source(
        format="images",
        name=named(path),
        equation="images",
        fields=tuple(Field(name, name) for name in _FIELDS[mode]),
        splits={name: parts for name, parts in splits.items() if parts},
        num_frames=1,
        grid_shape=grid,
        notes=(*notes, *walk.notes(), *remarks),
        details={
            "classes": classes,
            "num_files": len(files),
            "resized_to": options.size,
            **({"depth": depth} if depth != EIGHT_BITS else {}),
        },
    )


def _repeated(by_split: dict[str, dict[str, list[Path]]]) -> list[str]:
    """A note on pictures that are in two splits or classes: links to one file, or hard links."""
    seen: dict[tuple[int, int], tuple[str, str, Path]] = {}
    repeated: dict[str, list[tuple[Path, Path]]] = {}
    for split, found in by_split.items():
        for label, files in found.items():
            for file in files:
                status = file.stat()
                first = seen.setdefault((status.st_dev, status.st_ino), (split, label, file))
                if status.st_ino == 0 or first[2] is file:  # 0: a file system without such numbers
                    continue
                what = f"in {first[0]} and {split}" if first[0] != split else "twice in a split"
                if first[1] != label:
                    what += f", of the classes {first[1]} and {label}"
                repeated.setdefault(what, []).append((first[2], file))
    return [
        f"{len(pairs)} pictures are {what}: {pairs[0][0]} is the same file as {pairs[0][1]}"
        for what, pairs in repeated.items()
    ]


def _look(files: list[Path], size: int | None) -> tuple[str, str, tuple[int, int], list[str]]:
    """How all are stored, the depth of a value, pixels `(y, x)`, and notes, from all files' heads.

    Raises:
        SourceError: a file is no picture, depths differ, or sizes differ and none is asked for.
    """
    agreement = Agreement(
        "A value would mean another brightness in each: convert all pictures to one depth"
    )
    modes, first = set(), None
    remarks: dict[str, list[Path]] = {}
    for file in files:
        found = head(file)
        agreement.require("the depth of a value", str(file), found.depth)
        modes.add(found.mode)
        if found.remark:
            remarks.setdefault(found.remark, []).append(file)
        first = first or found.size
        if found.size != first and size is None:
            raise SourceError(
                f"{file} has {found.size[1]} x {found.size[0]} pixels, {files[0]} {first[1]} x "
                f"{first[0]}: all must be of one size, or give --size N to resize them to N x N"
            )
    assert first is not None
    mode = modes.pop() if len(modes) == 1 else "RGB"
    notes = [f"{len(which)} pictures are {what}: {which[0]}, …" for what, which in remarks.items()]
    return mode, found.depth, first if size is None else (size, size), notes


def _interleaved(labelled: list[tuple[Path, str]]) -> list[tuple[Path, str]]:
    """Ordered by the position within the class, so that classes alternate evenly."""
    totals: dict[str, int] = {}
    for _, label in labelled:
        totals[label] = totals.get(label, 0) + 1
    seen: dict[str, int] = {}
    ranked = []
    for file, label in labelled:
        seen[label] = seen.get(label, 0) + 1
        ranked.append(((seen[label] - 0.5) / totals[label], label, file))
    return [(file, label) for _, label, file in sorted(ranked)]


def _part(file: Path, label: int, mode: str, size: int | None) -> Part:
    address = f"{file}?side={size or 0}&mode={mode}"
    array = StoredArray("picture", address, "", "yxc", 0, len(_FIELDS[mode]))
    return Part((array,), parameters={LABEL_PARAMETER: float(label)})


FORMAT = Format(
    "images",
    "pictures in a folder per class",
    "a folder of classes, as it is or in train, val, test (--size N resizes)",
    _matches,
    _read,
)
