"""Folders of pictures, one per class, also inside folders named by split.

The layout of ImageNet and of torchvision's `ImageFolder`: `DIR/CLASS/picture.png`, or
`DIR/train/CLASS/picture.png`. Classes are numbered in the order of their names, over all splits.
Values stay 0 to 255, as in the files.
"""

from __future__ import annotations

from pathlib import Path

from pelagos.data_pipelines.convert.formats import Format, named, natural, split_folders
from pelagos.data_pipelines.convert.options import ConvertOptions
from pelagos.data_pipelines.convert.source import Part, Source, SourceError, StoredArray
from pelagos.data_pipelines.mixture import LABEL_PARAMETER
from pelagos.data_pipelines.store import Field
from pelagos.infra.object_store import is_remote

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp")
_FIELDS = {"L": ("intensity",), "RGB": ("red", "green", "blue")}
_GREY_MODES = ("1", "L", "I;16", "LA")


def _pictures(folder: Path) -> dict[str, list[Path]]:
    """Pictures by class: those of each sub-folder, at any depth."""
    found = {}
    for place in sorted(folder.iterdir()):
        if place.is_dir() and not place.name.startswith("."):
            files = [p for p in place.rglob("*") if p.suffix.lower() in SUFFIXES]
            if files:
                found[place.name] = sorted(files, key=lambda p: natural(p.relative_to(folder)))
    return found


def _matches(path: str, options: ConvertOptions) -> bool:
    if is_remote(path) or not Path(path).is_dir():
        return False
    folder = next(iter(split_folders(path).values()), Path(path))
    return any(
        p.suffix.lower() in SUFFIXES
        for place in folder.iterdir()
        if place.is_dir()
        for p in place.iterdir()
    )


def _read(path: str, options: ConvertOptions) -> Source:
    if not Path(path).is_dir():
        raise SourceError(f"{path} is not a folder: expected is one with a folder per class")
    folders: dict[str, Path] = split_folders(path) or {"all": Path(path)}
    by_split = {name: _pictures(folder) for name, folder in folders.items()}
    classes = sorted({label for found in by_split.values() for label in found}, key=natural)
    if not classes:
        raise SourceError(
            f"{path} has no folders with pictures ({', '.join(SUFFIXES)}): expected is one folder "
            f"per class, as they are or in train, val and test"
        )
    files = [p for found in by_split.values() for several in found.values() for p in several]
    mode, grid = _look(files, options.size)
    splits = {}
    for name, found in by_split.items():
        labelled = [(file, label) for label, several in found.items() for file in several]
        if name == "all":
            labelled = _interleaved(labelled)  # a split of consecutive ones has every class
        splits[name] = tuple(_part(f, classes.index(c), mode, options.size) for f, c in labelled)
    return Source(
        format="images",
        name=named(path),
        equation="images",
        fields=tuple(Field(name, name) for name in _FIELDS[mode]),
        splits={name: parts for name, parts in splits.items() if parts},
        num_frames=1,
        grid_shape=grid,
        details={"classes": classes, "num_files": len(files), "resized_to": options.size},
    )


def _look(files: list[Path], size: int | None) -> tuple[str, tuple[int, int]]:
    """Grey or colour, and pixels `(y, x)`, from the heads of all files.

    Raises:
        SourceError: a file is no picture, or sizes differ and none is asked for.
    """
    from PIL import Image, UnidentifiedImageError

    mode, first = "L", None
    for file in files:
        try:
            with Image.open(file) as picture:
                grid = (picture.height, picture.width)
                if picture.mode not in _GREY_MODES:
                    mode = "RGB"
        except (UnidentifiedImageError, OSError) as error:
            raise SourceError(f"{file} cannot be read as a picture: {error}") from error
        first = first or grid
        if grid != first and size is None:
            raise SourceError(
                f"{file} has {grid[1]} x {grid[0]} pixels, {files[0]} {first[1]} x {first[0]}: all "
                f"must be of one size, or give --size N to resize them to N x N"
            )
    assert first is not None
    return mode, first if size is None else (size, size)


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
