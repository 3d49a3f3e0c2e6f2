"""Pipes, sockets and devices among the files of a source: reading one may never end."""

import os
from pathlib import Path

from pelagos.data_pipelines.convert.source import SourceError
from pelagos.infra.storage.remote import is_remote


def reject_endless(path: str) -> None:
    """Raise SourceError if a local file, or one below a folder, is none of the disk's.

    Hidden names are left out, as every format does.
    """
    place = Path(path)
    if is_remote(path) or not place.exists():
        return
    if not place.is_dir():
        if not place.is_file():
            raise _endless(path)
        return
    folders = [path]
    while folders:
        with os.scandir(folders.pop()) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.is_dir(follow_symlinks=False):
                    folders.append(entry.path)
                elif not (entry.is_file() or entry.is_dir()) and os.path.exists(entry.path):
                    raise _endless(entry.path)


def _endless(path: str) -> SourceError:
    return SourceError(
        f"{path} is a pipe, a socket or a device, and reading it may never end. Remove it, or write "
        "its output to a file"
    )
