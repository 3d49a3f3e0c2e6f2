"""Writing files so that they are whole or absent, also after a crash or a power cut; finding them."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path


def replace_durably(path: Path, content: bytes) -> None:
    """Write a file whole: under a temporary name, flushed to the disk, then renamed."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Flush a directory's entries to the disk, so that a rename in it survives a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def files_below(
    root: Path, is_wanted: Callable[[Path], bool] = lambda path: True
) -> Iterator[Path]:
    """Yield the files below a directory that, as all folders above them, are wanted; in any order.

    What is renamed or removed meanwhile is left out; `Path.rglob` raises FileNotFoundError.
    """
    for place, folders, names in os.walk(root):
        folder = Path(place)
        folders[:] = [name for name in folders if is_wanted(folder / name)]
        paths = (folder / name for name in names)
        yield from (path for path in paths if is_wanted(path) and path.is_file())
