"""HDF5 that keeps its numbers in other files: only in those next to it.

External storage, external links and virtual sources name files of any path. Somebody else's file could
so have any file of this machine read and converted; none is read that is not below the folder of the
file itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pelagos.data_pipelines.convert.hdf5.first_look import require_answering
from pelagos.data_pipelines.convert.source import SourceError

MOST_LINKS = 16


def require_beside(parent: Any, key: str, depth: int = 0) -> None:
    """Check the link to a member of a group before following it.

    Args:
        parent: an h5py group.
        key: of the member, as in `parent[key]`.
        depth: how many links led here.

    Raises:
        SourceError: a link of it leads to a file elsewhere, or links lead in a circle.
        DamagedFileError: the HDF5 library would hang or crash in the file that it leads to.
    """
    where = f"{_name(parent)}: {key}"
    if depth > MOST_LINKS:
        raise SourceError(f"{where} is behind more than {MOST_LINKS} links, so they form a circle")
    group: Any = parent.file if key.startswith("/") else parent
    for part in filter(None, key.split("/")):
        if not hasattr(group, "get"):  # an array
            return
        link: Any = group.get(part, getlink=True, default=None)
        if hasattr(link, "filename"):
            _require(group, str(link.filename), where, "is a link to")
        elif hasattr(link, "path"):
            require_beside(group, str(link.path), depth + 1)
        try:
            group = group[part]
        except KeyError:  # there is nothing: said where it is asked for
            return


def require_numbers_beside(dataset: Any, where: str) -> None:
    """Check where an array has its numbers.

    Raises:
        SourceError: in a file elsewhere.
        DamagedFileError: in an HDF5 file in which the library would hang or crash.
    """
    for name in _files_of(dataset):
        _require(dataset, name, where, "keeps its numbers in")


def _files_of(dataset: Any) -> Iterator[str]:
    if getattr(dataset, "is_virtual", False):
        names = {str(source.file_name) for source in dataset.virtual_sources()}
        yield from sorted(names - {"."})
    elif getattr(dataset, "external", None):
        yield from sorted({str(name) for name, _, _ in dataset.external})


def _require(node: Any, name: str, where: str, how: str) -> None:
    folder = _folder(node)
    if folder is not None and (folder / name).resolve().is_relative_to(folder):
        require_answering(folder / name)
        return
    raise SourceError(
        f"{where} {how} the file {name}, which is outside the folder of the file that names it. A "
        "file from somebody else could name any file. Put it there, or copy the numbers into one "
        "file (h5repack, or h5py)"
    )


def _folder(node: Any) -> Path | None:
    """The folder of a node's file; None: it is no local file."""
    path = Path(_name(node))
    return path.resolve().parent if path.is_file() else None


def _name(node: Any) -> str:
    name = node.file.filename
    return name.decode(errors="replace") if isinstance(name, bytes) else str(name)
