"""A directory of one's own in a place where everyone can write."""

import contextlib
import os
import stat
import tempfile
from pathlib import Path


def private_directory(path: Path) -> Path:
    """Make a directory that only this user can enter, or check that the one there is so.

    Raises:
        PermissionError: it belongs to somebody else, is a link, or others can enter it: they
            could have put links into it that lead elsewhere.
    """
    with contextlib.suppress(FileExistsError):
        path.mkdir(mode=0o700, parents=True)
    found = os.lstat(path)
    what = None
    if not stat.S_ISDIR(found.st_mode):
        what = "is a link or not a directory"
    elif found.st_uid != os.getuid():
        what = f"belongs to user {found.st_uid}"
    elif stat.S_IMODE(found.st_mode) & 0o077:
        what = f"has mode {stat.S_IMODE(found.st_mode):04o}, so others can enter it"
    if what is not None:
        raise PermissionError(
            f"{path} {what}, so Pelagos neither reads nor writes there. Remove it, or set TMPDIR to "
            "a directory of your own"
        )
    return path


def temporary_directory(longest: int | None = None) -> Path:
    """This user's own directory for files that need not outlast the machine: `TMPDIR/pelagos-UID`.

    Args:
        longest: characters of its path that can be used; else it is where `TMPDIR` usually is.

    Not below XDG_RUNTIME_DIR: that is removed when the user logs out, and submitted runs continue.

    Raises:
        PermissionError: as `private_directory`.
    """
    path = Path(tempfile.gettempdir()) / f"pelagos-{os.getuid()}"
    if longest is not None and len(str(path)) > longest:
        path = Path(os.sep, "tmp", path.name)
    return private_directory(path)


def state_directory() -> Path:
    """Where this user's own notes lie: `XDG_STATE_HOME/pelagos`, or `~/.local/state/pelagos`."""
    home = os.environ.get("XDG_STATE_HOME") or str(Path.home() / ".local" / "state")
    return Path(home) / "pelagos"


def cache_directory() -> Path:
    """This user's own directory for files that can be made anew: `PELAGOS_CACHE`, or `~/.cache/pelagos`.

    Code that is run and logs that are written lie there. Where PELAGOS_CACHE names a directory that
    others can write in, it is a directory of this user's own below that.

    Raises:
        PermissionError: as `private_directory`.
    """
    given = os.environ.get("PELAGOS_CACHE")
    place = Path(given) if given else Path.home() / ".cache" / "pelagos"
    place.mkdir(parents=True, exist_ok=True)
    found = place.stat()
    is_own = found.st_uid == os.geteuid() and not stat.S_IMODE(found.st_mode) & 0o022
    return place if is_own else private_directory(place / f"pelagos-{os.geteuid()}")
