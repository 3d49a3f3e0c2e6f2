"""Writing files so that they are whole or absent, also after a crash or a power cut.

Finding them; files that are locked.
"""

import errno
import io
import os
import re
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from pelagos.infra.memory_budget import memory_budget


def replace_durably(path: Path, content: bytes, mode: int = 0o666) -> None:
    """Write a file whole: under a temporary name, flushed to the disk, then renamed.

    Args:
        mode: who may read and write it, less the rights that the umask removes.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_native_id()}.tmp")
    temporary.unlink(missing_ok=True)  # of a process of that number that was killed
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    sync_directory(path.parent)


def open_regular(path: Path, *, follow_links: bool = False) -> int:
    """Return a descriptor that reads a file, in a place where others can write too.

    Raises:
        OSError: it is a pipe or a device, which would never end, or a link, which could lead anywhere,
            unless links are followed.
    """
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | (0 if follow_links else os.O_NOFOLLOW)
    descriptor = os.open(path, flags)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "is not a regular file", str(path))
    return descriptor


def read_regular(path: Path, start: int = 0, *, follow_links: bool = False) -> bytes:
    """Return the bytes of a file from `start` on, in a place where others can write too.

    Raises:
        OSError: as `open_regular`; or it claims to be longer than the memory that one piece may take.
    """
    return read_opened(open_regular(path, follow_links=follow_links), path, start)


def read_opened(descriptor: int, path: Path, start: int = 0) -> bytes:
    """Return the bytes of an open file from `start` on, and close it.

    Raises:
        OSError: it claims to be longer than the memory that one piece may take.
    """
    with os.fdopen(descriptor, "rb") as file:
        num_bytes = os.fstat(descriptor).st_size - start
        if num_bytes > memory_budget():
            told = f"has {num_bytes:,} bytes, more than may be read at once (PELAGOS_MEMORY_BUDGET)"
            raise OSError(errno.EFBIG, told, str(path))
        file.seek(start)
        return file.read()


class CappedReader(io.BufferedReader):
    """A file that is asked for no more bytes than are left.

    Lengths in a header are claims, and as many bytes would be allocated.
    """

    def read(self, size: int | None = -1, /) -> bytes:
        left = max(0, os.fstat(self.fileno()).st_size - self.tell())
        return super().read(left if size is None or size < 0 else min(size, left))

    def __repr__(self) -> str:
        return repr(self.name)  # in messages of libraries


def below(root: Path, name: str) -> Path:
    """Return the path of `name` in a folder, where others may have chosen the name.

    Raises:
        ValueError: it leads out of the folder, by `..`, as an absolute path, or over a link.
    """
    inner = Path(os.path.normpath(name))  # alone, as the root may hold `..`
    path = root / inner
    is_below = not inner.is_absolute() and inner.parts[:1] not in ((), ("..",)) and "\0" not in name
    if (
        not is_below
        or not path.parent.resolve().is_relative_to(root.resolve())
        or path.is_symlink()
    ):
        raise ValueError(f"{name!r} leads out of {root}; Pelagos wrote nothing")
    return path


def open_lock_file(path: Path) -> int:
    """Return a descriptor of a file to be locked with `fcntl.flock`, made if it is absent.

    Anyone who can open a file, even only for reading, can lock it and make its owner wait. So only those
    who can write in the directory can open this one: its owner, and its group where that can.

    A lock belongs to the descriptor: it ends with the process, and programs that the process starts do
    not inherit it (a child made by `fork` alone does). On NFS, Linux makes a lock of the whole
    file on the server of it, which takes a descriptor that can write, as this one can.

    Raises:
        OSError: the file is a link or no regular file, or belongs to somebody else.
    """
    mode = 0o660 if path.parent.stat().st_mode & stat.S_IWGRP else 0o600
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    descriptor = os.open(path, flags, mode)
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "is not a regular file", str(path))
    # of an earlier version, or narrowed by the umask
    if found.st_uid == os.geteuid() and stat.S_IMODE(found.st_mode) != mode:
        os.fchmod(descriptor, mode)
    return descriptor


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

    Files renamed or removed meanwhile are left out; `Path.rglob` raises FileNotFoundError.
    """
    for place, folders, names in os.walk(root):
        folder = Path(place)
        folders[:] = [name for name in folders if is_wanted(folder / name)]
        paths = (folder / name for name in names)
        yield from (path for path in paths if is_wanted(path) and path.is_file())


_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
# Prefixes of the path in addresses of local stores.
_LOCAL_SCHEMES = ("sqlite:///", "file://")


def expanded_path(path: str) -> str:
    """Return a path or address with a leading `~` and each `${VAR}` replaced, as a shell would.

    >>> os.environ["PELAGOS_DOCTEST"] = "scratch"
    >>> expanded_path("s3://bucket/${PELAGOS_DOCTEST}/runs")
    's3://bucket/scratch/runs'

    Raises:
        ValueError: a variable is not set, or there is no such user.
    """

    def value(found: re.Match[str]) -> str:
        name = found.group(1)
        if name not in os.environ:
            raise ValueError(
                f"{path}: the environment variable {name} is not set; set it or write the path"
            )
        return os.environ[name]

    filled = _VARIABLE.sub(value, path)
    scheme = next((s for s in _LOCAL_SCHEMES if filled.startswith(f"{s}~")), "")
    rest = filled.removeprefix(scheme)
    if not rest.startswith("~"):
        return filled
    home = os.path.expanduser(rest)
    if home.startswith("~"):
        raise ValueError(f"{path}: user {rest.partition('/')[0][1:]!r} does not exist")
    return scheme + home
